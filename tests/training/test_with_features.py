"""Runs that have learned from item features: updated, refitted, tuned."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

import rediffuse as rd
from rediffuse.errors import ConfigError, DataError, RediffuseWarning, RunError
from rediffuse.models.base import TrainingData
from rediffuse.runs.item_features import read_encoder
from rediffuse.runs.run_folder import read_run

CATEGORIES, ITEMS, USERS, DAY = 4, 40, 80, 86_400
SMALL = {"epochs": 2, "embedding_size": 8, "batch_size": 64, "precision": "fp32"}
pytestmark = [
    pytest.mark.filterwarnings("ignore:The split of this run:rediffuse.errors.RediffuseWarning"),
    pytest.mark.filterwarnings("ignore:80 interactions that the split:rediffuse.errors.RediffuseWarning"),
    pytest.mark.filterwarnings("ignore:New items:rediffuse.errors.RediffuseWarning"),
    pytest.mark.filterwarnings("ignore:.*does not read the declared features:rediffuse.errors.RediffuseWarning"),
    pytest.mark.filterwarnings("ignore:The default was never beaten:rediffuse.errors.RediffuseWarning"),
]


def described(ids) -> pl.DataFrame:
    ids = list(ids)
    return pl.DataFrame(
        {
            "item_id": ids,
            "category": [f"c{item % CATEGORIES}" for item in ids],
            "price": [float(item % 7) for item in ids],
        }
    )


@pytest.fixture(scope="module")
def data():
    """Each user takes items of one category."""
    rng = np.random.default_rng(0)
    rows = [
        (user, int(item), 1_600_000_000 + DAY * day)
        for user in range(USERS)
        for day, item in enumerate(rng.permutation(np.arange(user % CATEGORIES, ITEMS, CATEGORIES))[:6])
    ]
    table = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    features = "category,price:number"
    return rd.read_interactions(table, time="timestamp", items=described(range(ITEMS)), item_features=features)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("theat") / "run"
    return rd.train("theat", rd.split.leave_one_out(data), folder, config={"refit": True, "content_weight": 0.1})


def later(*rows, items=None) -> rd.Dataset:
    table = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    return rd.read_interactions(table, time="timestamp", items=items)


NOW = 1_600_000_000 + 30 * DAY
# New users: one takes a new item alone, so no shared user and no transition leads to it.
NEWER = ((500, 1001, NOW), (501, 1002, NOW + 5), (501, 3, NOW + 9), (7, 11, NOW + 12))


def test_an_update_reaches_a_new_item_by_its_content(run, tmp_path):
    updated = rd.update(run, later(*NEWER, items=described([1001, 1002, 3, 11])), tmp_path / "updated")
    recommender = rd.Recommender.load(updated)
    explained = recommender.explain([1001], history=[1, 5])
    assert explained["part"].unique().sort().to_list() == ["content", "recent popularity"]
    scores = recommender.recommend(histories=[[1, 5], [2, 6]], k=100).filter(item_id=1001)
    assert scores["score"][0] > 10 * scores["score"][1]  # 1001 is of the category of 1 and 5

    # The content is that of a fit to all interactions, with the encoder of the run.
    contents = read_run(updated.path)
    encoder = read_encoder(contents)
    assert encoder is not None
    assert encoder.settings() == read_encoder(read_run(run.path)).settings()  # pyright: ignore
    numbers = contents.items["item_id"].to_list()
    whole = type(contents.model)(contents.model.config, len(numbers), len(contents.user_ids))
    whole.resolve(contents.config["resolved"])
    counts = np.bincount(contents.histories.items, minlength=len(numbers))
    content = encoder.encode(described(numbers))
    whole.fit(
        TrainingData(
            contents.histories, len(contents.user_ids), len(numbers), counts, has_timestamps=True, content=content
        )
    )
    whole.eval()
    whole.prepare()
    expected = whole.score(contents.histories)
    torch.testing.assert_close(contents.model.score(contents.histories), expected, rtol=1e-4, atol=1e-6)

    # And further items can be added to it.
    grown, _ = rd.add_items(updated, described([2001]), tmp_path / "grown")
    assert grown.config["data"]["items"] == len(numbers) + 1


def test_an_update_without_an_item_table_keeps_what_is_known_and_says_what_is_not(run, tmp_path):
    with pytest.warns(RediffuseWarning, match=r"New items: .*'category' is missing in 2 of 2 rows"):
        updated = rd.update(run, later(*NEWER), tmp_path / "bare")
    table = read_run(updated.path).item_table
    assert table is not None
    assert table["category"].to_list() == [f"c{item % CATEGORIES}" for item in range(ITEMS)] + [None, None]
    # A table with titles alone takes nothing away either.
    titles = pl.DataFrame({"item_id": [3, 11, 1001, 1002], "title": ["three", "eleven", "new", "newer"]})
    with pytest.warns(RediffuseWarning, match="New items"):
        updated = rd.update(run, later(*NEWER, items=titles), tmp_path / "titled")
    table = read_run(updated.path).item_table
    assert table is not None
    assert table["category"].head(ITEMS).to_list() == [f"c{item % CATEGORIES}" for item in range(ITEMS)]
    assert table.filter(item_id=3)["title"].to_list() == ["three"]


def test_items_that_were_added_are_updated_like_the_others(run, tmp_path):
    grown, _ = rd.add_items(run, described([1001]), tmp_path / "grown")
    bought = later((500, 1001, NOW), (500, 5, NOW + 60))
    updated = rd.update(grown, bought, tmp_path / "updated")
    recommender = rd.Recommender.load(updated)
    assert recommender.items.filter(item_id=1001)["train_count"].to_list() == [1]
    parts = recommender.explain([1001], history=[5])["part"].unique()
    assert {"content", "shared users"} <= set(parts)
    assert "added after the training" not in (updated.path / "README.md").read_text(encoding="utf-8")


def test_a_run_with_added_items_is_not_tested_on_the_data(run, data, tmp_path):
    grown, _ = rd.add_items(run, described([1001]), tmp_path / "grown")
    with pytest.raises(RunError, match=r"has 1 items that were added after its training[\s\S]*run;"):
        rd.evaluate(grown, data)


def test_theat_always_keeps_a_road_to_new_items_unless_it_is_closed(data, tmp_path):
    """Here the content of known items says nothing that shared users do not say, so the least weight is best."""
    split = rd.split.leave_one_out(data)
    chosen = rd.train("theat", split, tmp_path / "chosen")
    assert chosen.config["resolved"]["settings"]["content_weight"] > 0
    recommender = rd.Recommender.load(chosen).with_items(described(range(1000, 1004)))
    lists = recommender.recommend(list(range(USERS)), k=ITEMS + 4).filter(pl.col("item_id") >= 1000)
    first = lists.group_by("user_id").agg(pl.col("item_id").sort_by("rank").first())
    assert (first["item_id"] % CATEGORIES == first["user_id"] % CATEGORIES).mean() > 0.9
    closed = rd.train("theat", split, tmp_path / "closed", config={"content_weight": 0.0})
    with pytest.raises(ConfigError, match="theat cannot rank new items in this run"):
        rd.Recommender.load(closed).with_items(described([1000]))


@pytest.mark.parametrize("asked", [{"history": [1, 5, 9]}, {"user": 3}])
def test_explanations_with_content_add_up_to_the_scores(data, asked, tmp_path):
    config = {"content_weight": 0.5, "seen_weight": 1.0}
    made = rd.train("theat", rd.split.leave_one_out(data), tmp_path / "run", config=config)
    recommender = rd.Recommender.load(made).with_items(described([1001, 1002]))
    users = {"users": [3]} if "user" in asked else {"histories": [asked["history"]]}
    lists = recommender.recommend(**users, k=ITEMS + 2, filter_seen=False, explain=True)
    explained = recommender.explain(lists["item_id"], **asked)
    sums = lists.join(explained.group_by("item_id").agg(pl.col("contribution").sum()), on="item_id", how="left")
    np.testing.assert_allclose(sums["contribution"].fill_null(0), sums["score"], rtol=1e-5)
    because = lists["because"].list.eval(pl.element().struct.field("contribution")).list.sum()
    np.testing.assert_allclose(because, lists["score"], rtol=1e-5)
    assert (explained.filter(part="content")["contribution"] > 0).any()


@pytest.mark.parametrize("model", ["theat", "bprmf"])
def test_a_refit_has_the_features(model, data, tmp_path):
    config = SMALL if model == "bprmf" else None
    chosen = rd.train(model, rd.split.leave_one_out(data), tmp_path / "chosen", config=config)
    live = rd.refit(chosen, data, tmp_path / "live")
    assert rd.Recommender.load(live).with_items(described([1001])).items["item_id"].to_list()[-1] == 1001
    assert live.config["data"]["item_features"] == chosen.config["data"]["item_features"]


def test_a_refit_with_other_features_is_refused(run, data, tmp_path):
    with pytest.raises(DataError, match=r"category:category, price:number, and the data declare no item features"):
        rd.refit(run, data.with_features([]), tmp_path / "bare")
    with pytest.raises(DataError, match=r"and the data declare the item features category:category\."):
        rd.refit(run, data.with_features("category"), tmp_path / "fewer")
    plain = rd.train("theat", rd.split.leave_one_out(data.with_features([])), tmp_path / "plain")
    with pytest.raises(DataError, match="has learned from no item features"):
        rd.refit(plain, data, tmp_path / "more")
    off = rd.train("theat", rd.split.leave_one_out(data), tmp_path / "off", config={"item_features": False})
    rd.refit(off, data.with_features([]), tmp_path / "still_off")


def test_a_study_tunes_with_the_features(data, tmp_path):
    pytest.importorskip("optuna")
    split = rd.split.leave_one_out(data)
    study = rd.tune("bprmf", split, tmp_path / "study", trials=2, config=SMALL | {"epochs": 1})
    best = rd.train("bprmf", split, tmp_path / "run", config=study.best_config)
    assert best.validation is not None
    assert best.validation[best.config["config"]["metric"]] == pytest.approx(study.best_value)
    rd.Recommender.load(best).with_items(described([1001]))
