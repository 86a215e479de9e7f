"""Numbered tables of other engines: the dataset of the raw table, whole and by partition, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

import rediffuse as rd
from rediffuse.cli import app
from rediffuse.errors import ConfigError, DataError, RediffuseWarning, StorageError
from rediffuse.readers import numbered_rows

PARTS = 3


def raw(count: int = 500, **columns: Any) -> pl.DataFrame:
    rng = np.random.default_rng(2)
    table = {
        "user_id": [f"u{n}" for n in rng.integers(0, 20, count).tolist()],
        "item_id": rng.integers(0, 30, count),
        "timestamp": 10**9 + rng.integers(0, 50, count),
        "rating": rng.integers(1, 6, count),
    }
    return pl.DataFrame(table).with_columns(**columns)


def write(root: Path, table: pl.DataFrame, files: int = 1, key: str = "timestamp", group: int = 50) -> Path:
    """Number, sort and partition a raw table, by the contract."""
    root.mkdir(parents=True, exist_ok=True)
    numbered = table.with_row_index("row")
    for kind in ("user", "item"):
        ids = table[f"{kind}_id"].unique().sort()
        listing = pl.DataFrame({kind: range(len(ids)), f"{kind}_id": ids})
        listing.sample(fraction=1, shuffle=True, seed=1).write_parquet(root / f"{kind}s.parquet")
        numbered = numbered.join(listing, on=f"{kind}_id")
    numbered = numbered.sort("user", key, "row").drop("user_id", "item_id", "row")
    for part in range(PARTS):
        folder = root / "interactions" / f"part={part}"
        folder.mkdir(parents=True)
        rows = numbered.filter(pl.col("user") % PARTS == part)
        for file in range(files):
            chosen = rows.filter(pl.col("user") // PARTS * files // 7 == file) if files > 1 else rows
            chosen.write_parquet(folder / f"{files - file}.parquet", row_group_size=group)
    return root


@pytest.fixture
def folder(tmp_path) -> Path:
    return write(tmp_path / "tables", raw())


def change(path: Path, edit: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    edit(pl.read_parquet(path, hive_partitioning=False)).write_parquet(path)


def at(column: str, row: int, value: Any) -> Callable[[pl.DataFrame], pl.DataFrame]:
    """Sets one value."""
    return lambda table: table.with_columns(
        pl.when(pl.int_range(pl.len()) == row).then(pl.lit(value)).otherwise(pl.col(column)).alias(column)
    )


# --- the dataset of the raw table -----------------------------------------------------------------------------

TIMES = {
    "seconds": {},
    "float": {"timestamp": pl.col("timestamp") + 0.25},
    "whole float": {"timestamp": pl.col("timestamp").cast(pl.Float64)},
    "datetime": {"timestamp": pl.from_epoch(pl.col("timestamp") * 1000 + 7, time_unit="ms")},
    "date": {"timestamp": pl.from_epoch(pl.col("timestamp") % 1000, time_unit="d")},
}


@pytest.mark.parametrize("piece", [7, 50, 1 << 22])
@pytest.mark.parametrize("files", [1, 3])
@pytest.mark.parametrize("times", TIMES)
def test_it_is_the_dataset_of_the_raw_table(tmp_path, monkeypatch, piece, files, times):
    table = raw(**TIMES[times])
    wanted = rd.read_interactions(table, time="timestamp", rating="rating")
    monkeypatch.setattr(numbered_rows, "PIECE", piece)
    made = rd.read_numbered(write(tmp_path, table, files))
    assert made.fingerprint == wanted.fingerprint
    assert made.report["interactions"] == 500


def test_an_order_a_target_and_a_split(tmp_path):
    table = raw(target=pl.col("rating") > 2, split=pl.Series(["train", "test", None, "valid", "train"] * 100))
    table = table.rename({"timestamp": "order"})
    made = rd.read_numbered(write(tmp_path, table, key="order"))
    wanted = rd.read_interactions(table, order="order", rating="rating")
    assert not made.has_timestamps
    np.testing.assert_array_equal(made.interactions.times, wanted.interactions.times)
    users, items = wanted.user_ids.to_list(), wanted.item_ids.to_list()
    assert made.interactions.target is not None
    rows = sorted(  # the oracle: plain Python
        (users.index(row["user_id"]), row["order"], number, items.index(row["item_id"]), row["target"], row["split"])
        for number, row in enumerate(table.to_dicts())
    )
    codes = {"train": 0, "valid": 1, "test": 2, None: -1}
    assert made.interactions.items.tolist() == [row[3] for row in rows]
    assert made.interactions.target.tolist() == [row[4] for row in rows]
    assert made.given["given"].tolist() == [codes[row[5]] for row in rows]
    assert rd.split.given(made).sizes()["test"] == 100
    assert any("interactions are targets" in note for note in made.report["notes"])


@pytest.mark.parametrize("kind", [pl.Int32, pl.Float64])
def test_an_order_keeps_its_type(tmp_path, kind):
    table = raw().with_columns(pl.col("timestamp").cast(kind).alias("order")).drop("timestamp")
    made = rd.read_numbered(write(tmp_path, table, key="order"))
    assert made.fingerprint == rd.read_interactions(table, order="order", rating="rating").fingerprint


def test_neither_a_time_nor_an_order(tmp_path):
    table = raw().with_row_index("n")
    folder = write(tmp_path, table, key="n")
    for part in range(PARTS):
        change(folder / f"interactions/part={part}/1.parquet", lambda t: t.select("item", "user"))
    made = rd.read_numbered(folder)
    assert made.interactions.times is None
    assert made.fingerprint == rd.read_interactions(table.select("user_id", "item_id")).fingerprint


def test_tables_of_items_and_users(folder, tmp_path):
    change(
        folder / "items.parquet", lambda t: t.with_columns(title=pl.format(" the {} ", "item_id"), price=pl.lit(2.5))
    )
    change(folder / "users.parquet", lambda t: t.with_columns(land=pl.lit("x")))
    made = rd.read_numbered(folder, item_features="price:number", user_features="land:category")
    assert made.items is not None
    assert made.users is not None
    assert made.items.columns == ["item_id", "title", "price"]
    assert made.items["title"].to_list() == [f"the {item}" for item in made.item_ids]
    assert made.users.columns == ["user_id", "land"]
    assert [str(feature) for feature in (*made.item_features, *made.user_features)] == ["price:number", "land:category"]


def test_prepare_makes_a_dataset_and_leaves_no_other_file(folder, tmp_path):
    out = tmp_path / "out" / "data"
    done = CliRunner().invoke(app, ["prepare", str(folder), "-o", str(out), "--json"])
    assert done.exit_code == 0, done.output
    wanted = rd.read_interactions(raw(), time="timestamp", rating="rating").fingerprint
    assert json.loads(done.stdout)["fingerprint"] == wanted
    assert rd.load_dataset(out).fingerprint == wanted
    assert [path.name for path in out.parent.iterdir()] == ["data"]


def test_folders_of_files_as_spark_writes_them(folder):
    for kind in ("users", "items"):
        table = pl.read_parquet(folder / f"{kind}.parquet")
        (folder / f"{kind}.parquet").unlink()
        (folder / f"{kind}.parquet").mkdir()
        for part in (0, 1):
            table[part::2].write_parquet(folder / f"{kind}.parquet" / f"part-0000{part}.snappy.parquet")
        (folder / f"{kind}.parquet" / "_SUCCESS").touch()
    (folder / "interactions" / "_SUCCESS").touch()
    (folder / "interactions" / "part=1").rename(folder / "interactions" / "part=00001")
    pl.DataFrame(schema={"user": pl.Int64}).write_parquet(folder / "interactions" / "part=0" / "empty.parquet")
    assert (
        rd.read_numbered(folder).fingerprint
        == rd.read_interactions(raw(), time="timestamp", rating="rating").fingerprint
    )


MEMORY = """
import sys, threading, rediffuse as rd
from pathlib import Path
import rediffuse.readers.numbered_rows as rows
def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
small, large, scratch = map(Path, sys.argv[1:])
rd.read_numbered(small, scratch=scratch)
rows.PIECE = 100_000
before, peak, done = anonymous(), [0], threading.Event()
def sample():
    while not done.wait(0.002):
        peak[0] = max(peak[0], anonymous())
