"""Files of people to recommend to, read block by block, so that memory does not grow with their number."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl

from rediffuse.errors import DataError
from rediffuse.files import sha256_file
from rediffuse.readers.columns import Column, plain_ids
from rediffuse.readers.tables import read_table
from rediffuse.readers.text_files import TextFile, first_line, is_number, listed

# Rows read at once where the size of a block does not matter.
_ROWS = 100_000
_REMEDY = (
    "Give a CSV or Parquet file with a column user_id, and a column history for people never seen in training. "
    "The first line of CSV is a header that names them."
)


class UserFile:
    """A table of people: the column ``user_id``, or the only one, and a column ``history`` if there is one.

    A history is a list of item ids, oldest first, or text "a|b|c".

    Args:
        source: a CSV or Parquet file, a folder of such, or a glob. Parquet is read by row groups, text line by line
            (but what is packed with gzip is unpacked into memory first).
        known: whether the run knows a person of that id. A file whose first line is one has no header.

    Attributes:
        has_histories: whether there is a column ``history``.

    Raises:
        DataError: nothing there, not a table, no header, no such columns, or columns that hold no ids.
    """

    def __init__(self, source: str | Path, known: Callable[[str], bool]) -> None:
        self._table = table = read_table(source, "users", wanted=("user_id", "history"))
        self.name = table.name
        self.has_histories = "history" in table.columns
        self._user = "user_id"
        if "user_id" not in table.columns:
            if len(table.columns) != 1 or self.has_histories:
                problem = f"{self.name} has no column user_id; its columns are {listed(table.columns)}."
                raise DataError(problem, _REMEDY)
            self._user = table.columns[0]
            if table.is_text and (is_number(self._user) or known(self._user)):
                raise DataError(f"The first line of {table.paths[0]} is {self._user!r}, which is no header.", _REMEDY)
        if not table.is_text:
            kinds = table.frame.collect_schema()
            user, history = kinds[self._user], kinds.get("history", pl.String)
            if not _is_id(user):
                problem = f"The column {self._user!r} of {self.name} holds {user}."
                raise DataError(problem, "Give ids, one per row: integers or strings.")
            if not _is_history(history):
                problem = f"The column 'history' of {self.name} holds {history}."
                raise DataError(problem, 'Give lists of item ids, oldest first, or text "a|b|c".')

    def identity(self) -> dict[str, Any]:
        """Size and sha256 of what the file holds, wherever it lies; of several, the sha256 of all their digests."""
        try:
            digests = [sha256_file(path) for path in self._table.paths]
            size = sum(path.stat().st_size for path in self._table.paths)
        except OSError as error:
            raise DataError(f"{self.name} cannot be read: {first_line(error)}", _REMEDY) from None
        digest = digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
        return {"files": len(digests), "bytes": size, "sha256": digest}

    def blocks(
        self, size: int = _ROWS, wanted: Callable[[int], bool] = lambda block: True, ids_only: bool = False
    ) -> Iterator[tuple[int, pl.DataFrame]]:
        """(number, frame) of the ``wanted`` blocks of ``size`` rows; the last may have fewer.

        A frame has the columns user_id, text or numbers as in the file, and, unless ``ids_only``, history: lists.

        Raises:
            DataError: the file cannot be read through, is not any more what it was when it was opened, or lacks an id.
        """
        columns = [self._user] if ids_only or not self.has_histories else [self._user, "history"]
        found = self._from_text if self._table.is_text else self._from_parquet
        for number, frame in found(columns, size, wanted):
            self._table.refuse_changed()
            ids = Column(frame[self._user], self._table, "user", number * size)
            ids.refuse_first(ids.values.is_null(), "is empty", "Fill in the id or remove the row.")
            yield number, _listed(frame.with_columns(plain_ids(ids)).rename({self._user: "user_id"}))

    def read(self) -> tuple[pl.Series, pl.Series | None]:
        """All of it at once: ids, and histories if there are any; raises as `blocks`."""
        frames = [frame for _, frame in self.blocks()]
        if not frames:
            return pl.Series("user_id", [], dtype=pl.String), None
        frame = pl.concat(frames)
        return frame["user_id"], frame["history"] if self.has_histories else None

    def _from_parquet(
        self, columns: list[str], size: int, wanted: Callable[[int], bool]
    ) -> Iterator[tuple[int, pl.DataFrame]]:
        frame = self._table.in_pieces(columns).frame.select(columns)
        rows = self._table.read(frame.select(pl.len())).item()
        for number in range(-(-rows // size)):
            if wanted(number):
                yield number, self._table.read(frame.slice(number * size, size))

    def _from_text(
        self, columns: list[str], size: int, wanted: Callable[[int], bool]
    ) -> Iterator[tuple[int, pl.DataFrame]]:
        places = [self._table.columns.index(column) for column in columns]
        number, row, kept = 0, 0, []
        for fields in self._records():
            if wanted(number):
                kept.append([fields[place] or None if place < len(fields) else None for place in places])
            row += 1
            if row == size:
                if kept:
                    yield number, _as_text(kept, columns)
                number, row, kept = number + 1, 0, []
        if kept:
            yield number, _as_text(kept, columns)

    def _records(self) -> Iterator[list[str]]:
        width = len(self._table.columns)
        for file in self._table.files:
            assert isinstance(file, TextFile)
            records = file.records(strict=True)
            try:
                next(records, None)  # the header
                for line, fields in records:
                    if len(fields) > width:
                        raise DataError(
                            f"{file.path}, line {line} has {len(fields)} fields and the header has {width}.",
                            "Mend the line: quote fields that contain the separator, or remove what is too much.",
                        )
                    yield fields
            except UnicodeDecodeError as error:
                raise DataError(f"{file.path} is not UTF-8: {first_line(error)}", "Save it as UTF-8.") from None
            except OSError as error:
                self._table.refuse_changed()
                raise DataError(f"{file.path} cannot be read: {first_line(error)}", _REMEDY) from None


def _is_id(kind: Any) -> bool:
    return kind.is_integer() or kind in (pl.String, pl.Categorical, pl.Enum)


def _is_history(kind: Any) -> bool:
    # Lists that are all empty are lists of nothing.
    return kind == pl.String or (isinstance(kind, pl.List) and (kind.inner == pl.Null or _is_id(kind.inner)))


def _as_text(rows: list[list[str | None]], columns: list[str]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String), orient="row")


def _listed(frame: pl.DataFrame) -> pl.DataFrame:
    """Histories as lists."""
    if "history" not in frame.columns or frame["history"].dtype != pl.String:
        return frame
    names = pl.col("history").str.split("|").list.eval(pl.element().str.strip_chars())
    return frame.with_columns(names.list.eval(pl.element().filter(pl.element() != "")))
