"""Quoted fields of several lines: text of reviews is read, rows that a stray quote swallows are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

import rediffuse as rd
from rediffuse.errors import DataError


def _read(folder: Path, lines: list[str]) -> rd.Dataset:
    path = folder / "reviews.csv"
    path.write_text("".join(f"{line}\n" for line in lines))
    return rd.read_interactions(path)


@pytest.mark.parametrize(
    ("header", "form"),
    [
        ("user_id,item_id,rating,text", '{u},{i},5,"Good, really.\nI said ""wow""\n\n3, 4, 5, 6"'),
        ("user_id,item_id,review", 'u{u},i{i},"hello\nthere, my, friend\nlines, of, three"'),
        ("text,user_id,item_id", '"first line, of, it\nsecond line, of, it\nthird",u{u},i{i}'),
        ("text,user_id,item_id", '"Pros: a, b\nCons: c, d",u{u},i{i}'),
    ],
)
@pytest.mark.parametrize("some", [False, True])
def test_reviews_of_several_lines_are_read(tmp_path: Path, header: str, form: str, some: bool) -> None:
    rows = [form.format(u=u, i=i) for u in range(1, 6) for i in range(10, 14)]
    if some:  # the others are of one line
        rows[::2] = [row.replace("\n", " ") for row in rows[::2]]
    data = _read(tmp_path, [header, *rows])
    assert (data.num_users, data.num_items, data.num_interactions) == (5, 4, 20)


@pytest.mark.parametrize("first", ['"Heroes', '"The Best of'])
@pytest.mark.parametrize("last", ['7"', 'Live at 12"'])
@pytest.mark.parametrize("title", ["x", "Some title"])
@pytest.mark.parametrize("ids", ["{},{}", "u{},i{}"])
def test_rows_that_stray_quotes_swallow_are_refused(
    tmp_path: Path, first: str, last: str, title: str, ids: str
) -> None:
    rows = [f"{ids.format(u, i)},{title}" for u in range(1, 6) for i in range(10, 14)]
    rows[5], rows[9] = f"{ids.format(2, 11)},{first}", f"{ids.format(3, 11)},{last}"
    with pytest.raises(DataError, match=r"(?s)lines 7 to 11: a quote.*rows of their own.*--quoting none"):
        _read(tmp_path, ["user_id,item_id,title", *rows])


def test_a_stray_quote_may_begin_in_the_first_row_and_end_in_the_last(tmp_path: Path) -> None:
    rows = ['u1,i1,"Heroes', "u1,i2,x", "u2,i1,x", 'u2,i3,7"']
    with pytest.raises(DataError, match="lines 2 to 5: a quote"):
        _read(tmp_path, ["user_id,item_id,title", *rows])


def test_escaped_quotes_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)line 2 .*escapechar"):
        _read(tmp_path, ["user_id,item_id,text", r'u1,i1,"he said \"hi, you\" there"', "u2,i2,x"])
