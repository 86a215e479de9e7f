"""DiffNet's data: ``NAME.train.rating``, ``.val.rating``, ``.test.rating`` and ``NAME.links``."""

from __future__ import annotations

from pathlib import Path

from rediffuse.data.dataset import Dataset
from rediffuse.readers.interactions import read_interactions
from rediffuse.readers.research.files import (
    find,
    integers,
    labelled,
    need,
    vector_table,
    with_notes,
    without_repeats,
)

_FILES = {"train": "*.train.rating", "valid": "*.val.rating", "test": "*.test.rating"}


def read(folder: Path) -> Dataset:
    """Users and items are numbered from 0; the third column of the rating files is 1 everywhere, and not read.

    ``user_vector.npy`` and ``item_vector.npy`` become the column ``vector`` of the tables if they are there.

    Raises:
        DataError: a file is missing, or holds something else.
    """
    parts = (
        (subset, integers(need(folder, name, purpose="pairs"), "user_id", "item_id")) for subset, name in _FILES.items()
    )
    pairs, note = without_repeats(labelled(parts))
    links = integers(need(folder, "*.links", purpose="links between users"), "source", "target")
    users, items = (
        None if (path := find(folder, f"{side}_vector.npy")) is None else vector_table(path, f"{side}_id")
        for side in ("user", "item")
    )
    dataset = read_interactions(
        pairs.drop("split"),
        splits=pairs,
        social=links,
        users=users,
        items=items,
    )
    absent = None
    if users is None or items is None:
        absent = "Published figures with features need user_vector.npy and item_vector.npy, which are not all there."
    return with_notes(dataset, note, absent)
