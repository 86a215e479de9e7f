"""The sequence model that another model trains as its part: which it may be, and its options."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rediffuse.errors import ConfigError, did_you_mean
from rediffuse.models import model_class
from rediffuse.models.sequence import SequenceConfig, SequenceModel


def backbone_class(owner: str, name: str, known: Iterable[str]) -> type[SequenceModel]:
    """The backbone called ``name``.

    Args:
        owner: the model that it is a part of, for messages.
        known: names of those that it may be.

    Raises:
        ConfigError: it is none of them.
    """
    if name not in known:
        raise ConfigError(f"{name!r} is no backbone for {owner}.", did_you_mean(name, known))
    kind = model_class(name)
    assert issubclass(kind, SequenceModel)
    return kind


def backbone_config(
    owner: str, kind: type[SequenceModel], options: dict[str, Any], shared: dict[str, Any]
) -> SequenceConfig:
    """Options of a backbone: its own, and those ``shared`` with its owner.

    Raises:
        ConfigError: ``options`` holds shared ones, others than its own, or a row-wise optimiser.
    """
    for option in shared:
        if option in options:
            name = owner.lower()
            raise ConfigError(f"backbone_options.{option} is an option of {name}.", f"Set {option}=... itself.")
    config = kind.Config.build(None, options | shared)
    assert isinstance(config, SequenceConfig)
    if config.item_optimizer != "adamw":
        raise ConfigError(
            f"backbone_options.item_optimizer is {config.item_optimizer!r}, and {owner} reads the whole item table.",
            "Leave it out, or train the backbone alone.",
        )
    return config
