"""Numbers as bins of about as many rows each."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from rediffuse.data.checks import require
from rediffuse.data.feature_columns import numbers_in
from rediffuse.features.column import ColumnEncoder

BINS = 10


class NumberEncoder(ColumnEncoder):
    """A column per bin between quantiles; values beyond those it was fitted to fall into the outer bins.

    Args:
        column: name of the column.
        edges: (bins - 1,) float64, increasing; a bin begins at its lower edge. None: no number was seen, there are no
            bins.
    """

    is_sparse = True

    def __init__(self, column: str, edges: NDArray[np.float64] | None) -> None:
        super().__init__(column)
        self.edges = edges

    @classmethod
    def fit(cls, table: pl.DataFrame, column: str, fitted: NDArray[np.bool_], seed: int) -> NumberEncoder:
        values = numbers_in(table, column)[fitted]
        values = values[~np.isnan(values)]
        if not len(values):
            return cls(column, None)
        distinct = np.unique(values)
        if len(distinct) <= BINS:
            return cls(column, distinct[1:])
        # Edges are values of the data. Many equal values make equal quantiles, so fewer bins.
        edges = np.unique(np.quantile(values, np.arange(1, BINS) / BINS, method="inverted_cdf"))
        return cls(column, edges[edges > distinct[0]])

    @classmethod
    def load(cls, column: str, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> NumberEncoder:
        edges = settings.get("edges")
        if edges is None:
            return cls(column, None)
        sound = isinstance(edges, list) and all(isinstance(edge, float) for edge in edges)
        require(sound, "edges are no numbers")
        array = np.array(edges, dtype=np.float64)
        require(np.isfinite(array).all() and (array[1:] > array[:-1]).all(), "edges do not increase")
        return cls(column, array)

    def encode(self, table: pl.DataFrame) -> sparse.csr_array:
        values = numbers_in(table, self.column)
        if self.edges is None:
            return sparse.csr_array((len(table), 0), dtype=np.float32)
        known = ~np.isnan(values)
        bins = np.searchsorted(self.edges, values[known], side="right")
        offsets = np.concatenate(([0], np.cumsum(known)))
        ones = np.ones(len(bins), dtype=np.float32)
        return sparse.csr_array((ones, bins, offsets), shape=(len(table), len(self.edges) + 1))

    def names(self) -> list[str]:
        if self.edges is None:
            return []
        if not len(self.edges):
            return [f"{self.column} is given"]
        edges = [f"{edge:.15g}" for edge in self.edges]
        inner = [f"{self.column} in [{low}, {high})" for low, high in pairwise(edges)]
        return [f"{self.column} < {edges[0]}", *inner, f"{self.column} >= {edges[-1]}"]

    def settings(self) -> dict[str, Any]:
        return {"edges": None if self.edges is None else self.edges.tolist()}
