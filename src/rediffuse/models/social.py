"""What DiffNet and DiffNet++ share: the graphs, feature vectors, losses, and users known only by their friends."""

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
from rediffuse.config import ModelConfig
from rediffuse.data.dataset import SocialGraph
from rediffuse.data.features import feature_vectors
from rediffuse.errors import DataError
from rediffuse.graphs import Graph, row_normalised, social_adjacency
from rediffuse.losses import bpr, logistic, squared_error
from rediffuse.models.base import TrainingData
from rediffuse.models.factors import FactorConfig, FactorModel
from rediffuse.nn import FeatureProjection, SizedByData, standardised

Side = Literal["user", "item"]
SIDES: tuple[Side, Side] = ("user", "item")
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
    batch_size: int = Field(4096, ge=1, description="Interactions per optimiser step, each with its negatives.")
    hops: int = Field(2, ge=0, description="Steps along the graphs; 0: friends have no effect.")
    directed: bool = Field(
        False, description="A user receives from the users they link to, and not from those who link to them."
    )
    loss: Literal["bpr", "bce", "squared"] = Field("bpr", description="squared: of probabilities, as released.")
    features: bool = Field(
        True,
        description="Use the declared features of items and users; without any, the feature vectors of their tables.",
    )
    fusion: Literal["add", "learned"] = Field(
        "learned", description="How an embedding and a feature vector are combined."
    )
    shared_projection: bool = Field(
        False, description="One layer for the features of users and of items, as released; their widths must agree."
    )
    feature_scale: float = Field(0.2, gt=0, description="Standard deviation of the projected features.")
    init: float = Field(0.1, gt=0, description="Standard deviation of new embeddings.")


