"""What item and user tables say, in numbers: as sets and as vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rediffuse.data.feature_columns import is_vector, sets_in, vectors_in

if TYPE_CHECKING:
    from scipy import sparse

# Columns that hold several values per item; the first that exists is used.
COLUMNS = ("genres", "genre", "categories", "category", "tags", "class")
# Columns that hold a vector per row; the first that exists is used.
VECTORS = ("vector", "features", "embedding")
MOST_VALUES = 256


def item_features(table: pl.DataFrame | None) -> sparse.csr_array | None:
    """(num_items, values) binary matrix of the first column of sets: lists, or text separated by ``|`` or ``;``.

    Args:
        table: row i describes item i, see `rediffuse.data.dataset.Dataset.items`.

    Returns:
        None without a table or such a column.
    """
    name = next((c for c in COLUMNS if table is not None and c in table.columns), None)
    if table is None or name is None or not isinstance(table[name].dtype, pl.String | pl.List):
        return None
    return sets_of(table[name])


def sets_of(column: pl.Series) -> sparse.csr_array:
    """(rows, values) binary matrix of a column of sets; its values are in the order of their first appearance.

    Args:
        column: lists; text separated by ``|`` or ``;``; or one value per row. Missing values and empty text are none.
    """
    from scipy import sparse  # a tenth of a second, which loading a recommender does not need

    values = sets_in(column)
    numbers = values.select(pl.col("value").unique(maintain_order=True)).with_row_index("number")
    number = values.join(numbers, on="value", how="left", maintain_order="left")["number"].to_numpy().astype(np.int64)
    ones = np.ones(len(number), dtype=np.float32)
    return sparse.csr_array((ones, (values["row"].to_numpy(), number)), shape=(len(column), len(numbers)))


def most_common(sets: sparse.csr_array, most: int = MOST_VALUES) -> NDArray[np.float32]:
    """(rows, up to ``most``) the columns of `sets_of` with the most rows, the commonest first."""
    common = np.argsort(-np.ravel(sets.sum(axis=0)), kind="stable")[:most]
    return sets[:, common].toarray()


def feature_vectors(table: pl.DataFrame | None) -> NDArray[np.float32] | None:
    """(rows, width) numbers about each row of a table; rows without any are zero.

    They come from the first of the columns vector, features and embedding that holds lists of numbers; without one,
    they are the sets of `item_features` as zeros and ones, of their 256 most common values.

    Args:
        table: the item or user table, see `rediffuse.data.dataset.Dataset`.

    Returns:
        None without a table or such a column, or where no row has any.

    Raises:
        DataError: vectors of different lengths, or values that are not finite numbers.
    """
    name = next((c for c in VECTORS if table is not None and c in table.columns and is_vector(table[c].dtype)), None)
    if table is None or name is None:
        sets = item_features(table)
        if sets is None or not sets.nnz:
            return None
        return most_common(sets)
    known, vectors = vectors_in(table, name)
    return vectors if known.any() else None
