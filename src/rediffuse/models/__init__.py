"""The models: one paper, one file, its Config on top."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from rediffuse.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from rediffuse.models.base import Model

# Loaded on first use: listing the names needs no torch.
_MODELS = {
    "bert4rec": ("rediffuse.models.baselines.bert4rec", "BERT4Rec"),
    "bprmf": ("rediffuse.models.baselines.bprmf", "BPRMF"),
    "diffkg": ("rediffuse.models.diffkg", "DiffKG"),
    "diffnet": ("rediffuse.models.diffnet", "DiffNet"),
    "diffnetpp": ("rediffuse.models.diffnetpp", "DiffNetPP"),
    "diffrec": ("rediffuse.models.diffrec", "DiffRec"),
    "diffurec": ("rediffuse.models.diffurec", "DiffuRec"),
    "diffuasr": ("rediffuse.models.diffuasr", "DiffuASR"),
    "ease": ("rediffuse.models.baselines.ease", "EASE"),
    "friends": ("rediffuse.models.baselines.friends", "Friends"),
    "gru4rec": ("rediffuse.models.baselines.gru4rec", "GRU4Rec"),
    "itemknn": ("rediffuse.models.baselines.itemknn", "ItemKNN"),
    "lightgcn": ("rediffuse.models.baselines.lightgcn", "LightGCN"),
    "ldiffrec": ("rediffuse.models.ldiffrec", "LDiffRec"),
    "pdrec": ("rediffuse.models.pdrec", "PDRec"),
    "popularity": ("rediffuse.models.baselines.popularity", "Popularity"),
    "s3rec": ("rediffuse.models.baselines.s3rec", "S3Rec"),
    "sasrec": ("rediffuse.models.baselines.sasrec", "SASRec"),
    "tdiffrec": ("rediffuse.models.diffrec", "TDiffRec"),
}


def names() -> list[str]:
    """Names of all registered models."""
    return sorted(_MODELS)


def model_class(name: str) -> type[Model]:
    """The model registered under ``name``.

    Raises:
        ConfigError: there is none; with the closest known name.
    """
    if name not in _MODELS:
        raise ConfigError(f"There is no model {name!r}.", did_you_mean(name, _MODELS))
    module, attribute = _MODELS[name]
    return getattr(importlib.import_module(module), attribute)


__all__ = ["model_class", "names"]
