"""Ids that hide something: words for a missing value, lost digits, ids that look alike."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest

from rediffuse.data.dataset import Dataset
from rediffuse.errors import ConfigError, DataError, RediffuseWarning
from rediffuse.readers.interactions import read_interactions

WORDS = ["NULL", "null", "Null", "nan", "NaN", "None", "NA", "N/A", "n/a", "\\N", "<NA>", "#N/A", "undefined", "(null)"]


def text(folder: Path, *rows: str, head: str = "user_id,item_id", name: str = "in.csv") -> Path:
    (folder / name).write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    return folder / name


def silent(*args: Any, **options: Any) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_interactions(*args, **options)


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("others", ["integers", "text"])
def test_words_for_nothing(tmp_path: Path, word: str, others: str) -> None:
    users = ["1", "2", "3"] if others == "integers" else ["ann", "bob", "joe"]
    file = text(tmp_path, f"{users[0]},10", f"{users[1]},11", f"{word},12", f"{word},10", f"{users[2]},11")
    with pytest.raises(DataError, match=r"line 4: column 'user_id' \(user\) is '.*', a word .*1 more") as error:
        read_interactions(file)
    assert "--missing-ids drop" in str(error.value)
    dropped = silent(file, missing_ids="drop")
    assert dropped.user_ids.to_list() == ([1, 2, 3] if others == "integers" else users)
    assert dropped.num_interactions == 3
    assert dropped.item_ids.to_list() == [10, 11]
    assert any(note.startswith("2 interactions lack an id") and "line 4" in note for note in dropped.report["notes"])
    with pytest.warns(RediffuseWarning, match="may stand for a missing value"):
        kept = read_interactions(file, missing_ids="keep")
    assert word in kept.user_ids.to_list()


def test_words_among_items_of_frames() -> None:
    frame = pd.DataFrame({"user_id": [1, 1, 2], "item_id": pd.Series([10, None, 11]).astype(str)})
    with pytest.raises(DataError, match="row 2: column 'item_id'"):
        read_interactions(frame)
    with pytest.warns(RediffuseWarning, match="item ids are whole numbers with a fraction, such as '10.0'") as warned:
        assert read_interactions(frame, missing_ids="drop").num_interactions == 2
    assert warned[0].filename == __file__


def test_empty_ids_can_be_dropped(tmp_path: Path) -> None:
    file = text(tmp_path, "1,10", ",11", "   ,11", "2,12", "2,")
    with pytest.raises(DataError, match=r"(?s)line 3.*is empty.*--missing-ids drop"):
        read_interactions(file)
    data = silent(file, missing_ids="drop")
    assert (data.user_ids.to_list(), data.item_ids.to_list()) == ([1, 2], [10, 12])
    assert data.report["interactions_with_missing_ids"] == 3
    with pytest.raises(DataError, match="every row lacks an id"):
        read_interactions(text(tmp_path, ",1", "nan,2"), missing_ids="drop")
    with pytest.raises(ConfigError, match="Did you mean 'drop'"):
        read_interactions(file, missing_ids="dropp")  # pyright: ignore[reportArgumentType]


def test_float_users_with_a_missing_value_are_integers() -> None:
    frame = pd.DataFrame({"user_id": [1.0, None, 2.0], "item_id": [10, 11, 12]})
    with pytest.raises(DataError, match=r"(?s)row 2.*is empty.*missing_ids"):
        read_interactions(frame)
    data = silent(frame, missing_ids="drop")
    assert (data.user_ids.dtype, data.user_ids.to_list()) == (pl.Int64, [1, 2])


def test_errors_after_dropped_rows_name_the_lines_of_the_file(tmp_path: Path) -> None:
    file = text(tmp_path, "1,10,5", "NULL,11,5", "2,12,-1", head="user_id,item_id,rating")
    with pytest.raises(DataError, match="line 4: column 'rating'"):
        read_interactions(file, rating="rating", missing_ids="drop")
    parquet = tmp_path / "in.parquet"
    pl.DataFrame({"user_id": ["a", "nan", "b"], "item_id": [1, 2, 3], "rating": [1.0, 2.0, -1.0]}).write_parquet(
        parquet
    )
    with pytest.raises(DataError, match="row 3: column 'rating'"):
        read_interactions(parquet, rating="rating", missing_ids="drop")


def test_words_in_graphs() -> None:
    rows = pl.DataFrame({"user_id": ["a", "b", "a"], "item_id": ["x", "y", "y"]})
    social = pl.DataFrame({"source": ["a", "a"], "target": ["b", "NULL"]})
    with pytest.raises(DataError, match="row 2: column 'target'"):
        read_interactions(rows, social=social)
    data = silent(rows, social=social, missing_ids="drop")
    assert data.social is not None
    assert (len(data.social), data.user_ids.to_list()) == (1, ["a", "b"])
    graph = {
        "kg": pl.DataFrame({"head": ["x", "y"], "relation": ["r", "r"], "tail": ["z", "None"]}),
        "item_entity": pl.DataFrame({"item_id": ["x", "y"], "entity_id": ["x", "y"]}),
    }
    with pytest.raises(DataError, match=r"row 2: column 'tail' \(tail\) is 'None'"):
        read_interactions(rows, **graph)


def test_all_but_some_ids_are_integers(tmp_path: Path) -> None:
    file = text(tmp_path, "1,10", "2,11", "x7,12", "3,10")
    with pytest.warns(RediffuseWarning, match=r"All but 1 of 4 user ids .*'x7' \(.*in\.csv, line 4\).* as text"):
        data = read_interactions(file)
    assert data.user_ids.to_list() == ["1", "2", "3", "x7"]
    assert silent(text(tmp_path, "a1,10", "b,11", "7,12")).user_ids.to_list() == ["7", "a1", "b"]


@pytest.mark.parametrize("form", ["1.23457E+12", "1.5e3", "1E+05", "-2.0e-3"])
def test_scientific_notation_is_refused(tmp_path: Path, form: str) -> None:
    with pytest.raises(DataError, match=r"line 3: column 'user_id' .* in scientific notation"):
        read_interactions(text(tmp_path, "1,10", f"{form},11", f"{form},12"))


def test_hexadecimal_ids_are_no_numbers(tmp_path: Path) -> None:
    assert silent(text(tmp_path, "12e7,a", "5e10,b", "3f,a")).user_ids.to_list() == ["12e7", "3f", "5e10"]


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        (["7", "7.0", "007", "x", "y", "z"], "3 item ids are the same number, such as '007' and '7'"),
        (["caf\u00e9", "cafe\u0301", "tea"], r"2 item ids are the same text in another Unicode form.*'cafe\\u0301'"),
        (["tea", "te\u200ba", "x"], "2 item ids are the same text in another Unicode form, or with characters"),
        (["\ufefftea", "x", "y"], "begin or end with a character that is not shown"),
    ],
)
def test_ids_that_look_alike_are_said(ids: list[str], says: str) -> None:
    frame = pl.DataFrame({"user_id": ["u"] * len(ids), "item_id": ids})
    with pytest.warns(RediffuseWarning, match=says):
        data = read_interactions(frame)
    assert data.num_items == len(ids)


def test_letter_case_and_spacing_are_noted() -> None:
    for ids in (["tea", "Tea", "x"], ["The  film", "The film", "x"]):
        data = silent(pl.DataFrame({"user_id": ["u", "u", "u"], "item_id": ids}))
        assert data.num_items == 3
        assert any("2 item ids are the same text in other case or spacing" in note for note in data.report["notes"])
