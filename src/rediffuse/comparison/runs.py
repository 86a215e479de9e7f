"""Evaluated runs, read from their folders, checked to be comparable, and grouped by what was trained."""

from __future__ import annotations

import json
import shlex
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from rediffuse.errors import RediffuseWarning, RunError
from rediffuse.runs.run_folder import read_config, read_log

EVALUATION = ("test.json", "per_user_test.parquet", "truth_test.parquet")


def evaluation_file(name: str, protocol: str | None) -> str:
    """Name of a file of an evaluation; that of the run's own protocol (None) has no addition."""
    stem, ending = name.split(".")
    return name if protocol is None else f"{stem}-{protocol.replace(':', '-')}.{ending}"


# What people are grouped by in slices: a name, and the column of the table of people.
BY_USER = {"history length": "history_length", "number of friends": "friends"}

# What must be equal for figures to stand side by side, wherever a run says it: a name for people, and where it is.
MUST_AGREE = {
    "data": ("config", "data", "fingerprint"),
    "item and user tables": ("config", "data", "tables"),
    "split": ("config", "split", "fingerprint"),
    "candidate set": ("test", "protocol", "candidates"),
    "seen-item policy": ("test", "protocol", "seen"),
    "use of validation events as input": ("test", "protocol", "validation_is_input"),
}


