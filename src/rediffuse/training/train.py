"""`train`: from a split to a run folder in one call."""

from __future__ import annotations

import contextlib
import datetime
import json
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from rediffuse import devices, distributed
from rediffuse.arguments import (
    require_flag,
    require_integer,
    require_number,
    require_options,
    require_text,
)
from rediffuse.config import ModelConfig
from rediffuse.data.cold_users import refuse_selection, selection_remark, without_history
from rediffuse.data.dataset import Dataset
from rediffuse.data.histories import Histories
from rediffuse.data.shared import shared_json, shared_split, shared_view
from rediffuse.data.split import TEST, TRAIN, VALID, Split, TrainingView, as_split, default
from rediffuse.data.synthetic import augmentation
from rediffuse.errors import ConfigError, RediffuseWarning, TrainingError
from rediffuse.files import atomic_write_text, sha256_file
from rediffuse.memory import LESS_MEMORY, PeakMemory, out_of_memory
from rediffuse.models import external, model_class
from rediffuse.models.base import Model
from rediffuse.models.sizes import check_size
from rediffuse.objects.folders import output
from rediffuse.runs.card import model_card
from rediffuse.runs.environment import environment
from rediffuse.runs.former_options import CONFIG_FORMAT
from rediffuse.runs.identity import open_run_folder
from rediffuse.runs.item_features import encoder_files
from rediffuse.runs.run_folder import (
    LOG,
    Run,
    RunContents,
    run_path,
    write_run,
)
from rediffuse.runs.tracking import Tracking, check_tracker
from rediffuse.seeds import seed_torch
from rediffuse.training.callbacks import Callbacks
from rediffuse.training.loop import Trainer
from rediffuse.training.phases import NETWORK, read_phase_run, with_another_prior
from rediffuse.training.progress import reporting
from rediffuse.training.uploads import with_uploads

_make: ContextVar[Callable[..., Trainer] | None] = ContextVar("make_trainer", default=None)


