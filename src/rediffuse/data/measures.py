"""What a data report measures of the interactions: lengths, repeats, duplicates, popularity and times."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rediffuse.data.histories import Histories, utc
from rediffuse.data.near_duplicates import LEAST_ITEMS, SIMILARITY, near_duplicates
from rediffuse.data.targets import seen_before

# The similarity from which near-duplicates are counted once more.
CLOSE = 0.8
# The items that hold this share of the interactions are the head; the others are the long tail.
HEAD = 0.8
DAY = 86_400


def gini_index(counts: NDArray[Any]) -> float:
    """Gini index of counts: 0 if all are equal, towards 1 if a few hold everything.

    With counts in ascending order c_1 .. c_n: ``sum over i of (2 i - n - 1) c_i / (n sum c)``.
    """
    ordered, size = np.sort(counts).astype(np.float64), len(counts)
    if not ordered.any():
        return 0.0
    return float(((2 * np.arange(1, size + 1) - size - 1) * ordered).sum() / (size * ordered.sum()))


def lengths_of(histories: Histories) -> dict[str, Any]:
    """The distribution of the lengths of histories, over the users with an interaction."""
    lengths = histories.lengths
    active = lengths[lengths > 0]
    quantiles = np.quantile(active, (0, 0.25, 0.5, 0.75, 0.9, 1)) if len(active) else np.zeros(6)
    names = ("shortest", "lower_quartile", "median", "upper_quartile", "ninth_decile", "longest")
    return {
        **dict(zip(names, map(float, quantiles), strict=True)),
        "mean": float(active.mean()) if len(active) else 0.0,
        "users_without_interactions": int((lengths == 0).sum()),
        "users_with_fewer_than_3": int((active < 3).sum()),
    }


def duplicates_of(histories: Histories) -> dict[str, Any]:
    """Users whose history equals, or nearly equals, that of another; short histories are left out.

    Equal histories have the same items in the same order.
    """
    long = np.flatnonzero(histories.lengths >= LEAST_ITEMS)
    groups = [count for count in Counter(histories.row(int(user)).tobytes() for user in long).values() if count > 1]
    similar = near_duplicates(histories)
    return {
        "identical": sum(groups),
        "identical_groups": len(groups),
        "near": int((similar > 0).sum()),
        "near_at_least_0.8": int((similar >= CLOSE).sum()),
        "similarity": SIMILARITY,
        "least_items": LEAST_ITEMS,
    }


def repeats_of(histories: Histories) -> dict[str, int]:
    """Interactions with an item that the user has had before, and the users who have one."""
    again = seen_before(histories)
    return {
        "interactions": int(again.sum()),
        "users": len(np.unique(histories.owner_of(np.flatnonzero(again)))),
    }


def popularity_of(histories: Histories, num_items: int) -> dict[str, Any]:
    """How interactions are distributed over items."""
    counts = np.zeros(num_items, dtype=np.int64)
    for _, rows in histories.blocks():
        counts += np.bincount(rows.items, minlength=num_items)
    ordered = np.sort(counts)[::-1]
    held, total = np.cumsum(ordered), int(counts.sum())

    def share_of_top(share: float) -> float:
        return float(held[math.ceil(share * len(counts)) - 1] / total)

    head = int(np.searchsorted(held, HEAD * total)) + 1
    return {
        "share_of_top_1_percent": share_of_top(0.01),
        "share_of_top_10_percent": share_of_top(0.1),
        "gini": gini_index(counts),
        "median": float(np.median(counts)),
        "most": int(ordered[0]),
        "items_once": int((counts == 1).sum()),
        "items_never": int((counts == 0).sum()),
        "long_tail": len(counts) - head,
    }


def times_of(histories: Histories, has_timestamps: bool) -> dict[str, Any] | None:
    """The range of times, and their ties; of an order column the ties alone. None without either.

    A tie is an interaction at the time of the one before it. Its place in the history is arbitrary.
    """
    times = histories.times
    if times is None or not len(times):
        return None
    tied = np.zeros(len(times), dtype=bool)
    tied[1:] = times[1:] == times[:-1]
    starts = histories.offsets[:-1][histories.lengths > 0]
    tied[starts] = False
    several = histories.offsets[1:][histories.lengths >= 2] - 1
    found: dict[str, Any] = {
        "ties": int(tied.sum()),
        "users_with_tied_end": int(tied[several].sum()),
        "users_with_two": len(several),
    }
    if has_timestamps:
        found |= {"first": utc(times.min()), "last": utc(times.max()), "whole_days": bool((times % DAY == 0).all())}
    return found
