"""`tune`: search a model's options on validation data."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

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
from rediffuse.data.split import Split, as_split
from rediffuse.errors import ConfigError, DataError, MissingExtraError, RediffuseWarning, TrainingError
from rediffuse.evaluation.metrics import parse_metric
from rediffuse.models import external, model_class, names
from rediffuse.models.base import Model
from rediffuse.runs.lock import folder_lock
from rediffuse.tuning.search import Search, describe_domain
from rediffuse.tuning.study import Study, begin_study, check_folder, open_journal, quiet_optuna

# Trials that run to their end before any is stopped for being below the median of the others.
TRIALS_BEFORE_PRUNING = 5
# The share of the epochs that every trial gets: small learning rates start slowly.
WARM_UP = 0.1


def tune(
    model: str | type[Model],
    data: Split | Dataset | str | Path,
    out: str | Path | None = None,
    *,
    trials: int = 30,
    max_minutes: float | None = None,
    config: dict[str, Any] | ModelConfig | None = None,
    preset: str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Study:
    """Search a model's options for the best value of its validation metric. On a folder with a study it goes on.

    The model as it is (``preset`` and ``config``) is the first trial. All trials train with the same seed.

    Args:
        model: a name (see `rediffuse.models.names`), the import path of a class (``"my_package.module:MyModel"``), or
            the class itself.
        data: a split, whose training and validation subsets are used; no trial can reach the test subset. Of a dataset,
            or the path of a dataset folder, the default split is used, and a warning names it.
        out: the study's folder, which is required.
        trials: finished ones (complete, pruned or failed) at which to stop, earlier sessions included.
        max_minutes: of wall time over all trials, earlier sessions included; the trial that runs then is stopped.
        config: options that are fixed and not searched.
        preset: named options to start from; they are searched.
        seed: of the search and of every training.
        progress: draw a progress bar and print a line per trial on stderr.

    Raises:
        MissingExtraError: Optuna is not installed.
        ConfigError: unknown model, preset, option or metric; nothing to search; ``trials`` or ``max_minutes`` not
            positive.
        DataError: the split has no validation subset.
        RunError: ``out`` holds something else, or another study, or one that another process works on.
        StorageError: ``out`` cannot be written.
        TrainingError: no trial reached a validation.
    """
    try:
        import optuna
    except ImportError:
        raise MissingExtraError("optuna", "tune") from None
    kind = model_class(model)
    split = as_split("data", data)
    folder = require_path("out", out, 'Name a folder for the study: out="studies/mine".')
    trials = require_integer("trials", trials, minimum=None)
    if max_minutes is not None:
        max_minutes = require_number("max_minutes", max_minutes)
    preset, seed = require_text("preset", preset), require_integer("seed", seed, minimum=None)
    if trials < 1 or (max_minutes is not None and not max_minutes > 0):
        raise ConfigError(
            f"There is nothing to do in {trials} trials and {max_minutes} minutes.", "RankingQuery for more."
        )
    distributed.init()
    if distributed.world_size() > 1:
        raise ConfigError("A study runs in one process.", "Start it without accelerate launch or torchrun.")
    config = require_options("config", config, kind.Config)
    default = kind.Config.build(preset, config, model=kind.name)
    parse_metric(default.metric.removesuffix("/unseen"))
    searched = {option: domain for option, domain in kind.Config.search.items() if option not in (config or {})}
    if not searched:
        if kind.Config.search:
            raise ConfigError(
                f"All options of {kind.name} that could be searched are fixed.", "Leave one of them free."
            )
        others = [name for name in names(installed=False) if model_class(name).Config.search]
        raise ConfigError(f"{kind.name} has no options to search.", f"Models that have: {', '.join(others)}.")
    view = split.training_view()
    if not len(view.valid.users):
        raise DataError("This split has no validation subset, and a search needs one.", "Choose another split.")
    identity = {
        "model": kind.name,
        "class": external.class_path(kind),
        "config": default.model_dump(mode="json"),
        "search": {option: describe_domain(domain) for option, domain in searched.items()},
        "seed": seed,
        "split": {"name": split.name, "params": split.params, "fingerprint": split.fingerprint},
    }
    identity = json.loads(json.dumps(identity))
    check_folder(folder, identity)  # refused before anything is written
    with quiet_optuna(), folder_lock(folder, "tuning"):
        begin_study(folder, identity)
        study = optuna.create_study(
            study_name=kind.name,
            storage=open_journal(folder / "study.journal"),
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(TRIALS_BEFORE_PRUNING, math.ceil(WARM_UP * default.epochs)),
            load_if_exists=True,
        )
        # From here on nothing holds the split.
        search = Search(kind, default, searched, view, split.dataset.user_ids, folder, seed, study, progress)
        search.recover()
        found = search.write(trials, max_minutes)
        while search.finished() < trials and (left := (max_minutes or math.inf) - search.minutes()) > 0:
            search.run_one(left)
            found = search.write(trials, max_minutes)
    if found is None:
        errors = [text for trial in study.trials if (text := trial.user_attrs.get("error"))]
        remedy = f"The last error was: {errors[-1]}" if errors else "Give it more minutes."
        raise TrainingError(f"No trial of {folder} reached a validation.", remedy)
    if found.default_rank == 1 and len(found.ranking) > 1:
        warnings.warn(
            f"The default was never beaten in {len(found.ranking)} trials; best.yaml is the default.",
            RediffuseWarning,
            stacklevel=2,
        )
    return found
