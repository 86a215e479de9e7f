"""Configuration shared by all models: validation with readable errors, and the options of the training loop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rediffuse.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Range:
    """Values from ``low`` to ``high`` for `rediffuse tune`; whole numbers if both ends are."""

    low: float
    high: float
    log: bool = False


class ModelConfig(BaseModel):
    """Options every trained model has. Each model's own Config adds to these, in the same file as the model.

    A config is immutable, is saved with the run, and refuses unknown options.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    # Named sets of options; "default" is the class itself.
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    # What `rediffuse tune` tries: option -> Range, or a tuple of choices.
    search: ClassVar[dict[str, Range | tuple[Any, ...]]] = {}

    epochs: int = Field(100, ge=0, description="Upper bound; early stopping usually ends before it.")
    batch_size: int = Field(1024, ge=1, description="Prediction targets per optimiser step.")
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0, description="Decoupled (AdamW).")
    learning_rate_decay_every: int | None = Field(None, ge=1, description="Epochs between decays by 0.1.")
    clip_norm: float | None = Field(None, gt=0, description="Largest gradient norm.")
    validate_every: int = Field(1, ge=1, description="Epochs between validations.")
    patience: int = Field(10, ge=1, description="Validations without improvement before stopping.")
    metric: str = Field(
        "ndcg@10", description="The one validation metric that selects; add /unseen to filter seen items."
    )
    precision: Literal["auto", "fp32", "bf16"] = "auto"

    @classmethod
    def build(cls, preset: str | None = None, overrides: dict[str, Any] | None = None) -> Self:
        """A config from a preset and overrides.

        Raises:
            ConfigError: unknown preset, unknown option (with the closest known one) or a value out of range.
        """
        values: dict[str, Any] = {}
        if preset not in (None, "default"):
            if preset not in cls.presets:
                raise ConfigError(f"Unknown preset {preset!r}.", did_you_mean(preset, ["default", *cls.presets]))
            values.update(cls.presets[preset])
        values.update(overrides or {})
        for option in values:
            if option not in cls.model_fields:
                raise ConfigError(f"Unknown option {option!r}.", did_you_mean(option, cls.model_fields))
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            if isinstance(ours := first.get("ctx", {}).get("error"), ConfigError):  # a validator of a model raised it
                raise ours from None
            if not first["loc"]:  # options that do not fit together
                raise ConfigError(f"These options do not fit: {first['msg'].removeprefix('Value error, ')}.") from None
            option = ".".join(str(part) for part in first["loc"])
            raise ConfigError(
                f"Option {option!r} was given {first.get('input')!r}: {first['msg']}.",
                f"See {cls.__module__} for what {option!r} may be.",
            ) from None


def parse_settings(settings: list[str]) -> dict[str, Any]:
    """``["epochs=20", "form=prefix"]`` -> ``{"epochs": 20, "form": "prefix"}`` (values are read as YAML).

    ``part.epochs=20`` is an option of a part: ``{"part": {"epochs": 20}}``.

    Raises:
        ConfigError: a setting without an equals sign, or of a part that another setting gave one value.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        name, sign, text = setting.partition("=")
        if not sign or not name.strip():
            raise ConfigError(f"Setting {setting!r} is not of the form option=value.", "For example: --set epochs=20")
        *parts, option = name.strip().split(".")
        place = values
        for part in parts:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ConfigError(f"Setting {setting!r} goes into {part!r}, which was set to {place!r}.")
        place[option] = yaml.safe_load(text)
    return values


def read_settings(path: Path) -> dict[str, Any]:
    """Options from a YAML file.

    Raises:
        ConfigError: the file is missing, is not YAML, or is not a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"Config file {path} does not exist.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"Config file {path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"Config file {path} holds no options.", "Write one option per line, for example epochs: 20")
    return values
