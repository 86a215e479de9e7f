"""`refit`: train the model of a finished run again, on all interactions."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

import torch

from rediffuse import devices, distributed
from rediffuse.arguments import require_flag, require_number
from rediffuse.config import selected_value
from rediffuse.data.dataset import Dataset
from rediffuse.data.loading import as_dataset
from rediffuse.data.split import none
from rediffuse.errors import ConfigError, DataError, RunError, TrainingError
from rediffuse.memory import PeakMemory
from rediffuse.models.blend import Blend
from rediffuse.objects.folders import output
from rediffuse.runs.identity import open_run_folder
from rediffuse.runs.run_folder import LOG, Run, RunContents, named, read_log, read_run, run_path
from rediffuse.runs.split_of import split_of
from rediffuse.training.callbacks import Callbacks
from rediffuse.training.progress import reporting
from rediffuse.training.train import describe_run, make_trainer, noise_of, now, write_files
from rediffuse.training.uploads import with_uploads


def refit(
    run: str | Path | Run,
    data: Dataset | str | Path,
    out: str | Path,
    *,
    keep_test: bool = False,
    resume: bool = False,
    max_minutes: float | None = None,
    progress: bool = False,
    device: str | torch.device = devices.AUTO,
) -> Run:
    """Train the model of a finished run again on all interactions, and write it as a run of its own.

    Nothing is held out, unless ``keep_test``, and nothing is chosen: options, seed and choices on validation data are
    those of the run. A model that is trained by gradient gets as many optimiser steps as the run took to its best
    weights, to whole epochs.

    The new run has no validation figures of its own, and without ``keep_test`` no test figures; those of the run that
    it was chosen by are an estimate.

    Args:
        run: the run that was chosen, by `rediffuse.evaluate` or `rediffuse.compare`.
        data: the dataset that it was trained on, or a later one, or the path of its folder.
        out: the new run folder.
        keep_test: learn from the training and validation subsets alone, so that the new run can be evaluated as the
            run can. It needs the same data.
        resume: continue from the last checkpoint in ``out``.
        max_minutes: limit of the wall time over all sessions.
        progress: say on stderr how training goes, as `rediffuse.train`.
        device: where to train, as for `rediffuse.train`.

    Raises:
        ConfigError: the run is a blend, an argument has the wrong type, or torch finds no such device.
        DataError: the data do not declare the item features that the run has learned from.
        RunError: the run cannot be read, or its log is missing; ``out`` is not empty; with ``keep_test``, the run has
            no test subset, or other data.
        StorageError: ``out`` cannot be written.
        TrainingError: as `rediffuse.train`, or the time ran out. The checkpoint is kept.
    """
    distributed.init()
    memory = PeakMemory(devices.resolve(device))
    source = run_path("run", run)
    dataset = as_dataset("data", data)
    place = output("out", out, 'Name a folder for the new run: out="runs/live".')
    folder = place.folder
    keep_test, resume = require_flag("keep_test", keep_test), require_flag("resume", resume)
    if max_minutes is not None:
        max_minutes = require_number("max_minutes", max_minutes)
    contents = read_run(source)
    kind, chosen = type(contents.model), contents.config
    if issubclass(kind, Blend):
        raise ConfigError(
            f"{source} is a blend, whose weights are chosen on validation data.", "Refit one of the runs that it has."
        )
    if keep_test and chosen["split"]["name"] == "none":
        raise RunError(f"{source} has no test subset to keep.", "Refit it without keep_test.")
    _check_features(contents, dataset)
    split = split_of(contents, dataset).training_on_validation() if keep_test else none(dataset)
    steps = _chosen_steps(contents)
    run_config = describe_run(kind, chosen["preset"], contents.model.config, chosen["seed"], split, {})
    if keep_test:
        run_config["split"] = chosen["split"]
    run_config["refit_of"] = {
        "run": named(run, source),
        "weights": contents.weights,
        "split": chosen["split"],
        "metric": contents.model.config.metric,
        "validation": chosen["validation"],
        "steps": steps,
    }
    trainer = make_trainer(
        kind,
        contents.model.config,
        split.training_view(),
        folder,
        seed=chosen["seed"],
        user_ids=dataset.user_ids,
        max_minutes=max_minutes,
        show_progress=progress,
        steps=steps,
        device=device,
        callbacks=with_uploads(Callbacks([]), place),
    )
    network = trainer.model
    resolved = copy.deepcopy(chosen["resolved"])
    remedy = "The last checkpoint is kept: start the same command again with --resume."
    with distributed.fail_together(remedy), reporting(progress), contextlib.ExitStack() as stack:
        distributed.main_process_first(lambda: place.start(resume=resume))
        distributed.main_process_first(lambda: open_run_folder(folder, run_config, resume, stack))
        if not network.trained_by_gradient:
            network.resolve(resolved)  # the choices are part of what is fitted
        state = trainer.run(resume)
        if not state.done:
            raise TrainingError("The time ran out before the last step.", "Continue with --resume and more minutes.")
        if network.trained_by_gradient:
            network.resolve(resolved)
            if network.refits:
                trainer.refit(split.before_test())  # with the choices, as after a training
        if hasattr(network, "dropped"):
            resolved["dropped"] = network.dropped
        run_config |= {
            "resolved": resolved,
            "noise": noise_of(trainer),
            "created": now(),
            "training": chosen["training"]
            | {
                "best_epoch": 0,
                "stopped": trainer.stopped(),
                "epochs": {record["phase"]: record["epoch"] for record in read_log(folder)},
                "finished": True,
                "refitted": keep_test,
                "minutes": state.seconds / 60,
                "precision": state.precision,
                "device": devices.description(trainer.model.device),
                "processes": distributed.world_size(),
                "parameters": sum(p.numel() for p in network.parameters()),
                "peak_memory_mib": memory.mib(),
            },
            "validation": None,
        }
        distributed.main_process_first(lambda: write_files(trainer, split, folder, run_config))
    distributed.main_process_first(place.publish)
    return Run(place.path, run_config, None, state.seconds / 60)


def _check_features(contents: RunContents, dataset: Dataset) -> None:
    """Check that a dataset declares the item features that a run has learned from.

    Raises:
        DataError: it declares others, or none, or the run has none.
    """
    if not type(contents.model).reads_content_with(contents.model.config):
        return
    described = contents.config["data"].get("item_features") or {"features": []}
    learned = [f"{feature['column']}:{feature['kind']}" for feature in described["features"]]
    declared = [str(feature) for feature in dataset.item_features]
    if declared != learned:
        raise DataError(
            f"{contents.path} has learned from {_named(learned)}, and the data declare {_named(declared)}.",
            f"Declare the same: data.with_features({learned}), or rediffuse prepare --item-features."
            if learned
            else "Take them away, data.with_features([]), or train a model with them and refit that.",
        )


def _named(features: list[str]) -> str:
    return f"the item features {', '.join(features)}" if features else "no item features"


def _chosen_steps(contents: RunContents) -> dict[str, int]:
    """Phase -> the optimiser steps to its best weights, or all of them where no validation chose.

    A phase that was taken from another run has no steps in the log, and is trained as its options say.

    Raises:
        RunError: the log of a model that is trained by gradient is missing.
    """
    model = contents.model
    if not model.trained_by_gradient:
        return {}
    log = read_log(contents.path) if LOG in contents.digests else []
    if not log:
        raise RunError(
            f"{contents.path} has no metrics.jsonl, so its number of epochs is unknown.",
            "Restore it from a copy, or train with --split none and --set epochs=N.",
        )
    found: dict[str, int] = {}
    for phase in dict.fromkeys(record["phase"] for record in log):
        records = [record for record in log if record["phase"] == phase]
        metric = model.training_options(phase).metric
        validated: list[dict[str, Any]] = [record for record in records if record.get("validation")]
        # The first of equal values, as the loop keeps it.
        last = (
            max(validated, key=lambda record: selected_value(record["validation"], metric))
            if validated
            else records[-1]
        )
        found[phase] = sum(record["steps"] for record in records[: last["epoch"]])
    return found
