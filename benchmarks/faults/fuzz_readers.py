"""Read damaged files: each must be read correctly or refused with one of our errors.

Small valid tables (CSV, TSV, gzip, ``::``, Parquet, hive folders, RecBole atomic files, with tables of items, users,
links, triples and splits; saved datasets; user files of batch inference) are damaged at random and read in a worker
process with limits of time and memory. What is read is checked: a dataset must be sound, survive saving and loading,
and hold the rows, times and ratings that Python's csv module finds in the file. Every other mutant is also read a few
rows at a time, which must give the same.

    python -m benchmarks.faults.fuzz_readers --count 10_000 --seed 0 --out benchmarks/results/fuzz_ingest.json

``--start`` cuts a run into chunks, which ``--out`` adds up. A failure is named by seed and index; ``--keep FOLDER
--start INDEX --count 1`` writes its files. The worker's standard error is discarded: panics of the reader print there.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import gzip
import io
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.common import write_result
from rediffuse.data import dataset, histories, subsets
from rediffuse.data.dataset import Dataset
from rediffuse.data.loading import load_dataset
from rediffuse.errors import RediffuseError
from rediffuse.readers import rows as interaction_rows
from rediffuse.readers import tables
from rediffuse.readers.interactions import read_interactions
from rediffuse.readers.recbole import read_atomic
from rediffuse.recommender.user_files import UserFile

ACCEPTED, REFUSED, FAILED, HUNG, DIED = "accepted", "refused", "other exception", "hang", "died"
# One mutant in this many also goes through `rediffuse prepare`.
CLI_EVERY = 20
# Rows that are read, and interactions that are worked on, at once, where a mutant is read in chunks.
FEW = 7


@dataclass
class Case:
    """Files by name, and how they are read: the source, its options, and the files of other tables."""

    kind: str
    files: dict[str, bytes]
    source: str
    options: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, str] = field(default_factory=dict)
    damage: list[str] = field(default_factory=list)
    in_chunks: bool = False

    @property
    def is_user_file(self) -> bool:
        return self.kind.startswith("user file")


# --- seeds -------------------------------------------------------------------------------------------------


def _rows() -> dict[str, list[list[Any]]]:
    rng = random.Random(7)
    users, items = [f"u{n:02d}" for n in range(9)], [f'film {n}, part "{n % 3}"' for n in range(12)]
    interactions = [
        [rng.choice(users), rng.choice(items), rng.randint(1, 10) / 2, 1_700_000_000 + rng.randint(0, 99_999), order]
        for order in range(60)
    ]
    used = sorted({row[1] for row in interactions})
    return {
        "interactions": [["user_id", "item_id", "rating", "timestamp", "order"], *interactions],
        "items": [["item_id", "title", "genres"], *([i, f"Ti\u0301tle {i}", "a|b;c"] for i in used)],
        "users": [["user_id", "age"], *([u, str(20 + n)] for n, u in enumerate(users))],
        "social": [["source", "target"], *([a, rng.choice([*users, "new"])] for a in users for _ in range(2))],
        "kg": [["head", "relation", "tail"], *([f"e{n}", f"r{n % 3}", f"e{n * 5 % 17}"] for n in range(30))],
        "item_entity": [["item_id", "entity_id"], *([i, f"e{n}"] for n, i in enumerate(used))],
        "splits": [
            ["user_id", "item_id", "timestamp", "split"],
            *([row[0], row[1], row[3], rng.choice(["train", "valid", "test"])] for row in interactions),
        ],
    }


def _text(rows: list[list[Any]], separator: str = ",") -> bytes:
    if len(separator) > 1:
        return "".join(separator.join(map(str, row)) + "\n" for row in rows).encode()
    out = io.StringIO()
    csv.writer(out, delimiter=separator, lineterminator="\n").writerows(rows)
    return out.getvalue().encode()


def _frame(rows: list[list[Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows[1:], schema=[str(name) for name in rows[0]], orient="row")


def _parquet(frame: pl.DataFrame) -> bytes:
    out = io.BytesIO()
    frame.write_parquet(out, compression="uncompressed")
    return out.getvalue()


def _numbered(rows: list[list[Any]]) -> list[list[Any]]:
    """Replace ids by integers, so that nothing has to be quoted."""
    numbers: dict[Any, int] = {}
    return [
        rows[0],
        *(
            [numbers.setdefault(v, len(numbers)) if n < 2 and isinstance(v, str) else v for n, v in enumerate(row)]
            for row in rows[1:]
        ),
    ]


def seeds() -> list[Case]:
    """Make the files that are damaged: every kind that docs/data.md says can be read."""
    rows = _rows()
    beside = {name: f"{name}.csv" for name in rows if name != "interactions"}
    usual: dict[str, Any] = {"time": "timestamp", "rating": "rating"}
    iso = [
        ["user_id", "item_id", "when"],
        *(
            [e[0], e[1], f"2024-03-{1 + n % 28:02d} 12:{n % 60:02d}:0{n % 9}"]
            for n, e in enumerate(rows["interactions"][1:])
        ),
    ]
    plain = _numbered(rows["interactions"])
    hive = {
        f"year=20{year}/month={month}/part-{month}.parquet": _parquet(_frame(rows["interactions"])[year - 20 :: 4])
        for year in (22, 23)
        for month in (1, 2)
    }
    atomic = {
        "inter": ["user_id:token", "item_id:token", "rating:float", "timestamp:float", "order:float"],
        "item": ["item_id:token", "title:token_seq", "genres:token_seq"],
        "user": ["user_id:token", "age:float"],
        "net": ["source_id:token", "target_id:token"],
        "kg": ["head_id:token", "relation_id:token", "tail_id:token"],
        "link": ["item_id:token", "entity_id:token"],
    }
    users = [["user_id", "history"], *([f"u{n}", "|".join(f"i{m}" for m in range(n % 4))] for n in range(30))]
    lists = _frame(users).with_columns(pl.col("history").str.split("|"))
    names = {"inter": "interactions", "item": "items", "user": "users"}
    names |= {"net": "social", "kg": "kg", "link": "item_entity"}
    atomic_files = {
        f"set.{end}": "".join("\t".join(map(str, row)) + "\n" for row in [header, *rows[names[end]][1:]]).encode()
        for end, header in atomic.items()
    }
    name, packed = "interactions.csv", "interactions.tsv.gz"
    cases = [
        Case("csv", {f"{n}.csv": _text(r) for n, r in rows.items()}, name, usual, beside),
        Case("tsv.gz", {packed: gzip.compress(_text(plain, "\t"), mtime=0)}, packed, usual),
        Case("order", {name: _text(plain, ";")}, name, {"order": "order", "rating": "rating"}),
        Case("::", {"interactions.dat": _text(plain, "::")}, "interactions.dat", {**usual, "separator": "::"}),
        Case("iso", {name: _text(iso)}, name, {"time": "when"}),
        Case("folder", {f"logs/{n}.csv": _text([plain[0], *plain[1 + n :: 3]]) for n in range(3)}, "logs", usual),
        Case(
            "parquet",
            {f"{n}.parquet": _parquet(_frame(r)) for n, r in rows.items()},
            "interactions.parquet",
            usual,
            {name: f"{name}.parquet" for name in beside},
        ),
        Case("hive", {f"logs/{name}": content for name, content in hive.items()}, "logs", usual),
        Case("atomic", atomic_files, "."),
        Case("user file", {"users.csv": _text(users)}, "users.csv"),
        Case("user file.gz", {"users.tsv.gz": gzip.compress(_text(users[:20], "\t"), mtime=0)}, "users.tsv.gz"),
        Case("user file.parquet", {f"users/{n}.parquet": _parquet(lists[n::2]) for n in range(2)}, "users"),
    ]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write(cases[0], Path(folder))
        saved = _read(cases[0], Path(folder)).save(Path(folder) / "saved")
        files = {f"saved/{path.name}": path.read_bytes() for path in sorted(saved.iterdir())}
    return [*cases, Case("dataset", files, "saved")]


# --- damage ------------------------------------------------------------------------------------------------

_SNIPPETS = [
    *(
        b'"',
        b'""',
        b"'",
        b",",
        b";",
        b"\t",
        b"|",
        b"::",
        b" ",
        b"\n",
        b"\r\n",
        b"\r",
        b"\0",
        b"\\",
        b"#",
        b"\x1f",
        b"\x0b",
    ),
    *(b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf", b"\xc3", b"\xe9", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"),
    *("\u2028".encode(), "\u0085".encode(), "\u00a0".encode(), "\U0001f3ac".encode(), "\u202e".encode()),
    *(b"NaN", b"nan", b"inf", b"-inf", b"1e309", b"1e-400", b"-1", b"0", b"-0", b"+7", b"007", b"1_000", b"0x10"),
    *(b"9223372036854775807", b"9223372036854775808", b"-9223372036854775808", b"-9223372036854775809", b"9" * 400),
    *(b"99999999999", b"1e18", b"1.5", b"1700000000.25", b"1700000000000", b"null", b"NULL", b"None", b"", b"true"),
    *(
        b"2024-02-30",
        b"9999-12-31 23:59:59",
        b"0001-01-01",
        b"-9999-01-01",
        b"262143-01-01",
        b"2024-03-01T12:30:00+99:99",
    ),
    *(b"2024-03-01", b"2024-03-01T12:30:00Z", b"1677-01-01", b"2262-05-01", b"user_id:token", b"=1+1", b"{}", b"[1]"),
    *(b"PAR1", b"\x1f\x8b", b"PK\x03\x04", b"x" * 70_000, b"a,b\n" * 3, b"train", b"test", b"item_id"),
]


def _spot(rng: random.Random, data: bytes) -> int:
    return rng.randint(0, len(data))


def _bits(rng: random.Random, data: bytes) -> bytes:
    new = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 3, 20])):
        if new:
            new[rng.randrange(len(new))] ^= 1 << rng.randrange(8)
    return bytes(new)


def _bytes_set(rng: random.Random, data: bytes) -> bytes:
    new = bytearray(data)
    for _ in range(rng.choice([1, 2, 8])):
        if new:
            new[rng.randrange(len(new))] = rng.choice([0, 1, 10, 34, 44, 127, 128, 255, rng.randrange(256)])
    return bytes(new)


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: _spot(rng, data)] if rng.random() < 0.7 else data[_spot(rng, data) :]


def _insert(rng: random.Random, data: bytes) -> bytes:
    at = _spot(rng, data)
    return data[:at] + rng.choice(_SNIPPETS) * rng.choice([1, 1, 1, 2, 50]) + data[at:]


def _delete(rng: random.Random, data: bytes) -> bytes:
    at = _spot(rng, data)
    return data[:at] + data[at + rng.choice([1, 1, 2, 5, 30, 300]) :]


def _repeat(rng: random.Random, data: bytes) -> bytes:
    a, b = sorted((_spot(rng, data), _spot(rng, data)))
    return data[:b] + data[a:b] * rng.choice([1, 1, 3]) + data[b:]


def _lines(rng: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    if not lines:
        return data
    kind, at = rng.randrange(7), rng.randrange(len(lines))
    if kind == 0:
        lines.insert(rng.randrange(len(lines) + 1), lines[at])
    elif kind == 1:
        del lines[at]
    elif kind == 2:
        rng.shuffle(lines)
    elif kind == 3:
        lines = lines[1:]  # no header
    elif kind == 4:
        lines = lines[:1]  # nothing else
    elif kind == 5:
        lines.insert(at, rng.choice([b"\n", b"\r\n", b"   \n", b",,,,\n", b'""\n', b"# a comment\n"]))
    else:
        lines = [line.rstrip(b"\r\n") + rng.choice([b"\r\n", b"\n", b"\r", b""]) for line in lines]
    return b"".join(lines)


def _field(rng: random.Random, data: bytes) -> bytes:
    """Change one field of one line; every separator counts, quoted or not."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    separator = max((b",", b"\t", b";", b"::", b"|"), key=lines[0].count)
    fields = lines[at].split(separator)
    place, kind = rng.randrange(len(fields)), rng.randrange(4)
    if kind == 0:
        del fields[place]
    elif kind == 1:
        fields.insert(place, rng.choice(_SNIPPETS))
    else:
        fields[place] = rng.choice(_SNIPPETS)
    lines[at] = separator.join(fields)
    return b"\n".join(lines)


