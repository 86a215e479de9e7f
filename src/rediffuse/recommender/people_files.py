"""Files of people to recommend to, read block by block, so that memory does not grow with their number."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl

from rediffuse.data.files import sha256_file
from rediffuse.data.tables import read_table
from rediffuse.data.text_files import TextFile, first_line, listed
from rediffuse.errors import DataError

# Rows read at once where the size of a block does not matter.
_ROWS = 100_000
_REMEDY = "Give a CSV or Parquet file with a column user_id, and a column history for people never seen in training."


class PeopleFile:
    """A table of people: the column ``user_id``, or the first one, and a column ``history`` if there is one.

    A history is a list of item ids, oldest first, or text "a|b|c".

    Args:
        source: a CSV or Parquet file, a folder of such, or a glob. Parquet is read by row groups, text line by line
            (but what is packed with gzip is unpacked into memory first).

    Attributes:
        files: paths, in the order of rows.
        has_histories: whether there is a column ``history``.

    Raises:
        DataError: nothing there, not a table, or no such columns.
    """

    def __init__(self, source: str | Path) -> None:
        self._table = table = read_table(source, "users", wanted=("user_id", "history"))
        self.name = table.name
        self.files = [file.path if isinstance(file, TextFile) else file for file in table.files]
        self.has_histories = "history" in table.columns
        self._user = "user_id" if "user_id" in table.columns else next(iter(table.columns), "history")
        if self._user == "history":
            raise DataError(f"{self.name} has no column of users; its columns are {listed(table.columns)}.", _REMEDY)
        if not table.is_text:
            kinds = table.frame.collect_schema()
            user, history = kinds[self._user], kinds.get("history", pl.String)
            if user.is_nested():
                raise DataError(f"The column {self._user!r} of {self.name} holds {user}.", "Give ids, one per row.")
            if history != pl.String and not isinstance(history, pl.List):
                problem = f"The column 'history' of {self.name} holds {history}."
                raise DataError(problem, 'Give lists of item ids, oldest first, or text "a|b|c".')
        self._stamps = self._stamp()

    def identity(self) -> dict[str, Any]:
        """Size and sha256 of what the file holds, wherever it lies; of several, the sha256 of all their digests."""
        try:
            digests = [sha256_file(path) for path in self.files]
        except OSError as error:
            raise DataError(f"{self.name} cannot be read: {first_line(error)}", _REMEDY) from None
        digest = digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
        return {"files": len(digests), "bytes": sum(path.stat().st_size for path in self.files), "sha256": digest}

    def blocks(
        self, size: int = _ROWS, wanted: Callable[[int], bool] = lambda block: True, ids_only: bool = False
    ) -> Iterator[tuple[int, pl.DataFrame]]:
        """(number, frame) of the ``wanted`` blocks of ``size`` rows; the last may have fewer.

        A frame has the columns user_id, text or numbers as in the file, and, unless ``ids_only``, history: lists.

        Raises:
            DataError: the file cannot be read through, or is not any more what it was when it was opened.
        """
        columns = [self._user] if ids_only or not self.has_histories else [self._user, "history"]
        found = self._from_text if self._table.is_text else self._from_parquet
        try:
            for number, frame in found(columns, size, wanted):
                self._refuse_changed()
                yield number, _tidy(frame.rename({self._user: "user_id"}))
        except (pl.exceptions.PolarsError, OSError) as error:
            self._refuse_changed()
            raise DataError(f"{self.name} cannot be read: {first_line(error)}", _REMEDY) from None

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
        frame = self._table.frame.select(columns)
        rows = frame.select(pl.len()).collect().item()
        for number in range(-(-rows // size)):
            if wanted(number):
                yield number, frame.slice(number * size, size).collect()

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
            next(records, None)  # the header
            try:
                for line, fields in records:
                    if len(fields) > width:
                        raise DataError(
                            f"{file.path}, line {line} has {len(fields)} fields and the header has {width}.",
                            "Mend the line: quote fields that contain the separator, or remove what is too much.",
                        )
                    yield fields
            except UnicodeDecodeError as error:
                raise DataError(f"{file.path} is not UTF-8: {first_line(error)}", "Save it as UTF-8.") from None

    def _refuse_changed(self) -> None:
        if self._stamp() != self._stamps:
            problem = f"{self.name} was changed while it was read."
            raise DataError(problem, "Leave it alone until the end, and write into a new folder.")

    def _stamp(self) -> list[tuple[int, int] | None]:
        """Size and time of every file, None where it is gone."""
        found = [path.stat() if path.is_file() else None for path in self.files]
        return [None if about is None else (about.st_size, about.st_mtime_ns) for about in found]


def _as_text(rows: list[list[str | None]], columns: list[str]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String), orient="row")


def _tidy(frame: pl.DataFrame) -> pl.DataFrame:
    """Ids as text or numbers, histories as lists."""
    if frame["user_id"].dtype in (pl.Categorical, pl.Enum):
        frame = frame.with_columns(pl.col("user_id").cast(pl.String))
    if "history" in frame.columns and frame["history"].dtype == pl.String:
        names = pl.col("history").str.split("|").list.eval(pl.element().str.strip_chars())
        frame = frame.with_columns(names.list.eval(pl.element().filter(pl.element() != "")))
    return frame
