"""The content of an experiment file, checked as a whole before anything starts."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from rediffuse.addresses import refuse_address
from rediffuse.config import ModelConfig
from rediffuse.data import split as splits
from rediffuse.errors import ConfigError, RediffuseError, did_you_mean
from rediffuse.evaluation import protocols
from rediffuse.evaluation.metrics import ACCURACY, DEFAULT_METRICS, LIST_METRICS, POLICIES, parse_metric, parse_metrics
from rediffuse.experiment.yaml_lines import Key, dotted, read_yaml
from rediffuse.models import model_class
from rediffuse.models.base import Model
from rediffuse.readers import read_interactions
from rediffuse.readers.public_datasets import public_dataset_names


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_flags(cls, values: Any) -> Any:
        """No key takes true or false, which pydantic would count as 1 or 0."""
        for key, value in values.items() if isinstance(values, dict) else ():
            if any(isinstance(entry, bool) for entry in (value if isinstance(value, list) else [value])):
                raise ValueError(f"{key} is true or false, and takes a number or text")
        return values


# What is declared of a dataset that was read already.
DECLARED = ("item_features", "user_features")


class DataSection(BaseModel):
    """Where the interactions come from: exactly one of ``folder``, ``public`` and ``table``.

    Other keys are the options of `rediffuse.read_interactions`, for a table; those in `DECLARED` are for a public data
    set too.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    folder: Path | None = None
    public: str | None = None
    table: str | list[str] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Options of the reader."""
        return self.model_extra or {}


class SplitSection(BaseModel):
    """The name of a split; other keys are its parameters."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = "default"

    @property
    def params(self) -> dict[str, Any]:
        """Parameters of the split."""
        return self.model_extra or {}


class ModelSection(_Section):
    """One variant: a model with its options."""

    model: str
    label: str | None = None
    preset: str | None = None
    options: dict[str, Any] = {}
    max_minutes: float | None = Field(None, gt=0)


class EvaluateSection(_Section):
    """How the runs are evaluated."""

    protocol: str | None = None
    metrics: list[str] = []
    sampling_seeds: int = Field(default=1, ge=1)


