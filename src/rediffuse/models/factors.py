"""What models share that learn a vector for each person and each item from pairs."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from rediffuse.batching.pairs import PairBatch, PairBatches
from rediffuse.config import ModelConfig, Range
from rediffuse.data.histories import Histories
from rediffuse.losses import bpr
from rediffuse.models.base import Model, TrainingData
from rediffuse.models.sampling import Sampling


class FactorConfig(ModelConfig):
    """Options of a model that ranks by the inner product of a person's and an item's vector."""

    search: ClassVar[dict[str, Any]] = {
        "embedding_size": (64, 128, 256),
        "learning_rate": Range(5e-4, 2e-2, log=True),
        "reg": Range(1e-6, 1e-1, log=True),
        "batch_size": (1024, 2048, 4096),
    }

    embedding_size: int = Field(64, ge=1)
    learning_rate: float = Field(5e-3, gt=0)
    batch_size: int = Field(2048, ge=1, description="Events per optimiser step, each with its negatives.")
    negatives: int = Field(1, ge=1, description="Items drawn against each event.")
    reg: float = Field(1e-2, ge=0, description="L2 penalty on the embeddings of a batch.")
    validate_every: int = Field(5, ge=1, description="Epochs between validations.")


class FactorModel(Model):
    """People and items as vectors, trained with BPR. Subclasses implement `vectors` and `fold_in`.

    People who were not in training, and those who were without an event, are answered for from their history by
    `fold_in`.
    """

    Config = FactorConfig
    config: FactorConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    trained: Tensor

    def __init__(self, config: FactorConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        self.user_embedding = nn.Embedding(num_users, config.embedding_size)
        self.item_embedding = nn.Embedding(num_items, config.embedding_size)
        for table in (self.user_embedding, self.item_embedding):
            nn.init.normal_(table.weight, std=0.1)
        self.register_buffer("trained", torch.zeros(num_users, dtype=torch.bool))

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

    def vectors(self) -> tuple[Tensor, Tensor]:
        """(num_users, d) and (num_items, d): those whose inner products are scores, differentiable."""
        raise NotImplementedError

    def answering_vectors(self) -> tuple[Tensor, Tensor]:
        """The same for answers, where they need not be computed anew."""
        return self.vectors()

    def fold_in(self, histories: Histories) -> Tensor:
        """(B, d): vectors of people who are known by their history alone."""
        raise NotImplementedError

    def batch_vectors(self, batch: PairBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors of the batch's people (n, d), of what they touched (n, d), and of what they did not (n, k, d)."""
        users, items = self.vectors()
        # Not by indexing, whose gradient is added up in no fixed order.
        return F.embedding(batch.users, users), F.embedding(batch.positives, items), F.embedding(batch.negatives, items)

    def pair_loss(self, positive: Tensor, negative: Tensor) -> Tensor:
        """The scalar loss of scores (n,) and (n, k)."""
        return bpr(positive, negative)

    def loss(self, batch: PairBatch) -> Tensor:
        # Sums over the edges of graphs know single precision only, and nothing else here takes time.
        with torch.autocast(batch.users.device.type, enabled=False):
            mine, touched, others = self.batch_vectors(batch)
            positive, negative = (mine * touched).sum(-1), (mine[:, None] * others).sum(-1)
            return (self.pair_loss(positive, negative) + self.config.reg * self.penalty(batch)) * batch.rank_weight

    def item_table(self) -> Tensor:
        """The free embeddings of items, from row 0 on."""
        return self.item_embedding.weight

    def penalty(self, batch: PairBatch) -> Tensor:
        """Half the squared length of the batch's embeddings, per event; of its negatives, the mean over them."""
        items = self.item_table()
        rows = (self.user_embedding(batch.users), F.embedding(batch.positives, items))
        against = F.embedding(batch.negatives, items).square().sum() / batch.negatives.shape[1]
        return (sum(row.square().sum() for row in rows) + against) / (2 * len(batch.users))

    def has_user_state(self, users: NDArray[np.int64]) -> NDArray[np.bool_]:
        found = users >= 0
        found[found] = self.trained.cpu().numpy()[users[found]]
        return found

    def index_vectors(self) -> Tensor:
        return self.answering_vectors()[1]

    def query_vectors(self, histories: Histories, users: NDArray[np.int64], sampling: Sampling) -> Tensor:
        known, items = self.answering_vectors()
        who = torch.from_numpy(users).to(items.device)
        remembered = torch.from_numpy(self.has_user_state(users)).to(items.device)
        mine = torch.empty(len(who), items.shape[1], device=items.device)
        mine[remembered] = known[who[remembered]]
        new = torch.nonzero(~remembered).squeeze(1)
        if len(new):
            mine[new] = self.fold_in(histories.take(new.cpu().numpy()))
        return mine

    def score_known(self, histories: Histories, users: NDArray[np.int64], sampling: Sampling) -> Tensor:
        return self.query_vectors(histories, users, sampling) @ self.index_vectors().T
