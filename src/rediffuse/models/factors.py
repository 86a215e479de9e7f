"""What models share that learn a vector for each person and each item from pairs."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from rediffuse.config import ModelConfig, Range
from rediffuse.data.histories import Histories
from rediffuse.data.pairs import PairBatch, PairBatches
from rediffuse.losses import bpr
from rediffuse.models.base import Model, TrainingData


class FactorConfig(ModelConfig):
    """Options of a model that ranks by the inner product of a person's and an item's vector."""

    search: ClassVar = {
        "embedding_size": (64, 128, 256),
        "learning_rate": Range(5e-4, 2e-2, log=True),
        "reg": Range(1e-6, 1e-1, log=True),
        "batch_size": (1024, 2048, 4096),
    }

    embedding_size: int = Field(64, ge=1)
    learning_rate: float = Field(5e-3, gt=0)
    batch_size: int = Field(2048, ge=1, description="Events per optimiser step, each with one negative.")
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
        return PairBatches(data.train, num_items=self.num_items, batch_size=self.config.batch_size, rng=rng)

    def vectors(self) -> tuple[Tensor, Tensor]:
        """(num_users, d) and (num_items, d): those whose inner products are scores, differentiable."""
        raise NotImplementedError

    def answering_vectors(self) -> tuple[Tensor, Tensor]:
        """The same for answers, where they need not be computed anew."""
        return self.vectors()

    def fold_in(self, histories: Histories) -> Tensor:
        """(B, d): vectors of people who are known by their history alone."""
        raise NotImplementedError

    def loss(self, batch: PairBatch) -> Tensor:
        users, items = self.vectors()
        mine = users[batch.users]
        positive = (mine * items[batch.positives]).sum(-1)
        negative = (mine * items[batch.negatives]).sum(-1)
        return (bpr(positive, negative) + self.config.reg * self.penalty(batch)) * batch.share

    def penalty(self, batch: PairBatch) -> Tensor:
        """Half the squared length of the batch's embeddings, per event."""
        rows = (
            self.user_embedding(batch.users),
            self.item_embedding(batch.positives),
            self.item_embedding(batch.negatives),
        )
        return torch.stack([row.square().sum() for row in rows]).sum() / (2 * len(batch.users))

    def score_known(self, histories: Histories, users: NDArray[np.int64], seed: int) -> Tensor:
        known, items = self.answering_vectors()
        who = torch.from_numpy(users).to(items.device)
        remembered = who >= 0
        remembered[remembered.clone()] = self.trained[who[remembered]]
        mine = torch.empty(len(who), items.shape[1], device=items.device)
        mine[remembered] = known[who[remembered]]
        new = torch.nonzero(~remembered).squeeze(1)
        if len(new):
            mine[new] = self.fold_in(histories.take(new.cpu().numpy()))
        return mine @ items.T
