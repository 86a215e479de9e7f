"""What an experiment consists of: settings, trainings, and lists of other libraries."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rediffuse.config import ModelConfig
from rediffuse.evaluation.metrics import MEASURED, parse_metrics
from rediffuse.experiment.sections import DataSection, File, SplitSection
from rediffuse.models.base import Model


@dataclass(frozen=True)
class Setting:
    """Data and a split: what models are compared on.

    Attributes:
        data, split: the sections of the file.
        data_label, split_label: their names in tables.
        place: what tells the folders of several settings apart: DATA/SPLIT; empty if the file has a single one.
        kept: folder of the data, if they come from a table or a public source.
        report: folder of the comparison.
    """

    data: DataSection
    split: SplitSection
    data_label: str
    split_label: str
    place: Path
    kept: Path
    report: Path

    @property
    def labels(self) -> tuple[str, str]:
        """What tables call the data and the split."""
        return self.data_label, self.split_label

    @property
    def name(self) -> str:
        """The setting in a sentence; empty if the file has a single one."""
        return f"{self.data_label}, {self.split_label}" if self.place.parts else ""


@dataclass(frozen=True)
class PlannedRun:
    """One training.

    Attributes:
        setting: the data and the split.
        label: name of the variant.
        kind: class of the model.
        preset: named options.
        options: all options, checked; before the search, where there is one.
        seed: of the training.
        max_minutes: its time limit.
        folder: its run folder.
        study: folder of the search of its options; None if they are not searched.
        fixed: options of the file, which are not searched.
    """

    setting: Setting
    label: str
    kind: type[Model]
    preset: str | None
    options: ModelConfig
    seed: int
    max_minutes: float | None
    folder: Path
    study: Path | None
    fixed: dict[str, Any]

    @property
    def name(self) -> str:
        """The run in a sentence."""
        return ", ".join(filter(None, (self.setting.name, self.label, f"seed {self.seed}")))


@dataclass(frozen=True)
class PlannedLists:
    """Recommendations of another library to evaluate; attributes as in the file, and the folder of the evaluation."""

    setting: Setting
    label: str
    file: Path
    columns: dict[str, str]
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        """The lists in a sentence."""
        return ", ".join(filter(None, (self.setting.name, f"lists of {self.label}")))


@dataclass(frozen=True)
class Experiment:
    """A checked experiment file.

    Attributes:
        path: the file.
        file: its content.
        settings: each data set with each split.
        runs: the trainings, in order.
        lists: recommendations of other libraries.
        notes: what was decided, in sentences.
    """

    path: Path
    file: File
    settings: tuple[Setting, ...]
    runs: tuple[PlannedRun, ...]
    lists: tuple[PlannedLists, ...]
    notes: tuple[str, ...]

    @property
    def metrics(self) -> list[str]:
        """The metrics of the file, besides the usual ones."""
        named = self.file.evaluate.metrics
        return [str(metric) for metric in parse_metrics(named, MEASURED)] if named else []

    @property
    def results(self) -> Path:
        """The table of all per-user results."""
        return self.file.out / "results.parquet"

    @property
    def page(self) -> Path:
        """The page of all settings."""
        return self.file.out / "index.html"
