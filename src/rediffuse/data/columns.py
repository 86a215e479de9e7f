"""Columns of a table as arrays, checked: ids to numbers, times to seconds, ratings to floats.

Every refusal names the place, the value, what was expected and how to mend it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rediffuse.data.tables import Table
from rediffuse.errors import DataError

# Numbers from 1e11 on cannot be seconds (the year 5138); each thousand more is the next finer unit.
_UNITS = (
    ("seconds", 1, 1e11),
    ("milliseconds", 10**3, 1e14),
    ("microseconds", 10**6, 1e17),
    ("nanoseconds", 10**9, 0),
)
_ISO = (
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
    "all of one form. Mend or remove the row."
)


@dataclass(frozen=True)
class Column:
    """One column of a table: the values, and what is needed to speak of them."""

    values: pl.Series
    table: Table
    role: str

    def refuse(self, row: int, problem: str, remedy: str) -> DataError:
        """An error about row ``row`` (from 0); ``problem`` goes on after the name of the column."""
        return DataError(f"{self.table.place(row)}: column {self.values.name!r} ({self.role}) {problem}.", remedy)

    def refuse_first(self, bad: pl.Series, problem: str, remedy: str) -> None:
        """Raise about the first true entry of ``bad``, if any; ``{}`` in ``problem`` is the value."""
        row = bad.fill_null(False).arg_max() if len(bad) else None
        if row is not None and bad[row]:
            raise self.refuse(row, problem.format(repr(self.values[row])), remedy)

    def refuse_missing(self) -> None:
        if self.values.null_count():
            more = self.values.null_count() - 1
            also = f" ({more:,} more rows likewise)" if more else ""
            self.refuse_first(
                self.values.is_null(),
                f"is empty{also}",
                "Fill in the value or remove the row; every event needs one.",
            )


# --- ids ---------------------------------------------------------------------------------------------------


def number_ids(*columns: Column) -> tuple[list[NDArray[np.int32]], pl.Series]:
    """Number the ids of columns that share one space of ids.

    Integers become Int64 ids, in numeric order. Text stays text, exactly as written, in byte order; only when
    all the tables are text files, where nothing else tells integers, and every id is written like one ("7",
    not "07"), the ids are integers.

    Returns:
        per column the numbers (rows,) int32; the ids, sorted: position = number.

    Raises:
        DataError: missing, blank or space-padded ids, or a column of another type.
    """
    values = [_plain_ids(column) for column in columns]
    if all(series.dtype.is_integer() for series in values):
        arrays = [series.to_numpy() for series in values]
        known = arrays_unique(arrays)
        return [_number_integers(array, known) for array in arrays], pl.Series(known)
    values = [series.cast(pl.String) for series in values]
    for series, column in zip(values, columns, strict=True):
        _refuse_blank(column, series)
    unique = (
        pl.concat([series.unique() for series in values]).unique().sort()
        if len(values) > 1
        else (values[0].unique().sort())
    )
    ids = unique
    if all(column.table.is_text for column in columns):
        integers = as_integers(unique)
        if not integers.null_count():
            order = integers.arg_sort()
            ids, unique = integers.gather(order), unique.gather(order)
    kind = pl.Enum(unique)
    numbers = [series.cast(kind).to_physical().cast(pl.Int32).to_numpy() for series in values]
    return numbers, ids


def as_integers(text: pl.Series) -> pl.Series:
    """Int64 where the text is how an integer is written, else null: "007" and "+7" are not 7."""
    integers = text.cast(pl.Int64, strict=False)
    return pl.select(pl.when(integers.cast(pl.String) == text).then(integers)).to_series()


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
    """(rows,) number of each value among ``ids``, -1 where it is none of them."""
    numbers = pl.Series(np.arange(len(ids), dtype=np.int32))
    return values.replace_strict(ids, numbers, default=-1, return_dtype=pl.Int32).fill_null(-1).to_numpy()


def _plain_ids(column: Column) -> pl.Series:
    """Int64 or String, without nulls."""
    values = column.values
    if values.dtype.is_float() and values.is_nan().any():
        values = values.fill_nan(None)
        Column(values, column.table, column.role).refuse_missing()
    column.refuse_missing()
    dtype = values.dtype
    if dtype == pl.String:
        return values
    if isinstance(dtype, (pl.Categorical, pl.Enum)):
        return values.cast(pl.String)
    if dtype.is_integer():
        try:
            return values.cast(pl.Int64)
        except pl.exceptions.PolarsError:
            raise DataError(
                f"{column.table.name}: column {values.name!r} holds integers beyond 64 bits with sign.",
                "Turn the ids into strings.",
            ) from None
    raise DataError(
        f"{column.table.name}: column {values.name!r} ({column.role}) holds {dtype} values.",
        "Ids must be integers or strings: cast the column.",
    )


def _refuse_blank(column: Column, values: pl.Series) -> None:
    unique = values.unique()
    padded = unique.filter(unique.str.strip_chars() != unique)
    if len(padded) or (unique == "").any():
        bad = values.is_in(padded) | (values == "")
        row = int(bad.arg_max() or 0)
        if values[row].strip():
            raise column.refuse(row, f"is {values[row]!r}, with spaces around it", "Remove the spaces from the ids.")
        raise column.refuse(row, f"is blank: {values[row]!r}", "Fill in the id or remove the row.")


def arrays_unique(arrays: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Sorted unique values of several arrays."""
    return np.unique(np.concatenate([_unique(array) for array in arrays])) if len(arrays) > 1 else _unique(arrays[0])


