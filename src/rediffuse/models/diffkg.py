"""DiffKG: a knowledge graph, pruned by diffusion, teaches a collaborative model (Jiang et al., WSDM 2024, 2312.16890).

Every epoch has two phases. First, a denoiser learns to recover rows of the knowledge graph's adjacency from noise, and
to agree with the interactions (`rediffuse.models.diffkg_denoiser`). Then it scores the edges: each entity keeps its
best, and the other edges are pruned. Second, the recommender learns from both graphs, the pruned and the original:

    x = attention over the relations of the graph, from embeddings of entities (`rediffuse.models.relation_attention`)
    Z = the sum over layers of propagation between users and items, from embeddings of users and x of items
    loss = BPR on the main view + contrast (InfoNCE) between the two views + L2

docs/models/diffkg.md says what ``fidelity=released`` changes and how the released code differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional as F

from rediffuse.batching.matrix import bags, binary_matrix
from rediffuse.batching.pairs import PairBatch
from rediffuse.config import Range
from rediffuse.data.histories import Histories
from rediffuse.data.knowledge import knowledge_edges, most_per_node
from rediffuse.diffusion import NoiseLevels, noise_levels, noise_schedule
from rediffuse.errors import DataError
from rediffuse.graphs import Graph, bipartite_adjacency, propagate, symmetric_normalised
from rediffuse.losses import bpr, softmax_cross_entropy
from rediffuse.models.base import Batches, TrainingData
from rediffuse.models.diffkg_denoiser import (
    EntityBatch,
    EntityBatches,
    best_of_all_pairs,
    denoise_graph,
    denoising_loss,
    edge_scores,
)
from rediffuse.models.factors import FactorConfig, FactorModel
from rediffuse.models.relation_attention import RelationAttention, View
from rediffuse.nn import RowDenoiser, SizedByData

# Defaults of the released program.
_PAPER: dict[str, Any] = {
    "learning_rate": 1e-3,
    "batch_size": 1024,
    "epochs": 25,
    "reg": 1e-7,
    "kg_hops": 1,
    "message_dropout": 0.1,
    "residual": 0.5,
    "most_edges": 10,
    "contrast": 0.1,
    "temperature": 0.1,
    "main_view": "pruned",
    "rebuild_k": 1,
    "keep_rate": 0.5,
    "collaborative": 0.5,
    "hidden_size": 1000,
    "denoiser_batch": 1024,
    "denoiser_dropout": 0.5,
    "normalize": True,
}


class DiffKGConfig(FactorConfig):
    """Options of DiffKG. The defaults are chosen on validation data; see docs/benchmarks.md."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": _PAPER,
        "released": _PAPER | {"fidelity": "released"},
        "paper:last-fm": _PAPER
        | {"reg": 1e-5, "kg_hops": 2, "message_dropout": 0.2, "residual": 0.0, "most_edges": None}
        | {"main_view": "original", "keep_rate": 0.1, "collaborative": 0.01},
    }
    search: ClassVar[dict[str, Any]] = FactorConfig.search | {
        "reg": (1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
        "layers": (1, 2, 3),
        "kg_hops": (1, 2),
        "contrast": Range(1e-3, 1.0, log=True),
        "temperature": (0.1, 0.2, 0.5, 1.0),
        "rebuild_k": (1, 5, 10),
        "keep_rate": Range(0.1, 1.0),
        "main_view": ("pruned", "original"),
    }

    learning_rate: float = Field(5e-3, gt=0)
    validate_every: int = Field(1, ge=1, description="Epochs between validations.")
    layers: int = Field(2, ge=1, description="Steps of propagation between users and items.")
    kg_hops: int = Field(1, ge=1, description="Steps of attention along the knowledge graph.")
    message_dropout: float = Field(0.1, ge=0, lt=1, description="Dropout on the messages that an entity receives.")
    residual: float = Field(0.5, ge=0, description="Share of the previous vector that stays after a hop.")
    most_edges: int | None = Field(
        None, ge=1, description="Edges of the original view per entity, drawn once; null: all."
    )
    contrast: float = Field(0.01, ge=0, description="Weight of the contrast between the views.")
    temperature: float = Field(0.2, gt=0, description="Temperature of the contrast.")
    main_view: Literal["pruned", "original"] = Field("pruned", description="The view that recommends.")
    pruning: Literal["diffusion", "random", "none"] = Field("diffusion", description="What selects the edges to keep.")
    rebuild_k: int = Field(1, ge=1, description="Best edges that each entity keeps, in either direction.")
    keep_rate: float = Field(
        1.0, gt=0, le=1, description="Probability that a kept edge stays, drawn again every epoch."
    )
    fidelity: Literal["corrected", "released"] = Field(
        "corrected",
        description="released: training never uses the pruned graph, and pruning ranks all pairs of entities instead "
        "of edges, as in the authors' program.",
    )
    collaborative: float = Field(0.5, ge=0, le=1, description="Share of the convolution in the denoiser's loss.")
    hidden_size: int = Field(128, ge=1, description="Width of the denoiser.")
    denoiser_batch: int = Field(4096, ge=1, description="Entities per step of the denoiser.")
    denoiser_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the input row of the denoiser.")
    normalize: bool = Field(
        False, description="Scale noised rows to length one, as released; makes rows dense in training."
    )
    diffusion_steps: int = Field(5, ge=1, description="T, the steps of the noise schedule.")
    noise_scale: float = Field(0.1, gt=0, description="Factor of both ends of the schedule.")
    noise_min: float = Field(1e-4, gt=0, description="1 - abar at the first step, before the factor.")
    noise_max: float = Field(0.02, gt=0, description="1 - abar at the last step, before the factor.")
    noising_steps: int = Field(
        0, ge=0, description="T', steps of noise on a row of the graph before it is denoised in T; dense, so slower."
    )

    @model_validator(mode="after")
    def _noising_steps_exist(self) -> Self:
        if self.noising_steps > self.diffusion_steps:
            raise ValueError(f"noising_steps={self.noising_steps} is more than diffusion_steps={self.diffusion_steps}")
        return self


class ChainedBatches:
    """The batches of several sources, one source after the other."""

    def __init__(self, sources: Sequence[Any]) -> None:
        self.places = [(source, index) for source in sources for index in range(len(source))]

    def __len__(self) -> int:
        return len(self.places)

    def get(self, index: int, rank: int = 0, ranks: int = 1) -> Any:
        source, place = self.places[index]
        return source.get(place, rank, ranks)

    def users(self, index: int) -> NDArray[np.int64]:
        source, place = self.places[index]
        return source.users(place)


class DiffKG(FactorModel):
    """User and item vectors from the interactions, taught by a knowledge graph that diffusion has pruned.

    The first rows of its table of entities are the items.
    """

    name = "diffkg"
    Config = DiffKGConfig
    config: DiffKGConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    user_vectors: Tensor
    item_vectors: Tensor

    def __init__(self, config: DiffKGConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        size = config.embedding_size
        nn.init.xavier_uniform_(self.user_embedding.weight)
        del self.item_embedding  # items are entities, and only the data tell how many there are
        self.entity_embedding, self.relation_embedding = SizedByData(columns=size), SizedByData(columns=size)
        self.encoder = RelationAttention(size, config.kg_hops, config.residual, config.message_dropout)
        self.schedule = noise_schedule(
            "linear_var",
            config.diffusion_steps,
            noise_scale=config.noise_scale,
            noise_min=config.noise_min,
            noise_max=config.noise_max,
            first_beta=1e-4,
        )
        self.denoiser: RowDenoiser | None = None
        self.kept = SizedByData(trained=False, dtype=torch.bool)  # (edges,) those that are not pruned
        self.register_buffer("user_vectors", torch.zeros(num_users, size))
        self.register_buffer("item_vectors", torch.zeros(num_items, size))
        # What an item sends to a new neighbour in each step of propagation, side by side.
        self.item_spread = SizedByData(rows=num_items, trained=False)

    # --- data ------------------------------------------------------------------------------------------------

    def check(self, data: TrainingData) -> None:
        if data.kg is None or not len(data.kg):
            raise DataError(
                f"{self.name} learns from a knowledge graph, and the data have none.",
                "Give it with --kg and --item-entity (Python: kg=..., item_entity=...), or use lightgcn.",
            )
        if not (knowledge_edges(data.kg, self.num_items).head < self.num_items).any():
            raise DataError(
                "No item is linked to an entity of the knowledge graph.",
                "Check that the links (item_entity) use the ids of the items and of the triples.",
            )

    def fit(self, data: TrainingData) -> None:
        super().fit(data)
        assert data.kg is not None, "check comes first"
        device = self.popularity.device
        self.edges = knowledge_edges(data.kg, self.num_items)
        self.entity_ids, self.relation_ids = data.kg.entity_ids, data.kg.relation_ids
        self.create_weights(self.edges.num_nodes, self.edges.num_relations)
        everything = np.ones(len(self.edges), dtype=bool)
        self.kept.set(torch.from_numpy(everything))
        self.reverse = self.edges.reverse()
        self.full = self.view_of(everything)
        most = self.config.most_edges
        drawn = np.random.default_rng([data.seed, len(self.edges)]).random(len(self.edges))
        self.original = self.full if most is None else self.view_of(most_per_node(self.edges, most, drawn))
        self.pruned = self.original
        interactions = binary_matrix(data.train, self.num_items)
        adjacency = bipartite_adjacency(interactions, self_loops=True)
        self.adjacency = Graph(symmetric_normalised(adjacency), device)
        self.item_users = Graph(sparse.csr_array(interactions.T.tocsr()), device)
        self.degrees = torch.from_numpy(np.ravel(interactions.sum(axis=0)) + 1).to(device)

    def create_weights(self, nodes: int, relations: int) -> None:
        """Create the weights whose size depends on the data: those of entities, of relations and of the denoiser."""
        config, device = self.config, self.popularity.device
        self.entity_embedding.set(nn.init.xavier_uniform_(torch.empty(nodes, config.embedding_size)))
        self.relation_embedding.set(nn.init.xavier_uniform_(torch.empty(relations, config.embedding_size)))
        denoiser = RowDenoiser(
            nodes,
            (config.hidden_size,),
            10,
            config.diffusion_steps,
            config.denoiser_dropout,
            normalize=config.normalize,
        )
        self.denoiser = denoiser.to(device)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:  # pyright: ignore
        sizes = [state_dict.get(f"{prefix}{x}_embedding.value", ()) for x in ("entity", "relation")]
        if self.denoiser is None and all(map(len, sizes)):  # a run is loaded without its data
            self.create_weights(*map(len, sizes))
        super()._load_from_state_dict(state_dict, prefix, *others)

    def view_of(self, kept: NDArray[np.bool_]) -> View:
        """The graph of the edges under ``kept`` (edges,), and their relations."""
        edges, device = self.edges.where(kept), self.popularity.device
        return View(Graph(edges.matrix(), device), torch.from_numpy(edges.relation).to(device))

    # --- training --------------------------------------------------------------------------------------------

    def batches(self, data: TrainingData, rng: np.random.Generator) -> Batches:  # pyright: ignore
        self.rebuild_seed = int(rng.integers(2**62))
        self.rebuilt, self.item_sums = False, None
        sources: list[Any] = [super().batches(data, rng)]
        if self.config.pruning == "diffusion":
            sources.insert(0, EntityBatches(self.edges, batch_size=self.config.denoiser_batch, rng=rng))
        return ChainedBatches(sources)

    def loss(self, batch: EntityBatch | PairBatch) -> Tensor:
        if isinstance(batch, EntityBatch):
            with torch.autocast(batch.entities.device.type, enabled=False):
                return self.denoiser_loss(batch)
        if not self.rebuilt:
            with torch.autocast(batch.users.device.type, enabled=False):  # half precision would make scores tie
                self.rebuild()
        return self.recommender_loss(batch)

    def denoiser_loss(self, batch: EntityBatch) -> Tensor:
        """The loss of the first phase; it leaves the recommender's weights alone."""
        assert self.denoiser is not None
        if self.item_sums is None:  # constant during the first phase
            self.item_sums = self.item_users @ self.user_embedding.weight.detach()
        loss = denoising_loss(
            self.denoiser,
            self.schedule,
            batch.rows,
            F.embedding(batch.entities, self.entity_embedding.value.detach()),
            self.item_sums,
            self.config.collaborative,
            dense=self.config.normalize,
        )
        return loss * batch.rows.rank_weight

    @torch.no_grad()
    def rebuild(self) -> None:
        """Prune the graph. The result depends on the denoiser's weights and on the epoch's seed alone."""
        rng, edges = np.random.default_rng(self.rebuild_seed), self.edges
        kept = self.selected_edges(rng)
        kept = kept | kept[self.reverse]
        if self.config.pruning != "none":
            kept &= rng.random(len(edges)) < self.config.keep_rate
        if not kept.any():
            kept[:] = True
        self.kept.set(torch.from_numpy(kept))
        self.pruned, self.rebuilt = self.view_of(kept), True

    def selected_edges(self, rng: np.random.Generator) -> NDArray[np.bool_]:
        """(edges,) whether an edge is among the `rebuild_k` best of its head, as the option `pruning` ranks them."""
        k, edges, denoiser = self.config.rebuild_k, self.edges, self.denoiser
        if self.config.pruning == "none":
            return np.ones(len(edges), dtype=bool)
        if self.config.pruning == "random":
            return most_per_node(edges, k, rng.random(len(edges)))
        assert denoiser is not None
        noising_steps = self.config.noising_steps
        seed = int(rng.integers(2**62)) if noising_steps else 0
        g = denoise_graph(denoiser, self.schedule, edges, noising_steps, seed)
        if self.config.fidelity == "released":
            return best_of_all_pairs(denoiser, g, edges, k)
        return most_per_node(edges, k, edge_scores(denoiser, g, self.full.graph))

    def propagate_view(self, view: View) -> list[Tensor]:
        """Layers (users + items, d) of propagation, from embeddings of users and the attention's output of items."""
        entities = self.encoder(self.entity_embedding.value, self.relation_embedding.value, view)
        start = torch.cat((self.user_embedding.weight, entities[: self.num_items]))
        return propagate(self.adjacency, start, self.config.layers)

    def views(self) -> tuple[View, View]:
        """The main view, and the view that it is contrasted with."""
        if self.config.fidelity == "released" and self.training:
            return self.original, self.original
        both = (self.pruned, self.original)
        return both if self.config.main_view == "pruned" else (self.original, self.pruned)

    def recommender_loss(self, batch: PairBatch) -> Tensor:
        """The loss of the second phase."""
        main_view, other_view = self.views()
        with torch.autocast(batch.users.device.type, enabled=False):
            main = torch.stack(self.propagate_view(main_view)).sum(0).split((self.num_users, self.num_items))
            users = F.embedding(batch.users, main[0])
            positive = (users * F.embedding(batch.positives, main[1])).sum(-1)
            negative = (users[:, None] * F.embedding(batch.negatives, main[1])).sum(-1)
            loss = bpr(positive, negative) + self.config.reg * self.penalty(batch)
            if not self.config.contrast:
                return loss * batch.rank_weight
            other = torch.stack(self.propagate_view(other_view)).sum(0).split((self.num_users, self.num_items))
        for main_nodes, other_nodes, of_batch in zip(main, other, (batch.users, batch.positives), strict=True):
            nodes = of_batch.unique()
            anchors = F.normalize(F.embedding(nodes, other_nodes), dim=1) / self.config.temperature
            contrast = softmax_cross_entropy(anchors, F.normalize(main_nodes, dim=1), nodes)[0]
            loss = loss + self.config.contrast * contrast
        return loss * batch.rank_weight

    def item_table(self) -> Tensor:
        return self.entity_embedding.value

    def noise_levels(self, data: TrainingData) -> list[NoiseLevels]:
        if self.config.pruning != "diffusion":
            return []
        density = len(self.edges) / self.edges.num_nodes**2
        return [noise_levels(self.schedule, "rows of the graph", density, starts_from_noise=False)]

    # --- scoring ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def prepare(self) -> None:
        self.pruned = self.view_of(self.kept.value.cpu().numpy())
        layers = self.propagate_view(self.views()[0])
        users, items = torch.stack(layers).sum(0).split((self.num_users, self.num_items))
        self.user_vectors.copy_(users)
        self.item_vectors.copy_(items)
        sent = [layer[self.num_users :] * self.degrees.rsqrt()[:, None] for layer in layers[:-1]]
        self.item_spread.set(torch.cat(sent, dim=1))

    def answering_vectors(self) -> tuple[Tensor, Tensor]:
        return self.user_vectors, self.item_vectors

    def fold_in(self, histories: Histories) -> Tensor:
        """What propagation gives a new node with these edges and a self-loop, whose own embedding is zero."""
        items, offsets, degree = bags(histories, self.num_items, self.item_vectors.device)
        received = F.embedding_bag(items, self.item_spread.value, offsets, mode="sum")
        new_degree = (degree + 1).float()[:, None]
        state = total = torch.zeros(len(histories), self.config.embedding_size, device=received.device)
        for step in received.chunk(self.config.layers, dim=1):
            state = state / new_degree + step * new_degree.rsqrt()
            total = total + state
        return total

    # --- explanations ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def artifacts(self, user_ids: pl.Series, item_ids: pl.Series) -> dict[str, pl.DataFrame]:
        """knowledge.parquet: the edges of items, by name, with their weights in the attention over the whole graph.

        Columns: item_id, relation, entity or other_item (the tail of the edge), weight, kept (not pruned at the end).
        A relation that is read from tail to head ends in " (of)".
        """
        weight = self.encoder.attention(self.entity_embedding.value, self.relation_embedding.value, self.full)
        edges, half = self.edges, self.edges.num_relations // 2
        of_items = edges.head < self.num_items
        head, tail, relation = edges.head[of_items], edges.tail[of_items], edges.relation[of_items]
        names = [*self.relation_ids.cast(pl.String).to_list(), "is"][:half]
        to_item = pl.Series(tail < self.num_items)
        entity = edges.entity[tail]
        return {
            "knowledge.parquet": pl.DataFrame(
                {
                    "item_id": item_ids.gather(head),
                    "relation": pl.Series([*names, *(f"{name} (of)" for name in names)]).gather(relation),
                    "entity": self.entity_ids.gather(np.maximum(entity, 0)).cast(pl.String),
                    "other_item": item_ids.gather(np.where(to_item, tail, 0)),
                    "weight": weight.cpu().numpy()[of_items],
                    "kept": self.kept.value.cpu().numpy()[of_items],
                }
            ).with_columns(entity=pl.when(~to_item).then("entity"), other_item=pl.when(to_item).then("other_item"))
        }
