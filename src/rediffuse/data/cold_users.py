"""Users of a held-out subset who have no history: what a split says about them, and when nothing can be chosen.

A user without a history has no interaction before the subset. All of them get the same list, by popularity, whatever a
model has learned. In session data, where every id is active once, a split by time leaves nearly all users without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from rediffuse.data.histories import index_type
from rediffuse.errors import DataError

if TYPE_CHECKING:
    from rediffuse.data.subsets import Split, Task

SPLITS_WITH_HISTORIES = (
    "Use a split in which they have histories: split.sessions(data) or --split sessions (whole sessions or users are "
    "held out, and each item is predicted from those before it), split.global_time(data, targets='successive') or "
    "--split global-time --targets successive (the same after a point in time), or split.leave_one_out(data) or "
    "--split leave-one-out."
)

# Below these, a choice on the users with a history is hardly better than none.
FEW_USERS, FEW_SHARE = 20, 0.1


def without_history(split: Split, name: str) -> tuple[int, int]:
    """How many of those to recommend to in the subset ``name`` have no history, and how many there are."""
    interactions, truth = split.dataset.interactions, split.is_truth(name)
    known = split.is_known(name)
    if interactions.synthetic is not None:
        known &= ~interactions.synthetic
    before = np.zeros(len(known) + 1, dtype=index_type(len(known)))
    np.cumsum(known, out=before[1:])
    starts, stops = interactions.offsets[:-1], interactions.offsets[1:]
    if split.targets != "all":
        places = np.flatnonzero(truth)
        return int((before[places] == before[starts[interactions.owner_of(places)]]).sum()), len(places)
    targets = np.zeros(len(truth) + 1, dtype=index_type(len(truth)))
    np.cumsum(truth, out=targets[1:])
    chosen = targets[stops] > targets[starts]
    return int((before[stops] == before[starts])[chosen].sum()), int(chosen.sum())


def shares_text(split: Split) -> str | None:
    """The share of each held-out subset without a history, for a display; None if all have one."""
    found = {name: without_history(split, name) for name in ("valid", "test")}
    if not any(count for count, _ in found.values()):
        return None
    return ", ".join(f"{name} {count:,} of {total:,} ({share(count, total)})" for name, (count, total) in found.items())


def remark(split: Split) -> str | None:
    """A sentence on the users without a history in the held-out subsets; None if all have one."""
    found = {word: without_history(split, name) for name, word in (("valid", "validation"), ("test", "test"))}
    what = "targets" if split.targets == "successive" else "users"
    parts = [f"{count:,} of {total:,} {word} {what} ({share(count, total)})" for word, (count, total) in found.items()]
    if not any(count for count, _ in found.values()):
        return None
    text = f"Without a history, and so with one list by popularity for all: {' and '.join(parts)}."
    count, total = found["validation"]
    if total and count == total:
        return f"{text} Nothing can be chosen on such a validation subset. For session data use --split sessions."
    return text


def share(count: int, total: int) -> str:
    """A share as text; all and nothing only where it is exactly that."""
    if not total or count in (0, total):
        return "100 %" if count else "0 %"
    return (
        f"{min(max(100 * count / total, 0.1), 99.9):.{1 if count * 100 < total or count * 100 > 99 * total else 0}f} %"
    )


def users_text(counts: Mapping[str, int | float]) -> str:
    """What the metrics of a test are means over: users, or targets that are predicted one after the other."""
    users = f"{counts['users']:,} users"
    return f"{counts['targets']:,} targets of {users}" if "targets" in counts else users


def without_text(counts: Mapping[str, int | float]) -> str:
    """How many of these have no history."""
    total = int(counts.get("targets", counts["users"]))
    return f"{counts['cold_users']:,} ({share(int(counts['cold_users']), total)}) without a history"


def selection_remark(valid: Task) -> str | None:
    """A sentence on which users of a validation task select; None if all do, or there are none."""
    total = len(valid.users)
    count = total - int(valid.has_history.sum())
    what = "targets" if valid.by_target else "users"
    if not count:
        return None
    if count == total:
        return (
            f"None of the {total:,} validation {what} has a history, so nothing is chosen on them, and the "
            f"usual settings are kept. {SPLITS_WITH_HISTORIES}"
        )
    left = total - count
    few = f" So few decide little. {SPLITS_WITH_HISTORIES}" if left < FEW_USERS or left < FEW_SHARE * total else ""
    return (
        f"{count:,} of {total:,} validation {what} ({share(count, total)}) have no history. Weights and options are "
        f"chosen on the other {left:,}; both values are reported.{few}"
    )


def refuse_selection(valid: Task, what: str) -> None:
    """Refuse to choose on a validation task in which no user has a history.

    Args:
        valid: the validation task; one without users is not refused.
        what: what would be chosen, for example "the weights".

    Raises:
        DataError: no user has a history; the error names splits in which they have.
    """
    if len(valid.users) and not valid.has_history.any():
        raise DataError(
            f"None of the {len(valid.users):,} validation users has a history, so all of them get the same list by "
            f"popularity, whatever a model has learned, and {what} cannot be chosen on them.",
            SPLITS_WITH_HISTORIES,
        )
