"""Recent popularity, and the choice of its half-life."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from tests.fitting import training_data

import rediffuse as rd
from rediffuse.data.histories import Histories
from rediffuse.errors import DataError
from rediffuse.models.baselines.popularity import Popularity
from rediffuse.models.baselines.recentpop import HALF_LIVES, RecentPopularity, RecentPopularityConfig
from rediffuse.testing import synthetic_interactions

DAY = 86_400


def trends(users: int = 400, days: int = 200) -> rd.Dataset:
    """One interaction a day and user; each item is the fashion for ten days, and item 0 is taken every third day."""
    data = synthetic_interactions()
    day = np.tile(np.arange(days), users).reshape(users, days)[:, ::20] + np.arange(users)[:, None] % 20
    items = np.where(np.arange(users)[:, None] % 3 == 0, 0, 1 + day // 10).astype(np.int32)
    interactions = Histories(
        np.arange(users + 1) * items.shape[1], items.ravel(), (day.ravel() * DAY + 10**9).astype(np.int64)
    )
    ids = [type(data.item_ids)("id", range(count)) for count in (users, int(items.max()) + 1)]
    return dataclasses.replace(
        data, interactions=interactions, user_ids=ids[0], item_ids=ids[1], items=None, title=None, users=None
    )


def timed(rows: list[list[int]], days: list[list[float]]) -> Histories:
    times = (np.concatenate(days) * DAY).astype(np.int64)
    return dataclasses.replace(Histories.from_lists(rows), times=times)


def test_weights_halve():
    rows = timed([[0, 1], [1, 2], []], [[0, 4], [2, 3], []])
    model = RecentPopularity(RecentPopularityConfig(half_life=2.0), 4)
    model.fit(dataclasses.replace(training_data(rows, 4), has_timestamps=True))
    model.resolve({})
    expected = [2**-2, 1 + 2**-1, 2**-0.5, 0]
    for history in ([[0]], [[2, 1]]):
        assert model.score(Histories.from_lists(history))[0].tolist() == pytest.approx(expected)
    # Also users without a history, who get a half-life of their own from other models.
    assert model.score(Histories.from_lists([[]]))[0].tolist() == pytest.approx(expected)


def test_validation_chooses_the_half_life(tmp_path):
    data = trends()
    split = rd.split.global_time(data)
    run = rd.train("recentpop", split, tmp_path / "run")
    found = json.loads((run.path / "config.json").read_text())["resolved"]
    curve = found["metric_by_half_life"]
    assert list(curve) == ["1", "3", "10", "30", "100", "300", "inf"]
    assert curve[found["half_life"]] == max(curve.values()) > curve["inf"]
    # Every entry of the curve is what a run with this half-life has.
    for half_life in ("3", "100"):
        fixed = rd.train("recentpop", split, tmp_path / half_life, config={"half_life": float(half_life)})
        assert fixed.config["resolved"] == {}
        assert fixed.validation["ndcg@10"] == pytest.approx(curve[half_life])
    popular = rd.train("popularity", split, tmp_path / "popular")
    assert popular.validation["ndcg@10"] == pytest.approx(curve["inf"])
    assert run.validation["ndcg@10"] == pytest.approx(curve[found["half_life"]])

    # It is fitted again to the validation interactions, with the half-life that was chosen.
    assert run.config["training"]["refitted"]
    model = rd.Recommender.load(run.path).model
    expected = RecentPopularity(RecentPopularityConfig(half_life=float(found["half_life"])), data.num_items)
    later = dataclasses.replace(training_data(split.before_test(), data.num_items), has_timestamps=True)
    expected.fit(later)
    rows = Histories.from_lists([[1], []])
    assert torch.equal(model.score(rows), expected.score(rows))
    assert not torch.equal(model.score(rows)[0], model.recent[HALF_LIVES.index(300.0)])


def test_without_timestamps_it_is_refused(tmp_path):
    split = rd.split.leave_one_out(dataclasses.replace(synthetic_interactions(), has_timestamps=False))
    with pytest.raises(DataError, match=r"recentpop needs the times[\s\S]*Use popularity"):
        rd.train("recentpop", split, tmp_path / "run")


def test_popularity_gives_strangers_the_same_list():
    rows = timed([[0, 0, 1]], [[0, 1, 900]])
    model = Popularity(Popularity.Config(), 3)
    model.fit(dataclasses.replace(training_data(rows, 3), has_timestamps=True))
    assert model.score(Histories.from_lists([[], [1]])).tolist() == [[2, 1, 0]] * 2