class File(_Section):
    """All keys of an experiment file."""

    data: DataSection
    split: SplitSection = SplitSection()
    models: list[ModelSection] = Field(min_length=1)
    seeds: list[int] = Field([0], min_length=1)
    max_minutes: float | None = Field(None, gt=0)
    evaluate: EvaluateSection = EvaluateSection()
    metric: str = "ndcg@10"
    out: Path
    report: Path | None = None

    @field_validator("models", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return [{"model": entry} if isinstance(entry, str) else entry for entry in value]

    @field_validator("split", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


@dataclass(frozen=True)
class PlannedRun:
    """One training.

    Attributes:
        label: name of the variant.
        kind: class of the model.
        preset: named options.
        options: all options, checked.
        seed: of the training.
        max_minutes: its time limit.
        folder: its run folder.
    """

    label: str
    kind: type[Model]
    preset: str | None
    options: ModelConfig
    seed: int
    max_minutes: float | None
    folder: Path


@dataclass(frozen=True)
class Experiment:
    """A checked experiment file.

    Attributes:
        path: the file.
        file: its content.
        runs: the trainings, in order.
        notes: what was decided, in sentences.
    """

    path: Path
    file: File
    runs: tuple[PlannedRun, ...]
    notes: tuple[str, ...]

    @property
    def report(self) -> Path:
        """The folder of the report."""
        return self.file.report or self.file.out / "report"


def read_experiment(path: str | Path) -> Experiment:
    """Read an experiment file and check all of it. Paths in it are relative to the working directory.

    Raises:
        ConfigError: the file cannot be read, or a key or value is wrong; the error names the key and its line.
    """
    return _Check(Path(path)).experiment()


class _Check:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.content, self.lines = read_yaml(path)

    def refuse(self, key: Key, problem: str, remedy: str | None) -> ConfigError:
        known = next((key[:n] for n in range(len(key), 0, -1) if key[:n] in self.lines), ())
        line = f", line {self.lines[known]}" if known else ""
        return ConfigError(f"{self.path}{line}: {dotted(key)}: {problem}", remedy)

    def during(self, key: Key) -> _Located:
        return _Located(self, key)

    def experiment(self) -> Experiment:
        try:
            file = File.model_validate(self.content)
        except ValidationError as error:
            raise self._of_pydantic(error) from None
        self._refuse_addresses(file)
        self._data(file.data)
        self._split(file.split)
        runs, notes = self._runs(file)
        self._evaluation(file)
        return Experiment(self.path, file, runs, notes)

    def _of_pydantic(self, error: ValidationError) -> ConfigError:
        # An unknown key is the likely cause of a missing one, so it comes first.
        first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
        key = tuple(first["loc"])
        section = _section(key[:-1])
        if first["type"] == "extra_forbidden" and section is not None:
            return self.refuse(key, "there is no such key.", did_you_mean(key[-1], section.model_fields))
        if first["type"] == "missing":
            keys = ", ".join(section.model_fields) if section is not None else ""
            return self.refuse(key, "is missing.", f"Add it. The keys here: {keys}.")
        return self.refuse(key, f"{first.get('input')!r} cannot be used: {first['msg']}.", "See docs/experiments.md.")

    def _refuse_addresses(self, file: File) -> None:
        places: dict[Key, Any] = {("data", name): value for name, value in file.data}
        places |= {("out",): file.out, ("report",): file.report}
        for key, value in places.items():
            with self.during(key):
                for path in value if isinstance(value, list) else [value]:
                    refuse_address(str(key[-1]), path)

    def _data(self, data: DataSection) -> None:
        sources = [name for name in ("folder", "public", "table") if getattr(data, name) is not None]
        if len(sources) != 1:
            found = " and ".join(sources) or "none of them"
            raise self.refuse(("data",), f"needs one of folder, public and table, and has {found}.", "Name one.")
        known = list(inspect.signature(read_interactions).parameters)[1:]
        for option in data.options:
            remedy = did_you_mean(option, [*known, "folder", "public", "table"])
            if option not in known:
                raise self.refuse(("data", option), "there is no such key.", remedy)
            if data.table is None and not (data.public is not None and option in DECLARED):
                problem = f"is an option of tables, and the data come from {sources[0]}."
                raise self.refuse(("data", option), problem, "Leave it out; a prepared dataset was read already.")
        if data.folder is not None and not (data.folder / "manifest.json").is_file():
            remedy = "Prepare it: rediffuse prepare TABLE -o FOLDER; or use table."
            raise self.refuse(("data", "folder"), f"{data.folder} holds no dataset.", remedy)
        if data.public is not None and data.public not in (names := public_dataset_names()):
            problem = f"there is no data set {data.public!r}."
            raise self.refuse(("data", "public"), problem, did_you_mean(data.public, names))
        paths = [data.table] if isinstance(data.table, str) else data.table or []
        for path in (path for path in paths if not any(sign in path for sign in "*?[") and not Path(path).exists()):
            remedy = "Paths are relative to the working directory."
            raise self.refuse(("data", "table"), f"{path} does not exist.", remedy)

    def _split(self, split: SplitSection) -> None:
        name = split.name
        with self.during(("split",)):
            if name.startswith("paper:"):
                name = protocols.protocol(name).split or name
            function = splits.by_name_function(name)
        known = list(inspect.signature(function).parameters)[1:]
        for option in split.params:
            if option not in known:
                remedy = did_you_mean(option, known) if known else f"{name} has no options."
                raise self.refuse(("split", option), "there is no such key.", remedy)
        if name == "none":
            problem = "it holds nothing out, so there is nothing to evaluate."
            raise self.refuse(("split",), problem, "Choose another, and refit the best model: rediffuse refit.")

    def _runs(self, file: File) -> tuple[tuple[PlannedRun, ...], tuple[str, ...]]:
        if min(file.seeds) < 0 or len(set(file.seeds)) < len(file.seeds):
            raise self.refuse(("seeds",), f"{file.seeds} repeats a seed or has one below 0.", "For example: [0, 1, 2]")
        runs, notes, labels = [], [], {}
        for number, entry in enumerate(file.models):
            key = ("models", number)
            with self.during((*key, "model")):
                kind = model_class(entry.model)
            with self.during((*key, "options")):
                options = kind.Config.build(entry.preset, entry.options)
            label = entry.label or kind.name
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", label):
                problem = f"{label!r} cannot be the name of a folder."
                raise self.refuse((*key, "label"), problem, "Use letters, digits, dots, hyphens and underscores.")
            if label in labels:
                problem = f"models[{labels[label]}] is called {label!r} too."
                raise self.refuse(key, problem, f"Give one of them a label of its own, for example {label}-2.")
            labels[label] = number
            seeds = file.seeds if kind.trained_by_gradient else file.seeds[:1]
            if len(seeds) < len(file.seeds):
                notes.append(f"{label} is in closed form, so it is trained with the first seed only.")
            minutes = file.max_minutes if entry.max_minutes is None else entry.max_minutes
            for seed in seeds:
                folder = file.out / "runs" / label / f"seed-{seed}"
                runs.append(PlannedRun(label, kind, entry.preset, options, seed, minutes, folder))
        return tuple(runs), tuple(notes)

    def _evaluation(self, file: File) -> None:
        known = (*ACCURACY, *LIST_METRICS)
        if file.evaluate.metrics:
            with self.during(("evaluate", "metrics")):
                parse_metrics(file.evaluate.metrics, known)
        if file.evaluate.protocol is not None:
            with self.during(("evaluate", "protocol")):
                protocols.protocol(file.evaluate.protocol)
        name, _, policy = file.metric.partition("/")
        measured = {str(metric) for metric in parse_metrics([*DEFAULT_METRICS, *file.evaluate.metrics], known)}
        with self.during(("metric",)):
            if str(parse_metric(name, ACCURACY)) not in measured:
                raise ConfigError(f"{name!r} is not measured.", "Add it to evaluate.metrics.")
            if policy and policy not in POLICIES:
                raise ConfigError(f"There is no policy {policy!r}.", did_you_mean(policy, POLICIES))


class _Located:
    """Errors in the block get the key of the file, and its line."""

    def __init__(self, check: _Check, key: Key) -> None:
        self.check, self.key = check, key

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, RediffuseError):
            raise self.check.refuse(self.key, error.problem, error.remedy) from None


def _section(key: Key) -> type[BaseModel] | None:
    """The class that describes the section under ``key``; None if options are free there."""
    found: Any = File
    for part in key:
        if isinstance(part, int):
            continue
        field = found.model_fields.get(part) if isinstance(found, type) and issubclass(found, BaseModel) else None
        if field is None:
            return None
        found = field.annotation
        if inner := [entry for entry in get_args(found) if isinstance(entry, type) and issubclass(entry, BaseModel)]:
            found = inner[0]
    return found if isinstance(found, type) and issubclass(found, BaseModel) else None
