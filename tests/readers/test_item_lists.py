"""Lists of items in one field become one interaction per item, or are refused; never one unknown item."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rediffuse.data.dataset import Dataset
from rediffuse.errors import ConfigError, DataError
from rediffuse.readers.interactions import read_interactions
from rediffuse.readers.item_lists import NoListError, split_brackets, split_text

HISTORIES = [[3, 1, 2], [2], [1, 3, 3, 10]]
WRITTEN = {
    "python": [str(row) for row in HISTORIES],
    "json": [json.dumps([str(item) for item in row]) for row in HISTORIES],
    "numpy": [str(np.array(row)) for row in HISTORIES],
    "numpy floats": [str(np.array(row, float)) for row in HISTORIES],
    "numpy scalars": [repr([np.int64(item) for item in row]) for row in HISTORIES],
    "array": [repr(np.array(row)) for row in HISTORIES],
    "python floats": [str([float(item) for item in row]) for row in HISTORIES],
    "python texts": [str([str(item) for item in row]) for row in HISTORIES],
    "tuple": [str(tuple(row)) for row in HISTORIES],
    "postgres": ["{" + ",".join(map(str, row)) + "}" for row in HISTORIES],
    "spaces": [" ".join(map(str, row)) for row in HISTORIES],
    "bars": ["|".join(map(str, row)) for row in HISTORIES],
    "semicolons": ["; ".join(map(str, row)) for row in HISTORIES],
}


def histories(data: Dataset) -> list[list[Any]]:
    return [data.item_ids.gather(data.interactions.row(user)).to_list() for user in range(data.num_users)]


@pytest.mark.parametrize("form", WRITTEN)
@pytest.mark.parametrize("packed", ["csv", "frame"])
def test_forms_of_lists(tmp_path: Path, form: str, packed: str) -> None:
    frame = pl.DataFrame({"user_id": ["a", "b", "c"], "item_id": WRITTEN[form]})
    source: Any = frame
    if packed == "csv":
        source = tmp_path / "in.csv"
        frame.write_csv(source)
    data = read_interactions(source)
    expected = HISTORIES
    if packed == "frame" and form in ("json", "python texts"):
        expected = [[str(item) for item in row] for row in HISTORIES]
    assert histories(data) == expected
    assert any("3 rows were read as 8 interactions" in note for note in data.report["notes"])


@pytest.mark.parametrize("inner", [pl.Int64, pl.String, pl.Categorical])
def test_list_columns_of_parquet(tmp_path: Path, inner: Any) -> None:
    rows = HISTORIES if inner == pl.Int64 else [[f"i{item}" for item in row] for row in HISTORIES]
    frame = pl.DataFrame(
        {"user_id": [1, 2, 3], "item_id": pl.Series(rows, dtype=pl.List(inner)), "t": [[0] * len(r) for r in rows]}
    )
    frame.with_columns(t=pl.Series([list(range(len(r)))[::-1] for r in rows])).write_parquet(tmp_path / "in.parquet")
    assert histories(read_interactions(tmp_path / "in.parquet")) == rows
    by_time = read_interactions(tmp_path / "in.parquet", time="t")
    assert histories(by_time) == [row[::-1] for row in rows]


@pytest.mark.parametrize("mark", [" ", ",", "|", ";"])
def test_times_in_text_beside_the_items(mark: str) -> None:
    frame = pl.DataFrame(
        {
            "user_id": ["a", "b"],
            "item_id": [mark.join("123"), "4"],
            "when": [mark.join(["1600000300", "1600000200", "1600000100"]), "1600000000"],
        }
    )
    assert histories(read_interactions(frame, time="when")) == [[3, 2, 1], [4]]
    assert histories(read_interactions(frame.with_columns(when=pl.Series(["5", "6"])), time="when")) == [[1, 2, 3], [4]]


def test_arrays_and_empty_lists() -> None:
    fixed = pl.DataFrame({"user_id": [1, 2], "item_id": pl.Series([[1, 2], [3, 1]], dtype=pl.Array(pl.Int64, 2))})
    assert histories(read_interactions(fixed)) == [[1, 2], [3, 1]]
    data = read_interactions(pl.DataFrame({"user_id": [1, 2, 3], "item_id": [[1, 2], [], [3]]}))
    assert data.num_users == 2
    assert any("1 empty lists were left out" in note for note in data.report["notes"])


def test_lists_of_other_lengths_and_missing_items(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 2: column 't' holds a list of 1, and 'item_id' one of 2"):
        read_interactions(pl.DataFrame({"user_id": [1, 2], "item_id": [[1, 2], [3, 4]], "t": [[1, 2], [3]]}), time="t")
    with pytest.raises(DataError, match=r"row 2: column 'item_id' \(item\) is empty"):
        read_interactions(pl.DataFrame({"user_id": [1, 2], "item_id": [[1, 2], [3, None]]}))
    (tmp_path / "in.csv").write_text('user_id,item_id\na,"[1, 2]"\nb,"[1, NULL]"\n')
    with pytest.raises(DataError, match=r"line 3: column 'item_id'.*'NULL'"):
        read_interactions(tmp_path / "in.csv")
    assert read_interactions(tmp_path / "in.csv", missing_ids="drop").num_interactions == 3


@pytest.mark.parametrize("text", ["[1 2 3 ... 9]", "[[1, 2], [3]]", "[1, null]", "[1.5, 2]", '[{"id": 1}]'])
def test_what_is_no_list_is_refused(tmp_path: Path, text: str) -> None:
    pl.DataFrame({"user_id": ["a", "b"], "item_id": ["[1, 2]", text]}).write_csv(tmp_path / "in.csv")
    with pytest.raises(DataError, match=r"line 3: column 'item_id'.*cannot be read as a list"):
        read_interactions(tmp_path / "in.csv")


def test_some_lists_are_refused(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user_id": ["a", "b"], "item_id": ["[1, 2]", "3"]})
    with pytest.raises(DataError, match=r"lists such as '\[1, 2\]', and values such as '3'"):
        read_interactions(frame)
    assert read_interactions(frame, item_separator="none").num_items == 2


def test_text_that_looks_like_lists_is_asked_about() -> None:
    frame = pl.DataFrame({"user_id": ["a", "b", "c"], "item_id": ["x y", "y z x", "z"]})
    with pytest.raises(DataError, match=r"(?s)looks like lists of items: 'x y'.*--item-separator \" \""):
        read_interactions(frame)
    assert histories(read_interactions(frame, item_separator=" ")) == [["x", "y"], ["y", "z", "x"], ["z"]]
    with pytest.raises(DataError, match="looks like lists"):  # thousands, or two items?
        read_interactions(pl.DataFrame({"user_id": [1, 1, 2], "item_id": ["1,234", "2,500", "17"]}))


def test_titles_and_ids_of_several_parts_stay_ids() -> None:
    titles = ["The film", "The [uncut] film", "[REC]", "Books|SciFi|4", "a,b", "12|34", "1 2"]
    frame = pl.DataFrame({"user_id": [1] * len(titles) + [2], "item_id": [*titles, "[REC]"]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = read_interactions(frame)
    assert histories(data)[0] == titles


@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=5), max_size=5))
@settings(max_examples=60, deadline=None)
def test_json_and_integers_survive(items: list[str]) -> None:
    assert split_brackets(json.dumps(items)) == items
    numbers = [len(item) * 10 ** len(item) for item in items]
    assert split_brackets(str(numbers)) == numbers
    assert split_text(" ".join(map(str, numbers)), " ") == numbers


def test_a_separator_that_is_nowhere() -> None:
    for items in (["a", "b"], [1, 2]):
        with pytest.raises(ConfigError, match="has it nowhere"):
            read_interactions(pl.DataFrame({"user_id": [1, 2], "item_id": items}), item_separator=";")
    with pytest.raises(ConfigError, match="item_separator is empty"):
        read_interactions(pl.DataFrame({"user_id": [1, 2], "item_id": ["a", "b"]}), item_separator="")


def test_categories_in_brackets() -> None:
    items = pl.Series(["[1, 2]", "[3]"], dtype=pl.Categorical)
    assert histories(read_interactions(pl.DataFrame({"user_id": [1, 2], "item_id": items}))) == [[1, 2], [3]]


def test_brackets_that_do_not_close() -> None:
    with pytest.raises(NoListError):
        split_brackets("[1, 2")


@pytest.mark.parametrize("separator", ["-", "->", "_", ":", "/"])
def test_unusual_separators_are_asked_about(tmp_path: Path, separator: str) -> None:
    lists = [[1, 2], [3, 1, 2], [4, 2], [1, 2, 3, 4], [5]]
    path = tmp_path / "lists.csv"
    rows = [f"{user},{separator.join(map(str, items))}" for user, items in enumerate(lists)]
    path.write_text("\n".join(["user_id,item_id", *rows]))
    with pytest.raises(DataError, match=f'Pass item_separator="{separator}"'):
        read_interactions(path)
    assert read_interactions(path, item_separator=separator).num_interactions == sum(map(len, lists))


@pytest.mark.parametrize("form", ["2024-03-{}", "{}:30", "978-3-{}", "1_{}"])
def test_codes_with_such_signs_are_ids(tmp_path: Path, form: str) -> None:
    path = tmp_path / "codes.csv"
    path.write_text("\n".join(["user_id,item_id", *(f"{user},{form.format(user + 10)}" for user in range(9))]))
    assert read_interactions(path).num_items == 9