def _column(rng: random.Random, data: bytes) -> bytes:
    """Set a column of nearly all lines to one value."""
    lines = data.split(b"\n")
    separator = max((b",", b"\t", b";", b"::", b"|"), key=lines[0].count)
    place, value = rng.randrange(lines[0].count(separator) + 1), rng.choice(_SNIPPETS)
    for number, line in enumerate(lines):
        fields = line.split(separator)
        if number and place < len(fields) and rng.random() < 0.95:
            fields[place] = value
            lines[number] = separator.join(fields)
    return b"\n".join(lines)


def _recoded(rng: random.Random, data: bytes) -> bytes:
    text = data.decode("utf-8", "replace")
    return text.encode(
        rng.choice(["utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "utf-7", "utf-8-sig"]), "replace"
    )


def _header(rng: random.Random, data: bytes) -> bytes:
    header, mark, rest = data.partition(b"\n")
    kind = rng.randrange(5)
    if kind == 0:
        header = header.replace(b"_", b" ", 1)
    elif kind == 1:
        header = header.upper()
    elif kind == 2:
        header = header.replace(b"item_id", b"user_id")
    elif kind == 3:
        header = _bits(rng, header)
    else:
        header = header + rng.choice([b",", b",,", b"\t", b",x", b" ", b":token", b'"'])
    return header + mark + rest


def _packed(rng: random.Random, data: bytes) -> bytes:
    packed = gzip.compress(data, mtime=0)
    return packed if rng.random() < 0.5 else _bits(rng, packed)


def _unpacked(rng: random.Random, data: bytes) -> bytes:
    """Damage the content of a gzip file, and pack it again."""
    try:
        return gzip.compress(rng.choice([_field, _insert, _lines, _column])(rng, gzip.decompress(data)), mtime=0)
    except (OSError, EOFError, ValueError, zlib.error):
        return _bits(rng, data)


_TYPES: list[Any] = [
    *(pl.Int8, pl.UInt64, pl.Int64, pl.Float32, pl.Float64, pl.Boolean, pl.String, pl.Binary, pl.Categorical, pl.Null),
    *(pl.Date, pl.Datetime("ms"), pl.Datetime("ns", "Europe/Paris"), pl.Duration, pl.Time, pl.Decimal(20, 2)),
]


def _typed(rng: random.Random, data: bytes) -> bytes:
    """Write another table to a valid Parquet file: other types, nulls, no rows."""
    try:
        return _retyped(rng, pl.read_parquet(io.BytesIO(data)))
    except KeyboardInterrupt:
        raise
    except BaseException:  # damaged already, or such a cast does not exist; panics of polars are no Exception
        return _bits(rng, data)


def _retyped(rng: random.Random, frame: pl.DataFrame) -> bytes:
    if not frame.width:
        return _parquet(frame)
    name, kind = rng.choice(frame.columns), rng.randrange(9)
    column = frame[name]
    if kind <= 1:
        column = column.cast(rng.choice(_TYPES), strict=False)
    elif kind == 2:
        values: list[Any] = column.to_list()
        for _ in range(rng.choice([1, len(values)])):
            if values:
                values[rng.randrange(len(values))] = None
        column = pl.Series(name, values, dtype=column.dtype)
    elif kind == 3 and len(frame):
        wide = rng.choice([float("nan"), float("inf"), -1.0, 1e300, -(2.0**63), 2.0**63, 1e11, 1.5, 0.0])
        values = column.cast(pl.Float64, strict=False).to_list()
        values[rng.randrange(len(values))] = wide
        column = pl.Series(name, values, dtype=pl.Float64)
    elif kind == 4:
        column = rng.choice([pl.Series([[v] for v in column]), pl.Series([{"a": v} for v in column])]).alias(name)
    elif kind == 5:
        return _parquet(frame.rename({name: rng.choice(["", "x", "user_id ", "Item_ID", "split"])}, strict=False))
    elif kind == 6:
        return _parquet(frame.drop(name))
    elif kind == 7:
        return _parquet(frame.head(rng.choice([0, 0, 1, 2])))
    else:
        value = rng.choice(_SNIPPETS).decode("utf-8", "replace")
        column = pl.select(pl.repeat(value, len(frame))).to_series()
    return _parquet(frame.with_columns(column.alias(name)))


_ANY = [_bits, _bytes_set, _cut, _insert, _delete, _repeat]
_TEXT: list[Callable[[random.Random, bytes], bytes]] = [
    *(_field, _field, _field, _column, _column, _lines, _lines, _header, _recoded, _packed, _insert)
]


def mutant(cases: list[Case], seed: int, index: int) -> Case:
    """Make a damaged case; it depends on seed and index alone."""
    rng = random.Random(f"{seed}-{index}")
    base = rng.choice(cases)
    case = Case(base.kind, dict(base.files), base.source, dict(base.options), dict(base.tables))
    case.in_chunks = bool(index % 2)
    for name in list(case.tables):  # with many tables, the first bad one hides the others
        if rng.random() < 0.5:
            del case.tables[name]
    if ("kg" in case.tables) != ("item_entity" in case.tables):
        case.tables.pop("kg", None)
        case.tables.pop("item_entity", None)
    used = {case.source, *case.tables.values()}
    names = sorted(name for name in case.files if name in used or not case.tables) or sorted(case.files)
    if case.kind in ("csv", "parquet", "atomic") and rng.random() < 0.5:
        names = sorted(name for name in names if name == case.source or name.endswith(".inter")) or names
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        name = rng.choice(names)
        content, roll = case.files[name], rng.random()
        if roll < 0.03:
            how, content = "emptied", b""
        elif roll < 0.08:
            other = rng.choice(cases)
            splice = other.files[rng.choice(sorted(other.files))]
            how, content = "spliced", content[: _spot(rng, content)] + splice[_spot(rng, splice) :]
        else:
            binary = name.endswith((".parquet", ".gz")) or case.kind == "dataset"
            own = [_typed] * 6 if name.endswith(".parquet") else [_unpacked] * 6 if name.endswith(".gz") else []
            do = rng.choice([*_ANY, *own] if binary or rng.random() < 0.3 else _TEXT)
            how, content = do.__name__.strip("_"), do(rng, content)
        case.files[name] = content
        case.damage.append(f"{name}: {how}")
    roll = rng.random()
    if roll < 0.03:
        _move(case, rng.choice(names), rng)
    elif roll < 0.05 and case.kind != "dataset" and not case.is_user_file:
        case.options["encoding"] = rng.choice(
            ["utf-16", "latin-1", "utf-8", "cp1252", "ascii", "base64", "idna", "utf-7"]
        )
    elif roll < 0.07 and case.kind != "dataset" and not case.is_user_file:
        case.options["separator"] = rng.choice([",", "\t", "::", "", "ab", "\0", "\u00e9", '"', "\r", "\r\n", " "])
    if case.kind not in ("dataset", "atomic") and not case.is_user_file:
        if rng.random() < 0.2:
            case.options["k_core"] = rng.choice([1, 2, 3])
        if rng.random() < 0.2:
            case.options["duplicates"] = rng.choice(["first", "last"])
        if rng.random() < 0.2 and "rating" in case.options:
            case.options["min_rating"] = rng.choice([0, 2.5, 4])
    return case


def _move(case: Case, name: str, rng: random.Random) -> None:
    """Give a file another ending, or move it deep into folders."""
    kind, content = rng.randrange(3), case.files.pop(name)
    if kind == 0:
        new = name.rpartition(".")[0] + rng.choice([".parquet", ".csv", ".gz", ".pq", ".zip", "", ".inter"])
    elif kind == 1:
        new = "/".join(
            [*(f"key{n}={rng.choice(['1', '', 'x', '__HIVE_DEFAULT_PARTITION__'])}" for n in range(9)), name]
        )
    else:
        new = name
        case.files[new + "/manifest.json"] = content
        case.damage.append(f"{name}: a folder")
        return
    case.files[new] = content
    case.damage.append(f"{name}: moved to {new}")
    if kind == 0:
        case.source = new if case.source == name else case.source
        case.tables = {what: new if file == name else file for what, file in case.tables.items()}


# --- reading -----------------------------------------------------------------------------------------------


def write(case: Case, folder: Path) -> None:
    """Write the files of a case."""
    for name, content in case.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _read(case: Case, folder: Path) -> Dataset:
    source = folder / case.source
    if case.kind == "dataset":
        data = load_dataset(source)
    elif case.kind == "atomic":
        data = read_atomic(source, **case.options)
    else:
        data = read_interactions(source, **case.options, **{k: folder / v for k, v in case.tables.items()})
    _ = data.tables_fingerprint  # reads the tables as a model would
    return data


@contextmanager
def few_at_once(few: bool) -> Iterator[None]:
    """Read FEW rows and work on FEW interactions at once if ``few``."""
    limits = [(tables, "PIECE"), *((module, "BLOCK") for module in (histories, interaction_rows, subsets, dataset))]
    before = [getattr(module, name) for module, name in limits]
    for module, name in limits if few else ():
        setattr(module, name, FEW)
    try:
        yield
    finally:
        for (module, name), value in zip(limits, before, strict=True):
            setattr(module, name, value)


def attempt(case: Case, folder: Path, cli: bool = False) -> str:
    """Read a case in the empty ``folder``, and return "accepted" or "refused".

    Raises:
        Exception: an error that is not ours; AssertionError where what is read is not sound.
    """
    write(case, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if case.is_user_file:
            return _attempt_user_file(case, folder)
        with few_at_once(case.in_chunks):
            data = _tried(lambda: _read(case, folder))
            outcome = REFUSED if data is None else ACCEPTED
            if data is not None:
                check(data, case, folder)
            if cli and case.kind != "dataset":
                _through_cli(case, folder, outcome)
        if case.in_chunks:
            whole = _tried(lambda: _read(case, folder))
            assert (whole is None) == (data is None), f"in chunks: {outcome}, but not in one"
            if whole is not None and data is not None:
                assert whole.fingerprint == data.fingerprint
                assert whole.tables_fingerprint == data.tables_fingerprint
                assert whole.report == data.report
    return outcome


def _tried(read: Callable[[], Any]) -> Any:
    """Return what is read, or None if it is refused."""
    try:
        return read()
    except RediffuseError:
        return None


def _attempt_user_file(case: Case, folder: Path) -> str:
    def read(size: int) -> list[tuple[Any, ...]]:
        users = UserFile(folder / case.source, {"u1", "u2"}.__contains__)
        users.identity()
        blocks = list(users.blocks(size))
        assert [number for number, _ in blocks] == list(range(len(blocks)))
        assert all(len(frame) == size for _, frame in blocks[:-1])
        assert all(frame.columns == ["user_id", *["history"] * users.has_histories] for _, frame in blocks)
        return [row for _, frame in blocks for row in frame.iter_rows()]

    found, whole = (_tried(lambda size=size: read(size)) for size in (FEW, 1000))
    assert found == whole, "in chunks it differs"
    if found is None:
        return REFUSED
    for user, *history in found:
        assert isinstance(user, int | str)
        # Polars' notion of a space: Python strips more.
        assert isinstance(user, int) or pl.Series([user]).str.strip_chars()[0] == user != ""
        assert all(isinstance(items, list | None) for items in history)
    records = _plain_records(case, ",") if case.kind == "user file" else None
    if records is not None and "user_id" in records[0]:
        place = records[0].index("user_id")
        assert [row[0] for row in found] == [record[place] for record in records[1:]]
    return ACCEPTED


def _through_cli(case: Case, folder: Path, outcome: str) -> None:
    from rediffuse.cli import app

    words = ["prepare", str(folder / case.source), "--out", str(folder / "prepared"), "--json"]
    for name, value in {**case.options, **{k: folder / v for k, v in case.tables.items()}}.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    kept = sys.stdout
    sys.stdout = io.StringIO()
    try:
        app(words, standalone_mode=False)
        prepared = ACCEPTED
    except RediffuseError:
        prepared = REFUSED
    finally:
        sys.stdout = kept
    # `prepare` does not read the tables as a model would.
    assert (prepared, outcome) in ((outcome, outcome), (ACCEPTED, REFUSED)), f"prepare {prepared}, Python {outcome}"


def check(data: Dataset, case: Case, folder: Path) -> None:
    """Assert that a dataset is sound and holds what its files hold."""
    interactions = data.interactions
    assert interactions.offsets[0] == 0
    assert interactions.offsets[-1] == len(interactions.items) == data.num_interactions > 0
    assert (interactions.lengths >= 0).all()
    assert len(interactions) == data.num_users
    assert ((interactions.items >= 0) & (interactions.items < data.num_items)).all()
    assert (np.bincount(interactions.items, minlength=data.num_items) > 0).all()
    assert data.num_items >= 2
    if data.social is None:
        assert (interactions.lengths > 0).all()
    inner = np.diff(interactions.owners) == 0
    if interactions.times is not None:
        assert np.isfinite(interactions.times).all()
        assert (interactions.times[1:] >= interactions.times[:-1])[inner].all()  # a difference may overflow
    if interactions.ratings is not None:
        assert np.isfinite(interactions.ratings).all()
        assert (interactions.ratings >= 0).all()
    for ids in (data.user_ids, data.item_ids):
        assert ids.dtype in (pl.Int64, pl.String)
        assert not ids.null_count()
        assert ids.n_unique() == len(ids)
    assert data.item_ids.is_sorted()
    for table, ids in ((data.items, data.item_ids), (data.users, data.user_ids)):
        assert table is None or table.to_series(0).equals(ids)
    if data.social is not None:
        for end in (data.social.source, data.social.target):
            assert ((end >= 0) & (end < data.num_users)).all()
    if data.kg is not None:
        kg = data.kg
        for ends, size in ((kg.head, kg.num_entities), (kg.tail, kg.num_entities), (kg.relation, kg.num_relations)):
            assert ((ends >= 0) & (ends < size)).all()
        assert ((kg.item_entity >= 0) & (kg.item_entity < [data.num_items, kg.num_entities])).all()
    for subset in data.given.values():
        assert subset.shape == interactions.items.shape
        assert set(np.unique(subset)) <= {-1, 0, 1, 2}
    report = data.report
    dropped = sum(report.get(f"dropped_{why}", 0) for why in ("below_min_rating", "duplicates", "by_k_core"))
    assert report["rows"] - dropped == report["interactions"] == data.num_interactions
    if case.kind == "dataset":
        return
    if k := case.options.get("k_core"):
        assert (np.bincount(interactions.items) >= k).all()
        assert (interactions.lengths[interactions.lengths > 0] >= k).all()
    again = load_dataset(data.save(folder / "saved again"))
    recomputed = dataclasses.replace(again)  # without the fingerprints that were loaded
    assert recomputed.fingerprint == data.fingerprint == again.fingerprint
    assert again.tables_fingerprint == data.tables_fingerprint
    for name in ("items", "users"):
        one, other = getattr(data, name), getattr(again, name)
        assert one is other is None or one.equals(other), name
    assert again.given.keys() == data.given.keys()
    assert all((again.given[name] == subsets).all() for name, subsets in data.given.items())
    assert again.report == json.loads(json.dumps(data.report))
    assert again.title == data.title
    if not dropped:
        plain = _plainly(case, report.get("time_unit"))
        if plain is not None:
            users, items = data.user_ids.gather(interactions.owners), data.item_ids.gather(interactions.items)
            _, _, a_time, a_rating = next(iter(plain))
            times = [None] * len(users) if a_time is None else map(float, interactions.times)
            ratings = [None] * len(users) if a_rating is None else map(float, interactions.ratings)
            found = Counter(zip(map(str, users), map(str, items), times, ratings, strict=True))
            assert found == plain, f"{list((found - plain).items())[:3]} and not {list((plain - found).items())[:3]}"


_PER_SECOND = {None: 1, "seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}


def _plainly(case: Case, unit: str | None) -> Counter[tuple[str, str, float | None, float | None]] | None:
    """Read (user, item, seconds, rating) of every row of a plain CSV file with Python; None for other cases.

    Seconds or ratings are None where there are none, or where Python does not know the times.
    """
    if case.kind not in ("csv", "order", "iso"):
        return None
    records = _plain_records(case, ";" if case.kind == "order" else ",")
    if records is None:
        return None
    header, *rows = records
    if "user_id" not in header or "item_id" not in header or all(":" in name for name in header):
        return None

    def column(name: str) -> list[str]:
        place = header.index(name)
        return [row[place] for row in rows]

    times: list[Any] = [None] * len(rows)
    if name := case.options.get("time", case.options.get("order")):
        times = _plain_seconds(column(name), unit) or times
    ratings: list[Any] = [None] * len(rows)
    if name := case.options.get("rating"):
        ratings = [float(np.float32(_plain_number(value))) for value in column(name)]
    return Counter(zip(column("user_id"), column("item_id"), times, ratings, strict=True))


def _plain_seconds(values: list[str], unit: str | None) -> list[float] | None:
    if unit == "ISO text":
        try:
            moments = [datetime.fromisoformat(value) for value in values]
        except ValueError:  # years that Python does not know, leap seconds
            return None
        since = [moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.fromtimestamp(0, UTC) for moment in moments]
        numbers: list[Any] = [(delta.days * 86_400 + delta.seconds) * 10**6 + delta.microseconds for delta in since]
        per_second = 10**6
    else:
        numbers, per_second = [_plain_number(value) for value in values], _PER_SECOND[unit]
    if all(isinstance(number, int) and not number % per_second for number in numbers):
        return [float(number // per_second) for number in numbers]
    return [float(number) / per_second for number in numbers]


def _plain_number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _plain_records(case: Case, separator: str) -> list[list[str]] | None:
    """Read header and rows of a plain CSV file with Python's csv module; None where readers differ."""
    content = case.files.get(case.source, b"")
    if content[:2] == b"\x1f\x8b" or content[:4] == b"PAR1":
        return None
    encoding = case.options.get("encoding", "utf-8-sig")
    text = content.decode("utf-8-sig" if encoding == "utf-8" else encoding)
    separator = case.options.get("separator", separator)
    if len(separator) != 1 or "\r" in text.replace("\r\n", ""):  # Python ends a line at a lone one, we do not
        return None
    limit = csv.field_size_limit(1 << 30)
    try:
        return [r for r in csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True) if any(r)]
    except csv.Error:  # a stray quote: readers differ
        return None
    finally:
        csv.field_size_limit(limit)


# --- the run -----------------------------------------------------------------------------------------------


def _work(pipe: Any, seed: int, memory: int) -> None:
    """Read the mutants whose indices come through ``pipe``, and send back their outcomes, until None comes."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)
    cases = seeds()
    while (index := pipe.recv()) is not None:
        folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        kind, damage, detail = "?", [], ""
        try:
            case = mutant(cases, seed, index)
            kind, damage = case.kind, case.damage
            outcome = attempt(case, folder, cli=index % CLI_EVERY == 0)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a panic of the reader is no Exception
            outcome = FAILED
            where = traceback.extract_tb(error.__traceback__)[-3:]
            detail = f"{type(error).__name__}: {str(error)[:300]} ({'; '.join(f'{f.name}:{f.lineno}' for f in where)})"
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        pipe.send((outcome, kind, damage, detail))


class Worker:
    """A process that reads mutants; it is replaced when it hangs or dies."""

    def __init__(self, seed: int, memory: int, limit: float) -> None:
        self.seed, self.memory, self.limit = seed, memory, limit
        self.context = multiprocessing.get_context("spawn")
        self._start()

    def _start(self) -> None:
        self.pipe, theirs = self.context.Pipe()
        self.process = self.context.Process(target=_work, args=(theirs, self.seed, self.memory), daemon=True)
        self.process.start()
        theirs.close()
        self.fresh = True

    def read(self, index: int) -> tuple[str, str, list[str], str]:
        """Read mutant ``index``: outcome, kind, damage, details."""
        self.pipe.send(index)
        limit = self.limit + (60 if self.fresh else 0)  # the first one waits for imports and seeds
        self.fresh = False
        try:
            if self.pipe.poll(limit):
                return self.pipe.recv()
            outcome = HUNG, "?", [], f"no outcome after {self.limit:g} s"
        except EOFError:
            self.process.join()
            outcome = DIED, "?", [], f"exit code {self.process.exitcode}"
        self.process.kill()
        self.process.join()
        self._start()
        return outcome

    def stop(self) -> None:
        """End the process."""
        self.pipe.send(None)
        self.process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=10, help="limit per file")
    parser.add_argument("--gib", type=float, default=8, help="limit of address space of the worker")
    parser.add_argument("--out", type=Path, help="result file; chunks of one seed add up (default: none)")
    parser.add_argument("--keep", type=Path, help="write the files of the mutants there, and read nothing")
    options = parser.parse_args()
    indices = range(options.start, options.start + options.count)
    if options.keep:
        cases = seeds()
        for index in indices:
            case = mutant(cases, options.seed, index)
            write(case, options.keep / str(index))
            print(index, case.kind, case.source, case.options, case.tables, case.damage)
        return
    worker = Worker(options.seed, int(options.gib * 2**30), options.seconds)
    counts: dict[str, Counter[str]] = {}
    failures = []
    begin = time.perf_counter()
    slowest = 0.0
    for index in indices:
        began = time.perf_counter()
        outcome, kind, damage, detail = worker.read(index)
        slowest = max(slowest, time.perf_counter() - began) if index > options.start else 0.0
        if kind == "?":
            case = mutant(seeds(), options.seed, index)
            kind, damage = case.kind, case.damage
        counts.setdefault(kind, Counter())[outcome] += 1
        if outcome not in (ACCEPTED, REFUSED):
            failures.append({"index": index, "kind": kind, "outcome": outcome, "damage": damage, "detail": detail})
            print(json.dumps(failures[-1]), flush=True)
    worker.stop()
    chunk = {
        "start": options.start,
        "count": options.count,
        "seconds": round(time.perf_counter() - begin, 1),
        "slowest_seconds": round(slowest, 2),
        "outcomes": {kind: dict(found) for kind, found in sorted(counts.items())},
        "failures": failures,
    }
    print(json.dumps({key: chunk[key] for key in ("start", "count", "seconds", "slowest_seconds", "outcomes")}))
    print(f"{len(failures)} of {options.count} failed.")
    if options.out:
        _add(options.out, options.seed, chunk)
    sys.exit(bool(failures))


def _add(path: Path, seed: int, chunk: dict[str, Any]) -> None:
    """Add a chunk to a result file; it replaces an earlier one with the same start."""
    result: dict[str, Any] = {"seed": seed, "pieces": []}
    if path.is_file():
        before = json.loads(path.read_text())
        result = before if before["seed"] == seed else result
    chunks = [old for old in result["pieces"] if old["start"] != chunk["start"]]
    chunks = sorted([*chunks, chunk], key=lambda one: one["start"])
    total: Counter[str] = Counter()
    for found in (found for one in chunks for found in one["outcomes"].values()):
        total.update(found)
    result = {
        "seed": seed,
        "files": sum(one["count"] for one in chunks),
        "outcomes": dict(total),
        "failures": sum(len(one["failures"]) for one in chunks),
        "seconds": round(sum(one["seconds"] for one in chunks), 1),
        "pieces": chunks,
    }
    write_result(path, result, precision=None, device="cpu")


if __name__ == "__main__":
    main()
