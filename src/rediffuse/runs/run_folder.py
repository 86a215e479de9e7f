"""A run on disk: everything needed to recommend and to verify the results, without the training data."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rediffuse.addresses import AddressPath, address_of, refuse_unknown
from rediffuse.arguments import require_path
from rediffuse.config import WITH_HISTORY, ModelConfig
from rediffuse.data.checks import require_plain_names
from rediffuse.data.histories import Histories
from rediffuse.display import Displayed
from rediffuse.errors import ConfigError, RunError
from rediffuse.files import Content, atomic_write_text, parquet_bytes, sha256_file, sha256_json, staged_files
from rediffuse.models import external, model_class
from rediffuse.models.base import Model
from rediffuse.objects.folders import changed, fetch_folder
from rediffuse.objects.store import read_bytes
from rediffuse.runs import checks, former_options, hub
from rediffuse.runs.lock import PATIENCE, folder_lock
from rediffuse.runs.tensors import load_tensors, load_weights, write_tensors
from rediffuse.table_files import read_parquet

FORMAT = 1
MANIFEST = "manifest.json"
LOG = "metrics.jsonl"
ITEM_TABLE = "item_table.parquet"
KNOWLEDGE = "knowledge.parquet"
# The files that every run has, and that `read_run` reads.
CORE = ("config.json", "items.parquet", "users.parquet", "model.safetensors")


class DamagedManifest(RunError):
    """A manifest that has changed since it was written."""


@dataclass(frozen=True, repr=False)
class Run(Displayed):
    """The result of a training.

    Attributes:
        path: the run folder.
        config: content of its config.json.
        validation: validation metrics of the weights that were kept; None without a validation subset.
        minutes: training time over all sessions.
    """

    path: Path
    config: dict[str, Any]
    validation: dict[str, float] | None
    minutes: float

    def _display(self) -> tuple[str, dict[str, Any]]:
        split, metrics = self.config.get("split", {}), self.validation or {}
        selected_by = self.config.get("config", {}).get("metric")
        first = [
            name
            for name in (f"{WITH_HISTORY}{selected_by}", selected_by, "hr@10", "ndcg@10", "recall@20")
            if name in metrics
        ]
        return f"Run {self.path}", {
            "model": self.config.get("model"),
            "preset": self.config.get("preset"),
            "seed": self.config.get("seed"),
            "split": split.get("name"),
            "minutes": round(self.minutes, 2),
            "selected by": selected_by,
            "validation": {name: metrics[name] for name in dict.fromkeys(first)} or None,
        }


@dataclass(frozen=True)
class RunContents:
    """The content of a run folder, verified.

    Attributes:
        path: the folder.
        config: content of config.json.
        model: in evaluation mode.
        items: row i describes item number i: item_id, train_count and, if items have titles, title.
        user_ids: the id of each user number; first the users in training, then those of fresh histories.
        histories: all interactions of all users, with times if the data have them.
        held_out: (interactions,) True: held out of training and validation by the split, or added to the histories
            after the training; None: none was.
        item_table: row i describes item number i, as in the dataset; None if it has no such table.
        digests: sha256 of every file that the manifest lists, by name.
        knowledge: edges of the knowledge graph that the model learned from, or None.
    """

    path: Path
    config: dict[str, Any]
    model: Model
    items: pl.DataFrame
    user_ids: pl.Series
    histories: Histories
    held_out: NDArray[np.bool_] | None
    item_table: pl.DataFrame | None
    digests: dict[str, str]
    knowledge: pl.DataFrame | None = None

    @property
    def before_test(self) -> Histories:
        """The interactions that were not held out: what the model may have learned from."""
        return self.histories if self.held_out is None else self.histories.where(~self.held_out)

    @property
    def weights(self) -> str:
        """sha256 of model.safetensors."""
        return self.digests["model.safetensors"]


def write_run(
    folder: Path,
    config: dict[str, Any],
    environment: dict[str, Any],
    model: Model,
    items: pl.DataFrame,
    user_ids: pl.Series,
    histories: Histories,
    card: str,
    artifacts: dict[str, pl.DataFrame],
    held_out: NDArray[np.bool_] | None = None,
    item_table: pl.DataFrame | None = None,
    others: dict[str, bytes] | None = None,
) -> None:
    """Write the files of a finished run into its folder, which the caller has locked; ``others`` are further files.

    All files are on disk before the first is replaced. If the folder held a run already, it counts as no run while
    files are replaced. Results of the old weights stay in the folder, but the manifest no longer lists them.

    Raises:
        StorageError: the folder cannot be written; it is unchanged.
    """
    users = pl.DataFrame({"user_id": user_ids, "history": _as_lists(histories, histories.items)})
    # Later interactions are put in order after these by their times.
    if histories.times is not None:
        users = users.with_columns(times=_as_lists(histories, histories.times))
    if histories.synthetic is not None:
        users = users.with_columns(synthetic=_as_lists(histories, histories.synthetic).list.sum())
    if held_out is not None and held_out.any():
        users = users.with_columns(held_out=_as_lists(histories, held_out))
    about_weights = {"note": json.dumps({"model": config["model"]})}  # the manifest has their checksum
    files: dict[str, Content] = {
        "config.json": json.dumps(config, indent=2).encode(),
        "environment.json": json.dumps(environment, indent=2).encode(),
        "items.parquet": parquet_bytes(items),
        "users.parquet": parquet_bytes(users),
        "model.safetensors": functools.partial(write_tensors, tensors=model.state_dict(), metadata=about_weights),
        "README.md": card.encode(),
        **{name: parquet_bytes(table) for name, table in artifacts.items()},
        **(others or {}),
    }
    if item_table is not None:
        files[ITEM_TABLE] = parquet_bytes(item_table)
    if (folder / LOG).exists():
        files[LOG] = (folder / LOG).read_bytes()
    _replace_files(folder, files, {})


def add_files(folder: Path, files: Mapping[str, Content], made_of: str | None = None) -> None:
    """Add files to a run folder, or replace them, and list them in its manifest.

    Args:
        folder: folder of the run.
        files: content of each file, by name.
        made_of: sha256 of the weights that the files belong to; None: any.

    Raises:
        RunError: another process holds the lock of the folder, or has replaced these weights.
        StorageError: the folder cannot be written; it is unchanged.
    """
    with folder_lock(folder, "writing", PATIENCE):
        listed = read_manifest(folder)["files"] if (folder / MANIFEST).exists() else {}
        if made_of is not None and listed.get("model.safetensors") != made_of:
            raise RunError(f"{folder} was trained further meanwhile.", "Repeat this for the present weights.")
        _replace_files(folder, files, listed)


def forget_files(folder: Path, names: Iterable[str]) -> None:
    """Remove files from the manifest of a run folder, which the caller has locked; they no longer belong to the run.

    Raises:
        RunError: as `read_manifest`.
    """
    listed = read_manifest(folder)["files"] if (folder / MANIFEST).exists() else {}
    kept = {name: digest for name, digest in listed.items() if name not in set(names)}
    if kept != listed:
        atomic_write_text(folder / MANIFEST, manifest_text(kept))


def _replace_files(folder: Path, files: Mapping[str, Content], listed: dict[str, str]) -> None:
    """Write ``files`` and a manifest of these and of the files in ``listed`` (sha256 by name)."""
    kept = {name: digest for name, digest in listed.items() if name not in files}
    with (
        staged_files(folder, files) as staged,
        staged_files(folder, {MANIFEST: manifest_text(kept | staged.digests).encode()}) as manifest,
    ):
        # After a kill in between, the manifest lists none of the replaced files, rather than wrong checksums.
        if not kept:
            (folder / MANIFEST).unlink(missing_ok=True)
        elif kept != listed:
            atomic_write_text(folder / MANIFEST, manifest_text(kept))
        for name in files:
            staged.put(name)
        manifest.put(MANIFEST)


def manifest_text(files: dict[str, str]) -> str:
    """The content of a manifest of ``files``: the sha256 of each, by name."""
    content = {"format": FORMAT, "files": files}
    return json.dumps(content | {"sha256": sha256_json(content)}, indent=2) + "\n"


def artifacts_of(run: RunContents) -> dict[str, pl.DataFrame]:
    """The tables that the model has written into its run; test results are not among them."""
    return {
        name: read_parquet(run.path / name)
        for name in run.digests
        if name.endswith(".parquet") and name not in (*CORE, ITEM_TABLE) and "_test" not in name
    }


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json of a run, and verify all files.

    Raises:
        RunError: as `read_run`.
    """
    _verify(folder)
    return _parse_config(folder)


