"""The caller's ids and numbers, as they come."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import polars as pl

from rediffuse.errors import ConfigError


def own_id(value: Any, kind: pl.DataType) -> int | str | None:
    """An id as the run's ids are, or None if it cannot be one of them.

    "50" finds 50 where ids are integers, as does 50.0, which pandas makes of it beside a missing value; 50 finds "50"
    where ids are text. But "050" is not 50, and neither is True 1.
    """
    if isinstance(value, str):
        if kind == pl.String:
            return value
        # More digits than any id has are none (and Python refuses thousands of them).
        return int(value) if re.fullmatch(r"-?(0|[1-9][0-9]{0,18})", value, re.ASCII) else None
    if isinstance(value, bool | np.bool_):
        return None
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)
    try:
        number = operator.index(value)  # pyright: ignore[reportArgumentType]  (that is what is tried)
    except TypeError:
        return None
    return str(number) if kind == pl.String else number


def labels(asked: list[Any], kind: pl.DataType) -> pl.Series:
    """The people's ids in the data's type; all as text if one of them, unknown then, cannot be of that type."""
    own = [own_id(user, kind) for user in asked]
    if None not in own and not any(isinstance(user, int) and abs(user) >= 2**63 for user in own):
        return pl.Series("user_id", own, dtype=kind)
    return pl.Series("user_id", [None if user is None else str(user) for user in asked], dtype=pl.String)


def listed(what: str, value: Any) -> list[Any]:
    """The list that was meant to be given. Text and tables can be iterated over as well, but not to any good."""
    wrong = isinstance(value, str | bytes | Mapping) or hasattr(value, "columns")
    if wrong or not isinstance(value, Iterable):
        raise ConfigError(
            f"{what[0].upper()}{what[1:]} is {value!r:.60}, not a list.",
            'Pass lists, also for one person: users=["id"], histories=[["item", "item"]], exclude=["item"].',
        )
    return list(value)


def whole(name: str, value: Any, least: int | None = 1) -> int:
    """A whole number of at least ``least``."""
    try:
        number = operator.index(value)  # pyright: ignore[reportArgumentType]  (that is what is tried)
    except TypeError:
        raise ConfigError(f"{name} is {value!r}.", f"Give {name} as a whole number.") from None
    if least is not None and number < least:
        raise ConfigError(f"{name} is {value}.", f"Give {name} of at least {least}.")
    return number