def _is_dense(values: NDArray[np.int64]) -> bool:
    # A table over the whole span costs less than sorting, and stays small.
    return bool(len(values)) and int(values.max()) - int(values.min()) < max(4 * len(values), 1 << 16)


def _unique(values: NDArray[np.int64]) -> NDArray[np.int64]:
    if not _is_dense(values):
        return np.unique(values)
    low = values.min()
    present = np.zeros(int(values.max() - low) + 1, dtype=bool)
    present[values - low] = True
    return np.flatnonzero(present) + low


def _number_integers(values: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.int32]:
    if not _is_dense(known):
        return np.searchsorted(known, values).astype(np.int32)
    table = np.zeros(int(known[-1] - known[0]) + 1, dtype=np.int32)
    table[known - known[0]] = np.arange(len(known), dtype=np.int32)
    return table[values - known[0]]


# --- numbers -----------------------------------------------------------------------------------------------


def ratings(column: Column) -> NDArray[np.float32]:
    """(rows,) float32.

    Raises:
        DataError: missing, not a number, NaN, infinite or negative.
    """
    numbers = _numbers(column, "a number")
    remedy = "Ratings are numbers >= 0, higher is better. Mend or remove the row, or shift the scale."
    column.refuse_first(numbers < 0, "is {}, which is negative", remedy)
    return numbers.cast(pl.Float32).to_numpy()


def order(column: Column) -> NDArray[Any]:
    """(rows,) int64 or float64 numbers that order events.

    Raises:
        DataError: missing, not a number, NaN or infinite.
    """
    return _numbers(column, "a number that orders the events").to_numpy()


def _numbers(column: Column, expected: str) -> pl.Series:
    """Int64 or Float64, finite and without nulls."""
    column.refuse_missing()
    values = column.values
    remedy = f"Expected {expected}. Mend or remove the row."
    if values.dtype == pl.String:
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
    """Int64 if all of the text is, else Float64 with null where it is no number."""
    integers = text.cast(pl.Int64, strict=False)
    return text.cast(pl.Float64, strict=False) if integers.null_count() > text.null_count() else integers


# --- times -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Times:
    """Attributes:
    key: (rows,) to sort by, at full precision.
    seconds: (rows,) since the epoch; int64 where no event has a fraction of a second, else float64.
    unit: what the column was taken for.
    """

    key: NDArray[Any]
    seconds: NDArray[Any]
    unit: str


def times(column: Column) -> Times:
    """Numbers since 1970 of any usual unit, ISO text, dates or datetimes.

    Raises:
        DataError: missing, unparsable or mixed values.
    """
    column.refuse_missing()
    values = column.values
    if values.dtype in (pl.Date, pl.Datetime):
        return _from_datetimes(values, "dates and times" if values.dtype == pl.Datetime else "dates")
    if values.dtype == pl.String:
        numbers = parse_numbers(values)
        if 2 * numbers.null_count() > len(numbers):
            return _from_datetimes(_parse_iso(column), "ISO text")
        column.refuse_first(numbers.is_null(), "is {}, and most other values are numbers", _TIME_REMEDY)
        return _from_numbers(column, numbers)
    return _from_numbers(column, _numbers(column, "a time"))


def _from_numbers(column: Column, numbers: pl.Series) -> Times:
    if numbers.dtype.is_float():
        column.refuse_first(~numbers.is_finite(), "is {}", _TIME_REMEDY)
    key = numbers.to_numpy()
    largest = max(abs(float(key.max())), abs(float(key.min())))
    index = next((i for i, (_, _, limit) in enumerate(_UNITS) if largest < limit), len(_UNITS) - 1)
    unit, per_second, _ = _UNITS[index]
    if index:
        # What would be a day before 1973 in the finer unit, and after 1973 in a coarser one, is in the
        # coarser one.
        coarser = pl.Series(np.abs(key)).is_between(10**8, 10**8 * per_second, closed="left")
        column.refuse_first(coarser, f"is {{}}, a coarser unit than the {unit} that others are in", _TIME_REMEDY)
    return Times(key, _seconds(key, per_second), unit)


def _from_datetimes(values: pl.Series, unit: str) -> Times:
    if values.dtype == pl.Date:
        seconds = values.cast(pl.Int32).cast(pl.Int64).to_numpy() * 86_400
        return Times(seconds, seconds, unit)
    dtype: Any = values.dtype
    key = values.to_physical().to_numpy()
    return Times(key, _seconds(key, {"ms": 10**3, "us": 10**6, "ns": 10**9}[dtype.time_unit]), unit)


def _seconds(key: NDArray[Any], per_second: int) -> NDArray[Any]:
    if key.dtype.kind == "i":
        if per_second == 1:
            return key
        return key // per_second if not (key % per_second).any() else key / per_second
    seconds = key / per_second
    return seconds.astype(np.int64) if (seconds == np.floor(seconds)).all() else seconds


def _parse_iso(column: Column) -> pl.Series:
    values = column.values
    sample = values.head(1000)
    parsed = {form: sample.str.to_datetime(form, strict=False).null_count() for form in _ISO}
    form = min(parsed, key=lambda form: parsed[form])
    if parsed[form] == len(sample):
        raise column.refuse(0, f"is {values[0]!r}, which is not a time that can be read", _TIME_REMEDY)
    datetimes = values.str.to_datetime(form, time_unit="us", strict=False)
    example = repr(values.filter(datetimes.is_not_null())[0])
    column.refuse_first(datetimes.is_null(), f"is {{}}, and others look like {example}", _TIME_REMEDY)
    return datetimes
