"""Known users are recommended to from all their interactions, those that the split held out included."""

from __future__ import annotations

import warnings

import polars as pl
import pytest

import rediffuse as rd
from rediffuse.errors import RediffuseWarning
from rediffuse.runs.run_folder import read_run


def shop() -> pl.DataFrame:
    rows = [(f"u{user}", f"i{(user * 3 + step) % 20}", 86_400 * step) for user in range(20) for step in range(6)]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "time"], orient="row")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    items = pl.DataFrame({"item_id": [f"i{item}" for item in range(20)], "price": range(20), "kind": ["a", "b"] * 10})
    data = rd.read_interactions(shop(), time="time", items=items)
    return rd.train("itemknn", rd.split.leave_one_out(data), tmp_path_factory.mktemp("runs") / "itemknn")


def test_no_held_out_item_is_recommended(run):
    recommender = rd.Recommender.load(run)
    with pytest.warns(RediffuseWarning, match=r"held out 20 of 120 interactions"):
        found = recommender.recommend(users=[f"u{user}" for user in range(20)], k=14)
    assert len(found) == 20 * 14  # all items but the six of the history
    seen = shop().select("user_id", "item_id")
    assert not len(found.join(seen, on=["user_id", "item_id"], how="inner"))


def test_the_remark_is_made_once_and_only_for_known_users(run):
    recommender = rd.Recommender.load(run)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RediffuseWarning)
        recommender.recommend(histories=[["i1"]])
    with pytest.warns(RediffuseWarning, match="held out"):
        recommender.recommend(users=["u1"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", RediffuseWarning)
        recommender.recommend(users=["u1"])


def test_the_model_has_not_learned_from_what_was_held_out(run):
    contents = read_run(run.path)
    assert contents.held_out.sum() == 20
    assert contents.before_test.lengths.tolist() == [5] * 20
    assert contents.items["train_count"].sum() == 80  # without validation and test
    assert run.config["data"]["histories_end"] == "1970-01-06T00:00:00+00:00"


def test_the_item_table_goes_into_the_run(run):
    table = rd.Recommender.load(run).item_table
    assert table.columns == ["item_id", "price", "kind"]
    assert table["item_id"].to_list() == rd.Recommender.load(run).items["item_id"].to_list()
    assert table.filter(pl.col("item_id") == "i7")["price"].item() == 7


def test_updating_keeps_and_extends_the_item_table(run, tmp_path):
    options = {"refit": True}
    items = pl.DataFrame({"item_id": [f"i{item}" for item in range(20)], "price": range(20)})
    data = rd.read_interactions(shop(), time="time", items=items)
    first = rd.train("itemknn", rd.split.leave_one_out(data), tmp_path / "first", config=options)
    later = pl.DataFrame({"user_id": ["u1", "u1"], "item_id": ["new", "i3"], "time": [86_400 * 9, 86_400 * 8]})
    described = pl.DataFrame({"item_id": ["new", "i3"], "price": [99, 33]})
    updated = rd.update(first, rd.read_interactions(later, time="time", items=described), tmp_path / "second")
    table = rd.Recommender.load(updated).item_table
    prices = dict(table.select("item_id", "price").iter_rows())
    assert prices["new"] == 99
    assert (prices["i3"], prices["i4"]) == (33, 4)
    assert updated.config["data"]["histories_end"] == "1970-01-10T00:00:00+00:00"
