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
        released: as in DiffuASR's program, histories have more than M + 2 interactions, the latest ``max_length`` of
            those that follow are read, and users who do not fill a batch are left out of the epoch, unless none is
            filled.
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
        released: bool = False,
    ) -> None:
        self.items, self.length, self.batch_size = histories.items, length, batch_size
        self.order = rng.permutation(np.flatnonzero(histories.lengths > length + 2 * released))  # users
        if released:
            self.order = self.order[: len(self.order) // batch_size * batch_size or None]
        first, last = histories.offsets[self.order] + length, histories.offsets[self.order + 1]
        self.cuts = rng.integers(first, last) if anywhere else first
        # What follows is read from `starts` to `stops`.
        self.starts = np.maximum(self.cuts, last - max_length) if released else self.cuts
        self.stops = np.minimum(self.starts + max_length, last)

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def users(self, index: int) -> NDArray[np.int64]:
        """Users in batch ``index``."""
        return self.order[index * self.batch_size : (index + 1) * self.batch_size]

    def get(self, index: int, rank: int = 0, ranks: int = 1) -> Continuation:
        """Batch ``index``, or the slice of it that belongs to ``rank``."""
        whole = np.arange(index * self.batch_size, min((index + 1) * self.batch_size, len(self.order)))
        rows, rank_weight = rank_slice(whole, rank, ranks)
        targets = self.items[self.cuts[rows][:, None] - self.length + np.arange(self.length)]
        starts = self.starts[rows]
        lengths = self.stops[rows] - starts
        offsets = np.cumsum(lengths) - lengths
        following = self.items[np.arange(lengths.sum()) + np.repeat(starts - offsets, lengths)]
        return Continuation(
            torch.from_numpy(targets.astype(np.int64)),
            torch.from_numpy(following.astype(np.int64)),
            torch.from_numpy(offsets),
            rank_weight,
        )
