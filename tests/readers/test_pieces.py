"""Reading piece by piece and working block by block: the same as in one go, with errors as exact."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from rediffuse.data import dataset, histories, split, subsets
from rediffuse.data.dataset import Dataset
from rediffuse.errors import DataError
from rediffuse.readers import rows as interaction_rows
from rediffuse.readers import tables
from rediffuse.readers.interactions import read_interactions


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the number of rows that are read at once, and of interactions that are worked on at once."""

    def cut(size: int) -> None:
        monkeypatch.setattr(tables, "PIECE", size)
        for module in (histories, interaction_rows, subsets, dataset):
            monkeypatch.setattr(module, "BLOCK", size)

    return cut


def rows(count: int = 400) -> pl.DataFrame:
    rng = np.random.default_rng(3)
    return pl.DataFrame(
        {
            "user_id": rng.integers(0, 30, count),
            "item_id": rng.integers(0, 25, count),
            "time": rng.integers(0, 60, count),
            "rank": rng.integers(0, 5, count),
            "rating": rng.integers(1, 6, count).astype(np.float64),
        }
    )


def save(frame: pl.DataFrame, folder: Path, files: int = 7) -> Path:
    """The rows in files of uneven size."""
    ends = np.linspace(0, 1, files + 1) ** 2 * len(frame)
    for number in range(files):
        place = folder / f"part={number}"
        place.mkdir(parents=True)
        frame[int(ends[number]) : int(ends[number + 1])].write_parquet(place / "rows.parquet", row_group_size=13)
    return folder


def text(prefix: str, column: str) -> pl.Expr:
    return pl.concat_str(pl.lit(prefix), pl.col(column).cast(pl.String)).alias(column)


