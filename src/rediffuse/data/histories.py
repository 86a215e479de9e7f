"""Flat histories: the one array form in which interactions travel through the package."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rediffuse.display import Displayed

# Interactions that are worked on at once where temporary arrays would otherwise be as long as all of them. Such a block
# fits into the caches of a processor.
BLOCK = 1 << 18


def row_blocks(offsets: NDArray[Any], size: int | None = None) -> Iterator[tuple[int, int]]:
    """Cut rows into runs ``first:last`` of at most ``size`` (`BLOCK`) interactions, or of a single longer row."""
    size = BLOCK if size is None else size
    offsets = offsets.astype(np.int64, copy=False)  # once, and not for each search
    first = 0
    while first < len(offsets) - 1:
        last = int(np.searchsorted(offsets, offsets[first] + size, side="right")) - 1
        last = max(last, first + 1)
        yield first, last
        first = last


def utc(seconds: float) -> str:
    """A time in seconds since the epoch as ISO 8601 text in UTC."""
    return datetime.datetime.fromtimestamp(float(seconds), datetime.UTC).isoformat(timespec="seconds")


def index_type(count: int) -> Any:
    """The smaller of int32 and int64 that holds positions of ``count`` interactions."""
    return np.int32 if count <= np.iinfo(np.int32).max else np.int64


@dataclass(frozen=True, eq=False, repr=False)
class Histories(Displayed):
    """One row of interactions per user, as compressed sparse rows.

    Attributes:
        offsets: (users + 1,) int64; the interactions of user ``u`` are ``offsets[u]:offsets[u + 1]``.
        items: (interactions,) int32 item numbers, in order of time within each user; ties keep file order.
        times: (interactions,) seconds since the epoch (or an order column), or None.
        ratings: (interactions,) float32, or None.
        synthetic: (interactions,) bool, True for synthetic interactions (`rediffuse.data.synthetic`), or None. They
            come before the real interactions of a user.
        target: (interactions,) bool, True for interactions that may be truth in validation and test, for example
            purchases; None: all of them may.
    """

    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    times: NDArray[np.int64] | NDArray[np.float64] | None = None
    ratings: NDArray[np.float32] | None = None
    synthetic: NDArray[np.bool_] | None = None
    target: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(users,) number of interactions of each user."""
        return np.diff(self.offsets)

    @property
    def owners(self) -> NDArray[np.int64]:
        """(interactions,) the user of each interaction."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def owner_of(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) the user of the interactions ``places`` (n,)."""
        return np.searchsorted(self.offsets, places, side="right") - 1

    @property
    def positions(self) -> NDArray[np.int64]:
        """(interactions,) position of each interaction in its row, from 0."""
        positions = np.arange(len(self.items))
        positions -= np.repeat(self.offsets[:-1], self.lengths)
        return positions

    def row(self, user: int) -> NDArray[np.int32]:
        """Items of one user, oldest first."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    def blocks(self) -> Iterator[tuple[int, Histories]]:
        """Runs of rows with at most BLOCK interactions (or one longer row), and the number of the first; not copied."""
        for first, last in row_blocks(self.offsets):
            start, stop = self.offsets[first], self.offsets[last]
            yield first, self._with(self.offsets[first : last + 1] - start, slice(start, stop))

    def where(self, mask: NDArray[np.bool_]) -> Histories:
        """Keep the interactions under ``mask`` (interactions,); users keep their rows, possibly empty."""
        kept = np.zeros(len(mask) + 1, dtype=index_type(len(mask)))
        np.cumsum(mask, out=kept[1:])
        offsets = kept[self.offsets].astype(np.int64)
        del kept
        return self._with(offsets, mask)

    def take(self, users: NDArray[np.int64]) -> Histories:
        """The rows ``users`` (n,), in that order. Arrays are shared where all other rows are empty."""
        lengths = self.lengths[users]
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        if offsets[-1] == len(self.items) and (users[1:] > users[:-1]).all():
            return dataclasses.replace(self, offsets=offsets)
        return self._with(offsets, np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][users] - offsets[:-1], lengths))

    def beginnings(self, rows: NDArray[np.int64], lengths: NDArray[np.int64]) -> Histories:
        """The first ``lengths`` (n,) interactions of ``rows`` (n,), in that order; a row may occur many times."""
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        places = np.arange(offsets[-1])
        places += np.repeat(self.offsets[:-1][rows] - offsets[:-1], lengths)
        return self._with(offsets, places)

    def singles(self, places: NDArray[np.int64]) -> Histories:
        """The interactions ``places`` (n,), each as a row of its own."""
        return self._with(np.arange(len(places) + 1), places)

    def _with(self, offsets: NDArray[np.int64], selected: Any) -> Histories:
        def of(array: Any) -> Any:
            return None if array is None else array[selected]

        others = (of(array) for array in (self.times, self.ratings, self.synthetic, self.target))
        return Histories(offsets, self.items[selected], *others)

    def without_synthetic(self) -> Histories:
        """Without synthetic interactions."""
        return self if self.synthetic is None else dataclasses.replace(self.where(~self.synthetic), synthetic=None)

    def tail(self, length: int) -> Histories:
        """The last ``length`` interactions of every user."""
        return self.where(self.positions >= np.repeat(self.lengths - length, self.lengths))

    def last_time(self) -> str | None:
        """The time of the last interaction, ISO 8601 in UTC; None without times."""
        if self.times is None or not len(self.times):
            return None
        return utc(self.times.max())

    @staticmethod
    def joined(several: Sequence[Histories]) -> Histories:
        """The rows of ``several`` (at least one), in order; all of them or none have times, and so on.

        Where only some have targets, all interactions of the others are targets, as without the array.
        """
        if len(several) == 1:
            return several[0]

        def column(name: str) -> Any:
            arrays = [getattr(histories, name) for histories in several]
            return None if arrays[0] is None else np.concatenate(arrays)

        lengths = np.concatenate([histories.lengths for histories in several])
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        if any(histories.target is not None for histories in several):
            several = [
                histories
                if histories.target is not None
                else dataclasses.replace(histories, target=np.ones(len(histories.items), dtype=bool))
                for histories in several
            ]
        names = ("items", "times", "ratings", "synthetic", "target")
        return Histories(offsets, *(column(name) for name in names))

    @staticmethod
    def from_lists(rows: list[list[int]]) -> Histories:
        """From lists of item numbers, one per user."""
        offsets = np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64)
        flat = [item for row in rows for item in row]
        return Histories(offsets, np.asarray(flat, dtype=np.int32))

    def _display(self) -> tuple[str, dict[str, Any]]:
        columns = [name for name in ("times", "ratings", "synthetic", "target") if getattr(self, name) is not None]
        shown = self.row(0)[:10].tolist() if len(self) else []
        return "Histories", {
            "rows": len(self),
            "interactions": len(self.items),
            "other arrays": ", ".join(columns) or None,
            "first row": f"items {shown}" if len(self) else None,
        }
