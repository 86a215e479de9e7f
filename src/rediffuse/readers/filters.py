"""Filters over interactions; functions on flat arrays of user and item numbers return a mask of what stays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rediffuse.arguments import require_integer, require_number
from rediffuse.data.histories import row_blocks
from rediffuse.errors import ConfigError, DataError, did_you_mean
from rediffuse.readers.report import ReadReport
from rediffuse.readers.rows import InteractionRows, grouped

Numbers = NDArray[np.int32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Filters:
    """What is dropped, in this order; as arguments of `rediffuse.read_interactions`."""

    min_rating: float | None = None
    duplicates: Literal["keep", "first", "last"] = "keep"
    k_core: int | None = None

    def check(self, rated: bool) -> None:
        """Raise unless they are in range, and interactions are ``rated`` if that is needed.

        Raises:
            ConfigError: they are not, or there is none.
        """
        if self.duplicates not in ("keep", "first", "last"):
            raise ConfigError(
                f"duplicates was given {self.duplicates!r}.", did_you_mean(self.duplicates, ["keep", "first", "last"])
            )
        if self.k_core is not None:
            require_integer("k_core", self.k_core)
        if self.min_rating is not None:
            require_number("min_rating", self.min_rating)
            if not rated:
                raise ConfigError("min_rating was given without a rating column.", 'Name the column: rating="rating".')

    def apply(self, rows: InteractionRows, report: ReadReport) -> None:
        """Drop rows, which are sorted, and report how many.

        Raises:
            DataError: no row is left.
        """
        targets = _count(rows.targets)
        if rows.weighted is not None:
            rows.keep(rows.weighted)  # those that were dropped are in the report already
            rows.weighted = None
        if self.min_rating is not None and rows.ratings is not None:
            highest = float(rows.ratings.max())
            dropped = rows.keep(at_least(rows.ratings, self.min_rating))
            report.values["dropped_below_min_rating"] = dropped
            report.note(f"{dropped:,} interactions rated below {self.min_rating} were dropped.")
            remedy = f"The highest rating is {highest:g}: lower min_rating."
            _refuse_empty(rows, f"min_rating={self.min_rating}", remedy)
        blocks = rows.blocks()
        repeated = sum(count_repeats(rows.users[block], rows.items[block]) for block in blocks)
        report.values["repeated_interactions"] = repeated
        if repeated and self.duplicates != "keep":
            kept = [unique_pairs(rows.users[block], rows.items[block], self.duplicates) for block in blocks]
            report.values["dropped_duplicates"] = rows.keep(np.concatenate(kept))
            report.note(
                f"{repeated:,} repeated interactions of a user with an item were dropped; "
                f"the {self.duplicates} was kept."
            )
        elif repeated:
            report.note(f"{repeated:,} interactions repeat a user and item; they were kept.")
        if self.k_core is not None:
            users, items = rows.distinct("users"), rows.distinct("items")
            dropped = rows.keep(k_core(rows.users, rows.items, self.k_core))
            report.values["dropped_by_k_core"] = dropped
            _refuse_empty(rows, f"k_core={self.k_core}", "Lower k_core.")
            users, items = users - rows.distinct("users"), items - rows.distinct("items")
            report.note(
                f"The {self.k_core}-core dropped {dropped:,} interactions, {users:,} users and {items:,} items."
            )
        if rows.targets is not None:
            left = _count(rows.targets)
            report.values["target_interactions"] = left
            if dropped := targets - left:
                report.note(f"{dropped:,} of {targets:,} target interactions were among those that were dropped.")
            if not left:
                raise DataError("No target interaction is left after filtering.", "Filter less, or name more targets.")


def _count(mask: Mask | None) -> int:
    return 0 if mask is None else int(mask.sum())


def _refuse_empty(rows: InteractionRows, filter_: str, remedy: str) -> None:
    if not len(rows):
        raise DataError(f"No interactions are left after {filter_}.", remedy)


def at_least(ratings: NDArray[np.float32], threshold: float) -> Mask:
    """Interactions rated ``threshold`` or higher."""
    return ratings >= np.float32(threshold)


def unique_pairs(users: Numbers, items: Numbers, which: Literal["first", "last"]) -> Mask:
    """The first or last interaction of each user with each item, in the order of the arrays."""
    key = users.astype(np.int64) * (int(items.max(initial=0)) + 1) + items
    keep = np.zeros(len(key), dtype=bool)
    if which == "first":
        keep[np.unique(key, return_index=True)[1]] = True
    else:
        keep[len(key) - 1 - np.unique(key[::-1], return_index=True)[1]] = True
    return keep


def count_repeats(users: Numbers, items: Numbers) -> int:
    """How many interactions have an earlier one of the same user with the same item."""
    key = users.astype(np.int64) * (int(items.max(initial=0)) + 1) + items
    key.sort()
    return int((key[1:] == key[:-1]).sum())


def k_core(users: Numbers, items: Numbers, k: int) -> Mask:
    """The largest set of interactions in which every user and every item has at least ``k``.

    Repeated interactions count. Work is proportional to the number of interactions, however long the chain of removals:
    only those of users and items that have just fallen below ``k`` are read, so each at most twice.
    """
    sides = (_Side(users), _Side(items))
    alive = np.ones(len(users), dtype=bool)
    falling = [np.flatnonzero((side.count > 0) & (side.count < k)) for side in sides]
    while len(falling[0]) or len(falling[1]):
        for one, other in ((0, 1), (1, 0)):
            fallen = [falling[other]]
            for removed in sides[one].interactions(falling[one]):
                removed = removed[alive[removed]]
                alive[removed] = False
                fallen.append(sides[other].remove(removed, k))
            falling[one], falling[other] = falling[one][:0], np.concatenate(fallen)
    return alive


class _Side:
    """Users or items, with the interactions of each and how many are left."""

    def __init__(self, nodes: Numbers) -> None:
        self.nodes = nodes
        self.count = np.bincount(nodes)
        self.offsets, self.order = grouped(nodes, len(self.count))

    def interactions(self, nodes: NDArray[np.int64]) -> Iterator[NDArray[Any]]:
        """The interactions of some nodes, in blocks."""
        offsets = np.concatenate(([0], np.cumsum(self.offsets[nodes + 1] - self.offsets[nodes], dtype=np.int64)))
        for first, last in row_blocks(offsets):
            starts = self.offsets[nodes[first:last]] - offsets[first:last]
            yield self.order[
                np.arange(offsets[first], offsets[last]) + np.repeat(starts, np.diff(offsets[first : last + 1]))
            ]

    def remove(self, interactions: NDArray[Any], k: int) -> NDArray[np.int64]:
        """Subtract interactions from the counts; returns the nodes that fell below ``k`` by it."""
        nodes, times = np.unique(self.nodes[interactions], return_counts=True)
        before = self.count[nodes]
        self.count[nodes] -= times
        return nodes[(before >= k) & (self.count[nodes] < k)].astype(np.int64)
