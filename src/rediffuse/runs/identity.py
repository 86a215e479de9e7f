"""What a run folder is the training of, and whether a training may use it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from rediffuse.errors import RunError
from rediffuse.runs.lock import HOLDER, folder_lock, is_free
from rediffuse.runs.run_folder import LOG, DamagedManifest, forget_files
from rediffuse.runs.tensors import load_tensors, save_tensors


def refuse_another(folder: Path, earlier: dict[str, Any], identity: dict[str, Any], remedy: str) -> None:
    """Compare what a folder was made for with what it is to be used for.

    Raises:
        RunError: they differ; says in what.
    """
    for name, value in identity.items():
        if earlier.get(name) != value:
            difference = _difference(earlier.get(name), value)
            raise RunError(f"{folder} was made with another {name}: {difference}.", remedy)


def prepare_folder(folder: Path, facts: dict[str, Any], resume: bool, stack: contextlib.ExitStack) -> None:
    """Hold the folder for as long as ``stack`` does; refuse to write over a run, or to resume another one."""
    recorded = identity_file(folder)
    if not (folder / HOLDER).exists():
        _check_state(folder, recorded, resume)  # nobody is there: refused before anything is written
    stack.enter_context(folder_lock(folder, "training"))
    _check_state(folder, recorded, resume)
    identity = {name: facts[name] for name in ("model", "class", "seed", "split")} | {
        "config": {k: v for k, v in facts["config"].items() if k not in ("epochs", "patience")},
        "phases_from": {phase: part["weights"] for phase, part in facts["phases_from"].items()},
        "augmentation": facts["data"]["augmentation"],
        "tables": facts["data"]["tables"],
    }
    if resume:
        refuse_another(
            folder,
            load_tensors(recorded)[1],
            identity,
            "Resume with the same options (epochs and patience may change), or choose another folder.",
        )
        with contextlib.suppress(DamagedManifest):  # which is replaced in the end
            forget_files(folder, [LOG])  # it grows
    else:
        save_tensors(recorded, {}, identity)


def _check_state(folder: Path, recorded: Path, resume: bool) -> None:
    if resume and not recorded.exists():
        raise RunError(f"{folder} holds no training to resume.", "Leave out --resume to start.")
    if not resume and not is_free(folder):
        raise RunError(f"{folder} is not empty.", "Choose another folder, or pass --resume to go on with that run.")


def identity_file(folder: Path) -> Path:
    """The file that says what a folder's training is of; it is there before the first checkpoint."""
    return folder / "checkpoints" / "identity.safetensors"


def _difference(old: Any, new: Any) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        changed = [f"{k} was {old.get(k)!r}, is {new.get(k)!r}" for k in {**old, **new} if old.get(k) != new.get(k)]
        return "; ".join(changed)
    return f"was {old!r}, is {new!r}"
