"""Datasets with events written before each history: by DiffuASR, and by what it must be compared with.

- ``diffuasr``: `rediffuse.models.diffuasr`;
- ``asrep``: a SASRec that reads from right to left and goes on (Liu et al., ASReP, SIGIR 2021);
- ``random-seq``: items of the person's own history; ``random``: any items.

Only training events of the split are seen; the last of each person's also choose the weights of generators. What is
written depends on them, the options and the seed alone.
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
from rediffuse.data.synthetic import augment as put_before
from rediffuse.errors import ConfigError, RediffuseWarning, RunError, TrainingError, did_you_mean
from rediffuse.models import model_class
from rediffuse.models.base import Model
from rediffuse.models.diffuasr import DiffuASR
from rediffuse.runs.identity import identity_file, refuse_another
from rediffuse.runs.run_folder import Run, read_run, run_path
from rediffuse.training import train

# Options of diffuasr that are arguments of `augment`.
_ARGUMENTS = {
    "n": "Give n itself (--n).",
    "only_shorter_than": "Give only_shorter_than itself (--only-shorter-than).",
    "backbone": "Train the backbone on what is written: rediffuse train MODEL OUT.",
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
    """The split's dataset with up to ``n`` written events before each history that has a training event.

    They are marked, belong to the training subset of this split and no other, and are not loss targets unless a model's
    ``synthetic_targets`` says so.

    Args:
        data: a split, whose training subset is used. Of a dataset, or the path of a dataset folder, the default split
            is used, and a warning names it.
        method: one of `METHODS`.
        n: events written per person.
        only_shorter_than: only before histories with fewer training events.
        run: folder of the generator's training (diffuasr and asrep). Trained there unless it is finished; goes on
            with a training that was interrupted.
        config, preset: options of the generator's training: of ``diffuasr``, or of ``sasrec`` for asrep.
        seed: of the training and of what is written.
        max_minutes: of training.

    Raises:
        ConfigError: an unknown method, numbers out of range, options of a method that has none, or no ``run``.
        RunError: ``run`` holds another model, or was trained on another split or with another seed.
        TrainingError: the time ran out before the generator was trained.
    """
    if method not in METHODS:
        raise ConfigError(f"There is no way to augment called {method!r}.", did_you_mean(method, METHODS))
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
        raise ConfigError(f"{name!r} is no option of the generator's training here.", _ARGUMENTS[name])
    options: dict[str, Any] = {"n": n, "only_shorter_than": only_shorter_than, "seed": seed}
    plain = dataclasses.replace(split, dataset=split.dataset.without_synthetic(), subset=_real_subset(split))
    view = plain.training_view()
    if method in ("random", "random-seq"):
        if config or preset or run is not None:
            raise ConfigError(f"{method} trains nothing.", "Leave out the options of a training.")
        write = _random if method == "random" else _random_seq
        written = write(view.train, view.num_items, n, seed)
    elif run is None:
        raise ConfigError(f"{method} needs a folder for the training of its generator.", "Give run=...")
    elif method == "diffuasr":
        wanted = {"n": n, "only_shorter_than": only_shorter_than, "backbone": None, **(config or {})}
        inner = _within_training(plain, backwards=False)
        model = _trained("diffuasr", inner, Path(run), preset, wanted, seed, max_minutes, progress)
        assert isinstance(model, DiffuASR)
        options["guidance"] = model.config.guidance
        options["guidance_scale"] = model.config.guidance_scale
        written = model.write(view.train, seed)
    else:
        inner = _within_training(plain, backwards=True)
        model = _trained("sasrec", inner, Path(run), preset, config or {}, seed, max_minutes, progress)
        written = _going_on(model, view.train, n)
    written[view.train.lengths == 0] = -1
    if only_shorter_than is not None:
        written[view.train.lengths >= only_shorter_than] = -1
    name = f"diffuasr-{options['guidance']}" if method == "diffuasr" else method
    return put_before(plain, written, name, options)


def _real_subset(split: Split) -> NDArray[np.int8]:
    synthetic = split.dataset.interactions.synthetic
    return split.subset if synthetic is None else split.subset[~synthetic]


def _trained(
    kind: str,
    split: Split,
    run: Path,
    preset: str | None,
    config: dict[str, Any],
    seed: int,
    max_minutes: float | None,
    progress: bool,
) -> Model:
    """The model of a run folder, trained there if it was not."""
    if not (run / "manifest.json").exists():
        begun = identity_file(run).exists()
        try:
            train(
                kind,
                split,
                run,
                preset=preset,
                config=config,
                seed=seed,
                resume=begun,
                max_minutes=max_minutes,
                progress=progress,
            )
        except TrainingError as error:
            if max_minutes is None:
                raise
            raise TrainingError(str(error), "Do the same with more minutes; the training goes on.") from None
    contents = read_run(run)
    if not contents.config["training"].get("finished", True):
        warnings.warn(
            f"The training in {run} was ended by its time; what it had learned by then is used.",
            RediffuseWarning,
            stacklevel=3,
        )
    if contents.config["model"] != kind:
        raise RunError(f"{run} is a run of {contents.config['model']}, not of {kind}.", "Choose another folder.")
    asked = model_class(kind).Config.build(preset, config).model_dump(mode="json")
    wanted = {option: asked[option] for option in (asked if preset else config)}
    had = {option: contents.config["config"].get(option) for option in wanted}
    earlier = {"config": had, "seed": contents.config["seed"]}
    remedy = "Leave these options out, or choose another folder."
    refuse_another(run, earlier, {"config": wanted, "seed": seed}, remedy)
    if contents.config["split"]["fingerprint"] != split.fingerprint:
        raise RunError(f"{run} was trained on another split than this.", "Choose another folder, or the same split.")
    return contents.model


# --- the other ways -------------------------------------------------------------------------------------------


def _random(histories: Histories, num_items: int, n: int, seed: int) -> NDArray[np.int64]:
    """Any items, each person's by the person's number."""
    rows = [np.random.default_rng((seed, user)).integers(0, num_items, n) for user in range(len(histories))]
    return np.stack(rows) if rows else np.empty((0, n), dtype=np.int64)


def _random_seq(histories: Histories, num_items: int, n: int, seed: int) -> NDArray[np.int64]:
    """Items of the person's own history."""
    written = np.full((len(histories), n), -1, dtype=np.int64)
    for user in np.flatnonzero(histories.lengths):
        written[user] = np.random.default_rng((seed, int(user))).choice(histories.row(int(user)), n)
    return written


