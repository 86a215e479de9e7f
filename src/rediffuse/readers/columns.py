"""Columns of a table as checked arrays: ids become numbers, times seconds, ratings floats.

A column may be large, so it is read in pieces. Every refusal names the row, the value, what was expected and how to fix
it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rediffuse.errors import ConfigError, DataError
from rediffuse.readers import id_checks, tables, time_formats
from rediffuse.readers.tables import Table

# Numbers from 1e11 on cannot be seconds (the year 5138); each thousand more is the next finer unit.
_UNITS = (
    ("seconds", 1, 1e11),
    ("milliseconds", 10**3, 1e14),
    ("microseconds", 10**6, 1e17),
    ("nanoseconds", 10**9, 0),
)
# Name of a unit -> seconds, or, of those that are finer, per second.
_COARSE = {"seconds": 1, "minutes": 60, "hours": 3_600, "days": 86_400}
TIME_UNITS = {**_COARSE, **{name: per_second for name, per_second, _ in _UNITS[1:]}}
ISO_FORMS = (
    "%Y-%m-%d",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M:%S%.f%#z",
    "%Y-%m-%dT%H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%dT%H:%M",
)
_TIME_REMEDY = (
    "Times may be numbers since 1970 (seconds, milliseconds, ...) or ISO text such as 2024-03-01 12:30:00, "
    'all of one form; of another form with time_format="%d/%m/%Y". Fix or remove the row.'
)


_DROP = ' To leave out rows without an id, pass missing_ids="drop" (--missing-ids drop).'


@dataclass(frozen=True)
class Column:
    """One column of a table, or a piece of one: the values, and what errors about them need.

    Attributes:
        start: the row (from 0) of the first value.
        keep_words: ids that are words for a missing value, such as NULL, are ids like others.
    """

    values: pl.Series
    table: Table
    role: str
    start: int = 0
    keep_words: bool = False

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Column]:
        """A column in memory is its only piece."""
        yield self

    def refuse(self, row: int, problem: str, remedy: str) -> DataError:
        """An error about value ``row`` (from 0); ``problem`` follows the name of the column."""
        place = self.table.place(self.start + row)
        return DataError(f"{place}: column {self.values.name!r} ({self.role}) {problem}.", remedy)

    def refuse_first(self, bad: pl.Series, problem: str, remedy: str) -> None:
        """Raise about the first true entry of ``bad``, if any; ``{}`` in ``problem`` is the value."""
        row = bad.fill_null(False).arg_max() if len(bad) else None
        if row is not None and bad[row]:
            raise self.refuse(row, problem.format(repr(self.values[row])), remedy)

    def complete(self, hint: str = "") -> pl.Series:
        """The values, after refusing missing ones; ``hint`` is added to the remedy."""
        if self.values.null_count():
            more = self.values.null_count() - 1
            least = "at least " if len(self) == tables.PIECE else ""  # later pieces were not read
            more_rows = f" ({least}{more:,} more rows likewise)" if more else ""
            self.refuse_first(
                self.values.is_null(),
                f"is empty{more_rows}",
                f"Fill in the value or remove the row; every interaction needs one.{hint}",
            )
        return self.values


@dataclass(frozen=True)
class Pieces:
    """One column of a table that is read a piece at a time, again for every iteration."""

    name: str
    table: Table
    role: str
    keep_words: bool = False

    def __len__(self) -> int:
        return self.table.rows

    def __iter__(self) -> Iterator[Column]:
        for start, values in self.table.pieces(self.name):
            if self.role in ("time", "order", "rating"):
                values = self.table.pointed(values)
            yield Column(values, self.table, self.role, start, self.keep_words)


def joined(column: Column | Pieces, read: Callable[[Column], NDArray[Any]], dtype: Any = None) -> NDArray[Any]:
    """(rows,) the results of ``read`` for all pieces; integers become float64 if any piece is."""
    whole = np.empty(len(column), dtype=dtype)
    for number, piece in enumerate(column):
        values = read(piece)
        if dtype is None and values.dtype != whole.dtype:
            # Nothing is written yet when the first piece sets the type.
            whole = np.empty(len(column), values.dtype) if not number else whole.astype(np.float64, copy=False)
        whole[piece.start : piece.start + len(values)] = values
    return whole


# --- ids ---------------------------------------------------------------------------------------------------


def number_ids(*columns: Column | Pieces) -> tuple[list[NDArray[np.int32]], pl.Series]:
    """Number the ids of columns that share their ids.

    Integers become Int64 ids, in numeric order. Text stays text, exactly as written, in byte order. Text files have no
    types: if all tables are text files and every id is written like an integer ("7", not "07"), the ids are integers.

    Returns:
        per column the numbers (rows,) int32; the ids, sorted: position = number.

    Raises:
        DataError: missing, blank or space-padded ids, or a column of another type.
    """
    found = [_distinct(column) for column in columns]
    integers = all(values.dtype.is_integer() for values in found)
    text = pl.concat(found if integers else [values.cast(pl.String) for values in found]).unique().sort()
    ids = text
    if integers:
        number = _by_table(ids.to_numpy()) if _is_dense(ids.to_numpy()) else _by_search(ids.to_numpy())
    else:
        if all(column.table.is_text for column in columns):
            numeric = as_integers(text)
            if not numeric.null_count():
                order = numeric.arg_sort()
                ids, text = numeric.gather(order), text.gather(order)
        number = _by_category(text)
    return [joined(column, lambda piece: number(_plain_ids(piece)), np.int32) for column in columns], ids


def plain_ids(column: Column) -> pl.Series:
    """The ids of a column, Int64 or String.

    Raises:
        DataError: missing, blank or space-padded ids, or a column of another type.
    """
    values = _plain_ids(column)
    if values.dtype == pl.String:
        _refuse_blank(column, values, values.unique())
    return values


def as_integers(text: pl.Series) -> pl.Series:
    """Int64 where the text is how an integer is written, else null: "007" and "+7" are not 7."""
    integers = text.cast(pl.Int64, strict=False)
    return pl.select(pl.when(integers.cast(pl.String) == text).then(integers)).to_series()


def checked_ids_like(column: Column, ids: pl.Series) -> pl.Series:
    """As `ids_like`, for a column that brings ids of its own.

    Raises:
        DataError: as `plain_ids` and `ids_like`.
    """
    plain_ids(column)
    return ids_like(column, ids)


def ids_like(column: Column, ids: pl.Series) -> pl.Series:
    """The column in the type of ``ids``; null where it cannot be one of them.

    Raises:
        DataError: missing ids, or a column that holds no ids.
    """
    values = _plain_ids(column)
    if values.dtype == ids.dtype:
        return values
    return as_integers(values) if ids.dtype.is_integer() else values.cast(pl.String)


def lookup(values: pl.Series, ids: pl.Series) -> NDArray[np.int32]:
    """(rows,) number of each value among ``ids``, -1 where it is not among them."""
    numbers = pl.Series(np.arange(len(ids), dtype=np.int32))
    return values.replace_strict(ids, numbers, default=-1, return_dtype=pl.Int32).fill_null(-1).to_numpy()


def _distinct(column: Column | Pieces) -> pl.Series:
    """Every id of a column once, in no order, Int64 or String."""
    found: list[pl.Series] = []
    for piece in column:
        values = _plain_ids(piece)
        found.append(values.unique())
        if values.dtype == pl.String:
            _refuse_blank(piece, values, found[-1])
        # The known ids come first and are merged with the rest once that is as large, so that merging is linear.
        if sum(len(ids) for ids in found[1:]) >= len(found[0]):
            found = [pl.concat(found).unique()]
    return pl.concat(found).unique()


def _plain_ids(column: Column) -> pl.Series:
    """Int64 or String, without nulls."""
    values = column.values
    if values.dtype.is_float() and values.is_nan().any():
        replace(column, values=values.fill_nan(None)).complete(_DROP)
    dtype = column.complete(_DROP).dtype
    if dtype == pl.String:
        return values
    if isinstance(dtype, (pl.Categorical, pl.Enum)):
        return values.cast(pl.String)
    if dtype.is_integer():
        try:
            return values.cast(pl.Int64)
        except pl.exceptions.PolarsError:
            raise DataError(
                f"{column.table.name}: column {values.name!r} holds integers beyond 64 bits (signed).",
                "Turn the ids into strings.",
            ) from None
    remedy = "Ids must be integers or strings: cast the column."
    if isinstance(dtype, pl.Struct):
        inner = [field.name for field in dtype.fields]
        remedy = f"Ids must be integers or strings: make a column of one of its fields ({', '.join(inner)})."
    raise DataError(f"{column.table.name}: column {values.name!r} ({column.role}) holds {dtype} values.", remedy)


def _refuse_blank(column: Column, values: pl.Series, unique: pl.Series) -> None:
    padded = unique.filter(unique.str.strip_chars() != unique)
    if len(padded) or (unique == "").any():
        bad = values.is_in(padded) | (values == "")
        row = int(bad.arg_max() or 0)
        if values[row].strip():
            raise column.refuse(row, f"is {values[row]!r}, with spaces around it", "Remove the spaces from the ids.")
        raise column.refuse(row, f"is blank: {values[row]!r}", f"Fill in the id or remove the row.{_DROP}")
    _refuse_odd(column, values, unique)


def _refuse_odd(column: Column, values: pl.Series, unique: pl.Series) -> None:
    """Refuse ids that are not what they should be, for whatever reason: NULL, 1.2E+12."""
    if not column.keep_words and len(words := unique.filter(id_checks.words_for_nothing(unique))):
        bad = values.is_in(words.implode())
        row, more = int(bad.arg_max() or 0), int(bad.sum()) - 1
        more_rows = f" ({more:,} more rows likewise)" if more else ""
        problem = f"is {values[row]!r}, a word for a missing value{more_rows}"
        raise column.refuse(row, problem, id_checks.KEEP_REMEDY)
    column.refuse_first(
        values.is_in(unique.filter(id_checks.scientific(unique)).implode()),
        "is {}, in scientific notation: digits are lost, so that different ids may have become one",
        "Export the ids again as text or whole numbers.",
    )


Numbering = Callable[[pl.Series], NDArray[Any]]


def _is_dense(known: NDArray[np.int64]) -> bool:
    # A table over the whole span costs less than searching, and stays small.
    return int(known[-1]) - int(known[0]) < max(4 * len(known), 1 << 16)


def _by_table(known: NDArray[np.int64]) -> Numbering:
    table = np.zeros(int(known[-1] - known[0]) + 1, dtype=np.int32)
    table[known - known[0]] = np.arange(len(known), dtype=np.int32)
    return lambda values: table[values.to_numpy() - known[0]]


def _by_search(known: NDArray[np.int64]) -> Numbering:
    return lambda values: np.searchsorted(known, values.to_numpy())


def _by_category(known: pl.Series) -> Numbering:
    kind = pl.Enum(known)
    return lambda values: values.cast(pl.String).cast(kind).to_physical().to_numpy()


# --- numbers -----------------------------------------------------------------------------------------------


_LARGEST = float(np.finfo(np.float32).max)


def ratings(column: Column | Pieces) -> NDArray[np.float32]:
    """(rows,) float32.

    Raises:
        DataError: missing, not a number, NaN, infinite or negative.
    """
    return joined(column, plain_ratings, np.float32)


def plain_ratings(piece: Column) -> NDArray[Any]:
    """(rows,) the ratings of one piece. Raises as `ratings`."""
    remedy = "Ratings are numbers >= 0, higher is better. Fix or remove the row, or shift the scale."
    numbers = plain_numbers(piece, "a number")
    piece.refuse_first(numbers < 0, "is {}, which is negative", remedy)
    piece.refuse_first(numbers > _LARGEST, "is {}, more than 32 bits hold", remedy)
    return numbers.to_numpy()


def order(column: Column | Pieces) -> NDArray[Any]:
    """(rows,) int64 or float64 numbers that order interactions.

    Raises:
        DataError: missing, not a number, NaN or infinite.
    """
    return joined(column, lambda piece: plain_numbers(piece, "a number that orders the interactions").to_numpy())


def plain_numbers(column: Column, expected: str) -> pl.Series:
    """Int64 or Float64, finite and without nulls."""
    values = column.complete()
    remedy = f"Expected {expected}. Fix or remove the row."
    if values.dtype == pl.String:
        if values.str.contains(tables.DECIMAL_COMMA).any():
            remedy += " Are these numbers with a decimal comma? Then pass decimal=',' (--decimal ,)."
        numbers = parse_numbers(values)
        column.refuse_first(numbers.is_null(), "is {}", remedy)
    elif values.dtype.is_integer():
        numbers = values.cast(pl.Int64)
    elif values.dtype.is_float() or values.dtype.is_decimal():
        numbers = values.cast(pl.Float64)
    else:
        raise DataError(
            f"{column.table.name}: column {values.name!r} ({column.role}) holds {values.dtype} values.",
            f"Expected {expected}: cast the column, or name another.",
        )
    if numbers.dtype.is_float():
        column.refuse_first(~numbers.is_finite(), "is {}", remedy)
    return numbers


def parse_numbers(text: pl.Series) -> pl.Series:
    """Int64 if every value is an integer, else Float64 with null for values that are not numbers."""
    integers = text.cast(pl.Int64, strict=False)
    return text.cast(pl.Float64, strict=False) if integers.null_count() > text.null_count() else integers


# --- times -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Times:
    """A column of times.

    Attributes:
        key: (rows,) to sort by, at full precision.
        seconds: (rows,) since the epoch; int64 if no time has a fraction of a second, else float64.
        unit: what the column was read as.
    """

    key: NDArray[Any]
    seconds: NDArray[Any]
    unit: str


def times(column: Column | Pieces, time_format: str | None = None, time_unit: str | None = None) -> Times:
    """Numbers since 1970 in any usual unit, ISO text, dates or datetimes; the first piece decides which.

    Args:
        column: the times.
        time_format: the form of text, for example "%d/%m/%Y"; None: as above.
        time_unit: the unit of numbers, one of TIME_UNITS; None: inferred from their size.

    Raises:
        DataError: missing, unparsable or mixed values.
        ConfigError: ``time_format`` is not a format of dates, or the column holds no text; or ``time_unit`` was given
            and the column holds no numbers.
    """
    first = next(iter(column))
    dtype: Any = first.complete().dtype
    if time_format is not None:
        if dtype != pl.String and not dtype.is_integer():
            raise ConfigError(
                f"time_format={time_format!r} was given, and column {first.values.name!r} of {first.table.name} holds "
                f"{dtype} values.",
                "Leave it out: these need no format.",
            )
        key = joined(column, lambda piece: _parse(piece, time_format, column), np.int64)
        return _in_seconds(key, 10**6, f"text of the form {time_format}")
    is_text = dtype == pl.String and 2 * parse_numbers(first.values).null_count() > len(first)
    if time_unit is not None:
        if is_text or dtype in (pl.Date, pl.Datetime):
            holds = f"text such as {first.values[0]!r}" if is_text else f"{dtype} values"
            raise ConfigError(
                f"time_unit={time_unit!r} was given, and column {first.values.name!r} of {first.table.name} holds "
                f"{holds}.",
                "Leave it out: only numbers have a unit.",
            )
        return _in_unit(column, time_unit)
    if dtype == pl.Date:
        days = joined(column, lambda piece: piece.complete().cast(pl.Int32).cast(pl.Int64).to_numpy())
        return _in_seconds(days * 86_400, 1, "dates")
    if dtype == pl.Datetime:
        key = joined(column, lambda piece: piece.complete().to_physical().to_numpy())
        return _in_seconds(key, {"ms": 10**3, "us": 10**6, "ns": 10**9}[dtype.time_unit], "dates and times")
    if is_text:
        form = _iso_form(first, column)
        return _in_seconds(joined(column, lambda piece: _parse(piece, form, column)), 10**6, "ISO text")
    return _from_numbers(column, joined(column, _time_numbers))


def _in_unit(column: Column | Pieces, time_unit: str) -> Times:
    key, size = joined(column, _time_numbers), TIME_UNITS[time_unit]
    if time_unit not in _COARSE:
        return _in_seconds(key, size, time_unit)
    if max(abs(float(key.max())), abs(float(key.min()))) * size >= 2.0**62:
        raise DataError(
            f"{column.table.name}: times are beyond 64 bits when they count {time_unit}.", "Name a finer time_unit."
        )
    return replace(_in_seconds(key * size, 1, time_unit), unit=time_unit)


def _time_numbers(column: Column) -> NDArray[Any]:
    if column.values.dtype != pl.String:
        numbers = plain_numbers(column, "a time")
    else:
        numbers = parse_numbers(column.complete())
        column.refuse_first(numbers.is_null(), "is {}, and most other values are numbers", _TIME_REMEDY)
    if numbers.dtype.is_float():
        column.refuse_first(~numbers.is_finite(), "is {}", _TIME_REMEDY)
        column.refuse_first(numbers.abs() >= 2.0**63, "is {}, more than 64 bits hold", _TIME_REMEDY)
    return numbers.to_numpy()


def _from_numbers(column: Column | Pieces, key: NDArray[Any]) -> Times:
    largest = max(abs(float(key.max())), abs(float(key.min())))
    index = next((i for i, (_, _, limit) in enumerate(_UNITS) if largest < limit), len(_UNITS) - 1)
    unit, per_second, _ = _UNITS[index]
    if index:
        # A value that is before 1973 in the finer unit, and after 1973 in a coarser one, is in the coarser one.
        size = np.abs(key)
        coarser = (size >= 10**8) & (size < 10**8 * per_second)
        if coarser.any():
            for piece in column:
                piece.refuse_first(
                    pl.Series(coarser[piece.start : piece.start + len(piece)]),
                    f"is {{}}, a coarser unit than the {unit} of the others",
                    _TIME_REMEDY,
                )
    return _in_seconds(key, per_second, unit)


def _in_seconds(key: NDArray[Any], per_second: int, unit: str) -> Times:
    if key.dtype.kind == "i" and not (key % per_second).any():
        seconds = key // per_second if per_second > 1 else key
        return Times(seconds, seconds, unit)
    seconds = key / per_second
    return Times(key, seconds.astype(np.int64) if (seconds == np.floor(seconds)).all() else seconds, unit)


def _iso_form(first: Column, column: Column | Pieces) -> str:
    """The form of most of the first values."""
    sample = first.values.head(1000)
    missed = {form: sample.str.to_datetime(form, strict=False).null_count() for form in ISO_FORMS}
    form = min(missed, key=lambda form: missed[form])
    if missed[form] == len(sample):
        raise first.refuse(0, f"is {sample[0]!r}, which is not a known form of time", _time_remedy(column))
    return form


def _parse(piece: Column, form: str, column: Column | Pieces) -> NDArray[np.int64]:
    """(rows,) microseconds since the epoch, of a piece of ``column``."""
    text = piece.complete().cast(pl.String)
    datetimes = time_formats.parsed(text, form)
    if datetimes.null_count():
        example = text.filter(datetimes.is_not_null()).head(1).to_list()
        others = f", and others look like {example[0]!r}" if example else f", which is not of the form {form}"
        piece.refuse_first(datetimes.is_null(), f"is {{}}{others}", _time_remedy(column))
    return datetimes.to_physical().to_numpy()


def _time_remedy(column: Column | Pieces) -> str:
    return time_formats.remedy(piece.values for piece in column) or _TIME_REMEDY
