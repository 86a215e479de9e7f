"""Limits per value: at most n items of one category, brand or tag in a list."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray


@dataclass(frozen=True)
class ValueLimit:
    """The most items of one value in a list.

    Attributes:
        limit: how many.
        offsets: (num_items + 1,) where the values of each item begin in ``values``.
        values: numbers of the values of all items, without repetition within an item; an item without a value has none.
    """

    limit: int
    offsets: NDArray[np.int64]
    values: NDArray[np.int64]

    @classmethod
    def of(cls, series: pl.Series, limit: int) -> ValueLimit:
        """From a column with one value, or a list of values, per item. Missing values and NaN are not limited."""
        series = series.fill_nan(None) if series.dtype.is_float() else series
        frame = pl.DataFrame({"item": np.arange(len(series)), "value": series})
        if isinstance(series.dtype, pl.List | pl.Array):
            frame = frame.with_columns(pl.col("value").cast(pl.List(series.dtype.inner)))  # pyright: ignore
            frame = frame.explode("value")
        frame = frame.drop_nulls().unique(maintain_order=True)
        numbers = frame.select(pl.col("value").unique(maintain_order=True)).with_row_index("number")
        frame = frame.join(numbers, on="value", how="left", maintain_order="left")
        counts = np.bincount(frame["item"].to_numpy(), minlength=len(series))
        return cls(limit, np.concatenate(([0], np.cumsum(counts))), frame["number"].to_numpy().astype(np.int64))

    def at_most(self, limit: int) -> ValueLimit:
        """The same values with another limit."""
        return replace(self, limit=limit)

    def of_item(self, item: int) -> NDArray[np.int64]:
        """The values of an item."""
        return self.values[self.offsets[item] : self.offsets[item + 1]]
