"""The two models of PDRec's released program, where they are trained otherwise than ours.

Both are trained on users drawn with replacement, so in an epoch some occur twice and others not. The rows of TI-DiffRec
have a column for the padding, which no user has. GRU4Rec reads the padding before a history as an item, begins with a
state of its own, and has neither dropout nor a last layer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rediffuse.batching.rows import RowBatches
from rediffuse.batching.sequences import DrawnUsers, SequenceBatch
from rediffuse.data.histories import Histories
from rediffuse.models.base import TrainingData
from rediffuse.models.baselines.gru4rec import GRU4Rec, GRU4RecConfig
from rediffuse.models.diffrec import TDiffRec
from rediffuse.models.sampling import Sampling
from rediffuse.models.sequence import Encoded
from rediffuse.nn.sized import with_rows


class PaddedTDiffRec(TDiffRec):
    """TI-DiffRec with a last column for the padding."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:  # pyright: ignore
        # A run of tdiffrec has no padding: it reads nothing there, and scores 0.
        for name in ("first", "last.weight", "last.bias"):
            found = state_dict.get(key := f"{prefix}denoiser.{name}")
            if found is not None and len(found) == self.num_items:
                state_dict[key] = with_rows(found, self.num_items, 1)
        super()._load_from_state_dict(state_dict, prefix, *others)

    def row_width(self) -> int:
        return self.num_items + 1

    def batches(self, data: TrainingData, rng: np.random.Generator) -> RowBatches:
        """As many batches as all users would fill, of users with two interactions or more."""
        users, size = np.flatnonzero(data.train.lengths >= 2), self.config.batch_size
        drawn = rng.choice(users, -(-len(data.train) // size) * size) if len(users) else users
        return RowBatches(self.rows(data.train), batch_size=size, rng=rng, order=drawn)

    def score_known(self, histories: Histories, users: NDArray[np.int64], sampling: Sampling) -> Tensor:
        return super().score_known(histories, users, sampling)[:, : self.num_items]

    @torch.no_grad()
    def score_with_padding(self, histories: Histories) -> Tensor:
        """(B, num_items + 1) the scores of histories that are not empty; the last is that of the padding."""
        return super().score_known(histories, np.full(len(histories), -1), Sampling())

    def index_vectors(self) -> Tensor | None:
        vectors = super().index_vectors()
        return None if vectors is None else vectors[: self.num_items]


class PaddedGRU(GRU4Rec):
    """GRU4Rec that reads histories padded on the left to the whole window.

    Attributes:
        start: (layers, 1, d) the state before the padding.
    """

    def __init__(self, config: GRU4RecConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        self.project = nn.Identity()
        self.start = nn.Parameter(torch.zeros(config.layers, 1, config.embedding_size))

    def batches(self, data: TrainingData, rng: np.random.Generator) -> DrawnUsers:
        size, window = self.config.batch_size, self.config.max_length
        return DrawnUsers(data.train, window=window, batch_size=size, pad=self.pad, rng=rng)

    def read_latest(self, items: Tensor, lengths: Tensor) -> Tensor:
        """States (B, L, d) at the latest L = ``max_length`` of the first ``lengths`` (B,) items of each row."""
        width = self.config.max_length
        places = lengths[:, None] - width + torch.arange(width, device=items.device)
        padded = items.gather(1, places.clamp(min=0)).masked_fill(places < 0, self.pad)
        x = self.item_embedding(padded)
        x = torch.where((padded == self.pad)[..., None], x.detach(), x)  # the padding is read and not trained
        start = self.start.to(x.dtype).expand(-1, len(items), -1).contiguous()
        return self.drop(self.gru(self.drop(x), start)[0])

    def encode(self, batch: SequenceBatch) -> Encoded:
        # What is read before a known target and before an open end has the same width, so one row is read twice.
        known = batch.targets < self.num_items
        ends = torch.zeros_like(batch.lengths).index_put((batch.rows[~known],), torch.ones_like(batch.rows[~known]))
        inputs = batch.lengths - ends  # that have a known target
        column = self.config.max_length - inputs[batch.rows] + batch.positions
        states = self.read_latest(batch.items, inputs)[batch.rows, column.clamp(max=self.config.max_length - 1)]
        # A history of one interaction was the target of nothing: there it is not read.
        whole = self.read_latest(batch.items, batch.lengths.where(batch.lengths > 1, 0))[:, -1]
        return Encoded(torch.where(known[:, None], states, whole[batch.rows]))

    def represent(self, items: Tensor, lengths: Tensor, sampling: Sampling) -> Tensor:
        return self.read_latest(items, lengths)[:, -1]
