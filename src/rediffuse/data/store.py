"""The format of datasets on disk: ``.npy`` files of interactions, Parquet files of everything else, ``manifest.json``.

The manifest holds the size and sha256 of every file. Interactions are mapped into memory when a dataset is loaded:
processes that load it share one copy, and what is not read takes no memory.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rediffuse.data.checks import require, require_keys, require_plain_names
from rediffuse.errors import DataError
from rediffuse.files import atomic_folder, parquet_bytes, sha256_file, sha256_json

FORMAT, VERSION = "rediffuse-dataset", 3
MANIFEST = "manifest.json"
# What a manifest holds beside its format and version, and the types.
_TEXT = (str, type(None))
_KEYS: dict[str, Any] = {
    **{"files": dict, "schemes": list, "report": dict, "title": _TEXT, "report.notes": (list, type(None))},
    **dict.fromkeys(("has_timestamps", "item_table", "user_table"), bool),
    **dict.fromkeys(("fingerprint", "interactions_fingerprint"), str),
}
HISTORY_ARRAYS = ("offsets", "items", "times", "ratings", "synthetic", "target")


def write_dataset(
    folder: Path, frames: dict[str, pl.DataFrame], arrays: dict[str, NDArray[Any]], metadata: dict[str, Any]
) -> None:
    """Write the files of a dataset and their manifest; an earlier dataset at ``folder`` is replaced at the end.

    Args:
        folder: new, or a dataset.
        frames: file name -> table.
        arrays: file name -> array.
        metadata: content of the manifest, without the files.

    Raises:
        DataError: ``folder`` holds something other than a dataset, or cannot be written.
    """
    try:
        refuse_foreign(folder)
        with atomic_folder(folder) as new:
            for name, frame in frames.items():
                (new / name).write_bytes(parquet_bytes(frame))
            for name, array in arrays.items():
                np.save(new / name, array, allow_pickle=False)
            files = {
                name: {"bytes": (new / name).stat().st_size, "sha256": sha256_file(new / name)}
                for name in (*frames, *arrays)
            }
            manifest = {"format": FORMAT, "version": VERSION, **metadata, "files": files}
            manifest["sha256"] = sha256_json(manifest)
            (new / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written: {error.strerror or error}.",
            "Check the permissions and the space on the disk. What was there before is untouched.",
        ) from error


def array_file(name: str) -> str:
    return f"interactions.{name}.npy"


def scheme_array(index: int) -> str:
    # Schemes have names of any kind; the manifest holds them, the file is numbered.
    return f"subset_{index}"


def refuse_foreign(folder: Path) -> None:
    """Refuse to replace a folder, which removes what is in it, unless it is empty or holds a dataset and nothing else.

    Raises:
        DataError: it holds something else.
    """
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


def files_of(manifest: bytes) -> set[str] | None:
    """The files that the manifest of a dataset lists; None if it is of something else."""
    try:
        content = json.loads(manifest)
        return set(content["files"]) if content["format"] == FORMAT else None
    except (ValueError, TypeError, KeyError):
        return None


def manifest_bytes(folder: Path) -> bytes | None:
    """The content of a dataset's manifest, None if there is none."""
    try:
        return (folder / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def parse_manifest(path: Path, content: bytes | None) -> dict[str, Any]:
    """The verified content of a manifest.

    Args:
        path: path of the manifest, for errors.
        content: content of the file; None if there is no file.

    Raises:
        DataError: there is none, it is damaged, or it is of another format or version.
    """
    if path.parent.is_file():
        raise DataError(
            f"{path.parent} is a file, not the folder of a dataset.",
            "Read tables with rediffuse.read_interactions or `rediffuse prepare`.",
        )
    if content is None:
        raise DataError(
            f"{path.parent} holds no dataset: {path} is missing.",
            "Name a folder that `rediffuse prepare`, `rediffuse data` or Dataset.save wrote.",
        )
    remedy = "Write the dataset again from its source."
    try:
        manifest = json.loads(content)
    except (ValueError, RecursionError):
        raise DataError(f"{path} is damaged: it is not JSON.", remedy) from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"{path} is not the manifest of a dataset.", "Name a folder that Dataset.save wrote.")
    if manifest.get("version") != VERSION:
        raise DataError(
            f"{path} has format version {manifest.get('version')}; this Rediffuse reads version {VERSION}.",
            "Write the dataset again with this version, or install the one that wrote it.",
        )
    if manifest.pop("sha256", None) != sha256_json(manifest):
        raise DataError(f"{path} was changed after it was written.", remedy)
    try:
        require_keys(manifest, _KEYS)
        texts = [*manifest["schemes"], *(manifest["report"].get("notes") or [])]
        require(all(isinstance(text, str) for text in texts), "a scheme or a note is not text")
        require_plain_names(manifest["files"])
        for name, known in manifest["files"].items():
            require_keys(known, {"bytes": int, "sha256": str}, f"{name}: ")
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}.", remedy) from None
    return manifest


def verify_file(path: Path, known: dict[str, Any]) -> None:
    """Compare a file with the size and checksum in ``known``.

    Raises:
        DataError: it is missing, or they differ.
    """
    remedy = "Restore the file, or write the dataset again from its source."
    if not path.is_file():
        raise DataError(f"{path} is missing.", remedy)
    size = path.stat().st_size
    if size != known["bytes"]:
        raise DataError(f"{path} has {size:,} bytes and should have {known['bytes']:,}.", remedy)
    if sha256_file(path) != known["sha256"]:
        raise DataError(f"{path} was changed after it was written: its sha256 is another.", remedy)