def read_run(folder: str | Path) -> RunContents:
    """Read a run folder, or a run on the Hugging Face hub, and verify every file against the manifest.

    Raises:
        RunError: the folder is not a run; a file, which the error names, is missing or damaged; the class of the model
            cannot be imported; or the run was replaced while it was read.
    """
    folder = run_path("run", folder)
    digests = _verify(folder)
    config = _parse_config(folder)
    num_users = config["data"]["users"]  # users whose histories were added later are not among them
    with checks.consistent(folder / "config.json"):
        kind, options = _model_of(folder, config)

    def table(name: str) -> pl.DataFrame:
        return read_parquet(folder / name)

    with checks.consistent(folder / "items.parquet"):
        items = table("items.parquet")
        item_table = table(ITEM_TABLE) if ITEM_TABLE in digests else None
        checks.check_items(items, config, item_table)
    with checks.consistent(folder / "users.parquet"):
        users = table("users.parquet")
        histories, held_out = checks.read_histories(users, num_users, len(items))
    with checks.consistent(folder / KNOWLEDGE):
        knowledge = table(KNOWLEDGE) if KNOWLEDGE in digests else None
        if knowledge is not None:
            checks.check_knowledge(knowledge, items)
    weights = folder / "model.safetensors"
    with checks.consistent(weights):
        model = checks.build_model(weights, kind, options, len(items), num_users)
        tensors = load_tensors(weights)[0]
        load_weights(weights, model, tensors)
        checks.check_values(model, tensors)
    with checks.consistent(folder / "config.json"):
        model.resolve(config["resolved"])
    model.eval()
    if kind.__module__.startswith("rediffuse."):  # a fault of a class from outside shows better where it is used
        with checks.consistent(weights):
            checks.check_scores(model, histories, num_users)
    now = read_manifest(folder)["files"]
    if any(
        now.get(name) != digests[name] for name in (*CORE, ITEM_TABLE, KNOWLEDGE) if name in digests
    ):  # the files read may be of two runs
        raise RunError(f"{folder} was written to while it was read.", "Try again.")
    user_ids = users["user_id"]
    return RunContents(folder, config, model, items, user_ids, histories, held_out, item_table, digests, knowledge)


