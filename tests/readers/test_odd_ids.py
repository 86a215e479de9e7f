"""Ids and times that are wrong as they stand, and that nothing but their form tells."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

import rediffuse as rd
from rediffuse.errors import DataError, RediffuseWarning


def _write(folder: Path, lines: list[str]) -> Path:
    path = folder / "table.csv"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


ROWS = [(user, item, 1_300_000_000 - 60 * user - item) for user in range(1, 6) for item in range(10, 15)]


@pytest.mark.parametrize("again", ['"user_id","item_id"', "item_id,user_id", "User_ID,Item_ID", "user_id,item_id"])
def test_a_header_within_is_refused_in_any_form(tmp_path: Path, again: str) -> None:
    path = _write(tmp_path, ["user_id,item_id", *(f"u{user},i{item}" for user, item, _ in ROWS), again, "u1,i10"])
    with pytest.raises(DataError, match=r"line 27 is the header again"):
        rd.read_interactions(path)


def test_an_item_may_have_the_name_of_a_column(tmp_path: Path) -> None:
    path = _write(tmp_path, ["user,item", "anna,item", "anna,other", "bert,item"])
    assert rd.read_interactions(path, user="user", item="item").item_ids.to_list() == ["item", "other"]


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("{}.0", "All item ids are whole numbers with a fraction, such as '10.0'"),
        ("'{}'", "All item ids have quotes around them, such as '10'"),
        ("2024-03-{}", "All item ids are dates or times, such as '2024-03-10'"),
    ],
)
def test_ids_of_an_odd_form_are_named(tmp_path: Path, form: str, message: str) -> None:
    path = _write(tmp_path, ["user_id,item_id", *(f"{user},{form.format(item)}" for user, item, _ in ROWS)])
    with pytest.warns(RediffuseWarning) as warned:
        rd.read_interactions(path)
    assert any(message in str(one.message) for one in warned)


def test_minus_one_among_positive_ids(tmp_path: Path) -> None:
    path = _write(tmp_path, ["user_id,item_id", "1,5", "1,-1", "2,7"])
    with pytest.warns(RediffuseWarning, match=r"item id -1 .*line 3\) is the only negative one"):
        rd.read_interactions(path)
    path = _write(tmp_path, ["user_id,item_id", "1,5", "1,-1", "2,-7"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rd.read_interactions(path)


@pytest.mark.parametrize("column", ["visited", "fecha", "t", "unix"])
@pytest.mark.parametrize("form", ["{}", "{}000", "{}.0"])
def test_numbers_tell_a_time_column(tmp_path: Path, column: str, form: str) -> None:
    lines = [f"{user},{item},{form.format(time)}" for user, item, time in ROWS]
    with pytest.warns(RediffuseWarning, match=f"Column {column!r} looks like a time.*newest first"):
        rd.read_interactions(_write(tmp_path, [f"user_id,item_id,{column}", *lines]))


def test_numbers_tell_a_time_column_without_header(tmp_path: Path) -> None:
    path = _write(tmp_path, [f"{user}\t{item}\t3\t{time}" for user, item, time in ROWS])
    with pytest.warns(RediffuseWarning, match="Column '3' looks like a time"):
        rd.read_interactions(path, header=None)


@pytest.mark.parametrize("column", ["review_id", "phone", "runtime", "birthday"])
def test_numbers_under_other_names_are_no_times(tmp_path: Path, column: str) -> None:
    lines = [f"{user},{item},{time}" for user, item, time in ROWS]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rd.read_interactions(_write(tmp_path, [f"user_id,item_id,{column}", *lines]))


def test_rows_in_no_order_are_not_newest_first(tmp_path: Path) -> None:
    lines = [f"{user},{item},{time + 97 * (item % 2)}" for user, item, time in ROWS]
    with pytest.warns(RediffuseWarning, match="looks like a time.*That is another order"):
        rd.read_interactions(_write(tmp_path, ["user_id,item_id,time", *lines]))


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("Fri Aug 25 13:55:{:02} -0700 2017", "%a %b %d %H:%M:%S %z %Y"),
        ("Fri, 25 Aug 2017 13:55:{:02} +0000", "%a, %d %b %Y %H:%M:%S %z"),
        ("08 {:02}, 2013", "%m %d, %Y"),
    ],
)
def test_times_as_sites_write_them(tmp_path: Path, text: str, form: str) -> None:
    lines = [f'{user},{item},"{text.format(item)}"' for user, item, _ in ROWS]
    path = _write(tmp_path, ["user_id,item_id,written", *lines])
    with pytest.raises(DataError) as error:
        rd.read_interactions(path, time="written")
    assert f"time_format={form!r}" in str(error.value)
    assert rd.read_interactions(path, time="written", time_format=form).has_timestamps
    path = _write(tmp_path, ["user_id,item_id,date_added", *lines])
    with pytest.warns(RediffuseWarning, match="Column 'date_added' looks like a time"):
        rd.read_interactions(path)
