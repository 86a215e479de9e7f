"""Filters over events as flat arrays of user and item numbers; each returns a mask of what stays."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

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


def k_core(users: Numbers, items: Numbers, k: int) -> Mask:
    """The largest set of events in which every user and every item has at least ``k`` events.

    Repeated events count. Work is proportional to the number of events, however long the chain of removals:
    each round looks only at the events of users and items that have just fallen below ``k``.
    """
    sides = [_Side(users), _Side(items)]
    alive = np.ones(len(users), dtype=bool)
    falling = [np.flatnonzero((side.count > 0) & (side.count < k)) for side in sides]
    while len(falling[0]) or len(falling[1]):
        removed = np.concatenate([side.events(nodes) for side, nodes in zip(sides, falling, strict=True)])
        removed = np.unique(removed[alive[removed]])
        alive[removed] = False
        falling = [side.remove(removed, k) for side in sides]
    return alive


class _Side:
    """Users or items, with the events of each and how many are left."""

    def __init__(self, nodes: Numbers) -> None:
        self.nodes = nodes
        self.count = np.bincount(nodes)
        self.offsets = np.concatenate(([0], np.cumsum(self.count)))
        self.order = np.argsort(nodes, kind="stable")

    def events(self, nodes: NDArray[np.int64]) -> NDArray[np.int64]:
        lengths = self.offsets[nodes + 1] - self.offsets[nodes]
        starts = np.repeat(self.offsets[nodes] - (np.cumsum(lengths) - lengths), lengths)
        return self.order[np.arange(lengths.sum()) + starts]

    def remove(self, events: NDArray[np.int64], k: int) -> NDArray[np.int64]:
        """Count the events off; returns the nodes that fell below ``k`` by it."""
        touched, times = np.unique(self.nodes[events], return_counts=True)
        before = self.count[touched]
        self.count[touched] -= times
        return touched[(before >= k) & (self.count[touched] < k)].astype(np.int64)