threading.Thread(target=sample, daemon=True).start()
data = rd.read_numbered(large, scratch=scratch)
data.fingerprint
done.set()
print((max(peak[0], anonymous()) - before) * 1024 / data.num_interactions)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux says how much memory a process has")
def test_memory_does_not_grow_with_the_table(folder, tmp_path):
    rng, count = np.random.default_rng(0), 3_000_000
    table = {"user_id": rng.integers(0, 5_000, count), "item_id": rng.integers(0, 3_000, count)}
    others = {"timestamp": 10**9 + rng.integers(0, 10**8, count), "rating": rng.integers(1, 6, count)}
    large = write(tmp_path / "large", pl.DataFrame(table | others), group=100_000)
    command = [sys.executable, "-c", MEMORY, str(folder), str(large), str(tmp_path / "scratch")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 12  # bytes per interaction, of which the arrays would take 16, and reading raw takes 34


# --- partitions -----------------------------------------------------------------------------------------------


def test_partitions_are_shares_of_the_whole(folder):
    whole = rd.read_numbered(folder)
    lengths = np.zeros(whole.num_users, dtype=np.int64)
    for rank in range(2):
        share = rd.load_partitions(folder, slice(rank, None, 2))
        assert share.report["partitions_read"] == list(range(PARTS))[rank::2]
        assert share.user_ids.to_list() == whole.user_ids.to_list()
        assert share.item_ids.to_list() == whole.item_ids.to_list()
        for user in range(whole.num_users):
            own = user % PARTS % 2 == rank
            assert share.interactions.row(user).tolist() == (whole.interactions.row(user).tolist() if own else [])
        lengths += share.interactions.lengths
    assert lengths.tolist() == whole.interactions.lengths.tolist()


def test_other_partitions_are_not_read(folder):
    for path in (folder / "interactions" / "part=0").iterdir():
        path.write_bytes(b"PAR1")
    assert rd.load_partitions(folder, [2, 1, 1]).report["partitions_read"] == [1, 2]
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        rd.load_partitions(folder, [0])


def test_a_split_of_a_share_is_that_of_the_whole(tmp_path):
    folder = write(
        tmp_path, raw(split=pl.when(pl.col("timestamp") < 10**9 + 40).then(pl.lit("train")).otherwise(pl.lit("test")))
    )
    whole = rd.read_numbered(folder).given["given"]
    shares = [rd.load_partitions(folder, [part]) for part in range(PARTS)]
    assert sum(int((share.given["given"] == 2).sum()) for share in shares) == int((whole == 2).sum())
    run = rd.train("popularity", rd.split.given(shares[0]), tmp_path / "run")
    assert run.config["data"]["users"] == 20


@pytest.mark.parametrize(
    ("partitions", "problem"),
    [
        ([3], r"has no partition 3; its partitions are 0 to 2\.\n.*as many processes as"),
        (slice(5, None, 6), "no partition chosen"),
        ([], "no partition chosen"),
        ([-1], "-1"),
        ([True, "a"], "'a'"),
        ("01", "partitions is '01', not numbers"),
        (1, "partitions is 1, not numbers"),
    ],
)
def test_partitions_that_do_not_exist(folder, partitions, problem):
    with pytest.raises(ConfigError, match=problem):
        rd.load_partitions(folder, partitions)


# --- bad folders ------------------------------------------------------------------------------------------------

USERS, ITEMS, FIRST = "users.parquet", "items.parquet", "interactions/part=0/1.parquet"
VALUES: dict[str, tuple[str, Callable[[pl.DataFrame], pl.DataFrame], str]] = {
    # numbers and ids
    "no numbers": (
        USERS,
        lambda t: t.rename({"user": "n"}),
        r"users\.parquet has no column 'user' .*Rename the column",
    ),
    "no ids": (ITEMS, lambda t: t.rename({"item_id": "id"}), r"items\.parquet has no column 'item_id'"),
    "a gap": (
        USERS,
        at("user", 4, 20),
        r"users\.parquet, row 5: column 'user' .* is 20, and 20 rows have numbers to 19",
    ),
    "negative": (USERS, at("user", 0, -1), r"row 1: column 'user' .* is -1"),
    "number twice": (
        ITEMS,
        lambda t: t.with_columns(item=t["item"] // 2 * 2),
        r"column 'item' .* which a row above has",
    ),
    "text numbers": (
        USERS,
        lambda t: t.with_columns(t["user"].cast(pl.String)),
        r"'user' holds String values, not int",
    ),
    "null number": (USERS, at("user", 2, None), r"users\.parquet, row 3: column 'user' .* is empty"),
    "null id": (USERS, at("user_id", 2, None), r"users\.parquet, row 3: column 'user_id' .* is empty"),
    "blank id": (USERS, at("user_id", 2, " "), r"row 3: column 'user_id' .* is blank"),
    "word": (USERS, at("user_id", 2, "NULL"), r"row 3: column 'user_id' .* a word for a missing value"),
    "id twice": (
        USERS,
        lambda t: at("user_id", 7, t["user_id"][1])(t),
        r"row 8: .*'user_id' .* which a row above has as",
    ),
    "float ids": (ITEMS, lambda t: t.with_columns(t["item_id"] + 0.5), r"column 'item_id' .* holds Float64"),
    "one item": (ITEMS, lambda t: t.filter(t["item"] == 0), r"items\.parquet has a single item"),
    "no user": (USERS, lambda t: t.clear(), r"users\.parquet has a header but no rows"),
    # unused numbers
    "user unused": (
        USERS,
        lambda t: pl.concat([t, pl.DataFrame({"user": [20], "user_id": ["v"]})]),
        r"users\.parquet: the user 'v' \(number 20\) has no interaction, as 1 users\.\n.*Number only users with",
    ),
    "item unused": (
        ITEMS,
        lambda t: pl.concat([t, pl.DataFrame({"item": [30], "item_id": [99]})]),
        r"items\.parquet: the item 99 \(number 30\) has no interaction",
    ),
    # interactions
    "no user column": (FIRST, lambda t: t.rename({"user": "u"}), r"part=0/1\.parquet has no column 'user'"),
    "no item column": (FIRST, lambda t: t.rename({"item": "i"}), r"part=0/1\.parquet has no column 'item'"),
    "columns differ": (FIRST, lambda t: t.drop("rating"), r"part=0/1\.parquet has no column 'rating', which .*part=1"),
    "both": (FIRST, lambda t: t.with_columns(order=t["item"]), r"the columns 'timestamp' and 'order'"),
    "user unknown": (
        FIRST,
        at("user", 0, 60),
        r"part=0/1\.parquet, row 1: column 'user' .* is 60, and .*users\.parquet has",
    ),
    "user negative": (FIRST, at("user", 0, -3), r"row 1: column 'user' .* is -3"),
    "user null": (FIRST, at("user", 3, None), r"row 4: column 'user' .* is empty"),
    "user text": (
        FIRST,
        lambda t: t.with_columns(t["user"].cast(pl.String)),
        r"column 'user' holds String values\.\n.*integers",
    ),
    "elsewhere": (
        FIRST,
        at("user", 9, 1),
        r"part=0/1\.parquet, row 10: column 'user' .* is 1, which is not of partition 0: 1 modulo 3 is 1\.\n.*modulo",
    ),
    "users mixed": (
        FIRST,
        lambda t: t.sort("timestamp"),
        r"column 'user' .* is \d+, below that of the row above\.\n.*threads",
    ),
    "times mixed": (
        FIRST,
        lambda t: t.sort("user", "item"),
        r"column 'timestamp' .* is \d+, before that of the row above, of the same user\.\n.*in order of user",
    ),
    "item unknown": (
        FIRST,
        at("item", 5, 30),
        r"row 6: column 'item' .* is 30, and .*items\.parquet has the numbers 0 to 29",
    ),
    "item null": (FIRST, at("item", 5, None), r"row 6: column 'item' .* is empty"),
    "item float": (
        FIRST,
        lambda t: t.with_columns(t["item"] * 1.0),
        r"'item' holds Float64 values\.\n.*items\.parquet",
    ),
    "milliseconds": (
        FIRST,
        lambda t: t.with_columns(t["timestamp"] * 1000),
        r"row 1: column 'timestamp' .* which counts no seconds since 1970\.\n.*divided by 1,000",
    ),
    "time text": (
        FIRST,
        lambda t: t.with_columns(t["timestamp"].cast(pl.String)),
        r"'timestamp' holds String values\.\n.*TIMEST",
    ),
    "time null": (FIRST, at("timestamp", 5, None), r"row 6: column 'timestamp' .* is empty"),
    "time nan": (
        FIRST,
        lambda t: at("timestamp", 5, float("nan"))(t.with_columns(t["timestamp"] * 1.0)),
        r"row 6: .*is nan",
    ),
    "rating negative": (FIRST, at("rating", 8, -2), r"row 9: column 'rating' .* is -2, which is negative"),
    "rating null": (FIRST, at("rating", 8, None), r"row 9: column 'rating' .* is empty"),
    "not Parquet": (FIRST, lambda t: t, r"part=0/1\.parquet cannot be read as Parquet"),
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("piece", [4, 1 << 22])
def test_what_breaks_the_contract_is_refused(folder, monkeypatch, name, piece):
    file, edit, problem = VALUES[name]
    change(folder / file, edit)
    if name == "not Parquet":
        (folder / file).write_bytes((folder / file).read_bytes()[:-20])
    monkeypatch.setattr(numbered_rows, "PIECE", piece)
    with pytest.raises(DataError, match=f"(?s){problem}"):
        rd.read_numbered(folder)


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("target", "yes", r"column 'target' holds String values\.\n.*BOOLEAN"),
        ("split", 1, r"column 'split' holds Int32 values\.\n.*train, valid or test"),
        ("split", "Training", r"row 1: column 'split' .* is 'Training'\.\n.*train, valid and test"),
    ],
)
def test_bad_targets_and_splits(tmp_path, column, value, problem):
    with pytest.raises(DataError, match=problem):
        rd.read_numbered(write(tmp_path, raw(**{column: pl.lit(value)})))


def test_a_user_in_two_files(folder):
    table = pl.read_parquet(folder / FIRST, hive_partitioning=False)
    lengths = table["user"].rle().struct.field("len")
    user = table["user"][0]
    table[: lengths[0] + 1].write_parquet(folder / "interactions/part=0/a.parquet")
    table[lengths[0] + 1 :].write_parquet(folder / FIRST)
    following = table["user"][int(lengths[0])]
    problem = rf"is {following}, and another file of the partition holds the same user\.\n.*one file"
    with pytest.raises(DataError, match=problem):
        rd.read_numbered(folder)
    table[:1].write_parquet(folder / "interactions/part=0/a.parquet")
    table[1:].write_parquet(folder / FIRST)
    with pytest.raises(DataError, match=rf"part=0/a\.parquet and .*1\.parquet hold the same user, {user}\."):
        rd.read_numbered(folder)


def test_files_that_overlap(folder):
    table = pl.read_parquet(folder / FIRST, hive_partitioning=False)
    for number in (0, 1):
        table.filter(pl.col("user") // PARTS % 2 == number).write_parquet(
            folder / f"interactions/part=0/{number}.parquet"
        )
    with pytest.raises(DataError, match=r"column 'user' .* below that of the row above"):
        rd.read_numbered(folder)


def remove(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()
    path.rmdir()


FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no users": (
        lambda f: (f / USERS).unlink(),
        r"users\.parquet is missing\.\n.*columns user \(numbers\) and user_id",
    ),
    "no items": (lambda f: (f / ITEMS).unlink(), r"items\.parquet is missing"),
    "gap": (
        lambda f: remove(f / "interactions/part=1"),
        r"part=1 is missing; there are 2 partitions up to 2\.\n.*0 to P-1",
    ),
    "last": (lambda f: remove(f / "interactions/part=2"), r"is not of partition .*\n.*one is missing"),
    "empty": (lambda f: (f / FIRST).unlink(), r"part=0 holds no rows in Parquet files"),
    "twice": (lambda f: (f / "interactions/part=00").mkdir(), r"part=0 and .*part=00 are the same partition"),
    "loose": (lambda f: (f / FIRST).rename(f / "interactions/a.parquet"), r"a\.parquet is not a folder of a partition"),
    "name": (lambda f: (f / "interactions/day=0").mkdir(), r"day=0 is not a folder of a partition\.\n.*part=0, part=1"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_what_is_missing_is_named(folder, name):
    edit, problem = FOLDERS[name]
    edit(folder)
    with pytest.raises(DataError, match=problem):
        rd.read_numbered(folder)


def test_no_partition(tmp_path):
    (tmp_path / "interactions").mkdir()
    (tmp_path / USERS).touch()
    with pytest.raises(DataError, match=r"interactions holds no partition\.\n.*part=0"):
        rd.read_numbered(tmp_path)
    with pytest.raises(DataError, match=r"is not a folder of numbered tables\.\n.*users\.parquet"):
        rd.read_numbered(tmp_path / "interactions")
    with pytest.raises(DataError, match="does not exist"):
        rd.read_numbered(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="folder is a polars DataFrame, not a path"):
        rd.read_numbered(raw())  # pyright: ignore[reportArgumentType]


def test_other_orders_of_numbers_and_other_columns_are_said(folder):
    change(folder / USERS, lambda t: t.with_columns(19 - t["user"]))
    for part in (0, 1, 2):
        change(folder / f"interactions/part={part}/1.parquet", lambda t: t.with_columns(price=pl.lit(1)))
    with pytest.warns(RediffuseWarning) as caught:
        made = rd.read_numbered(folder)
    said = " ".join(str(warning.message) for warning in caught)
    assert "users.parquet do not follow the order of the ids" in said
    assert "not used: 'price'" in said
    assert len([note for note in made.report["notes"] if note in said]) == 2


def test_one_table_is_another_thing(folder):
    with pytest.raises(DataError, match=r"is a folder of numbered tables, not one table\.\n.*read_numbered"):
        rd.read_interactions(folder)
    done = CliRunner().invoke(app, ["prepare", str(folder), "-o", str(folder / "out"), "--k-core", "5"])
    assert isinstance(done.exception, ConfigError) or "--k-core does not go with" in done.output


def test_a_disk_that_is_full(folder, tmp_path, monkeypatch):
    def full(*about: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(numbered_rows.os, "posix_fallocate", full)
    with pytest.raises(StorageError, match="cannot be written: No space"):
        rd.read_numbered(folder, scratch=tmp_path / "scratch")
    assert not list((tmp_path / "scratch").iterdir())