@contextlib.contextmanager
def trainers_from(make: Callable[..., Trainer]) -> Iterator[None]:
    """Within the context, `train` uses ``make`` in place of `make_trainer`: so an engine has a loop of its own."""
    token = _make.set(make)
    try:
        yield
    finally:
        _make.reset(token)


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
    track_artifacts: bool = False,
    progress: bool = False,
    callbacks: Iterable[Any] = (),
    phases_from: dict[str, str | Path | Run] | None = None,
    device: str | torch.device = devices.AUTO,
) -> Run:
    """Train a model and write its run folder.

    Args:
        model: a name (see `rediffuse.models.names`), the import path of a class (``"my_package.module:MyModel"``), or
            the class itself.
        data: a split, whose training and validation subsets are used; training cannot reach the test subset. For a
            dataset, or the path of a dataset folder, the default split is used, and a warning names it.
        out: the run folder, which is required; new, unless ``resume``. It may be in a bucket ("s3://bucket/run"), where
            the checkpoints are uploaded too; see docs/object-storage.md.
        preset: named options of the model, for example "paper".
        config: options that override the preset, as a dict or a Config of the model.
        seed: seed of the weights, the order of batches and all noise.
        resume: continue from the last checkpoint in ``out``, to the same weights as without the interruption.
        max_minutes: limit of the wall time over all sessions.
        tracker: "tensorboard" (extra ``track``), "wandb" or "mlflow" (extras of these names); see docs/trackers.md.
        track_artifacts: give the files of the finished run to the tracker; not to "tensorboard".
        progress: say on stderr how training goes: by a bar in a terminal or a notebook, elsewhere by a line per
            validation. Without it, the lines go to the logger "rediffuse.training".
        callbacks: objects with any of the methods ``on_step(event)``, ``on_validation(event)`` and ``on_end(event)``,
            which get a `rediffuse.training.TrainingEvent`. An exception that one raises ends training; the checkpoint
            is kept. In a distributed training every process calls them.
        phases_from: phase -> run folder to take it from instead of training it, for models whose phases train models of
            their own, for example ``pdrec`` and ``{"diffusion": "runs/tdiffrec"}``. ``{"fit": run}`` takes the trained
            network, its options and its seed from a run of the same model; ``config`` may change ``prior``.
        device: where to train: ``auto``, which is the accelerator that torch finds, otherwise the CPU; or ``cpu``,
            ``cuda``, ``cuda:1``, ``mps``. Several processes have the device of their rank.

    Raises:
        ConfigError: an unknown model, preset, option or tracker, a value out of range, a class that lacks what a model
            needs, a callback without a method to call, or a device that torch does not find.
        MissingExtraError: the package of the tracker is not installed.
        KeyboardInterrupt: Ctrl+C; the checkpoint is saved, and ``resume`` continues to the same weights.
        RunError: ``out`` is not empty, is in use by another process, or holds a damaged checkpoint or that of another
            run; a run in ``phases_from`` was trained on another split; another process of a distributed training has
            ended.
        StorageError: ``out`` cannot be written.
        TrainingError: the loss is not finite, there is nothing to train on, or the time ran out before the last phase.
        DataError: weights are chosen on validation data, and no validation user has a history.

    Warns:
        RediffuseWarning: training ended before the first validation; the split has no validation subset, or validation
            users without a history, on whom nothing is chosen.
    """
    distributed.init()
    memory = PeakMemory(devices.resolve(device))
    place = output("out", out, 'Name a folder for the run: out="runs/mine".')
    folder = place.folder
    tracker = require_text("tracker", tracker)
    track_artifacts = require_flag("track_artifacts", track_artifacts)
    check_tracker(tracker, track_artifacts)
    called = with_uploads(Callbacks(callbacks), place)
    seed = require_integer("seed", seed, minimum=None)
    if max_minutes is not None:
        max_minutes = require_number("max_minutes", max_minutes)
    kind = model_class(model)
    split = as_split("data", data, lambda dataset: shared_split(dataset, default))
    planned = plan(kind, split, preset, config, seed, phases_from)
    run_config = shared_json(
        lambda: describe_run(planned.kind, planned.preset, planned.options, planned.seed, split, planned.phase_runs)
    )
    if not external.is_importable(planned.kind):
        warnings.warn(
            f"{run_config['class']} is defined in a script, a notebook or a function, so the run can be used only "
            "there. Move the class to a module to use the run elsewhere.",
            RediffuseWarning,
            stacklevel=2,
        )
    trainer = planned.trainer(folder, max_minutes=max_minutes, show_progress=progress, callbacks=called, device=device)
    if trainer.item_table is not None:
        run_config["item_table"] = trainer.item_table
    if not len(trainer.view.valid.users):
        warnings.warn(_without_validation(trainer), RediffuseWarning, stacklevel=2)
    elif remark := selection_remark(trainer.view.valid):
        warnings.warn(remark, RediffuseWarning, stacklevel=2)
    # The folder is created only after a model could be built from the options.
    remedy = "The last checkpoint is kept: start the same command again with --resume."
    with distributed.fail_together(remedy), reporting(progress), contextlib.ExitStack() as stack:
        distributed.main_process_first(lambda: place.start(resume=resume))
        distributed.main_process_first(lambda: open_run_folder(folder, run_config, resume, stack))
        if tracker is not None and distributed.rank() == 0:
            trainer.tracking = _start_tracking(tracker, folder, run_config, resume, stack)
        run = _train(trainer, split, folder, run_config, resume, memory, planned.phase_runs.get(NETWORK))
        if track_artifacts and trainer.tracking is not None:
            trainer.tracking.log_folder()
    distributed.main_process_first(place.publish)
    return replace(run, path=place.path)