SECONDS = pl.col("time") + 1_600_000_000
FORMS = {
    "integers": pl.all(),
    "sparse integers": pl.col("user_id", "item_id").cast(pl.Int64) * 10**12 - 5,
    "narrow integers": pl.col("user_id", "item_id").cast(pl.UInt8),
    "strings": [text("u", "user_id"), text("i", "item_id")],
    "categories": text("i", "item_id").cast(pl.Categorical),
    "milliseconds": SECONDS * 1000,
    "parts of a second": SECONDS * 1000 + pl.col("rank"),
    "fractions": SECONDS + 0.25,
    "dates": pl.from_epoch(SECONDS * 10, time_unit="s").cast(pl.Date).alias("time"),
    "datetimes": pl.from_epoch(SECONDS, time_unit="s").alias("time"),
    "ISO text": pl.from_epoch(SECONDS, time_unit="s").dt.to_string("%Y-%m-%d %H:%M:%S").alias("time"),
    "numbers in text": pl.col("time", "rating").cast(pl.String),
    # Integers in some pieces, not in all of them.
    "some fractions in text": pl.when(pl.col("time") == 3)
    .then(pl.lit("2.5"))
    .otherwise(pl.col("time").cast(pl.String))
    .alias("time"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "options", [{}, {"k_core": 4, "duplicates": "last", "order": "rank"}], ids=["plain", "filters"]
)
def test_pieces_read_the_same_as_one(tmp_path: Path, small: Any, form: str, options: dict[str, Any]) -> None:
    frame = rows(150).with_columns(FORMS[form])
    # The oldest polars cannot join categories of several files.
    source: Any = frame if form == "categories" else save(frame, tmp_path / "rows")

    def read() -> Dataset:
        return read_interactions(source, time="time", rating="rating", **options)

    whole = read()
    assert whole.num_interactions > 50
    for size in (2, 64):
        small(size)
        again = read()
        assert again.fingerprint == whole.fingerprint
        assert again.report == whole.report
        assert again.user_ids.equals(whole.user_ids)
        assert again.item_ids.equals(whole.item_ids)


@pytest.mark.parametrize("names", ["strings", "integers"])
@pytest.mark.parametrize("kind", ["parquet", "frame", "csv"])
def test_splits_are_matched_the_same_in_pieces(tmp_path: Path, small: Any, kind: str, names: str) -> None:
    frame = rows().with_columns(FORMS[names])
    subsets = pl.Series("split", ["train", "valid", "Test", "train"] * 100)
    given = pl.concat([frame[::-1].with_columns(subsets, scheme=pl.lit(scheme)) for scheme in ("one", "two")])
    given = given.with_columns(pl.col("scheme").shift(3, fill_value="two"))  # the last scheme comes first
    source: Any = given
    if kind == "parquet":
        source = save(given, tmp_path / "splits")
    elif kind == "csv":
        source = tmp_path / "splits.csv"
        given.write_csv(source)

    def read() -> Dataset:
        return read_interactions(frame, time="time", order="rank", splits=source)

    whole = read()
    assert list(whole.given) == ["two", "one"]
    assert set(np.unique(whole.given["one"]).tolist()) >= {0, 1, 2}
    for size in (7, 64):
        small(size)
        again = read()
        assert again.report == whole.report
        assert list(again.given) == list(whole.given)
        assert all((again.given[scheme] == subset).all() for scheme, subset in whole.given.items())
    bad = given.with_columns(pl.when(pl.int_range(pl.len()) == 90).then(pl.lit("x")).otherwise("split").alias("split"))
    with pytest.raises(DataError, match=r"splits dataframe, row 91: column 'split' \(subset\) is 'x'"):
        read_interactions(frame, time="time", splits=bad)


def test_text_files_are_numbered_piece_by_piece(tmp_path: Path, small: Any) -> None:
    """Ids of a text file are integers only if those of all pieces are."""
    (tmp_path / "a.csv").write_text("user_id,item_id\n10,7\n9,8\n10,8\n8,x\n")
    small(2)
    data = read_interactions(tmp_path / "a.csv")
    assert data.user_ids.to_list() == [8, 9, 10]
    assert data.item_ids.to_list() == ["7", "8", "x"]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("user_id", None, "column 'user_id' (user) is empty"),
        ("user_id", " ", "column 'user_id' (user) is blank: ' '"),
        ("item_id", " i3", "column 'item_id' (item) is ' i3', with spaces around it"),
        ("rating", -2.0, "column 'rating' (rating) is -2.0, which is negative"),
        ("rating", float("nan"), "column 'rating' (rating) is nan"),
        ("rating", None, "column 'rating' (rating) is empty"),
        ("time", None, "column 'time' (time) is empty"),
        ("time", 1_600_000_000, "column 'time' (time) is 1600000000, a coarser unit than the milliseconds"),
        ("rank", None, "column 'rank' (order) is empty"),
    ],
)
def test_the_first_bad_row_of_a_later_piece_is_named(
    tmp_path: Path, small: Any, column: str, value: Any, message: str
) -> None:
    frame = rows(40).with_columns(text("u", "user_id"), text("i", "item_id"), SECONDS * 1000)
    bad = pl.Series(
        [value if row in (33, 37) else kept for row, kept in enumerate(frame[column])], dtype=frame[column].dtype
    )
    frame = frame.with_columns(bad.alias(column))
    for number, rows_ in enumerate((frame[:20], frame[20:])):
        rows_.write_parquet(tmp_path / f"{number}.parquet")
    for size in (8, 1000):
        small(size)
        with pytest.raises(DataError) as caught:
            read_interactions(tmp_path, time="time", rating="rating", order="rank")
        assert f"1.parquet, row 14: {message}" in str(caught.value)
        assert caught.value.remedy


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        ("2024-03-01", "2024-03-01 12:00", "others look like '2024-03-01'"),
        ("2024-03-01", "5", "is '5'"),
        ("1700000000", "2024-03-01", "is '2024-03-01', and most other values are numbers"),
    ],
)
def test_the_first_piece_tells_the_form_of_times(tmp_path: Path, small: Any, good: str, bad: str, message: str) -> None:
    frame = pl.DataFrame({"user_id": [1] * 9, "item_id": range(9), "time": [good] * 7 + [bad, good]})
    frame.write_parquet(tmp_path / "a.parquet")
    small(2)
    with pytest.raises(DataError) as caught:
        read_interactions(tmp_path / "a.parquet", time="time")
    assert "a.parquet, row 8: column 'time' (time) is" in str(caught.value)
    assert message in str(caught.value)
    small(1)
    with pytest.raises(DataError, match=rf"row 8: column 'time' \(time\) is '{bad}'"):
        read_interactions(tmp_path / "a.parquet", time="time")


def test_more_missing_values_are_counted_as_far_as_was_looked(tmp_path: Path, small: Any) -> None:
    frame = pl.DataFrame({"user_id": [1, None, None, 2, None], "item_id": range(5)})
    for size, said in ((3, "(at least 1 more rows likewise)"), (100, "(2 more rows likewise)")):
        small(size)
        with pytest.raises(DataError) as caught:
            read_interactions(frame)
        assert said in str(caught.value)


NUMBERS = pl.col("user_id", "item_id", "time")


