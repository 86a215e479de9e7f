"""A run on disk: everything needed to answer, and to believe, without the data it was trained on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from safetensors.torch import save

from rediffuse.data.files import atomic_write_bytes, atomic_write_text, parquet_bytes, sha256_file
from rediffuse.data.histories import Histories
from rediffuse.errors import RunError
from rediffuse.models import model_class
from rediffuse.models.base import Model
from rediffuse.training.checkpoint import load_tensors, load_weights

FORMAT = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Run:
    """A finished (or interrupted and finished later) training.

    Attributes:
        path: the run folder.
        config: content of its config.json.
        validation: validation metrics of the weights that were kept, or None without a validation part.
        minutes: of training, over all sessions.
    """

    path: Path
    config: dict[str, Any]
    validation: dict[str, float] | None
    minutes: float


@dataclass(frozen=True)
class RunContents:
    """A run folder, read and verified.

    Attributes:
        path: the folder.
        config: content of config.json.
        model: in evaluation mode.
        items: row i describes item number i: item_id, train_count, and title where there is one.
        user_ids: user number -> id.
        histories: training and validation events of every known user.
        digests: sha256 of every file of the run, by name, as its manifest has them.
    """

    path: Path
    config: dict[str, Any]
    model: Model
    items: pl.DataFrame
    user_ids: pl.Series
    histories: Histories
    digests: dict[str, str]


def write_run(
    folder: Path,
    config: dict[str, Any],
    environment: dict[str, Any],
    model: Model,
    items: pl.DataFrame,
    user_ids: pl.Series,
    histories: Histories,
    card: str,
    tables: dict[str, pl.DataFrame],
) -> None:
    """Write the files of a finished run. Each is replaced atomically; the manifest comes last."""
    users = pl.DataFrame({"user_id": user_ids, "history": _as_lists(histories, histories.items)})
    if model.reads_times and histories.times is not None:
        users = users.with_columns(times=_as_lists(histories, histories.times))
    if histories.pseudo is not None:
        users = users.with_columns(pseudo=_as_lists(histories, histories.pseudo).list.sum())
    weights = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    files = {
        "config.json": json.dumps(config, indent=2).encode(),
        "environment.json": json.dumps(environment, indent=2).encode(),
        "items.parquet": parquet_bytes(items),
        "users.parquet": parquet_bytes(users),
        "model.safetensors": save(weights, metadata={"note": json.dumps({"model": config["model"]})}),
        "README.md": card.encode(),
        **{name: parquet_bytes(table) for name, table in tables.items()},
    }
    # A folder that is trained further must not pass for the old run while its files change.
    (folder / MANIFEST).unlink(missing_ok=True)
    add_files(folder, files)


def add_files(folder: Path, files: dict[str, bytes]) -> None:
    """Add or replace files of a run folder and enter them in its manifest."""
    manifest = _read_manifest(folder) if (folder / MANIFEST).exists() else {"format": FORMAT, "files": {}}
    before = len(manifest["files"])
    manifest["files"] = {name: digest for name, digest in manifest["files"].items() if name not in files}
    if len(manifest["files"]) < before:
        # Whoever is killed while files are replaced leaves a run without them, not one whose checksums are wrong.
        atomic_write_text(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    for name, content in files.items():
        atomic_write_bytes(folder / name, content)
        manifest["files"][name] = sha256_file(folder / name)
    atomic_write_text(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def forget_files(folder: Path, names: Iterable[str]) -> None:
    """Take files out of the manifest of a run folder, so that they are no part of the run any more."""
    if (folder / MANIFEST).exists():
        manifest = _read_manifest(folder)
        manifest["files"] = {name: digest for name, digest in manifest["files"].items() if name not in set(names)}
        atomic_write_text(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def read_config(folder: Path) -> dict[str, Any]:
    """The verified config.json of a run.

    Raises:
        RunError: as `read_run`.
    """
    return _verified(folder)[0]


def read_run(folder: str | Path) -> RunContents:
    """Read a run folder and check every file against its manifest.

    Raises:
        RunError: the folder is no run, or a file is missing or is not what was written; the file is named.
    """
    folder = Path(folder)
    config, digests = _verified(folder)
    kind = model_class(config["model"])
    items = pl.read_parquet(folder / "items.parquet")
    users = pl.read_parquet(folder / "users.parquet")
    model = kind(kind.Config.build(None, config["config"]), len(items), len(users))
    load_weights(folder / "model.safetensors", model, load_tensors(folder / "model.safetensors")[0])
    model.resolve(config["resolved"])
    model.eval()
    lists = users["history"]
    offsets = np.concatenate(([0], lists.list.len().to_numpy().astype(np.int64).cumsum()))
    flat = lists.explode(empty_as_null=False).drop_nulls().to_numpy().astype(np.int32)
    times = users["times"].explode(empty_as_null=False).drop_nulls().to_numpy() if "times" in users.columns else None
    histories = Histories(offsets, flat, times)
    if "pseudo" in users.columns:
        written = np.repeat(users["pseudo"].to_numpy(), histories.lengths)
        histories = replace(histories, pseudo=histories.positions < written)
    return RunContents(folder, config, model, items, users["user_id"], histories, digests)


def _verified(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """config.json, and what the manifest says of every file; raises as `read_run`."""
    manifest = _read_manifest(folder)
    for name, digest in manifest["files"].items():
        path = folder / name
        again = f"build it again: rediffuse index {folder}" if name.startswith("index.") else "train again."
        if not path.is_file():
            raise RunError(f"{path} is missing.", f"Restore it from a copy, or {again}")
        if sha256_file(path) != digest:
            raise RunError(f"{path} is not the file that was written: its checksum differs.", f"Restore it, or {again}")
    for name in ("config.json", "items.parquet", "users.parquet", "model.safetensors"):
        if name not in manifest["files"]:
            raise RunError(f"{folder / MANIFEST} does not list {name}.", "Restore the manifest, or train again.")
    return json.loads((folder / "config.json").read_text(encoding="utf-8")), manifest["files"]


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        state = "holds unfinished training" if (folder / "checkpoints").is_dir() else "is not a run folder"
        raise RunError(
            f"{folder} {state}: it has no {MANIFEST}.", "Give the folder of a finished run, or finish it with --resume."
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version, _ = manifest["format"], manifest["files"].items()
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error}).", "Restore it from a copy, or train again.") from None
    if version != FORMAT:
        raise RunError(
            f"{path} has format {version}; this version reads format {FORMAT}.", "Use the version that wrote it."
        )
    return manifest


def _as_lists(histories: Histories, values: NDArray[Any]) -> pl.Series:
    """``values`` (events,) as one list per row."""
    frame = pl.DataFrame({"user": histories.owners, "value": values})
    lists = frame.group_by("user", maintain_order=True).agg(pl.col("value"))
    every = pl.DataFrame({"user": np.arange(len(histories))}).join(lists, on="user", how="left", maintain_order="left")
    return every["value"].fill_null([]).cast(pl.List(frame["value"].dtype))
