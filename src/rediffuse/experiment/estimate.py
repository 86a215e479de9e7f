"""What is left of an experiment, and how long it takes: from time limits and finished runs, never from a guess."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rediffuse.experiment.planned import Experiment
from rediffuse.experiment.tuned import is_spent, tuning_facts
from rediffuse.runs.run_folder import MANIFEST


@dataclass(frozen=True)
class Left:
    """What is left to train.

    Attributes:
        runs: how many runs.
        searches: how many searches of options.
        most: minutes that they take at most, by their time limits; None if one of them has no limit.
        expected: minutes that they take, going by finished runs of the same entries; None if one of them has none.
        text: what is left and how long it takes, what that rests on, and what is unknown and why.
    """

    runs: int
    searches: int
    most: float | None
    expected: float | None
    text: str


def left(experiment: Experiment, visited: Collection[Path] = ()) -> Left:
    """What is left, by what the folders of an experiment hold; ``visited`` are folders of runs that are done with.

    The options of finished runs are not compared with those of the file, which needs the data.
    """
    trained = {run.folder: _training(run.folder) for run in experiment.runs}
    waiting = [
        run
        for run in experiment.runs
        if run.folder not in visited and not is_finished(trained[run.folder], run.max_minutes)
    ]
    searches = _searches(experiment, visited)
    if not waiting and not searches:
        return Left(0, 0, 0.0, 0.0, "Nothing is left to train.")
    limits: list[float] = []
    expected: list[float] = []
    unlimited: dict[str, list[str]] = {}
    for run in waiting:
        spent = (trained[run.folder] or {"minutes": 0.0})["minutes"]
        alike = [
            training["minutes"]
            for other in experiment.runs
            if (other.setting, other.label) == (run.setting, run.label) and (training := trained[other.folder])
            if is_finished(training, other.max_minutes)
        ]
        if alike:
            expected.append(max(sum(alike) / len(alike) - spent, 0.0))
        if run.max_minutes is None or not run.kind.trained_by_gradient:
            reason = "no max_minutes" if run.kind.trained_by_gradient else "closed form, which no limit stops"
            unlimited.setdefault(reason, []).append(run.label)
        else:
            limits.append(max(run.max_minutes - spent, 0.0))
    limited = [limit for limit in searches if limit is not None]
    if len(limited) < len(searches):
        unlimited["tune has no minutes"] = ["searches of options"]
    what = _count(len(waiting), len(searches))
    sentences = [f"{what} {'is' if len(waiting) + len(searches) == 1 else 'are'} left."]
    if limits or limited:
        named = " and ".join(["max_minutes"] * bool(limits) + ["tune.minutes"] * bool(limited))
        total = _minutes(sum(limits) + sum(limited))
        sentences.append(f"At most {total} for {_count(len(limits), len(limited))}, by {named}.")
    for reason, labels in unlimited.items():
        sentences.append(f"Unknown for {', '.join(dict.fromkeys(labels))}: {reason}.")
    if expected:
        finished = f"for {_count(len(expected), 0)}, by finished runs of the same entry"
        sentences.append(f"About {_minutes(sum(expected))} {finished}.")
    sentences.append("Calibration and evaluation come on top.")
    most = None if unlimited else sum(limits) + sum(limited)
    about = sum(expected) if len(expected) == len(waiting) and not searches else None
    return Left(len(waiting), len(searches), most, about, " ".join(sentences))


def _searches(experiment: Experiment, visited: Collection[Path]) -> list[float | None]:
    """The minutes that each search has left, those of finished runs too, which a larger budget continues.

    None: it has no limit.
    """
    budget, found = experiment.file.tune, []
    runs = [run for run in experiment.runs if run.folder not in visited]
    for study in {run.study: None for run in runs if run.study is not None}:
        if budget is not None and not is_spent(facts := tuning_facts(study), budget):
            spent = facts["minutes"] if facts else 0.0
            found.append(None if budget.minutes is None else budget.minutes - spent)
    return found


def _count(runs: int, searches: int) -> str:
    parts = [f"{runs} run{'s' * (runs != 1)}"] * bool(runs)
    parts += [f"{searches} search{'es' * (searches != 1)} of options"] * bool(searches)
    return " and ".join(parts)


def _minutes(value: float) -> str:
    return f"{value:.1f} minutes" if value < 90 else f"{value / 60:.1f} hours"


def _training(folder: Path) -> dict[str, Any] | None:
    """What config.json says of the training of a run; None if it has no weights yet."""
    if not (folder / MANIFEST).is_file():
        return None
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))["training"]
    except (OSError, ValueError, KeyError):
        return None  # `train` reports it


def is_finished(training: dict[str, Any] | None, max_minutes: float | None) -> bool:
    """Whether a run needs no more training: it has ended, or its time is spent."""
    if training is None:
        return False
    return bool(training["finished"]) or (max_minutes is not None and training["minutes"] >= max_minutes)