@dataclass(frozen=True)
class Plan:
    """What a training is made of.

    Attributes:
        kind: class of the model.
        split: what it is trained on.
        preset: name of the preset, or None.
        options: its options.
        seed: seed of the run.
        phase_runs: phase -> the run that it is taken from.
    """

    kind: type[Model]
    split: Split
    preset: str | None
    options: ModelConfig
    seed: int
    phase_runs: dict[str, RunContents]

    def trainer(self, folder: Path, **others: Any) -> Trainer:
        """A `Trainer` of a new model, which gets ``others``.

        Raises:
            DataError: the weights would be chosen on validation data, where no user has a history.
            ConfigError: the model cannot use a run that a phase is to be taken from.
        """
        view, user_ids = shared_view(self.split), self.split.dataset.user_ids
        warn_of_unread_features(self.kind, self.options, view)
        make = _make.get() or make_trainer
        trainer = make(self.kind, self.options, view, folder, seed=self.seed, user_ids=user_ids, **others)
        network = trainer.model
        for phase, run in self.phase_runs.items():
            if phase == NETWORK:
                trainer.take_network(run.model)
                continue
            if phase not in network.phases or getattr(network, phase).name != run.config["model"]:
                raise ConfigError(
                    f"{run.path} is a run of {run.config['model']}, which {self.kind.name} cannot use in phase "
                    f"{phase!r}.",
                    "Give a run of the model that the phase trains, or let this run train the phase.",
                )
            trainer.take_phase(phase, run.model)
        if any(network.chosen_by_ranking(phase) for phase in trainer.phases):
            refuse_selection(view.valid, "the weights")
        return trainer


def warn_of_unread_features(kind: type[Model], options: ModelConfig, view: TrainingView) -> None:
    """Say that a model does not read the declared features."""
    declared = [feature.column for feature in (*view.item_features, *view.user_features)]
    if declared and not kind.reads_content_with(options):
        off = " with item_features=false" if kind.reads_content else ""
        warnings.warn(
            f"{kind.name}{off} does not read the declared features ({', '.join(declared)}).",
            RediffuseWarning,
            stacklevel=4,
        )


def plan(kind: type[Model], split: Split, preset: Any, config: Any, seed: int, phases_from: Any) -> Plan:
    """Check the arguments of `train`, and read what they name.

    Raises:
        ConfigError, RunError: as `train`.
    """
    preset = require_text("preset", preset)
    config = require_options("config", config, kind.Config)
    phases_from = require_options("phases_from", phases_from, example='{"diffusion": "runs/tdiffrec"}')
    phase_runs = {
        phase: read_phase_run(phase, run_path("phases_from", path), split) for phase, path in phases_from.items()
    }
    if NETWORK in phase_runs:
        options = with_another_prior(kind, phase_runs[NETWORK], preset, config)
        source = phase_runs[NETWORK].config
        return Plan(kind, split, source["preset"], options, source["seed"], phase_runs)
    phase_options: dict[str, Any] = {}
    for phase, run in phase_runs.items():
        if phase not in kind.Config.model_fields:
            raise ConfigError(f"{kind.name} has no phase {phase!r} that could be taken from a run.", "Leave it out.")
        phase_options |= kind.Config.of_phase(phase, run.config)
    for phase in phase_options.keys() & config.keys():
        problem = f"Both options and a run were given for {phase!r}."
        raise ConfigError(problem, "Leave out the options: the run has its own.")
    options = kind.Config.build(preset, {**config, **phase_options}, model=kind.name)
    return Plan(kind, split, preset, options, seed, phase_runs)


def _without_validation(trainer: Trainer) -> str:
    """A sentence on what is not chosen without a validation subset."""
    if not trainer.model.trained_by_gradient:
        return f"This split has no validation subset, so {trainer.model.name} keeps its usual settings."
    return (
        f"This split has no validation subset, so all {trainer.config.epochs} epochs are trained and the last weights "
        "are kept; patience and metric have no effect."
    )


def _start_tracking(
    name: str, folder: Path, run_config: dict[str, Any], resume: bool, stack: contextlib.ExitStack
) -> Tracking:
    """Start a run of the tracker, or with ``resume`` continue it, until ``stack`` closes."""
    path = folder / "checkpoints" / "tracker.json"
    recorded = json.loads(path.read_text(encoding="utf-8")) if resume and path.exists() else {}
    tracking = Tracking(name, folder, recorded if recorded.get("tracker") == name else None)
    stack.enter_context(tracking.open())
    run_config["tracking"] = tracking.record()
    atomic_write_text(path, json.dumps(run_config["tracking"]))
    if not recorded:  # MLflow refuses to change them
        made_in = environment()
        tracking.describe(
            {
                **{entry: run_config[entry] for entry in ("model", "class", "preset", "seed", "split")},
                "options": run_config["config"],
                "data": run_config["data"],
                "run_folder": str(folder),
                "versions": made_in["packages"],
                "hardware": {entry: made_in[entry] for entry in ("processor", "cores", "cuda")},
            }
        )
    return tracking


