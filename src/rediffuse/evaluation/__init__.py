"""Evaluation: rank the whole catalogue, count ties against the model, keep and filter seen items."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rediffuse.evaluation.list_evaluation import EvaluationResult, evaluate_lists
from rediffuse.evaluation.metrics import DEFAULT_METRICS, NOT_RANKED, POLICIES, parse_metric

if TYPE_CHECKING:
    from rediffuse.evaluation.rank import Ranking, model_scores, rank_task
    from rediffuse.evaluation.task_evaluation import TaskResult, evaluate_task

__all__ = [
    "DEFAULT_METRICS",
    "NOT_RANKED",
    "POLICIES",
    "EvaluationResult",
    "Ranking",
    "TaskResult",
    "evaluate_lists",
    "evaluate_task",
    "model_scores",
    "parse_metric",
    "rank_task",
]

# These import torch, which takes longer than to evaluate a table of lists.
_NEEDS_TORCH = {
    "TaskResult": "task_evaluation",
    "evaluate_task": "task_evaluation",
    "Ranking": "rank",
    "model_scores": "rank",
    "rank_task": "rank",
}


def __getattr__(name: str) -> Any:
    if name in _NEEDS_TORCH:
        return getattr(import_module(f"rediffuse.evaluation.{_NEEDS_TORCH[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
