"""Backbones: sequence models that another model contains and trains, and their options."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rediffuse.config import NeuralConfig
from rediffuse.errors import ConfigError, did_you_mean
from rediffuse.models import model_class
from rediffuse.models.sequence import SequenceConfig, SequenceModel


def backbone_class(owner: str, name: str, known: Iterable[str]) -> type[SequenceModel]:
    """The class of the backbone called ``name``.

    Args:
        owner: the model that contains it, for messages.
        known: names of the possible backbones.

    Raises:
        ConfigError: ``name`` is not one of them.
    """
    if name not in known:
        raise ConfigError(f"{name!r} is not a backbone of {owner}.", did_you_mean(name, known))
    kind = model_class(name)
    assert issubclass(kind, SequenceModel)
    return kind


def backbone_config(
    owner: str, kind: type[SequenceModel], options: dict[str, Any], shared: dict[str, Any]
) -> SequenceConfig:
    """The options of a backbone: its own ``options``, and those ``shared`` with its owner.

    Raises:
        ConfigError: ``options`` has shared or unknown options, a row-wise optimiser, or a prior.
    """
    for option in shared:
        if option in options:
            name = owner.lower()
            raise ConfigError(f"backbone_options.{option} is an option of {name} itself.", f"Set {option}=... instead.")
    config = kind.Config.build(None, options | shared)
    assert isinstance(config, SequenceConfig)
    if config.item_optimizer != "adamw":
        raise ConfigError(
            f"backbone_options.item_optimizer is {config.item_optimizer!r}, and {owner} reads the whole item table.",
            "Leave it out, or train the backbone alone.",
        )
    refuse_prior(owner, "backbone_options", config)
    return config


def refuse_prior(owner: str, option: str, config: NeuralConfig) -> None:
    """Check the options that ``option`` of ``owner`` gives to one of its models.

    Raises:
        ConfigError: they ask for a prior, which only the whole model can have.
    """
    if config.prior != "none":
        raise ConfigError(
            f"{option}.prior is {config.prior!r}, and a prior belongs to the whole model.",
            f"Set prior=head of {owner.lower()} itself.",
        )
