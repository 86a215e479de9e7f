"""New items: ranked by their content, on data where the category decides."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

import rediffuse as rd
from rediffuse.errors import ConfigError, DataError, RediffuseWarning
from rediffuse.runs.run_folder import read_run

CATEGORIES, ITEMS, USERS = 4, 48, 120
MODELS = {
    "gru4rec": {"epochs": 8, "embedding_size": 16, "batch_size": 64, "learning_rate": 0.02},
    "bprmf": {"epochs": 40, "embedding_size": 16, "batch_size": 256, "learning_rate": 0.02},
    "theat": {},
    "heatrec": {"epochs": 8, "embedding_size": 16, "batch_size": 64, "learning_rate": 0.02},
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:The split of this run:rediffuse.errors.RediffuseWarning"),
    pytest.mark.filterwarnings("ignore:Of the 96. interactions:rediffuse.errors.RediffuseWarning"),
]


def category(item: int) -> str:
    return f"c{item % CATEGORIES}"


@pytest.fixture(scope="module")
def data():
    """Each user takes items of one category alone."""
    rng = np.random.default_rng(0)
    rows = [
        (user, int(item), time)
        for user in range(USERS)
        for time, item in enumerate(rng.permutation(np.arange(user % CATEGORIES, ITEMS, CATEGORIES))[:8])
    ]
    users, items, times = zip(*rows, strict=True)
    table = pl.DataFrame({"user_id": users, "item_id": items, "time": np.asarray(times) * 86400 + 1_600_000_000})
    described = pl.DataFrame({"item_id": range(ITEMS), "title": [f"item {n}" for n in range(ITEMS)]})
    described = described.with_columns(category=pl.Series([category(n) for n in range(ITEMS)]))
    return rd.read_interactions(table, time="time", items=described, item_features="category")


@pytest.fixture(scope="module", params=MODELS)
def run(request, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "run"
    return rd.train(request.param, rd.split.leave_one_out(data), folder, config=MODELS[request.param])


@pytest.fixture(scope="module")
def new():
    """One new item of each category; one has a category that training did not have."""
    return pl.DataFrame(
        {"item_id": range(1000, 1005), "title": list("abcde"), "category": ["c2", "c0", "c3", "c1", "unknown"]}
    )


def extended(run, new):
    with pytest.warns(RediffuseWarning, match="unknown"):
        return rd.Recommender.load(run).with_items(new)


def test_new_items_are_ranked_by_their_category(run, new):
    recommender = extended(run, new)
    lists = recommender.recommend(list(range(40)), k=len(recommender.items), new_items=0.0)
    fresh = lists.filter(pl.col("new") & (pl.col("item_id") >= 1000))
    first = fresh.group_by("user_id").agg(pl.col("item_id").sort_by("rank").first())
    wanted = {"c2": 1000, "c0": 1001, "c3": 1002, "c1": 1003}
    right = [found == wanted[f"c{user % CATEGORIES}"] for user, found in first.iter_rows()]
    assert np.mean(right) > 0.9
    # The new item of the user's category precedes most known items of other categories.
    own = pl.col("item_id") % CATEGORIES == pl.col("user_id") % CATEGORIES
    others = lists.filter((pl.col("item_id") < 1000) & ~own)
    above = [
        (others.filter(pl.col("user_id") == user)["rank"] > rank).mean()
        for user, rank in fresh.group_by("user_id").agg(pl.col("rank").min()).iter_rows()
    ]
    assert np.mean(above) > 0.9


def test_other_items_keep_their_scores(run, new):
    contents = read_run(run.path)
    rows, users = contents.histories.take(np.arange(20)), np.arange(20)
    before = contents.model.score(rows, users=users)
    after = extended(run, new).model.score(rows, users=users)[:, :ITEMS]
    # A prior adds log-softmaxes, whose sum over the items is another with more items: a constant of each user.
    shift = (after - before).mean(1, keepdim=True)
    torch.testing.assert_close(after - shift, before, atol=2e-3, rtol=1e-4)


def test_a_run_with_new_items_is_a_run(run, new, tmp_path):
    with pytest.warns(RediffuseWarning):
        expected = rd.Recommender.load(run).with_items(new).recommend([1, 2, 3], k=7)
    made, found = rd.add_items(run, new.rename({"item_id": "sku"}), tmp_path / "more", item="sku")
    assert (found.added, found.repeated) == (5, 0)
    recommender = rd.Recommender.load(made)
    assert recommender.recommend([1, 2, 3], k=7).equals(expected)
    assert recommender.items["title"].tail(2).to_list() == ["d", "e"]
    assert "5 were added after the training" in (made.path / "README.md").read_text(encoding="utf-8")
    again, _ = rd.add_items(made, new.with_columns(item_id=pl.col("item_id") + 100), tmp_path / "yet_more")
    assert len(rd.Recommender.load(again).items) == ITEMS + 10


def test_histories_and_items_can_be_added_in_turn(run, new, tmp_path):
    later = pl.DataFrame({"user_id": [1, 900], "item_id": [2, 5], "time": [1_700_000_000, 1_700_000_060]})
    live, _ = rd.update_histories(run, later, tmp_path / "live", time="time")
    both, _ = rd.add_items(live, new, tmp_path / "both")
    recommender = rd.Recommender.load(both)
    with pytest.warns(RediffuseWarning, match="unknown"):
        in_memory = rd.Recommender.load(run).with_histories(later, time="time").with_items(new)
    expected = in_memory.recommend([1, 2, 900], k=8)
    assert recommender.recommend([1, 2, 900], k=8).equals(expected)
    assert not set(expected.filter(user_id=900)["item_id"]) & {5}

    # A new item that is bought is part of a history, and is not recommended again.
    bought = pl.DataFrame({"user_id": [1], "item_id": [1003], "time": [1_700_000_090]})
    after, found = rd.update_histories(both, bought, tmp_path / "after", time="time")
    assert (found.added, len(found.unknown_items)) == (1, 0)
    lists = rd.Recommender.load(after).recommend([1], k=ITEMS + 5)
    assert 1003 not in lists["item_id"].to_list()
    assert 1001 in lists["item_id"].to_list()


def test_a_share_of_the_list_can_be_new(run, new):
    recommender = extended(run, new)
    users = list(range(20))
    plain = recommender.recommend(users, k=6)
    shared = recommender.recommend(users, k=6, new_items=0.34)
    every = recommender.recommend(users, k=len(recommender.items))
    for user in users:
        rows = [frame.filter(pl.col("user_id") == user) for frame in (plain, shared, every)]
        known = [item for item in rows[2]["item_id"] if item < 1000]
        best_new = [item for item in rows[2]["item_id"] if item >= 1000]
        count = max(3, int(rows[0]["new"].sum()))  # 0.34 * 6, rounded up
        assert set(rows[1]["item_id"]) == {*known[: 6 - count], *best_new[:count]}
        assert rows[1]["score"].is_sorted(descending=True)
        assert rows[1]["new"].to_list() == [item >= 1000 for item in rows[1]["item_id"]]


def test_what_cannot_be_added_is_refused(run, new, data, tmp_path):
    recommender = rd.Recommender.load(run)
    with pytest.raises(ConfigError, match="no new items"):
        recommender.recommend([1], new_items=0.5)
    with pytest.raises(DataError, match="category"):
        recommender.with_items(new.drop("category"))
    with pytest.raises(DataError, match="has all 3 items"):
        recommender.with_items(data.items.head(3))
    with pytest.raises(DataError, match=r"'x'[\s\S]*ids"):
        recommender.with_items(new.with_columns(item_id=pl.lit("x")))
    with pytest.warns(RediffuseWarning, match="does not have were left out: colour"):
        recommender.with_items(new.with_columns(colour=pl.lit("red")))
    with pytest.warns(RediffuseWarning, match="2 rows are about items that the run has already"):
        recommender.with_items(pl.concat((data.items.head(2), new.head(2).select(data.items.columns))))


def test_a_model_without_content_is_refused(data, new, tmp_path):
    with pytest.warns(RediffuseWarning, match="itemknn does not read the declared features"):
        run = rd.train("itemknn", rd.split.leave_one_out(data), tmp_path / "run")
    with pytest.raises(ConfigError, match="itemknn cannot rank new items"):
        rd.Recommender.load(run).with_items(new)
