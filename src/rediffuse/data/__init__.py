"""Data in memory and on disk: numbered interactions, graphs, splits.

The names below are loaded on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_LAZY = {
    "Dataset": "dataset",
    "SocialGraph": "dataset",
    "KnowledgeGraph": "dataset",
    "Histories": "histories",
    "Split": "split",
    "TrainingView": "split",
    "Task": "split",
    "load_dataset": "loading",
}

__all__ = [
    "Dataset",
    "Histories",
    "KnowledgeGraph",
    "SocialGraph",
    "Split",
    "Task",
    "TrainingView",
    "load_dataset",
]

if TYPE_CHECKING:
    from rediffuse.data.dataset import Dataset, KnowledgeGraph, SocialGraph
    from rediffuse.data.histories import Histories
    from rediffuse.data.loading import load_dataset
    from rediffuse.data.split import Split, Task, TrainingView


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'rediffuse.data' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"rediffuse.data.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
