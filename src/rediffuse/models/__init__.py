"""The models: one paper, one file, its Config on top.

The classes are attributes of this module (``rediffuse.models.SASRec``), loaded on first use. So are the classes that a
model of your own derives from: `Model`, `SequenceModel`, `FactorModel` and `ModelConfig`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rediffuse.errors import ConfigError, did_you_mean
from rediffuse.models import external

if TYPE_CHECKING:
    from rediffuse.config import ModelConfig, Range
    from rediffuse.models.base import Model, TrainingData
    from rediffuse.models.baselines.bert4rec import BERT4Rec
    from rediffuse.models.baselines.bprmf import BPRMF
    from rediffuse.models.baselines.ease import EASE
    from rediffuse.models.baselines.friends import Friends
    from rediffuse.models.baselines.gru4rec import GRU4Rec
    from rediffuse.models.baselines.itemknn import ItemKNN
    from rediffuse.models.baselines.lightgcn import LightGCN
    from rediffuse.models.baselines.popularity import Popularity
    from rediffuse.models.baselines.recentpop import RecentPopularity
    from rediffuse.models.baselines.s3rec import S3Rec
    from rediffuse.models.baselines.sasrec import SASRec
    from rediffuse.models.baselines.slist import SLIST
    from rediffuse.models.blend import Blend
    from rediffuse.models.colddiff import ColdDiff
    from rediffuse.models.d3rec import D3Rec
    from rediffuse.models.diffkg import DiffKG
    from rediffuse.models.diffnet import DiffNet
    from rediffuse.models.diffnetpp import DiffNetPP
    from rediffuse.models.diffrec import DiffRec, TDiffRec
    from rediffuse.models.diffuasr import DiffuASR
    from rediffuse.models.diffurec import DiffuRec
    from rediffuse.models.factors import FactorConfig, FactorModel
    from rediffuse.models.flowcf import FlowCF
    from rediffuse.models.giffcf import GiffCF
    from rediffuse.models.heat import Heat
    from rediffuse.models.heatrec import HeatRec
    from rediffuse.models.ldiffrec import LDiffRec
    from rediffuse.models.maskdiff import MaskDiff
    from rediffuse.models.pdrec import PDRec
    from rediffuse.models.preferdiff import PreferDiff
    from rediffuse.models.sampling import Sampling
    from rediffuse.models.sequence import Encoded, SequenceConfig, SequenceModel
    from rediffuse.models.theat import TemporalHeat
    from rediffuse.models.transition import Transition

# Loaded on first use: listing the names needs no torch.
_MODELS = {
    "bert4rec": ("rediffuse.models.baselines.bert4rec", "BERT4Rec"),
    "bprmf": ("rediffuse.models.baselines.bprmf", "BPRMF"),
    "colddiff": ("rediffuse.models.colddiff", "ColdDiff"),
    "d3rec": ("rediffuse.models.d3rec", "D3Rec"),
    "diffkg": ("rediffuse.models.diffkg", "DiffKG"),
    "diffnet": ("rediffuse.models.diffnet", "DiffNet"),
    "diffnetpp": ("rediffuse.models.diffnetpp", "DiffNetPP"),
    "diffrec": ("rediffuse.models.diffrec", "DiffRec"),
    "diffurec": ("rediffuse.models.diffurec", "DiffuRec"),
    "diffuasr": ("rediffuse.models.diffuasr", "DiffuASR"),
    "ease": ("rediffuse.models.baselines.ease", "EASE"),
    "flowcf": ("rediffuse.models.flowcf", "FlowCF"),
    "friends": ("rediffuse.models.baselines.friends", "Friends"),
    "giffcf": ("rediffuse.models.giffcf", "GiffCF"),
    "gru4rec": ("rediffuse.models.baselines.gru4rec", "GRU4Rec"),
    "itemknn": ("rediffuse.models.baselines.itemknn", "ItemKNN"),
    "lightgcn": ("rediffuse.models.baselines.lightgcn", "LightGCN"),
    "ldiffrec": ("rediffuse.models.ldiffrec", "LDiffRec"),
    "maskdiff": ("rediffuse.models.maskdiff", "MaskDiff"),
    "pdrec": ("rediffuse.models.pdrec", "PDRec"),
    "popularity": ("rediffuse.models.baselines.popularity", "Popularity"),
    "preferdiff": ("rediffuse.models.preferdiff", "PreferDiff"),
    "recentpop": ("rediffuse.models.baselines.recentpop", "RecentPopularity"),
    "s3rec": ("rediffuse.models.baselines.s3rec", "S3Rec"),
    "sasrec": ("rediffuse.models.baselines.sasrec", "SASRec"),
    "theat": ("rediffuse.models.theat", "TemporalHeat"),
    "transition": ("rediffuse.models.transition", "Transition"),
    "heat": ("rediffuse.models.heat", "Heat"),
    "heatrec": ("rediffuse.models.heatrec", "HeatRec"),
    "slist": ("rediffuse.models.baselines.slist", "SLIST"),
    "tdiffrec": ("rediffuse.models.diffrec", "TDiffRec"),
}

# Not trained, but made of finished runs.
_MADE_OF_RUNS = {"blend": ("rediffuse.models.blend", "Blend")}

_FOR_AUTHORS = {
    "Encoded": "rediffuse.models.sequence",
    "FactorConfig": "rediffuse.models.factors",
    "FactorModel": "rediffuse.models.factors",
    "Model": "rediffuse.models.base",
    "ModelConfig": "rediffuse.config",
    "Range": "rediffuse.config",
    "Sampling": "rediffuse.models.sampling",
    "SequenceConfig": "rediffuse.models.sequence",
    "SequenceModel": "rediffuse.models.sequence",
    "TrainingData": "rediffuse.models.base",
}
_CLASSES = {attribute: module for module, attribute in (*_MODELS.values(), *_MADE_OF_RUNS.values())} | _FOR_AUTHORS


def names(*, installed: bool = True) -> list[str]:
    """Names of the models that can be trained. `model_class` finds ``blend`` too, which is made of finished runs.

    Args:
        installed: include the models of other installed packages (entry point group ``rediffuse.models``).
    """
    return sorted({*_MODELS, *(external.entry_points() if installed else ())})


def model_class(model: str | type[Model]) -> type[Model]:
    """The class of a model.

    Args:
        model: a name (see `names`), the import path of a class (``"my_package.module:MyModel"``), or the class itself.

    Raises:
        ConfigError: there is no such model, its module cannot be imported, two packages offer it, or the class lacks
            something that a model needs.

    Warns:
        RediffuseWarning: another package offers a model with the name of a built-in one, which is the one that is used.
    """
    built_in = _MODELS | _MADE_OF_RUNS
    if isinstance(model, str) and model in built_in:
        external.warn_about_namesakes(model)
        module, attribute = built_in[model]
        return getattr(importlib.import_module(module), attribute)
    if not isinstance(model, str):
        found = model
    elif ":" in model:
        found = external.import_class(model)
    else:
        found = external.by_entry_point(model)
        if found is None:
            remedy = did_you_mean(model, names())
            raise ConfigError(f"There is no model {model!r}.", external.as_import_path(model) or remedy)
    kind = external.checked(found)
    if (own := built_in.get(kind.name)) and external.class_path(kind) != ":".join(own):
        raise ConfigError(
            f"{external.class_path(kind)} has the name of a built-in model, {kind.name!r}.",
            "Give the class another `name`: results are compared by it.",
        )
    return kind


__all__ = [
    "BPRMF",
    "EASE",
    "SLIST",
    "BERT4Rec",
    "Blend",
    "ColdDiff",
    "D3Rec",
    "DiffKG",
    "DiffNet",
    "DiffNetPP",
    "DiffRec",
    "DiffuASR",
    "DiffuRec",
    "Encoded",
    "FactorConfig",
    "FactorModel",
    "FlowCF",
    "Friends",
    "GRU4Rec",
    "GiffCF",
    "Heat",
    "HeatRec",
    "ItemKNN",
    "LDiffRec",
    "LightGCN",
    "MaskDiff",
    "Model",
    "ModelConfig",
    "PDRec",
    "Popularity",
    "PreferDiff",
    "Range",
    "RecentPopularity",
    "S3Rec",
    "SASRec",
    "Sampling",
    "SequenceConfig",
    "SequenceModel",
    "TDiffRec",
    "TemporalHeat",
    "TrainingData",
    "Transition",
    "model_class",
    "names",
]


def __getattr__(name: str) -> Any:
    if name not in _CLASSES:
        raise AttributeError(f"module 'rediffuse.models' has no attribute {name!r}")
    value = getattr(importlib.import_module(_CLASSES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
