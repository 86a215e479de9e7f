"""Batches of sequences: windows over flat histories, bucketed by length, padded on the right.

A *window* is a slice ``start:stop`` of the flat item array, within one history. Its items are the input. The targets
are the items that follow each of them (causal form), or the item that follows the last (prefix form).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rediffuse.data.histories import Histories, index_type

# Windows are sorted by length within pools of this many batches: enough for little padding, few enough to stay random.
BUCKET_BATCHES = 64
# Batches have a multiple of this many windows, where they can.
ROWS = 8


@dataclass(frozen=True)
class SequenceBatch:
    """B windows, and the flat list of their n targets.

    Attributes:
        items: (B, L) int64, padded on the right with ``num_items``.
        lengths: (B,) int64 real items per row, at least 1.
        rows, positions, targets: (n,) int64; ``targets`` follow ``items[rows, positions]``.
        interactions: (n,) int64 index of each target among all interactions.
        synthetic: (B,) int64 how many items at the start of each row are synthetic; None: none in any row.
        untrained: (B,) int64 how many items at the start of each row may not be targets: the synthetic ones, and the
            user's first own one after them; None: all may be.
        rank_weight: targets of this rank, times the number of ranks, over targets of all ranks: the factor that makes
            the average over ranks of mean losses the mean over the whole batch.
    """

    items: Tensor
    lengths: Tensor
    rows: Tensor
    positions: Tensor
    targets: Tensor
    interactions: Tensor
    synthetic: Tensor | None = None
    untrained: Tensor | None = None
    rank_weight: float = 1.0

    def to(self, device: torch.device) -> SequenceBatch:
        fields = (self.items, self.lengths, self.rows, self.positions, self.targets, self.interactions)
        counts = (None if x is None else x.to(device) for x in (self.synthetic, self.untrained))
        return SequenceBatch(*(x.to(device) for x in fields), *counts, rank_weight=self.rank_weight)

    def learnable(self, width: int) -> Tensor:
        """(B, width) bool, False at the ``untrained`` items of each row."""
        places = torch.arange(width, device=self.items.device)
        first = torch.zeros_like(self.lengths) if self.untrained is None else self.untrained
        return places >= first[:, None]


def rank_slice(whole: NDArray[np.int64], rank: int, ranks: int) -> tuple[NDArray[np.int64], float]:
    """The rows of a batch that belong to a rank, and their weight: their share of the batch times the number of ranks.

    A rank without rows gets the first row with a weight of zero, so that it takes part in collective operations and
    changes nothing.

    Args:
        whole: (n,) rows of the batch.
        rank: number of this process.
        ranks: number of processes.
    """
    own = whole[rank::ranks]
    return (own, len(own) * ranks / len(whole)) if len(own) else (whole[:1], 0.0)


def rank_rows(rank_weight: float) -> slice:
    """The rows of a rank that count: all, or none where `rank_slice` gave a row with a weight of zero."""
    return slice(None) if rank_weight else slice(0)


def pad_right(histories: Histories, max_length: int, pad: int) -> tuple[Tensor, Tensor]:
    """The last ``max_length`` items of each row as (B, L) int64, and the lengths (B,); L is at least 1."""
    lengths = np.minimum(histories.lengths, max_length)
    return _gather(histories.items, histories.offsets[1:] - lengths, lengths, pad), torch.from_numpy(lengths)


def _gather(items: NDArray[np.int32], starts: NDArray[np.int64], lengths: NDArray[np.int64], pad: int) -> Tensor:
    width = int(lengths.max(initial=1))
    column = np.arange(width)
    inside = column < lengths[:, None]
    if not len(items):
        return torch.full((len(lengths), width), pad)
    index = np.where(inside, starts[:, None] + column, 0)
    return torch.from_numpy(np.where(inside, items[index], pad).astype(np.int64))


class SequenceBatches:
    """The training batches of one epoch, in a random order that depends on ``rng`` alone.

    Args:
        histories: training interactions, oldest first.
        max_length: longest input.
        batch_size: targets per batch; fewer if windows do not fill it, more only if one window has more.
        pad: number of the padding item.
        every_position: True: windows tile each history from its end, so each interaction but the first is a target
            once (causal form). False: one window per target, ending just before it (prefix form).
        rng: source of randomness.
        synthetic_targets: whether synthetic interactions are targets. If not, the user's first own interaction after
            them is not one either, because they were generated from it.
        bucketed: whether the windows of a batch have similar lengths; False: batches of ``batch_size`` windows in a
            random order.
    """

    def __init__(
        self,
        histories: Histories,
        *,
        max_length: int,
        batch_size: int,
        pad: int,
        every_position: bool,
        rng: np.random.Generator,
        synthetic_targets: bool = False,
        bucketed: bool = True,
    ) -> None:
        self.items, self.offsets = histories.items, histories.offsets
        self.pad, self.every_position = pad, every_position
        tile = tiling_windows if every_position else prefix_windows
        self.starts, self.stops = tile(histories, max_length)
        self.trained: NDArray[np.bool_] | None = None
        self.synthetic: NDArray[np.int64] | None = None
        if histories.synthetic is not None:
            # (interactions + 1,) synthetic interactions before each.
            self.synthetic = np.concatenate(([0], np.cumsum(histories.synthetic)))
            if not synthetic_targets:
                self.trained = ~histories.synthetic
                self.trained[1:] &= ~histories.synthetic[:-1]
                self.trained_before = np.concatenate(([0], np.cumsum(self.trained)))
                kept = self._targets(self.starts, self.stops) > 0
                self.starts, self.stops = self.starts[kept], self.stops[kept]
        lengths = self.stops - self.starts
        if not bucketed:
            order = rng.permutation(len(lengths))
            self.batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
            return
        targets = lengths if every_position else np.broadcast_to(np.ones((), lengths.dtype), lengths.shape)
        self.batches = bucket(lengths, targets, batch_size, rng)

    def _targets(self, starts: NDArray[Any], stops: NDArray[Any]) -> NDArray[np.int64]:
        """Number of trained targets of each window, where synthetic interactions are not targets."""
        return self.trained_before[stops + 1] - self.trained_before[starts + 1 if self.every_position else stops]

    def __len__(self) -> int:
        return len(self.batches)

    def users(self, index: int) -> NDArray[np.int64]:
        """Users with a window in batch ``index``."""
        starts = self.starts[self.batches[index]]
        return np.unique(np.searchsorted(self.offsets, starts, side="right") - 1)

    def get(self, index: int, rank: int = 0, ranks: int = 1) -> SequenceBatch:
        """Batch ``index``, or the slice of it that belongs to ``rank``."""
        whole = self.batches[index]
        windows, rank_weight = rank_slice(whole, rank, ranks)
        starts = self.starts[windows].astype(np.int64)
        lengths = self.stops[windows] - starts
        if self.every_position:
            rows = np.repeat(np.arange(len(windows)), lengths)
            positions = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            count = (self.stops[whole] - self.starts[whole]).sum()
        else:
            rows, positions, count = np.arange(len(windows)), lengths - 1, len(whole)
        interactions = starts[rows] + positions + 1
        if self.trained is not None and self.every_position:
            kept = self.trained[interactions]
            rows, positions, interactions = rows[kept], positions[kept], interactions[kept]
            count = self._targets(self.starts[whole], self.stops[whole]).sum()
        targets = self.items[interactions].astype(np.int64)
        synthetic = untrained = None
        if self.synthetic is not None:
            synthetic = torch.from_numpy(self.synthetic[starts + lengths] - self.synthetic[starts])
        if self.trained is not None:
            learned = self.trained_before[starts + lengths + 1] - self.trained_before[starts]
            untrained = torch.from_numpy(lengths + 1 - learned)
        return SequenceBatch(
            _gather(self.items, starts, lengths, self.pad),
            *(torch.from_numpy(x) for x in (lengths, rows, positions, targets, interactions)),
            synthetic=synthetic,
            untrained=untrained,
            rank_weight=float(len(targets) * ranks / max(count, 1)) if rank_weight else 0.0,
        )


class DrawnUsers(SequenceBatches):
    """Batches of users drawn with replacement, as in PDRec's program: of each the latest window, with all its targets.

    There are as many batches as the users with two known interactions or more would fill once.

    Args:
        histories: training interactions, oldest first; the last may be ``pad``, an open end.
        window: most known targets of a user; an open end comes on top.
        batch_size: users per batch.
        pad: number of the padding item.
        rng: source of randomness.
    """

    def __init__(
        self, histories: Histories, *, window: int, batch_size: int, pad: int, rng: np.random.Generator
    ) -> None:
        self.items, self.offsets = histories.items, histories.offsets
        self.pad, self.every_position = pad, True
        self.trained = self.synthetic = None
        last = self.offsets[1:][histories.lengths >= 2] - 1
        ends = self.items[last] == pad
        self.stops = last
        self.starts = np.maximum(self.offsets[:-1][histories.lengths >= 2], last - window - ends)
        known = int((self.stops - self.starts > ends).sum())
        self.batches = [rng.integers(len(last), size=batch_size) for _ in range(-(-known // batch_size))]


def tiling_windows(histories: Histories, max_length: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Starts and stops of windows of at most ``max_length`` inputs that cover every target of every history once.

    The last window of a history ends before its last interaction and is full; the first takes the remainder. They are
    int32 where that is enough.
    """
    targets = np.maximum(histories.lengths - 1, 0)
    tiles = -(-targets // max_length)
    owner = np.repeat(np.arange(len(histories)), tiles)
    back = np.arange(tiles.sum()) - np.repeat(np.cumsum(tiles) - tiles, tiles)
    stops = histories.offsets[1:][owner] - 1 - back * max_length
    starts = np.maximum(stops - max_length, histories.offsets[:-1][owner])
    small = index_type(len(histories.items))
    return starts.astype(small), stops.astype(small)


def prefix_windows(histories: Histories, max_length: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Starts and stops of one window before each interaction but the first, of at most ``max_length`` inputs."""
    small, first = index_type(len(histories.items)), histories.offsets[:-1]
    followed = np.ones(len(histories.items), dtype=bool)
    followed[first[histories.lengths > 0]] = False
    stops = np.flatnonzero(followed).astype(small)
    starts = np.repeat(first.astype(small), np.maximum(histories.lengths - 1, 0))
    np.maximum(starts, stops - small(max_length), out=starts)
    return starts, stops


def bucket(
    lengths: NDArray[Any], weight: NDArray[Any], batch_size: int, rng: np.random.Generator
) -> list[NDArray[Any]]:
    """Group windows into shuffled batches of about ``batch_size`` targets and of similar lengths.

    A batch whose longest window is L always has the same number of windows, a multiple of `ROWS` where it can: on a CPU
    the matrix products are compiled per shape, and so there are few.

    Args:
        lengths: (windows,) inputs of each.
        weight: (windows,) targets of each: its length (causal form) or 1 (prefix form).
        batch_size: targets per batch.
        rng: source of randomness.

    Returns:
        The numbers of each batch's windows.
    """
    order = np.arange(len(lengths), dtype=index_type(len(lengths)))
    rng.shuffle(order)
    batches: list[NDArray[Any]] = []
    size = batch_size * BUCKET_BATCHES
    start, before = 0, 0
    while start < len(order):
        # A pool, which is sorted from long to short, has about `size` targets, so no more windows than that.
        pool = order[start : start + size]
        targets = before + np.cumsum(weight[pool], dtype=np.int64)
        pool = pool[: np.searchsorted(targets // size, targets[0] // size, side="right")]
        before = int(targets[len(pool) - 1])
        pool[:] = pool[np.argsort(-lengths[pool], kind="stable")]
        ordered, first = weight[pool], 0
        while first < len(pool):
            rows = max(1, batch_size // int(ordered[first]))
            rows = rows // ROWS * ROWS or rows
            # The shortest windows of a pool are not joined with the longest of the next.
            batches.append(pool[first : first + rows])
            first += rows
        start += len(pool)
    return [batches[i] for i in rng.permutation(len(batches))]
