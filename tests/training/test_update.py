"""`update` against a fresh fit to all interactions."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

import rediffuse as rd
from rediffuse import models
from rediffuse.batching.recency import DAY
from rediffuse.data.histories import Histories
from rediffuse.errors import ConfigError, DataError, RediffuseWarning, RunError
from rediffuse.models.base import TrainingData
from rediffuse.recommender import Recommender


def table(seed: int = 0, users: int = 40, items: int = 15, timed: bool = True) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    owners = np.repeat(np.arange(users), rng.integers(4, 12, users))
    times = np.sort(rng.integers(0, 300 * int(DAY), len(owners)))
    rng.shuffle(owners)
    item = (owners + rng.integers(0, 6, len(owners))) % items
    frame = pl.DataFrame({"user_id": owners, "item_id": item, "timestamp": times})
    return frame if timed else frame.drop("timestamp")


def dataset(frame):
    return rd.read_interactions(frame, time="timestamp" if "timestamp" in frame.columns else None)


@pytest.fixture(scope="module")
def whole():
    return table()


@pytest.fixture(scope="module")
def later(whole):
    """New interactions: of known users, of new users, and with new items."""
    cut = int(whole["timestamp"].max())  # pyright: ignore
    rows = [(0, 3, cut + 10), (0, 99, cut + 20), (77, 5, cut + 30), (77, 99, cut + 40), (12, 1, cut + 50)]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


def fresh(model, contents, histories, has_timestamps):
    """A model that is fitted to all interactions, with the options and in the numbering of the updated run."""
    made = type(model)(model.config, model.num_items, model.num_users)
    made.resolve(contents["resolved"])
    popularity = np.bincount(histories.items, minlength=model.num_items)
    made.fit(TrainingData(histories, len(histories), model.num_items, popularity, has_timestamps=has_timestamps))
    made.eval()
    made.prepare()
    return made


@pytest.mark.parametrize("name", ["theat", "transition", "heat", "itemknn"])
@pytest.mark.parametrize("neighbours", [None, 4])
def test_updating_is_fitting_to_all_interactions(name, neighbours, whole, later, tmp_path):
    if name in ("heat", "itemknn") and neighbours:
        pytest.skip("fitted again in any case")
    options = {"refit": True} | ({"neighbours": neighbours} if neighbours else {})
    run = rd.train(name, rd.split.leave_one_out(dataset(whole)), tmp_path / "run", config=options)
    before = Recommender.load(run.path)
    updated = rd.update(run, dataset(later), tmp_path / "updated")
    after = Recommender.load(updated.path)
    assert updated.config["updated_from"]["interactions"] == 5
    assert len(after.user_ids) == len(before.user_ids) + 1
    assert after.items["item_id"].to_list() == [*before.items["item_id"].to_list(), 99]
    # The histories are all interactions of the run, those held out included, and the new ones, in order of time.
    rows = whole.sort("user_id", "timestamp", maintain_order=True)
    expected = pl.concat([rows, later]).sort("user_id", "timestamp", maintain_order=True)
    numbers = {item: number for number, item in enumerate(after.items["item_id"].to_list())}
    groups = expected.group_by("user_id", maintain_order=True).agg("item_id", "timestamp")
    by_user = {user: items for user, items, _ in groups.iter_rows()}
    lists = [[numbers[item] for item in by_user[user]] for user in after.user_ids.to_list()]
    stored = after._histories
    assert [stored.row(user).tolist() for user in range(len(stored))] == lists
    assert after.items["train_count"].to_list() == np.bincount(stored.items).tolist()
    times = {user: moments for user, _, moments in groups.iter_rows()}
    flat = np.concatenate([times[user] for user in after.user_ids.to_list()])
    histories = Histories(stored.offsets, stored.items, flat)
    expected_scores = fresh(after.model, updated.config, histories, True).score(histories)
    torch.testing.assert_close(after.model.score(histories), expected_scores, rtol=1e-4, atol=1e-6)
    shown = after.recommend(users=[77, 0], k=3)
    assert set(shown["user_id"]) == {0, 77}


def test_an_update_changes_only_the_sums_of_changed_users(whole, later, tmp_path, monkeypatch):
    run = rd.train("theat", rd.split.none(dataset(whole)), tmp_path / "run")
    counted = []
    kind = models.model_class("theat")
    plain = kind.item_graphs

    def item_graphs(self, train):
        counted.append(len(train))
        return plain(self, train)

    monkeypatch.setattr(kind, "item_graphs", item_graphs)
    rd.update(run, dataset(later), tmp_path / "updated")
    assert counted == [3, 3]


def test_known_interactions_count_once(whole, later, tmp_path):
    run = rd.train("theat", rd.split.leave_one_out(dataset(whole)), tmp_path / "run")
    both = dataset(pl.concat([whole, later]))
    with pytest.warns(RediffuseWarning, match="are in the run already and were left out, for example user"):
        updated = rd.update(run, both, tmp_path / "updated")
    assert updated.config["data"]["interactions"] == len(whole) + len(later)  # also what was held out for the test
    with pytest.warns(RediffuseWarning), pytest.raises(DataError, match="None of the"):
        rd.update(updated, both, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_what_cannot_be_updated_is_refused(whole, later, tmp_path):
    split = rd.split.leave_one_out(dataset(whole))
    text = dataset(later.with_columns(pl.col("item_id").cast(pl.String)))
    run = rd.train("theat", split, tmp_path / "run")
    with pytest.raises(DataError, match=r"The item ids of .* are integers, and those of the new interactions are text"):
        rd.update(run, text, tmp_path / "out")
    with pytest.raises(DataError, match="was fitted to interactions with times"):
        rd.update(run, dataset(later.drop("timestamp")), tmp_path / "out")
    kept = rd.train("theat", split, tmp_path / "kept", config={"refit": False})
    with pytest.raises(RunError, match="has not learned from its validation interactions"):
        rd.update(kept, dataset(later), tmp_path / "out")
    neural = rd.train("gru4rec", split, tmp_path / "gru4rec", config={"epochs": 1, "embedding_size": 8})
    with pytest.raises(ConfigError, match="gru4rec is trained by gradient"):
        rd.update(neural, dataset(later), tmp_path / "out")
    with pytest.raises(RunError, match="is not empty"):
        rd.update(run, dataset(later), kept.path)
    with pytest.raises(RunError, match="has learned from all its interactions"):
        rd.evaluate(rd.update(run, dataset(later), tmp_path / "out"), split.dataset)
