"""DiffRec's data: ``train_list.npy``, ``valid_list.npy`` and ``test_list.npy``, rows of user and item."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from rediffuse.data.dataset import Dataset
from rediffuse.readers.interactions import read_interactions
from rediffuse.readers.research.files import (
    SUBSETS,
    array,
    find,
    labelled,
    need,
    vector_table,
    with_notes,
    without_repeats,
)


def read(folder: Path) -> Dataset:
    """Users and items are numbered from 0. Rows of a user are in order of time in train, which T-DiffRec uses.

    ``item_emb.npy``, the item vectors of L-DiffRec, becomes the column ``vector`` of the item table if it is there.

    Raises:
        DataError: a file is missing, or holds something else.
    """
    parts = ((subset, _pairs(need(folder, f"{subset}_list.npy", purpose="pairs"))) for subset in SUBSETS)
    pairs, note = without_repeats(labelled(parts))
    vectors = find(folder, "item_emb.npy")
    items = None if vectors is None else vector_table(vectors, "item_id")
    return with_notes(read_interactions(pairs.drop("split"), items=items, splits=pairs), note)


def _pairs(path: Path) -> pl.DataFrame:
    return pl.DataFrame(array(path, "iu", 2).astype(np.int64), ["user_id", "item_id"], orient="row")