def describe_run(
    kind: type[Model],
    preset: str | None,
    options: ModelConfig,
    seed: int,
    split: Split,
    phase_runs: dict[str, RunContents],
) -> dict[str, Any]:
    """The content of config.json that is known before training."""
    return {
        "format": CONFIG_FORMAT,
        **external.describe(kind),
        "preset": preset,
        "config": options.model_dump(mode="json"),
        "defaults": kind.Config.build(preset).model_dump(mode="json"),
        "phases_from": {
            phase: {"run": str(run.path), "weights": sha256_file(run.path / "model.safetensors")}
            for phase, run in phase_runs.items()
        },
        "seed": seed,
        "split": {"name": split.name, "params": split.params, "fingerprint": split.fingerprint, "leak": split.leak},
        "data": {
            "fingerprint": split.dataset.fingerprint_without_synthetic,
            "augmentation": augmentation(split.dataset),
            "tables": split.dataset.tables_fingerprint if kind.reads_tables_with(options) else None,
            "item_features": item_features(split.dataset) if kind.reads_content_with(options) else None,
            "users": split.dataset.num_users,
            "items": split.dataset.num_items,
            "interactions": split.dataset.num_interactions,
            "has_timestamps": split.dataset.has_timestamps,
            "title": split.dataset.title if split.dataset.items is not None else None,
            "histories_end": split.dataset.interactions.last_time() if split.dataset.has_timestamps else None,
            "subsets": _subsets(split),
            "without_history": {name: without_history(split, name)[0] for name in ("valid", "test")},
        },
    }


def item_features(data: Dataset) -> dict[str, Any] | None:
    """What config.json says about the item features of a dataset; None without any."""
    if not data.item_features:
        return None
    declared = [{"column": feature.column, "kind": feature.kind} for feature in data.item_features]
    return {"features": declared, "fingerprint": data.features_fingerprint}


def _subsets(split: Split) -> dict[str, dict[str, int]]:
    """The counts of each subset, and of training and validation together."""
    train, valid, test = (split.subset == subset for subset in (TRAIN, VALID, TEST))
    masks = {"train": train, "valid": valid, "before_test": train | valid, "test": test}
    synthetic = split.dataset.interactions.synthetic
    return {
        name: {
            "interactions": int((mask if synthetic is None else mask & ~synthetic).sum()),
            "users": int((split.user_counts(mask) > 0).sum()),
            "items": int((split.item_counts(mask) > 0).sum()),
            "synthetic": 0 if synthetic is None else int((mask & synthetic).sum()),
        }
        for name, mask in masks.items()
    }


def counts(histories: Histories) -> dict[str, int]:
    """How many interactions there are, of how many users with how many items; and how many synthetic ones beside."""
    own = histories.without_synthetic()
    return {
        "interactions": len(own.items),
        "users": int((own.lengths > 0).sum()),
        "items": len(np.unique(own.items)),
        "synthetic": len(histories.items) - len(own.items),
    }


