"""Recency: weights that fall with the age of an interaction, and the recent popularity of items."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rediffuse.data.histories import Histories

DAY = 86_400.0
# Half-life, in days, of the recent popularity that scores users without a history.
FALLBACK_HALF_LIFE = 30.0


def events_since(histories: Histories) -> NDArray[np.int64]:
    """(interactions,) how many interactions of the same row follow each one: 0 for the last."""
    return np.repeat(histories.offsets[1:], histories.lengths) - 1 - np.arange(len(histories.items))


def recent_popularity(
    histories: Histories, num_items: int, half_life: float, now: float | None = None
) -> NDArray[np.float64]:
    """(num_items,) popularity in which the weight of an interaction halves every ``half_life`` days.

    Args:
        histories: with times in seconds since the epoch.
        num_items: size of the catalogue.
        half_life: in days.
        now: the time at which an interaction counts fully, in seconds; None: the latest of ``histories``.
    """
    assert histories.times is not None
    if not len(histories.items):
        return np.zeros(num_items)
    latest = float(histories.times.max()) if now is None else now
    popularity = np.zeros(num_items)
    for _, rows in histories.blocks():
        assert rows.times is not None
        weights = np.exp2((rows.times.astype(np.float64) - latest) / (half_life * DAY))
        popularity += np.bincount(rows.items, weights=weights, minlength=num_items)
    return popularity
