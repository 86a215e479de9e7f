"""`tune`: search the options of a model on validation data."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

from rediffuse import distributed
from rediffuse.arguments import (
    require_flag,
    require_integer,
    require_number,
    require_options,
    require_path,
    require_text,
)
from rediffuse.config import ModelConfig
from rediffuse.data.cold_users import refuse_selection, selection_remark
from rediffuse.data.dataset import Dataset
from rediffuse.data.split import Split, as_split
from rediffuse.errors import ConfigError, DataError, MissingExtraError, RediffuseWarning, TrainingError
from rediffuse.evaluation.metrics import parse_metric
from rediffuse.models import external, model_class, names
from rediffuse.models.base import Model
from rediffuse.tuning.database import parse_address
from rediffuse.tuning.search import Search, describe_domain
from rediffuse.tuning.study import Study, quiet_optuna, refuse_other_folder, start_study
from rediffuse.tuning.workers import Alone, OnDatabase, OnFolder

# Trials that are complete before any is pruned for being below their median.
TRIALS_BEFORE_PRUNING = 5
# Share of the epochs in which no trial is pruned: small learning rates start slowly.
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
    worker: bool = False,
    storage: str | None = None,
) -> Study:
    """Search the options of a model for the best value of its validation metric, or continue the study in ``out``.

    The first trial is the default: the model with ``preset`` and ``config``. All trials train with the same seed.
    Several processes share a study if each of them sets ``worker`` or ``storage``. Every trial is run once; that of a
    killed worker is run again by another one.

    Args:
        model: a name (see `rediffuse.models.names`), the import path of a class (``"my_package.module:MyModel"``), or
            the class itself.
        data: a split, whose training and validation subsets are used; no trial can reach the test subset. For a
            dataset, or the path of a dataset folder, the default split is used, and a warning names it.
        out: the study's folder, which is required.
        trials: number of finished trials (complete, pruned or failed) after which to stop, over all sessions.
        max_minutes: limit of the wall time of all trials, over all sessions; the running trial is stopped then.
        config: options that are fixed, so not searched.
        preset: named options to start from; they are searched.
        seed: seed of the search and of every training.
        progress: draw a progress bar and print a line per trial on stderr.
        worker: join the other workers of the study in ``out``, on a file system that all of them see.
        storage: the URL of a database, in which workers without a common file system share a study. It has the name of
            the folder ``out``. The URL is written nowhere.

    Raises:
        MissingExtraError: Optuna is not installed.
        ConfigError: an unknown model, preset, option or metric; there is nothing to search; ``trials`` or
            ``max_minutes`` is not positive.
        DataError: the split has no validation subset, or no validation user has a history.
        RunError: ``out`` or the database holds another study, ``out`` holds something else, or another process that is
            not a worker is working on the study.
        StorageError: ``out`` cannot be written, or the database cannot be used.
        TrainingError: no trial reached a validation.

    Warns:
        RediffuseWarning: no trial is better than the default; some validation users have no history, and options are
            chosen on the others.
    """
    try:
        import optuna
    except ImportError:
        raise MissingExtraError("optuna", "tune") from None
    kind = model_class(model)
    split = as_split("data", data)
    folder = require_path("out", out, 'Name a folder for the study: out="studies/mine".')
    trials = require_integer("trials", trials)
    if max_minutes is not None:
        max_minutes = require_number("max_minutes", max_minutes, above=0)
    worker, storage = require_flag("worker", worker), require_text("storage", storage)
    address = None if storage is None else parse_address(storage)
    preset, seed = require_text("preset", preset), require_integer("seed", seed, minimum=None)
    distributed.init()
    if distributed.world_size() > 1:
        raise ConfigError("A study runs in a single process.", "Start it without accelerate launch or torchrun.")
    config = require_options("config", config, kind.Config)
    default = kind.Config.build(preset, config, model=kind.name)
    parse_metric(default.metric.removesuffix("/unseen"))
    searched = {option: domain for option, domain in kind.Config.search.items() if option not in (config or {})}
    if not searched:
        if kind.Config.search:
            raise ConfigError(f"All searchable options of {kind.name} are fixed.", "Leave out at least one of them.")
        others = [name for name in names(installed=False) if model_class(name).Config.search]
        remedy = f"Models with options to search: {', '.join(others)}."
        if not kind.trained_by_gradient and "refit" in kind.Config.model_fields:
            remedy = f"Train it: options that are null are chosen on validation data then. {remedy}"
        raise ConfigError(f"{kind.name} has no options to search.", remedy)
    view = split.training_view()
    if not len(view.valid.users):
        raise DataError("This split has no validation subset, which a search needs.", "Choose another split.")
    refuse_selection(view.valid, "options")
    if remark := selection_remark(view.valid):
        warnings.warn(remark, RediffuseWarning, stacklevel=2)
    identity = {
        "model": kind.name,
        "class": external.class_path(kind),
        "config": default.model_dump(mode="json"),
        "search": {option: describe_domain(domain) for option, domain in searched.items()},
        "seed": seed,
        "split": {"name": split.name, "params": split.params, "fingerprint": split.fingerprint},
    }
    if split.dataset.item_features and kind.reads_content_with(default):
        identity["features"] = split.dataset.features_fingerprint
    if address:
        identity["storage"] = "database"
    identity = json.loads(json.dumps(identity))
    refuse_other_folder(folder, identity)  # before anything is written
    workers = OnDatabase(folder, address) if address else OnFolder(folder) if worker else Alone(folder)
    with quiet_optuna(), workers.joined():
        with workers.turn():
            start_study(folder, identity)
            study = optuna.create_study(
                study_name=folder.resolve().name if address else kind.name,
                storage=workers.storage(),
                direction="maximize",
                pruner=optuna.pruners.MedianPruner(TRIALS_BEFORE_PRUNING, math.ceil(WARM_UP * default.epochs)),
                load_if_exists=True,
            )
            workers.agree(study, identity)
        # From here on, nothing refers to the split.
        search = Search(kind, default, searched, view, split.dataset.user_ids, folder, seed, study, progress, workers)
        result = search.run(trials, max_minutes)
    if result is None:
        errors = [text for trial in study.trials if (text := trial.user_attrs.get("error"))]
        remedy = f"The last error was: {errors[-1]}" if errors else "Give it more minutes."
        raise TrainingError(f"No trial of {folder} reached a validation.", remedy)
    if result.default_rank == 1 and len(result.ranking) > 1:
        warnings.warn(
            f"The default was never beaten in {len(result.ranking)} trials; best.yaml is the default.",
            RediffuseWarning,
            stacklevel=2,
        )
    return result
