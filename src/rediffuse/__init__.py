"""Rediffuse: diffusion recommenders that are correct, fast and honest.

The names below are loaded on first use, so that ``import rediffuse`` and ``rediffuse --help`` stay quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_LAZY = {
    "Dataset": ("rediffuse.data.dataset", "Dataset"),
    "Recommender": ("rediffuse.recommender", "Recommender"),
    "add_items": ("rediffuse.recommender.new_items", "add_items"),
    "read_interactions": ("rediffuse.readers.interactions", "read_interactions"),
    "read_numbered": ("rediffuse.readers.numbered", "read_numbered"),
    "load_partitions": ("rediffuse.readers.numbered", "load_partitions"),
    "read_atomic": ("rediffuse.readers.recbole", "read_atomic"),
    "load_dataset": ("rediffuse.data.loading", "load_dataset"),
    "data_report": ("rediffuse.data.report", "data_report"),
    "public_dataset": ("rediffuse.readers.public_datasets", "public_dataset"),
    "train": ("rediffuse.training", "train"),
    "blend": ("rediffuse.training.blend", "blend"),
    "evaluate": ("rediffuse.comparison", "evaluate"),
    "evaluate_lists": ("rediffuse.evaluation", "evaluate_lists"),
    "compare": ("rediffuse.comparison", "compare"),
    "tune": ("rediffuse.tuning", "tune"),
    "refit": ("rediffuse.training", "refit"),
    "update": ("rediffuse.training", "update"),
    "update_histories": ("rediffuse.recommender.fresh_histories", "update_histories"),
    "augment": ("rediffuse.augmentation", "augment"),
    "push": ("rediffuse.runs.push", "push"),
    "split": ("rediffuse.data.split", None),
    "data": ("rediffuse.data", None),
    "diffusion": ("rediffuse.diffusion", None),
    "errors": ("rediffuse.errors", None),
    "evaluation": ("rediffuse.evaluation", None),
    "models": ("rediffuse.models", None),
    "testing": ("rediffuse.testing", None),
}

__all__ = [
    "Dataset",
    "Recommender",
    "__version__",
    "add_items",
    "augment",
    "blend",
    "compare",
    "data",
    "data_report",
    "diffusion",
    "errors",
    "evaluate",
    "evaluate_lists",
    "evaluation",
    "load_dataset",
    "load_partitions",
    "models",
    "public_dataset",
    "push",
    "read_atomic",
    "read_interactions",
    "read_numbered",
    "refit",
    "split",
    "testing",
    "train",
    "tune",
    "update",
    "update_histories",
]

if TYPE_CHECKING:
    from rediffuse import data, diffusion, errors, evaluation, models, testing
    from rediffuse.augmentation import augment
    from rediffuse.comparison import compare, evaluate
    from rediffuse.data import split
    from rediffuse.data.dataset import Dataset
    from rediffuse.data.loading import load_dataset
    from rediffuse.data.report import data_report
    from rediffuse.evaluation import evaluate_lists
    from rediffuse.readers.interactions import read_interactions
    from rediffuse.readers.numbered import load_partitions, read_numbered
    from rediffuse.readers.public_datasets import public_dataset
    from rediffuse.readers.recbole import read_atomic
    from rediffuse.recommender import Recommender
    from rediffuse.recommender.fresh_histories import update_histories
    from rediffuse.recommender.new_items import add_items
    from rediffuse.runs.push import push
    from rediffuse.training import refit, train, update
    from rediffuse.training.blend import blend
    from rediffuse.tuning import tune


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'rediffuse' has no attribute {name!r}")
    module_name, attribute = _LAZY[name]
    module = importlib.import_module(module_name)
    value = module if attribute is None else getattr(module, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
