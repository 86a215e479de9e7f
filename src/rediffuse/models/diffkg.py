"""DiffKG: a knowledge graph, pruned by diffusion, teaches a collaborative model (Jiang et al., WSDM 2024, 2312.16890).

Every epoch has two phases. First a denoiser learns to recover rows of the knowledge graph's adjacency from noise, and
to keep what agrees with the interactions (`rediffuse.models.knowledge`). It then scores the edges; each entity keeps
its best, and the rest is pruned. Then the recommender learns from both graphs, the pruned and the original one:

    x = relation-aware attention over the graph, on entities
    Z = sum over layers of propagation between people and items, from their vectors and x
    loss = BPR on the main view + contrast (InfoNCE) between the two views + L2

The released code never trains on the pruned graph (``fidelity=released``) and holds dense
matrices; see docs/models/diffkg.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional as F

from rediffuse.batching.matrix import bags, binary_matrix
from rediffuse.batching.pairs import PairBatch
from rediffuse.batching.rows import RowBatch, RowBatches, row_batch
from rediffuse.batching.sequences import rank_slice
from rediffuse.config import Range
from rediffuse.data.histories import Histories
from rediffuse.data.knowledge import KnowledgeEdges, knowledge_edges, leading_to, most_per_node
from rediffuse.diffusion import noise_schedule
from rediffuse.errors import DataError
from rediffuse.graphs import Graph, bipartite_adjacency, propagate, symmetric_normalised
from rediffuse.losses import bpr, softmax_cross_entropy
from rediffuse.models.base import Batches, TrainingData
from rediffuse.models.factors import FactorConfig, FactorModel
from rediffuse.models.knowledge import RelationAttention, denoising_loss, reverse_rows
from rediffuse.nn import RowDenoiser, SizedByData

# Entities whose rows are denoised, or scored against all others, at once.
BLOCK = 4096


class DiffKGConfig(FactorConfig):
    """Defaults are chosen on validation data; see docs/benchmarks.md."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "released": {
            "fidelity": "released",
            "learning_rate": 1e-3,
            "batch_size": 1024,
            "epochs": 25,
            "reg": 1e-5,
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
        },
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
    layers: int = Field(2, ge=1, description="Steps of propagation between people and items.")
    kg_hops: int = Field(1, ge=1, description="Steps of attention along the knowledge graph.")
    message_dropout: float = Field(0.1, ge=0, lt=1, description="On what an entity takes in.")
    residual: float = Field(0.5, ge=0, description="Share of the earlier vector that stays after a hop.")
    most_edges: int | None = Field(None, ge=1, description="Of the original view, per entity, drawn once; null: all.")
    contrast: float = Field(0.01, ge=0, description="Weight of the contrast between the views.")
    temperature: float = Field(0.2, gt=0, description="Of the contrast.")
    main_view: Literal["pruned", "original"] = Field("pruned", description="The view that answers.")
    pruning: Literal["diffusion", "random", "none"] = Field(
        "diffusion", description="What chooses the edges that stay."
    )
    rebuild_k: int = Field(1, ge=1, description="Best edges that each entity keeps, in either direction.")
    keep_rate: float = Field(1.0, gt=0, le=1, description="Chance of an edge that was kept to stay, each epoch anew.")
    fidelity: Literal["corrected", "released"] = Field(
        "corrected",
        description="released: training never uses the pruned graph, and pruning ranks all pairs of entities instead "
        "of edges, as in the authors' program.",
    )
    collaborative: float = Field(0.5, ge=0, le=1, description="Share of the convolution in the denoiser's loss.")
    hidden_size: int = Field(128, ge=1, description="Of the denoiser.")
    denoiser_batch: int = Field(4096, ge=1, description="Entities per step of the denoiser.")
    denoiser_dropout: float = Field(0.0, ge=0, lt=1, description="On the row that goes in.")
    normalize: bool = Field(False, description="Scale noised rows to length one, as released: then rows are dense.")
    diffusion_steps: int = Field(5, ge=1, description="T, the steps of the noise schedule.")
    noise_scale: float = Field(0.1, gt=0)
    noise_min: float = Field(1e-4, gt=0)
    noise_max: float = Field(0.02, gt=0)


