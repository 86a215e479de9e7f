"""User files: tables of users to recommend to, read block by block so that memory does not grow with their length."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl

from rediffuse.errors import DataError, RediffuseWarning
from rediffuse.files import sha256_file
from rediffuse.readers.columns import Column, plain_ids
from rediffuse.readers.item_lists import NoListError
from rediffuse.readers.remote_tables import RemoteFile
from rediffuse.readers.tables import read_table
from rediffuse.readers.text_files import TextFile, TextOptions, first_line, listed
from rediffuse.recommender.bars import BarSplitter
from rediffuse.recommender.history_text import split_history
from rediffuse.recommender.item_files import refuse_lost_row

# Other names of the column ``history``, without underscores: item_id_list is RecBole's.
_HISTORIES = ("history", "histories", "itemidlist", "itemhistory")
# Rows read at once if the caller does not set the size of a block.
_ROWS = 100_000
_REMEDY = (
    "Give a CSV or Parquet file with a column user_id, and a column history for users who were not in training. "
    "The first line of a CSV file is a header that names them, unless header=None (--no-header)."
)


class UserFile:
    """A table with a column ``user_id``, or a single column of any name, and optionally a column ``history``.

    A history is a list of item ids, oldest first, or text: "a|b|c", "[1, 2, 3]", "1 2 3"; see `split_history`. The
    column may be called ``histories``, ``History`` or ``item_id_list`` as well.

    Args:
        source: a CSV or Parquet file, a folder of such files, or a glob. Parquet is read by row groups, text line by
            line (text compressed with gzip is decompressed into memory first).
        is_known_user: whether the run knows a user id. A file whose first line is a known id has no header.
        item_ids: splits histories in text; it knows the items of the run. None: at bars alone.
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
        self._item_ids, self._is_known_user = item_ids, is_known_user
        self._table = table = read_table(source, "users", wanted=("user_id", "history"), text=text)
        self.name = table.name
        self._user_column = "user_id"
        if not table.has_header:
            if len(table.columns) > 2:
                problem = f"{self.name} has {len(table.columns)} columns and no header."
                raise DataError(problem, "Without header, give ids in the first column, and histories in the second.")
            self._user_column = "0"
            self._history_column = "1" if len(table.columns) == 2 else None
        else:
            self._history_column = _history_column(self.name, table.columns)
        self.has_histories = self._history_column is not None
        if not self.has_histories and "item_id" in table.columns and len(table.columns) > 1:
            warnings.warn(
                f"The column 'item_id' of {self.name} is not used: each row is one user, and histories are in a column "
                "history. To add interactions to the histories of a run: rediffuse update-histories.",
                RediffuseWarning,
                stacklevel=2,
            )
        if self._user_column not in table.columns:
            if len(table.columns) != 1 or self.has_histories:
                problem = f"{self.name} has no column user_id; its columns are {listed(table.columns)}."
                raise DataError(problem, _REMEDY)
            self._user_column = header = table.columns[0]
            refuse_lost_row(table, header, is_known_user, _REMEDY)
        if not table.is_text:
            schema = table.frame.collect_schema()
            user_type, history_type = schema[self._user_column], schema.get(self._history_column or "", pl.String)
            if not _holds_ids(user_type):
                problem = f"The column {self._user_column!r} of {self.name} holds {user_type}."
                raise DataError(problem, "Give ids, one per row: integers or strings.")
            if not _holds_histories(history_type):
                problem = f"The column {self._history_column!r} of {self.name} holds {history_type}."
                raise DataError(problem, 'Give lists of item ids, oldest first, or text "a|b|c".')

    def identity(self) -> dict[str, Any]:
        """Size and sha256 of the content, independent of its path; of several files, the sha256 of their digests.

        Of an object in a store, what the store says of it stands for its sha256.

        Raises:
            DataError: a file cannot be read.
        """
        try:
            files = self._table.paths
            digests = [path.seen.tag if isinstance(path, RemoteFile) else sha256_file(path) for path in files]
            size = sum(path.seen.size if isinstance(path, RemoteFile) else path.stat().st_size for path in files)
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
        columns = [self._user_column]
        if self._history_column is not None and not ids_only:
            columns.append(self._history_column)
        read_blocks = self._text_blocks if self._table.is_text else self._parquet_blocks
        for number, frame in read_blocks(columns, size, wanted):
            self._table.refuse_changed()
            # A user called NULL is known, or counted among the unknown ones.
            ids = Column(frame[self._user_column], self._table, "user", number * size, keep_words=True)
            ids.refuse_first(ids.values.is_null(), "is empty", "Fill in the id or remove the row.")
            frame = pl.DataFrame(
                [plain_ids(ids).rename("user_id"), *(frame[name].rename("history") for name in columns[1:])]
            )
            yield number, self._split_histories(frame, number * size)

    def read(self) -> tuple[pl.Series, pl.Series | None]:
        """The whole file: ids, and histories if it has any. Raises the errors of `blocks` and `require_known`."""
        self.require_known()
        frames = [frame for _, frame in self.blocks()]
        if not frames:
            return pl.Series("user_id", [], dtype=pl.String), None
        frame = pl.concat(frames)
        return frame["user_id"], frame["history"] if self.has_histories else None

    def require_known(self) -> None:
        """Read the file until it names something that the run knows: an item of a history, or else a user.

        Raises:
            DataError: there is nothing; so all users would get popular items.
        """
        item = user = None
        for _, frame in self.blocks():
            if self.has_histories and self._item_ids is not None:
                for one in frame["history"].explode().drop_nulls().cast(pl.String).unique(maintain_order=True):
                    if self._item_ids.is_known(one):
                        return
                    item = one if item is None else item
            if item is None:  # histories decide, if there are any
                for one in frame["user_id"]:
                    if self._is_known_user(one):
                        return
                    user = one if user is None else user
        if item is not None or user is not None:
            what, example = ("items of the histories", item) if item is not None else ("users", user)
            raise DataError(
                f"The run knows none of the {what} of {self.name}, for example {example!r}.",
                "All would get popular items. Use the ids of the data that the run was trained on"
                + ("." if item is not None else ", or add a column history."),
            )

    def _split_histories(self, frame: pl.DataFrame, start: int) -> pl.DataFrame:
        """Turn histories in text into lists; ``start`` is the row of the first."""
        if "history" not in frame.columns or isinstance(frame["history"].dtype, pl.List):
            return frame
        history = frame["history"]
        if isinstance(history.dtype, pl.Array):
            return frame.with_columns(history.cast(pl.List(history.dtype.inner)))  # pyright: ignore[reportArgumentType]
        if self._item_ids is None:
            items = history.str.split("|").list.eval(pl.element().str.strip_chars())
            return frame.with_columns(items.list.eval(pl.element().filter(pl.element() != "")))
        lists: list[list[str] | None] = []
        for row, text in enumerate(history):
            try:
                lists.append(None if text is None else split_history(text, self._item_ids))
            except NoListError as error:
                raise DataError(
                    f"{self._table.place(start + row)}: column {self._history_column!r} is {text!r}, which cannot be "
                    f"read as a list: {error}.",
                    'Write each history in full, as "a|b|c" or in brackets.',
                ) from None
        return frame.with_columns(history=pl.Series(lists, dtype=pl.List(pl.String)))

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


def _history_column(name: str, columns: list[str]) -> str | None:
    """The column of histories: ``history``, or one that means the same.

    Raises:
        DataError: several columns mean the same.
    """
    if "history" in columns:
        return "history"
    same = [column for column in columns if column.casefold().replace("_", "") in _HISTORIES]
    if len(same) > 1:
        raise DataError(f"{name} has several columns of histories: {listed(same)}.", "Rename the right one to history.")
    return same[0] if same else None


def _holds_ids(dtype: Any) -> bool:
    return dtype.is_integer() or dtype in (pl.String, pl.Categorical, pl.Enum)


def _holds_histories(dtype: Any) -> bool:
    # A column of empty lists only has the inner type Null.
    return dtype == pl.String or (
        isinstance(dtype, (pl.List, pl.Array)) and (dtype.inner == pl.Null or _holds_ids(dtype.inner))
    )


def _text_frame(rows: list[list[str | None]], columns: list[str]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String), orient="row")
