"""Columns of the item table as sets of values per item."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rediffuse.data.features import sets_of
from rediffuse.data.histories import Histories
from rediffuse.errors import ConfigError, did_you_mean
from rediffuse.reranking.limits import ValueLimit


@dataclass(frozen=True)
class ItemSets:
    """The set of values of every item, as compressed sparse rows.

    Attributes:
        offsets: (num_items + 1,) where the values of each item begin in ``values``.
        values: numbers of the values of all items, without repetition within an item; an item without a value has none.
        num_values: how many values there are.
    """

    offsets: NDArray[np.int64]
    values: NDArray[np.int64]
    num_values: int

    @classmethod
    def of(cls, column: pl.Series) -> Self:
        """From a column of sets, as `rediffuse.data.features.sets_of` reads it: text is split at ``|`` and ``;``."""
        sets = sets_of(column)
        return cls(sets.indptr.astype(np.int64), sets.indices.astype(np.int64), sets.shape[1])  # pyright: ignore

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(num_items,) how many values each item has."""
        return np.diff(self.offsets)

    def entries(self, items: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of items (n,): the position 0..n-1 and the number of each of their values, item by item."""
        sizes = self.sizes[items]
        owners = np.repeat(np.arange(len(items)), sizes)
        first = np.cumsum(sizes) - sizes
        return owners, self.values[self.offsets[items][owners] + np.arange(len(owners)) - first[owners]]

    def shares(self, items: NDArray[np.integer]) -> NDArray[np.float64]:
        """(num_values,) the share of each value among items (n,), of which each has one vote; zero if none has values.

        The vote of an item with several values is divided among them. An item that is there twice votes twice.
        """
        owners, values = self.entries(items)
        total = np.bincount(values, 1 / self.sizes[items][owners], minlength=self.num_values)
        return total / max(total.sum(), 1e-300)

    def without_values(self, histories: Histories) -> int:
        """How many histories have no item with a value."""
        known = (self.sizes > 0)[histories.items]
        return int((np.bincount(histories.owners, known, minlength=len(histories)) == 0).sum())


class ItemColumns:
    """The item table of a run, whose columns rules name. What was made of a column is kept for the next request.

    Args:
        table: row i describes item number i; None: the run has no item table.
    """

    def __init__(self, table: pl.DataFrame | None) -> None:
        self.table = table
        self._limits: dict[str, ValueLimit] = {}
        self._sets: dict[str, ItemSets] = {}

    def limit(self, column: str, limit: int, what: str) -> ValueLimit:
        """At most ``limit`` items of each value; ``what`` and errors as for `column`."""
        if column not in self._limits:
            self._limits[column] = ValueLimit.of(self.column(column, what), limit)
        return self._limits[column].at_most(limit)

    def sets(self, column: str, what: str) -> ItemSets:
        """The values of every item; ``what`` and errors as for `column`.

        Raises:
            ConfigError: also if no item has a value.
        """
        if column not in self._sets:
            found = ItemSets.of(self.column(column, what))
            if not found.num_values:
                raise ConfigError(f"No item has a value in column {column!r}.", f"Name another column in {what}.")
            self._sets[column] = found
        return self._sets[column]

    def column(self, column: str, what: str) -> pl.Series:
        """A column of the table.

        Args:
            column: its name.
            what: the option that names it.

        Raises:
            ConfigError: there is no item table, or it has no such column.
        """
        if self.table is None:
            raise ConfigError(
                f"This run has no item table, so {what} has no columns to name.",
                "Prepare the data with a table of items (rediffuse prepare --items FILE, in Python items=...), and "
                "train or refit on them.",
            )
        if column not in self.table.columns:
            raise ConfigError(f"The item table has no column {column!r}.", did_you_mean(column, self.table.columns))
        return self.table[column]
