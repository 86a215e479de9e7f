"""Filters over events as flat arrays of user and item numbers; each returns a mask of what stays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from rediffuse.data.histories import index_type, row_blocks

Numbers = NDArray[np.int32]
Mask = NDArray[np.bool_]


def at_least(ratings: NDArray[np.float32], threshold: float) -> Mask:
    """Events rated ``threshold`` or higher."""
    return ratings >= np.float32(threshold)


def unique_pairs(users: Numbers, items: Numbers, which: Literal["first", "last"]) -> Mask:
    """The first or last event of each user with each item, in the order of the arrays."""
    key = users.astype(np.int64) * (int(items.max(initial=0)) + 1) + items
    keep = np.zeros(len(key), dtype=bool)
    if which == "first":
        keep[np.unique(key, return_index=True)[1]] = True
    else:
        keep[len(key) - 1 - np.unique(key[::-1], return_index=True)[1]] = True
    return keep


def count_repeats(users: Numbers, items: Numbers) -> int:
    """How many events have an earlier one of the same user with the same item."""
    key = users.astype(np.int64) * (int(items.max(initial=0)) + 1) + items
    key.sort()
    return int((key[1:] == key[:-1]).sum())


def grouped(nodes: Numbers, count: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Sort events by node in linear time (a counting sort, which scipy has as the turn from COO to CSR).

    Args:
        nodes: (events,) numbers below ``count``.

    Returns:
        (count + 1,) where the events of each node begin; (events,) the events, in their order within each node. Both
        int32 where that is enough.
    """
    events = np.arange(len(nodes), dtype=index_type(len(nodes)))
    marks = np.ones(len(nodes), dtype=np.int8)
    matrix = sparse.coo_array((marks, (nodes, events)), shape=(count, len(nodes))).tocsr()
    return matrix.indptr, matrix.indices


def k_core(users: Numbers, items: Numbers, k: int) -> Mask:
    """The largest set of events in which every user and every item has at least ``k`` events.

    Repeated events count. Work is proportional to the number of events, however long the chain of removals: only the
    events of users and items that have just fallen below ``k`` are looked at, so each at most twice.
    """
    sides = (_Side(users), _Side(items))
    alive = np.ones(len(users), dtype=bool)
    falling = [np.flatnonzero((side.count > 0) & (side.count < k)) for side in sides]
    while len(falling[0]) or len(falling[1]):
        for one, other in ((0, 1), (1, 0)):
            also = [falling[other]]
            for removed in sides[one].events(falling[one]):
                removed = removed[alive[removed]]
                alive[removed] = False
                also.append(sides[other].remove(removed, k))
            falling[one], falling[other] = falling[one][:0], np.concatenate(also)
    return alive


class _Side:
    """Users or items, with the events of each and how many are left."""

    def __init__(self, nodes: Numbers) -> None:
        self.nodes = nodes
        self.count = np.bincount(nodes)
        self.offsets, self.order = grouped(nodes, len(self.count))

    def events(self, nodes: NDArray[np.int64]) -> Iterator[NDArray[Any]]:
        """The events of some nodes, in blocks."""
        offsets = np.concatenate(([0], np.cumsum(self.offsets[nodes + 1] - self.offsets[nodes], dtype=np.int64)))
        for first, last in row_blocks(offsets):
            starts = self.offsets[nodes[first:last]] - offsets[first:last]
            yield self.order[
                np.arange(offsets[first], offsets[last]) + np.repeat(starts, np.diff(offsets[first : last + 1]))
            ]

    def remove(self, events: NDArray[Any], k: int) -> NDArray[np.int64]:
        """Count the events off; returns the nodes that fell below ``k`` by it."""
        touched, times = np.unique(self.nodes[events], return_counts=True)
        before = self.count[touched]
        self.count[touched] -= times
        return touched[(before >= k) & (self.count[touched] < k)].astype(np.int64)
