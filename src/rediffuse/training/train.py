"""`train`: the one call between a split and a run folder."""

from __future__ import annotations

import contextlib
import datetime
import warnings
from pathlib import Path
from typing import Any

import polars as pl
import torch

from rediffuse import processes
from rediffuse.config import ModelConfig
from rediffuse.data.augmented import augmentation
from rediffuse.data.files import sha256_file
from rediffuse.data.split import Split, TrainingView
from rediffuse.errors import ConfigError, RediffuseWarning, RunError, TrainingError
from rediffuse.models import model_class
from rediffuse.models.base import Model
from rediffuse.training.card import model_card
from rediffuse.training.checkpoint import load_tensors, save_tensors
from rediffuse.training.environment import PeakMemory, environment
from rediffuse.training.lock import HOLDER, held, is_free
from rediffuse.training.loop import Trainer
from rediffuse.training.run_folder import (
    FORMAT,
    LOG,
    DamagedManifest,
    Run,
    RunContents,
    forget_files,
    read_run,
    write_run,
)
from rediffuse.training.seeds import seed_torch


def train(
    model: str,
    split: Split,
    out: str | Path,
    *,
    preset: str | None = None,
    config: dict[str, Any] | None = None,
    seed: int = 0,
    resume: bool = False,
    max_minutes: float | None = None,
    tracker: str | None = None,
    progress: bool = False,
    phases_from: dict[str, str | Path] | None = None,
) -> Run:
    """Train a model and write its run folder.

    Args:
        model: a registered name, see `rediffuse.models.names`.
        split: its training and validation parts are used; the test part cannot be reached from here.
        out: the run folder; new, unless ``resume``.
        preset: named options of the model, for example "paper".
        config: options that override the preset.
        seed: of the weights, the order of batches and all noise.
        resume: go on from the last checkpoint in ``out``, to the same weights as without the interruption.
        max_minutes: of wall time, earlier sessions included.
        tracker: a tracker of Accelerate, for example "tensorboard" (extra ``track``).
        progress: draw a progress bar on stderr.
        phases_from: phase -> run folder that it is taken from instead of being trained; of a model whose phases train
            parts that are models themselves, for example ``pdrec`` and ``{"diffusion": "runs/tdiffrec"}``.

    Raises:
        ConfigError: unknown model, preset or option, or a value out of range.
        RunError: ``out`` holds something already, or a checkpoint that does not fit or is damaged, or is in use by
            another process; a run in ``phases_from`` was trained on another split; another of the processes that
            train together has failed.
        StorageError: ``out`` cannot be written.
        TrainingError: the loss is not finite, there is nothing to train on, or the time ran out before the last phase.
    """
    processes.join()
    kind, folder = model_class(model), Path(out)
    parts = {phase: _trained_part(phase, path, split) for phase, path in (phases_from or {}).items()}
    given = {phase: part.config["config"] for phase, part in parts.items()}
    for phase in given:
        if phase not in kind.Config.model_fields:
            raise ConfigError(f"{model} has no phase {phase!r} that could be taken from a run.")
    for phase in given.keys() & (config or {}).keys():
        raise ConfigError(f"Both options and a run were given for {phase!r}.", "The run has its own; leave them out.")
    options = kind.Config.build(preset, {**(config or {}), **given})
    facts = {
        "format": FORMAT,
        "model": model,
        "preset": preset,
        "config": options.model_dump(mode="json"),
        "phases_from": {
            phase: {"run": str(part.path), "weights": sha256_file(part.path / "model.safetensors")}
            for phase, part in parts.items()
        },
        "seed": seed,
        "split": {"name": split.name, "params": split.params, "fingerprint": split.fingerprint, "leak": split.leak},
        "data": {
            "fingerprint": split.dataset.own_fingerprint,
            "augmentation": augmentation(split.dataset),
            "tables": split.dataset.tables_fingerprint if kind.reads_tables else None,
            "users": split.dataset.num_users,
            "items": split.dataset.num_items,
            "events": split.dataset.num_events,
        },
    }
    memory = PeakMemory()
    trainer = make_trainer(
        kind,
        options,
        split.training_view(),
        folder,
        seed=seed,
        user_ids=split.dataset.user_ids,
        max_minutes=max_minutes,
        tracker=tracker,
        show_progress=progress,
    )
    network = trainer.model
    for phase, part in parts.items():
        if phase not in network.phases or getattr(network, phase).name != part.config["model"]:
            raise ConfigError(
                f"{part.path} is a run of {part.config['model']}, which {model} has no use for in phase {phase!r}.",
                "Give a run of the model that the phase trains, or leave the phase to this run.",
            )
        trainer.take_phase(phase, part.model)
    # Only now: options that no model can be made of leave no folder behind.
    remedy = "The last checkpoint is kept: start the same command again with --resume."
    with processes.together(remedy), contextlib.ExitStack() as stack:
        if processes.restarted() and not resume:
            # What these processes began before they were started again goes on; what others did is not touched.
            ours = processes.index() == 0 and processes.word_was_left(_word(folder)) and _claim(folder).exists()
            resume = processes.any_of(ours)
        processes.first_alone(lambda: _prepare_folder(folder, facts, resume, stack))
        return _train(trainer, split, folder, facts, resume, memory)


