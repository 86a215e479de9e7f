"""BERT4Rec: a bidirectional transformer that fills in masked items (Sun et al., CIKM 2019).

Training masks items of a history at random and predicts them from both sides; scoring appends a mask to the history
and predicts it. The cross entropy is over the whole catalogue. BERT4Rec takes longer to train than SASRec; trained long
enough, it is a strong baseline (Petrov & Macdonald, RecSys 2022).
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from rediffuse.batching.sequences import SequenceBatch
from rediffuse.config import Range
from rediffuse.models.sampling import Sampling
from rediffuse.models.sequence import Encoded, SequenceConfig, SequenceModel
from rediffuse.nn import Dropout, Encoder


class BERT4RecConfig(SequenceConfig):
    """Options of BERT4Rec. The paper masks 20 to 60 % of the items, more where histories are short."""

    search = SequenceConfig.search | {
        "blocks": Range(1, 3),
        "dropout": Range(0.1, 0.6),
        "mask_share": Range(0.1, 0.7),
    }

    blocks: int = Field(2, ge=1)
    heads: int = Field(2, ge=1)
    dropout: float = Field(0.3, ge=0, lt=1)
    mask_share: float = Field(0.4, gt=0, lt=1, description="Probability that an item is masked in training.")
    mask_last: float = Field(
        0.2, ge=0, le=1, description="Share of histories whose last item alone is masked, as in scoring."
    )


class BERT4Rec(SequenceModel):
    """A bidirectional transformer reads the latest items, with a mask in place of the next, and scores what it hides.

    Items plus positions -> bidirectional transformer -> linear, GELU, norm -> inner product with all items.
    """

    name = "bert4rec"
    Config = BERT4RecConfig
    learns_residual = False  # a masked item has no history: both of its sides are read
    config: BERT4RecConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: BERT4RecConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        size = config.embedding_size
        self.mask_embedding = nn.Parameter(torch.zeros(size))
        self.position_embedding = nn.Embedding(config.max_length + 1, size)
        self.drop = Dropout(config.dropout)
        self.encoder = Encoder(size, config.blocks, config.heads, config.dropout, causal=False)
        self.head = nn.Sequential(nn.Linear(size, size), nn.GELU(), nn.LayerNorm(size))
        for weight in (self.item_embedding.weight, self.position_embedding.weight, self.mask_embedding):
            nn.init.normal_(weight, std=0.02)

    def tokens(self, items: Tensor, masked: Tensor, lengths: Tensor) -> Tensor:
        """Input of the encoder (B, L, d), from items (B, L), which of them are masked (B, L), and lengths (B,)."""
        x = torch.where(masked[..., None], self.mask_embedding, self.item_embedding(items))
        return self.add_positions(x, lengths)

    def add_positions(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Item vectors (B, L, d) plus position embeddings."""
        # Counted from the end, as with the paper's padding on the left: in scoring, the mask always has position 0.
        places = (lengths[:, None] - 1 - torch.arange(x.shape[1], device=x.device)).clamp(min=0)
        return self.drop(x * self.config.embedding_size**0.5 + self.position_embedding(places))

    def training_batch(self, batch: SequenceBatch) -> SequenceBatch:
        """Whole windows, with the padding item in place of the masked items, which are the targets."""
        whole = F.pad(batch.items, (0, 1), value=self.pad)
        whole[batch.rows, batch.positions + 1] = batch.targets
        lengths = batch.lengths + 1
        rows = torch.arange(len(whole), device=whole.device)
        # PDRec (`rediffuse.models.pdrec`) appends an item that is not known and can only be masked. It is cut off half
        # the time, because otherwise no known item would be a target in the last place.
        unknown = whole[rows, lengths - 1] == self.pad
        if bool(unknown.any()):
            cut = unknown & (lengths > 2) & (torch.rand(len(whole), device=whole.device) < 0.5)
            lengths = lengths - cut.long()
            unknown = unknown & ~cut
        places = torch.arange(whole.shape[1], device=whole.device)
        real = (places < lengths[:, None]) & batch.learnable(whole.shape[1])
        masked = self.choose_masked(real)
        last_only = torch.rand(len(whole), device=whole.device) < self.config.mask_last
        masked &= ~last_only[:, None]
        masked[rows, lengths - 1] |= last_only | unknown | ~masked.any(1)
        at, places = torch.nonzero(masked, as_tuple=True)
        starts = torch.zeros_like(lengths)
        starts[batch.rows] = batch.interactions - batch.positions - 1
        return SequenceBatch(
            whole.masked_fill(masked, self.pad),
            lengths,
            at,
            places,
            whole[at, places],
            starts[at] + places,
            batch.synthetic,
            batch.untrained,
            batch.rank_weight,
        )

    def choose_masked(self, real: Tensor) -> Tensor:
        """(B, L) which of the items that may be targets (B, L) are masked; the last alone, where none is."""
        return (torch.rand(real.shape, device=real.device) < self.config.mask_share) & real

    def visible(self, batch: SequenceBatch) -> Tensor:
        return batch.lengths[batch.rows]

    def encode(self, batch: SequenceBatch) -> Encoded:
        masked = torch.zeros_like(batch.items, dtype=torch.bool).index_put(
            (batch.rows, batch.positions), torch.ones((), dtype=torch.bool, device=batch.items.device)
        )
        x = self.encoder(self.tokens(batch.items, masked, batch.lengths), batch.lengths)
        return Encoded(self.head(x[batch.rows, batch.positions]))

    def read_vectors(self, x: Tensor) -> Tensor:
        lengths = torch.full((len(x),), x.shape[1] + 1, device=x.device)
        whole = torch.cat((x, self.mask_embedding.expand(len(x), 1, -1)), dim=1)
        return self.head(self.encoder.last(self.add_positions(whole, lengths), lengths))

    def represent(self, items: Tensor, lengths: Tensor, sampling: Sampling) -> Tensor:
        whole = F.pad(items, (0, 1), value=self.pad)
        masked = torch.arange(whole.shape[1], device=items.device) == lengths[:, None]
        return self.head(self.encoder.last(self.tokens(whole, masked, lengths + 1), lengths + 1))
