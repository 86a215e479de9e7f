"""Batches of (items, the items that followed them), for a generator of what could precede a history."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rediffuse.batching.sequences import rank_slice
from rediffuse.data.histories import Histories


@dataclass(frozen=True)
class Continuation:
    """B pairs of successive items and the items that followed them.

    Attributes:
        targets: (B, M) int64 successive items.
        items: (n,) int64 the items that followed, row after row; row b begins at ``offsets[b]``.
        offsets: (B,) int64.
        rank_weight: see `rediffuse.batching.sequences.SequenceBatch`.
    """

    targets: Tensor
    items: Tensor
    offsets: Tensor
    rank_weight: float = 1.0

    def to(self, device: torch.device) -> Continuation:
        return Continuation(self.targets.to(device), self.items.to(device), self.offsets.to(device), self.rank_weight)


class Continuations:
    """One epoch, in which every long enough history is cut once.

    Args:
        histories: training interactions.
        length: M; histories with more interactions than that are used.
        max_length: most items that follow.
        batch_size: users per batch.
        anywhere: cut at a random place; otherwise after the first M.
        rng: order and places depend on it alone.
    """

    def __init__(
        self,
        histories: Histories,
        *,
        length: int,
        max_length: int,
        batch_size: int,
        anywhere: bool,
        rng: np.random.Generator,
    ) -> None:
        self.items, self.length, self.batch_size = histories.items, length, batch_size
        self.order = rng.permutation(np.flatnonzero(histories.lengths > length))  # users
        first, last = histories.offsets[self.order] + length, histories.offsets[self.order + 1]
        self.cuts = rng.integers(first, last) if anywhere else first
        self.stops = np.minimum(self.cuts + max_length, last)

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def users(self, index: int) -> NDArray[np.int64]:
        """Users in batch ``index``."""
        return self.order[index * self.batch_size : (index + 1) * self.batch_size]

    def get(self, index: int, rank: int = 0, ranks: int = 1) -> Continuation:
        """Batch ``index``, or the slice of it that belongs to ``rank``."""
        whole = np.arange(index * self.batch_size, min((index + 1) * self.batch_size, len(self.order)))
        rows, rank_weight = rank_slice(whole, rank, ranks)
        cuts, stops = self.cuts[rows], self.stops[rows]
        targets = self.items[cuts[:, None] - self.length + np.arange(self.length)]
        lengths = stops - cuts
        starts = np.cumsum(lengths) - lengths
        following = self.items[np.arange(lengths.sum()) + np.repeat(cuts - starts, lengths)]
        return Continuation(
            torch.from_numpy(targets.astype(np.int64)),
            torch.from_numpy(following.astype(np.int64)),
            torch.from_numpy(starts),
            rank_weight,
        )
