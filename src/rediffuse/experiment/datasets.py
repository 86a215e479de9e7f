"""The data and the split of a setting, and the record of what an output folder holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from rediffuse.data.dataset import Dataset
from rediffuse.data.loading import load_dataset
from rediffuse.data.split import Split
from rediffuse.errors import ConfigError, RunError
from rediffuse.evaluation.protocols import protocol, split_for
from rediffuse.experiment.planned import Experiment, Setting
from rediffuse.experiment.sections import DECLARED
from rediffuse.files import atomic_write_text
from rediffuse.readers import read_interactions
from rediffuse.readers.public_datasets import public_dataset

RECORD = "experiment.json"
Say = Callable[[str], None]


def prepare(experiment: Experiment, setting: Setting, say: Say) -> tuple[Dataset, Split]:
    """The data and the split; data that were read from a table or a public source are kept in the output folder.

    Raises:
        ConfigError, DataError: the data cannot be read or split, or the split does not fit the protocol.
        RunError: the output folder holds other data, or is no folder of an experiment.
    """
    data = _dataset(experiment, setting, say)
    split = split_for(setting.split.name, data, **setting.split.params)
    rules = experiment.file.evaluate.protocol
    if rules is not None and (needs := protocol(rules).split) not in (None, split.name):
        raise ConfigError(f"Protocol {rules!r} needs the split {needs!r}, and this is {split.name!r}.", "Change one.")
    return data, split


def _dataset(experiment: Experiment, setting: Setting, say: Say) -> Dataset:
    section, kept, record = setting.data, setting.kept, experiment.file.out / RECORD
    if section.folder is not None:
        _record(experiment, setting, None)
        return load_dataset(section.folder)
    source = section.model_dump(mode="json", exclude_none=True, exclude={"label"})
    earlier = json.loads(record.read_text(encoding="utf-8"))["data"] if record.is_file() else None
    if section.public is not None and earlier and earlier.get(setting.data_label) == source and kept.is_dir():
        return load_dataset(kept)  # published data do not change
    say(f"Reading {section.public or section.table}.")
    if section.public is not None:
        data = public_dataset(section.public).with_features(*map(section.options.get, DECLARED))
    else:
        data = read_interactions(section.table, **section.options)
    if kept.is_dir() and _identity(load_dataset(kept)) != _identity(data):
        raise RunError(
            f"{kept} is of an experiment on other data: the interactions or features have changed since it began.",
            "Choose another folder (out: ...), or remove that one.",
        )
    _record(experiment, setting, source)
    if not kept.is_dir():
        data.save(kept)
    return data


def _identity(data: Dataset) -> tuple[str, str]:
    return data.fingerprint, data.features_fingerprint


def _record(experiment: Experiment, setting: Setting, source: dict[str, Any] | None) -> None:
    """Write what the folder is into it.

    Raises:
        RunError: it holds something else.
    """
    out = experiment.file.out
    if out.exists() and not (out / RECORD).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} exists and is no folder of an experiment.", "Choose another folder (out: ...).")
    out.mkdir(parents=True, exist_ok=True)
    earlier = json.loads((out / RECORD).read_text(encoding="utf-8"))["data"] if (out / RECORD).is_file() else None
    sources = (earlier or {}) | {setting.data_label: source}
    content = {"experiment": experiment.file.model_dump(mode="json"), "data": sources}
    atomic_write_text(out / RECORD, json.dumps(content, indent=2) + "\n")
