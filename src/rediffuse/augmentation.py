"""Datasets with synthetic interactions before each history: from DiffuASR, and from the methods to compare it with.

- ``diffuasr``: `rediffuse.models.diffuasr`;
- ``asrep``: a SASRec that reads from right to left and extends the history (Liu et al., ASReP, SIGIR 2021);
- ``random-seq``: items of the user's own history; ``random``: any items.

Only the training subset of the split is read. Each user's last interaction in it selects the weights of generators.
The result depends on the training subset, the options and the seed alone.
"""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rediffuse.arguments import require_integer, require_options
from rediffuse.config import ModelConfig
from rediffuse.data.dataset import Dataset
from rediffuse.data.histories import Histories
from rediffuse.data.split import TRAIN, VALID, Split, as_split
from rediffuse.data.synthetic import with_synthetic
from rediffuse.errors import ConfigError, RediffuseWarning, RunError, TrainingError, did_you_mean
from rediffuse.models import model_class
from rediffuse.models.base import Model
from rediffuse.models.diffuasr import DiffuASR
from rediffuse.runs.identity import identity_path, refuse_other_identity
from rediffuse.runs.run_folder import Run, read_run, run_path
from rediffuse.training import train

# Options of diffuasr that are arguments of `augment`.
_ARGUMENTS = {
    "n": "Use the argument n (--n).",
    "only_shorter_than": "Use the argument only_shorter_than (--only-shorter-than).",
    "backbone": "Train the backbone on the augmented dataset: rediffuse train MODEL OUT.",
}
METHODS = ("asrep", "diffuasr", "random", "random-seq")
BLOCK = 256


def augment(
    data: Split | Dataset | str | Path,
    method: str = "diffuasr",
    *,
    n: int = 10,
    only_shorter_than: int | None = None,
    run: str | Path | Run | None = None,
    config: dict[str, Any] | ModelConfig | None = None,
    preset: str | None = None,
    seed: int = 0,
    max_minutes: float | None = None,
    progress: bool = False,
) -> Dataset:
    """The split's dataset with up to ``n`` synthetic interactions before each history with a training interaction.

    They are marked, belong to the training subset of this split and no other, and are loss targets only with the option
    ``synthetic_targets`` of a model.

    Args:
        data: a split, whose training subset is read. Of a dataset, or the path of a dataset folder, the default split
            is used, and a warning names it.
        method: one of `METHODS`.
        n: synthetic interactions per user.
        only_shorter_than: only before histories with fewer training interactions.
        run: run folder of the generator (diffuasr and asrep). A finished run is used again; otherwise the generator is
            trained there, and an interrupted training is resumed.
        config, preset: options of the generator's training: those of ``diffuasr``, or of ``sasrec`` for asrep.
        seed: seed of the training and of the generation.
        max_minutes: limit of the training time.
        progress: show progress bars of the training.

    Raises:
        ConfigError: an unknown method, a number out of range, options for a method without training, or no ``run``.
        RunError: ``run`` holds another model, or was trained on another split or with another seed.
        TrainingError: the time ran out before the generator was trained.
    """
    if method not in METHODS:
        raise ConfigError(f"There is no augmentation method {method!r}.", did_you_mean(method, METHODS))
    split = as_split("data", data)
    n, seed = require_integer("n", n), require_integer("seed", seed, minimum=None)
    if seed < 0:
        raise ConfigError(f"seed is {seed}.", "Give a seed of at least 0.")
    if only_shorter_than is not None:
        only_shorter_than = require_integer("only_shorter_than", only_shorter_than)
    run = None if run is None else run_path("run", run)
    generator = {"diffuasr": "diffuasr", "asrep": "sasrec"}.get(method)
    config = require_options("config", config, None if generator is None else model_class(generator).Config)
    for name in _ARGUMENTS.keys() & (config or {}).keys():
        raise ConfigError(f"{name!r} cannot be set in the options of the generator.", _ARGUMENTS[name])
    options: dict[str, Any] = {"n": n, "only_shorter_than": only_shorter_than, "seed": seed}
    plain = dataclasses.replace(split, dataset=split.dataset.without_synthetic(), subset=_own_subset(split))
    view = plain.training_view()
    if method in ("random", "random-seq"):
        if config or preset or run is not None:
            raise ConfigError(f"{method} trains no model.", "Leave out run, config and preset.")
        generate = _random if method == "random" else _random_seq
        synthetic = generate(view.train, view.num_items, n, seed)
    elif run is None:
        raise ConfigError(f"{method} needs a folder for the training of its generator.", "Give run=...")
    elif method == "diffuasr":
        config = {"n": n, "only_shorter_than": only_shorter_than, "backbone": None, **(config or {})}
        inner = _within_training(plain, backwards=False)
        model = _trained_model("diffuasr", inner, Path(run), preset, config, seed, max_minutes, progress)
        assert isinstance(model, DiffuASR)
        options["guidance"] = model.config.guidance
        options["guidance_scale"] = model.config.guidance_scale
        synthetic = model.generate(view.train, seed)
    else:
        inner = _within_training(plain, backwards=True)
        model = _trained_model("sasrec", inner, Path(run), preset, config or {}, seed, max_minutes, progress)
        synthetic = _extend_backwards(model, view.train, n)
    synthetic[view.train.lengths == 0] = -1
    if only_shorter_than is not None:
        synthetic[view.train.lengths >= only_shorter_than] = -1
    name = f"diffuasr-{options['guidance']}" if method == "diffuasr" else method
    return with_synthetic(plain, synthetic, name, options)


