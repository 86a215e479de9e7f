"""The caller's ids and numbers, as they come."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rediffuse.errors import ConfigError

# More digits than any id has are none (and Python refuses thousands of them). Read by re and by polars.
_NUMBER = "^-?(0|[1-9][0-9]{0,18})$"


def own_id(value: Any, kind: pl.DataType) -> int | str | None:
    """An id as the run's ids are, or None if it cannot be one of them.

    "50" finds 50 where ids are integers, as does 50.0, which pandas makes of it beside a missing value; 50 finds "50"
    where ids are text. But "050" is not 50, and neither is True 1.
    """
    if isinstance(value, str):
        if kind == pl.String:
            return value
        return int(value) if re.fullmatch(_NUMBER, value) else None
    if isinstance(value, bool | np.bool_):
        return None
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)
    try:
        number = operator.index(value)  # pyright: ignore[reportArgumentType]  (that is what is tried)
    except TypeError:
        return None
    return str(number) if kind == pl.String else number


def own_ids(values: pl.Series | list[Any], kind: pl.DataType) -> pl.Series:
    """As `own_id`, of many: a column of the run's type, null where an id cannot be of it. Columns of text and of
    integers are not looked at one by one."""
    if isinstance(values, pl.Series):
        if values.dtype == kind:
            return values
        if values.dtype.is_integer():
            return values.cast(kind, strict=False)  # what is too large for the type becomes null
        if values.dtype == pl.String:
            numbers = values.set(~values.str.contains(_NUMBER), None)
            return numbers.cast(kind, strict=False)
        values = values.to_list()
    own = [own_id(value, kind) for value in values]
    return pl.Series([None if isinstance(one, int) and not -(2**63) <= one < 2**63 else one for one in own], dtype=kind)


def labels(asked: pl.Series | list[Any], kind: pl.DataType) -> pl.Series:
    """The people's ids in the data's type; all as text if one of them, unknown then, cannot be of that type."""
    own = own_ids(asked, kind)
    return as_text(asked) if own.null_count() else own.alias("user_id")


def as_text(asked: pl.Series | list[Any]) -> pl.Series:
    """The people's ids as they came, as text."""
    if isinstance(asked, pl.Series) and (asked.dtype == pl.String or asked.dtype.is_integer()):
        return asked.cast(pl.String).alias("user_id")
    return pl.Series("user_id", [None if user is None else str(user) for user in asked], dtype=pl.String)


class IdMap:
    """From ids to their places in a column of distinct ids."""

    def __init__(self, ids: pl.Series) -> None:
        self.kind = ids.dtype
        self.of = {own: number for number, own in enumerate(ids.to_list())}
        self._table = pl.DataFrame({"id": ids, "number": np.arange(len(ids))})

    def find(self, values: pl.Series | Iterable[Any]) -> NDArray[np.int64]:
        """(n,) numbers of ids in any form that `own_id` knows, -1 for those that are not there.

        A column is joined, which for many ids takes a quarter of the time; a list, for few, is looked up.
        """
        if not isinstance(values, pl.Series):
            return np.asarray([self.of.get(own_id(value, self.kind), -1) for value in values], dtype=np.int64)
        asked = pl.DataFrame({"id": own_ids(values, self.kind)})
        found = asked.join(self._table, on="id", how="left", maintain_order="left")
        return found["number"].fill_null(-1).to_numpy()


def listed(what: str, value: Any) -> list[Any]:
    """The list that was meant to be given. Text and tables can be iterated over as well, but not to any good."""
    wrong = isinstance(value, str | bytes | Mapping) or hasattr(value, "columns")
    if wrong or not isinstance(value, Iterable):
        raise ConfigError(
            f"{what[0].upper()}{what[1:]} is {value!r:.60}, not a list.",
            'Pass lists, also for one person: users=["id"], histories=[["item", "item"]], exclude=["item"].',
        )
    return list(value)


def flat(histories: Any) -> tuple[NDArray[np.int64], pl.Series | list[Any]]:
    """(n,) lengths of histories, and their item ids end to end. In a column, no history is an empty one."""
    if isinstance(histories, pl.Series) and histories.dtype == pl.List:
        lengths = histories.list.len().fill_null(0)
        return lengths.to_numpy().astype(np.int64), histories.filter(lengths > 0).explode()
    rows = [listed("a history", history) for history in listed("histories", histories)]
    return np.asarray([len(row) for row in rows], dtype=np.int64), [item for row in rows for item in row]


def whole(name: str, value: Any, least: int | None = 1) -> int:
    """A whole number of at least ``least``."""
    try:
        number = operator.index(value)  # pyright: ignore[reportArgumentType]  (that is what is tried)
    except TypeError:
        raise ConfigError(f"{name} is {value!r}.", f"Give {name} as a whole number.") from None
    if least is not None and number < least:
        raise ConfigError(f"{name} is {value}.", f"Give {name} of at least {least}.")
    return number
