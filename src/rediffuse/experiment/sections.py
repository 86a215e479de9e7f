"""The sections of an experiment file, and their types."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from rediffuse.experiment.yaml_lines import Key

# What is declared of a dataset that was read already.
DECLARED = ("item_features", "user_features")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_flags(cls, values: Any) -> Any:
        """No key takes true or false, which pydantic would count as 1 or 0."""
        for key, value in values.items() if isinstance(values, dict) else ():
            if key == "energy" and value is True:
                raise ValueError("energy needs the country whose electricity is used, such as energy: {country: DEU}")
            if any(isinstance(entry, bool) for entry in (value if isinstance(value, list) else [value])):
                raise ValueError(f"{key} is true or false, and takes a number or text")
        return values


class DataSection(BaseModel):
    """Where the interactions come from: exactly one of ``folder``, ``public`` and ``table``.

    ``label`` names them in tables. Other keys are the options of `rediffuse.read_interactions`, for a table; those in
    `DECLARED` are for a public data set too.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    label: str | None = None
    folder: Path | None = None
    public: str | None = None
    table: str | list[str] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Options of the reader."""
        return self.model_extra or {}

    @property
    def name(self) -> str:
        """The label, or what the source is called."""
        table = self.table[0] if isinstance(self.table, list) and self.table else self.table or "data"
        source = self.folder.name if self.folder is not None else self.public or Path(str(table)).stem
        return self.label or source or "data"


class SplitSection(BaseModel):
    """The name of a split, and its ``label`` in tables; other keys are its parameters."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = "default"
    label: str | None = None

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


class TuneSection(_Section):
    """The budget that the options of each model are searched with."""

    trials: int = Field(30, ge=1)
    minutes: float | None = Field(None, gt=0)


class EnergySection(_Section):
    """Where the electricity comes from, by its ISO 3166 code of three letters."""

    country: str = Field(pattern="^[A-Z]{3}$")


class ListsSection(_Section):
    """A file of recommendations that another library made, and the data and split that it made them for."""

    label: str
    file: Path
    columns: dict[str, str] = {}
    data: str | None = None
    split: str | None = None
    seed: int = Field(0, ge=0)


_S = TypeVar("_S", bound=BaseModel)
# With a discriminator, errors are of the form that was written: one section, or a list of them.
FORMS = ("one", "several")
_OneOrSeveral = Annotated[
    Annotated[_S, Tag("one")] | Annotated[list[_S], Tag("several"), Field(min_length=1)],
    Discriminator(lambda value: "several" if isinstance(value, list) else "one"),
]


class File(_Section):
    """All keys of an experiment file."""

    data: _OneOrSeveral[DataSection]
    split: _OneOrSeveral[SplitSection] = SplitSection()
    models: list[ModelSection] = Field(min_length=1)
    seeds: list[int] = Field([0], min_length=1)
    max_minutes: float | None = Field(None, gt=0)
    tune: TuneSection | None = None
    lists: list[ListsSection] = []
    evaluate: EvaluateSection = EvaluateSection()
    metric: str = "ndcg@10"
    energy: EnergySection | None = None
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
        if isinstance(value, list):
            return [{"name": entry} if isinstance(entry, str) else entry for entry in value]
        return {"name": value} if isinstance(value, str) else value


def section_of(key: Key) -> type[BaseModel] | None:
    """The class that describes the section under ``key``; None if options are free there."""
    found: Any = File
    for part in key:
        if isinstance(part, int):
            continue
        field = found.model_fields.get(part) if found is not None else None
        if field is None:
            return None
        found = _class_in(field.annotation)
    return found


def _class_in(annotation: Any) -> type[BaseModel] | None:
    """The section in a type such as ``list[ModelSection]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_class_in, get_args(annotation))), None)
