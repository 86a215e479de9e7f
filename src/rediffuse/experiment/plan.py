"""The content of an experiment file, checked as a whole before anything starts."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from rediffuse.addresses import refuse_address
from rediffuse.data import split as splits
from rediffuse.errors import ConfigError, RediffuseError, did_you_mean
from rediffuse.evaluation import protocols
from rediffuse.evaluation.metrics import ACCURACY, DEFAULT_METRICS, MEASURED, POLICIES, parse_metric, parse_metrics
from rediffuse.experiment.list_files import LIST_COLUMNS
from rediffuse.experiment.planned import Experiment, PlannedLists, PlannedRun, Setting
from rediffuse.experiment.sections import DECLARED, FORMS, DataSection, File, SplitSection, section_of
from rediffuse.experiment.yaml_lines import Key, dotted, read_yaml
from rediffuse.models import model_class
from rediffuse.readers import read_interactions
from rediffuse.readers.public_datasets import public_dataset_names


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
        settings = self._settings(file)
        runs, notes = self._runs(file, settings)
        lists = self._lists(file, settings, {run.label for run in runs})
        self._evaluation(file)
        return Experiment(self.path, file, settings, runs, lists, notes)

    def _of_pydantic(self, error: ValidationError) -> ConfigError:
        # An unknown key is the likely cause of a missing one, so it comes first.
        first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
        key = tuple(part for part in first["loc"] if part not in FORMS)
        section = section_of(key[:-1])
        if first["type"] == "extra_forbidden" and section is not None:
            return self.refuse(key, "there is no such key.", did_you_mean(key[-1], section.model_fields))
        if first["type"] == "missing":
            keys = ", ".join(section.model_fields) if section is not None else ""
            return self.refuse(key, "is missing.", f"Add it. The keys here: {keys}.")
        return self.refuse(key, f"{first.get('input')!r} cannot be used: {first['msg']}.", "See docs/experiments.md.")

    def _refuse_addresses(self, file: File) -> None:
        places: dict[Key, Any] = {
            (*key, name): value for key, section in _each("data", file.data) for name, value in section
        }
        places |= {("lists", number, "file"): entry.file for number, entry in enumerate(file.lists)}
        places |= {("out",): file.out, ("report",): file.report}
        for key, value in places.items():
            with self.during(key):
                for path in value if isinstance(value, list) else [value]:
                    refuse_address(str(key[-1]), path)

    def _settings(self, file: File) -> tuple[Setting, ...]:
        """Every data set with every split, in folders of their own if the file has lists of them."""
        data, split = list(_each("data", file.data)), list(_each("split", file.split))
        for key, section in data:
            self._data(key, section)
        for key, section in split:
            self._split(key, section)
        labels = [section.name for _, section in data], [section.label or section.name for _, section in split]
        several = isinstance(file.data, list) or isinstance(file.split, list)
        for sections, names in zip((data, split), labels, strict=True):
            for number, (key, _) in enumerate(sections if several else ()):
                self._label(key, names[number], names[:number])
        settings = []
        for data_label, (_, source) in zip(labels[0], data, strict=True):
            kept = file.out / "data" / (data_label if isinstance(file.data, list) else "")
            for split_label, (_, splitting) in zip(labels[1], split, strict=True):
                place = Path(data_label, split_label) if several else Path()
                report = (file.report or file.out / "report") / place
                settings.append(Setting(source, splitting, data_label, split_label, place, kept, report))
        return tuple(settings)

    def _label(self, key: Key, label: str, taken: Collection[str]) -> None:
        """Check a label that names a folder."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", label):
            problem = f"{label!r} cannot be the name of a folder."
            raise self.refuse((*key, "label"), problem, "Use letters, digits, dots, hyphens and underscores.")
        if label in taken:
            remedy = f"Give one of them a label of its own, for example {label}-2."
            raise self.refuse(key, f"{key[0]}[{list(taken).index(label)}] is called {label!r} too.", remedy)

    def _data(self, at: Key, data: DataSection) -> None:
        sources = [name for name in ("folder", "public", "table") if getattr(data, name) is not None]
        if len(sources) != 1:
            found = " and ".join(sources) or "none of them"
            raise self.refuse(at, f"needs one of folder, public and table, and has {found}.", "Name one.")
        known = list(inspect.signature(read_interactions).parameters)[1:]
        for option in data.options:
            remedy = did_you_mean(option, [*known, "folder", "public", "table"])
            if option not in known:
                raise self.refuse((*at, option), "there is no such key.", remedy)
            if data.table is None and not (data.public is not None and option in DECLARED):
                problem = f"is an option of tables, and the data come from {sources[0]}."
                raise self.refuse((*at, option), problem, "Leave it out; a prepared dataset was read already.")
        if data.folder is not None and not (data.folder / "manifest.json").is_file():
            remedy = "Prepare it: rediffuse prepare TABLE -o FOLDER; or use table."
            raise self.refuse((*at, "folder"), f"{data.folder} holds no dataset.", remedy)
        if data.public is not None and data.public not in (names := public_dataset_names()):
            problem = f"there is no data set {data.public!r}."
            raise self.refuse((*at, "public"), problem, did_you_mean(data.public, names))
        paths = [data.table] if isinstance(data.table, str) else data.table or []
        for path in (path for path in paths if not any(sign in path for sign in "*?[") and not Path(path).exists()):
            remedy = "Paths are relative to the working directory."
            raise self.refuse((*at, "table"), f"{path} does not exist.", remedy)

    def _split(self, at: Key, split: SplitSection) -> None:
        name = split.name
        with self.during(at):
            if name.startswith("paper:"):
                name = protocols.protocol(name).split or name
            function = splits.by_name_function(name)
        known = list(inspect.signature(function).parameters)[1:]
        for option in split.params:
            if option not in known:
                remedy = did_you_mean(option, known) if known else f"{name} has no options."
                raise self.refuse((*at, option), "there is no such key.", remedy)
        if name == "none":
            problem = "it holds nothing out, so there is nothing to evaluate."
            raise self.refuse(at, problem, "Choose another, and refit the best model: rediffuse refit.")

    def _runs(self, file: File, settings: tuple[Setting, ...]) -> tuple[tuple[PlannedRun, ...], tuple[str, ...]]:
        if min(file.seeds) < 0 or len(set(file.seeds)) < len(file.seeds):
            raise self.refuse(("seeds",), f"{file.seeds} repeats a seed or has one below 0.", "For example: [0, 1, 2]")
        runs, notes, labels, untuned, trainings = [], [], [], [], []
        for number, entry in enumerate(file.models):
            key = ("models", number)
            with self.during((*key, "model")):
                kind = model_class(entry.model)
            with self.during((*key, "options")):
                options = kind.Config.build(entry.preset, entry.options)
            label = entry.label or kind.name
            self._label(key, label, labels)
            labels.append(label)
            seeds = file.seeds if kind.trained_by_gradient else file.seeds[:1]
            if len(seeds) < len(file.seeds):
                notes.append(f"{label} is in closed form, so it is trained with the first seed only.")
            searched = file.tune is not None and bool(kind.Config.search.keys() - entry.options.keys())
            if file.tune is not None and not searched:
                untuned.append(label)
            training = kind, options, entry.options if searched else {}
            if training in trainings:
                problem = f"it is the same training as models[{trainings.index(training)}]."
                raise self.refuse(key, problem, "Leave one of them out; a label or max_minutes makes no other variant.")
            trainings.append(training)
            minutes = file.max_minutes if entry.max_minutes is None else entry.max_minutes
            for setting in settings:
                study = file.out / "tuning" / setting.place / label if searched else None
                for seed in seeds:
                    folder = file.out / "runs" / setting.place / label / f"seed-{seed}"
                    runs.append(
                        PlannedRun(
                            setting, label, kind, entry.preset, options, seed, minutes, folder, study, entry.options
                        )
                    )
        if untuned:
            notes.append(f"Without options to search, so not tuned: {', '.join(untuned)}.")
        order = {id(setting): place for place, setting in enumerate(settings)}
        return tuple(sorted(runs, key=lambda run: order[id(run.setting)])), tuple(notes)

    def _lists(self, file: File, settings: tuple[Setting, ...], models: Collection[str]) -> tuple[PlannedLists, ...]:
        found: dict[tuple[Path, str, int], PlannedLists] = {}
        for number, entry in enumerate(file.lists):
            key: Key = ("lists", number)
            self._label(key, entry.label, ())
            if entry.label in models:
                problem = f"a model is called {entry.label!r} too."
                raise self.refuse((*key, "label"), problem, f"Choose another, for example {entry.label}-lists.")
            for name in entry.columns:
                if name not in LIST_COLUMNS:
                    remedy = did_you_mean(name, LIST_COLUMNS)
                    raise self.refuse((*key, "columns", name), "there is no such key.", remedy)
            if not entry.file.is_file():
                remedy = "Paths are relative to the working directory."
                raise self.refuse((*key, "file"), f"{entry.file} does not exist.", remedy)
            for part in ("data", "split"):
                labels = list(dict.fromkeys(getattr(setting, f"{part}_label") for setting in settings))
                value = getattr(entry, part)
                if value is None and len(labels) > 1:
                    problem = f"does not say which {part} the lists are for."
                    raise self.refuse(key, problem, f"Add {part}: one of {', '.join(labels)}.")
                if value is not None and value not in labels:
                    raise self.refuse((*key, part), f"no {part} is called {value!r}.", did_you_mean(value, labels))
            setting = next(
                setting
                for setting in settings
                if entry.data in (None, setting.data_label) and entry.split in (None, setting.split_label)
            )
            folder = file.out / "lists" / setting.place / entry.label / f"seed-{entry.seed}"
            identity = setting.place, entry.label, entry.seed
            if identity in found:
                problem = f"lists of {entry.label!r} with seed {entry.seed} are named before."
                raise self.refuse(key, problem, "Give them another label, or the seed that they were made with.")
            found[identity] = PlannedLists(setting, entry.label, entry.file, entry.columns, entry.seed, folder)
        return tuple(found.values())

    def _evaluation(self, file: File) -> None:
        if file.evaluate.metrics:
            with self.during(("evaluate", "metrics")):
                parse_metrics(file.evaluate.metrics, MEASURED)
        policies: Collection[str] = POLICIES
        if file.evaluate.protocol is not None:
            with self.during(("evaluate", "protocol")):
                policies = protocols.protocol(file.evaluate.protocol).policies
        name, _, policy = file.metric.partition("/")
        measured = {str(metric) for metric in parse_metrics([*DEFAULT_METRICS, *file.evaluate.metrics], MEASURED)}
        with self.during(("metric",)):
            if str(parse_metric(name, ACCURACY)) not in measured:
                raise ConfigError(f"{name!r} is not measured.", "Add it to evaluate.metrics.")
            if policy and policy not in POLICIES:
                raise ConfigError(f"There is no policy {policy!r}.", did_you_mean(policy, POLICIES))
            if (policy or "all") not in policies:
                other = name if policy == "unseen" else f"{name}/unseen"
                raise ConfigError(f"{file.evaluate.protocol} does not report {file.metric}.", f"Write metric: {other}.")


class _Located:
    """Errors in the block get the key of the file, and its line."""

    def __init__(self, check: _Check, key: Key) -> None:
        self.check, self.key = check, key

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, RediffuseError):
            raise self.check.refuse(self.key, error.problem, error.remedy) from None


def _each(name: str, sections: Any) -> Iterator[tuple[Key, Any]]:
    """The sections under a key with their own keys, in either form."""
    if isinstance(sections, list):
        yield from (((name, number), section) for number, section in enumerate(sections))
    else:
        yield (name,), sections