@dataclass(frozen=True)
class EvaluatedRun:
    """Attributes:
    path: the run folder.
    config: content of config.json.
    test: content of test.json.
    protocol: of the evaluation, where it is not that of the run's split.
    """

    path: Path
    config: dict[str, Any]
    test: dict[str, Any]
    protocol: str | None = None

    @cached_property
    def per_user(self) -> pl.DataFrame:
        """One row per person, in the order of the task."""
        return pl.read_parquet(self.path / evaluation_file("per_user_test.parquet", self.protocol))

    @cached_property
    def truth(self) -> pl.DataFrame:
        """One row per true item."""
        return pl.read_parquet(self.path / evaluation_file("truth_test.parquet", self.protocol))

    @cached_property
    def epochs(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; none for a model that is not trained."""
        return read_log(self.path)

    @property
    def seed(self) -> int:
        return self.config["seed"]


@dataclass(frozen=True)
class Variant:
    """Runs that differ by their seed alone.

    Attributes:
        label: the model, and what sets it apart from other variants of it.
        runs: by seed.
    """

    label: str
    runs: tuple[EvaluatedRun, ...]

    @property
    def model(self) -> str:
        return self.runs[0].config["model"]

    @property
    def options(self) -> dict[str, Any]:
        return self.runs[0].config["config"]

    def values(self, metric: str, policy: str) -> list[float] | None:
        """One value per seed, or None where it was not measured."""
        found = [run.test["metrics"].get(policy, {}).get(metric) for run in self.runs]
        return None if None in found else found  # pyright: ignore[reportReturnType]

    def per_user(self, column: str) -> np.ndarray:
        """(users,) means over seeds; NaN where a metric says nothing about a person."""
        return np.mean([run.per_user[column].to_numpy() for run in self.runs], axis=0)


def read_runs(paths: Iterable[str | Path], protocol: str | None = None) -> list[EvaluatedRun]:
    """Finished runs, evaluated by ``protocol`` (None: that of their split).

    What holds no run is named in a `RediffuseWarning` and left out.

    Raises:
        RunError: a run is given twice, damaged, unfinished or not evaluated; a path does not exist; no run is left.
    """
    given = [Path(path) for path in paths]
    if missing := [str(path) for path in given if not path.exists()]:
        raise RunError(f"{', '.join(missing)}: no such folder.", "Give run folders: runs/*")
    folders = [path for path in given if (path / "manifest.json").exists() or (path / "checkpoints").exists()]
    if not folders:
        raise RunError(f"No runs in {', '.join(map(str, given)) or 'an empty list'}.", "Give run folders: runs/*")
    if others := [str(path) for path in given if path not in folders]:  # runs/* also matches what is no run
        warnings.warn(f"Left out, since they hold no run: {', '.join(others)}.", RediffuseWarning, stacklevel=3)
    places = [path.resolve() for path in folders]
    if twice := sorted({str(path) for path, place in zip(folders, places, strict=True) if places.count(place) > 1}):
        raise RunError(f"{' and '.join(twice)}: the same run is given more than once.", "Give it once.")
    configs = [read_config(folder) for folder in folders]
    own = [None if protocol == config["split"]["name"] else protocol for config in configs]
    if waiting := [str(folder) for folder, rules in zip(folders, own, strict=True) if not _is_evaluated(folder, rules)]:
        options = f" --protocol {protocol}" if protocol else ""
        commands = "; ".join(f"rediffuse evaluate {shlex.quote(folder)} DATASET{options}" for folder in waiting)
        raise RunError(
            f"Not evaluated{f' by {protocol}' if protocol else ''}: {', '.join(waiting)}.", f"Run: {commands}"
        )
    return [
        EvaluatedRun(folder, config, json.loads((folder / evaluation_file("test.json", rules)).read_text()), rules)
        for folder, config, rules in zip(folders, configs, own, strict=True)
    ]


def _is_evaluated(folder: Path, protocol: str | None) -> bool:
    # Training again starts a new manifest: an evaluation of the old weights may lie there still, but is not in it.
    names = {evaluation_file(name, protocol) for name in EVALUATION}
    return names <= json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"].keys()


def check_comparable(runs: Sequence[EvaluatedRun]) -> None:
    """Raises:
    RunError: two runs differ in something of `MUST_AGREE`, are about other people, or are the same run twice.
    """
    for name, (where, *keys) in MUST_AGREE.items():
        said = [(run, value) for run in runs if (value := _look(getattr(run, where), keys)) is not None]
        for run, mine in said[1:]:
            first, theirs = said[0]
            if mine != theirs:
                raise RunError(
                    f"{run.path} and {first.path} differ in their {name}: {_brief(run, name, mine)} and "
                    f"{_brief(first, name, theirs)}.",
                    "Compare them apart, or train and evaluate them alike.",
                )
    first = runs[0]
    for run in runs[1:]:
        for name, what in (("per_user", "people"), ("truth", "true items")):  # rows are paired by position
            mine, theirs = (getattr(each, name).select(pl.col("^(user|item)_id$")) for each in (run, first))
            if not mine.equals(theirs):
                raise RunError(f"{run.path} and {first.path} were evaluated on other {what}.", "Evaluate them again.")


def _look(facts: dict[str, Any], keys: Sequence[str]) -> Any:
    *parts, last = keys
    for part in parts:
        facts = facts[part]
    return facts.get(last)


def _brief(run: EvaluatedRun, name: str, value: Any) -> str:
    if name == "split":
        return f"{run.config['split']['name']} {run.config['split']['params'] or ''}".strip()
    if name == "data":
        return f"{run.config['data']['interactions']:,} events ({value[:8]})"
    return value[:8] if name == "item and user tables" else str(value)


def variants(runs: Sequence[EvaluatedRun]) -> list[Variant]:
    """Group runs that differ by seed alone; name each group by what sets it apart.

    Raises:
        RunError: two runs of a group have the same seed.
    """
    groups: dict[str, list[EvaluatedRun]] = {}
    for run in runs:
        key = json.dumps([run.config["model"], run.config["config"], _added(run)], sort_keys=True)
        groups.setdefault(key, []).append(run)
    for group in groups.values():
        seeds = [run.seed for run in group]
        for run in group:
            if seeds.count(run.seed) > 1:
                twins = " and ".join(str(other.path) for other in group if other.seed == run.seed)
                raise RunError(f"{twins} are the same training with the same seed.", "Give one of them.")
    labels = _labels([group[0] for group in groups.values()])
    return [
        Variant(label, tuple(sorted(group, key=lambda run: run.seed)))
        for label, group in zip(labels, groups.values(), strict=True)
    ]


def _added(run: EvaluatedRun) -> str | None:
    """What was added to the data before training, by name."""
    return (run.config["data"].get("augmentation") or {}).get("name")


def _flat(options: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Options of parts by their full names: ``diffusion.epochs``."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        found |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
    return found


def _differ(other: dict[str, Any], options: dict[str, Any], option: str) -> bool:
    """Whether two runs differ in an option; an option of a part that one does not spell out is no difference."""
    return (option in other or "." not in option) and other.get(option) != options[option]


def _labels(runs: Sequence[EvaluatedRun]) -> list[str]:
    """The model, its preset, and the options in which variants of one model differ, where they are not the default.

    Runs of versions with other options or defaults can end up with one label; the folder's name tells these apart.
    """
    labels = []
    for run in runs:
        name, options = run.config["model"], _flat(run.config["config"])
        others = [_flat(other.config["config"]) for other in runs if other.config["model"] == name]
        default = _flat(run.config.get("defaults", {}))
        apart = [o for o in options if any(_differ(other, options, o) for other in others)]
        apart = [o for o in apart if options[o] != default.get(o)]
        named = [run.config["preset"]] if run.config["preset"] else []
        named += [f"{option}={options[option]}" for option in apart]
        named += [f"on {_added(run)}"] if _added(run) else []
        labels.append(f"{name} ({', '.join(named)})" if named else name)
    return [
        f"{label} [{run.path.name}]" if labels.count(label) > 1 else label
        for label, run in zip(labels, runs, strict=True)
    ]
