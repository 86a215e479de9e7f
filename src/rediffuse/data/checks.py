"""Checks of columns and arrays that come from files: a checksum says that a file is the one that was written, not that
whoever wrote it was right. All raise ValueError, which the reader of the folder turns into an error that names it."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rediffuse.data.histories import Histories

_LARGEST = np.iinfo(np.int32).max


def require(holds: Any, problem: str) -> None:
    """Raise ``ValueError(problem)`` unless a condition holds."""
    if not holds:
        raise ValueError(problem)


def require_keys(content: Any, wanted: dict[str, type | tuple[type, ...]], where: str = "") -> None:
    """Check the types of entries of JSON content; a key with dots leads into mappings.

    A type tuple that holds ``type(None)`` also allows a missing key. True and False are no integers.
    """
    require(isinstance(content, dict), f"{where or 'it'} is {type(content).__name__}, not a mapping")
    for name, kinds in wanted.items():
        allowed = kinds if isinstance(kinds, tuple) else (kinds,)
        value: Any = content
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        fits = isinstance(value, allowed) and (not isinstance(value, bool) or bool in allowed)
        wanted_names = " or ".join(kind.__name__ for kind in allowed if kind is not type(None))
        require(fits, f"{where}{name} is {'missing' if value is None else repr(value)[:60]}, not {wanted_names}")


def require_plain_names(names: Any) -> None:
    """Check that names of files lead nowhere else."""
    for name in names:
        plain = isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")
        require(plain, f"{name!r} is not the name of a file in the folder")


def ids_of(table: pl.DataFrame, column: str) -> pl.Series:
    """The ids of a table: integers or text, without nulls, each once."""
    require(column in table.columns, f"there is no column {column}")
    ids = table[column]
    require(ids.dtype == pl.Int64 or ids.dtype == pl.String, f"{column} is {ids.dtype}, not Int64 or String")
    require(not ids.null_count(), f"{column} has {ids.null_count():,} nulls")
    repeated = len(ids) - ids.n_unique()
    require(not repeated, f"{column} repeats {repeated:,} ids" if repeated else "")
    require(len(ids) <= _LARGEST, f"{column} has more than {_LARGEST:,} ids")
    return ids


def numbers_of(values: pl.Series | NDArray[Any], name: str, below: int, low: int = 0) -> NDArray[np.int32]:
    """A column or array of numbers from ``low`` to ``below`` - 1, as int32."""
    if isinstance(values, pl.Series):
        require(values.dtype.is_integer(), f"{name} is {values.dtype}, not integers")
        require(not values.null_count(), f"{name} has nulls")
        values = values.to_numpy()
    require(values.ndim == 1 and values.dtype.kind in "iu", f"{name} is no column of integers")
    if len(values):
        least, most = int(values.min()), int(values.max())
        require(least >= low and most < below, f"{name} has numbers from {least} to {most}, not {low} to {below - 1}")
    return np.ascontiguousarray(values, dtype=np.int32)


def offsets_of(values: NDArray[Any], rows: int, length: int) -> None:
    """Check offsets of ``rows`` rows of ``length`` entries in all: (rows + 1,), from 0 up to ``length``."""
    require(values.dtype == np.int64 and values.shape == (rows + 1,), f"offsets are not of {rows:,} rows")
    require(values[0] == 0 and values[-1] == length, f"offsets end at {values[-1]}, not {length}")
    require((values[1:] >= values[:-1]).all(), "offsets decrease")


def check_histories(histories: Histories, users: int, items: int) -> None:
    """Check that arrays fit each other and that all item numbers are those of items."""
    rows = histories
    require(rows.items is not None and rows.items.dtype == np.int32, "item numbers are not int32")
    numbers_of(rows.items, "item numbers", items)
    offsets_of(rows.offsets, users, len(rows.items))
    for name, kinds in (("times", "if"), ("ratings", "f"), ("synthetic", "b"), ("target", "b")):
        array = getattr(rows, name)
        if array is not None:
            require(array.shape == rows.items.shape, f"{name} has the shape {array.shape}, not {rows.items.shape}")
            require(array.dtype.kind in kinds, f"{name} is {array.dtype}")
            require(array.dtype.kind != "f" or name == "ratings" or np.isfinite(array).all(), f"{name} has NaN")


def lists_of(table: pl.DataFrame, column: str, lengths: NDArray[np.int64] | None = None) -> pl.Series:
    """A column of lists without nulls, flat; with ``lengths``, those of another column."""
    require(isinstance(table[column].dtype, pl.List), f"{column} is {table[column].dtype}, not lists")
    lists = table[column]
    require(not lists.null_count(), f"{column} has nulls")
    found = lists.list.len().to_numpy().astype(np.int64)
    require(lengths is None or (found == lengths).all(), f"{column} and history differ in their lengths")
    flat = lists.explode().drop_nulls()
    require(len(flat) == found.sum(), f"{column} has nulls in its lists")
    return flat
