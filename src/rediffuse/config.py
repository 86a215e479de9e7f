"""Options that all models share, presets, and settings from the command line and from YAML files."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rediffuse.errors import ConfigError, RediffuseWarning, did_you_mean
from rediffuse.yaml_text import MOST_DEPTH, parse_yaml, read_text


@dataclass(frozen=True)
class Range:
    """An interval that `rediffuse tune` searches; whole numbers where both ends are.

    Attributes:
        low: smallest value.
        high: largest value.
        log: search on a logarithmic scale.
    """

    low: float
    high: float
    log: bool = False


# Largest number of any option, of layers, which are built one by one, and of values in a list.
MOST, MOST_LAYERS, MOST_WIDTHS = 2**31 - 1, 1000, 100
LAYERS = ("blocks", "layers", "hops", "kg_hops", "heads", "solver_steps")


class ModelConfig(BaseModel):
    """Options of the training loop; the Config of each model adds its own, in the model's file.

    A config is immutable, is saved with the run, and refuses unknown options.

    Class attributes:

    - ``presets``: named sets of options. Every model has ``paper`` (the paper's) and ``released`` (the released
      code's); ``paper:NAME`` is the paper's configuration for the data set NAME. ``default`` is the class itself.
    - ``search``: what `rediffuse tune` searches: an option and its `Range`, or a tuple of its choices.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _check_numbers(cls, values: Any) -> Any:
        """Refuse what would count as a number by accident, and numbers that no computation ends with."""
        for option, value in values.items() if isinstance(values, dict) else ():
            field = cls.model_fields.get(option)
            flag = field is None or any(word in str(field.annotation) for word in ("bool", "False", "Any"))
            entries = list(value) if isinstance(value, list | tuple) else [value]
            if len(entries) > MOST_WIDTHS:
                raise ConfigError(f"Option {option!r} lists {len(entries):,} values.", f"At most {MOST_WIDTHS}.")
            for entry in entries:
                if isinstance(entry, bool) and not flag:
                    raise ConfigError(
                        f"Option {option!r} was given {'true' if entry else 'false'}, not a number or a name.",
                        f"Write {int(entry)} if you mean the number.",
                    )
                if isinstance(entry, float) and not math.isfinite(entry):
                    raise ConfigError(f"Option {option!r} was given {entry}.", "Give a finite number.")
                most = 1e30 if isinstance(entry, float) else MOST_LAYERS if option in LAYERS else MOST
                if isinstance(entry, int | float) and not isinstance(entry, bool) and abs(entry) > most:
                    shown = f"{entry:,}" if abs(entry) < 1e15 else "a larger number"
                    raise ConfigError(
                        f"Option {option!r} was given {shown}, and may be at most {most:,}.",
                        "Run rediffuse models NAME to see the options of a model and their defaults.",
                    )
        return values

    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}, "released": {}}
    search: ClassVar[dict[str, Range | tuple[Any, ...]]] = {}

    epochs: int = Field(100, ge=0, description="Upper bound; early stopping usually ends before it.")
    batch_size: int = Field(1024, ge=1, description="Prediction targets per optimiser step.")
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0, description="Decoupled (AdamW).")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="Decay of AdamW's average of squared gradients.")
    learning_rate_schedule: Literal["constant", "linear", "cosine", "exponential"] = Field(
        "constant", description="After the warm-up, to the end of all epochs; exponential: to a hundredth."
    )
    learning_rate_decay_every: int | None = Field(
        None,
        ge=1,
        description="Epochs between decays; with exponential, the rate falls as much within them, step by step.",
    )
    learning_rate_decay: float = Field(
        0.1, gt=0, lt=1, description="What learning_rate_decay_every multiplies the rate by."
    )
    warmup: float = Field(
        0.0, ge=0, description="Optimiser steps in which the learning rate rises; below 1: a share of all steps."
    )
    clip_norm: float | None = Field(None, gt=0, description="Largest gradient norm.")
    accumulate: int = Field(1, ge=1, description="Batches whose gradients make one optimiser step.")
    ema: float | None = Field(
        None, gt=0, lt=1, description="Decay of a moving average of the weights, which is validated and answers."
    )
    validate_every: int = Field(1, ge=1, description="Epochs between validations.")
    patience: int = Field(10, ge=1, description="Validations without improvement before stopping.")
    metric: str = Field(
        "ndcg@10", description="The one validation metric that selects; add /unseen to filter seen items."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="fp32, bf16; auto: by what the hardware supports."
    )

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        if self.learning_rate_decay_every is not None and self.learning_rate_schedule in ("linear", "cosine"):
            raise ConfigError(
                f"learning_rate_decay_every does not go with learning_rate_schedule={self.learning_rate_schedule}, "
                "which falls to the end of all epochs.",
                "Set learning_rate_decay_every=null, or the schedule constant or exponential.",
            )
        return self

    @classmethod
    def build(
        cls, preset: str | None = None, overrides: dict[str, Any] | None = None, *, model: str | None = None
    ) -> Self:
        """Build a config from a preset and options that override it.

        Args:
            preset: "default", "paper", "released" or "paper:NAME"; None is "default".
            overrides: option -> value.
            model: name of the model. If it is given, a preset that changes nothing is warned about.

        Raises:
            ConfigError: the preset or an option is unknown (with the closest known one), or a value is out of range.
        """
        chosen = cls._preset(preset or "default")
        values = chosen | (overrides or {})
        for option in values:
            if option not in cls.model_fields:
                raise ConfigError(f"Unknown option {option!r}.", did_you_mean(option, cls.model_fields))
        try:
            config = cls(**values)
        except ValidationError as error:
            raise cls._error(error) from None
        if (
            model is not None
            and preset not in (None, "default")
            and cls.model_validate(chosen) == cls.model_validate({})
        ):
            warnings.warn(
                f"The preset {preset!r} of {model} changes nothing: it equals the default.",
                RediffuseWarning,
                stacklevel=3,
            )
        return config

    @classmethod
    def of_phase(cls, phase: str, run: dict[str, Any]) -> dict[str, Any]:
        """The options that a run brings along which a phase is taken from.

        Args:
            phase: the name of the phase, which is that of an option too.
            run: config.json of the run.
        """
        return {phase: run["config"]}

    @classmethod
    def preset_names(cls) -> list[str]:
        """Names that `build` accepts: default, paper, released and the data-set configurations, in this order."""
        return list(dict.fromkeys(("default", *ModelConfig.presets, *cls.presets)))

    @classmethod
    def _preset(cls, name: str) -> dict[str, Any]:
        if name not in cls.preset_names():
            raise ConfigError(f"Unknown preset {name!r}.", did_you_mean(name, cls.preset_names()))
        return cls.presets.get(name, {})

    @classmethod
    def _error(cls, error: ValidationError) -> ConfigError:
        """Convert the first of pydantic's errors to a `ConfigError`."""
        first = error.errors()[0]
        if isinstance(ours := first.get("ctx", {}).get("error"), ConfigError):  # raised by a validator
            return ours
        if not first["loc"]:  # raised by a validator of several options
            return ConfigError(f"These options do not fit: {first['msg'].removeprefix('Value error, ')}.")
        option = ".".join(str(name) for name in first["loc"])
        return ConfigError(
            f"Option {option!r} was given {first.get('input')!r}: {first['msg']}.",
            "Run rediffuse models NAME to see the options of a model and their defaults.",
        )


