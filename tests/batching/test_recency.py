"""Weights of interactions, against values computed by hand."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
import torch

from rediffuse.batching.matrix import weighted_bags
from rediffuse.batching.recency import check_weighting, events_since, interaction_weights, recent_popularity
from rediffuse.data.histories import Histories
from rediffuse.errors import DataError, RediffuseWarning

DAY, LATE = 86_400, 1_700_000_000  # seconds


def timed(rows: list[list[int]], times: list[list[int]]) -> Histories:
    return dataclasses.replace(Histories.from_lists(rows), times=np.concatenate(times).astype(np.int64))


def test_weights_by_order():
    rows = Histories.from_lists([[1, 2, 3, 4], [], [5]])
    assert interaction_weights(rows, "order") == pytest.approx([0.1, 0.4, 0.7, 1.0, 1.0])
    assert interaction_weights(rows, "order", weight_min=0.2, weight_max=0.5)[:4] == pytest.approx([0.2, 0.3, 0.4, 0.5])
    assert interaction_weights(rows, "none").tolist() == [1.0] * 5


@pytest.mark.parametrize(
    ("times", "low", "expected"),
    [
        ([0, 210 * DAY, 587 * DAY], 0.5, [0.5, 0.5 + 0.5 * 210 / 587, 1]),
        ([LATE, LATE + 1, LATE + 4], 0.0, [0, 0.25, 1]),  # seconds are not rounded
        ([7, 7, 7], 0.3, [1, 1, 1]),  # all at once: all recent
        ([9], 0.3, [1]),
        ([0, 10], 0.3, [0.3, 1]),
    ],
)
def test_weights_by_time(times, low, expected):
    rows = timed([list(range(len(times))), []], [times, []])
    assert interaction_weights(rows, "interval", weight_min=low) == pytest.approx(expected)


def test_weights_halve_with_the_interactions_that_follow():
    rows = Histories.from_lists([[1, 2, 3], [], [5]])
    assert events_since(rows).tolist() == [2, 1, 0, 0]
    assert interaction_weights(rows, "half_life_events", half_life=2.0) == pytest.approx([0.5, 2**-0.5, 1, 1])
    assert interaction_weights(rows, "half_life_events", half_life=1.0, weight_max=4.0).tolist() == [1, 2, 4, 4]


def test_weights_halve_with_the_days_before_the_last_interaction_of_the_row():
    rows = timed([[1, 2, 3], [], [5]], [[LATE, LATE + 4 * DAY, LATE + 6 * DAY], [], [0]])
    assert interaction_weights(rows, "half_life_days", half_life=2.0) == pytest.approx([1 / 8, 1 / 2, 1, 1])
    late = timed([[1, 2]], [[LATE, LATE + 1]])
    assert interaction_weights(late, "half_life_days", half_life=1 / DAY) == pytest.approx([0.5, 1])


def test_without_times_weights_are_by_order():
    rows = Histories.from_lists([[1, 2, 3]])
    by_order = interaction_weights(rows, "order")
    assert (interaction_weights(rows, "interval") == by_order).all()
    with pytest.warns(RediffuseWarning, match="no times"):
        assert (interaction_weights(rows, "half_life_days") == by_order).all()


def test_training_without_the_times_of_a_weighting_is_refused_or_warned_about():
    rows = Histories.from_lists([[1, 2, 3]])
    with pytest.raises(DataError, match=r"weighting=half_life_days needs the times[\s\S]*weighting=half_life_events"):
        check_weighting("half_life_days", rows, has_timestamps=False, option="weighting")
    with pytest.warns(RediffuseWarning, match="no times, so weighting=interval"):
        check_weighting("interval", rows, has_timestamps=False, option="weighting")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_weighting("half_life_days", timed([[1]], [[0]]), has_timestamps=True, option="weighting")
        check_weighting("interval", timed([[1]], [[0]]), has_timestamps=False, option="weighting")  # an order column
        check_weighting("half_life_events", rows, has_timestamps=False, option="weighting")


def test_a_repeated_item_has_its_latest_weight_in_a_bag():
    rows = Histories.from_lists([[3, 5, 3], [], [4]])
    weights = interaction_weights(rows, "half_life_events", half_life=1.0)
    items, offsets, counts, found = weighted_bags(rows, 6, weights, torch.device("cpu"))
    assert items.tolist() == [3, 5, 4]
    assert offsets.tolist() == [0, 2, 2]
    assert counts.tolist() == [2, 0, 1]
    assert found.tolist() == [1, 0.5, 1]


def test_recent_popularity_halves():
    rows = timed([[0, 1], [1]], [[LATE, LATE + 3 * DAY], [LATE + DAY]])
    assert recent_popularity(rows, 3, half_life=1.0) == pytest.approx([1 / 8, 1 + 1 / 4, 0])
