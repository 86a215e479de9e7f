"""Target interactions in splits: which interactions are truth, and how many of these nothing new can predict.

Where a dataset names target events (`rediffuse.data.histories.Histories.target`), only those are truth in validation
and test. Histories keep all interactions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rediffuse.data.histories import Histories

if TYPE_CHECKING:
    from rediffuse.data.subsets import Split


def last_targets(histories: Histories, before: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """(users,) position in its row of the last target interaction of each user, -1 without one.

    Args:
        histories: with targets; without, all interactions are targets.
        before: (users,) only positions below these count.
    """
    found = np.full(len(histories), -1, dtype=np.int64)
    for first, rows in histories.blocks():
        owners, positions = rows.owners, rows.positions
        chosen = np.ones(len(owners), dtype=bool) if rows.target is None else rows.target.copy()
        if before is not None:
            chosen &= positions < before[first + owners]
        # Positions grow within a row, so the last assignment is the largest.
        found[first + owners[chosen]] = positions[chosen]
    return found


def seen_before(histories: Histories) -> NDArray[np.bool_]:
    """(interactions,) whether the user has an earlier interaction with the same item."""
    seen = np.zeros(len(histories.items), dtype=bool)
    for first, rows in histories.blocks():
        start = histories.offsets[first]
        key = rows.owners * (int(rows.items.max(initial=0)) + 1) + rows.items
        again = np.ones(len(key), dtype=bool)
        again[np.unique(key, return_index=True)[1]] = False
        seen[start : start + len(key)] = again
    return seen


def seen_share(split: Split, name: str) -> tuple[int, int]:
    """Target interactions to predict in a subset, and how many of them are about an item of the user's history."""
    task = split.task("valid" if name == "valid" else "test")
    size = split.dataset.num_items
    truth = task.truth.owners * size + task.truth.items
    history = np.unique(task.histories.owners * size + task.histories.items)
    return len(truth), int(np.isin(truth, history).sum())


def remark(split: Split) -> str | None:
    """A sentence on what targets change in a split; None for a dataset without targets."""
    if split.dataset.interactions.target is None:
        return None
    truth, seen = seen_share(split, "test")
    inside = split.sizes()["test"]
    sentence = f"Only target interactions are truth: {truth:,} of {inside:,} interactions in the test subset"
    valid = int(split.is_truth("valid").sum())
    sentence += f", {valid:,} of {split.sizes()['valid']:,} in validation."
    if not valid:
        sentence += " So nothing can be chosen on validation data."
    if seen:
        sentence += (
            f" {seen:,} of the {truth:,} ({seen / truth:.0%}) are about an item that the user's history has already; "
            "with seen items filtered (metrics with /unseen), these cannot be predicted."
        )
    return sentence
