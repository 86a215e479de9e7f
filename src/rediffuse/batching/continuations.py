"""Batches of (items, what came after them), for a generator of what could have come before a history."""

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
    """Attributes:
    targets: (B, M) int64 successive items.
    items: (n,) int64 what followed them, row after row; row b begins at ``offsets[b]`` (B,).
    rank_weight: see `rediffuse.batching.sequences.SequenceBatch`.
    """

    targets: Tensor
    items: Tensor
    offsets: Tensor
    rank_weight: float = 1.0

    def to(self, device: torch.device) -> Continuation:
        return Continuation(self.targets.to(device), self.items.to(device), self.offsets.to(device), self.rank_weight)


class Continuations:
    """One cut through every long enough history per epoch.

    Args:
        histories: training events.
        length: M; histories with more events than that are used.
        max_length: most events that follow.
        batch_size: people per batch.
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
        people = rng.permutation(np.flatnonzero(histories.lengths > length))
        first, last = histories.offsets[people] + length, histories.offsets[people + 1]
        self.people = people
        self.cuts = rng.integers(first, last) if anywhere else first
        self.stops = np.minimum(self.cuts + max_length, last)

    def __len__(self) -> int:
        return -(-len(self.people) // self.batch_size)

    def users(self, index: int) -> NDArray[np.int64]:
        """People in batch ``index``."""
        return self.people[index * self.batch_size : (index + 1) * self.batch_size]

    def get(self, index: int, rank: int = 0, ranks: int = 1) -> Continuation:
        """Batch ``index``, or the part of it that falls to ``rank``."""
        whole = np.arange(index * self.batch_size, min((index + 1) * self.batch_size, len(self.people)))
        part, rank_weight = rank_slice(whole, rank, ranks)
        cuts, stops = self.cuts[part], self.stops[part]
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
