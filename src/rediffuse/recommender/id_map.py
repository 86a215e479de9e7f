"""The caller's ids and numbers, in whatever form they come."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rediffuse.arguments import wrong_type
from rediffuse.errors import ConfigError
from rediffuse.frames import as_column, columns_of, is_frame

# No integer id has more digits, and Python refuses to parse thousands of them. Both re and polars read this pattern.
_INTEGER = "^-?(0|[1-9][0-9]{0,18})$"


def cast_id(value: Any, dtype: pl.DataType) -> int | str | None:
    """Convert an id to the type of the run's ids; None if it cannot be one of them.

    If ids are integers, "50" becomes 50, and so does 50.0, which pandas makes of an integer beside a missing value. If
    ids are text, 50 becomes "50". But "050" is not 50, and True is not 1.
    """
    if isinstance(value, str):
        if dtype == pl.String:
            return value
        return int(value) if re.fullmatch(_INTEGER, value) else None
    if isinstance(value, bool | np.bool_):
        return None
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)
    try:
        number = operator.index(value)  # pyright: ignore[reportArgumentType]  (not an index: TypeError)
    except TypeError:
        return None
    return str(number) if dtype == pl.String else number


def cast_ids(values: pl.Series | list[Any], dtype: pl.DataType) -> pl.Series:
    """Convert ids as `cast_id` does; null where an id cannot be of the type. Most columns need no loop over ids."""
    if isinstance(values, pl.Series):
        if values.dtype == dtype:
            return values
        if values.dtype.is_integer():
            return values.cast(dtype, strict=False)  # what is too large for the type becomes null
        if values.dtype == pl.String:
            integers = values.set(~values.str.contains(_INTEGER), None)
            return integers.cast(dtype, strict=False)
        values = values.to_list()
    ids = [cast_id(value, dtype) for value in values]
    fitting = [None if isinstance(one, int) and not -(2**63) <= one < 2**63 else one for one in ids]
    return pl.Series(fitting, dtype=dtype)


def user_labels(ids: pl.Series | list[Any], dtype: pl.DataType) -> pl.Series:
    """The column user_id of an answer: of the data's type, or text if an (unknown) user cannot be of that type.

    A missing user, of whom nothing is known, has a missing label. It does not change the labels of the others.
    """
    labels = cast_ids(ids, dtype).alias("user_id")
    given = pl.Series([not _is_missing(one) for one in ids], dtype=pl.Boolean) if labels.null_count() else None
    if given is None or not (labels.is_null() & given).any():
        return labels
    return _filled(labels, as_text(ids)).set(~given, None)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float | np.floating) and bool(np.isnan(value)))


def _filled(labels: pl.Series, texts: pl.Series) -> pl.Series:
    """Labels as text, and the text as given where there is none: 50.0 comes back as the run's 50."""
    return labels.cast(pl.String).fill_null(texts).alias("user_id")


def as_text(ids: pl.Series | list[Any]) -> pl.Series:
    """The column user_id of an answer: the ids as given, as text."""
    if isinstance(ids, pl.Series) and (ids.dtype == pl.String or ids.dtype.is_integer()):
        return ids.cast(pl.String).alias("user_id")
    return pl.Series("user_id", [None if user is None else str(user) for user in ids], dtype=pl.String)


class IdMap:
    """Maps ids to their positions in a column of distinct ids."""

    def __init__(self, ids: pl.Series) -> None:
        self._dtype = ids.dtype
        self._numbers = {one: number for number, one in enumerate(ids.to_list())}
        self._table = pl.DataFrame({"id": ids, "number": np.arange(len(ids))})

    def find(self, values: pl.Series | Iterable[Any]) -> NDArray[np.int64]:
        """(n,) numbers of ids in any form that `cast_id` accepts, -1 for unknown ids.

        A column is joined, which takes a quarter of the time for many ids. A list, usually short, is looked up.
        """
        if not isinstance(values, pl.Series):
            return np.asarray([self._numbers.get(cast_id(value, self._dtype), -1) for value in values], dtype=np.int64)
        ids = pl.DataFrame({"id": cast_ids(values, self._dtype)})
        found = ids.join(self._table, on="id", how="left", maintain_order="left")
        return found["number"].fill_null(-1).to_numpy()


# What to pass, by argument.
_LISTS = {
    "users": 'Pass a list, also for one user: users=["id"].',
    "histories": 'Pass a list of lists, also for one user: histories=[["item", "item"]].',
    **{name: f'Pass a list, also for one item: {name}=["item"].' for name in ("items", "exclude", "candidates")},
}


def require_list(name: str, value: Any) -> list[Any]:
    """A list or column as a list; refuses text and tables, which can be iterated over but are mistakes here.

    Raises:
        ConfigError: the value is not a list.
    """
    column = as_column(value)
    if column is not None:
        return list(column)
    if isinstance(value, str | bytes | Mapping) or is_frame(value) or not isinstance(value, Iterable):
        raise wrong_type(name, value, "a list", _LISTS.get(name, 'Pass a list of item ids: ["item", "item"].'))
    return list(value)


def flatten_histories(histories: Any) -> tuple[NDArray[np.int64], pl.Series | list[Any]]:
    """(n,) lengths of histories, and their item ids end to end. In a column, a missing history counts as empty."""
    column = as_column(histories)
    if isinstance(column, pl.Series) and column.dtype == pl.List:
        lengths = column.list.len().fill_null(0)
        return lengths.to_numpy().astype(np.int64), column.filter(lengths > 0).explode()
    if column is not None:
        histories = [[] if history is None else history for history in column]
    rows = [require_list("A history", history) for history in require_list("histories", histories)]
    return np.asarray([len(row) for row in rows], dtype=np.int64), [item for row in rows for item in row]


def columns_of_users(users: Any, histories: Any) -> tuple[Any, Any]:
    """Users and histories; a frame of users becomes its columns, and a column of another library one of polars.

    Raises:
        ConfigError: the frame has no column user_id, or histories are given twice.
    """
    if users is not None and is_frame(users):
        columns = columns_of("users", users, ("user_id", "history"))
        if histories is not None and "history" in columns:
            raise ConfigError("Histories are given twice: as a column of users, and as histories.", "Give one of them.")
        return columns["user_id"], columns.get("history", histories)
    column = as_column(users)
    return users if column is None else column, histories
