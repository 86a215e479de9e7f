"""Sentences about ids that the run does not know."""

from __future__ import annotations


def remarks(counts: dict[str, int], answer: str = "they get popular items") -> list[str]:
    """Sentences about unknown ids and empty histories; ``answer`` says what users without a history get."""
    found = []
    if counts.get("unknown_users"):
        found.append(
            f"{counts['unknown_users']} of {counts['users']} users are unknown; {answer}. Pass their histories."
        )
    if counts.get("unknown_items"):
        found.append(f"{counts['unknown_items']} items in the histories are not in the catalogue; they are skipped.")
    if counts.get("empty_histories"):
        found.append(f"{counts['empty_histories']} of {counts['users']} histories are empty; {answer}.")
    arguments = {"unknown_excluded": "items to exclude", "unknown_candidates": "candidates", "unknown_asked": "items"}
    for name, argument in arguments.items():
        if counts.get(name):
            found.append(f"{counts[name]} {argument} are not in the catalogue.")
    return found