def _parse_config(folder: Path) -> dict[str, Any]:
    """The content of config.json, checked.

    Raises:
        RunError: it is not JSON, or lacks what is read.
    """
    with checks.consistent(folder / "config.json"):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        checks.check_config(config)
        former_options.complete(config)
    return config


def _model_of(folder: Path, config: dict[str, Any]) -> tuple[type[Model], ModelConfig]:
    """The class of a run's model, and its options.

    Raises:
        RunError: the class is not built in, and cannot be imported or has another version.
    """
    name, path, distribution = config["model"], config.get("class", ""), config.get("distribution")
    if not path or path.startswith("rediffuse."):  # by name: a built-in class may move to another module
        kind = model_class(name)
        return kind, kind.Config.build(None, config["config"])
    try:
        kind = model_class(path)
    except external.ClassNotFoundError as error:
        remedy = external.how_to_import(path, distribution)
        raise RunError(f"{folder} needs the class {path} of its model {name!r}: {error.problem}", remedy) from None
    except ConfigError as error:
        raise RunError(
            f"{folder} needs the class {path} of its model {name!r}: {error.problem}", error.remedy
        ) from error
    try:
        return kind, kind.Config.build(None, config["config"])
    except ConfigError as error:
        made_with = f"Use the version that it was trained with: {distribution['version']}." if distribution else None
        raise RunError(
            f"{folder} was trained with another version of {path}: {error.problem}", made_with or error.remedy
        ) from None


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The complete lines of metrics.jsonl; none if the model is not trained by gradient.

    Of a finished run, read it only if the manifest lists it.

    Raises:
        RunError: a line is not JSON.
    """
    lines = (folder / LOG).read_bytes().split(b"\n")[:-1] if (folder / LOG).exists() else []
    with checks.consistent(folder / LOG):
        return [json.loads(line) for line in lines]


def _verify(folder: Path) -> dict[str, str]:
    """Verify all files that the manifest lists; returns their sha256 by name."""
    listed = read_manifest(folder)["files"]
    for name, digest in listed.items():
        path = folder / name
        again = f"build the index again: rediffuse index {folder}" if name.startswith("index.") else "train again."
        if not path.is_file():
            raise RunError(f"{path} is missing.", f"Restore it from a copy, or {again}")
        if sha256_file(path) != digest:
            raise RunError(f"{path} is damaged: its checksum differs.", f"Restore it from a copy, or {again}")
    for name in CORE:
        if name not in listed:
            raise RunError(f"{folder / MANIFEST} does not list {name}.", "Restore it from a copy, or train again.")
    return listed


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a run folder: format, and files (sha256 by name). The files themselves are not verified.

    Raises:
        RunError: the folder has no manifest, or one of another version.
        DamagedManifest: the manifest is damaged.
    """
    path = folder / MANIFEST
    return parse_manifest(path, path.read_bytes() if path.is_file() else None)