@dataclass(frozen=True)
class EntityBatch:
    """Rows of the adjacency, and which entities (B,) they are of."""

    rows: RowBatch
    entities: Tensor

    def to(self, device: torch.device) -> EntityBatch:
        return EntityBatch(self.rows.to(device), self.entities.to(device))


class EntityBatches:
    """Every entity with an edge, once an epoch. No people are in these batches."""

    def __init__(self, edges: KnowledgeEdges, *, batch_size: int, rng: np.random.Generator) -> None:
        self.rows = RowBatches(edges.matrix(), batch_size=batch_size, rng=rng)

    def __len__(self) -> int:
        return len(self.rows)

    def get(self, index: int, rank: int = 0, ranks: int = 1) -> EntityBatch:
        entities, _ = rank_slice(self.rows.users(index), rank, ranks)
        return EntityBatch(self.rows.get(index, rank, ranks), torch.from_numpy(entities))

    def users(self, index: int) -> NDArray[np.int64]:
        return np.empty(0, dtype=np.int64)


class ChainedBatches:
    """The batches of one, then those of the next."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.places = [(part, index) for part in parts for index in range(len(part))]

    def __len__(self) -> int:
        return len(self.places)

    def get(self, index: int, rank: int = 0, ranks: int = 1) -> Any:
        part, place = self.places[index]
        return part.get(place, rank, ranks)

    def users(self, index: int) -> NDArray[np.int64]:
        part, place = self.places[index]
        return part.users(place)


class DiffKG(FactorModel):
    """People and entities as vectors; the first entities are the items."""

    name = "diffkg"
    Config = DiffKGConfig
    config: DiffKGConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    user_vectors: Tensor
    item_vectors: Tensor

    def __init__(self, config: DiffKGConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        size = config.embedding_size
        nn.init.xavier_uniform_(self.user_embedding.weight)
        del self.item_embedding  # items are entities, of which the data tell how many there are
        self.entity_embedding, self.relation_embedding = SizedByData(), SizedByData()
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
        self.kept = SizedByData(trained=False, dtype=torch.bool)
        self.register_buffer("user_vectors", torch.zeros(num_users, size))
        self.register_buffer("item_vectors", torch.zeros(num_items, size))
        # What an item sends to a new neighbour in each step of propagation, side by side.
        self.item_spread = SizedByData(trained=False)

    # --- what the data say -----------------------------------------------------------------------------------

    def check(self, data: TrainingData) -> None:
        if data.kg is None or not len(data.kg):
            raise DataError(
                f"{self.name} learns from a knowledge graph, and the data have none.",
                "Give it with --kg and --item-entity (Python: kg=..., item_entity=...), or take lightgcn.",
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
        self.begin_sized(self.edges.num_nodes, self.edges.num_relations)
        self.kept.set(torch.ones(len(self.edges), dtype=torch.bool))
        self.relation = torch.from_numpy(self.edges.relation).to(device)
        self.reverse = self.edges.reverse()
        self.full = Graph(self.edges.matrix(), device)
        drawn = np.random.default_rng([data.seed, len(self.edges)]).random(len(self.edges))
        most = self.config.most_edges
        capped = np.ones(len(drawn), dtype=bool) if most is None else most_per_node(self.edges, most, drawn)
        self.original = self.view(capped)
        self.pruned = self.original
        touched = binary_matrix(data.train, self.num_items)
        both = bipartite_adjacency(touched, self_loops=True)
        self.adjacency = Graph(symmetric_normalised(both), device)
        self.item_users = Graph(sparse.csr_array(touched.T.tocsr()), device)
        self.degrees = torch.from_numpy(np.ravel(touched.sum(axis=0)) + 1).to(device)

    def begin_sized(self, nodes: int, relations: int) -> None:
        """Make what has a row per entity, per relation, or per column of the adjacency."""
        size, device = self.config.embedding_size, self.popularity.device
        self.entity_embedding.set(nn.init.xavier_uniform_(torch.empty(nodes, size)))
        self.relation_embedding.set(nn.init.xavier_uniform_(torch.empty(relations, size)))
        config = self.config
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
        if self.denoiser is None and all(map(len, sizes)):  # a run is being read, without its data
            self.begin_sized(*map(len, sizes))
        super()._load_from_state_dict(state_dict, prefix, *others)

    def view(self, kept: NDArray[np.bool_]) -> tuple[Graph, Tensor]:
        """A graph of some edges, and the relation of each."""
        edges = self.edges.where(kept)
        device = self.popularity.device
        return Graph(edges.matrix(), device), torch.from_numpy(edges.relation).to(device)

    # --- both phases -----------------------------------------------------------------------------------------

    def batches(self, data: TrainingData, rng: np.random.Generator) -> Batches:  # pyright: ignore
        self.rebuild_seed = int(rng.integers(2**62))
        self.rebuilt, self.liked = False, None
        parts: list[Any] = [super().batches(data, rng)]
        if self.config.pruning == "diffusion":
            parts.insert(0, EntityBatches(self.edges, batch_size=self.config.denoiser_batch, rng=rng))
        return ChainedBatches(parts)

    def loss(self, batch: EntityBatch | PairBatch) -> Tensor:
        if isinstance(batch, EntityBatch):
            with torch.autocast(batch.entities.device.type, enabled=False):
                return self.denoising(batch)
        if not self.rebuilt:
            with torch.autocast(batch.users.device.type, enabled=False):  # rounded scores would tie
                self.rebuild()
        return self.recommending(batch)

    # --- the denoiser ----------------------------------------------------------------------------------------

    def denoising(self, batch: EntityBatch) -> Tensor:
        assert self.denoiser is not None
        entities = self.entity_embedding.value.detach()
        if self.liked is None:  # it does not change before the recommender's turn
            self.liked = self.item_users @ self.user_embedding.weight.detach()
        own = F.embedding(batch.entities, entities)
        config = self.config
        loss = denoising_loss(
            self.denoiser, self.schedule, batch.rows, own, self.liked, config.collaborative, dense=config.normalize
        )
        return loss * batch.rows.rank_weight

    @torch.no_grad()
    def rebuild(self) -> None:
        """Prune the graph: a function of the denoiser's weights and the epoch alone."""
        rng, k, edges = np.random.default_rng(self.rebuild_seed), self.config.rebuild_k, self.edges
        if self.config.pruning == "none":
            kept = np.ones(len(edges), dtype=bool)
        elif self.config.pruning == "random":
            kept = most_per_node(edges, k, rng.random(len(edges)))
        elif self.config.fidelity == "corrected":
            kept = most_per_node(edges, k, self.edge_scores())
        else:
            kept = self.among_all(k)
        kept = kept | kept[self.reverse]
        if self.config.pruning != "none":
            kept &= rng.random(len(edges)) < self.config.keep_rate
        if not kept.any():
            kept[:] = True
        self.kept.set(torch.from_numpy(kept))
        self.pruned, self.rebuilt = self.view(kept), True

    @torch.no_grad()
    def denoised(self) -> Tensor:
        """(N, H) g: the denoised row of an entity is V g + c."""
        assert self.denoiser is not None
        training = self.denoiser.training
        self.denoiser.eval()
        matrix = self.edges.matrix()
        blocks = []
        for start in range(0, self.edges.num_nodes, BLOCK):
            rows = row_batch(matrix[start : start + BLOCK]).to(self.popularity.device)
            blocks.append(reverse_rows(self.denoiser, self.schedule, rows))
        self.denoiser.train(training)
        return torch.cat(blocks)

    @torch.no_grad()
    def edge_scores(self) -> NDArray[np.float64]:
        """(edges,) what the denoised row of the head has in the column of the tail."""
        assert self.denoiser is not None
        last = self.denoiser.last
        scores = self.full.block().inner(self.denoised(), last.weight) + last.bias[self.full.columns]
        return scores.cpu().numpy().astype(np.float64)

    @torch.no_grad()
    def among_all(self, k: int) -> NDArray[np.bool_]:
        """(edges,) which edges lead to one of the k best columns of the head's denoised row, of all N columns."""
        assert self.denoiser is not None
        states, count = self.denoised(), self.edges.num_nodes
        step = max(1, 4_000_000 // count)
        rows = (self.denoiser.last(states[start : start + step]) for start in range(0, count, step))
        best = [row.topk(min(k, count)).indices.cpu() for row in rows]
        return leading_to(self.edges, torch.cat(best).numpy())

    # --- the recommender -------------------------------------------------------------------------------------

    def propagated(self, view: tuple[Graph, Tensor]) -> list[Tensor]:
        """Layers (people + items, d) of propagation, from embeddings of people and what attention makes of items."""
        entities = self.encoder(self.entity_embedding.value, self.relation_embedding.value, *view)
        start = torch.cat((self.user_embedding.weight, entities[: self.num_items]))
        return propagate(self.adjacency, start, self.config.layers)

    def views(self) -> tuple[tuple[Graph, Tensor], tuple[Graph, Tensor]]:
        """The main view, and the one it is contrasted with."""
        if self.config.fidelity == "released" and self.training:
            return self.original, self.original
        both = (self.pruned, self.original)
        return both if self.config.main_view == "pruned" else (self.original, self.pruned)

    def recommending(self, batch: PairBatch) -> Tensor:
        kind = batch.users.device.type
        main, other = self.views()
        with torch.autocast(kind, enabled=False):
            nodes = torch.stack(self.propagated(main)).sum(0)
            users, items = nodes.split((self.num_users, self.num_items))
            mine = F.embedding(batch.users, users)
            positive = (mine * F.embedding(batch.positives, items)).sum(-1)
            negative = (mine[:, None] * F.embedding(batch.negatives, items)).sum(-1)
            loss = bpr(positive, negative) + self.config.reg * self.penalty(batch)
            if not self.config.contrast:
                return loss * batch.rank_weight
            beside = torch.stack(self.propagated(other)).sum(0)
        parts = zip(
            beside.split((self.num_users, self.num_items)), (users, items), (batch.users, batch.positives), strict=True
        )
        for theirs, ours, asked in parts:
            once = asked.unique()
            anchors = F.normalize(F.embedding(once, theirs), dim=1) / self.config.temperature
            contrast = softmax_cross_entropy(anchors, F.normalize(ours, dim=1), once)[0]
            loss = loss + self.config.contrast * contrast
        return loss * batch.rank_weight

    def item_table(self) -> Tensor:
        return self.entity_embedding.value

    # --- answering -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def prepare(self) -> None:
        self.pruned = self.view(self.kept.value.cpu().numpy())
        layers = self.propagated(self.views()[0])
        users, items = torch.stack(layers).sum(0).split((self.num_users, self.num_items))
        self.user_vectors.copy_(users)
        self.item_vectors.copy_(items)
        sent = [layer[self.num_users :] * self.degrees.rsqrt()[:, None] for layer in layers[:-1]]
        self.item_spread.set(torch.cat(sent, dim=1))

    def answering_vectors(self) -> tuple[Tensor, Tensor]:
        return self.user_vectors, self.item_vectors

    def fold_in(self, histories: Histories) -> Tensor:
        """What propagation gives a new node with these edges and one to itself, whose own embedding is zero."""
        items, offsets, degree = bags(histories, self.num_items, self.item_vectors.device)
        taken = F.embedding_bag(items, self.item_spread.value, offsets, mode="sum")
        shrink = (degree + 1).float()[:, None]
        state = total = torch.zeros(len(histories), self.config.embedding_size, device=taken.device)
        for step in taken.chunk(self.config.layers, dim=1):
            state = state / shrink + step * shrink.rsqrt()
            total = total + state
        return total

    # --- why -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def artifacts(self, user_ids: pl.Series, item_ids: pl.Series) -> dict[str, pl.DataFrame]:
        """knowledge.parquet: how the attention over the whole graph weighs the edges of items, by name.

        Columns: item_id, relation, entity or other_item (what the edge leads to), weight, kept (not pruned at the end).
        A relation that is read from tail to head ends in " (of)".
        """
        weight = self.encoder.attention(
            self.entity_embedding.value, self.relation_embedding.value, self.full, self.relation
        )
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
