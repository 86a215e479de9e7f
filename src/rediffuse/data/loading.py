"""Loading a dataset that `Dataset.save` wrote."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from rediffuse import forks
from rediffuse.arguments import require_path, wrong_type
from rediffuse.data.dataset import Dataset, KnowledgeGraph, SocialGraph
from rediffuse.data.histories import Histories
from rediffuse.data.store import (
    HISTORY_ARRAYS,
    MANIFEST,
    array_file,
    manifest_bytes,
    parse_manifest,
    scheme_array,
    verify_file,
)
from rediffuse.errors import DataError
from rediffuse.table_files import read_parquet

# How often loading starts again when another dataset replaces the folder meanwhile.
_TRIES = 3


def load_dataset(folder: str | PathLike[str]) -> Dataset:
    """Open what `Dataset.save` wrote, after checking every file against the manifest.

    Interactions are mapped into memory and cannot be written to: processes that load the same folder share one copy.

    Raises:
        DataError: a file is missing, damaged or of another version; the error names it.
        ConfigError: ``folder`` is not a path.
    """
    folder = require_path("folder", folder, "Give the folder of a dataset; read_interactions reads tables.")
    forks.enter()
    for _ in range(_TRIES):
        before = manifest_bytes(folder)
        try:
            dataset = _load(folder, parse_manifest(folder / MANIFEST, before))
        except Exception:  # files of two datasets need not fit together
            if manifest_bytes(folder) == before:
                raise
        else:
            if manifest_bytes(folder) == before:
                return dataset
    raise DataError(
        f"{folder} was replaced again and again while it was read.", "Load it when no process saves datasets there."
    )


def as_dataset(name: str, value: Any, wanted: str = "a Dataset or a dataset folder") -> Dataset:
    """A dataset as it is, or the dataset of a folder.

    Args:
        name: name of the argument, for errors.
        value: what was passed for it.
        wanted: what the argument may be, for errors.

    Raises:
        ConfigError: it is something else.
        DataError: the folder holds no dataset.
    """
    if isinstance(value, Dataset):
        return value
    if isinstance(value, str | PathLike):
        return load_dataset(value)
    remedy = 'Read it first: data = rediffuse.read_interactions(table, user="...", item="...").'
    if isinstance(getattr(value, "dataset", None), Dataset):
        remedy = f"Pass the dataset of the split: {name}.dataset."
    raise wrong_type(name, value, wanted, remedy)


def _load(folder: Path, manifest: dict[str, Any]) -> Dataset:
    for name, known in manifest["files"].items():
        verify_file(folder / name, known)

    def read(name: str) -> pl.DataFrame:
        return read_parquet(folder / name)

    def mapped(name: str) -> Any:
        known = array_file(name) in manifest["files"]
        return np.asarray(np.load(folder / array_file(name), mmap_mode="r", allow_pickle=False)) if known else None

    histories = Histories(*(mapped(name) for name in HISTORY_ARRAYS))
    users, items = read("users.parquet"), read("items.parquet")
    social = kg = None
    if "social.parquet" in manifest["files"]:
        links = read("social.parquet")
        social = SocialGraph(_array(links["source"], np.int32), _array(links["target"], np.int32))
    if "kg.parquet" in manifest["files"]:
        triples = read("kg.parquet")
        kg = KnowledgeGraph(
            _array(triples["head"], np.int32),
            _array(triples["relation"], np.int32),
            _array(triples["tail"], np.int32),
            read("entities.parquet")["entity_id"],
            read("relations.parquet")["relation_id"],
            np.ascontiguousarray(read("item_entity.parquet").to_numpy().astype(np.int32).reshape(-1, 2)),
        )
    dataset = Dataset(
        interactions=histories,
        user_ids=users["user_id"],
        item_ids=items["item_id"],
        has_timestamps=manifest["has_timestamps"],
        items=items if manifest["item_table"] else None,
        title=manifest["title"],
        users=users if manifest["user_table"] else None,
        social=social,
        kg=kg,
        given={scheme: mapped(scheme_array(i)) for i, scheme in enumerate(manifest["schemes"])},
        report=manifest["report"],
    )
    # The files are those of the manifest, so their fingerprints need not be computed again.
    for name in ("fingerprint", "interactions_fingerprint"):
        dataset.__dict__[name] = manifest[name]
    return dataset


def _array(column: pl.Series, dtype: Any = None) -> Any:
    return np.ascontiguousarray(column.to_numpy(), dtype=dtype)
