"""The interactions of numbered tables: checked a piece at a time, and placed where each user begins."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rediffuse.data.histories import Histories
from rediffuse.data.subsets import SUBSETS, UNUSED
from rediffuse.errors import DataError
from rediffuse.files import writing
from rediffuse.readers.columns import Column, plain_numbers, plain_ratings
from rediffuse.readers.report import ReadReport
from rediffuse.readers.tables import Table, files_below, parquet_table

# Rows that are read at once, so that memory does not grow with the table.
PIECE = 1 << 22
GUIDE = "docs/large-tables.md has the layout."
_NEEDED, _OPTIONAL = ("user", "item"), ("timestamp", "order", "rating", "target", "split")
_ORDER = "Write each partition in order of user, then time. An engine with several threads may mix the rows of a file."
_ONE_FILE = "Write all rows of a user to one file."
# The parts of a second in a unit of polars' datetimes.
_PER_SECOND = {"ms": 10**3, "us": 10**6, "ns": 10**9}
_NOT_SECONDS = 1e11  # the year 5138


class NumberedRows:
    """The interactions of some partitions.

    Attributes:
        columns: names of the columns that are read.
        items_seen: (items,) whether an item has an interaction, after `place`.
    """

    def __init__(
        self, folders: Mapping[int, Path], partitions: int, tables: tuple[Table, Table], sizes: tuple[int, int]
    ) -> None:
        """Open the files.

        Args:
            folders: number of a partition -> its folder.
            partitions: how many there are in all.
            tables: of users and of items, for errors.
            sizes: number of users and of items.

        Raises:
            DataError: a partition has no files, or a file cannot be read or lacks a column.
        """
        self.partitions, self.sizes = partitions, sizes
        self.names = [table.name for table in tables]
        self.files = {number: _in_order(folder) for number, folder in folders.items()}
        first = next(iter(self.files.values()))[0]
        for column in _NEEDED:
            first.need(column, f"number of the {column}", fixed=True)
        self.columns = [name for name in (*_NEEDED, *_OPTIONAL) if name in first.columns]
        if "timestamp" in self.columns and "order" in self.columns:
            raise DataError(
                f"{first.name} has the columns 'timestamp' and 'order'.",
                "Leave out 'order': the order of rows says how interactions of one time follow each other.",
            )
        self.unused = [name for name in first.columns if name not in (*self.columns, "part")]
        for table in self._tables():
            for name in (*_NEEDED, *_OPTIONAL):
                if (name in table.columns) != (name in self.columns):
                    having, lacking = (table, first) if name in table.columns else (first, table)
                    raise DataError(
                        f"{lacking.name} has no column {name!r}, which {having.name} has.",
                        "All files of the interactions need the same columns.",
                    )
        self.time = next((name for name in ("timestamp", "order") if name in self.columns), None)
        self.items_seen = np.zeros(sizes[1], dtype=bool)
        self._whole_times = True
        self._offsets: NDArray[np.int64] = np.zeros(sizes[0] + 1, dtype=np.int64)

    @property
    def has_timestamps(self) -> bool:
        return self.time == "timestamp"

    def note_unused(self, report: ReadReport) -> None:
        if self.unused:
            report.warn(
                f"Columns of the interactions that are not used: {', '.join(map(repr, self.unused))}. Those that are: "
                f"{', '.join((*_NEEDED, *_OPTIONAL))}."
            )

    def count(self) -> None:
        """Count the interactions of each user, after checking the users and their order.

        Raises:
            DataError: a user is unknown, in the wrong partition, in two files or out of order.
        """
        lengths = self._offsets[1:]
        for number, tables in self.files.items():
            last = -1
            for table in tables:
                fractions = self.time is not None and not table.frame.collect_schema()[self.time].is_integer()
                for start, frame in _pieces(table, ["user", self.time] if self.time and fractions else ["user"]):
                    users = self._users(Column(frame["user"], table, "user", start), number, last, start == 0)
                    last = int(users[-1])
                    runs = _runs(users)
                    lengths[users[runs]] += np.diff(runs, append=len(users))
                    if self.time is not None and fractions:
                        values = self._times(Column(frame[self.time], table, "time", start))
                        # As in `read_interactions`: seconds without a fraction are integers, orders stay as they are.
                        self._whole_times &= self.has_timestamps and bool((values == np.floor(values)).all())
        np.cumsum(self._offsets, out=self._offsets)

    def _users(self, column: Column, partition: int, last: int, new_file: bool) -> NDArray[np.int64]:
        users = _numbers(column, self.sizes[0], self.names[0])
        elsewhere = users % self.partitions != partition
        if elsewhere.any():
            row = int(np.argmax(elsewhere))
            raise column.refuse(
                row,
                f"is {users[row]}, which is not of partition {partition}: {users[row]} modulo {self.partitions} is "
                f"{users[row] % self.partitions}",
                "User u is in the partition u modulo P, where P is the number of partitions. If there were more when "
                "they were written, one is missing.",
            )
        before = np.concatenate(([last], users[:-1]))
        if new_file and users[0] == last:
            problem = f"is {last}, and another file of the partition holds the same user"
            raise column.refuse(0, problem, _ONE_FILE)
        column.refuse_first(pl.Series(users < before), "is {}, below that of the row above", _ORDER)
        return users

    def place(self, scratch: Path | None) -> tuple[Histories, dict[str, NDArray[np.int8]]]:
        """The interactions in order of user and time, and the split that they come with, if any.

        Args:
            scratch: a folder for the file that they are written to; None: they are held in memory.

        Raises:
            DataError: a value is missing or out of range, or times decrease within a user.
            StorageError: ``scratch`` cannot be written.
        """
        kinds: dict[str, Any] = {"item": np.int32, "rating": np.float32, "target": np.bool_, "split": np.int8}
        if self.time is not None:
            kinds[self.time] = np.int64 if self._whole_times else np.float64
        total = int(self._offsets[-1])
        arrays = {name: _array(total, kind, scratch) for name, kind in kinds.items() if name in self.columns}
        for table in self._tables():
            last, placed, time = -1, 0, None  # the last user so far, how many rows of them, and their last time
            for start, frame in _pieces(table, self.columns):
                users = frame["user"].to_numpy().astype(np.int64)
                runs = _runs(users)
                places = self._offsets[users[runs]] - runs
                places[0] += placed if users[0] == last else 0
                places = np.arange(len(users)) + np.repeat(places, np.diff(runs, append=len(users)))
                placed = int(places[-1] - self._offsets[users[-1]]) + 1
                columns = {name: Column(frame[name], table, name, start) for name in self.columns}
                values = self._values(columns)
                self.items_seen[values["item"]] = True
                if self.time is not None:
                    _refuse_earlier(columns[self.time], users, values[self.time], (last, time))
                    time = values[self.time][-1]
                for name, array in arrays.items():
                    array[places] = values[name]
                last = int(users[-1])
        get = arrays.get
        times = None if self.time is None else arrays[self.time]
        made = Histories(self._offsets, arrays["item"], times, get("rating"), target=get("target"))
        return made, {"given": arrays["split"]} if "split" in arrays else {}

    def _values(self, columns: Mapping[str, Column]) -> dict[str, NDArray[Any]]:
        """The checked values of one piece, but for the users."""
        found: dict[str, NDArray[Any]] = {"item": _numbers(columns["item"], self.sizes[1], self.names[1])}
        if self.time is not None:
            found[self.time] = self._times(columns[self.time])
        if "rating" in columns:
            found["rating"] = plain_ratings(columns["rating"])
        if "target" in columns:
            values = columns["target"].complete()
            if values.dtype != pl.Boolean:
                raise _wrong_type(columns["target"], "BOOLEAN: true where the interaction may be truth")
            found["target"] = values.to_numpy()
        if "split" in columns:
            found["split"] = _subsets(columns["split"])
        return found

    def _times(self, column: Column) -> NDArray[Any]:
        """Seconds, or numbers that order."""
        values = column.complete()
        if self.has_timestamps and values.dtype == pl.Date:
            return values.cast(pl.Int32).to_numpy().astype(np.int64) * 86_400
        if self.has_timestamps and isinstance(values.dtype, pl.Datetime):
            key, size = values.to_physical().to_numpy(), _PER_SECOND[values.dtype.time_unit]
            return key / size if (key % size).any() else key // size
        if values.dtype == pl.String:
            raise _wrong_type(column, "seconds since 1970 or a TIMESTAMP" if self.has_timestamps else "numbers")
        numbers = plain_numbers(column, "a number of seconds since 1970" if self.has_timestamps else "a number")
        if self.has_timestamps:
            column.refuse_first(
                numbers.abs() >= _NOT_SECONDS,
                "is {}, which counts no seconds since 1970",
                "Write seconds: milliseconds divided by 1,000, and so on.",
            )
        return numbers.to_numpy()

    def _tables(self) -> Iterator[Table]:
        for tables in self.files.values():
            yield from tables


def _in_order(folder: Path) -> list[Table]:
    """The files of a partition that hold rows, in the order of their first user."""
    tables = [parquet_table([file], str(file)) for file in files_below(folder, "parquet")]
    firsts: list[tuple[int, Table]] = []
    for table in tables:
        table.need("user", "number of the user", fixed=True)
        user = table.read(table.frame.select("user").head(1))["user"]
        if len(user):
            # What is no number is refused later, with its row.
            firsts.append((user[0] if user.dtype.is_integer() and not user.null_count() else -1, table))
    if not firsts:
        raise DataError(f"{folder} holds no rows in Parquet files.", f"Write the partition again. {GUIDE}")
    firsts.sort(key=lambda pair: pair[0])
    for (user, table), (other, following) in pairwise(firsts):
        if user == other >= 0:
            raise DataError(f"{following.name} and {table.name} hold the same user, {user}.", _ONE_FILE)
    return [table for _, table in firsts]


def _pieces(table: Table, columns: list[str]) -> Iterator[tuple[int, pl.DataFrame]]:
    """Some columns, PIECE rows at a time, and the row (from 0) where each piece begins."""
    for start in range(0, table.rows, PIECE):
        yield start, table.read(table.frame.select(columns).slice(start, PIECE))


def _numbers(column: Column, below: int, listing: str) -> NDArray[np.int64]:
    values = column.complete()
    if not values.dtype.is_integer():
        raise _wrong_type(column, "integers: the numbers of " + Path(listing).name)
    column.refuse_first(
        ~values.is_between(0, below - 1),
        f"is {{}}, and {listing} has the numbers 0 to {below - 1}",
        "Number users and items anew, and write all tables from the same numbers.",
    )
    return values.to_numpy().astype(np.int64)


def _subsets(column: Column) -> NDArray[np.int8]:
    """(rows,) the subsets; interactions without one are in none."""
    values = column.values
    if values.dtype not in (pl.String, pl.Null):
        raise _wrong_type(column, "text: train, valid or test")
    names = [name for name in SUBSETS if name != "unused"]
    column.refuse_first(~values.is_in(names), "is {}", "Subsets are train, valid and test, or nothing.")
    return values.replace_strict(SUBSETS, default=UNUSED, return_dtype=pl.Int8).to_numpy()


def _refuse_earlier(column: Column, users: NDArray[Any], times: NDArray[Any], before: tuple[int, Any]) -> None:
    """Raise at a row that is earlier than the one above it, of the same user."""
    earlier = np.zeros(len(users), dtype=bool)
    earlier[1:] = (users[1:] == users[:-1]) & (times[1:] < times[:-1])
    earlier[0] = users[0] == before[0] and times[0] < before[1]
    column.refuse_first(pl.Series(earlier), "is {}, before that of the row above, of the same user", _ORDER)


def _runs(users: NDArray[Any]) -> NDArray[np.int64]:
    """Where the rows of each user begin."""
    return np.concatenate(([0], np.flatnonzero(users[1:] != users[:-1]) + 1))


def _array(length: int, kind: Any, scratch: Path | None) -> NDArray[Any]:
    """A new array; with ``scratch`` mapped from a file there, which has no name and goes with the array."""
    if scratch is None:
        return np.empty(length, dtype=kind)
    with writing(scratch):
        scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=scratch) as file:
            # A disk that is full is an error here; in the middle of a write, it would kill the process.
            size = length * np.dtype(kind).itemsize
            os.posix_fallocate(file.fileno(), 0, size) if hasattr(os, "posix_fallocate") else file.truncate(size)
            return np.asarray(np.memmap(file, dtype=kind, mode="r+", shape=(length,)))


def _wrong_type(column: Column, wanted: str) -> DataError:
    return DataError(
        f"{column.table.name}: column {column.values.name!r} holds {column.values.dtype} values.",
        f"It must hold {wanted}. Cast it.",
    )
