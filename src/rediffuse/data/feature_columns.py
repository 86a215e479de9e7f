"""What columns of item and user tables hold, each read as its kind: values of a category, numbers, text or vectors.

Missing values are normal: null, NaN, empty text and empty lists all count as missing.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rediffuse.errors import DataError

SEPARATOR = r"\s*[|;]\s*"


def sets_in(column: pl.Series) -> pl.DataFrame:
    """The values of each row of a column of sets, each value of a row once.

    Args:
        column: lists; text separated by ``|`` or ``;``; or one value per row. Missing values and empty text are none.

    Returns:
        The columns row (Int64) and value (String), in the order of the rows.
    """
    if column.dtype == pl.String:
        parts = column.str.replace_all(SEPARATOR, "|").str.split("|")
    elif isinstance(column.dtype, pl.List | pl.Array):
        parts = column.cast(pl.List(pl.String))
    else:
        column = column.fill_nan(None) if column.dtype.is_float() else column
        parts = column.cast(pl.String).reshape((-1, 1)).cast(pl.List(pl.String))
    values = pl.DataFrame({"row": np.arange(len(column)), "value": parts}).explode("value").drop_nulls()
    return values.filter(pl.col("value") != "").unique(maintain_order=True)


def values_in(column: pl.Series) -> pl.DataFrame:
    """As `sets_in`, for categories: no spaces around values, and whole numbers alike whether stored as 3 or 3.0."""
    if column.dtype.is_float():
        whole = pl.col("value") == pl.col("value").round()
        number = pl.col("value").cast(pl.Int64, strict=False).cast(pl.String)
        chosen = pl.when(whole & number.is_not_null()).then(number).otherwise(pl.col("value").cast(pl.String))
        column = column.fill_nan(None).to_frame("value").select(chosen).to_series()
    if isinstance(column.dtype, pl.Categorical | pl.Enum):
        column = column.cast(pl.String)
    values = sets_in(column).with_columns(pl.col("value").str.strip_chars())
    return values.filter(pl.col("value") != "").unique(maintain_order=True)


def texts_in(column: pl.Series) -> pl.Series:
    """The text of each row, null where there is none; lists of text are joined by spaces."""
    if isinstance(column.dtype, pl.List | pl.Array):
        texts = column.cast(pl.List(pl.String)).list.join(" ")
    else:
        texts = column.cast(pl.String)
    return texts.to_frame("text").select(pl.when(pl.col("text").str.contains(r"\S")).then("text")).to_series()


def missing_in(column: pl.Series) -> NDArray[np.bool_]:
    """(rows,) which rows have no value, whatever the kind."""
    if column.dtype == pl.String:
        column = texts_in(column)
    elif isinstance(column.dtype, pl.Array):
        pass  # all of one length
    elif isinstance(column.dtype, pl.List):
        return (column.list.len() == 0).fill_null(True).to_numpy()
    elif column.dtype.is_float():
        column = column.fill_nan(None)
    return column.is_null().to_numpy()


def numbers_in(table: pl.DataFrame, name: str) -> NDArray[np.float64]:
    """(rows,) the number in each row, NaN where there is none; text may hold numbers.

    Raises:
        DataError: text that is no number, or infinity; the error names the row.
    """
    column = table[name]
    if column.dtype == pl.String:
        column = texts_in(column).str.strip_chars()
    numbers = column.cast(pl.Float64, strict=False)
    lost = (numbers.is_null() & column.is_not_null()) | numbers.is_infinite().fill_null(False)
    if lost.any():
        row = int(lost.to_numpy().argmax())
        raise DataError(
            f"{where(table, name)}: {int(lost.sum()):,} values are no finite numbers, such as {column[row]!r} in "
            f"{row_text(table, row)}.",
            f"Leave these empty, or declare the column as a category or as text: {name}:category, {name}:text.",
        )
    return numbers.fill_null(np.nan).to_numpy()


def vectors_in(table: pl.DataFrame, name: str) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """(rows,) which rows have a vector, and (rows, width) the vectors, zeros for the others.

    Raises:
        DataError: vectors of different lengths, or values that are not finite numbers; the error names the row.
    """
    column = table[name].cast(pl.List(pl.Float32))
    lengths = column.list.len()
    known = (lengths > 0).fill_null(False).to_numpy()
    found = lengths.filter(known).unique().sort()
    if len(found) > 1:
        first = int(known.argmax())
        other = int((known & (lengths != lengths[first]).fill_null(False).to_numpy()).argmax())
        raise DataError(
            f"{where(table, name)} holds vectors of {', '.join(map(str, found))} values: of {lengths[first]} in "
            f"{row_text(table, first)}, of {lengths[other]} in {row_text(table, other)}.",
            "Give every row a vector of the same length, or none.",
        )
    width = int(found[0]) if len(found) else 0
    vectors = np.zeros((len(table), width), dtype=np.float32)
    if width:
        vectors[known] = column.filter(known).explode().fill_null(np.nan).to_numpy().reshape(-1, width)
    if wrong := np.flatnonzero(~np.isfinite(vectors).all(axis=1)).tolist():
        row = row_text(table, wrong[0])
        raise DataError(
            f"{where(table, name)}: the vector in {row} holds values that are not finite numbers.",
            "Replace missing and infinite values, or leave the vector out.",
        )
    return known, vectors


def is_vector(kind: pl.DataType) -> bool:
    """Whether a column of this type holds lists of numbers."""
    return isinstance(kind, pl.List | pl.Array) and kind.inner.is_numeric()  # pyright: ignore


def kind_of_table(table: pl.DataFrame) -> str:
    """ "item" or "user": what the rows of a table describe."""
    return "user" if "user_id" in table.columns and "item_id" not in table.columns else "item"


def where(table: pl.DataFrame, name: str) -> str:
    """A column, for errors."""
    return f"Column {name!r} of the {kind_of_table(table)} table"


def row_text(table: pl.DataFrame, row: int) -> str:
    """A row, for errors: its number, and its id if the table has ids."""
    kind = kind_of_table(table)
    ids = f"{kind}_id"
    return f"row {row} ({kind} {table[ids][row]!r})" if ids in table.columns else f"row {row}"