def _own_subset(split: Split) -> NDArray[np.int8]:
    synthetic = split.dataset.interactions.synthetic
    return split.subset if synthetic is None else split.subset[~synthetic]


def _trained_model(
    kind: str,
    split: Split,
    run: Path,
    preset: str | None,
    config: dict[str, Any],
    seed: int,
    max_minutes: float | None,
    progress: bool,
) -> Model:
    """The model of a run folder, trained there if the run is not finished."""
    if not (run / "manifest.json").exists():
        try:
            train(
                kind,
                split,
                run,
                preset=preset,
                config=config,
                seed=seed,
                resume=identity_path(run).exists(),
                max_minutes=max_minutes,
                progress=progress,
            )
        except TrainingError as error:
            if max_minutes is None:
                raise
            raise TrainingError(str(error), "Repeat it with more minutes; the training is resumed.") from None
    contents = read_run(run)
    if not contents.config["training"].get("finished", True):
        warnings.warn(
            f"The training in {run} was ended by its time limit; its weights up to then are used.",
            RediffuseWarning,
            stacklevel=3,
        )
    if contents.config["model"] != kind:
        raise RunError(f"{run} is a run of {contents.config['model']}, not of {kind}.", "Choose another folder.")
    options = model_class(kind).Config.build(preset, config).model_dump(mode="json")
    requested = {option: options[option] for option in (options if preset else config)}
    recorded = {option: contents.config["config"].get(option) for option in requested}
    earlier = {"config": recorded, "seed": contents.config["seed"]}
    remedy = "Leave these options out, or choose another folder."
    refuse_other_identity(run, earlier, {"config": requested, "seed": seed}, remedy)
    if contents.config["split"]["fingerprint"] != split.fingerprint:
        raise RunError(f"{run} was trained on another split than this.", "Choose another folder, or the same split.")
    return contents.model


# --- other methods --------------------------------------------------------------------------------------------


def _random(histories: Histories, num_items: int, n: int, seed: int) -> NDArray[np.int64]:
    """Random items of the catalogue, which depend only on the seed and the user's number."""
    rows = [np.random.default_rng((seed, user)).integers(0, num_items, n) for user in range(len(histories))]
    return np.stack(rows) if rows else np.empty((0, n), dtype=np.int64)


def _random_seq(histories: Histories, num_items: int, n: int, seed: int) -> NDArray[np.int64]:
    """Random items of the user's own history."""
    synthetic = np.full((len(histories), n), -1, dtype=np.int64)
    for user in np.flatnonzero(histories.lengths):
        synthetic[user] = np.random.default_rng((seed, int(user))).choice(histories.row(int(user)), n)
    return synthetic


def _within_training(split: Split, backwards: bool) -> Split:
    """The training subset as a dataset, reversed if ``backwards``; each user's last interaction validates.

    So generators never see the validation and test subsets, and their weights are not selected by them.
    """
    data = split.dataset
    train = data.interactions.where(split.subset == TRAIN)
    if backwards:
        items = train.items[np.repeat(train.offsets[1:] - 1, train.lengths) - train.positions]
        train = Histories(train.offsets, items)
    subset = np.full(len(train.items), TRAIN, dtype=np.int8)
    subset[train.offsets[1:][train.lengths >= 3] - 1] = VALID
    inner = dataclasses.replace(
        data, interactions=train, has_timestamps=data.has_timestamps and not backwards, given={}, report={}
    )
    return Split(inner, f"{split.name}, its training subset", split.params, subset)


@torch.inference_mode()
def _extend_backwards(model: Model, histories: Histories, n: int) -> NDArray[np.int64]:
    """(rows, n) items before each history, from a model that reads from right to left; -1 where no item is left."""
    synthetic = np.full((len(histories), n), -1, dtype=np.int64)
    known = np.flatnonzero(histories.lengths)
    for start in range(0, len(known), BLOCK):
        block = known[start : start + BLOCK]
        rows = histories.take(block)
        lists = [rows.row(i)[::-1].tolist() for i in range(len(rows))]
        for step in range(n):
            scores = model.score(Histories.from_lists(lists)).clone()
            owners = np.repeat(np.arange(len(lists)), [len(row) for row in lists])
            used = torch.tensor([item for row in lists for item in row])
            scores[torch.from_numpy(owners), used] = -torch.inf  # no own items and no repeats, as in DiffuASR
            best, chosen = scores.max(1)
            chosen[best == -torch.inf] = -1
            synthetic[block, n - 1 - step] = chosen.numpy()
            for row, item in zip(lists, chosen.tolist(), strict=True):
                row += [item] if item >= 0 else []
    return synthetic
