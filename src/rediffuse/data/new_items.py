"""Items that are new in a held-out subset: those without any training interaction. What a split says about them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rediffuse.data.cold_users import share

if TYPE_CHECKING:
    from rediffuse.data.subsets import Split


def never_trained(split: Split, name: str) -> tuple[int, int, int]:
    """How many interactions to predict in the subset ``name`` are with new items, how many there are, how many items.

    Returns:
        Interactions to predict with items that have no training interaction; all that are to be predicted; the number
        of these items. Synthetic interactions do not make an item known.
    """
    wanted = split.item_counts(split.is_truth(name))
    new = wanted[split.train_counts() == 0]
    return int(new.sum()), int(wanted.sum()), int((new > 0).sum())


def shares_text(split: Split) -> str | None:
    """The share of what is to be predicted in each held-out subset that is with new items; None if there is none."""
    found = {name: never_trained(split, name) for name in ("valid", "test")}
    if not any(count for count, _, _ in found.values()):
        return None
    return ", ".join(
        f"{name} {count:,} of {total:,} interactions to predict ({share(count, total)})"
        for name, (count, total, _) in found.items()
    )


def remark(split: Split) -> str | None:
    """A sentence on the new items in the test subset; None if there are none."""
    count, total, items = never_trained(split, "test")
    if not count:
        return None
    return (
        f"New items: {count:,} of {total:,} interactions to predict in the test subset ({share(count, total)}) are "
        f"with {items:,} items that have no training interaction."
    )
