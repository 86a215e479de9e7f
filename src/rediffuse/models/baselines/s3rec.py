"""S3-Rec: a SASRec with self-supervised pretraining (Zhou et al., CIKM 2020, arXiv 2008.07873).

In the first phase the transformer reads both ways and learns four tasks at once (section 4.2): predict masked items
(MIP) and their attributes (MAP), predict the attributes of items that are not masked (AAP), and distinguish a masked
segment from another user's (SP). In the second phase it is a SASRec that starts from these weights. Without attributes,
only MIP and SP are trained. MIP is a softmax over the catalogue, as in the second phase; the paper has one sampled
negative.
"""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from rediffuse.batching.sequences import SequenceBatch
from rediffuse.config import ModelConfig
from rediffuse.data.features import item_features
from rediffuse.losses import softmax_cross_entropy
from rediffuse.models.base import TrainingData
from rediffuse.models.baselines.sasrec import SASRec, SASRecConfig


class S3RecConfig(SASRecConfig):
    """Options of S3-Rec. The weights of the tasks are the paper's."""

    presets = ModelConfig.presets
    search: ClassVar = SASRecConfig.search

    pretrain_epochs: int = Field(20, ge=1, description="Epochs of the first phase; it keeps its last weights.")
    mask_share: float = Field(0.2, gt=0, lt=1, description="Probability that an item is masked in the first phase.")
    mip_weight: float = Field(0.2, ge=0, description="Masked item prediction.")
    map_weight: float = Field(1.0, ge=0, description="Masked attribute prediction.")
    aap_weight: float = Field(0.2, ge=0, description="Associated attribute prediction.")
    sp_weight: float = Field(0.5, ge=0, description="Segment prediction.")
    attributes: int = Field(256, ge=1, description="Vectors of attribute values; further values share them.")

    @model_validator(mode="after")
    def _item_optimizer_fits(self) -> Self:
        if self.item_optimizer != "adamw":
            raise ValueError(
                f"item_optimizer={self.item_optimizer} is not for s3rec, whose first phase reads the whole item table"
            )
        return self


class S3Rec(SASRec):
    """SASRec after a self-supervised phase, which predicts masked items, segments and the attributes of items."""

    name = "s3rec"
    reads_tables = True
    Config = S3RecConfig
    phases = ("pretrain", "finetune")
    config: S3RecConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    item_attributes: Tensor

    def __init__(self, config: S3RecConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        size = config.embedding_size
        self.mask_embedding = nn.Parameter(torch.randn(size) * 0.02)
        self.attribute_embedding = nn.Embedding(config.attributes, size)
        nn.init.normal_(self.attribute_embedding.weight, std=0.02)
        self.to_item, self.to_masked, self.to_seen, self.to_segment = (nn.Linear(size, size) for _ in range(4))
        self.register_buffer("item_attributes", torch.zeros(0, 0), persistent=False)
        self.phase = "finetune"

    # --- phases --------------------------------------------------------------------------------------------

    def fit(self, data: TrainingData) -> None:
        super().fit(data)
        features = item_features(data.item_table)
        if features is None:
            return
        table = np.zeros((self.num_items + 1, self.config.attributes), dtype=np.float32)
        items, values = features.nonzero()
        table[items, values % self.config.attributes] = 1
        self.item_attributes = torch.from_numpy(table).to(self.popularity.device)

    def begin_phase(self, phase: str, data: TrainingData) -> None:
        self.phase = phase
        self.encoder.causal = phase != "pretrain" and self.every_position

    def training_options(self, phase: str) -> ModelConfig:
        if phase != "pretrain":
            return self.config
        return self.config.model_copy(update={"epochs": self.config.pretrain_epochs})

    def chosen_by_ranking(self, phase: str) -> bool:
        return phase != "pretrain"

    def loss(self, batch: SequenceBatch) -> Tensor:
        return self.self_supervision(batch) * batch.rank_weight if self.phase == "pretrain" else super().loss(batch)

    # --- the four tasks --------------------------------------------------------------------------------------

    def read_masked(self, items: Tensor, masked: Tensor, lengths: Tensor) -> Tensor:
        """States (B, L, d) of histories (B, L), with the items at ``masked`` (B, L) hidden."""
        x = torch.where(masked[..., None], self.mask_embedding, self.item_embedding(items))
        return self.encoder(self.add_positions(x), lengths)

    def self_supervision(self, batch: SequenceBatch) -> Tensor:
        """The weighted sum of the tasks' losses."""
        config = self.config
        items, lengths, learnable = self.whole(batch)
        real = (torch.arange(items.shape[1], device=items.device) < lengths[:, None]) & learnable
        masked = (torch.rand(items.shape, device=items.device) < config.mask_share) & real
        rows = torch.arange(len(items), device=items.device)
        masked[rows, lengths - 1] |= ~masked.any(1)
        states = self.read_masked(items, masked, lengths)
        hidden, targets = self.to_item(states[masked]), items[masked]
        loss, _ = softmax_cross_entropy(self.metric_space(hidden.float()), self.metric_space(self.catalogue()), targets)
        loss = config.mip_weight * loss
        if len(self.item_attributes):
            loss = loss + config.map_weight * self.attribute_loss(self.to_masked(states[masked]), targets)
            seen = real & ~masked
            if bool(seen.any()):
                loss = loss + config.aap_weight * self.attribute_loss(self.to_seen(states[seen]), items[seen])
        if config.sp_weight and len(items) > 1:
            loss = loss + config.sp_weight * self.segment_loss(items, lengths)
        return loss

    def whole(self, batch: SequenceBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Windows (B, L) that end with their last target, their lengths (B,), and which items may be masked (B, L).

        The longest windows lose their first item for it.
        """
        items = F.pad(batch.items, (0, 1), value=self.pad)
        items[batch.rows, batch.positions + 1] = batch.targets
        learnable = batch.learnable(items.shape[1])
        if items.shape[1] <= self.config.max_length:
            return items, batch.lengths + 1, learnable
        return items[:, 1:], batch.lengths, learnable[:, 1:]

    def attribute_loss(self, states: Tensor, items: Tensor) -> Tensor:
        """Binary cross entropy of all attributes of items (n,), from states (n, d); mean over items with attributes."""
        wanted = self.item_attributes[items]
        each = F.binary_cross_entropy_with_logits(
            (states @ self.attribute_embedding.weight.T).float(), wanted, reduction="none"
        ).mean(1)
        known = wanted.any(1).float()
        return (each * known).sum() / known.sum().clamp(min=1)

    def segment_loss(self, items: Tensor, lengths: Tensor) -> Tensor:
        """-log sigmoid of how much better a context fits its own segment than another user's."""
        place = torch.arange(items.shape[1], device=items.device)
        longest = (lengths // 2).clamp(min=1)
        size = 1 + (torch.rand(len(items), device=items.device) * longest).long().clamp(max=longest - 1)
        start = (torch.rand(len(items), device=items.device) * (lengths - size + 1)).long()
        inside = (place >= start[:, None]) & (place < (start + size)[:, None])
        rows, last = torch.arange(len(items), device=items.device), lengths - 1
        context = self.to_segment(self.read_masked(items, inside, lengths)[rows, last])
        segment = self.read_masked(items, ~inside, lengths)[rows, last]
        own = (context * segment).sum(1)
        other = (context * segment.roll(1, 0)).sum(1)
        return -F.logsigmoid((own - other).float()).mean()
