"""User files: tables of users to recommend to, read block by block so that memory does not grow with their length."""

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
from rediffuse.readers.text_files import TextFile, TextOptions, first_line, listed
from rediffuse.recommender.bars import BarSplitter
from rediffuse.recommender.item_files import has_header, refuse_lost_row

# Rows read at once if the caller does not set the size of a block.
_ROWS = 100_000
_REMEDY = (
    "Give a CSV or Parquet file with a column user_id, and a column history for users who were not in training. "
    "The first line of a CSV file is a header that names them, unless header=None (--no-header)."
)


class UserFile:
    """A table with a column ``user_id``, or a single column of any name, and optionally a column ``history``.

    A history is a list of item ids, oldest first, or text "a|b|c".

    Args:
        source: a CSV or Parquet file, a folder of such files, or a glob. Parquet is read by row groups, text line by
            line (text compressed with gzip is decompressed into memory first).
        is_known_user: whether the run knows a user id. A file whose first line is a known id has no header.
        item_ids: splits histories in text, where ids of items contain bars.
        text: how text files are read. Without header, ids are in the first column, and histories in the second.

    Attributes:
        name: what to call the file in messages.
        has_histories: whether there is a column ``history``.

    Raises:
        DataError: the source does not exist, is not a table, has no header, lacks these columns, or they hold no ids.
    """

    def __init__(
        self,
        source: str | Path,
        is_known_user: Callable[[str], bool],
        item_ids: BarSplitter | None = None,
        text: TextOptions | None = None,
    ) -> None:
        self._item_ids = item_ids
        self._table = table = read_table(source, "users", wanted=("user_id", "history"), text=text)
        self.name = table.name
        self._user_column, self._history_column = "user_id", "history"
        if table.is_text and not has_header(table):
            if len(table.columns) > 2:
                problem = f"{self.name} has {len(table.columns)} columns and no header."
                raise DataError(problem, "Without header, give ids in the first column, and histories in the second.")
            self._user_column, self._history_column = "0", "1"
        self.has_histories = self._history_column in table.columns
        if self._user_column not in table.columns:
            if len(table.columns) != 1 or self.has_histories:
                problem = f"{self.name} has no column user_id; its columns are {listed(table.columns)}."
                raise DataError(problem, _REMEDY)
            self._user_column = header = table.columns[0]
            refuse_lost_row(table, header, is_known_user, _REMEDY)
        if not table.is_text:
            schema = table.frame.collect_schema()
            user_type, history_type = schema[self._user_column], schema.get(self._history_column, pl.String)
            if not _holds_ids(user_type):
                problem = f"The column {self._user_column!r} of {self.name} holds {user_type}."
                raise DataError(problem, "Give ids, one per row: integers or strings.")
            if not _holds_histories(history_type):
                problem = f"The column 'history' of {self.name} holds {history_type}."
                raise DataError(problem, 'Give lists of item ids, oldest first, or text "a|b|c".')

    def identity(self) -> dict[str, Any]:
        """Size and sha256 of the content, independent of its path; of several files, the sha256 of their digests.

        Raises:
            DataError: a file cannot be read.
        """
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
        """Yield (number, frame) of the ``wanted`` blocks of ``size`` rows; the last may have fewer.

        A frame has the columns user_id (text or integers, as in the file) and, unless ``ids_only``, history (lists).

        Raises:
            DataError: the file cannot be read to its end, has changed since it was opened, or lacks an id.
        """
        columns = (
            [self._user_column] if ids_only or not self.has_histories else [self._user_column, self._history_column]
        )
        read_blocks = self._text_blocks if self._table.is_text else self._parquet_blocks
        for number, frame in read_blocks(columns, size, wanted):
            self._table.refuse_changed()
            ids = Column(frame[self._user_column], self._table, "user", number * size)
            ids.refuse_first(ids.values.is_null(), "is empty", "Fill in the id or remove the row.")
            names = {self._user_column: "user_id", self._history_column: "history"}
            frame = frame.with_columns(plain_ids(ids)).rename(names, strict=False)
            yield number, _split_histories(frame, self._item_ids)

    def read(self) -> tuple[pl.Series, pl.Series | None]:
        """The whole file: ids, and histories if it has any. Raises the errors of `blocks`."""
        frames = [frame for _, frame in self.blocks()]
        if not frames:
            return pl.Series("user_id", [], dtype=pl.String), None
        frame = pl.concat(frames)
        return frame["user_id"], frame["history"] if self.has_histories else None

    def _parquet_blocks(
        self, columns: list[str], size: int, wanted: Callable[[int], bool]
    ) -> Iterator[tuple[int, pl.DataFrame]]:
        frame = self._table.in_pieces(columns).frame.select(columns)
        rows = self._table.read(frame.select(pl.len())).item()
        for number in range(-(-rows // size)):
            if wanted(number):
                yield number, self._table.read(frame.slice(number * size, size))

    def _text_blocks(
        self, columns: list[str], size: int, wanted: Callable[[int], bool]
    ) -> Iterator[tuple[int, pl.DataFrame]]:
        positions = [self._table.columns.index(column) for column in columns]
        number, row, kept = 0, 0, []
        for fields in self._records():
            if wanted(number):
                kept.append([fields[i] or None if i < len(fields) else None for i in positions])
            row += 1
            if row == size:
                if kept:
                    yield number, _text_frame(kept, columns)
                number, row, kept = number + 1, 0, []
        if kept:
            yield number, _text_frame(kept, columns)

    def _records(self) -> Iterator[list[str]]:
        """The fields of each line after the header, file by file."""
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
                            "Fix the line: quote fields that contain the separator, or remove the extra fields.",
                        )
                    yield fields
            except UnicodeDecodeError as error:
                raise DataError(f"{file.path} is not UTF-8: {first_line(error)}", "Save it as UTF-8.") from None
            except OSError as error:
                self._table.refuse_changed()
                raise DataError(f"{file.path} cannot be read: {first_line(error)}", _REMEDY) from None


def _holds_ids(dtype: Any) -> bool:
    return dtype.is_integer() or dtype in (pl.String, pl.Categorical, pl.Enum)


def _holds_histories(dtype: Any) -> bool:
    # A column of empty lists only has the inner type Null.
    return dtype == pl.String or (isinstance(dtype, pl.List) and (dtype.inner == pl.Null or _holds_ids(dtype.inner)))


def _text_frame(rows: list[list[str | None]], columns: list[str]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String), orient="row")


def _split_histories(frame: pl.DataFrame, item_ids: BarSplitter | None) -> pl.DataFrame:
    """Turn histories written as text "a|b|c" into lists."""
    if "history" not in frame.columns or frame["history"].dtype != pl.String:
        return frame
    if item_ids is not None and item_ids.most_bars:
        lists = [None if text is None else item_ids.split(text) for text in frame["history"]]
        return frame.with_columns(history=pl.Series(lists, dtype=pl.List(pl.String)))
    items = pl.col("history").str.split("|").list.eval(pl.element().str.strip_chars())
    return frame.with_columns(items.list.eval(pl.element().filter(pl.element() != "")))
