"""Histories in text: "a|b|c", "[1, 2, 3]", "1 2 3" and what other programs write, read with the ids of a run."""

from __future__ import annotations

from collections.abc import Iterable

from rediffuse.readers.item_lists import looks_bracketed, split_brackets
from rediffuse.recommender.bars import BarSplitter

# A bar is our own separator; the others count where ids of the run are between them.
_OTHERS = (",", ";", " ")


def split_history(text: str, item_ids: BarSplitter) -> list[str]:
    """The ids in ``text``, oldest first.

    A known id is never split. Brackets are those of a list. Else the ids are between bars; or between commas,
    semicolons or spaces, whichever yields the largest share of known ids.

    Raises:
        NoListError: text in brackets is no list of ids.
    """
    whole = text.strip()
    if not whole or item_ids.is_known(whole):
        return [whole] if whole else []
    if looks_bracketed(whole):
        return [str(one) for one in split_brackets(whole)]
    best = item_ids.split(whole)
    share = _share(best, item_ids)
    for separator in _OTHERS:
        if share == 1.0:
            break
        if separator not in whole and separator != " ":
            continue
        parts = whole.split() if separator == " " else [part.strip() for part in whole.split(separator)]
        parts = [part for part in parts if part]
        if (other := _share(parts, item_ids)) > share:
            best, share = parts, other
    return best


def _share(ids: Iterable[str], item_ids: BarSplitter) -> float:
    """The share of ids that the run knows."""
    known = [item_ids.is_known(one) for one in ids]
    return sum(known) / len(known) if known else 0.0
