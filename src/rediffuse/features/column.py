"""What the encoders of single columns have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from rediffuse.data.feature_columns import missing_in


class ColumnEncoder(ABC):
    """Turns one column of a table into columns of numbers, all zero where a row has no value.

    A subclass makes itself with ``fit(table, column, fitted, seed)``, of the rows ``fitted`` (rows,) bool alone, and
    with ``load(column, settings, arrays)`` from what `settings` and `arrays` returned.

    Attributes:
        column: name of the column.
    """

    is_sparse: ClassVar[bool]

    def __init__(self, column: str) -> None:
        self.column = column

    @classmethod
    @abstractmethod
    def fit(cls, table: pl.DataFrame, column: str, fitted: NDArray[np.bool_], seed: int) -> ColumnEncoder: ...

    @classmethod
    @abstractmethod
    def load(cls, column: str, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> ColumnEncoder:
        """Raises: ValueError: they do not fit each other."""

    @abstractmethod
    def encode(self, table: pl.DataFrame) -> sparse.csr_array | NDArray[np.float32]:
        """(rows, width) float32; sparse where `is_sparse`."""

    @abstractmethod
    def names(self) -> list[str]:
        """(width,) what each column of the result stands for."""

    def settings(self) -> dict[str, Any]:
        """JSON-able."""
        return {}

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {}

    def notes(self, table: pl.DataFrame) -> list[str]:
        """What of a table is missing, unknown or left out, in sentences with counts and an example."""
        return self.missing_note(table)

    def missing_note(self, table: pl.DataFrame) -> list[str]:
        """A sentence about rows without a value, if there are any."""
        count = int(missing_in(table[self.column]).sum())
        return [f"{self.column!r} is missing in {count:,} of {len(table):,} rows."] if count else []
