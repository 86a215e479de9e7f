"""Sentences about ids that the run does not know."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rediffuse.reranking import uncalibrated_remark


def remarks(counts: dict[str, int], answer: str = "they get popular items") -> list[str]:
    """Sentences about unknown ids, empty histories and filters; ``answer`` says what users without a history get."""
    found = []
    if counts.get("unknown_users"):
        found.append(
            f"{counts['unknown_users']} of {counts['users']} users are unknown; {answer}. Pass their histories."
        )
    if counts.get("unknown_items"):
        found.append(f"{counts['unknown_items']} items in the histories are not in the catalogue; they are skipped.")
    if counts.get("empty_histories"):
        found.append(f"{counts['empty_histories']} of {counts['users']} histories are empty; {answer}.")
    if counts.get("uncalibrated"):
        found.append(uncalibrated_remark(counts["uncalibrated"], counts["users"]))
    arguments = {"unknown_excluded": "items to exclude", "unknown_candidates": "candidates", "unknown_asked": "items"}
    for name, argument in arguments.items():
        if counts.get(name):
            found.append(f"{counts[name]} {argument} are not in the catalogue.")
    if "filter_left" in counts:
        left, of, k = (counts[name] for name in ("filter_left", "filter_of", "filter_k"))
        rest = (
            f"{left:,} of {of:,} items, fewer than k = {k:,}" if left else f"none of {of:,} items: all lists are empty"
        )
        found.append(f"The filter leaves {rest}.")
    return found


def held_out_remark(held_out: NDArray[np.bool_], updated: bool) -> str:
    """A sentence about the interactions (n,) bool that histories have, and the model has not learned from.

    Args:
        held_out: those that the split held out, and, if ``updated``, those that were added after the training.
    """
    if updated:
        return (
            f"Of the {len(held_out):,} interactions in the histories of this run, its split held out some and others "
            f"were added later: the model has not learned from {held_out.sum():,}."
        )
    return (
        f"The split of this run held out {held_out.sum():,} of {len(held_out):,} interactions. They are part of the "
        "histories that it recommends from, but the model has not learned from them."
    )