class SocialModel(FactorModel):
    """A model of a social graph. Subclasses implement `vectors` and `fold_in`.

    A run stores the vectors that `prepare` derives, and no graph. A link joins both ends unless ``directed``; see
    `rediffuse.graphs.social_adjacency`. Besides users with interactions, `trained` includes users whose vectors are
    made of embeddings that such users trained.
    """

    reads_tables = True
    reads_content = True

    Config = SocialConfig
    config: SocialConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    cold_user_mean: Tensor
    friends: Graph  # users x users, made by `fit`
    interest: Graph  # users x items, made by `fit`

    def __init__(self, config: SocialConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        for table in (self.user_embedding, self.item_embedding):
            nn.init.normal_(table.weight, std=config.init)
        size = config.embedding_size
        layers = SIDES[:1] if config.shared_projection else SIDES
        self.projections = nn.ModuleDict({side: FeatureProjection(size, config.feature_scale) for side in layers})
        self.fusions = nn.ModuleDict({side: nn.Linear(2 * size, size, bias=False) for side in SIDES})
        for layer in self.fusions.values():  # initially the sum
            nn.init.eye_(layer.weight[:, :size])  # pyright: ignore
            nn.init.eye_(layer.weight[:, size:])  # pyright: ignore
        self.feature_vectors: dict[str, Tensor] = {}
        self.user_vectors, self.item_vectors = (SizedByData(rows=n, trained=False) for n in (num_users, num_items))
        # Means over trained users, for a user without a vector: of h^0, of embeddings, of projected features.
        self.register_buffer("cold_user_mean", torch.zeros(3, size))

    @classmethod
    def reads_content_with(cls, config: ModelConfig) -> bool:
        return isinstance(config, SocialConfig) and config.features

    def check(self, data: TrainingData) -> None:
        if self.config.hops and (data.social is None or not (data.social.source != data.social.target).any()):
            raise DataError(
                f"{self.name} learns from links between users, and the data have none.",
                "Give them with --social (Python: social=...), or set hops=0.",
            )
        if self.config.features:
            widths = [vectors.shape[1] for vectors in self._features(data) if vectors is not None]
            if self.config.shared_projection and len(set(widths)) > 1:
                raise DataError(
                    f"shared_projection is one layer for users and items, whose features have {widths[0]} and "
                    f"{widths[1]} values.",
                    "Give both tables vectors of one length, or set shared_projection=false.",
                )

    def fit(self, data: TrainingData) -> None:
        super().fit(data)
        device = self.popularity.device
        interactions = row_normalised(binary_matrix(data.train, self.num_items))
        links = data.social or SocialGraph(np.empty(0, np.int32), np.empty(0, np.int32))
        friends = row_normalised(
            social_adjacency(links.source, links.target, self.num_users, directed=self.config.directed)
        )
        self.interest, self.friends = Graph(interactions, device), Graph(friends, device)
        active = np.diff(interactions.indptr) > 0
        # An embedding is trained if it is in the vector of an active user. A user counts as trained if at least half
        # of their vector comes from trained embeddings.
        embedded = self._share_from(sparse.csr_array(friends.T.tocsr()), active) > 0
        self.trained.copy_(torch.from_numpy(active | (self._share_from(friends, embedded) > 0.499)))
        for side, vectors in zip(SIDES, self._features(data), strict=True) if self.config.features else ():
            if vectors is not None:
                features = torch.from_numpy(vectors).to(device)
                self.feature_vectors[side] = standardised(features, self.config.feature_scale)
                if not (self.config.shared_projection and len(self.feature_vectors) > 1):
                    self.projection(side).set_width(vectors.shape[1])

    @staticmethod
    def _features(data: TrainingData) -> list[NDArray[np.float32] | None]:
        """(rows, width) the features of users and of items; None without any."""
        sides = ((data.user_content, data.user_table), (data.content, data.item_table))
        return [feature_vectors(table) if content is None else content.matrix() for content, table in sides]

    def summed_hops(self) -> Sequence[int]:
        """The k whose h^k are summed into a user's vector."""
        return range(self.config.hops + 1)

    def _share_from(self, adjacency: sparse.csr_array, users: NDArray[np.bool_]) -> NDArray[np.float32]:
        """(users,) the share of each user's vector that comes from the h^0 of ``users`` (users,)."""
        steps = self._steps_from(adjacency, users)
        return np.mean([steps[step] for step in self.summed_hops()], axis=0)

    def _steps_from(self, adjacency: sparse.csr_array, users: NDArray[np.bool_]) -> list[NDArray[np.float32]]:
        """For each h^k, (users,) the share of it that comes from the h^0 of ``users`` (users,)."""
        steps = [users.astype(np.float32)]
        for _ in range(self.config.hops):
            steps.append(adjacency @ steps[-1])
        return steps

    def projection(self, side: Side) -> FeatureProjection:
        """The layer for the features of users or items."""
        return self.projections[SIDES[0] if self.config.shared_projection else side]  # pyright: ignore

    def embedding_and_features(self, side: Side) -> tuple[Tensor, Tensor | None]:
        """(n, d) the embeddings of users or items, and (n, d) their projected features; None without features."""
        embedding = (self.user_embedding if side == "user" else self.item_embedding).weight
        features = self.feature_vectors.get(side)
        return embedding, None if features is None else self.projection(side)(features)

    def fused(self, side: Side) -> Tensor:
        """(n, d) h^0: the embeddings, combined with the projected features if there are any."""
        embedding, projected = self.embedding_and_features(side)
        if projected is None:
            return embedding
        if self.config.fusion == "add":
            return embedding + projected
        return self.fusions[side](torch.cat((embedding, projected), dim=1))

    def pair_loss(self, positive: Tensor, negative: Tensor) -> Tensor:
        return LOSSES[self.config.loss](positive, negative)

    @torch.no_grad()
    def prepare(self) -> None:
        self.store_vectors(*self.vectors())

    def store_vectors(self, users: Tensor, items: Tensor) -> None:
        """Store the results of `vectors`, and the means that stand for a user without a vector."""
        self.user_vectors.set(users)
        self.item_vectors.set(items)
        embedding, projected = self.embedding_and_features("user")
        per_user = (self.fused("user"), embedding, torch.zeros_like(embedding) if projected is None else projected)
        self.cold_user_mean.copy_(torch.stack([x[self.trained].mean(0) for x in per_user]))

    def answering_vectors(self) -> tuple[Tensor, Tensor]:
        return self.user_vectors.value, self.item_vectors.value
