"""Running an experiment: what is finished is skipped, what was interrupted is resumed, the rest is trained."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rediffuse.comparison import Comparison, compare, evaluate
from rediffuse.comparison.report import check_folder
from rediffuse.comparison.runs import evaluation_file, rules_of
from rediffuse.config import ModelConfig
from rediffuse.data.dataset import Dataset
from rediffuse.data.split import Split
from rediffuse.errors import MissingExtraError, RediffuseError, RunError
from rediffuse.experiment.datasets import Say, prepare
from rediffuse.experiment.energy import SUMS, Meter, energy_of
from rediffuse.experiment.estimate import is_finished, left
from rediffuse.experiment.lists import listed
from rediffuse.experiment.page import write_page
from rediffuse.experiment.planned import Experiment, PlannedLists, PlannedRun, Setting
from rediffuse.experiment.results import beside_users, read_results, rows_of_run, write_results
from rediffuse.experiment.tuned import is_spent, search, tuning_facts
from rediffuse.runs.identity import identity_path, refuse_other_identity
from rediffuse.runs.run_folder import MANIFEST, read_config, read_manifest
from rediffuse.runs.tensors import load_tensors
from rediffuse.table_files import read_parquet
from rediffuse.training import train
from rediffuse.training.train import describe_run


@dataclass
class Outcome:
    """The result of `run_experiment`.

    Attributes:
        rows: one per run and per lists of another library: data and split (labels), label, seed, run (folder), state
            ("trained", "resumed", "evaluated" for lists, "skipped" or "failed"), minutes, metrics (policy -> metric ->
            value) or None, problem (with its remedy) of a run that failed, ``tuning`` (trials, minutes, default_rank,
            energy) or None, ``energy`` (kwh, co2_kg, and the minutes that were measured) or None, and notes, of lists.
        comparisons: (data, split) -> comparison of all runs that were evaluated there.
        uncompared: (data, split) -> why the runs that were evaluated there could not be compared, and the remedy.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    comparisons: dict[tuple[str, str], Comparison] = field(default_factory=dict)
    uncompared: dict[tuple[str, str], str] = field(default_factory=dict)

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The rows of runs that failed."""
        return [row for row in self.rows if row["state"] == "failed"]

    @property
    def problems(self) -> list[dict[str, str]]:
        """The name and the problem of all that failed: runs, lists, and comparisons."""
        runs = [{"name": row["name"], "problem": row["problem"]} for row in self.failed]
        comparisons = self.uncompared.items()
        return runs + [{"name": f"comparison of {', '.join(at)}", "problem": text} for at, text in comparisons]

    @property
    def energy(self) -> dict[str, float] | None:
        """The sums of all trainings and searches: kwh, co2_kg, measured minutes; None if nothing was measured."""
        found = [row["energy"] for row in self.rows]
        searches = {(row["data"], row["split"], row["label"]): row["tuning"] for row in self.rows if row["tuning"]}
        measured = [each for each in (*found, *(tuning["energy"] for tuning in searches.values())) if each]
        return {name: sum(each[name] for each in measured) for name in SUMS} if measured else None


def run_experiment(experiment: Experiment, *, progress: bool = False, say: Say = lambda sentence: None) -> Outcome:
    """Train, evaluate and compare the models of an experiment. Started again, it does only what is left.

    A model or a comparison that fails is reported in the result, and the others go on.

    Args:
        experiment: from `read_experiment`.
        progress: draw progress bars on stderr.
        say: called with a sentence at every step.

    Raises:
        ConfigError, DataError: the data cannot be read or split; codecarbon does not know the country.
        RunError: the output folder was made by an experiment on other data, or is no folder of an experiment.
        MissingExtraError: the report, the search or the measurement of energy needs packages that are not installed.
    """
    for setting in experiment.settings:
        check_folder(setting.report)
    file = experiment.file
    if file.tune is not None and importlib.util.find_spec("optuna") is None:
        raise MissingExtraError("optuna", "tune")
    meter = None if file.energy is None else Meter(file.energy.country)
    if len(experiment.settings) > 1:  # what cannot be read or split is said before the first training
        for setting in experiment.settings:
            prepare(experiment, setting, say)
    say(left(experiment).text)
    return _Session(experiment, meter, progress, say).run()


def report_again(experiment: Experiment) -> Path:
    """Make the page of an experiment again from its results.parquet alone; returns the page.

    Raises:
        RunError: there are no results, or they are damaged.
        MissingExtraError: the page needs packages that are not installed.
    """
    if importlib.util.find_spec("jinja2") is None:
        raise MissingExtraError("jinja2", "report")
    write_page(read_results(experiment.results), experiment.page)
    return experiment.page


class _Session:
    """One start of an experiment."""

    def __init__(self, experiment: Experiment, meter: Meter | None, progress: bool, say: Say) -> None:
        self.experiment, self.meter, self.progress, self.say = experiment, meter, progress, say
        self.outcome, self.visited = Outcome(), set[Path]()
        self.parts, self.stored, self.settings = [], [], []

    def run(self) -> Outcome:
        for setting in self.experiment.settings:
            self.run_setting(setting)
        return self.outcome

    def run_setting(self, setting: Setting) -> None:
        """Everything on one data set and split; then its report, and the table and the page of all so far."""
        data, split = prepare(self.experiment, setting, self.say)
        for remark in (split.leak, split.note):
            if remark:
                self.say(remark)
        chosen: dict[str, ModelConfig | RediffuseError] = {}
        for planned in (run for run in self.experiment.runs if run.setting is setting):
            self.row(planned, lambda row, run=planned: self.trained(row, run, chosen, data, split))
            self.visited.add(planned.folder)
            if self.outcome.rows[-1]["state"] != "skipped" and len(self.visited) < len(self.experiment.runs):
                self.say(left(self.experiment, self.visited).text)
        for lists in (lists for lists in self.experiment.lists if lists.setting is setting):
            self.row(lists, lambda row, lists=lists: row.update(listed(self.experiment, lists, split, self.say)))
        mine = [row for row in self.outcome.rows if (row["data"], row["split"]) == setting.labels]
        found = [row for row in mine if row["metrics"] is not None]
        if found:
            try:
                self.compared(setting, split, found)
            except RediffuseError as error:
                self.outcome.uncompared[setting.labels] = _text(error)
                self.say(f"{self.outcome.problems[-1]['name']} failed: {error}")
        if self.parts:
            write_results(self.experiment.results, self.parts, self.facts())
            report_again(self.experiment)

    def compared(self, setting: Setting, split: Split, found: list[dict[str, Any]]) -> None:
        """Compare the runs of a setting, and keep what the table and the page need of them."""
        file, rules = self.experiment.file, rules_of(self.experiment.file.evaluate.protocol, split)
        comparison = compare([row["run"] for row in found], setting.report, metric=file.metric, protocol=rules)
        self.outcome.comparisons[setting.labels] = comparison
        link = os.path.relpath(setting.report / "report.html", file.out)
        self.settings.append(
            {"data": setting.data_label, "split": setting.split_label, "report": link, "facts": comparison.facts}
        )
        for row in found:
            folder = Path(row["run"])
            per_user = read_parquet(folder / evaluation_file("per_user_test.parquet", rules))
            test = json.loads((folder / evaluation_file("test.json", rules)).read_text(encoding="utf-8"))
            self.parts.append(rows_of_run(row, per_user, comparison.facts["protocol"]["seen"]))
            columns = ("data", "split", "label", "seed", "run", "minutes", "tuning", "energy", "notes")
            self.stored.append({name: row[name] for name in columns} | {"test": beside_users(test, per_user)})

    def facts(self) -> dict[str, Any]:
        """What results.parquet holds beside the values of users."""
        file = self.experiment.file
        tuned = {run.label for run in self.experiment.runs if run.study is not None}
        return {
            "metric": file.metric,
            "planned": len(self.experiment.runs) + len(self.experiment.lists),
            "tune": file.tune and file.tune.model_dump(),
            "untuned": list(dict.fromkeys(run.label for run in self.experiment.runs if run.label not in tuned)),
            "settings": self.settings,
            "runs": self.stored,
            "failed": self.outcome.problems,
        }

    def row(self, planned: PlannedRun | PlannedLists, work: Callable[[dict[str, Any]], None]) -> None:
        """Do the work of a run; what fails is written into its row."""
        labels = dict(zip(("data", "split"), planned.setting.labels, strict=True))
        row: dict[str, Any] = labels | {"label": planned.label, "seed": planned.seed, "run": str(planned.folder)}
        row |= {"name": planned.name, "state": "failed", "minutes": None, "metrics": None, "problem": None}
        row |= {"tuning": None, "energy": None, "notes": []}
        self.outcome.rows.append(row)
        try:
            work(row)
        except RediffuseError as error:
            row |= {"state": "failed", "metrics": None, "problem": _text(error)}
            self.say(f"{planned.name} failed: {error}")

    def trained(
        self,
        row: dict[str, Any],
        planned: PlannedRun,
        chosen: dict[str, ModelConfig | RediffuseError],
        data: Dataset,
        split: Split,
    ) -> None:
        """Search the options of a run, train and evaluate it, as far as that was not done before."""
        if planned.label not in chosen:
            chosen[planned.label] = planned.options if planned.study is None else self.search(planned, split)
        options = chosen[planned.label]
        if isinstance(options, RediffuseError):
            raise options
        if planned.study is not None:
            energy = energy_of(self.energy_file(planned, "tuning"))
            row["tuning"] = (tuning_facts(planned.study) or {}) | {"energy": energy}
        if (same := next(label for label, other in chosen.items() if other == options)) != planned.label:
            raise RunError(
                f"After the search of options, {same} and {planned.label} are the same training.",
                "Leave one of them out, or fix an option in which they differ.",
            )
        state = _state(planned, options, split)
        if planned.study is not None and state == "resumed":
            _refuse_other_choice(planned.folder, options)
        number = f"{len(self.visited) + 1} of {len(self.experiment.runs)}"
        done = {"skipped": "finished already", "trained": "trains"}.get(state, state)
        self.say(f"{planned.name} ({number}): {done}.")
        measured = self.energy_file(planned, f"seed-{planned.seed}")
        if state == "trained":
            measured.unlink(missing_ok=True)  # of a run that was removed
        try:
            with contextlib.nullcontext() if state == "skipped" else self.measuring(measured):
                if state != "skipped":
                    _train(planned, options, split, resume=state == "resumed", progress=self.progress)
                row["metrics"] = _evaluated(self.experiment, planned, split, data)
        finally:
            row["energy"] = energy_of(measured)
        row |= {"minutes": read_config(planned.folder)["training"]["minutes"], "state": state}

    def search(self, planned: PlannedRun, split: Split) -> ModelConfig | RediffuseError:
        """The options that the search finds; or why it failed, which then holds for all seeds."""
        budget = self.experiment.file.tune
        assert budget is not None
        assert planned.study is not None
        spent = is_spent(tuning_facts(planned.study), budget)
        name = ", ".join(filter(None, (planned.setting.name, planned.label)))
        self.say(f"{name}: its options {'were searched already' if spent else 'are searched'}.")
        path = self.energy_file(planned, "tuning")
        try:
            with contextlib.nullcontext() if spent else self.measuring(path):
                return search(planned, split, budget, self.experiment.file.seeds[0], progress=self.progress)
        except RediffuseError as error:
            return error

    def energy_file(self, planned: PlannedRun, name: str) -> Path:
        return self.experiment.file.out / "energy" / planned.setting.place / planned.label / f"{name}.json"

    def measuring(self, path: Path) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self.meter is None else self.meter.measuring(path)


def _text(error: RediffuseError) -> str:
    return " ".join(filter(None, (error.problem, error.remedy)))


def _state(planned: PlannedRun, options: ModelConfig, split: Split) -> str:
    """What is to be done with a run. Whether another training may be resumed is checked by `train`."""
    if not identity_path(planned.folder).exists():
        return "trained"
    if not (planned.folder / MANIFEST).exists():
        return "resumed"
    recorded = read_config(planned.folder)
    wanted = json.loads(json.dumps(describe_run(planned.kind, planned.preset, options, planned.seed, split, {})))
    same = all(recorded[name] == wanted[name] for name in ("model", "class", "config", "seed", "split"))
    of_data = ("fingerprint", "augmentation", "tables", "item_features")
    same = same and all(recorded["data"].get(name) == wanted["data"][name] for name in of_data)
    return "skipped" if same and is_finished(recorded["training"], planned.max_minutes) else "resumed"


def _refuse_other_choice(folder: Path, options: ModelConfig) -> None:
    """Check that a run was started with the options that the search chooses now, after more trials perhaps."""
    started = load_tensors(identity_path(folder))[1]["config"]
    wanted = {name: value for name, value in options.model_dump(mode="json").items() if name in started}
    remedy = (
        "The search went on and has chosen other options since. Remove the folder to train it again, or give the "
        "experiment another one (out: ...)."
    )
    refuse_other_identity(folder, {"config": started}, {"config": wanted}, remedy)


def _train(planned: PlannedRun, options: ModelConfig, split: Split, *, resume: bool, progress: bool) -> None:
    train(
        planned.kind,
        split,
        planned.folder,
        preset=planned.preset,
        config=options,
        seed=planned.seed,
        resume=resume,
        max_minutes=planned.max_minutes,
        progress=progress,
    )


def _evaluated(experiment: Experiment, planned: PlannedRun, split: Split, data: Dataset) -> dict[str, Any]:
    """The test metrics; those in the run folder if they are of these weights and of the same evaluation."""
    wanted, metrics = experiment.file.evaluate, experiment.metrics
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
