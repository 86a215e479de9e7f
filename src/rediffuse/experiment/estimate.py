"""What is left of an experiment, and how long it takes: from time limits and finished runs, never from a guess."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rediffuse.experiment.plan import Experiment, PlannedRun
from rediffuse.experiment.tuned import tuning_facts
from rediffuse.runs.run_folder import MANIFEST


@dataclass(frozen=True)
class Left:
    """What is left to train.

    Attributes:
        runs: how many runs.
        searches: how many searches of options.
        most: minutes that they take at most; None if that is unknown.
        expected: minutes that they take if they take as long as finished runs of the same entry; None if unknown.
        basis: what the times rest on, or why they are unknown, in a sentence.
    """

    runs: int
    searches: int
    most: float | None
    expected: float | None
    basis: str

    def __str__(self) -> str:
        if not self.runs and not self.searches:
            return "Nothing is left to train."
        count = f"{self.runs} run{'s' * (self.runs != 1)}"
        if self.searches:
            count += f" and {self.searches} search{'es' * (self.searches != 1)} of options"
        most = "unknown" if self.most is None else _minutes(self.most)
        about = "" if self.expected is None else f", about {_minutes(self.expected)} going by finished runs"
        verb = "is" if self.runs + self.searches == 1 else "are"
        return f"{count} {verb} left: at most {most}{about}. {self.basis}"


def left(experiment: Experiment, visited: set[Path] = frozenset()) -> Left:  # pyright: ignore[reportArgumentType]
    """What is left, by what the folders of an experiment hold; ``visited`` are folders of runs that are done with.

    The options of finished runs are not compared with those of the file, which needs the data.
    """
    minutes = {run.folder: _trained(run.folder) for run in experiment.runs}
    waiting = [run for run in experiment.runs if run.folder not in visited and not _finished(run)]
    most: list[float | None] = []
    expected: list[float | None] = []
    unlimited: dict[str, None] = {}
    for run in waiting:
        spent = minutes[run.folder] or 0.0
        limit = None if run.max_minutes is None else max(run.max_minutes - spent, 0.0)
        alike = [
            took
            for other in experiment.runs
            if (other.setting, other.label) == (run.setting, run.label) and other is not run
            if _finished(other) and (took := minutes[other.folder]) is not None
        ]
        most.append(limit)
        expected.append(max(sum(alike) / len(alike) - spent, 0.0) if alike else None)
        if limit is None:
            unlimited[run.label] = None
    studies = {run.study: run for run in waiting if run.study is not None}
    budget, searches, unbounded = experiment.file.tune, 0, False
    for study in studies:
        facts = tuning_facts(study)
        if budget is None or (facts and facts["trials"] >= budget.trials):
            continue
        rest = None if budget.minutes is None else max(budget.minutes - (facts["minutes"] if facts else 0.0), 0.0)
        if rest == 0:
            continue
        searches, unbounded = searches + 1, unbounded or rest is None
        most.append(rest)
        expected.append(None)
    reasons = []
    if unlimited:
        reasons.append(f"{', '.join(unlimited)}: no time limit (max_minutes)")
    if unbounded:
        reasons.append("tune: no minutes")
    limits = " and tune.minutes" * (searches > 0)
    basis = f"{'; '.join(reasons)}." if reasons else f"The limit is max_minutes{limits}; evaluation is not in it."
    return Left(len(waiting), searches, _sum(most), _sum(expected), basis)


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _minutes(value: float) -> str:
    return f"{value:.1f} minutes" if value < 90 else f"{value / 60:.1f} hours"


def _config(folder: Path) -> dict[str, Any] | None:
    """The training section of a finished or stopped run; None if it has no weights yet."""
    if not (folder / MANIFEST).is_file():
        return None
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))["training"]
    except (OSError, ValueError, KeyError):
        return None  # `train` reports it


def _trained(folder: Path) -> float | None:
    training = _config(folder)
    return None if training is None else training["minutes"]


def _finished(run: PlannedRun) -> bool:
    return is_finished(_config(run.folder), run.max_minutes)


def is_finished(training: dict[str, Any] | None, max_minutes: float | None) -> bool:
    """Whether a run needs no more training: it has ended, or its time is spent."""
    if training is None:
        return False
    return bool(training["finished"]) or (max_minutes is not None and training["minutes"] >= max_minutes)