def now() -> str:
    """The time as config.json has it, in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _train(
    trainer: Trainer,
    split: Split,
    folder: Path,
    run_config: dict[str, Any],
    resume: bool,
    memory: PeakMemory,
    source: RunContents | None,
) -> Run:
    """Train, choose on validation data, and write the run into its folder, which the main process has locked.

    ``source`` is the run that the whole network was taken from, if it was.
    """
    network = trainer.model
    with out_of_memory(f"The training of {network.name}", LESS_MEMORY):
        state = trainer.run(resume)
    trained = time.monotonic()
    remaining = trainer.phases[state.phase + 1 :]
    if remaining:
        raise TrainingError(
            f"The time ran out in phase {trainer.phases[state.phase]!r}, before {remaining[-1]!r}.",
            "Continue with --resume and more minutes. The checkpoint is kept.",
        )
    last = trainer.phases[-1] if trainer.phases else None
    selects = last is not None and network.chosen_by_ranking(last)
    if len(trainer.view.valid.users) and selects and state.best is None:
        warnings.warn(
            "Training ended before the first validation; the last weights are kept. Give it more minutes (and "
            "--resume), or a smaller validate_every.",
            RediffuseWarning,
            stacklevel=3,
        )
    resolved = trainer.calibrate()
    network.resolve(resolved)
    validation = trainer.validate() if len(trainer.view.valid.users) else None
    refitted = validation is not None and network.refits
    if refitted:  # the metrics above are those of the model that has not seen the validation interactions
        trainer.refit(split.before_test())
    minutes = state.seconds / 60
    taken = {} if source is None else source.config["training"]
    if taken:  # the network cost what it cost there
        minutes += taken["minutes"] + (time.monotonic() - trained) / 60
    if not network.trained_by_gradient:
        minutes += (time.monotonic() - trained) / 60  # the choices are its training
    noise = noise_of(trainer)
    trainer.finish()
    run_config |= {
        "resolved": resolved,
        "noise": noise,
        "created": now(),
        "training": {
            "best_epoch": taken.get("best_epoch", state.best_epoch),
            "finished": state.done,
            "stopped": taken.get("stopped", trainer.stopped()),
            "refitted": refitted,
            "minutes": minutes,
            "precision": taken.get("precision", state.precision),
            "device": taken.get("device", devices.description(trainer.model.device)),
            "processes": distributed.world_size(),
            "parameters": sum(p.numel() for p in network.parameters()),
            "peak_memory_mib": memory.mib(),
        },
        "validation": validation,
    }
    if source is not None:  # how the network was trained
        distributed.main_process_first(lambda: atomic_write_text(folder / LOG, (source.path / LOG).read_text("utf-8")))
    distributed.main_process_first(lambda: write_files(trainer, split, folder, run_config))
    return Run(folder, run_config, validation, minutes)


def noise_of(trainer: Trainer) -> list[dict[str, object]]:
    """The records of the model's `rediffuse.diffusion.NoiseLevels`; warns where they do not fit the noise."""
    found = trainer.model.noise_levels(trainer.data)
    for levels in found:
        if (remark := levels.remark()) is not None:
            warnings.warn(f"{remark} See docs/diffusion.md.", RediffuseWarning, stacklevel=4)
    return [levels.record() for levels in found]


def write_files(trainer: Trainer, split: Split, folder: Path, run_config: dict[str, Any]) -> None:
    """Write the files of the finished run."""
    data = split.dataset
    known = (split.subset == TRAIN) | (split.subset == VALID)
    columns = {"item_id": data.item_ids, "train_count": trainer.data.popularity}
    if data.items is not None and data.title is not None:
        columns["title"] = data.items[data.title].cast(pl.String)
    made_in = environment()
    write_run(
        folder,
        run_config,
        made_in,
        trainer.model,
        pl.DataFrame(columns),
        data.user_ids,
        data.interactions,  # all of them: recommendations are for now, and evaluation makes histories of its own
        model_card(type(trainer.model), run_config, made_in),
        trainer.model.artifacts(data.user_ids, data.item_ids),
        ~known,
        data.items,
        {} if trainer.encoder is None else encoder_files(trainer.encoder),
    )


def make_trainer(
    kind: type[Model], options: ModelConfig, view: TrainingView, folder: Path, *, seed: int, **others: Any
) -> Trainer:
    """A new model, whose weights depend on ``seed`` alone, and its `Trainer`, which gets ``others``.

    Raises:
        ConfigError: the model does not fit into memory.
    """
    check_size(kind, options, view.num_items, view.num_users)
    with torch.random.fork_rng():
        seed_torch(seed, "weights")
        network = kind(options, view.num_items, view.num_users)
    return Trainer(network, view, folder, seed=seed, **others)
