"""SASRec: self-attentive sequential recommendation (Kang & McAuley, ICDM 2018), trained with a softmax.

The paper trains with binary cross entropy and one sampled negative. With the cross entropy over the whole catalogue the
same network is far stronger (Klenitskiy & Vasilev, RecSys 2023), so that is the default here.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from rediffuse.batching.sequences import SequenceBatch
from rediffuse.config import Range
from rediffuse.models.sampling import Sampling
from rediffuse.models.sequence import ESASREC, Encoded, SequenceConfig, SequenceModel
from rediffuse.nn import Dropout, Encoder


class SASRecConfig(SequenceConfig):
    """Options of SASRec. The defaults were chosen on validation data (docs/benchmarks.md)."""

    presets = SequenceConfig.presets | {"esasrec": ESASREC}
    search = SequenceConfig.search | {"blocks": Range(1, 3), "dropout": Range(0.1, 0.6)}

    form: Literal["causal", "prefix"] = Field(
        "causal", description="causal: a history trains all its positions at once; prefix: one target per row."
    )
    blocks: int = Field(2, ge=1)
    block: Literal["standard", "ligr"] = Field(
        "standard", description="ligr: gated residuals and SwiGLU, as in eSASRec (arXiv 2508.06450)."
    )
    heads: int = Field(2, ge=1)
    dropout: float = Field(0.3, ge=0, lt=1)
    positions: bool = Field(True, description="Add a learned position embedding.")


class SASRec(SequenceModel):
    """A causal transformer reads the latest items in order, and scores the next.

    Item embeddings plus positions -> causal transformer -> inner product with all items.
    """

    name = "sasrec"
    Config = SASRecConfig
    config: SASRecConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: SASRecConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        size = config.embedding_size
        self.every_position = config.form == "causal"
        self.position_embedding = nn.Embedding(config.max_length, size) if config.positions else None
        self.encoder = Encoder(
            size, config.blocks, config.heads, config.dropout, causal=self.every_position, gated=config.block == "ligr"
        )
        self.drop = Dropout(config.dropout)
        self.item_embedding.initialise(std=0.02)
        if self.position_embedding is not None:
            nn.init.normal_(self.position_embedding.weight, std=0.02)

    def tokens(self, items: Tensor) -> Tensor:
        """Input of the encoder (B, L, d), from items (B, L)."""
        return self.add_positions(self.item_embedding(items))

    def add_positions(self, x: Tensor) -> Tensor:
        """Item vectors (B, L, d) plus position embeddings."""
        # Scaled as in the paper's code; otherwise the positions would outweigh the items.
        x = x * self.config.embedding_size**0.5
        if self.position_embedding is not None:
            x = x + self.position_embedding(torch.arange(x.shape[1], device=x.device))
        return self.drop(x)

    def read_vectors(self, x: Tensor) -> Tensor:
        return self.encoder.last(self.add_positions(x), torch.full((len(x),), x.shape[1], device=x.device))

    def encode(self, batch: SequenceBatch) -> Encoded:
        x = self.tokens(batch.items)
        if self.config.form == "prefix":
            return Encoded(self.encoder.last(x, batch.lengths))
        return Encoded(self.encoder(x, batch.lengths)[batch.rows, batch.positions])

    def represent(self, items: Tensor, lengths: Tensor, sampling: Sampling) -> Tensor:
        return self.encoder.last(self.tokens(items), lengths)
