"""Frames come in as polars, pandas or pyarrow, and recommendations go out in the same library."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import rediffuse as rd
from rediffuse.errors import ConfigError
from rediffuse.frames import as_column, as_kind, kind_of

USERS, HISTORIES = ["u3", "u1"], [["i3", "i4"], ["i7"]]
FRAMES = {"polars": pl.DataFrame, "pandas": pd.DataFrame, "pyarrow": pa.Table}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    rows = [(f"u{user}", f"i{(user + step) % 20}", step) for user in range(20) for step in range(6)]
    items = pl.DataFrame({"item_id": [f"i{item}" for item in range(19)], "title": [f"Film {i}" for i in range(19)]})
    table = pl.DataFrame(rows, schema=["user_id", "item_id", "time"], orient="row")
    split = rd.split.leave_one_out(rd.read_interactions(table, time="time", items=items))
    out = tmp_path_factory.mktemp("runs")
    rd.train("itemknn", split, out / "itemknn")
    options = {"embedding_size": 8, "epochs": 1, "blocks": 1, "batch_size": 64, "diffusion_steps": 4}
    rd.train("diffurec", split, out / "diffurec", config=options)
    return out


@pytest.fixture(scope="module")
def recommender(folder):
    return rd.Recommender.load(folder / "itemknn")


@pytest.fixture(scope="module")
def diffurec(folder):
    return rd.Recommender.load(folder / "diffurec")


def plain(frame: Any) -> dict[str, list[Any]]:
    if isinstance(frame, pd.DataFrame):
        return {name: [None if one is pd.NA or one != one else one for one in frame[name].tolist()] for name in frame}
    return frame.to_pydict() if isinstance(frame, pa.Table) else frame.to_dict(as_series=False)


def columns(kind: str) -> tuple[Any, Any]:
    """Users and histories as columns of a library."""
    if kind == "polars":
        return pl.Series(USERS), pl.Series(HISTORIES)
    if kind == "pandas":
        return pd.Series(USERS, index=[7, 3]), pd.Series([tuple(row) for row in HISTORIES], index=[7, 3])
    return pa.chunked_array([USERS]), pa.array(HISTORIES)


@pytest.mark.parametrize("kind", FRAMES)
def test_columns_in_and_a_frame_out(recommender, kind):
    users, histories = columns(kind)
    for asked, wanted in (
        ({"users": users}, {"users": USERS}),
        ({"histories": histories}, {"histories": HISTORIES}),
        ({"users": users, "histories": histories}, {"users": USERS, "histories": HISTORIES}),
        ({"users": USERS, "histories": histories}, {"users": USERS, "histories": HISTORIES}),
    ):
        found = recommender.recommend(**asked, k=3)
        assert isinstance(found, FRAMES[kind])
        assert plain(found) == plain(recommender.recommend(**wanted, k=3))


@pytest.mark.parametrize("kind", FRAMES)
def test_a_frame_of_users(recommender, kind):
    frame = pl.DataFrame({"age": [5, 6], "history": HISTORIES, "user_id": USERS})
    frame = {"polars": frame.lazy, "pandas": frame.to_pandas, "pyarrow": frame.to_arrow}[kind]()
    found = recommender.recommend(frame, k=3)
    assert isinstance(found, FRAMES[kind])
    assert plain(found) == plain(recommender.recommend(users=USERS, histories=HISTORIES, k=3))
    known = frame.drop("history", axis=1) if kind == "pandas" else frame.select(["user_id"])
    assert plain(recommender.recommend(known, k=3)) == plain(recommender.recommend(USERS, k=3))


def test_missing_histories_of_pandas_are_empty(recommender):
    frame = pd.DataFrame({"user_id": [1, 2, 3], "history": [["i3", "i4"], None, float("nan")]})
    with pytest.warns(rd.errors.RediffuseWarning, match="2 of 3 histories are empty"):
        found = recommender.recommend(frame, k=2)
    with pytest.warns(rd.errors.RediffuseWarning, match="2 of 3 histories are empty"):
        wanted = recommender.recommend([1, 2, 3], [["i3", "i4"], [], []], k=2)
    assert plain(found) == plain(wanted)


def test_titles_come_last(recommender, diffurec):
    found = recommender.recommend(USERS, k=19)
    assert found.columns == ["user_id", "item_id", "rank", "score", "title"]
    titles = {f"i{item}": f"Film {item}" for item in range(19)} | {"i19": None}
    assert found["title"].to_list() == [titles[item] for item in found["item_id"]]
    near = diffurec.similar(["i1"], k=19)
    assert near.columns == ["item_id", "similar_id", "rank", "cosine", "title"]
    assert near["title"].to_list() == [titles[item] for item in near["similar_id"]]
    uncertain = diffurec.recommend(USERS, k=2, samples=2)
    assert uncertain.columns == ["user_id", "item_id", "rank", "score", "uncertainty", "title"]


def test_looking_inside_answers_in_the_library_of_the_ids(recommender, diffurec):
    items, history = pd.Series(["i1", "i2"]), pa.array(["i3", "i4"])
    assert plain(diffurec.similar(items, k=2)) == plain(diffurec.similar(["i1", "i2"], k=2))
    assert isinstance(diffurec.similar(items, k=2), pd.DataFrame)
    steps = diffurec.denoise(history=history, k=2)
    assert isinstance(steps, pa.Table)
    assert plain(steps) == plain(diffurec.denoise(history=["i3", "i4"], k=2))
    recommender.knowledge = pl.DataFrame(
        {
            "item_id": ["i1", "i3"],
            "relation": ["by", "by"],
            "entity": ["x", "x"],
            "other_item": pl.Series([None, None], dtype=pl.String),
            "weight": [0.5, 0.5],
            "kept": [True, True],
        }
    )
    paths = recommender.explain(items, history=history)
    assert isinstance(paths, pd.DataFrame)
    assert plain(paths) == plain(recommender.explain(["i1", "i2"], history=["i3", "i4"]))
    assert isinstance(recommender.explain(["i1"], history=history), pa.Table)


def test_items_to_exclude_and_candidates_may_be_columns(recommender):
    wanted = recommender.recommend(USERS, k=3, exclude=["i4"], candidates=["i4", "i5", "i9"])
    for column in (pd.Series, pa.array, pl.Series, pd.Index, np.array):
        found = recommender.recommend(USERS, k=3, exclude=column(["i4"]), candidates=column(["i4", "i5", "i9"]))
        assert found.equals(wanted)


@pytest.mark.parametrize(
    ("users", "options", "message"),
    [
        (pd.DataFrame({"user": USERS}), {}, "frame passed as users has no column user_id; its columns are user"),
        (pl.DataFrame({"user_id": USERS, "history": HISTORIES}), {"histories": HISTORIES}, "given twice"),
        (pd.DataFrame([USERS], columns=["user_id", "user_id"]), {}, "users cannot be read as a frame"),
        (pl.DataFrame({"user_id": USERS, "history": ["i1|i2", "i3"]}), {}, r"A history is 'i1\|i2', not a list"),
        (None, {"histories": pd.DataFrame({"history": HISTORIES})}, "histories is a pandas DataFrame, not a list"),
        ("u1", {}, "users is 'u1', not a list"),
    ],
)
def test_frames_that_are_refused(recommender, users, options, message):
    with pytest.raises(ConfigError, match=message):
        recommender.recommend(users, **options)


def test_columns_and_kinds():
    assert as_column(pd.Series([1, "a", None], dtype=object)) == [1, "a", None]
    assert as_column(pd.Series([[1], ["a", 2], float("nan")])) == [[1], ["a", 2], None]
    assert [as_column(value) for value in ("a", [1], {"a": 1}, np.array([1]), pd.DataFrame({"a": [1]}))] == [None] * 5
    assert kind_of(None, [1], pd.Series([1]), pa.array([1])) == "pandas"
    assert kind_of([1], np.array([1])) == "polars"


def test_pandas_frames_need_no_pyarrow_and_keep_integers(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    frame = pl.DataFrame({"a": [2**60 + 1, None], "b": ["x", None], "c": [1.5, None], "d": [1, 2], "e": [True, False]})
    found = as_kind(frame, "pandas")
    assert found["a"].tolist() == [2**60 + 1, pd.NA]
    assert found["d"].dtype == np.int64
    found.loc[0, "d"] = 5  # frames out can be written to
    assert found["e"].tolist() == [True, False]
    assert found["b"].tolist()[0] == "x"
    assert found["b"].isna().tolist() == found["c"].isna().tolist() == [False, True]
