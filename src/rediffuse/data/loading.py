"""Loading a dataset that `Dataset.save` wrote."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from rediffuse import forks
from rediffuse.addresses import address_of, refuse_unknown
from rediffuse.arguments import require_path, wrong_type
from rediffuse.data.checks import check_histories, ids_of, numbers_of, require
from rediffuse.data.dataset import Dataset, KnowledgeGraph, SocialGraph
from rediffuse.data.histories import Histories
from rediffuse.data.item_features import features_from
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
from rediffuse.files import os_error
from rediffuse.objects.folders import fetch_folder
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
    refuse_unknown("folder", folder)
    forks.enter()
    if (address := address_of(folder)) is not None:
        folder = fetch_folder(address, _digests, DataError)
    folder = require_path("folder", folder, "Give the folder of a dataset; read_interactions reads tables.")
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


def _digests(path: Path, manifest: bytes | None) -> dict[str, str]:
    return {name: known["sha256"] for name, known in parse_manifest(path, manifest)["files"].items()}


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
    try:
        return _read(folder, manifest)
    except DataError:
        raise
    except (Exception, pl.exceptions.PanicException) as error:  # a file of another form than its name promises
        cause = os_error(error) if isinstance(error, Exception) else None
        said = str(cause or error).splitlines() or [type(error).__name__]
        raise DataError(
            f"{folder} is no sound dataset, though its checksums hold: {said[0]}.",
            "Write the dataset again from its source.",
        ) from error


def _read(folder: Path, manifest: dict[str, Any]) -> Dataset:
    """The dataset of verified files; what they hold is checked here, and nowhere later."""

    def read(name: str) -> pl.DataFrame:
        require(name in manifest["files"], f"the manifest does not list {name}")
        return read_parquet(folder / name)

    def mapped(name: str) -> Any:
        known = array_file(name) in manifest["files"]
        return np.asarray(np.load(folder / array_file(name), mmap_mode="r", allow_pickle=False)) if known else None

    users, items = read("users.parquet"), read("items.parquet")
    user_ids, item_ids = ids_of(users, "user_id"), ids_of(items, "item_id")
    title = manifest["title"]
    require(title is None or title in items.columns, f"there is no column {title!r} of titles")
    histories = Histories(*(mapped(name) for name in HISTORY_ARRAYS))
    require(histories.offsets is not None and histories.items is not None, "interactions are missing")
    check_histories(histories, len(users), len(items))
    social = kg = None
    if "social.parquet" in manifest["files"]:
        links = read("social.parquet")
        social = SocialGraph(*(numbers_of(links[name], name, len(users)) for name in ("source", "target")))
    if "kg.parquet" in manifest["files"]:
        triples, pairs = read("kg.parquet"), read("item_entity.parquet")
        entities, relations = (
            ids_of(read("entities.parquet"), "entity_id"),
            ids_of(read("relations.parquet"), "relation_id"),
        )
        require(pairs.width == 2, "item_entity.parquet has not two columns")
        linked = [numbers_of(pairs[:, n], pairs.columns[n], len(ids)) for n, ids in enumerate((items, entities))]
        kg = KnowledgeGraph(
            numbers_of(triples["head"], "head", len(entities)),
            numbers_of(triples["relation"], "relation", len(relations)),
            numbers_of(triples["tail"], "tail", len(entities)),
            entities,
            relations,
            np.stack(linked, axis=1),
        )
    given = {scheme: mapped(scheme_array(i)) for i, scheme in enumerate(manifest["schemes"])}
    for scheme, subset in given.items():
        require(subset is not None and subset.dtype == np.int8, f"the split {scheme!r} is missing")
        assert subset is not None
        require(subset.shape == histories.items.shape, f"the split {scheme!r} has another number of interactions")
        numbers_of(subset, f"the split {scheme!r}", 3, low=-1)
    dataset = Dataset(
        interactions=histories,
        user_ids=user_ids,
        item_ids=item_ids,
        has_timestamps=manifest["has_timestamps"],
        items=items if manifest["item_table"] else None,
        title=title,
        users=users if manifest["user_table"] else None,
        social=social,
        kg=kg,
        given=given,
        report=manifest["report"],
        item_features=features_from(manifest.get("item_features"), items, "item_features"),
        user_features=features_from(manifest.get("user_features"), users, "user_features"),
    )
    # The files are those of the manifest, so their fingerprints need not be computed again.
    for name in ("fingerprint", "interactions_fingerprint"):
        dataset.__dict__[name] = manifest[name]
    return dataset
