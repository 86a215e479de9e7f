"""What is known of items beyond who touched them, as sets."""

from __future__ import annotations

import numpy as np
import polars as pl
from scipy import sparse

# Columns that hold several values per item, in the order in which they are looked for.
COLUMNS = ("genres", "genre", "categories", "category", "tags", "class")
SEPARATOR = r"\s*[|;]\s*"


def item_features(table: pl.DataFrame | None) -> sparse.csr_array | None:
    """(num_items, values) binary matrix of the first column of sets: lists, or text with ``|`` or ``;`` between.

    Args:
        table: row i describes item i, see `rediffuse.data.dataset.Dataset.items`.

    Returns:
        None without a table or such a column.
    """
    name = next((c for c in COLUMNS if table is not None and c in table.columns), None)
    if table is None or name is None:
        return None
    column = table[name]
    if column.dtype == pl.String:
        parts = column.str.replace_all(SEPARATOR, "|").str.split("|")
    elif isinstance(column.dtype, pl.List):
        parts = column.cast(pl.List(pl.String))
    else:
        return None
    values = pl.DataFrame({"item": np.arange(len(table)), "value": parts}).explode("value").drop_nulls()
    values = values.filter(pl.col("value") != "").unique(maintain_order=True)
    number = values["value"].cast(pl.Categorical).to_physical().to_numpy().astype(np.int64)
    _, number = np.unique(number, return_inverse=True)
    ones = np.ones(len(number), dtype=np.float32)
    shape = (len(table), int(number.max(initial=-1)) + 1)
    return sparse.csr_array((ones, (values["item"].to_numpy(), number)), shape=shape)