def _train(
    trainer: Trainer, split: Split, folder: Path, facts: dict[str, Any], resume: bool, memory: PeakMemory
) -> Run:
    """What `train` does in a folder that it holds."""
    network = trainer.model
    state = trainer.run(resume)
    unreached = trainer.phases[state.phase + 1 :]
    if unreached:
        raise TrainingError(
            f"Time ran out in phase {trainer.phases[state.phase]!r}; {unreached[-1]!r} was not reached.",
            "Go on with --resume and more minutes. What was trained is kept.",
        )
    last = trainer.phases[-1] if trainer.phases else None
    ranked = last is not None and network.chosen_by_ranking(last)
    if len(trainer.view.valid.users) and ranked and state.best is None:
        warnings.warn(
            "Training ended before the first validation; the weights as they are were kept. Give it more minutes "
            "(and --resume), or a smaller validate_every.",
            RediffuseWarning,
            stacklevel=3,
        )
    resolved = trainer.calibrate()
    network.resolve(resolved)
    validation = trainer.validate() if len(trainer.view.valid.users) else None
    facts |= {
        "resolved": resolved,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "training": {
            "best_epoch": state.best_epoch,
            "finished": state.done,
            "minutes": state.seconds / 60,
            "precision": state.precision,
            "processes": processes.count(),
            "parameters": sum(p.numel() for p in network.parameters()),
            "peak_memory_mib": memory.mib(),
        },
        "validation": validation,
    }
    processes.first_alone(lambda: _write(trainer, split, folder, facts))
    return Run(folder, facts, validation, state.seconds / 60)


def _write(trainer: Trainer, split: Split, folder: Path, facts: dict[str, Any]) -> None:
    """Write the files of the finished run."""
    data = split.dataset
    # People are remembered with all that precedes the test part: what a system in use would know.
    known = data.interactions.where((split.part == 0) | (split.part == 1))
    columns = {"item_id": data.item_ids, "train_count": trainer.data.popularity}
    if data.items is not None and data.title is not None:
        columns["title"] = data.items[data.title].cast(pl.String)
    made_with = environment()
    write_run(
        folder,
        facts,
        made_with,
        trainer.model,
        pl.DataFrame(columns),
        data.user_ids,
        known,
        model_card(facts, made_with),
        trainer.model.tables(data.user_ids, data.item_ids),
    )


def _trained_part(phase: str, path: str | Path, split: Split) -> RunContents:
    """The run that a phase is taken from, which must not have learned from what is tested here."""
    contents = read_run(path)
    if contents.config["split"]["fingerprint"] != split.fingerprint:
        raise RunError(
            f"{path}, given for phase {phase!r}, was trained on another split.", "Train it on this data and split."
        )
    return contents


def make_trainer(
    kind: type[Model], options: ModelConfig, view: TrainingView, folder: Path, *, seed: int, **others: Any
) -> Trainer:
    """A fresh model whose weights depend on ``seed`` alone, and its `Trainer`, which gets ``others``."""
    with torch.random.fork_rng():
        seed_torch(seed, "weights")
        network = kind(options, view.num_items, view.num_users)
    return Trainer(network, view, folder, seed=seed, **others)


def refuse_another(folder: Path, earlier: dict[str, Any], identity: dict[str, Any], remedy: str) -> None:
    """Compare what a folder was made for with what it is to be used for.

    Raises:
        RunError: they differ; says in what.
    """
    for name, value in identity.items():
        if earlier.get(name) != value:
            difference = _difference(earlier.get(name), value)
            raise RunError(f"{folder} was made with another {name}: {difference}.", remedy)


def _prepare_folder(folder: Path, facts: dict[str, Any], resume: bool, stack: contextlib.ExitStack) -> None:
    """Hold the folder for as long as ``stack`` does; refuse to write over a run, or to resume another one."""
    claim = _claim(folder)
    if not (folder / HOLDER).exists():
        _check_state(folder, claim, resume)  # nobody is there: refused before anything is written
    stack.enter_context(held(folder, "training"))
    _check_state(folder, claim, resume)
    identity = {name: facts[name] for name in ("model", "seed", "split")} | {
        "config": {k: v for k, v in facts["config"].items() if k not in ("epochs", "patience")},
        "phases_from": {phase: part["weights"] for phase, part in facts["phases_from"].items()},
        "augmentation": facts["data"]["augmentation"],
        "tables": facts["data"]["tables"],
    }
    if resume:
        refuse_another(
            folder,
            load_tensors(claim)[1],
            identity,
            "Resume with the same options (epochs and patience may change), or choose another folder.",
        )
        with contextlib.suppress(DamagedManifest):  # which is replaced in the end
            forget_files(folder, [LOG])  # it grows
    else:
        processes.leave_word(_word(folder))
        save_tensors(claim, {}, identity)


def _check_state(folder: Path, claim: Path, resume: bool) -> None:
    if resume and not claim.exists():
        raise RunError(f"{folder} holds no training to resume.", "Leave out --resume to start.")
    if not resume and not is_free(folder):
        raise RunError(f"{folder} is not empty.", "Choose another folder, or pass --resume to go on with that run.")


def _claim(folder: Path) -> Path:
    """The file that says what a folder's training is of; it is there before the first checkpoint."""
    return folder / "checkpoints" / "claim.safetensors"


def _word(folder: Path) -> str:
    """What processes tell those that a launcher starts after them: that they began a training there."""
    return f"rediffuse trains in {folder.resolve()}"


def _difference(old: Any, new: Any) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        changed = [f"{k} was {old.get(k)!r}, is {new.get(k)!r}" for k in {**old, **new} if old.get(k) != new.get(k)]
        return "; ".join(changed)
    return f"was {old!r}, is {new!r}"
