"""Histories in text are read with the ids of the run; files of which the run knows nothing are refused."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

import rediffuse as rd
from rediffuse.errors import DataError, RediffuseWarning
from rediffuse.recommender.bars import BarSplitter
from rediffuse.recommender.batch import recommend_to_folder
from rediffuse.recommender.history_text import split_history
from rediffuse.recommender.user_files import UserFile
from rediffuse.testing import synthetic_interactions

IDS = {"1", "2", "3", "a b", "c,d", "x|y", "[1]", "é"}
SPLITTER = BarSplitter([one for one in IDS if "|" in one], IDS.__contains__)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("1|2|3", ["1", "2", "3"]),
        ("[1, 2, 3]", ["1", "2", "3"]),
        ("[1 2 3]", ["1", "2", "3"]),
        ("[1. 2. 3.]", ["1", "2", "3"]),
        ('["1", "a b"]', ["1", "a b"]),
        ("['1', 'c,d']", ["1", "c,d"]),
        ("1 2 3", ["1", "2", "3"]),
        ("1,2, 3", ["1", "2", "3"]),
        ("1;2;3", ["1", "2", "3"]),
        ("1\t2", ["1", "2"]),
        ("[1]", ["[1]"]),  # an id of the run is never split
        ("a b", ["a b"]),
        ("c,d", ["c,d"]),
        ("a b|1|c,d", ["a b", "1", "c,d"]),
        ("1|x|y|2", ["1", "x|y", "2"]),
        ("1,2,99", ["1", "2", "99"]),
        ("98 99", ["98 99"]),  # unknown either way
        ("[]", []),
        (" ", []),
    ],
)
def test_forms(text: str, ids: list[str]) -> None:
    assert split_history(text, SPLITTER) == ids


@pytest.fixture(scope="module")
def recommender(tmp_path_factory: pytest.TempPathFactory) -> rd.Recommender:
    split = rd.split.leave_one_out(synthetic_interactions(text_ids=False))
    return rd.Recommender.load(rd.train("itemknn", split, tmp_path_factory.mktemp("runs") / "run").path)


def read(recommender: rd.Recommender, path: Path) -> tuple[pl.Series, pl.Series | None]:
    return UserFile(path, recommender.is_known_user, recommender.titles.ids_in_text).read()


@pytest.mark.parametrize("column", ["history", "History", "histories", "item_id_list"])
def test_files_in_every_form_get_the_same_lists(recommender: rd.Recommender, tmp_path: Path, column: str) -> None:
    rows = [[3, 1, 2], [5, 6]]
    forms = {
        "bars": ["|".join(map(str, row)) for row in rows],
        "json": [json.dumps([str(item) for item in row]) for row in rows],
        "python": [str(row) for row in rows],
        "numpy": [str(row).replace(",", "") for row in rows],
        "commas": [",".join(map(str, row)) for row in rows],
        "spaces": [" ".join(map(str, row)) for row in rows],
    }
    wanted = recommender.recommend(users=["x", "y"], histories=rows, k=3)
    for form, histories in forms.items():
        pl.DataFrame({"user_id": ["x", "y"], column: histories}).write_csv(tmp_path / f"{form}.csv")
        pl.DataFrame({"user_id": ["x", "y"], column: histories}).write_parquet(tmp_path / f"{form}.parquet")
        for ending in ("csv", "parquet"):
            ids, lists = read(recommender, tmp_path / f"{form}.{ending}")
            assert recommender.recommend(users=ids, histories=lists, k=3).equals(wanted), form
    fixed = pl.Series(column, [row[:2] for row in rows], dtype=pl.Array(pl.Int64, 2))
    pl.DataFrame({"user_id": ["x", "y"]}).with_columns(fixed).write_parquet(tmp_path / "fixed.parquet")
    lists = read(recommender, tmp_path / "fixed.parquet")[1]
    assert lists is not None
    assert lists.to_list() == [[3, 1], [5, 6]]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("user_id\nann\nbob\n", r"none of the users of .*, for example 'ann'"),
        ("user_id\n1.0\n2.0\n", r"none of the users of .*, for example '1\.0'"),
        ("user_id,history\n1,nope\n2,no|never\n", r"none of the items of the histories of .*, for example 'nope'"),
        ("user_id,history\nann,\n", r"none of the users of"),
        ('user_id,history\nann,"[1 2 ... 9]"\n', r"line 2: column 'history' is .*a program has shortened it"),
        ("user_id,histories,History\nann,1,2\n", "several columns of histories"),
    ],
)
def test_files_of_nothing_known_are_refused(recommender: rd.Recommender, tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "users.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=says):
        read(recommender, path)
    with pytest.raises(DataError, match=says):
        recommend_to_folder(recommender, path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_some_unknown_users_are_a_note(recommender: rd.Recommender, tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_text("user_id\nNULL\n3\n")
    ids, _ = read(recommender, tmp_path / "users.csv")
    with pytest.warns(RediffuseWarning, match="1 of 2 users are unknown"):
        found = recommender.recommend(users=ids, k=1)
    assert found["user_id"].to_list() == ["NULL", "3"]


@pytest.mark.parametrize("library", ["polars", "pandas", "list"])
def test_float_users_with_a_missing_value_keep_their_ids(recommender: rd.Recommender, library: str) -> None:
    users = [3.0, None, 4.0]
    given = {"polars": pl.Series(users), "list": users}.get(library)
    if given is None:
        given = pytest.importorskip("pandas").Series(users)
    with pytest.warns(RediffuseWarning, match="1 of 3 users are unknown"):
        found = recommender.recommend(users=given, k=1)
    assert str(found["user_id"].dtype) == "Int64"
    assert [None if one is None or str(one) == "<NA>" else one for one in found["user_id"].to_list()] == [3, None, 4]


def test_known_users_beside_text_keep_the_spelling_of_the_run(recommender: rd.Recommender) -> None:
    with pytest.warns(RediffuseWarning, match="2 of 4 users are unknown"):
        found = recommender.recommend(users=[3.0, "new", 4, None], k=1)
    assert found["user_id"].to_list() == ["3", "new", "4", None]