def parse_manifest(path: Path, written: bytes | None) -> dict[str, Any]:
    """The content of a manifest, checked; raises as `read_manifest`. None: there is no file at ``path``."""
    folder = path.parent
    if written is None:
        state = "holds unfinished training" if (folder / "checkpoints").is_dir() else "is not a run folder"
        raise RunError(
            f"{folder} {state}: it has no {MANIFEST}.", "Give the folder of a finished run, or finish it with --resume."
        )
    try:
        manifest = json.loads(written)
        version = manifest["format"]
        if version == "rediffuse-dataset":
            raise RunError(f"{folder} is a dataset, not a run folder.", "Give the folder that training wrote.")
        if version != FORMAT:
            raise RunError(
                f"{path} has format {version}; this version reads format {FORMAT}.", "Use the version that wrote it."
            )
        content = {"format": version, "files": dict(manifest["files"].items())}
        expected = sha256_json(content)
        # Earlier manifests had no checksum of themselves.
        if manifest.keys() - {*content, "sha256"} or manifest.get("sha256", expected) != expected:
            raise ValueError("its checksum differs")
        require_plain_names(content["files"])
        if not all(isinstance(digest, str) for digest in content["files"].values()):
            raise ValueError("a checksum is not text")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise DamagedManifest(f"{path} is damaged ({error}).", "Restore it from a copy, or train again.") from None
    return manifest


def _as_lists(histories: Histories, values: NDArray[Any]) -> pl.Series:
    """``values`` (interactions,) as one list per user."""
    frame = pl.DataFrame({"user": histories.owners, "value": values})
    lists = frame.group_by("user", maintain_order=True).agg(pl.col("value"))
    users = pl.DataFrame({"user": np.arange(len(histories))}).join(lists, on="user", how="left", maintain_order="left")
    return users["value"].fill_null([]).cast(pl.List(frame["value"].dtype))


def run_path(name: str, value: Any, *, writes: bool = False) -> Path:
    """The folder of a run that is passed as a path, an address, or as the `Run` that training returned.

    A run in a bucket is fetched; after ``writes``, the caller uploads what has changed: `publish_changes`.

    Args:
        name: name of the argument, for errors.
        value: what was passed for it.
        writes: whether files are to be added to the folder, which those of the hub's cache do not allow.

    Raises:
        ConfigError: it is something else.
        RunError: it is on the hub or in a bucket and cannot be downloaded, see `rediffuse.runs.hub.download` and
            `rediffuse.objects.folders.fetch_folder`.
    """
    if isinstance(value, Run):
        value = value.path
    refuse_unknown(name, value)
    address = address_of(value)
    if address is not None and not hub.is_address(value):
        card = ("README.md",) if writes else ()  # it gets another section
        return fetch_folder(address, lambda path, content: parse_manifest(path, content)["files"], RunError, card)
    if hub.is_address(value):
        if writes:
            raise ConfigError(
                f"{address_of(value)} is on the hub, and results are written into the folder of a run.",
                "Download it into a folder of your own: hf download user/name --local-dir runs/mine",
            )
        return hub.download(value)
    return require_path(name, value, "Give the folder of a run, or what rediffuse.train returned.")


def named(run: Any, folder: Path) -> str:
    """What to call a run in files that last: its address, rather than the folder that it was fetched into."""
    return address_of(run.path if isinstance(run, Run) else run) or str(folder)


def publish_changes(run: Any, folder: Path) -> None:
    """Upload what has changed in ``folder``, the local copy of a run, if ``run`` is in a bucket.

    Raises:
        StorageError: the store cannot be written.
    """
    place = changed(named(run, folder), folder)
    if place.address is None:
        return
    path = AddressPath(place.address) / MANIFEST
    there = parse_manifest(path, read_bytes(str(path), RunError))["files"]
    here = read_manifest(folder)["files"]
    # Readers see the run without the files that change, as in a local folder.
    kept = {name: digest for name, digest in there.items() if here.get(name) == digest}
    place.publish(meanwhile=manifest_text(kept).encode())
