"""Reading files and dataframes, and what is refused: each error names file, place, value and remedy."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from rediffuse.data.dataset import Dataset
from rediffuse.errors import ConfigError, DataError, RediffuseWarning
from rediffuse.readers import columns, tables
from rediffuse.readers.interactions import read_interactions

ROWS = "user_id,item_id,rating,time\nu1,a,3,100\nu1,b,4,200\nu2,a,5,150\n"
COLUMNS = {"time": "time", "rating": "rating"}


def read(path: object, **options: object) -> Dataset:
    return read_interactions(path, **{**COLUMNS, **options})  # pyright: ignore[reportArgumentType]


def write(folder: Path, content: str | bytes, name: str = "ratings.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(path: object, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        read(path, **options)
    assert caught.value.remedy, "every refusal says how to fix it"
    return str(caught.value)


def content(data: Dataset) -> tuple:
    found = data.interactions
    return (
        data.user_ids.to_list(),
        data.item_ids.to_list(),
        found.offsets.tolist(),
        found.items.tolist(),
        None if found.times is None else found.times.tolist(),
        None if found.ratings is None else found.ratings.tolist(),
    )


EXPECTED = (["u1", "u2"], ["a", "b"], [0, 2, 3], [0, 1, 0], [100, 200, 150], [3.0, 4.0, 5.0])


# --- what is read -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [",", "\t", ";", "|", " ", "::"])
def test_separators_are_found(tmp_path: Path, separator: str) -> None:
    path = write(tmp_path, ROWS.replace(",", separator))
    assert content(read(path)) == EXPECTED
    assert content(read(path, separator=separator)) == EXPECTED


def test_wanted_columns_decide_between_separators(tmp_path: Path) -> None:
    path = write(tmp_path, "user_id;item_id;a,b,c,d\nu1;x;1,2,3,4\nu1;y;1,2,3,4\n")
    assert read(path, time=None, rating=None).num_items == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.replace("\n", "\n\n").encode(),
        lambda text: text.rstrip("\n").encode(),
        lambda text: gzip.compress(text.encode()),
        lambda text: text.replace("u1", '"u1"').encode(),
    ],
    ids=["bom", "crlf", "blank lines", "no last newline", "gzip", "quotes"],
)
def test_variants_of_text_read_the_same(tmp_path: Path, change: object) -> None:
    assert content(read(write(tmp_path, change(ROWS)))) == EXPECTED  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "cp1252"])
def test_encoding(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path, ROWS.replace("u1", "ü1").encode(encoding))
    assert read(path, encoding=encoding).user_ids.to_list() == ["u2", "ü1"]


def test_dataframes_of_every_kind_read_the_same(tmp_path: Path) -> None:
    frame = pl.read_csv(ROWS.encode())
    frame.write_parquet(tmp_path / "all.parquet")
    sources = {
        "polars": frame,
        "lazy": frame.lazy(),
        "pandas": pd.read_csv(write(tmp_path, ROWS)),
        "arrow": frame.to_arrow(),
        "narwhals": nw.from_native(frame),
        "parquet": tmp_path / "all.parquet",
        "parquet as str": str(tmp_path / "all.parquet"),
        "csv": tmp_path / "ratings.csv",
    }
    prints = {name: read(source).fingerprint for name, source in sources.items()}
    assert len(set(prints.values())) == 1, prints


def test_folders_globs_and_lists_are_read_in_order_of_names(tmp_path: Path) -> None:
    frame = pl.read_csv(ROWS.encode())
    (tmp_path / "parts").mkdir()
    frame[:2].write_parquet(tmp_path / "parts" / "1.parquet")
    frame[2:].write_parquet(tmp_path / "parts" / "2.parquet")
    header, *rows = ROWS.splitlines()
    files = [write(tmp_path, f"{header}\n{row}\n", f"part{i}.csv") for i, row in enumerate(rows)]
    for source in (
        tmp_path / "parts",
        str(tmp_path / "parts" / "*.parquet"),
        files,
        str(tmp_path / "part?.csv"),
    ):
        assert content(read(source)) == EXPECTED


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_what_programs_keep_beside_a_table_is_no_part_of_it(tmp_path: Path, kind: str) -> None:
    """A job of Spark that died leaves a second copy below _temporary, and names folders like files."""
    frame = pl.read_csv(ROWS.encode())
    for place in ("part-0", "day.parquet/part-1", "_temporary/0/part-0", ".ipynb_checkpoints/part-0", "_part-0"):
        path = tmp_path / "logs" / f"{place}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = frame[2:] if "part-1" in place else frame[:2]
        rows.write_parquet(path) if kind == "parquet" else rows.write_csv(path)
    for source in ("", "*", "**", f"**/*.{kind}"):
        assert content(read(str(tmp_path / "logs" / source))) == EXPECTED, source
    named = tmp_path / "logs" / "_temporary"
    assert read(named).num_interactions == read(f"{named}/*/*.{kind}").num_interactions == 2
    (tmp_path / "logs" / "_temporary").rename(tmp_path / "died")
    (tmp_path / "died" / "0").rename(tmp_path / "died" / "_0")
    assert "begin with _ or . are skipped" in refusal(tmp_path / "died")
    assert "No file matches" in refusal(str(tmp_path / "died" / "*"))


def test_ids_stay_as_they_are(tmp_path: Path) -> None:
    """Text files have no types: ids that are all written like integers are integers, else all are text."""
    integers = read(write(tmp_path, "user_id,item_id\n10,7\n9,8\n10,8\n"), time=None, rating=None)
    assert integers.user_ids.to_list() == [9, 10]
    text = read(write(tmp_path, "user_id,item_id\n10,007\n9,8\n"), time=None, rating=None)
    assert text.item_ids.to_list() == ["007", "8"]
    frame = pl.DataFrame({"user_id": ["10", "9"], "item_id": [7, 8]})
    typed = read(frame, time=None, rating=None)
    assert typed.user_ids.to_list() == ["10", "9"]
    assert typed.item_ids.dtype == pl.Int64


@pytest.mark.parametrize("dtype", [pl.Categorical, pl.Enum(["b", "a"]), pl.String])
def test_categories_are_strings(dtype: Any) -> None:
    frame = pl.DataFrame({"user_id": [1, 1], "item_id": pl.Series(["a", "b"], dtype=dtype)})
    assert read(frame, time=None, rating=None).item_ids.to_list() == ["a", "b"]


def test_wide_and_negative_integer_ids() -> None:
    frame = pl.DataFrame({"user_id": [-5, 2**62, -5], "item_id": [10**15, 3, 3]})
    data = read(frame, time=None, rating=None)
    assert data.user_ids.to_list() == [-5, 2**62]
    assert data.interactions.row(0).tolist() == [1, 0]


# --- what is refused ----------------------------------------------------------------------------------------


def test_missing_file(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    message = refusal(tmp_path / "rating.csv")
    assert "rating.csv does not exist" in message
    assert message.endswith("Check the path of the interactions table. Did you mean 'ratings.csv'?")


def test_no_match_and_empty_folder(tmp_path: Path) -> None:
    assert "No file matches" in refusal(str(tmp_path / "*.parquet"))
    assert "holds no Parquet, CSV or TSV" in refusal(tmp_path)


@pytest.mark.parametrize("text", ["", "\n\n", b"\xef\xbb\xbf"])
def test_empty_file(tmp_path: Path, text: str | bytes) -> None:
    assert "ratings.csv is empty" in refusal(write(tmp_path, text))


@pytest.mark.parametrize("text", ["user_id,item_id,rating,time", "user_id,item_id,rating,time\n\n"])
def test_header_only(tmp_path: Path, text: str) -> None:
    assert "ratings.csv has a header but no rows" in refusal(write(tmp_path, text))


def test_empty_dataframe() -> None:
    assert "has a header but no rows" in refusal(pl.read_csv(ROWS.encode())[:0])


def test_wrong_separator(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, ROWS.replace(",", ";")), separator=",")
    assert "single column 'user_id;item_id;rating;time'" in message
    assert "separator=';'" in message


def test_tables_beside_the_interactions_may_have_another_separator(tmp_path: Path) -> None:
    path = write(tmp_path, ROWS.replace(",", "^"))
    for name, text in (("1.csv", "item_id;title\na;A\n"), ("2.csv", "item_id^title\na^A\n")):
        data = read(path, separator="^", items=write(tmp_path, text, name))
        assert data.items is not None
        assert data.items.rows() == [("a", "A"), ("b", None)]


def test_unknown_column(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, ROWS), user="userid")
    assert "ratings.csv has no column 'userid' (user)" in message
    assert "Did you mean 'user_id'?" in message
    assert "'item_id', 'rating', 'time'" in message


def test_missing_header(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, "196\t242\t3\t881250949\n186\t302\t3\t891717742\n", "u.data"))
    assert "The first line looks like data: add a header line" in message


def test_repeated_column(tmp_path: Path) -> None:
    assert "several columns named 'time'" in refusal(write(tmp_path, ROWS.replace("rating", "time")))


def test_too_many_fields(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, ROWS.replace("u1,b,4,200", "u1,b,4,200,7")))
    assert "ratings.csv, line 3 has 5 fields and the header has 4" in message


def test_too_few_fields(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, ROWS.replace("u1,b,4,200", "u1,b,4")))
    assert "ratings.csv, line 3: column 'time' (time) is empty" in message


def test_unclosed_quote(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, ROWS.replace("u1,b", '"u1,b')))
    assert "ratings.csv, line 3 cannot be split into fields" in message
    assert "quote" in message


@pytest.mark.parametrize("packed", [False, True])
def test_not_utf8(tmp_path: Path, packed: bool) -> None:
    raw = ROWS.replace("u1,b", "ü1,b").encode("latin-1")
    message = refusal(write(tmp_path, gzip.compress(raw) if packed else raw))
    at = raw.index(b"\xfc")
    assert f"ratings.csv is not UTF-8: byte {at} (line 3) is 0xfc" in message
    assert 'encoding="latin-1"' in message


def test_not_utf8_far_into_a_large_file(tmp_path: Path) -> None:
    rows = "".join(f"u{i},i{i % 7}\n" for i in range(200_000))
    raw = ("user_id,item_id\n" + rows).encode() + b"\xe9t\xe9,x\n"
    message = refusal(write(tmp_path, raw), time=None, rating=None)
    assert f"byte {raw.index(0xE9):,} (line 200002)" in message


def test_utf16_without_saying_so(tmp_path: Path) -> None:
    assert 'encoding="utf-16"' in refusal(write(tmp_path, ROWS.encode("utf-16")))


def test_wrong_or_unknown_encoding(tmp_path: Path) -> None:
    path = write(tmp_path, ROWS.replace("u1", "ü1").encode("latin-1"))
    assert "is not ASCII" in refusal(path, encoding="ascii")
    assert "There is no encoding 'klingon'" in refusal(path, encoding="klingon")


def test_damaged_files(tmp_path: Path) -> None:
    whole = gzip.compress((ROWS * 10000).encode())
    assert "damaged gzip" in refusal(write(tmp_path, whole[: len(whole) // 2], "cut.csv.gz"))
    pl.read_csv(ROWS.encode()).write_parquet(tmp_path / "a.parquet")
    cut = (tmp_path / "a.parquet").read_bytes()[:-20]
    assert "cannot be read as Parquet" in refusal(write(tmp_path, cut, "cut.parquet"))
    assert "is a zip archive or a spreadsheet" in refusal(write(tmp_path, b"PK\x03\x04....", "a.xlsx"))
    assert "bare carriage return" in refusal(write(tmp_path, ROWS.replace("\n", "\r")))


def test_files_that_do_not_go_together(tmp_path: Path) -> None:
    one, two = write(tmp_path, ROWS, "1.csv"), write(tmp_path, ROWS.replace("rating", "stars"), "2.csv")
    assert "2.csv has columns" in refusal([one, two])
    pl.read_csv(ROWS.encode()).write_parquet(tmp_path / "a.parquet")
    assert "mixes Parquet and text" in refusal([one, tmp_path / "a.parquet"])


@pytest.mark.parametrize(
    ("places", "said"),
    [
        (["a", "date=1/b"], "date=1/b.parquet lies in folders for 'date', and {}/a.parquet in no such folder"),
        (["date=1/a", "z"], "z.parquet lies in no such folder, and {}/date=1/a.parquet in folders for 'date'"),
        (["date=1/a", "hour=1/b"], "hour=1/b.parquet lies in folders for 'hour', and"),
        (["date=1/a", "date=2/hour=1/b"], "b.parquet lies in folders for 'date', 'hour', and"),
    ],
)
def test_folders_for_columns_beside_other_files(tmp_path: Path, places: list[str], said: str) -> None:
    for place in places:
        (tmp_path / place).parent.mkdir(exist_ok=True, parents=True)
        pl.read_csv(ROWS.encode()).write_parquet(tmp_path / f"{place}.parquet")
    assert said.format(tmp_path) in refusal(tmp_path)


# --- files that change --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["grown", "replaced", "removed"])
@pytest.mark.parametrize("kind", ["parquet", "csv", "csv.gz"])
def test_a_file_that_changes_while_it_is_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, how: str
) -> None:
    frame = pl.read_csv(ROWS.encode())

    def put(rows: pl.DataFrame, path: Path) -> None:
        content = rows.write_csv().encode()
        if kind == "parquet":
            rows.write_parquet(path)
        else:
            path.write_bytes(gzip.compress(content) if kind == "csv.gz" else content)

    files = [tmp_path / f"{n}.{kind}" for n in range(2)]
    put(frame[:2], files[0])
    put(frame[2:], files[1])
    assert content(read(files)) == EXPECTED
    # Columns of Parquet are read one after the other; text is read as a whole, after its header.
    place, name = (columns, "times") if kind == "parquet" else (tables.Table, "in_pieces")
    real = getattr(place, name)

    def changed_before(*arguments: Any) -> Any:
        if how == "removed":
            files[1].unlink()
        elif how == "replaced":
            put(frame[1:2], tmp_path / "new")
            (tmp_path / "new").replace(files[1])
        else:
            put(pl.concat([frame, frame]), files[1])
        return real(*arguments)

    monkeypatch.setattr(place, name, changed_before)
    assert f"{files[1]} was changed while it was read" in refusal(files)


def test_not_a_table() -> None:
    with pytest.raises(ConfigError, match=r"(?s)source is a dict, not a table.*Pass a path or a dataframe"):
        read({"user_id": [1]})
    with pytest.raises(ConfigError, match="items is 5, not a table"):
        read(pl.read_csv(ROWS.encode()), items=5)


@pytest.mark.parametrize("columns", [["user_id", "item_id", "item_id"], [0, 1, 2]], ids=["repeated", "numbers"])
def test_column_names_of_pandas(columns: list) -> None:
    frame = pd.DataFrame([[1, 10, 5], [1, 11, 6], [2, 10, 7]], columns=columns)
    if columns[0] == 0:
        with pytest.raises(ConfigError, match=r"(?s)user is 0, not the name of a column.*astype\(str\)"):
            read(frame, user=0, item=1, time=None, rating=None)
        assert read(frame, user="0", item="1", time=None, rating=None).num_interactions == 3
    else:
        assert "'item_id' 2 times" in refusal(frame, time=None, rating=None)


def test_mixed_objects_in_pandas() -> None:
    frame = pd.DataFrame({"user_id": pd.Series([1, "a"], dtype=object), "item_id": [1, 2]})
    assert "one type" in refusal(frame, time=None, rating=None)


# --- bad values: place, value, remedy -----------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["", "   "])
@pytest.mark.parametrize("column", ["user_id", "item_id"])
def test_missing_and_blank_ids(tmp_path: Path, column: str, bad: str) -> None:
    text = ROWS.replace("u1,b", f"{bad},b" if column == "user_id" else f"u1,{bad}")
    message = refusal(write(tmp_path, text))
    assert f"ratings.csv, line 3: column '{column}'" in message
    assert "is empty" in message if not bad else "is blank: '   '" in message


def test_padded_ids(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, ROWS.replace("u2,a", "u2, a")))
    assert "line 4: column 'item_id' (item) is ' a', with spaces around it" in message


def test_missing_ids_in_frames() -> None:
    frame = pd.DataFrame({"user_id": [1, None, 2], "item_id": [1, 2, 3]})
    message = refusal(frame, time=None, rating=None)
    assert "the interactions dataframe, row 2: column 'user_id' (user) is empty" in message


def test_float_ids() -> None:
    message = refusal(pl.DataFrame({"user_id": [1.5, 2.0], "item_id": [1, 2]}), time=None, rating=None)
    assert "column 'user_id' (user) holds Float64" in message
    assert "Ids must be integers or strings" in message


def test_too_large_ids() -> None:
    frame = pl.DataFrame({"user_id": pl.Series([2**63, 1], dtype=pl.UInt64), "item_id": [1, 2]})
    assert "beyond 64 bits" in refusal(frame, time=None, rating=None)


@pytest.mark.parametrize("bad", ["-1", "nan", "inf", "good", "", "3,5"])
def test_bad_ratings(tmp_path: Path, bad: str) -> None:
    message = refusal(write(tmp_path, ROWS.replace("u1,b,4", f'u1,b,"{bad}"')))
    assert "ratings.csv, line 3: column 'rating' (rating)" in message
    assert "negative" in message if bad == "-1" else True


@pytest.mark.parametrize("bad", [-1.0, float("nan"), None])
def test_bad_ratings_in_frames(bad: float | None) -> None:
    frame = pl.DataFrame({"user_id": [1, 1], "item_id": [1, 2], "rating": [1.0, bad]})
    assert "row 2: column 'rating'" in refusal(frame, time=None)


def test_place_in_files(tmp_path: Path) -> None:
    """Lines are those of the file: blank lines and line ends inside quotes count."""
    path = write(tmp_path, 'user_id,item_id,note\n\n1,2,"two\nlines"\n\n1,,x\n')
    assert "line 6: column 'item_id'" in refusal(path, time=None, rating=None)
    files = [write(tmp_path, ROWS, "1.csv"), write(tmp_path, ROWS.replace(",100", ",soon"), "2.csv")]
    assert "2.csv, line 2: column 'time' (time) is 'soon'" in refusal(files)
    for i, rating in enumerate((1.0, -2.0)):
        frame = pl.DataFrame({"user_id": [1, 1], "item_id": [1, 2], "rating": [1.0, rating]})
        frame.write_parquet(tmp_path / f"{i}.parquet")
    assert "1.parquet, row 2: column 'rating'" in refusal(str(tmp_path / "*.parquet"), time=None)


# --- times --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "seconds", "unit"),
    [
        (["1600000000", "1600000060"], [1600000000, 1600000060], "seconds"),
        (["1600000000000", "1600000060000"], [1600000000, 1600000060], "milliseconds"),
        (["1600000000500", "1600000060000"], [1600000000.5, 1600000060.0], "milliseconds"),
        (["1600000000000000", "1600000060000000"], [1600000000, 1600000060], "microseconds"),
        (["1600000000000000000", "1600000060000000000"], [1600000000, 1600000060], "nanoseconds"),
        (["1600000000.0", "1600000060.0"], [1600000000, 1600000060], "seconds"),
        (["-100", "5"], [-100, 5], "seconds"),
        (["1970-01-01", "1970-01-02"], [0, 86400], "ISO text"),
        (["1970-01-01 00:00:01", "1970-01-01 00:01:00"], [1, 60], "ISO text"),
        (["1970-01-01T00:00:01.5", "1970-01-01T00:01:00"], [1.5, 60.0], "ISO text"),
        (["1970-01-01T00:00:01Z", "1970-01-01T00:01:00Z"], [1, 60], "ISO text"),
        (["1970-01-01T01:00:01+01:00", "1970-01-01T00:01:00Z"], [1, 60], "ISO text"),
        (["1970-01-01 00:01", "1970-01-01 00:02"], [60, 120], "ISO text"),
    ],
)
def test_times(tmp_path: Path, values: list[str], seconds: list[float], unit: str) -> None:
    path = write(tmp_path, "user_id,item_id,time\n" + "".join(f"1,{i},{v}\n" for i, v in enumerate(values)))
    data = read(path, rating=None)
    assert data.interactions.times is not None
    assert data.interactions.times.tolist() == seconds
    assert data.interactions.times.dtype == (np.float64 if isinstance(seconds[0], float) else np.int64)
    assert data.report["time_unit"] == unit
    assert data.has_timestamps


@pytest.mark.parametrize(
    "dtype", [pl.Datetime("ms"), pl.Datetime("us"), pl.Datetime("ns"), pl.Datetime("us", "UTC"), pl.Date]
)
def test_datetimes(dtype: pl.DataType) -> None:
    days = pl.Series([86400 * 10**6, 0]).cast(pl.Datetime("us")).cast(dtype)
    data = read(pl.DataFrame({"user_id": [1, 1], "item_id": [1, 2], "time": days}), rating=None)
    assert data.interactions.times is not None
    assert data.interactions.times.tolist() == [0, 86400]
    assert data.interactions.row(0).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("values", "line", "value"),
    [
        (["100", "200", "2020-01-01"], 4, "2020-01-01"),
        (["100", "soon", "200"], 3, "soon"),
        (["2020-01-01", "2020-01-02", "500"], 4, "500"),
        (["2020-01-01", "2020-01-02 10:00:00", "2020-01-03"], 3, "2020-01-02 10:00:00"),
        (["2020-01-01", "2020-02-30", "2020-01-03"], 3, "2020-02-30"),
        (["31/12/2020", "30/12/2020", "29/12/2020"], 2, "31/12/2020"),
        (["1600000000000", "1600000000", "1600000000001"], 3, "1600000000"),
        (["100", "nan", "200"], 3, "nan"),
        (["100", "1e300", "200"], 3, "1e300"),
        (["100", "200", "-9223372036854775809"], 4, "-9223372036854775809"),
        (["100", "", "200"], 3, "is empty"),
    ],
)
def test_bad_times(tmp_path: Path, values: list[str], line: int, value: str) -> None:
    path = write(tmp_path, "user_id,item_id,time\n" + "".join(f"1,{i},{v}\n" for i, v in enumerate(values)))
    message = refusal(path, rating=None)
    assert f"ratings.csv, line {line}: column 'time' (time)" in message
    assert value in message


@pytest.mark.parametrize("bad", [1e300, -1e300, 2.0**63, -(2.0**63)])
def test_times_that_no_integer_holds(bad: float) -> None:
    frame = pl.DataFrame({"user_id": [1, 1, 1], "item_id": [1, 2, 3], "time": [1e9, bad, 2e9]})
    assert f"dataframe, row 2: column 'time' (time) is {bad}, more than 64 bits hold" in refusal(frame, rating=None)


def test_times_of_other_types() -> None:
    frame = pl.DataFrame({"user_id": [1, 1], "item_id": [1, 2], "time": [True, False]})
    assert "holds Boolean values" in refusal(frame, rating=None)


def test_a_column_called_timestamp_is_not_taken_in_silence(tmp_path: Path) -> None:
    path = write(tmp_path, ROWS.replace("time", "timestamp"))
    with pytest.warns(RediffuseWarning, match="time='timestamp'"):
        data = read(path, time=None)
    assert data.has_timestamps
    assert any("timestamp" in note for note in data.report["notes"])


def test_arrow_with_chunks_and_dictionary() -> None:
    ids = pa.chunked_array([["a", "b"], ["a"]]).dictionary_encode()
    table = pa.table({"user_id": [1, 1, 2], "item_id": ids})
    assert read(table, time=None, rating=None).item_ids.to_list() == ["a", "b"]
