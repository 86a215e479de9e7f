"""GRU4Rec: a recurrent network over the history (Hidasi et al., ICLR 2016), trained with a softmax.

Its authors later replaced the paper's pairwise losses over in-batch negatives (Hidasi & Karatzoglou, CIKM 2018). The
cross entropy over the whole catalogue is at least as strong where it is affordable, and is the default here.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from rediffuse.batching.sequences import SequenceBatch
from rediffuse.config import Range
from rediffuse.models.sampling import Sampling
from rediffuse.models.sequence import Encoded, SequenceConfig, SequenceModel
from rediffuse.nn import Dropout


class GRU4RecConfig(SequenceConfig):
    """Options of GRU4Rec. Input and output share the item embeddings (the 2018 paper's "constrained embeddings")."""

    search = SequenceConfig.search | {"dropout": Range(0.1, 0.6), "layers": (1, 2)}

    layers: int = Field(1, ge=1)
    dropout: float = Field(0.3, ge=0, lt=1)


class GRU4Rec(SequenceModel):
    """A recurrent network reads the latest items in order, and scores the next.

    Item embeddings -> GRU -> linear -> inner product with all items.
    """

    name = "gru4rec"
    Config = GRU4RecConfig
    config: GRU4RecConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: GRU4RecConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        size = config.embedding_size
        self.drop = Dropout(config.dropout)
        self.gru = nn.GRU(size, size, config.layers, batch_first=True)
        self.project = nn.Linear(size, size)
        self.item_embedding.initialise(std=0.02)

    def read(self, items: Tensor) -> Tensor:
        """States (B, L, d) of items (B, L), padded on the right: no real position sees the padding."""
        x = self.drop(self.item_embedding(items) * self.config.embedding_size**0.5)
        states, _ = self.gru(x)
        return self.project(self.drop(states))

    def encode(self, batch: SequenceBatch) -> Encoded:
        return Encoded(self.read(batch.items)[batch.rows, batch.positions])

    def represent(self, items: Tensor, lengths: Tensor, sampling: Sampling) -> Tensor:
        return self.read(items)[torch.arange(items.shape[0], device=items.device), lengths - 1]
