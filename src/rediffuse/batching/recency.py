"""Recency: weights that fall with the age of an interaction, and the recent popularity of items."""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rediffuse.data.histories import Histories
from rediffuse.errors import DataError, RediffuseWarning

DAY = 86_400.0
# Half-life, in days, of the recent popularity that scores users without a history.
FALLBACK_HALF_LIFE = 30.0

InputWeighting = Literal["none", "order", "interval", "half_life_events", "half_life_days"]
# Those that read times.
BY_TIME = ("interval", "half_life_days")


def events_since(histories: Histories) -> NDArray[np.int64]:
    """(interactions,) how many interactions of the same row follow each one: 0 for the last."""
    return np.repeat(histories.offsets[1:], histories.lengths) - 1 - np.arange(len(histories.items))


def interaction_weights(
    histories: Histories,
    weighting: InputWeighting,
    *,
    weight_min: float = 0.1,
    weight_max: float = 1.0,
    half_life: float = 10.0,
    released: bool = False,
) -> NDArray[np.float32]:
    """(interactions,) the weight of each interaction in its user's row; later ones weigh at least as much.

    - none: 1.
    - order: from ``weight_min`` (oldest) to ``weight_max`` (latest), spread evenly over the row (T-DiffRec; Wang et
      al., SIGIR 2023, section 3.3).
    - interval: the same, in proportion to time (TI-DiffRec; Ma et al., AAAI 2024). Interactions that all happened at
      once have ``weight_max``. Without times, it is the order.
    - half_life_events: ``weight_max``, halved for every ``half_life`` interactions that follow in the row.
    - half_life_days: ``weight_max``, halved for every ``half_life`` days until the row's last interaction.

    Args:
        histories: the rows; for half_life_days with times in seconds since the epoch.
        weighting: the kind of weights.
        weight_min, weight_max: weights of a row's oldest and latest interaction; half-lives read only the second.
        half_life: in interactions or in days.
        released: under ``order``, give a user's only interaction ``weight_min`` as the released T-DiffRec does.

    Warns:
        RediffuseWarning: half_life_days, and the rows have no times; their weights are by order.
    """
    if weighting == "none":
        return np.ones(len(histories.items), dtype=np.float32)
    if weighting == "half_life_events":
        return (weight_max * np.exp2(-events_since(histories) / half_life)).astype(np.float32)
    if weighting == "half_life_days" and histories.times is not None:
        # Differences first: single precision holds seconds since 1970 to two minutes.
        age = histories.times[np.repeat(histories.offsets[1:], histories.lengths) - 1] - histories.times
        return (weight_max * np.exp2(-age.astype(np.float64) / (half_life * DAY))).astype(np.float32)
    if weighting == "half_life_days":
        warnings.warn(
            "These histories have no times, so their weights are by order, not by a half-life in days.",
            RediffuseWarning,
            stacklevel=2,
        )
    owners, lengths = histories.owners, histories.lengths
    if weighting == "interval" and histories.times is not None:
        since = (histories.times - histories.times[histories.offsets[owners]]).astype(np.float64)
        without_span = 1.0
    else:
        since = histories.positions.astype(np.float64)
        without_span = 0.0 if released else 1.0
    last = np.zeros(len(lengths))
    last[lengths > 0] = since[histories.offsets[1:][lengths > 0] - 1]
    span = last[owners]
    recency = np.divide(since, span, out=np.full(len(owners), without_span), where=span > 0)
    return (weight_min + recency * (weight_max - weight_min)).astype(np.float32)


def check_weighting(weighting: InputWeighting, histories: Histories, has_timestamps: bool, option: str) -> None:
    """Refuse training data without the times that a weighting needs.

    Args:
        weighting: the value of ``option``.
        histories: training interactions.
        has_timestamps: whether their times are seconds since the epoch.
        option: name of the option, for messages.

    Raises:
        DataError: the weights are by days, and the data have no timestamps.

    Warns:
        RediffuseWarning: the weights are by intervals, and the data have no times at all.
    """
    if weighting == "half_life_days" and not has_timestamps:
        raise DataError(
            f"{option}=half_life_days needs the times of interactions, and the data have none.",
            f"Use {option}=half_life_events, which needs only their order.",
        )
    if weighting == "interval" and histories.times is None:
        warnings.warn(
            f"The data have no times, so {option}=interval weights interactions by their order.",
            RediffuseWarning,
            stacklevel=3,
        )


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
