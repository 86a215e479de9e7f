"""`train`: the one call between a split and a run folder."""

from __future__ import annotations

import contextlib
import datetime
import warnings
from pathlib import Path
from typing import Any

import polars as pl
import torch

from rediffuse import distributed
from rediffuse.arguments import (
    require_integer,
    require_number,
    require_options,
    require_path,
    require_text,
)
from rediffuse.config import ModelConfig
from rediffuse.data.dataset import Dataset
from rediffuse.data.split import Split, TrainingView, as_split
from rediffuse.data.synthetic import augmentation
from rediffuse.errors import ConfigError, RediffuseWarning, RunError, TrainingError
from rediffuse.files import sha256_file
from rediffuse.memory import PeakMemory
from rediffuse.models import external, model_class
from rediffuse.models.base import Model
from rediffuse.runs.card import model_card
from rediffuse.runs.environment import environment
from rediffuse.runs.identity import prepare_folder
from rediffuse.runs.run_folder import (
    FORMAT,
    Run,
    RunContents,
    read_run,
    run_path,
    write_run,
)
from rediffuse.seeds import seed_torch
from rediffuse.training.loop import Trainer


def train(
    model: str | type[Model],
    data: Split | Dataset | str | Path,
    out: str | Path | None = None,
    *,
    preset: str | None = None,
    config: dict[str, Any] | ModelConfig | None = None,
    seed: int = 0,
    resume: bool = False,
    max_minutes: float | None = None,
    tracker: str | None = None,
    progress: bool = False,
    phases_from: dict[str, str | Path | Run] | None = None,
) -> Run:
    """Train a model and write its run folder.

    Args:
        model: a name (see `rediffuse.models.names`), the import path of a class (``"my_package.module:MyModel"``), or
            the class itself.
        data: a split, whose training and validation subsets are used; training cannot reach the test subset. Of a
            dataset, or the path of a dataset folder, the default split is used, and a warning names it.
        out: the run folder, which is required; new, unless ``resume``.
        preset: named options of the model, for example "paper".
        config: options that override the preset, as a dict or a Config of the model.
        seed: of the weights, the order of batches and all noise.
        resume: go on from the last checkpoint in ``out``, to the same weights as without the interruption.
        max_minutes: of wall time, earlier sessions included.
        tracker: a tracker of Accelerate, for example "tensorboard" (extra ``track``).
        progress: draw a progress bar on stderr.
        phases_from: phase -> run folder that it is taken from instead of being trained; of a model whose phases train
            parts that are models themselves, for example ``pdrec`` and ``{"diffusion": "runs/tdiffrec"}``.

    Raises:
        ConfigError: unknown model, preset or option, a value out of range, or a class that lacks what a model needs.
        RunError: ``out`` holds something already, or a checkpoint that does not fit or is damaged, or is in use by
            another process; a run in ``phases_from`` was trained on another split; another of the processes that
            train together has failed.
        StorageError: ``out`` cannot be written.
        TrainingError: the loss is not finite, there is nothing to train on, or the time ran out before the last phase.
    """
    distributed.init()
    kind = model_class(model)
    name = kind.name
    split = as_split("data", data)
    folder = require_path("out", out, 'Name a folder for the run: out="runs/mine".')
    preset, tracker = require_text("preset", preset), require_text("tracker", tracker)
    config = require_options("config", config, kind.Config)
    seed = require_integer("seed", seed, minimum=None)
    if max_minutes is not None:
        max_minutes = require_number("max_minutes", max_minutes)
    phases_from = require_options("phases_from", phases_from, example='{"diffusion": "runs/tdiffrec"}')
    parts = {phase: _trained_part(phase, run_path("phases_from", path), split) for phase, path in phases_from.items()}
    given = {phase: part.config["config"] for phase, part in parts.items()}
    for phase in given:
        if phase not in kind.Config.model_fields:
            raise ConfigError(f"{name} has no phase {phase!r} that could be taken from a run.")
    for phase in given.keys() & (config or {}).keys():
        raise ConfigError(f"Both options and a run were given for {phase!r}.", "The run has its own; leave them out.")
    options = kind.Config.build(preset, {**(config or {}), **given}, model=kind.name)
    facts = {
        "format": FORMAT,
        **external.describe(kind),
        "preset": preset,
        "config": options.model_dump(mode="json"),
        "defaults": kind.Config.build(preset).model_dump(mode="json"),
        "phases_from": {
            phase: {"run": str(part.path), "weights": sha256_file(part.path / "model.safetensors")}
            for phase, part in parts.items()
        },
        "seed": seed,
        "split": {"name": split.name, "params": split.params, "fingerprint": split.fingerprint, "leak": split.leak},
        "data": {
            "fingerprint": split.dataset.fingerprint_without_synthetic,
            "augmentation": augmentation(split.dataset),
            "tables": split.dataset.tables_fingerprint if kind.reads_tables else None,
            "users": split.dataset.num_users,
            "items": split.dataset.num_items,
            "interactions": split.dataset.num_interactions,
        },
    }
    if not external.is_importable(kind):
        warnings.warn(
            f"{facts['class']} is defined in a script, a notebook or a function, so the run can be used only there. "
            "Move the class to a module to use the run elsewhere.",
            RediffuseWarning,
            stacklevel=2,
        )
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
                f"{part.path} is a run of {part.config['model']}, which {name} has no use for in phase {phase!r}.",
                "Give a run of the model that the phase trains, or leave the phase to this run.",
            )
        trainer.take_phase(phase, part.model)
    # Only now: options that no model can be made of leave no folder behind.
    remedy = "The last checkpoint is kept: start the same command again with --resume."
    with distributed.fail_together(remedy), contextlib.ExitStack() as stack:
        distributed.main_process_first(lambda: prepare_folder(folder, facts, resume, stack))
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
            "processes": distributed.world_size(),
            "parameters": sum(p.numel() for p in network.parameters()),
            "peak_memory_mib": memory.mib(),
        },
        "validation": validation,
    }
    distributed.main_process_first(lambda: _write(trainer, split, folder, facts))
    return Run(folder, facts, validation, state.seconds / 60)


def _write(trainer: Trainer, split: Split, folder: Path, facts: dict[str, Any]) -> None:
    """Write the files of the finished run."""
    data = split.dataset
    # People are remembered with all that precedes the test subset: what a system in use would know.
    known = data.interactions.where((split.subset == 0) | (split.subset == 1))
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
        trainer.model.artifacts(data.user_ids, data.item_ids),
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
