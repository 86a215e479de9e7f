"""Categories as columns: one value or several per row."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from rediffuse.data.checks import require
from rediffuse.data.feature_columns import values_in
from rediffuse.features.column import ColumnEncoder

# Values that get a column of their own, the most common first.
MOST_VALUES = 1000


class CategoryEncoder(ColumnEncoder):
    """A column per value; a row of n known values holds 1/sqrt(n) at each, so that its norm is 1.

    Args:
        column: name of the column.
        values: the values with a column, in its order.
        left_out: rarer values without one, and in how many rows they were.
    """

    is_sparse = True

    def __init__(self, column: str, values: list[str], left_out: tuple[int, int]) -> None:
        super().__init__(column)
        self.values, self.left_out = values, left_out
        self._numbers = pl.DataFrame({"value": pl.Series(values, dtype=pl.String), "number": np.arange(len(values))})

    @classmethod
    def fit(cls, table: pl.DataFrame, column: str, fitted: NDArray[np.bool_], seed: int) -> CategoryEncoder:
        found = values_in(table[column].filter(fitted))
        counts = found.group_by("value").len().sort(["len", "value"], descending=[True, False])
        values, rare = counts["value"].to_list(), counts["value"][MOST_VALUES:]
        rows = found.filter(pl.col("value").is_in(rare.implode()))["row"].n_unique()
        return cls(column, values[:MOST_VALUES], (len(rare), rows))

    @classmethod
    def load(cls, column: str, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> CategoryEncoder:
        values, left_out = settings.get("values"), settings.get("left_out")
        require(isinstance(values, list) and all(isinstance(value, str) for value in values), "values are no text")
        require(isinstance(left_out, list) and list(map(type, left_out)) == [int, int], "left_out are not two counts")
        assert isinstance(values, list)
        assert isinstance(left_out, list)
        require(len(set(values)) == len(values), "a value is repeated")
        return cls(column, values, (left_out[0], left_out[1]))

    def encode(self, table: pl.DataFrame) -> sparse.csr_array:
        found = values_in(table[self.column]).join(self._numbers, on="value", how="inner", maintain_order="left")
        rows, numbers = found["row"].to_numpy(), found["number"].to_numpy()
        counts = np.bincount(rows, minlength=len(table))
        weights = (1 / np.sqrt(counts[rows])).astype(np.float32)
        matrix = sparse.csr_array((weights, (rows, numbers)), shape=(len(table), len(self.values)))
        matrix.sort_indices()
        return matrix

    def names(self) -> list[str]:
        return [f"{self.column}={value}" for value in self.values]

    def settings(self) -> dict[str, Any]:
        return {"values": self.values, "left_out": list(self.left_out)}

    def notes(self, table: pl.DataFrame) -> list[str]:
        found = values_in(table[self.column])
        notes = self.missing_note(table)
        if self.left_out[0]:
            notes.append(
                f"{self.column!r} has {len(self.values) + self.left_out[0]:,} values; the {len(self.values):,} most "
                f"common are used. The other {self.left_out[0]:,} are in {self.left_out[1]:,} rows."
            )
        unknown = found.join(self._numbers, on="value", how="anti", maintain_order="left")
        if len(unknown):
            notes.append(
                f"{unknown['value'].n_unique():,} values of {self.column!r}, in {unknown['row'].n_unique():,} of "
                f"{len(table):,} rows, are not among those learned and say nothing, such as {unknown['value'][0]!r}."
            )
        return notes
