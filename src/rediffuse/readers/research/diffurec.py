"""DiffuRec's data: ``dataset.pkl``, a dict with the lists of items of each user in train, val and test."""

from __future__ import annotations

from pathlib import Path

from rediffuse.data.dataset import Dataset
from rediffuse.errors import DataError
from rediffuse.readers.interactions import read_interactions
from rediffuse.readers.research.files import labelled, need, sequences, with_positions
from rediffuse.readers.research.pickles import read_pickle

_KEYS = {"train": "train", "valid": "val", "test": "test"}


def read(folder: Path) -> Dataset:
    """Users are numbered from 0, items from 1 (0 is padding there); the order is that of the lists.

    Raises:
        DataError: the file is missing, or holds something else.
    """
    path = need(folder, "dataset.pkl", purpose="the sequences")
    content = read_pickle(path)
    if type(content) is not dict or not set(_KEYS.values()) <= content.keys():
        keys = sorted(map(str, content))[:10] if type(content) is dict else type(content).__name__
        raise DataError(f"{path} holds {keys}, not train, val and test.", "Name the folder of DiffuRec's dataset.pkl.")
    parts = ((subset, sequences(content[key], f"{path}: {key!r}")) for subset, key in _KEYS.items())
    pairs = with_positions(labelled(parts))
    return read_interactions(pairs.drop("split"), order="position", splits=pairs)