def _within_training(split: Split, backwards: bool) -> Split:
    """The training events as data of their own, from left to right or ``backwards``; the last of each person validates.

    So generators never see what the split validates and tests on, nor are their weights chosen by it.
    """
    data = split.dataset
    events = data.interactions.where(split.subset == TRAIN)
    if backwards:
        turned = events.items[np.repeat(events.offsets[1:] - 1, events.lengths) - events.positions]
        events = Histories(events.offsets, turned)
    part = np.full(len(events.items), TRAIN, dtype=np.int8)
    part[events.offsets[1:][events.lengths >= 3] - 1] = VALID
    inner = dataclasses.replace(
        data, interactions=events, has_timestamps=data.has_timestamps and not backwards, given={}, report={}
    )
    return Split(inner, f"{split.name}, its training subset", split.params, part)


@torch.inference_mode()
def _going_on(model: Model, histories: Histories, n: int) -> NDArray[np.int64]:
    """(rows, n) the items that a model which reads from right to left puts before each history, the farthest first."""
    written = np.full((len(histories), n), -1, dtype=np.int64)
    known = np.flatnonzero(histories.lengths)
    for start in range(0, len(known), BLOCK):
        people = known[start : start + BLOCK]
        rows = histories.take(people)
        lists = [rows.row(i)[::-1].tolist() for i in range(len(rows))]
        for step in range(n):
            scores = model.score(Histories.from_lists(lists)).clone()
            owners = np.repeat(np.arange(len(lists)), [len(row) for row in lists])
            had = torch.tensor([item for row in lists for item in row])
            scores[torch.from_numpy(owners), had] = -torch.inf  # neither own items nor any twice, as DiffuASR
            best, chosen = scores.max(1)
            chosen[best == -torch.inf] = -1  # nothing is left
            written[people, n - 1 - step] = chosen.numpy()
            for row, item in zip(lists, chosen.tolist(), strict=True):
                row += [item] if item >= 0 else []
    return written
