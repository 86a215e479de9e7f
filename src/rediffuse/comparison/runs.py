"""Evaluated runs: read from their folders, checked to be comparable, grouped by what was trained."""

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

from rediffuse.arguments import require_path
from rediffuse.data.split import Split
from rediffuse.errors import RediffuseWarning, RunError
from rediffuse.runs.run_folder import LOG, read_config, read_log, read_manifest
from rediffuse.table_files import read_parquet

# What stands for config.json where lists of another library were evaluated; their folder holds no model.
LISTS = "lists.json"
EVALUATION = ("test.json", "per_user_test.parquet", "truth_test.parquet")


def evaluation_file(name: str, protocol: str | None) -> str:
    """Name of a file of an evaluation; with the protocol in it, unless that is the run's own (None)."""
    stem, ending = name.split(".")
    return name if protocol is None else f"{stem}-{protocol.replace(':', '-')}.{ending}"


def rules_of(protocol: str | None, split: Split) -> str | None:
    """The protocol as `evaluation_file` and `compare` take it: None if it is that of the split."""
    return None if protocol == split.name else protocol


# What users are grouped by in slices: a name, and the column of the per-user table.
BY_USER = {"history length": "history_length", "number of friends": "friends"}

# What must be equal in all runs, as far as they have it: a readable name, and where it is.
MUST_AGREE = {
    "data": ("config", "data", "fingerprint"),
    "item and user tables": ("config", "data", "tables"),
    "split": ("config", "split", "fingerprint"),
    "candidate set": ("test", "protocol", "candidates"),
    "seen-item policy": ("test", "protocol", "seen"),
    "use of validation interactions as input": ("test", "protocol", "validation_is_input"),
}


