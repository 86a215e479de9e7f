"""How files are opened: literal paths, first bytes, quotes, headers, limits."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tests.test_cli import command

import rediffuse as rd
from rediffuse.data.dataset import Dataset
from rediffuse.errors import ConfigError, DataError, RediffuseWarning
from rediffuse.readers import packing
from rediffuse.readers.json_tables import read_json
from rediffuse.recommender.item_files import read_item_ids
from rediffuse.recommender.user_files import UserFile
from rediffuse.table_files import read_csv, read_parquet, scan_parquet

TABLE = "user_id,item_id,rating\n7,1,3\n7,2,4\n8,1,5\n"
ROWS = [(7, 1, 3.0), (7, 2, 4.0), (8, 1, 5.0)]
# Names that polars, a URL or a terminal would read as something else.
NAMES = ["r[1]", "r*", "r?", "r{1,2}", "~r", "r [v2]", "r%20", "r#1", "[red]r", "f:"]


def put(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows_of(data: Dataset) -> list[tuple]:
    found = data.interactions
    owners = np.repeat(np.arange(len(found)), found.lengths)
    ratings = found.ratings.tolist() if found.ratings is not None else [None] * len(owners)
    users, items = data.user_ids.to_list(), data.item_ids.to_list()
    return [(users[u], items[i], r) for u, i, r in zip(owners, found.items.tolist(), ratings, strict=True)]


def read(source: object, **options: Any) -> list[tuple]:
    return rows_of(rd.read_interactions(source, **{"rating": "rating", **options}))


def refusal(source: object, **options: Any) -> str:
    with pytest.raises((DataError, ConfigError)) as caught:
        read(source, **options)
    assert caught.value.remedy
    return str(caught.value)


# --- literal paths ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["csv", "parquet", "csv.gz", "jsonl", "feather"])
def test_a_path_is_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    frame = pl.read_csv(TABLE.encode())
    path = Path(name) / f"{name}.{kind}"
    path.parent.mkdir()
    content = {
        "csv": TABLE.encode(),
        "csv.gz": gzip.compress(TABLE.encode()),
        "jsonl": frame.write_ndjson().encode(),
    }
    if kind in content:
        path.write_bytes(content[kind])
    else:
        with path.open("wb") as file:
            frame.write_parquet(file) if kind == "parquet" else frame.write_ipc(file)
    # What the name would match as a pattern holds other rows.
    for other in ("r1", "r", "r2"):
        put(tmp_path, f"{other}/{other}.{kind}", "user_id,item_id\n0,0\n")
    assert read(path) == ROWS
    assert read(str(path)) == ROWS
    assert read([path]) == ROWS
    assert read(path.parent) == ROWS
    assert read(f"{name}/*.{kind}") == ROWS  # only the rest is a pattern


def test_patterns_are_patterns_where_no_such_path_exists(tmp_path: Path) -> None:
    put(tmp_path, "r1.csv", TABLE)
    put(tmp_path, "d1/a.csv", TABLE)
    assert read(tmp_path / "r[1].csv") == ROWS
    assert read(tmp_path / "d?/*.csv") == ROWS
    put(tmp_path, "d?/b.csv", TABLE.replace("8,1,5", "8,1,1"))
    assert read(tmp_path / "d?/*.csv") != ROWS
    assert "No file matches" in refusal(tmp_path / "q[1].csv")


def test_the_readers_of_the_package_take_no_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    frame = pl.DataFrame({"a": [1]})
    frame.write_parquet(tmp_path / "x1.parquet")
    put(tmp_path, "x1.csv", "a\n1\n")
    for pattern in ("x[1]", "x*", "x?", "x{1}"):
        for reader in (read_parquet, lambda path: scan_parquet([path]).collect()):
            with pytest.raises(FileNotFoundError):
                reader(f"{pattern}.parquet")
        with pytest.raises(FileNotFoundError):
            read_csv(f"{pattern}.csv")
    folder = tmp_path / "folder.parquet"
    folder.mkdir()
    frame.write_parquet(folder / "a.parquet")
    with pytest.raises(IsADirectoryError):
        read_parquet(folder)


@pytest.mark.parametrize("name", ["r[1]", "~r{a}", "r?*"])
def test_every_command_takes_such_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> None:
        code, out, err = command(*arguments)
        assert code == 0, (arguments, out, err)

    def table(prefix: str, shift: int = 0) -> str:
        lines = (
            f"{prefix}u{u},{prefix}i{(u * 3 + t * (u % 3 + 1)) % 11},{u + t + shift}"
            for u in range(20)
            for t in range(8)
        )
        return "user_id,item_id,timestamp\n" + "\n".join(lines) + "\n"

    here = Path(name)
    put(here, f"t{name}.csv", table("a"))
    put(here, f"later{name}.csv", table("a", 100).replace("ai0", "ai1"))
    put(here, f"users{name}.csv", "user_id\nau1\nau2\n")
    put(here, f"items{name}.csv", "item_id\nai1\nai2\n")
    data, knn, theat = (here / f"{kind}{name}" for kind in ("data", "knn", "theat"))
    run("prepare", here / f"t{name}.csv", "--time", "timestamp", "-o", data)
    # What the names would match as patterns are other data.
    for other in ("r1", "ra", "rxy"):
        put(Path(other), f"t{other}.csv", table("b"))
        run("prepare", Path(other) / f"t{other}.csv", "--time", "timestamp", "-o", Path(other) / f"data{other}")
    run("train", "itemknn", data, "-o", knn)
    run("train", "theat", data, "-o", theat)
    run("evaluate", knn, theat, data)
    run("compare", knn, theat, "-o", here / f"report{name}")
    lists = here / f"lists{name}.parquet"
    run("recommend", knn, "--users", here / f"users{name}.csv", "-k", 3, "-o", lists)
    assert read_parquet(lists)["item_id"].str.starts_with("a").all()
    excluded = ("--exclude-file", here / f"items{name}.csv")
    run("recommend", knn, "--users", here / f"users{name}.csv", "-k", 3, "-o", here / f"parts{name}", *excluded)
    run("update-histories", knn, here / f"later{name}.csv", "--time", "timestamp", "-o", here / f"fresh{name}")
    run("refit", knn, data, "-o", here / f"refit{name}")
    run("blend", knn, theat, "--data", data, "-o", here / f"blend{name}")
    run("augment", "random", data, "-o", here / f"longer{name}")
    run("tune", "itemknn", data, "-o", here / f"study{name}", "--trials", 2)
    assert rd.load_dataset(data).item_ids[0].startswith("a")
    assert {path.name for path in tmp_path.iterdir()} == {name, "r1", "ra", "rxy"}


# --- first bytes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.bz2", "t.xz", "t"])
@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_packed_text_whatever_its_name(tmp_path: Path, name: str, pack: Any) -> None:
    assert read(put(tmp_path, name, pack(TABLE.encode()))) == ROWS
    assert read(put(tmp_path, name, pack(TABLE.encode("utf-16"))), encoding="utf-16") == ROWS


@pytest.mark.parametrize("pack", [bz2.compress, lzma.compress])
def test_damaged_packings_are_named(tmp_path: Path, pack: Any) -> None:
    content = pack(TABLE.encode() * 5000)
    assert "is a damaged" in refusal(put(tmp_path, "t.csv", content[: len(content) // 2]))


LINES = '{"user_id": 7, "item_id": 1, "rating": 3}\n{"user_id": 7, "item_id": 2, "rating": 4.0, "x": [1]}\n\n'
LINES += '{"user_id": 8, "item_id": 1, "rating": 5, "deep": {"a": "b"}}'


@pytest.mark.parametrize("name", ["t.jsonl", "t.json", "t.csv", "t.json.gz"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress])
def test_json_lines(tmp_path: Path, name: str, pack: Any) -> None:
    assert read(put(tmp_path, name, pack(LINES.encode()))) == ROWS
    listed = "[" + ",".join(line for line in LINES.splitlines() if line) + "]"
    assert read(put(tmp_path, name, pack(listed.encode()))) == ROWS
    assert read(put(tmp_path, name, pack(b"\xef\xbb\xbf" + LINES.encode()))) == ROWS


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"user_id": 1, "item_id": 2}\n{"user_id": 1, "item_id": }\n', "is not JSON in line 2"),
        ('{"user_id": 1, "item_id": 2}\n[1, 2]\n', "line 2 is no JSON object"),
        ('{\n  "user_id": 1\n}\n', "spans lines"),
        ('{"user_id": {"0": 1}, "item_id": {"0": 1}}', "one JSON object of columns"),
        (
            '{"user_id": true, "item_id": 2}\n{"user_id": 3, "item_id": 2}\n',
            "is true or false in line 1 and an integer",
        ),
        ("{'user_id': 1, 'item_id': 2}\n", "a Python dict per line"),
        ("[[1, 2], [3, 4]]", "is no JSON object"),
    ],
)
def test_json_that_is_no_table(tmp_path: Path, text: str, said: str) -> None:
    assert said in refusal(put(tmp_path, "t.jsonl", text), rating=None)


def test_json_agrees_with_the_library(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [{"a": int(rng.integers(99)), "b": f"ü{n}\n", "c": None if n % 3 else n / 2} for n in range(300)]
    text = "\n".join(json.dumps(row, ensure_ascii=n % 2 == 0) for n, row in enumerate(rows))
    assert read_json(put(tmp_path, "t.json", text)).to_dicts() == rows


def test_arrow_files(tmp_path: Path) -> None:
    frame = pl.read_csv(TABLE.encode())
    for name in ("t.feather", "t.csv"):
        frame.write_ipc(tmp_path / name)
        assert read(tmp_path / name) == ROWS
    frame.write_ipc_stream(tmp_path / "t.arrow")
    assert read(tmp_path / "t.arrow") == ROWS
    whole = (tmp_path / "t.feather").read_bytes()
    assert "cannot be read as Arrow" in refusal(put(tmp_path, "cut.feather", whole[:-20]))


class Attack:
    def __reduce__(self) -> tuple:
        return os.abort, ()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("content", [{"user_id": [1]}, [(1, 2)], ([1],), Attack(), pl.Series([1])])
def test_pickles_are_refused_as_such(tmp_path: Path, protocol: int, content: Any) -> None:
    packed = pickle.dumps(content, protocol=protocol)
    assert "is a pickle" in refusal(put(tmp_path, "t.csv", packed))
    assert "packed with gzip, and inside it is a pickle" in refusal(put(tmp_path, "t.pkl.gz", gzip.compress(packed)))
    with pytest.raises(DataError, match="is a pickle"):
        UserFile(put(tmp_path, "t.parquet", packed), lambda name: False)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x93NUMPY\x01\x00v", "a NumPy array"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"SQLite format 3\x00", "an SQLite database"),
        (b"<!DOCTYPE html>\n<html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b'\x04"M\x18rest', "packed with LZ4"),
        (b"t.csv" + b"\0" * 252 + b"ustar  \0", "a tar archive"),
        (
            gzip.compress(gzip.compress(TABLE.encode(), mtime=0), mtime=0),
            "packed with gzip, and inside it is packed with gzip",
        ),
        (gzip.compress(b"PAR1rest", mtime=0), "a Parquet file packed with gzip"),
        (b"PK\x03\x04", "a zip archive or a spreadsheet"),
    ],
)
def test_other_formats_are_named(tmp_path: Path, content: bytes, said: str) -> None:
    assert said in refusal(put(tmp_path, "t.csv", content))


def test_zstandard_is_read_or_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path, "t.csv", b"(\xb5/\xfd\x04\x00")
    monkeypatch.setattr(packing.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
    assert "packed with zstandard, which this Python cannot unpack" in refusal(path)


# --- quotes -------------------------------------------------------------------------------------------------


def stray(separator: str, quotes: tuple[int, int], rows: int = 40) -> str:
    """A table with one stray quote at the beginning of a field of one row and at the end of one of another."""
    lines = ["user_id,item_id,time,name"]
    for n in range(rows):
        name = f'"title {n}' if n == quotes[0] else f'title {n}"' if n == quotes[1] else f"title {n}"
        lines.append(f"{n % 5},{n},{n},{name}")
    return "\n".join(lines).replace(",", separator) + "\n"


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
@pytest.mark.parametrize("quotes", [(1, 2), (0, 39), (7, 30)])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_quotes_that_swallow_lines(tmp_path: Path, separator: str, quotes: tuple[int, int], pack: Any) -> None:
    path = put(tmp_path, "t.txt", pack(stray(separator, quotes).encode()))
    said = refusal(path, rating=None, time="time")
    assert f"lines {quotes[0] + 2} to {quotes[1] + 2}" in said
    assert 'quoting="none"' in said
    data = rd.read_interactions(path, time="time", quoting="none")
    assert data.num_interactions == 40
    code, out, _ = command("prepare", path, "--time", "time", "--quoting", "none", "-o", tmp_path / "d", "--json")
    assert code == 0
    assert json.loads(out)["interactions"] == 40


def test_a_stray_quote_in_front_of_the_swallowed_column(tmp_path: Path) -> None:
    text = 'user_id,name,item_id\n1,"a,1\n1,b,2\n2,c,1\n2,d",2\n'
    assert "lines 2 to 5" in refusal(put(tmp_path, "t.csv", text), rating=None)


def test_fields_that_span_lines_on_purpose(tmp_path: Path) -> None:
    reviews = [
        '"good\nand long"',
        '"one, two, three\nfour"',
        '"a ""quoted"" word\n\n\nand more"',
        "plain",
        '"x"',
        '"1,2\n3,4"',
    ]
    lines = "".join(f"{n},{n % 2},{n / 2},{review}\n" for n, review in enumerate(reviews))
    data = rd.read_interactions(put(tmp_path, "t.csv", "user_id,item_id,rating,review\n" + lines), rating="rating")
    assert data.num_interactions == len(reviews)


def test_quotes_within_fields_are_plain(tmp_path: Path) -> None:
    names = ['7" single', '12" and 7"', 'the "best" of', "5' 11\"", "x"]
    text = "user_id\titem_id\tname\n" + "".join(f"{n}\t{n % 2}\t{name}\n" for n, name in enumerate(names))
    path = put(tmp_path, "t.tsv", text)
    assert rd.read_interactions(path, quoting="none").num_interactions == 5
    assert "line 2 has a quote that is not closed in this line" in refusal(path, rating=None)
    closed = text.replace('7" single', "x").replace('11"', "11")
    assert rd.read_interactions(put(tmp_path, "t.tsv", closed)).num_interactions == 5


def test_quotes_over_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rediffuse.readers.text_faults._BLOCK", 16)
    assert "lines 9 to 32" in refusal(put(tmp_path, "t.csv", stray(",", (7, 30))), rating=None, time="time")
    quoted = "user_id,item_id,rating\n" + "".join(f'"{u}","{i}","{r}"\n' for u, i, r in ROWS)
    assert read(put(tmp_path, "q.csv", quoted)) == ROWS
    assert "line 5 is the header again" in refusal(put(tmp_path, "h.csv", TABLE + TABLE))
    assert "line 5 begins with a byte order mark" in refusal(
        put(tmp_path, "b.csv", TABLE.encode() + b"\xef\xbb\xbf9,9,9\n")
    )


def test_user_and_item_files_with_stray_quotes(tmp_path: Path) -> None:
    users = put(tmp_path, "users.tsv", 'user_id\tname\n1\t"a\n8\tb\n9\tc"\n')
    items = put(tmp_path, "items.csv", '"1\n2\n3"\n4\n')
    text = rd.readers.text_files.TextOptions(quoting="none")
    with pytest.raises(DataError, match="lines 2 to 4"):
        UserFile(users, lambda name: False)
    assert UserFile(users, lambda name: name == "1", text=text).read()[0].to_list() == ["1", "8", "9"]
    with pytest.raises(DataError):
        read_item_ids(items, lambda name: False)
    items = put(tmp_path, "items.csv", 'item_id\n"1\n2\n3"\n4\n')
    with pytest.raises(DataError, match="lines 2 to 4"):
        read_item_ids(items, lambda name: False)
    assert read_item_ids(items, lambda name: False, text).to_list() == ['"1', "2", '3"', "4"]


# --- headers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("before", ["", "\n", "\ufeff", "\ufeff\n"])
def test_files_put_together(tmp_path: Path, end: str, before: str) -> None:
    one = (before + TABLE).replace("\n", end)
    line = 5 + before.count("\n")
    assert read(put(tmp_path, "t.csv", one)) == ROWS
    assert f"line {line} is the header again" in refusal(put(tmp_path, "t.csv", one + TABLE.replace("\n", end)))
    last = put(tmp_path, "t.csv", one + TABLE.splitlines()[0])
    assert f"line {line} is the header again" in refusal(last)
    marked = put(tmp_path, "t.csv", one.encode() + b"\xef\xbb\xbf" + TABLE.encode())
    assert f"line {line} begins with a byte order mark" in refusal(marked)
    longer = put(tmp_path, "t.csv", one + TABLE.splitlines()[0] + "x,1,1\n")
    assert "is the header again" not in refusal(longer)


def test_a_column_may_hold_its_own_name(tmp_path: Path) -> None:
    path = put(tmp_path, "names.csv", "name\nann\nname\n")
    assert UserFile(path, lambda name: name == "ann").read()[0].to_list() == ["ann", "name"]


def test_no_header(tmp_path: Path) -> None:
    body = TABLE.split("\n", 1)[1]
    for text in (body, "\ufeff" + body, body.replace(",", "\t"), body.replace(",", "::"), "\n" + body):
        path = put(tmp_path, "ratings.dat", text)
        for columns in ({"rating": "2"}, {"rating": 2}, {"user": 0, "item": 1, "rating": 2}):
            assert read(path, header=None, **columns) == ROWS
        said = refusal(path)
        assert "looks like data" in said
        assert "header=None (--no-header)" in said
    code, _, _ = command("prepare", path, "--no-header", "--rating", "2", "-o", tmp_path / "d")
    assert code == 0
    assert rows_of(rd.load_dataset(tmp_path / "d")) == ROWS
    assert {row[0] for row in read(path, header=None, user=1, item=0, rating=None)} == {1, 2}
    assert "line 2 has 4 fields and the first line has 3" in refusal(
        put(tmp_path, "t.csv", "1,2,3\n1,2,3,4\n"), header=None, rating=None
    )
    assert "is a header" in refusal(put(tmp_path, "t.inter", "user_id:token\titem_id:token\n1\t2\n"), header=None)


@pytest.mark.parametrize("text", ["1\t1\t5\n2\t3\t5\n", "0\t2010-10-19T23:55:27Z\t3.5\n", "u1\t5\nu2\t6\n"])
def test_a_first_line_of_data_is_named(tmp_path: Path, text: str) -> None:
    assert "first line" in refusal(put(tmp_path, "t.txt", text)).lower()
    assert "looks like data" in refusal(put(tmp_path, "t.txt", text))


def test_user_and_item_files_without_header(tmp_path: Path) -> None:
    text = rd.readers.text_files.TextOptions(header=None)
    path = put(tmp_path, "users.csv", "alice\nbob\n")
    with pytest.raises(DataError, match=r"first line of .* is 'alice'.*(?s:.*)--no-header"):
        UserFile(path, lambda name: False)
    assert UserFile(path, lambda name: name == "bob", text=text).read()[0].to_list() == ["alice", "bob"]
    with pytest.raises(DataError, match="first line of"):
        read_item_ids(path, lambda name: False)
    assert read_item_ids(path, lambda name: False, text).to_list() == ["alice", "bob"]
    path = put(tmp_path, "users.csv", "alice,a|b\nbob,c\n")
    ids, histories = UserFile(path, lambda name: name == "bob", text=text).read()
    assert ids.to_list() == ["alice", "bob"]
    assert histories is not None
    assert histories.to_list() == [["a", "b"], ["c"]]


# --- separators and decimals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "separator"), [("\\t", "\t"), ("\\x1f", "\x1f"), ("¦", "¦"), ("tab", "\t"), ("~", "~")]
)
def test_separators_as_a_shell_gives_them(tmp_path: Path, written: str, separator: str) -> None:
    path = put(tmp_path, "t.txt", TABLE.replace(",", separator))
    assert read(path, separator=written) == ROWS
    code, _, err = command("prepare", path, "--separator", written, "--rating", "rating", "-o", tmp_path / "d")
    assert code == 0, err
    assert rows_of(rd.load_dataset(tmp_path / "d")) == ROWS


def test_decimal_commas(tmp_path: Path) -> None:
    text = "user_id;item_id;rating;time\n7;1;3,5;1,5\n7;2;4;2\n8;1;,25;3\n"
    wanted = [(7, 1, 3.5), (7, 2, 4.0), (8, 1, 0.25)]
    path = put(tmp_path, "t.csv", text)
    with pytest.warns(RediffuseWarning, match="'rating' of .* '3,5', were read with a decimal comma"):
        assert read(path, order="time") == wanted
    assert read(path, decimal=",", order="time") == wanted
    assert "'3,5'" in refusal(path, decimal=".")
    # Where a point occurs as well, a comma may separate thousands.
    assert "decimal comma" in refusal(put(tmp_path, "t.csv", text.replace(";4;", ";4.5;")), order="time")
    tabs = put(tmp_path, "t.tsv", text.replace(";", "\t"))
    assert "Then pass decimal=','" in refusal(tabs, order="time")
    assert read(tabs, decimal=",", order="time") == wanted
    assert "none of the tables is a text file" in refusal(pl.read_csv(TABLE.encode()), decimal=",")


@pytest.mark.parametrize(
    ("option", "value"), [("quoting", "all"), ("header", 1), ("header", True), ("decimal", ";"), ("decimal", 1)]
)
def test_text_options_are_checked(tmp_path: Path, option: str, value: Any) -> None:
    assert option in refusal(put(tmp_path, "t.csv", TABLE), **{option: value})


# --- limits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: Any) -> None:
    path = put(tmp_path, "t.csv", pack(TABLE.encode() + b"7,1,3\n" * 500_000))
    monkeypatch.setenv("REDIFFUSE_MAX_UNPACKED", "1000000")
    assert "more than 1,000,000 bytes when it is unpacked" in refusal(path)
    monkeypatch.setenv("REDIFFUSE_MAX_UNPACKED", "4000000")
    assert len(read(path)) == 500_003
    monkeypatch.setenv("REDIFFUSE_MAX_UNPACKED", "many")
    assert "REDIFFUSE_MAX_UNPACKED is 'many'" in refusal(path)


@pytest.mark.parametrize("field", ["x" * 50_000, '"' + "x\n" * 25_000 + '"', '"' + "x" * 50_000 + '"'])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_long_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str, pack: Any) -> None:
    text = f"user_id,item_id,text\n1,2,x\n1,1,{field}\n"
    path = put(tmp_path, "t.csv", pack(text.encode()))
    monkeypatch.setattr("rediffuse.readers.text_faults._BLOCK", 4096)
    assert read(path, rating=None) == [(1, 2, None), (1, 1, None)]
    monkeypatch.setenv("REDIFFUSE_MAX_FIELD", "40000")
    said = refusal(path, rating=None)
    assert "line 3" in said
    assert "REDIFFUSE_MAX_FIELD" in said


def test_long_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"attribute {n} of this item {'x' * 500}" for n in range(200)]
    text = "user_id,item_id," + ",".join(names) + ",rating\n"
    text += "".join(f"{u},{i}," + "," * len(names) + f"{r}\n" for u, i, r in ROWS)
    for content in (text.encode(), gzip.compress(text.encode())):
        assert read(put(tmp_path, "t.csv", content)) == ROWS
    monkeypatch.setenv("REDIFFUSE_MAX_FIELD", "100000")
    assert "line 1 is longer" in refusal(tmp_path / "t.csv")


# --- what is no file ----------------------------------------------------------------------------------------


def test_pipes_devices_and_folders(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    assert "pipe.csv is a pipe" in refusal(tmp_path / "pipe.csv")
    assert "is a pipe" in refusal(str(tmp_path / "pip*.csv"))
    assert "is a device" in refusal("/dev/null")
    with pytest.raises(DataError, match="is a pipe"):
        rd.read_atomic(tmp_path / "pipe.csv")
    with pytest.raises(DataError, match="is a pipe"):
        UserFile(tmp_path / "pipe.csv", lambda name: False)
    reading, writing = os.pipe()
    try:
        assert f"/dev/fd/{reading} is a pipe" in refusal(f"/dev/fd/{reading}")
    finally:
        os.close(reading)
        os.close(writing)
    put(tmp_path, "t.csv", TABLE)
    assert read(tmp_path) == ROWS  # other files of a folder are read


def test_a_pipe_in_a_dataset_does_not_hang(tmp_path: Path) -> None:
    rd.read_interactions(put(tmp_path, "t.csv", TABLE)).save(tmp_path / "d")
    (tmp_path / "d/items.parquet").unlink()
    os.mkfifo(tmp_path / "d/items.parquet")
    with pytest.raises((DataError, OSError)):
        rd.load_dataset(tmp_path / "d")
