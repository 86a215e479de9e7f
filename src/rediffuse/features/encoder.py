"""All declared features of items or users as one `Content`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from rediffuse.data.checks import require
from rediffuse.data.feature_columns import kind_of_table
from rediffuse.data.item_features import KINDS, Feature, check_type
from rediffuse.errors import DataError, did_you_mean
from rediffuse.features.categories import CategoryEncoder
from rediffuse.features.column import ColumnEncoder
from rediffuse.features.content import Content
from rediffuse.features.quantiles import NumberEncoder
from rediffuse.features.texts import TextEncoder
from rediffuse.features.vectors import VectorEncoder

_ENCODERS: dict[str, type[ColumnEncoder]] = {
    "category": CategoryEncoder,
    "number": NumberEncoder,
    "text": TextEncoder,
    "vector": VectorEncoder,
}


class FeatureEncoder:
    """Encodes a table of declared features; the columns of the result keep their meaning for every table.

    Categories and bins of numbers are sparse, texts and vectors dense; each is in the order of the declaration.

    Args:
        features: what was declared.
        encoders: one per feature.
    """

    def __init__(self, features: Sequence[Feature], encoders: Sequence[ColumnEncoder]) -> None:
        self.features, self.encoders = tuple(features), tuple(encoders)
        self._sparse = [encoder for encoder in self.encoders if encoder.is_sparse]
        self._dense = [encoder for encoder in self.encoders if not encoder.is_sparse]

    @classmethod
    def fit(
        cls,
        table: pl.DataFrame,
        features: Sequence[Feature],
        fitted_rows: NDArray[np.bool_] | None = None,
        seed: int = 0,
    ) -> FeatureEncoder:
        """Learn vocabularies, bins, weights of words and means.

        Args:
            table: row i describes item i.
            features: columns of it, and their kinds.
            fitted_rows: (rows,) the rows to learn from, for example the items with training interactions; None: all.
            seed: of the decomposition of texts.

        Raises:
            DataError: the table lacks a column, or a column does not hold what its kind says.
        """
        _check_columns(table, features)
        fitted = np.ones(len(table), dtype=bool) if fitted_rows is None else fitted_rows
        encoders = [_ENCODERS[feature.kind].fit(table, feature.column, fitted, seed) for feature in features]
        return cls(features, encoders)

    def encode(self, table: pl.DataFrame) -> Content:
        """The content of each row. Missing and unknown values are zero in all of their columns.

        Args:
            table: its rows need not be those that were learned from; columns that are no features are not read.

        Raises:
            DataError: the table lacks a column, or a column does not hold what its kind says.
        """
        _check_columns(table, self.features)
        empty = sparse.csr_array((len(table), 0), dtype=np.float32)
        encoded: list[Any] = [encoder.encode(table) for encoder in self._sparse]
        blocks = [block for block in encoded if block.shape[1]]
        together = sparse.csr_array(sparse.hstack(blocks, format="csr")) if blocks else empty
        arrays = [np.zeros((len(table), 0), dtype=np.float32), *(encoder.encode(table) for encoder in self._dense)]
        return Content(together, np.concatenate(arrays, axis=1))

    def names(self) -> list[str]:
        """What each column of the content stands for: the sparse ones, then the dense ones."""
        return [name for encoder in (*self._sparse, *self._dense) for name in encoder.names()]

    @property
    def num_sparse(self) -> int:
        return sum(len(encoder.names()) for encoder in self._sparse)

    @property
    def num_dense(self) -> int:
        return sum(len(encoder.names()) for encoder in self._dense)

    def settings(self) -> dict[str, Any]:
        """What `load` needs beside `arrays`; JSON-able."""
        pairs = zip(self.features, self.encoders, strict=True)
        return {"features": [{"column": f.column, "kind": f.kind, **encoder.settings()} for f, encoder in pairs]}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What `load` needs beside `settings`, by name; int64 and float32."""
        return {
            f"{place}.{name}": array
            for place, encoder in enumerate(self.encoders)
            for name, array in encoder.arrays().items()
        }

    @classmethod
    def load(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> FeatureEncoder:
        """An encoder that gives the same content to the bit.

        Raises:
            ValueError: settings and arrays are not sound, or do not fit each other.
        """
        entries = settings.get("features") if isinstance(settings, dict) else None
        require(isinstance(entries, list), "features are no list")
        assert isinstance(entries, list)
        features, encoders = [], []
        for place, entry in enumerate(entries):
            require(isinstance(entry, dict), f"feature {place} is no mapping")
            column, kind = entry.get("column"), entry.get("kind")
            require(isinstance(column, str), f"feature {place} has no column")
            require(kind in KINDS, f"feature {column!r} has the kind {kind!r}")
            own = {name.partition(".")[2]: array for name, array in arrays.items() if name.startswith(f"{place}.")}
            try:
                encoders.append(_ENCODERS[kind].load(column, entry, own))
            except ValueError as error:
                raise ValueError(f"feature {column!r}: {error}") from None
            features.append(Feature(column, kind))
        require(len({feature.column for feature in features}) == len(features), "a feature is repeated")
        return cls(features, encoders)

    def notes(self, table: pl.DataFrame) -> list[str]:
        """What of a table is missing, unknown or left out, in sentences with counts and an example."""
        _check_columns(table, self.features)
        return [note for encoder in self.encoders for note in encoder.notes(table)]


def _check_columns(table: pl.DataFrame, features: Sequence[Feature]) -> None:
    for feature in features:
        if feature.column not in table.columns:
            raise DataError(
                f"The {kind_of_table(table)} table has no column {feature.column!r}, which is a declared feature.",
                did_you_mean(feature.column, table.columns) + " Values may be missing, columns may not.",
            )
        check_type(table, feature)
