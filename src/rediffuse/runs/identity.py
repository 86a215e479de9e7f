"""The run identity: model, options and split of a run folder, and whether another training may use the folder."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from rediffuse.errors import RunError
from rediffuse.runs.lock import HOLDER, folder_lock, is_unused
from rediffuse.runs.run_folder import LOG, DamagedManifest, forget_files
from rediffuse.runs.tensors import load_tensors, save_tensors


def refuse_other_identity(folder: Path | str, recorded: dict[str, Any], wanted: dict[str, Any], remedy: str) -> None:
    """Check that a folder was started with the settings that are now wanted.

    Raises:
        RunError: an entry of ``wanted`` differs from the recorded one; the error names the difference.
    """
    for name, value in wanted.items():
        if recorded.get(name) != value:
            difference = _difference(recorded.get(name), value)
            raise RunError(f"{folder} was started with another {name}: {difference}.", remedy)


def open_run_folder(folder: Path, run_config: dict[str, Any], resume: bool, stack: contextlib.ExitStack) -> None:
    """Lock a run folder for training, until ``stack`` closes, and record its run identity.

    Args:
        folder: new, or with ``resume`` that of an interrupted or finished training.
        run_config: content of config.json, as far as it is known before training.
        resume: whether to continue the training in the folder.
        stack: holds the lock.

    Raises:
        RunError: the folder is in use; without ``resume``, it is not empty; with it, it holds no training or that of
            another run.
        StorageError: the folder cannot be written.
    """
    path = identity_path(folder)
    if not (folder / HOLDER).exists():
        check_use(folder, resume)  # no other process is there, so refuse before anything is written
    stack.enter_context(folder_lock(folder, "training"))
    check_use(folder, resume)
    identity = {name: run_config[name] for name in ("model", "class", "seed", "split")} | {
        "config": {k: v for k, v in run_config["config"].items() if k not in ("epochs", "patience")},
        "phases_from": {phase: source["weights"] for phase, source in run_config["phases_from"].items()},
        "augmentation": run_config["data"]["augmentation"],
        "tables": run_config["data"]["tables"],
        "item_table": run_config.get("item_table"),
        **({"item_features": features} if (features := run_config["data"].get("item_features")) else {}),
    }
    if resume:
        refuse_other_identity(
            folder,
            load_tensors(path)[1],
            identity,
            "Resume with the same options (epochs and patience may change), or choose another folder.",
        )
        with contextlib.suppress(DamagedManifest):  # training writes a new manifest at its end
            forget_files(folder, [LOG])  # the log grows, so its checksum no longer holds
    else:
        save_tensors(path, {}, identity)


def check_use(folder: Path, resume: bool) -> None:
    """Refuse a folder that a training cannot start in, or with ``resume`` continue in.

    Raises:
        RunError: as `open_run_folder`.
    """
    if resume and not identity_path(folder).exists():
        raise RunError(f"{folder} holds no training to resume.", "Leave out --resume to start.")
    if not resume and not is_unused(folder):
        raise RunError(
            f"{folder} is not empty.",
            "Choose another folder, or continue that run with --resume (Python: resume=True).",
        )


def identity_path(folder: Path) -> Path:
    """The file that holds the run identity of a run folder; it is written before the first checkpoint."""
    return folder / "checkpoints" / "identity.safetensors"


def _difference(recorded: Any, wanted: Any) -> str:
    if isinstance(recorded, dict) and isinstance(wanted, dict):
        names = [name for name in {**recorded, **wanted} if recorded.get(name) != wanted.get(name)]
        return "; ".join(f"{name} was {recorded.get(name)!r}, is {wanted.get(name)!r}" for name in names)
    return f"was {recorded!r}, is {wanted!r}"
