"""Any table of interactions, in any form of file, against a plain reading of docs/data.md; and what must be refused."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rediffuse.data.dataset import Dataset
from rediffuse.data.loading import load_dataset
from rediffuse.errors import DataError
from rediffuse.readers.interactions import read_interactions

SETTLED = settings(
    derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

WILD = ["007", "7", "-0", "+7", "1e5", "a,b", 'say "hi"', '"', "two\nlines", "a\tb", "c;d", "e|f", "::", "NaN", "null"]
WILD += [
    "\U0001f3ac",
    "e\u0301",
    "\u00e9",
    "\ufeffx",
    "x\u2028y",
    "\u202e",
    "'",
    "#",
    "\\",
    "9223372036854775808",
    "x\0y",
]
text_ids = st.one_of(
    st.sampled_from(WILD),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), min_size=1, max_size=8).filter(
        lambda text: text == text.strip()
    ),
)
integer_ids = st.one_of(st.integers(-3, 9), st.integers(-(2**63), 2**63 - 1))


@st.composite
def tables(draw: st.DrawFn) -> list[tuple[Any, Any, float, int]]:
    """Events (user, item, rating, second) with at least two items; ids of each kind are all text or all integers."""
    users = draw(st.lists(draw(st.sampled_from([text_ids, integer_ids])), min_size=1, max_size=5, unique=True))
    items = draw(st.lists(draw(st.sampled_from([text_ids, integer_ids])), min_size=2, max_size=6, unique=True))
    row = st.tuples(
        st.sampled_from(users),
        st.sampled_from(items),
        st.sampled_from([0.0, 0.5, 3.0, 4.25]),
        st.integers(10**9, 10**9 + 9),
    )
    rows = draw(st.lists(row, min_size=2, max_size=20))
    if len({row[1] for row in rows}) < 2:
        rows += [(users[0], item, 1.0, 10**9) for item in items[:2]]
    return rows


def sorted_ids(ids: set[Any], untyped: bool) -> list[Any]:
    """Integers by value, text by its bytes; what is written like integers in a file without types is integers."""
    if all(isinstance(one, int) for one in ids):
        return sorted(ids)
    try:
        numbers = {one: int(one) for one in ids}
    except ValueError:
        numbers = {}
    if untyped and numbers and all(str(n) == one and -(2**63) <= n < 2**63 for one, n in numbers.items()):
        return sorted(ids, key=lambda one: numbers[one])
    return sorted(ids, key=lambda one: one.encode())


def plain(
    rows: list[tuple],
    untyped: bool,
    min_rating: float | None = None,
    duplicates: str = "keep",
    k_core: int | None = None,
) -> tuple[list, list, list[list[tuple]]] | None:
    """User ids, item ids and each user's (item, second, rating), by the letter of docs/data.md; None without two items.

    Ids are as in ``rows``, in the order in which they are numbered.
    """
    rows = sorted(rows, key=lambda row: row[3])  # stable: equal times keep the order of rows
    if min_rating is not None:
        rows = [row for row in rows if row[2] >= min_rating]
    if duplicates != "keep":
        kept: dict[tuple, tuple] = {}
        for row in rows if duplicates == "first" else rows[::-1]:
            kept.setdefault(row[:2], row)
        rows = [row for row in rows if any(row is one for one in kept.values())]
    while k_core is not None:
        users, items = [row[0] for row in rows], [row[1] for row in rows]
        left = [row for row in rows if users.count(row[0]) >= k_core and items.count(row[1]) >= k_core]
        if left == rows:
            break
        rows = left
    item_ids = sorted_ids({row[1] for row in rows}, untyped)
    if len(item_ids) < 2:
        return None
    # Whether ids are integers is decided from the whole file, before anything is dropped; the order is the same.
    user_ids = sorted_ids({row[0] for row in rows}, untyped)
    return user_ids, item_ids, [[(row[1], row[3], row[2]) for row in rows if row[0] == user] for user in user_ids]


def compare(data: Dataset, expected: tuple[list, list, list[list[tuple]]], seconds: float = 0.0) -> None:
    user_ids, item_ids, histories = expected
    assert list(map(str, data.user_ids)) == list(map(str, user_ids))
    assert list(map(str, data.item_ids)) == list(map(str, item_ids))
    found = data.interactions
    assert found.times is not None
    assert found.ratings is not None
    for user, history in enumerate(histories):
        own = slice(found.offsets[user], found.offsets[user + 1])
        assert [item_ids[item] for item in found.items[own]] == [item for item, _, _ in history]
        assert found.times[own].tolist() == [second + seconds for _, second, _ in history]
        assert found.ratings[own].tolist() == [rating for _, _, rating in history]


TIMES: dict[str, Any] = {
    "seconds": lambda s: s,
    "seconds as floats": lambda s: f"{s}.0",
    "fractions": lambda s: f"{s}.5",
    "milliseconds": lambda s: s * 10**3,
    "microseconds": lambda s: s * 10**6,
    "nanoseconds": lambda s: s * 10**9,
    "ISO": lambda s: datetime.fromtimestamp(s, UTC).strftime("%Y-%m-%d %H:%M:%S"),
    "ISO with T": lambda s: datetime.fromtimestamp(s, UTC).strftime("%Y-%m-%dT%H:%M:%S"),
    "ISO with a fraction": lambda s: datetime.fromtimestamp(s, UTC).strftime("%Y-%m-%d %H:%M:%S.500"),
    "ISO with an offset": lambda s: datetime.fromtimestamp(s + 7200, UTC).strftime("%Y-%m-%dT%H:%M:%S+02:00"),
}
HALF = ("fractions", "ISO with a fraction")
# Words such as "null" are ids here, and so is text with bars in it.
OPTIONS: dict[str, Any] = {"user": "who", "item": "what", "time": "when", "rating": "stars"}
OPTIONS |= {"missing_ids": "keep", "item_separator": "none"}
HEADER = ["who", "what", "stars", "when"]


def as_text(rows: list[tuple], separator: str = ",", form: str = "seconds", line_end: str = "\n") -> str:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=separator, lineterminator=line_end)
    writer.writerows([HEADER, *((u, i, rating, TIMES[form](second)) for u, i, rating, second in rows)])
    return out.getvalue()


def as_frame(rows: list[tuple]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=HEADER, orient="row")


@SETTLED
@given(
    tables(), st.sampled_from(",\t;|"), st.sampled_from(sorted(TIMES)), st.sampled_from(["\n", "\r\n"]), st.booleans()
)
def test_any_text(tmp_path: Path, rows: list[tuple], separator: str, form: str, line_end: str, mark: bool) -> None:
    content = as_text(rows, separator, form, line_end)
    path = tmp_path / "ratings.txt"
    path.write_text(content, encoding="utf-8-sig" if mark else "utf-8", newline="")
    data = read_interactions(path, **OPTIONS)
    as_written = [(str(user), str(item), *rest) for user, item, *rest in rows]
    expected = plain(as_written, untyped=True)
    assert expected is not None
    compare(data, expected, 0.5 if form in HALF else 0.0)


@SETTLED
@given(tables(), st.sampled_from(["polars", "pandas", "parquet", "parts"]))
def test_any_typed_table(tmp_path: Path, rows: list[tuple], form: str) -> None:
    frame, source = as_frame(rows), None
    if form == "polars":
        source = frame
    elif form == "pandas":
        source = frame.to_pandas()
    elif form == "parquet":
        source = tmp_path / "ratings.parquet"
        frame.write_parquet(source, row_group_size=3)
    else:
        source = [tmp_path / f"{part}.parquet" for part in range(2)]
        frame[: len(rows) // 2].write_parquet(source[0])
        frame[len(rows) // 2 :].write_parquet(source[1])
    expected = plain(rows, untyped=False)
    assert expected is not None
    compare(read_interactions(source, **OPTIONS), expected)


@SETTLED
@given(
    tables(),
    st.sampled_from([None, 0, 0.5, 3.5]),
    st.sampled_from(["keep", "first", "last"]),
    st.sampled_from([None, 1, 2, 3]),
)
def test_filters_together(rows: list[tuple], min_rating: float | None, duplicates: Any, k_core: int | None) -> None:
    expected = plain(rows, False, min_rating, duplicates, k_core)
    read = dict(**OPTIONS, min_rating=min_rating, duplicates=duplicates, k_core=k_core)
    if expected is None:
        with pytest.raises(DataError):
            read_interactions(as_frame(rows), **read)
        return
    data = read_interactions(as_frame(rows), **read)
    compare(data, expected)
    dropped = [data.report.get(f"dropped_{why}", 0) for why in ("below_min_rating", "duplicates", "by_k_core")]
    assert data.report["rows"] == len(rows) == data.report["interactions"] + sum(dropped)


@settings(SETTLED, max_examples=15)
@given(tables(), st.data())
def test_saved_and_loaded_it_is_the_same(tmp_path: Path, rows: list[tuple], data: st.DataObject) -> None:
    frame = as_frame(rows).with_columns(when=pl.Series(range(len(rows))))
    users, items = sorted({row[0] for row in rows}, key=str), sorted({row[1] for row in rows}, key=str)
    subset = st.sampled_from(["train", "valid", "test"])
    splits = [(u, i, n, data.draw(subset)) for n, (u, i, _, _) in enumerate(rows)]
    link = st.tuples(st.sampled_from(users), st.sampled_from(users))
    made = read_interactions(
        frame,
        **OPTIONS,
        items=pl.DataFrame(
            {"what": items, "title": [f"\u00abt\u00bb {item}" for item in items], "n": range(len(items))}
        ),
        users=pl.DataFrame({"who": users, "tags": [["a"] * (n % 3) for n in range(len(users))]}),
        social=pl.DataFrame(
            data.draw(st.lists(link, min_size=1, max_size=9)), schema=["source", "target"], orient="row"
        ),
        kg=pl.DataFrame({"head": ["a", "b"], "relation": ["r", "r"], "tail": ["b", "c"]}),
        item_entity=pl.DataFrame({"what": items, "entity_id": ["a", *(f"e{n}" for n in range(1, len(items)))]}),
        splits=pl.DataFrame(splits, schema=["who", "what", "when", "split"], orient="row"),
    )
    again = load_dataset(made.save(tmp_path / "saved"))
    assert again.fingerprint == made.fingerprint
    for one, other in (
        (made.interactions.offsets, again.interactions.offsets),
        (made.interactions.items, again.interactions.items),
        (made.interactions.times, again.interactions.times),
        (made.interactions.ratings, again.interactions.ratings),
        (made.given["given"], again.given["given"]),
        *((getattr(made.social, end), getattr(again.social, end)) for end in ("source", "target")),
        *((getattr(made.kg, name), getattr(again.kg, name)) for name in ("head", "relation", "tail", "item_entity")),
    ):
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)
    assert made.user_ids.equals(again.user_ids)
    assert made.item_ids.equals(again.item_ids)
    assert made.items is not None
    assert again.items is not None
    assert made.items.equals(again.items)
    assert made.users is not None
    assert again.users is not None
    assert made.users.equals(again.users)
    assert (again.title, again.has_timestamps, again.report) == (made.title, made.has_timestamps, made.report)
    # Each interaction is in the subset of its row in the splits.
    wanted = {n: ["train", "valid", "test"].index(word) for _, _, n, word in splits}
    assert made.given["given"].tolist() == [wanted[int(n)] for n in np.asarray(made.interactions.times)]


SPOILT = {
    "who": [("", "is empty"), (" u", "spaces around it"), ("   ", "is blank")],
    "what": [("", "is empty"), ("i ", "spaces around it")],
    "stars": [("", "is empty"), ("-1", "negative"), ("nan", "'nan'"), ("inf", "'inf'"), ("five", "'five'")],
    "when": [("", "is empty"), ("yesterday", "'yesterday'"), ("nan", ""), ("1e999", "")],
}


@SETTLED
@given(tables(), st.data())
def test_a_spoilt_field_is_named_by_file_line_and_column(
    tmp_path: Path, rows: list[tuple], data: st.DataObject
) -> None:
    rows = [(f"u{u}", f"i{i}", *rest) for u, i, *rest in [*rows, *rows, *rows]]
    column = data.draw(st.sampled_from(HEADER))
    value, says = data.draw(st.sampled_from(SPOILT[column]))
    at = data.draw(st.integers(0, len(rows) - 1))
    fields = [list(map(str, (u, i, rating, second))) for u, i, rating, second in rows]
    fields[at][HEADER.index(column)] = value
    line = 2 + at + sum(text.count("\n") for row in fields[:at] for text in row)
    path = tmp_path / "spoilt.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([HEADER, *fields])
    with pytest.raises(DataError) as refused:
        read_interactions(path, **OPTIONS)
    assert f"{path}, line {line}: column {column!r}" in str(refused.value)
    assert says in str(refused.value)
    assert refused.value.remedy
