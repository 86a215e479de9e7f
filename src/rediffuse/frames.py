"""Columns and frames of other libraries in, and frames of the same library out.

The libraries are polars, pandas and pyarrow. Columns and frames of others come in as far as narwhals supports them, and
polars frames go out. No library is imported that the caller has not imported.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import polars as pl

from rediffuse.errors import ConfigError

Kind = Literal["polars", "pandas", "pyarrow"]
# A polars.DataFrame, a pandas.DataFrame or a pyarrow.Table.
Frame: TypeAlias = Any


def kind_of(*values: Any) -> Kind:
    """The library of the first value that is a column or a frame; polars if no value is one."""
    for value in values:
        library = _library(_native(value))
        if library in ("polars", "pandas", "pyarrow"):
            return library
    return "polars"


def as_kind(frame: pl.DataFrame, kind: Kind) -> Frame:
    """The frame in another library; integers and text of pandas frames keep missing values."""
    if kind == "pyarrow":
        return frame.to_arrow()
    if kind == "pandas":
        import pandas as pd

        return pd.DataFrame({series.name: _as_pandas(series) for series in frame}, columns=frame.columns)
    return frame


def _as_pandas(series: pl.Series) -> Any:
    """A series for pandas; polars' own conversion needs pyarrow for text, and turns integers with gaps into floats."""
    import pandas as pd

    plain = series.dtype.is_integer() or series.dtype == pl.Boolean
    if series.dtype.is_float() or (plain and not series.null_count()):
        return series.to_numpy(writable=True)
    return pd.Series(series.to_list(), dtype="Int64" if series.dtype.is_integer() else None)


def is_frame(value: Any) -> bool:
    """Whether a value looks like a dataframe, which has named columns."""
    return hasattr(type(_native(value)), "columns")  # ask the type: lazy frames take long to list their columns


def as_column(value: Any) -> pl.Series | list[Any] | None:
    """A column of polars, pandas, pyarrow or another library as a polars series, or as a list if its values are mixed.

    None if the value is not a column.
    """
    value = _native(value)
    library = _library(value)
    if isinstance(value, pl.Series):
        return value
    if library in ("builtins", "numpy", "polars") or is_frame(value):
        return None
    try:
        if library == "pyarrow":
            found = pl.from_arrow(value)
            return found if isinstance(found, pl.Series) else None
        import narwhals as nw

        if library == "pandas" and hasattr(value, "to_series"):  # an index
            value = value.to_series()
        return nw.from_native(value, series_only=True).to_polars()
    except Exception:  # values of several types, or pyarrow is not installed
        return _missing_as_none(value.tolist()) if hasattr(value, "tolist") else None


def columns_of(name: str, value: Any, wanted: tuple[str, ...]) -> dict[str, pl.Series | list[Any]]:
    """Those of the ``wanted`` columns that a frame has, of which it must have the first.

    Args:
        name: name of the argument, for errors.
        value: the frame.
        wanted: names of columns.

    Raises:
        ConfigError: it is not a frame, or lacks the column.
    """
    import narwhals as nw

    try:
        frame = nw.from_native(value)
        names = frame.collect_schema().names()
    except Exception as error:  # no frame, or one with repeated column names
        problem = f"{name} cannot be read as a frame: {' '.join(str(error).split())}"
        raise ConfigError(problem, "Pass a list of ids, or a frame of polars, pandas or pyarrow.") from None
    if wanted[0] not in names:
        raise ConfigError(
            f"The frame passed as {name} has no column {wanted[0]}; its columns are {', '.join(map(str, names))}.",
            f"Rename the column of ids to {wanted[0]}, or pass that column alone.",
        )
    frame = frame.select([column for column in wanted if column in names])
    if isinstance(frame, nw.LazyFrame):
        frame = frame.collect("polars")
    found = {column: as_column(frame[column].to_native()) for column in frame.columns}
    return {column: values for column, values in found.items() if values is not None}


def _native(value: Any) -> Any:
    return value.to_native() if _library(value) == "narwhals" and hasattr(value, "to_native") else value


def _library(value: Any) -> str:
    return type(value).__module__.partition(".")[0]


def _missing_as_none(values: list[Any]) -> list[Any]:
    """NaN and the like are unequal to themselves, or say neither that they are equal nor that they are not."""

    def missing(value: Any) -> bool:
        try:
            return bool(value != value)
        except (TypeError, ValueError):
            return not hasattr(value, "__len__")

    return [None if missing(value) else value for value in values]
