"""Datasets on disk: ``.npy`` files of events, Parquet files of all else, and ``manifest.json`` with the sha256 of each.

Events are mapped into memory when a dataset is loaded: processes that load it share one copy, and what is not read
takes no memory.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rediffuse.data.dataset import Dataset, KnowledgeGraph, SocialGraph
from rediffuse.data.files import atomic_folder, sha256_file, sha256_json
from rediffuse.data.histories import Histories
from rediffuse.errors import DataError

FORMAT, VERSION = "rediffuse-dataset", 2
MANIFEST = "manifest.json"
# How often loading begins again when another dataset takes the folder's place meanwhile.
_TRIES = 3
_COLUMNS = ("offsets", "items", "times", "ratings", "pseudo")


def save(dataset: Dataset, folder: Path) -> Path:
    """See `Dataset.save`."""
    try:
        return _save(dataset, folder)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written: {error.strerror or error}.",
            "Check the permissions and the space on the disk. What was there before is untouched.",
        ) from error


def _save(dataset: Dataset, folder: Path) -> Path:
    refuse_foreign(folder)
    frames, arrays = _frames(dataset), _arrays(dataset)
    with atomic_folder(folder) as new:
        for name, frame in frames.items():
            frame.write_parquet(new / name, compression="zstd")
        for name, array in arrays.items():
            np.save(new / name, array, allow_pickle=False)
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "counts": {"users": dataset.num_users, "items": dataset.num_items, "events": dataset.num_events},
            "fingerprint": dataset.fingerprint,
            "interactions_fingerprint": dataset.interactions_fingerprint,
            "has_timestamps": dataset.has_timestamps,
            "title": dataset.title,
            "item_table": dataset.items is not None,
            "user_table": dataset.users is not None,
            "schemes": list(dataset.given),
            "report": dataset.report,
            "files": {
                name: {"bytes": (new / name).stat().st_size, "sha256": sha256_file(new / name)}
                for name in (*frames, *arrays)
            },
        }
        manifest["sha256"] = sha256_json(manifest)
        (new / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")
    return folder


def load(folder: Path) -> Dataset:
    """See `Dataset.load`."""
    for _ in range(_TRIES):
        before = _manifest_bytes(folder)
        try:
            dataset = _load(folder, _manifest(folder / MANIFEST, before))
        except Exception:  # of two folders nothing need fit together
            if _manifest_bytes(folder) == before:
                raise
        else:
            if _manifest_bytes(folder) == before:
                return dataset
    raise DataError(
        f"{folder} was replaced again and again while it was read.", "Load it when nobody saves datasets there."
    )


def _load(folder: Path, manifest: dict[str, Any]) -> Dataset:
    for name, known in manifest["files"].items():
        _verify(folder / name, known)

    def read(name: str) -> pl.DataFrame:
        return pl.read_parquet(folder / name)

    def mapped(name: str) -> Any:
        known = _array_file(name) in manifest["files"]
        return np.asarray(np.load(folder / _array_file(name), mmap_mode="r", allow_pickle=False)) if known else None

    histories = Histories(*(mapped(name) for name in _COLUMNS))
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
        given={scheme: mapped(_part(i)) for i, scheme in enumerate(manifest["schemes"])},
        report=manifest["report"],
    )
    # The files are those the manifest speaks of, so their fingerprints need not be computed again.
    for name in ("fingerprint", "interactions_fingerprint"):
        dataset.__dict__[name] = manifest[name]
    return dataset


def _arrays(dataset: Dataset) -> dict[str, NDArray[Any]]:
    arrays = {name: getattr(dataset.interactions, name) for name in _COLUMNS}
    arrays |= {_part(i): part for i, part in enumerate(dataset.given.values())}
    return {_array_file(name): array for name, array in arrays.items() if array is not None}


def _array_file(name: str) -> str:
    return f"interactions.{name}.npy"


def _frames(dataset: Dataset) -> dict[str, pl.DataFrame]:
    frames = {
        "users.parquet": dataset.users if dataset.users is not None else dataset.user_ids.to_frame("user_id"),
        "items.parquet": dataset.items if dataset.items is not None else dataset.item_ids.to_frame("item_id"),
    }
    if dataset.social is not None:
        frames["social.parquet"] = pl.DataFrame({"source": dataset.social.source, "target": dataset.social.target})
    if dataset.kg is not None:
        kg = dataset.kg
        frames["kg.parquet"] = pl.DataFrame({"head": kg.head, "relation": kg.relation, "tail": kg.tail})
        frames["entities.parquet"] = kg.entity_ids.to_frame("entity_id")
        frames["relations.parquet"] = kg.relation_ids.to_frame("relation_id")
        frames["item_entity.parquet"] = pl.DataFrame({"item": kg.item_entity[:, 0], "entity": kg.item_entity[:, 1]})
    return frames


def _part(index: int) -> str:
    # Schemes have names of any kind; the manifest holds them, the file is numbered.
    return f"part_{index}"


def _array(column: pl.Series, dtype: Any = None) -> Any:
    return np.ascontiguousarray(column.to_numpy(), dtype=dtype)


def refuse_foreign(folder: Path) -> None:
    """Replacing a folder removes what is in it, so it must hold a dataset of ours and nothing else."""
    if not folder.exists():
        return
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    if folder.is_dir() and not names:
        return
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        ours = {MANIFEST, *manifest["files"]} if manifest["format"] == FORMAT else set()
    except (OSError, ValueError, TypeError, KeyError):
        ours = set()
    if not ours:
        raise DataError(
            f"{folder} exists and is not a dataset written by Rediffuse; it is left alone.",
            "Choose another folder, or remove it yourself.",
        )
    if names - ours:
        raise DataError(
            f"{folder} holds files that are not part of the dataset: {', '.join(sorted(names - ours))}.",
            "Move them elsewhere, as the folder is replaced as a whole, or choose another folder.",
        )


def _manifest_bytes(folder: Path) -> bytes | None:
    try:
        return (folder / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def _manifest(path: Path, content: bytes | None) -> dict[str, Any]:
    if content is None:
        raise DataError(
            f"{path.parent} holds no dataset: {path} is missing.",
            "Name a folder that `rediffuse prepare`, `rediffuse data` or Dataset.save wrote.",
        )
    again = "Write the dataset again from its source."
    try:
        manifest = json.loads(content)
    except ValueError:
        raise DataError(f"{path} is damaged: it is not JSON.", again) from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"{path} is not the manifest of a dataset.", "Name a folder that Dataset.save wrote.")
    if manifest.get("version") != VERSION:
        raise DataError(
            f"{path} has format version {manifest.get('version')}; this Rediffuse reads version {VERSION}.",
            "Write the dataset again with this version, or install the one that wrote it.",
        )
    if manifest.pop("sha256", None) != sha256_json(manifest):
        raise DataError(f"{path} was changed after it was written.", again)
    return manifest


def _verify(path: Path, known: dict[str, Any]) -> None:
    again = "Restore the file, or write the dataset again from its source."
    if not path.is_file():
        raise DataError(f"{path} is missing.", again)
    size = path.stat().st_size
    if size != known["bytes"]:
        raise DataError(f"{path} has {size:,} bytes and should have {known['bytes']:,}.", again)
    if sha256_file(path) != known["sha256"]:
        raise DataError(f"{path} was changed after it was written: its sha256 is another.", again)
