"""Filters of items: which rows of the item table fulfil a condition.

A condition is a mapping, as JSON has it:

    {"column": "category", "eq": "shoes"}
    {"column": "category", "in": ["shoes", "socks"]}
    {"column": "price", "range": {"gte": 10, "lt": 50}}        gt, gte, lt, lte
    {"and": [...]}    {"or": [...]}    {"not": {...}}

Text (`filter_text`) is parsed into such a mapping. In Python, a condition may also be an expression of polars or
narwhals over the item table.

In a column of lists, ``eq`` and ``in`` mean that the list contains the value, or one of the values. A missing value
fulfils neither a condition nor its opposite, as in SQL: where the category is missing, ``not category == 'shoes'`` is
as unknown as ``category == 'shoes'``. NaN counts as missing.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rediffuse.arguments import described, wrong_type
from rediffuse.errors import ConfigError, did_you_mean
from rediffuse.recommender.filter_text import HOW, parse_filter

MAX_DEPTH, MAX_NODES, MAX_VALUES = 16, 256, 10_000
_BOUNDS = ("gt", "gte", "lt", "lte")
_EXAMPLE = 'For example {"column": "category", "eq": "shoes"}, or "and", "or" and "not" of such conditions.'


class ItemFilters:
    """Evaluates conditions on an item table.

    Args:
        table: row i describes item number i; None: the run has no such table.
    """

    def __init__(self, table: pl.DataFrame | None) -> None:
        self._table = table
        self._numbers: dict[str, pl.Series] = {}  # text columns that hold numbers, parsed once

    @property
    def table(self) -> pl.DataFrame:
        """The item table.

        Raises:
            ConfigError: the run has none.
        """
        if self._table is None:
            raise ConfigError(
                "This run has no item table, so its items cannot be chosen by their columns.",
                "Prepare the data with a table of items (rediffuse prepare --items FILE, in Python items=...), and "
                "train or refit on them.",
            )
        return self._table

    def holds_numbers(self, column: str) -> bool:
        """Whether a column can be compared with numbers: it has a numeric type, or is text that holds numbers alone."""
        series = self.table[column]
        return series.dtype.is_numeric() or self._as_numbers(column, series) is not None

    def allowed(self, condition: Any) -> NDArray[np.bool_]:
        """(num_items,) whether each item fulfils a condition.

        Args:
            condition: a mapping, text, or an expression of polars or narwhals.

        Raises:
            ConfigError: there is no item table; a column does not exist or has another type than a value; or the
                condition is malformed or too large.
        """
        table = self.table
        if isinstance(condition, str):
            condition = parse_filter(condition)
        if isinstance(condition, Mapping):
            found = self._evaluate(condition, _Size())
        elif isinstance(condition, pl.Expr):
            found = _selected(table, condition)
        elif _is_narwhals(condition):
            import narwhals as nw

            found = _selected(nw.from_native(table), condition)
        else:
            wanted = "a mapping, text, or an expression of polars or narwhals"
            raise wrong_type("filter", condition, wanted, HOW)
        return found.fill_null(False).to_numpy()

    def series(self, column: Any) -> pl.Series:
        """A column of the item table.

        Raises:
            ConfigError: it has none of this name.
        """
        if not isinstance(column, str):
            raise wrong_type("A column of a filter", column, "the name of a column")
        if column not in self.table.columns:
            raise ConfigError(
                f"The item table has no column {column[:100]!r}.", did_you_mean(column, self.table.columns)
            )
        series = self.table[column]
        return series.fill_nan(None) if series.dtype.is_float() else series

    def _evaluate(self, condition: Any, size: _Size, depth: int = 1) -> pl.Series:
        """Truth values (num_items,), null where they are unknown."""
        size.count(depth)
        if not isinstance(condition, Mapping):
            raise wrong_type("A condition of the filter", condition, "a mapping", _EXAMPLE)
        keys = set(condition)
        if keys in ({"and"}, {"or"}):
            (name,) = keys
            parts = condition[name]
            if not isinstance(parts, list | tuple) or not parts:
                raise ConfigError(f"{name!r} of the filter is {described(parts)}.", "Give a list of conditions.")
            first, *others = [self._evaluate(part, size, depth + 1) for part in parts]
            for other in others:
                first = first & other if name == "and" else first | other
            return first
        if keys == {"not"}:
            return ~self._evaluate(condition["not"], size, depth + 1)
        tests = [key for key in condition if key != "column"]
        if "column" not in condition or len(tests) != 1 or tests[0] not in ("eq", "in", "range"):
            shown = ", ".join(repr(key) for key in list(condition)[:8]) or "nothing"
            raise ConfigError(f"A condition of the filter has {shown}.", _EXAMPLE)
        column, wanted = condition["column"], condition[tests[0]]
        if tests[0] == "range":
            return self._in_range(column, wanted)
        values = [wanted] if tests[0] == "eq" else wanted
        if not isinstance(values, list | tuple | set | frozenset):
            raise ConfigError(f"'in' of column {column!r} is {described(values)}.", "Give a list of values.")
        size.values(len(values))
        return self._is_one_of(column, list(values))

    def _is_one_of(self, column: Any, values: list[Any]) -> pl.Series:
        series = self.series(column)
        if isinstance(series.dtype, pl.List | pl.Array):
            lists = series.cast(pl.List(series.dtype.inner))  # pyright: ignore  (arrays have one too)
            items = pl.DataFrame({"row": np.arange(len(lists)), "value": lists}).explode("value")
            found, wanted = self._comparable(column, items["value"], values)
            hits = items["row"].filter(found.is_in(wanted.implode()).fill_null(False)).unique()
            inside = pl.Series(np.isin(np.arange(len(lists)), hits.to_numpy()))
            return inside.set(lists.is_null(), None)
        found, wanted = self._comparable(column, series, values)
        return found.is_in(wanted.implode())

    def _in_range(self, column: Any, bounds: Any) -> pl.Series:
        series = self.series(column)
        if not isinstance(bounds, Mapping) or not bounds or set(bounds) - set(_BOUNDS):
            raise ConfigError(
                f"'range' of column {column!r} is {described(bounds)}.",
                'Give bounds, for example {"gte": 10, "lt": 50}; there are gt, gte, lt and lte.',
            )
        if isinstance(series.dtype, pl.List | pl.Array) or series.dtype == pl.Boolean:
            raise ConfigError(f"Column {column!r} holds {_kind(series.dtype)}, which have no order.", "Use eq or in.")
        found, values = self._comparable(column, series, list(bounds.values()))
        if found.dtype == pl.String and self._as_numbers(str(column), series) is not None:
            raise ConfigError(f"Column {column!r} holds numbers, and its bounds are text.", "Give numbers, unquoted.")
        result = None
        for name, value in zip(bounds, values.to_list(), strict=True):
            part = {"gt": found.__gt__, "gte": found.__ge__, "lt": found.__lt__, "lte": found.__le__}[name](value)
            result = part if result is None else result & part
        assert isinstance(result, pl.Series)
        return result

    def _comparable(self, column: Any, series: pl.Series, values: list[Any]) -> tuple[pl.Series, pl.Series]:
        """The column and the values as series of one type.

        Raises:
            ConfigError: a value cannot be of the column's type.
        """
        dtype = series.dtype
        if any(isinstance(value, int) and abs(value) >= 2**64 for value in values):
            raise ConfigError(f"The filter compares column {column!r} with an integer of more than 64 bits.")
        if dtype in (pl.Categorical, pl.Enum):
            series, dtype = series.cast(pl.String), pl.String()
        if values and all(_is_number(value) for value in values):
            if dtype == pl.String and (numbers := self._as_numbers(column, series)) is not None:
                series, dtype = numbers, numbers.dtype
            if dtype.is_numeric():
                if dtype.is_integer() and all(isinstance(v, int) and abs(v) < 2**63 for v in values):
                    return series, pl.Series(values, dtype=pl.Int64)
                return series.cast(pl.Float64), pl.Series([float(value) for value in values], dtype=pl.Float64)
        elif dtype == pl.String and all(isinstance(value, str) for value in values):
            return series, pl.Series(values, dtype=pl.String)
        elif values and all(isinstance(value, bool) for value in values):
            if dtype == pl.String:  # text files have no types
                series = series.str.to_lowercase()
                if series.drop_nulls().is_in(["true", "false"]).all() and series.null_count() < len(series):
                    return series, pl.Series(["true" if value else "false" for value in values])
            elif dtype == pl.Boolean:
                return series, pl.Series(values, dtype=pl.Boolean)
        elif dtype == pl.Date or isinstance(dtype, pl.Datetime):
            moments = [_moment(value) for value in values]
            if all(moment is not None for moment in moments):
                utc = pl.Datetime("us", "UTC")
                naive = dtype == pl.Date or getattr(dtype, "time_zone", None) is None
                series = series.cast(pl.Datetime("us")).dt.replace_time_zone("UTC") if naive else series.cast(utc)
                return series, pl.Series(moments, dtype=utc)
        elif dtype == pl.Null or not values:
            return series.cast(pl.String), pl.Series([], dtype=pl.String)
        wrong = next((v for v in values if not _fits(v, dtype)), values[0])
        remedy = "Compare it with values of its type."
        if dtype == pl.String and _is_number(wrong):
            other = series.filter(series.is_not_null() & _parsed(series).is_null()).head(1).to_list()
            remedy = f"Quote the value: not all values are numbers, for example {other[0]!r}." if other else remedy
        raise ConfigError(
            f"Column {column!r} holds {_kind(dtype)}, and the filter compares it with {described(wrong)}.", remedy
        )

    def _as_numbers(self, column: str, series: pl.Series) -> pl.Series | None:
        """A column of text as numbers, if all its values are numbers: text files have no types."""
        if series.dtype != pl.String:
            return None
        if column in self._numbers:
            return self._numbers[column]
        numbers = _parsed(series)
        if numbers.null_count() != series.null_count() or numbers.null_count() == len(numbers):
            return None
        self._numbers[column] = numbers.fill_nan(None)
        return self._numbers[column]


class _Size:
    """Counts the conditions of a filter, and the values in them."""

    def __init__(self) -> None:
        self._nodes = self._values = 0

    def count(self, depth: int) -> None:
        """Count a condition.

        Raises:
            ConfigError: the filter is too large.
        """
        self._nodes += 1
        if depth > MAX_DEPTH or self._nodes > MAX_NODES:
            raise ConfigError(
                "The filter is too large.", f"Use at most {MAX_NODES} conditions, nested at most {MAX_DEPTH} deep."
            )

    def values(self, count: int) -> None:
        """Count the values of a list. Raises as `count`."""
        self._values += count
        if self._values > MAX_VALUES:
            problem = f"The lists of the filter hold {self._values:,} values."
            raise ConfigError(problem, f"Give at most {MAX_VALUES:,}, or give the items as candidates.")


def filter_text(condition: Any) -> str | None:
    """A condition as text, for requests that are compared or shown; None stays None."""
    if condition is None or isinstance(condition, str):
        return condition
    return str(dict(condition) if isinstance(condition, Mapping) else condition)


def _parsed(text: pl.Series) -> pl.Series:
    """Float64 with null for values that are not numbers."""
    from rediffuse.readers.columns import parse_numbers  # few recommendations need the readers

    return parse_numbers(text).cast(pl.Float64)


def _selected(table: Any, expression: Any) -> pl.Series:
    """The truth values (num_items,) of an expression over the item table.

    Raises:
        ConfigError: it cannot be evaluated, or gives something else.
    """
    try:
        frame = table.select(expression)
        frame = frame if isinstance(frame, pl.DataFrame) else frame.to_native()
    except Exception as error:  # whatever the library raises, the cause is the expression
        problem = f"The filter cannot be evaluated on the item table: {str(error).partition(chr(10))[0].rstrip('.')}."
        raise ConfigError(problem, f"The columns are {', '.join(table.columns)}.") from None
    if frame.width != 1 or len(frame) != len(table) or frame.dtypes[0] not in (pl.Boolean, pl.Null):
        shown = ", ".join(f"{name} ({kind})" for name, kind in frame.schema.items())
        raise ConfigError(
            f"The filter gives {len(frame):,} rows of {shown}, for {len(table):,} items.",
            "Give an expression with one truth value per item: pl.col('price') < 50.",
        )
    return frame.to_series().cast(pl.Boolean)


def _is_narwhals(value: Any) -> bool:
    kind = type(value)
    return kind.__module__.partition(".")[0] == "narwhals" and any(base.__name__ == "Expr" for base in kind.__mro__)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(float(value))


def _moment(value: Any) -> datetime.datetime | None:
    """A date or a time, from ISO text or from Python, in UTC; None if it is neither."""
    if isinstance(value, str):
        try:
            value = datetime.datetime.fromisoformat(value)
        except ValueError:
            return None
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        value = datetime.datetime(value.year, value.month, value.day)
    if not isinstance(value, datetime.datetime):
        return None
    return value.replace(tzinfo=datetime.UTC) if value.tzinfo is None else value.astimezone(datetime.UTC)


def _fits(value: Any, dtype: pl.DataType) -> bool:
    if dtype == pl.String:
        return isinstance(value, str)
    if dtype == pl.Boolean:
        return isinstance(value, bool)
    if dtype.is_temporal():
        return _moment(value) is not None
    return dtype.is_numeric() and _is_number(value)


def _kind(dtype: pl.DataType) -> str:
    if dtype == pl.String:
        return "text"
    if dtype == pl.Boolean:
        return "truth values"
    if isinstance(dtype, pl.List | pl.Array):
        return "lists"
    if dtype.is_integer():
        return "integers"
    if dtype.is_numeric():
        return "numbers"
    return "dates, written as 2024-05-31" if dtype.is_temporal() else str(dtype)
