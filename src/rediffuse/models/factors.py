"""The base of models that learn a vector for each user and each item from user-item pairs."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from rediffuse.batching.pairs import PairBatch, PairBatches
from rediffuse.config import NeuralConfig, Range
from rediffuse.data.histories import Histories
from rediffuse.losses import bpr
from rediffuse.models.base import TrainingData
from rediffuse.models.prior import NeuralModel
from rediffuse.models.sampling import Sampling
from rediffuse.nn.item_table import ItemTable


class FactorConfig(NeuralConfig):
    """Options of a model that ranks by the inner product of a user vector and an item vector."""

    search: ClassVar[dict[str, Any]] = {
        "embedding_size": (64, 128, 256),
        "learning_rate": Range(5e-4, 2e-2, log=True),
        "reg": Range(1e-6, 1e-1, log=True),
        "batch_size": (1024, 2048, 4096),
    }

    embedding_size: int = Field(64, ge=1)
    learning_rate: float = Field(5e-3, gt=0)
    batch_size: int = Field(2048, ge=1, description="Interactions per optimiser step, each with its negatives.")
    negatives: int = Field(1, ge=1, description="Negative items per interaction.")
    reg: float = Field(1e-2, ge=0, description="L2 penalty on the embeddings of a batch.")
    validate_every: int = Field(5, ge=1, description="Epochs between validations.")


class FactorModel(NeuralModel):
    """User and item vectors, trained with BPR. Subclasses implement `vectors` and `fold_in`.

    Users without a training interaction, and users who were not in training, get a vector from their history
    (`fold_in`).
    """

    Config = FactorConfig
    config: FactorConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    trained: Tensor  # (num_users,) bool, whether the user has a training interaction

    def __init__(self, config: FactorConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        self.user_embedding = nn.Embedding(num_users, config.embedding_size)
        self.item_embedding = ItemTable(num_items, config.embedding_size)
        for table in (self.user_embedding, self.item_embedding):
            nn.init.normal_(table.weight, std=0.1)
        self.register_buffer("trained", torch.zeros(num_users, dtype=torch.bool))

    # --- training ------------------------------------------------------------------------------------------

    def fit(self, data: TrainingData) -> None:
        super().fit(data)
        self.trained.copy_(torch.from_numpy(data.train.lengths > 0))

    def batches(self, data: TrainingData, rng: np.random.Generator) -> PairBatches:
        config = self.config
        return PairBatches(
            data.train,
            num_items=self.num_items,
            batch_size=config.batch_size,
            rng=rng,
            negatives=config.negatives,
        )

    def loss(self, batch: PairBatch) -> Tensor:
        # Sums over the edges of a graph need single precision, and nothing else here takes time.
        with torch.autocast(batch.users.device.type, enabled=False):
            users, positives, negatives = self.batch_vectors(batch)
            positive, negative = (users * positives).sum(-1), (users[:, None] * negatives).sum(-1)
            return (self.pair_loss(positive, negative) + self.config.reg * self.penalty(batch)) * batch.rank_weight

    def batch_vectors(self, batch: PairBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors of a batch's users (n, d), positive items (n, d) and negative items (n, k, d)."""
        users, items = self.vectors()
        # Not by indexing, whose gradient is summed in no fixed order.
        return F.embedding(batch.users, users), F.embedding(batch.positives, items), F.embedding(batch.negatives, items)

    def pair_loss(self, positive: Tensor, negative: Tensor) -> Tensor:
        """The scalar loss of scores (n,) of positives and (n, k) of negatives."""
        return bpr(positive, negative)

    def penalty(self, batch: PairBatch) -> Tensor:
        """Half the squared length of the batch's embeddings, per interaction; the negatives count by their mean."""
        items = self.item_table()
        rows = (self.user_embedding(batch.users), F.embedding(batch.positives, items))
        against = F.embedding(batch.negatives, items).square().sum() / batch.negatives.shape[1]
        return (sum(row.square().sum() for row in rows) + against) / (2 * len(batch.users))

    def item_table(self) -> Tensor:
        """Free item embeddings; the first num_items rows are the items."""
        return self.item_embedding.weight

    # --- vectors -------------------------------------------------------------------------------------------

    def vectors(self) -> tuple[Tensor, Tensor]:
        """(num_users, d) and (num_items, d), differentiable: their inner products are the scores."""
        raise NotImplementedError

    def answering_vectors(self) -> tuple[Tensor, Tensor]:
        """As `vectors`, for scoring: a model may return what `prepare` has stored."""
        return self.vectors()

    def fold_in(self, histories: Histories) -> Tensor:
        """(B, d) vectors of users from their histories alone."""
        raise NotImplementedError

    # --- scoring -------------------------------------------------------------------------------------------

    def has_user_state(self, users: NDArray[np.int64]) -> NDArray[np.bool_]:
        found = users >= 0
        found[found] = self.trained.cpu().numpy()[users[found]]
        return found

    def index_vectors(self) -> Tensor:
        return self.answering_vectors()[1]

    def query_vectors(self, histories: Histories, users: NDArray[np.int64], sampling: Sampling) -> Tensor:
        known, items = self.answering_vectors()
        numbers = torch.from_numpy(users).to(items.device)
        learned = torch.from_numpy(self.has_user_state(users)).to(items.device)
        found = torch.empty(len(numbers), items.shape[1], device=items.device)
        found[learned] = known[numbers[learned]]
        new = torch.nonzero(~learned).squeeze(1)
        if len(new):
            found[new] = self.fold_in(histories.take(new.cpu().numpy()))
        return found

    def score_known(self, histories: Histories, users: NDArray[np.int64], sampling: Sampling) -> Tensor:
        return self.query_vectors(histories, users, sampling) @ self.index_vectors().T
