"""Columns that were not named and decide what is learned: times, negative feedback, lists."""

from __future__ import annotations

import ast
import datetime
import re
import warnings
from typing import Any

import polars as pl
import pytest

from rediffuse.errors import RediffuseWarning
from rediffuse.readers.interactions import read_interactions

NEW = [1_600_000_300, 1_600_000_200, 1_600_000_100, 1_600_000_250, 1_600_000_150]
USERS, ITEMS = ["a", "a", "a", "b", "b"], ["z", "y", "x", "y", "x"]


def said(frame: pl.DataFrame, **options: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = read_interactions(frame, **options)
    found = [str(one.message) for one in caught if issubclass(one.category, RediffuseWarning)]
    assert set(found) <= set(data.report["notes"])
    return found


def table(**columns: Any) -> pl.DataFrame:
    return pl.DataFrame({"user_id": USERS, "item_id": ITEMS, **columns})


DATES = [datetime.datetime.fromtimestamp(t, datetime.UTC) for t in NEW]


@pytest.mark.parametrize("name", ["Timestamp", "date", "unixReviewTime", "review_time", "t_dat", "created_at", "ts"])
@pytest.mark.parametrize("form", ["seconds", "milliseconds", "text", "ISO", "German", "compact", "datetime"])
def test_times_that_were_not_named(name: str, form: str) -> None:
    values: Any = {
        "seconds": NEW,
        "milliseconds": [t * 1000 for t in NEW],
        "text": list(map(str, NEW)),
        "ISO": [f"{date:%Y-%m-%d %H:%M:%S}" for date in DATES],
        "German": [f"{date:%d.%m.%Y %H:%M:%S}" for date in DATES],
        "compact": [20200930, 20200920, 20200910, 20200925, 20200915],
        "datetime": DATES,
    }[form]
    (sentence,) = said(table(**{name: values}))
    assert f"Column '{name}' looks like a time" in sentence
    assert "newest first, so histories are read backwards" in sentence
    assert f"time='{name}'" in sentence
    (sentence,) = said(table(**{name: values}).reverse())
    assert "That is the same order." in sentence


def test_columns_of_other_types_are_no_problem() -> None:
    odd = {"label": [[1]] * 5, "date": [{"a": 1}] * 5, "time": [None] * 5, "click": [None] * 5, "history": [b"x"] * 5}
    said(table(**odd))
    lists = pl.DataFrame({"user_id": [["a"], ["b"]], "item_id": [["x"], ["y"]], "Timestamp": [[5], [6]]})
    said(lists.with_columns(ts=pl.Series([1_600_000_000, 1_600_000_001])))


def test_columns_that_are_no_times() -> None:
    assert said(table(runtime=[90, 80, 70, 60, 50], year=[2001, 1999, 1998, 1997, 1996], place=list("abcde"))) == []
    assert said(table(Timestamp=NEW), time="Timestamp") == []
    assert said(table(Timestamp=NEW, place=[1, 2, 3, 4, 5]), order="place") == []


@pytest.mark.parametrize(
    ("name", "values", "how"),
    [
        ("label", [1.0, 0.0, 1.0, 1.0, 0.0], 'rating="label", min_rating=1'),
        ("click", [1, 0, 1, 1, 0], 'rating="click", min_rating=1'),
        ("like", ["1", "0", "1", "1", "0"], 'rating="like", min_rating=1'),
        ("is_click", [True, False, True, True, False], "weights={'false': 0, 'true': 1}"),
        ("feedback", [1, -1, 1, 1, -1], "weights={'-1': 0, '1': 1}"),
    ],
)
def test_negative_feedback_is_asked_about(name: str, values: list[Any], how: str) -> None:
    (sentence,) = said(table(**{name: values}))
    assert sentence.startswith("2 of 5 rows have")
    assert how in sentence
    options: dict[str, Any] = {"rating": name, "min_rating": 1}
    if "weights" in how:
        options = {"event_type": name, "weights": {"-1": 0, "1": 1} if name == "feedback" else {"false": 0, "true": 1}}
    assert read_interactions(table(**{name: values}), **options).num_interactions == 3
    assert said(table(**{name: values}), **options) == []


def test_feedback_as_rating_without_a_threshold() -> None:
    (sentence,) = said(table(label=[1, 0, 1, 1, 0]), rating="label")
    assert "which is the rating" in sentence
    assert "--min-rating 1" in sentence
    assert said(table(label=[1, 1, 1, 1, 1])) == []


def test_lists_beside_the_items() -> None:
    (sentence,) = said(table(history=["[1, 2]"] * 5))
    assert "Column 'history' holds lists, and is not used" in sentence
    assert "--item history" in sentence


@pytest.mark.parametrize(
    ("yes", "no"), [("True", "False"), ("Yes", "No"), ("like", "dislike"), ("1", "-1"), ("1.0", "0.0"), ("y", "n")]
)
@pytest.mark.parametrize("column", ["liked", "feedback", "rating"])
def test_the_hint_about_negative_feedback_can_be_followed(tmp_path, yes, no, column):
    path = tmp_path / "in.csv"
    rows = [f"{row % 4},{row % 5},{yes if row % 2 else no}" for row in range(20)]
    path.write_text("\n".join([f"user_id,item_id,{column}", *rows]))
    with pytest.warns(RediffuseWarning, match="10 of 20 rows have") as warned:
        read_interactions(path)
    found = re.search(r"pass (.*?) \(--", str(warned[0].message))
    assert found is not None
    options = dict(re.findall(r"(\w+)=(\{.*?\}|[^,]+)", found.group(1)))
    given = {name: ast.literal_eval(value) for name, value in options.items()}
    assert read_interactions(path, **given).num_interactions == 10
