"""Given vectors, such as those of a text or image encoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rediffuse.data.checks import require
from rediffuse.data.feature_columns import vectors_in, where
from rediffuse.errors import DataError
from rediffuse.features.column import ColumnEncoder


class VectorEncoder(ColumnEncoder):
    """(x - mean) / scale; the root mean square of the norms is 1 over the rows that it was fitted to.

    Args:
        column: name of the column.
        mean: (width,) float32.
        scale: root mean square of the norms of x - mean.
    """

    is_sparse = False

    def __init__(self, column: str, mean: NDArray[np.float32], scale: float) -> None:
        super().__init__(column)
        self.mean, self.scale = mean, scale

    @classmethod
    def fit(cls, table: pl.DataFrame, column: str, fitted: NDArray[np.bool_], seed: int) -> VectorEncoder:
        known, vectors = vectors_in(table, column)
        chosen = vectors[known & fitted]
        if not len(chosen):
            return cls(column, np.zeros(0, dtype=np.float32), 1.0)
        mean = chosen.mean(axis=0, dtype=np.float64).astype(np.float32)
        scale = float(np.sqrt(np.square(chosen - mean, dtype=np.float64).sum(axis=1).mean()))
        return cls(column, mean, scale if scale > 0 else 1.0)

    @classmethod
    def load(cls, column: str, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> VectorEncoder:
        mean, scale = arrays.get("mean"), settings.get("scale")
        require(mean is not None and mean.dtype == np.float32 and mean.ndim == 1, "the mean is no float32 vector")
        assert mean is not None
        require(np.isfinite(mean).all(), "the mean is not finite")
        require(isinstance(scale, float) and np.isfinite(scale) and scale > 0, "the scale is no number above 0")
        return cls(column, mean, scale)  # pyright: ignore[reportArgumentType]

    def encode(self, table: pl.DataFrame) -> NDArray[np.float32]:
        known, vectors = vectors_in(table, self.column)
        encoded = np.zeros((len(table), len(self.mean)), dtype=np.float32)
        if not len(self.mean) or not known.any():
            return encoded
        if vectors.shape[1] != len(self.mean):
            raise DataError(
                f"{where(table, self.column)} holds vectors of {vectors.shape[1]:,} values, and the model learned from "
                f"vectors of {len(self.mean):,}.",
                "Make the vectors with the same encoder as before.",
            )
        encoded[known] = (vectors[known] - self.mean) / np.float32(self.scale)
        return encoded

    def names(self) -> list[str]:
        return [f"{self.column} {place}" for place in range(len(self.mean))]

    def settings(self) -> dict[str, Any]:
        return {"scale": self.scale}

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"mean": self.mean}