@dataclass(frozen=True)
class EvaluatedRun:
    """A run and one of its evaluations.

    Attributes:
        path: the run folder.
        config: content of config.json.
        test: content of test.json.
        protocol: protocol of the evaluation; None: that of the run's split.
    """

    path: Path
    config: dict[str, Any]
    test: dict[str, Any]
    protocol: str | None = None

    @cached_property
    def per_user(self) -> pl.DataFrame:
        """One row per user, in the order of the task."""
        return read_parquet(self.path / evaluation_file("per_user_test.parquet", self.protocol))

    @cached_property
    def truth(self) -> pl.DataFrame:
        """One row per true item."""
        return read_parquet(self.path / evaluation_file("truth_test.parquet", self.protocol))

    @cached_property
    def epochs(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; none if the model is not trained by gradient."""
        return read_log(self.path) if LOG in read_manifest(self.path)["files"] else []

    @property
    def seed(self) -> int:
        return self.config["seed"]


@dataclass(frozen=True)
class Variant:
    """Runs that differ only in their seed.

    Attributes:
        label: the model, and what distinguishes this variant from others of the same model.
        runs: in the order of their seeds.
    """

    label: str
    runs: tuple[EvaluatedRun, ...]

    @property
    def model(self) -> str:
        return self.runs[0].config["model"]

    @property
    def options(self) -> dict[str, Any]:
        return self.runs[0].config["config"]

    @property
    def learned_from(self) -> list[str]:
        return _learned_from(self.runs[0])

    @cached_property
    def users(self) -> np.ndarray | None:
        """(targets,) the number of the user of each row of `per_user`; None where a row is a user."""
        run = self.runs[0]
        if "targets" not in run.test["counts"]:
            return None
        return run.per_user["user_id"].rank("dense").to_numpy()

    def values(self, metric: str, policy: str) -> list[float] | None:
        """One value per seed; None if it was not measured."""
        found = [run.test["metrics"].get(policy, {}).get(metric) for run in self.runs]
        return None if None in found else found  # pyright: ignore[reportReturnType]

    def per_user(self, column: str) -> np.ndarray:
        """(users,) means over seeds; NaN if the metric has no value for a user."""
        return np.mean([run.per_user[column].to_numpy() for run in self.runs], axis=0)


def read_runs(paths: Iterable[str | Path], protocol: str | None = None) -> list[EvaluatedRun]:
    """Read finished runs and their evaluations by ``protocol`` (None: that of their split).

    Paths without a run are left out.

    Raises:
        RunError: a run is given twice, damaged, unfinished or not evaluated; a path does not exist; there is no run.

    Warns:
        RediffuseWarning: paths were left out; names them.
    """
    given = [require_path("runs", path) for path in paths]
    if missing := [str(path) for path in given if not path.exists()]:
        raise RunError(f"{', '.join(missing)}: no such folder.", "Give run folders: runs/*")
    folders = [path for path in given if (path / "manifest.json").exists() or (path / "checkpoints").exists()]
    if not folders:
        raise RunError(f"No runs in {', '.join(map(str, given)) or 'an empty list'}.", "Give run folders: runs/*")
    if others := [str(path) for path in given if path not in folders]:  # runs/* may match other files
        warnings.warn(f"Left out, because they hold no run: {', '.join(others)}.", RediffuseWarning, stacklevel=3)
    places = [path.resolve() for path in folders]
    if repeated := sorted({str(path) for path, place in zip(folders, places, strict=True) if places.count(place) > 1}):
        raise RunError(f"{' and '.join(repeated)}: the same run is given more than once.", "Give it once.")
    configs = [_config(folder) for folder in folders]
    own = [None if protocol == config["split"]["name"] else protocol for config in configs]
    if waiting := [str(folder) for folder, rules in zip(folders, own, strict=True) if not is_evaluated(folder, rules)]:
        options = f" --protocol {protocol}" if protocol else ""
        commands = "; ".join(f"rediffuse evaluate {shlex.quote(folder)} DATASET{options}" for folder in waiting)
        raise RunError(
            f"Not evaluated{f' by {protocol}' if protocol else ''}: {', '.join(waiting)}.", f"Run: {commands}"
        )
    return [
        EvaluatedRun(folder, config, json.loads((folder / evaluation_file("test.json", rules)).read_text()), rules)
        for folder, config, rules in zip(folders, configs, own, strict=True)
    ]


def _config(folder: Path) -> dict[str, Any]:
    if LISTS in read_manifest(folder)["files"]:
        return json.loads((folder / LISTS).read_text(encoding="utf-8"))
    return read_config(folder)


def is_evaluated(folder: Path, protocol: str | None) -> bool:
    """Whether a finished run holds its evaluation by ``protocol`` (None: that of its split)."""
    # Training again starts a new manifest, which does not list evaluation files of the old weights.
    names = {evaluation_file(name, protocol) for name in EVALUATION}
    return names <= json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"].keys()


def check_comparable(runs: Sequence[EvaluatedRun]) -> None:
    """Check that figures of the runs can stand side by side.

    Raises:
        RunError: two runs differ in something of `MUST_AGREE`, or in their test users or true items.
    """
    for name, (where, *keys) in MUST_AGREE.items():
        found = [(run, value) for run in runs if (value := _look(getattr(run, where), keys)) is not None]
        for run, value in found[1:]:
            first, expected = found[0]
            if value != expected:
                raise RunError(
                    f"{run.path} and {first.path} differ in their {name}: {_brief(run, name, value)} and "
                    f"{_brief(first, name, expected)}.",
                    "Compare them separately, or train and evaluate them alike.",
                )
    first = runs[0]
    for run in runs[1:]:
        for name, what in (("per_user", "users"), ("truth", "true items")):  # rows are paired by position
            ids, expected = (getattr(each, name).select(pl.col("^(user|item)_id$")) for each in (run, first))
            if not ids.equals(expected):
                raise RunError(
                    f"{run.path} and {first.path} were evaluated on different {what}.", "Evaluate them again."
                )


def _look(content: dict[str, Any], keys: Sequence[str]) -> Any:
    *outer, last = keys
    for key in outer:
        content = content[key]
    return content.get(last)


def _brief(run: EvaluatedRun, name: str, value: Any) -> str:
    if name == "split":
        return f"{run.config['split']['name']} {run.config['split']['params'] or ''}".strip()
    if name == "data":
        return f"{run.config['data']['interactions']:,} interactions ({value[:8]})"
    return value[:8] if name == "item and user tables" else str(value)


def variants(runs: Sequence[EvaluatedRun]) -> list[Variant]:
    """Group runs that differ only in their seed, and label each group by what distinguishes it.

    Raises:
        RunError: two runs of a group have the same seed.
    """
    groups: dict[str, list[EvaluatedRun]] = {}
    for run in runs:
        key = json.dumps([run.config["model"], run.config["config"], _learned_from(run)], sort_keys=True)
        groups.setdefault(key, []).append(run)
    for group in groups.values():
        seeds = [run.seed for run in group]
        for run in group:
            if seeds.count(run.seed) > 1:
                same = " and ".join(str(other.path) for other in group if other.seed == run.seed)
                raise RunError(f"{same} are the same training with the same seed.", "Give one of them.")
    labels = _labels([group[0] for group in groups.values()])
    return [
        Variant(label, tuple(sorted(group, key=lambda run: run.seed)))
        for label, group in zip(labels, groups.values(), strict=True)
    ]


def _learned_from(run: EvaluatedRun) -> list[str]:
    """What a run learned from beside the training interactions, in words.

    That is the generator of synthetic interactions, and whether `rediffuse.refit` trained it again on the validation
    interactions too. A model in closed form that does so by its own options is not counted.
    """
    generator = (run.config["data"].get("augmentation") or {}).get("name")
    return [f"on {generator}"] * (generator is not None) + ["refitted"] * ("refit_of" in run.config)


def _flat(options: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Nested options under their full names, such as ``diffusion.epochs``."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        found |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
    return found


def _differ(other: dict[str, Any], options: dict[str, Any], option: str) -> bool:
    """Whether two runs differ in an option. A nested option that one of them does not set does not count."""
    return (option in other or "." not in option) and other.get(option) != options[option]


def _label(option: str, value: Any) -> str:
    if option == "parts":  # of a blend
        return " + ".join(part["model"] for part in value)
    return "no diffusion" if option == "diffusion" and value is False else f"{option}={value}"


def _labels(runs: Sequence[EvaluatedRun]) -> list[str]:
    """The model, its preset, and the options in which variants of one model differ, where they are not the default.

    Runs of versions with other options or defaults can end up with one label; the folder's name tells these apart.
    """
    labels = []
    for run in runs:
        name, options = run.config["model"], _flat(run.config["config"])
        others = [_flat(other.config["config"]) for other in runs if other.config["model"] == name]
        default = _flat(run.config.get("defaults") or {})
        apart = [o for o in options if any(_differ(other, options, o) for other in others)]
        apart = [o for o in apart if options[o] != default.get(o)]
        named = [run.config["preset"]] if run.config["preset"] else []
        named += [_label(option, options[option]) for option in apart]
        named += _learned_from(run)
        labels.append(f"{name} ({', '.join(named)})" if named else name)
    return [
        f"{label} [{run.path.name}]" if labels.count(label) > 1 else label
        for label, run in zip(labels, runs, strict=True)
    ]
