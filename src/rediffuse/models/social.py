"""What DiffNet and DiffNet++ share: the graphs, feature vectors, losses, and people known by their friends alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy import sparse
from torch import Tensor, nn

from rediffuse.batching.matrix import binary_matrix
from rediffuse.data.dataset import SocialGraph
from rediffuse.data.features import feature_vectors
from rediffuse.errors import DataError
from rediffuse.graphs import Graph, row_normalised, social_adjacency
from rediffuse.losses import bpr, logistic, squared_error
from rediffuse.models.base import TrainingData
from rediffuse.models.factors import FactorConfig, FactorModel
from rediffuse.nn import FeatureProjection, SizedByData, standardised

LOSSES = {"bpr": bpr, "bce": logistic, "squared": squared_error}


class SocialConfig(FactorConfig):
    """Options of a model that learns from a social graph."""

    search: ClassVar[dict[str, Any]] = FactorConfig.search | {
        "reg": (0.0, 1e-4, 1e-3, 1e-2, 1e-1),
        "hops": (1, 2, 3),
        "negatives": (1, 4, 8),
        "loss": ("bpr", "bce", "squared"),
    }

    learning_rate: float = Field(1e-3, gt=0)
    reg: float = Field(0.03, ge=0, description="L2 penalty on the embeddings of a batch.")
    batch_size: int = Field(4096, ge=1, description="Events per optimiser step, each with its negatives.")
    hops: int = Field(2, ge=0, description="Steps along the graphs; 0: friends play no part.")
    directed: bool = Field(False, description="People take in whom they link to, and not who links to them.")
    loss: Literal["bpr", "bce", "squared"] = Field("bpr", description="squared: of probabilities, as released.")
    features: bool = Field(
        True, description="Use the feature vectors of the item and user tables, where there are any."
    )
    fusion: Literal["add", "learned"] = Field(
        "learned", description="How an embedding and a feature vector become one."
    )
    feature_scale: float = Field(0.2, gt=0, description="Standard deviation of what features become.")
    init: float = Field(0.1, gt=0, description="Standard deviation of fresh embeddings.")


class SocialModel(FactorModel):
    """Subclasses implement `vectors` and `fold_in`, and answer by what `prepare` keeps: no graph is saved.

    A link joins both ends unless ``directed``; see `rediffuse.graphs.social_adjacency`. `trained` covers, besides
    people with events, those whose vectors are made of what such people trained.
    """

    reads_tables = True

    Config = SocialConfig
    config: SocialConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    cold_user_mean: Tensor
    friends: Graph  # users x users, and
    interest: Graph  # users x items, both made by `fit`

    def __init__(self, config: SocialConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        for table in (self.user_embedding, self.item_embedding):
            nn.init.normal_(table.weight, std=config.init)
        size = config.embedding_size
        self.projections = nn.ModuleDict(
            {who: FeatureProjection(size, config.feature_scale) for who in ("user", "item")}
        )
        self.fusions = nn.ModuleDict({who: nn.Linear(2 * size, size, bias=False) for who in ("user", "item")})
        for layer in self.fusions.values():  # begins as a sum
            nn.init.eye_(layer.weight[:, :size])  # pyright: ignore
            nn.init.eye_(layer.weight[:, size:])  # pyright: ignore
        self.feature_vectors: dict[str, Tensor] = {}
        self.user_vectors, self.item_vectors = SizedByData(trained=False), SizedByData(trained=False)
        # Means over trained people, for someone who is none of them: fused, the embedding, what features become.
        self.register_buffer("cold_user_mean", torch.zeros(3, size))

    def check(self, data: TrainingData) -> None:
        if self.config.hops and (data.social is None or not (data.social.source != data.social.target).any()):
            raise DataError(
                f"{self.name} learns from links between people, and the data have none.",
                "Give them with --social (Python: social=...), or set hops=0.",
            )
        for table in (data.user_table, data.item_table):
            if self.config.features:
                feature_vectors(table)

    def fit(self, data: TrainingData) -> None:
        super().fit(data)
        device = self.popularity.device
        touched = row_normalised(binary_matrix(data.train, self.num_items))
        links = data.social or SocialGraph(np.empty(0, np.int32), np.empty(0, np.int32))
        linked = row_normalised(
            social_adjacency(links.source, links.target, self.num_users, directed=self.config.directed)
        )
        self.interest, self.friends = Graph(touched, device), Graph(linked, device)
        active = np.diff(touched.indptr) > 0
        # Whose embedding is in the vector of someone with events, and whose vector is made of such by half or more.
        embedded = self._spread(sparse.csr_array(linked.T.tocsr()), active) > 0
        self.trained.copy_(torch.from_numpy(active | (self._spread(linked, embedded) > 0.499)))
        tables = {"user": data.user_table, "item": data.item_table} if self.config.features else {}
        for who, table in tables.items():
            if (vectors := feature_vectors(table)) is not None:
                known = torch.from_numpy(vectors).to(device)
                self.feature_vectors[who] = standardised(known, self.config.feature_scale)
                self.projections[who].set_width(vectors.shape[1])  # pyright: ignore

    def steps_that_count(self) -> Sequence[int]:
        """The k whose h^k is part of a person's vector."""
        return range(self.config.hops + 1)

    def _spread(self, linked: sparse.csr_array, people: NDArray[np.bool_]) -> NDArray[np.float32]:
        """(users,) the share of ``people`` (users,) in what each person's vector is made of."""
        steps = [people.astype(np.float32)]
        for _ in range(self.config.hops):
            steps.append(linked @ steps[-1])
        return np.mean([steps[step] for step in self.steps_that_count()], axis=0)

    def starts(self, who: Literal["user", "item"]) -> tuple[Tensor, Tensor | None]:
        """(n, d) the free embeddings, and what the feature vectors become, if there are any."""
        free = (self.user_embedding if who == "user" else self.item_embedding).weight
        known = self.feature_vectors.get(who)
        return free, None if known is None else self.projections[who](known)

    def fused(self, who: Literal["user", "item"]) -> Tensor:
        """(n, d) h^0: the free embeddings, and features where there are any."""
        free, told = self.starts(who)
        if told is None:
            return free
        return free + told if self.config.fusion == "add" else self.fusions[who](torch.cat((free, told), dim=1))

    def pair_loss(self, positive: Tensor, negative: Tensor) -> Tensor:
        return LOSSES[self.config.loss](positive, negative)

    @torch.no_grad()
    def prepare(self) -> None:
        self.keep(*self.vectors())

    def keep(self, users: Tensor, items: Tensor) -> None:
        """Keep what answers need, of the vectors that `vectors` gives."""
        self.user_vectors.set(users)
        self.item_vectors.set(items)
        free, told = self.starts("user")
        means = (self.fused("user"), free, torch.zeros_like(free) if told is None else told)
        self.cold_user_mean.copy_(torch.stack([x[self.trained].mean(0) for x in means]))

    def answering_vectors(self) -> tuple[Tensor, Tensor]:
        return self.user_vectors.value, self.item_vectors.value
