"""Numbered tables that another engine made (Spark, DuckDB, Ray Data); their contract is docs/large-tables.md."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rediffuse import forks
from rediffuse.arguments import require_integer, require_path, require_text, wrong_type
from rediffuse.data.dataset import Dataset
from rediffuse.errors import ConfigError, DataError
from rediffuse.readers import side_tables
from rediffuse.readers.columns import Column, plain_ids
from rediffuse.readers.interactions import note_targets
from rediffuse.readers.numbered_rows import GUIDE, NumberedRows
from rediffuse.readers.report import ReadReport
from rediffuse.readers.tables import Table, files_below, is_numbered, parquet_table


def read_numbered(
    folder: str | PathLike[str],
    *,
    title: str | None = None,
    item_features: str | Sequence[str] | None = None,
    user_features: str | Sequence[str] | None = None,
    scratch: str | PathLike[str] | None = None,
) -> Dataset:
    """A dataset of numbered tables that Spark, DuckDB or Ray Data wrote; docs/large-tables.md says how they must look.

    The tables are checked once, a piece at a time. The dataset has the fingerprint of `read_interactions` on the table
    that they were made of.

    Args:
        folder: holds ``interactions/part=0/``, ``users.parquet`` and ``items.parquet``.
        title: column of the items with a readable name; a column called ``title`` is used by default.
        item_features, user_features: as in `read_interactions`.
        scratch: a folder for a temporary file that holds the interactions; None: they are held in memory.

    Raises:
        DataError: a file is missing or damaged, or a value breaks the contract; the error names file, column, row and
            remedy.
        ConfigError: an argument has the wrong type, or no such column exists.
        StorageError: ``scratch`` cannot be written.

    Warns:
        RediffuseWarning: numbers do not follow the order of the ids, or a column is not used.
    """
    folder = _opened(folder)
    require_text("title", title)
    made = _dataset(folder, partition_folders(folder), None, scratch, title)
    return made.with_features(item_features, user_features)


def load_partitions(
    folder: str | PathLike[str], partitions: Iterable[int] | slice, *, scratch: str | PathLike[str] | None = None
) -> Dataset:
    """Some partitions of numbered tables: all users and items with their numbers, the interactions of a share of users.

    Process r of n reads ``load_partitions(folder, slice(r, None, n))``; all interactions are then in one of them. The
    users of other partitions have no interaction here. Quantiles of times are those of this share, so a split by time
    belongs into the column ``split``; `rediffuse.split.leave_one_out` and `rediffuse.split.given` need no other share.

    Args:
        folder: as in `read_numbered`.
        partitions: their numbers, or a slice of them.
        scratch: as in `read_numbered`.

    Raises:
        DataError: as `read_numbered`; other partitions are not looked at.
        ConfigError: there is no such partition, or none was named.
        StorageError: ``scratch`` cannot be written.
    """
    folder = _opened(folder)
    folders = partition_folders(folder)
    if isinstance(partitions, slice):
        chosen = list(range(len(folders))[partitions])
    elif isinstance(partitions, Iterable) and not isinstance(partitions, str):
        chosen = sorted({require_integer("A number in partitions", number, minimum=0) for number in partitions})
    else:
        raise wrong_type("partitions", partitions, "numbers", "For example: partitions=[0, 2] or slice(rank, None, 2).")
    if not chosen or chosen[-1] >= len(folders):
        problem = f"has no partition {chosen[-1]}" if chosen else "was given, and no partition chosen"
        raise ConfigError(
            f"{folder} {problem}; its partitions are 0 to {len(folders) - 1}.",
            "Start at most as many processes as there are partitions, or write the tables in more of them.",
        )
    return _dataset(folder, folders, chosen, scratch, None)


def partition_folders(folder: Path) -> list[Path]:
    """The folders of the partitions, in order of their numbers, which are 0, 1, 2, ...

    Raises:
        DataError: there is none, a number is missing or there twice, or there is something else.
    """
    root = folder / "interactions"
    found: dict[int, Path] = {}
    for path in sorted(root.iterdir()):
        if path.name.startswith(("_", ".")):  # of the program that wrote the tables
            continue
        number = re.fullmatch(r"part=(\d{1,9})", path.name)
        if number is None or not path.is_dir():
            raise DataError(
                f"{path} is not a folder of a partition.",
                f"{root} holds folders part=0, part=1, ... of Parquet files, and nothing else. {GUIDE}",
            )
        other = found.setdefault(int(number[1]), path)
        if other != path:
            raise DataError(f"{other} and {path} are the same partition.", "Remove one, or write the tables again.")
    if not found:
        raise DataError(f"{root} holds no partition.", f"Write the interactions to {root}/part=0/ and so on. {GUIDE}")
    for place, number in enumerate(sorted(found)):
        if number != place:
            raise DataError(
                f"{root / f'part={place}'} is missing; there are {len(found):,} partitions up to {max(found)}.",
                "Write it, or write all tables again: the partitions are 0 to P-1, and user u is in u modulo P.",
            )
    return [found[number] for number in range(len(found))]


def _opened(folder: Any) -> Path:
    folder = require_path("folder", folder, "Give the folder of the tables; read_interactions reads data frames.")
    forks.enter()
    if not is_numbered(folder):
        missing = "does not exist" if not folder.exists() else "is not a folder of numbered tables"
        raise DataError(
            f"{folder} {missing}.", f"Name a folder with interactions/, users.parquet and items.parquet. {GUIDE}"
        )
    return folder


def _dataset(folder: Path, folders: list[Path], chosen: list[int] | None, scratch: Any, title: str | None) -> Dataset:
    """The dataset of some partitions; None: of all, which then must hold every user and item."""
    report = ReadReport()
    users, user_table = _described(folder, "user", report)
    items, item_table = _described(folder, "item", report)
    if len(item_table) < 2:
        raise DataError(f"{items.name} has a single item.", "Bring interactions with at least two items.")
    if title is None and "title" in item_table.columns:
        title = "title"
    if title is not None:
        item_table = side_tables.with_title(items, item_table, title)
    numbers = range(len(folders)) if chosen is None else chosen
    sizes = (len(user_table), len(item_table))
    rows = NumberedRows({number: folders[number] for number in numbers}, len(folders), (users, items), sizes)
    rows.note_unused(report)
    rows.count()
    interactions, given = rows.place(None if scratch is None else require_path("scratch", scratch))
    if chosen is None:
        _refuse_unused(users, user_table["user_id"], interactions.lengths == 0)
        _refuse_unused(items, item_table["item_id"], ~rows.items_seen)
    counts = {"rows": len(interactions.items), "interactions": len(interactions.items)}
    report.values.update(counts, users=len(user_table), items=len(item_table), partitions=len(folders))
    if rows.has_timestamps:
        report.values["time_unit"] = "seconds"
    note_targets(interactions, report)
    if chosen is not None:
        report.values["partitions_read"] = chosen
        report.note(f"The interactions are those of {len(chosen):,} of {len(folders):,} partitions.")
    return Dataset(
        interactions=interactions,
        user_ids=user_table["user_id"],
        item_ids=item_table["item_id"],
        has_timestamps=rows.has_timestamps,
        items=item_table if item_table.width > 1 else None,
        title=title,
        users=user_table if user_table.width > 1 else None,
        given=given,
        report=report.as_dict(),
    )


def _described(folder: Path, kind: str, report: ReadReport) -> tuple[Table, pl.DataFrame]:
    """The table of users or items; and row n about number n, with the ids in its first column.

    Raises:
        DataError: it is missing, a number or an id is missing or there twice.
    """
    path, name = folder / f"{kind}s.parquet", f"{kind}_id"
    files = files_below(path, "parquet") if path.is_dir() else [path] if path.is_file() else []
    if not files:
        raise DataError(f"{path} is missing.", f"Write it with the columns {kind} (numbers) and {name}. {GUIDE}")
    table = parquet_table(files, str(path))
    for column, role in ((kind, f"numbers of {kind}s"), (name, f"ids of {kind}s")):
        table.need(column, role, fixed=True)
    frame = table.collect(table.columns)
    last = len(frame) - 1
    numbers = Column(frame[kind], table, f"number of the {kind}")
    mend = f"Number the {kind}s 0 to {last:,} in the order of their ids, each once."
    if not numbers.complete().dtype.is_integer():
        raise DataError(f"{path}: column {kind!r} holds {frame[kind].dtype} values, not integers.", mend)
    numbers.refuse_first(
        ~frame[kind].is_between(0, last), f"is {{}}, and {last + 1:,} rows have numbers to {last}", mend
    )
    numbers.refuse_first(~frame[kind].is_first_distinct(), "is {}, which a row above has as well", mend)
    ids = plain_ids(Column(frame[name], table, name))
    Column(ids, table, name).refuse_first(
        ~ids.is_first_distinct(), "is {}, which a row above has as well", f"Write one row for each {kind}."
    )
    order = np.argsort(frame[kind].to_numpy())
    ids = ids.gather(order)
    if not ids.is_sorted():
        report.warn(
            f"The numbers in {path} do not follow the order of the ids. The dataset is sound, but its fingerprint is "
            "not that of read_interactions on the same table, and seeds draw other numbers."
        )
    others = [frame[column].gather(order) for column in frame.columns if column not in (kind, name)]
    return table, pl.DataFrame([ids.rename(name), *others])


def _refuse_unused(table: Table, ids: pl.Series, unused: NDArray[np.bool_]) -> None:
    """Raise about the first id without an interaction."""
    if unused.any():
        number, kind = int(np.argmax(unused)), ids.name.removesuffix("_id")
        raise DataError(
            f"{table.name}: the {kind} {ids[number]!r} (number {number}) has no interaction, as {int(unused.sum()):,} "
            f"{kind}s.",
            f"Number only {kind}s with an interaction. If it had some, a file of the interactions is missing.",
        )