@pytest.mark.parametrize("changed", [{1}, {0, 2}])
@pytest.mark.parametrize(
    "change",
    [NUMBERS.cast(pl.Int32), NUMBERS.cast(pl.UInt16), pl.lit(1).alias("more"), pl.lit("x").alias("rating")],
    ids=["narrower", "unsigned", "more columns", "another type that is not asked for"],
)
def test_files_need_agree_in_what_is_asked_for_alone(
    tmp_path: Path, small: Any, change: pl.Expr, changed: set[int]
) -> None:
    frame = rows()
    whole = read_interactions(frame, time="time")
    for number, rows_ in enumerate((frame[:50], frame[50:300], frame[300:])):
        rows_ = rows_.with_columns(change) if number in changed else rows_
        rows_.write_parquet(tmp_path / f"{number}.parquet")
    for size in (7, 1000):
        small(size)
        assert read_interactions(tmp_path, time="time").fingerprint == whole.fingerprint


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (pl.col("user_id").cast(pl.String), "1.parquet: column 'user_id' holds String values, and Int64 in {}"),
        (pl.col("time").cast(pl.Float64), "1.parquet: column 'time' holds Float64 values, and Int64 in {}"),
    ],
)
def test_files_whose_columns_differ_in_type(tmp_path: Path, small: Any, form: pl.Expr, message: str) -> None:
    frame = rows(40)
    frame[:20].write_parquet(tmp_path / "0.parquet")
    frame[20:].with_columns(form).write_parquet(tmp_path / "1.parquet")
    for size in (1, 100):
        small(size)
        with pytest.raises(DataError) as caught:
            read_interactions(tmp_path, time="time")
        assert message.format(tmp_path / "0.parquet") in str(caught.value)


def test_a_column_that_a_file_lacks_is_named(tmp_path: Path) -> None:
    frame = rows(40)
    frame[:20].write_parquet(tmp_path / "0.parquet")
    frame[20:].drop("time").write_parquet(tmp_path / "1.parquet")
    assert read_interactions(tmp_path).num_interactions == 40
    with pytest.raises(DataError, match=r"1\.parquet has no column 'time', which .*0\.parquet has"):
        read_interactions(tmp_path, time="time")


def test_no_rows(tmp_path: Path) -> None:
    rows()[:0].write_parquet(tmp_path / "0.parquet")
    with pytest.raises(DataError, match="has a header but no rows"):
        read_interactions(tmp_path)


# --- folders that stand for columns -------------------------------------------------------------------------


@pytest.fixture
def days(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "log [1]"
    for day in ("2024-03-02", "2024-03-01"):
        (folder / f"date={day}").mkdir(parents=True)
        pl.DataFrame({"user_id": [1, 2], "item_id": [3, int(day[-1])]}).write_parquet(
            folder / f"date={day}" / "part-0.parquet"
        )
    (folder / "_SUCCESS").touch()
    return folder


def test_folders_called_column_equals_value_are_columns(days: Path, small: Any) -> None:
    for size in (3, 1000):
        small(size)
        data = read_interactions(days, time="date")
        assert data.report["time_unit"] == "dates"
        assert data.interactions.times is not None
        assert (data.interactions.times // 86_400).tolist() == [19783, 19784] * 2
        assert data.item_ids.gather(data.interactions.row(1)).to_list() == [1, 2]


def test_folders_need_not_be_used(days: Path) -> None:
    assert read_interactions(days).num_interactions == 4
    files = sorted(days.rglob("*.parquet"))
    assert read_interactions(files, time="date").has_timestamps


# --- blocks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [split.leave_one_out, split.global_time, split.ratio])
def test_splits_and_their_tasks_are_the_same_in_blocks(small: Any, make: Any) -> None:
    data = read_interactions(rows(), time="time", rating="rating")
    whole = make(data)
    test = whole.task("test")
    small(11)
    again = make(data)
    assert again.fingerprint == whole.fingerprint
    assert again.task("test").popularity.tolist() == test.popularity.tolist()
    assert again.task("test").histories.items.tolist() == test.histories.items.tolist()


@pytest.mark.parametrize("times", [[2**62, -(2**62), 0, 5], [0.5, -1.5, 0.25, 9.0]])
def test_times_that_do_not_fit_beside_the_user_are_sorted_too(times: list[Any]) -> None:
    frame = pl.DataFrame({"user_id": [1, 1, 2, 2], "item_id": [1, 2, 3, 4], "place": times})
    data = read_interactions(frame, order="place")
    assert data.interactions.times is not None
    assert data.interactions.times.tolist() == [*sorted(times[:2]), *sorted(times[2:])]