class NeuralConfig(ModelConfig):
    """Options of a model that is trained by gradient: it can answer with a prior from the item graph."""

    prior: Literal["none", "head", "residual"] = Field(
        "none",
        description="head: add the logarithms of theat and of recent popularity to the scores, weighted on validation "
        "data. residual: also train with theat in the loss, so that the network learns what the graph does not know.",
    )


class ContentConfig(NeuralConfig):
    """Options of a model whose item vectors are made of the items' content too, where a dataset declares features."""

    item_features: bool = Field(True, description="Use the features of items that the dataset declares.")
    id_dropout: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="With item features: probability that an item is its content alone, in a step of training.",
    )


class ClosedFormConfig(ModelConfig):
    """Options of a model in closed form, which is cheap enough to be fitted twice."""

    refit: bool = Field(
        False, description="After options are chosen and measured, learn from the validation interactions too."
    )


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """Parse settings as the command line takes them; values are YAML.

    ``["epochs=20", "form=prefix"]`` gives ``{"epochs": 20, "form": "prefix"}``. A dot leads into an option that is a
    mapping: ``diffusion.epochs=20`` gives ``{"diffusion": {"epochs": 20}}``.

    Raises:
        ConfigError: a setting has no equals sign or is not YAML, or leads into an option that has a single value.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"Setting {setting!r} is not of the form option=value.", "For example: --set epochs=20")
        *parents, option = name.strip().split(".")
        target = values
        if len(parents) > MOST_DEPTH:
            raise ConfigError(f"Setting {setting[:60]!r} leads more than {MOST_DEPTH} levels deep.", "No option does.")
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise ConfigError(f"Setting {setting!r} leads into {parent!r}, which was set to {target!r}.")
        target[option], _ = parse_yaml(text, f"The value of setting {setting[:60]!r}", "Put the value in quotes.")
    return values


def read_settings(path: Path) -> dict[str, Any]:
    """Read options from a YAML file.

    Raises:
        ConfigError: the file is missing, is no regular file, is not YAML, or is not a mapping of text to values.
    """
    values, _ = parse_yaml(read_text(path, "Config file"), f"Config file {path}", "Correct the line that it names.")
    if not isinstance(values, dict):
        raise ConfigError(f"Config file {path} has no options.", "Write one option per line, for example epochs: 20")
    return values


# Before the names of validation metrics over the users with a history, where some have none.
WITH_HISTORY = "with_history/"


def selected_value(validation: dict[str, float], metric: str) -> float:
    """The value that weights and options are chosen by: over the validation users with a history.

    Users without one all get the same list, which training hardly changes; their share would only blur the choice.

    Args:
        validation: metrics by name, as in metrics.jsonl. Those over the users with a history begin with `WITH_HISTORY`;
            they are missing where all users have one.
        metric: name of the selection metric.
    """
    return validation.get(WITH_HISTORY + metric, validation[metric])
