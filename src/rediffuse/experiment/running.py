"""Running an experiment: what is finished is skipped, what was interrupted is resumed, the rest is trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rediffuse.comparison import Comparison, compare, evaluate
from rediffuse.comparison.report import check_folder
from rediffuse.comparison.runs import evaluation_file
from rediffuse.data.dataset import Dataset
from rediffuse.data.loading import load_dataset
from rediffuse.data.split import Split
from rediffuse.errors import ConfigError, RediffuseError, RunError
from rediffuse.evaluation.metrics import ACCURACY, LIST_METRICS, parse_metrics
from rediffuse.evaluation.protocols import protocol, split_for
from rediffuse.experiment.plan import DECLARED, Experiment, PlannedRun
from rediffuse.files import atomic_write_text
from rediffuse.readers import read_interactions
from rediffuse.readers.public_datasets import public_dataset
from rediffuse.runs.identity import identity_path
from rediffuse.runs.run_folder import MANIFEST, read_config, read_manifest
from rediffuse.training import train
from rediffuse.training.train import describe_run

RECORD = "experiment.json"
Say = Callable[[str], None]


@dataclass
class Outcome:
    """The result of `run_experiment`.

    Attributes:
        rows: one per run: label, seed, run (folder), state ("trained", "resumed", "skipped" or "failed"), minutes,
            metrics (policy -> metric -> value) or None, and problem, of a run that failed.
        comparison: of all runs that were evaluated; None if there is none.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    comparison: Comparison | None = None

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The rows of runs that failed."""
        return [row for row in self.rows if row["state"] == "failed"]


def run_experiment(experiment: Experiment, *, progress: bool = False, say: Say = lambda sentence: None) -> Outcome:
    """Train, evaluate and compare the models of an experiment. Started again, it does only what is left.

    A model that fails is reported in the result, and the others go on.

    Args:
        experiment: from `read_experiment`.
        progress: draw progress bars on stderr.
        say: called with a sentence at every step.

    Raises:
        ConfigError, DataError: the data cannot be read or split.
        RunError: the output folder was made by an experiment on other data, or is no folder of an experiment.
        MissingExtraError: the report needs packages that are not installed.
    """
    check_folder(experiment.report)
    file = experiment.file
    data = _dataset(experiment, say)
    split = split_for(file.split.name, data, **file.split.params)
    rules = file.evaluate.protocol
    if rules is not None and (needs := protocol(rules).split) not in (None, split.name):
        raise ConfigError(f"Protocol {rules!r} needs the split {needs!r}, and this is {split.name!r}.", "Change one.")
    for remark in (split.leak, split.note):
        if remark:
            say(remark)
    outcome = Outcome()
    for number, planned in enumerate(experiment.runs, start=1):
        name = f"{planned.label}, seed {planned.seed} ({number} of {len(experiment.runs)})"
        row: dict[str, Any] = {"label": planned.label, "seed": planned.seed, "run": str(planned.folder)}
        row |= {"state": "failed", "minutes": None, "metrics": None, "problem": None}
        outcome.rows.append(row)
        try:
            state = _state(planned, split)
            say(f"{name}: {'finished already' if state == 'skipped' else 'trains' if state == 'trained' else state}.")
            if state != "skipped":
                _train(planned, split, resume=state == "resumed", progress=progress)
            row["minutes"] = read_config(planned.folder)["training"]["minutes"]
            row["metrics"] = _evaluated(experiment, planned, split, data)
            row["state"] = state
        except RediffuseError as error:
            row["problem"] = error.problem
            say(f"{name} failed: {error}")
    if folders := [row["run"] for row in outcome.rows if row["metrics"] is not None]:
        outcome.comparison = compare(folders, experiment.report, metric=file.metric, protocol=rules_of(rules, split))
    return outcome


def rules_of(rules: str | None, split: Split) -> str | None:
    """The protocol for `compare`: None if it is that of the split."""
    return None if rules == split.name else rules


def _dataset(experiment: Experiment, say: Say) -> Dataset:
    """The dataset; one that was read from a table or a public source is kept in the output folder."""
    file = experiment.file
    if file.data.folder is not None:
        _record(experiment, None)
        return load_dataset(file.data.folder)
    kept, record = file.out / "data", file.out / RECORD
    source = file.data.model_dump(mode="json", exclude_none=True)
    earlier = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else None
    if file.data.public is not None and earlier is not None and earlier["data"] == source and kept.is_dir():
        return load_dataset(kept)  # published data do not change
    say(f"Reading {file.data.public or file.data.table}.")
    if file.data.public is not None:
        data = public_dataset(file.data.public).with_features(*map(file.data.options.get, DECLARED))
    else:
        data = read_interactions(file.data.table, **file.data.options)
    if kept.is_dir() and _identity(load_dataset(kept)) != _identity(data):
        raise RunError(
            f"{file.out} holds an experiment on other data: the interactions or features have changed since it began.",
            "Choose another folder (out: ...), or remove that one.",
        )
    _record(experiment, source)
    if not kept.is_dir():
        data.save(kept)
    return data


def _identity(data: Dataset) -> tuple[str, str]:
    return data.fingerprint, data.features_fingerprint


def _record(experiment: Experiment, source: dict[str, Any] | None) -> None:
    """Write what the folder is into it.

    Raises:
        RunError: it holds something else.
    """
    out = experiment.file.out
    if out.exists() and not (out / RECORD).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} exists and is no folder of an experiment.", "Choose another folder (out: ...).")
    out.mkdir(parents=True, exist_ok=True)
    content = {"experiment": experiment.file.model_dump(mode="json"), "data": source}
    atomic_write_text(out / RECORD, json.dumps(content, indent=2) + "\n")


def _state(planned: PlannedRun, split: Split) -> str:
    """What is to be done with a run. Whether another training may be resumed is checked by `train`."""
    if not identity_path(planned.folder).exists():
        return "trained"
    if not (planned.folder / MANIFEST).exists():
        return "resumed"
    recorded = read_config(planned.folder)
    wanted = json.loads(
        json.dumps(describe_run(planned.kind, planned.preset, planned.options, planned.seed, split, {}))
    )
    same = all(recorded[name] == wanted[name] for name in ("model", "class", "config", "seed", "split"))
    same = same and recorded["data"]["fingerprint"] == wanted["data"]["fingerprint"]
    same = same and recorded["data"].get("item_features") == wanted["data"]["item_features"]
    training = recorded["training"]
    spent = planned.max_minutes is not None and training["minutes"] >= planned.max_minutes
    return "skipped" if same and (training["finished"] or spent) else "resumed"


def _train(planned: PlannedRun, split: Split, *, resume: bool, progress: bool) -> None:
    train(
        planned.kind,
        split,
        planned.folder,
        preset=planned.preset,
        config=planned.options,
        seed=planned.seed,
        resume=resume,
        max_minutes=planned.max_minutes,
        progress=progress,
    )


def _evaluated(experiment: Experiment, planned: PlannedRun, split: Split, data: Dataset) -> dict[str, Any]:
    """The test metrics; those in the run folder if they are of these weights and of the same evaluation."""
    wanted, known = experiment.file.evaluate, (*ACCURACY, *LIST_METRICS)
    metrics = [str(metric) for metric in parse_metrics(wanted.metrics, known)] if wanted.metrics else []
    seeds = list(range(wanted.sampling_seeds))
    name = evaluation_file("test.json", rules_of(wanted.protocol, split))
    if name in read_manifest(planned.folder)["files"]:
        test = json.loads((planned.folder / name).read_text(encoding="utf-8"))
        measured = set.intersection(*(set(values) for values in test["metrics"].values()))
        # Scores that are the same for every seed are evaluated once.
        drawn = [seeds] if planned.kind.stochastic is not False else [seeds, seeds[:1]]
        if test["sampling_seeds"] in drawn and measured.issuperset(metrics):
            return test["metrics"]
    return evaluate(planned.folder, data, protocol=wanted.protocol, seeds=seeds, metrics=metrics)["metrics"]
