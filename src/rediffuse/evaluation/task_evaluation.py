"""Evaluation of a scoring function on a task: the whole catalogue, with seen items kept and filtered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from rediffuse.data.cold_users import users_text, without_text
from rediffuse.data.histories import Histories
from rediffuse.display import Displayed
from rediffuse.errors import ConfigError, DataError, did_you_mean
from rediffuse.evaluation import beyond_accuracy
from rediffuse.evaluation.metrics import (
    ACCURACY,
    DEFAULT_METRICS,
    LIST_METRICS,
    MEASURED,
    NOT_RANKED,
    POLICIES,
    accuracy_values,
    flat_name,
    parse_metrics,
)
from rediffuse.evaluation.rank import Ranking, RankingTask, Score, rank_task


@dataclass(frozen=True, eq=False, repr=False)
class TaskResult(Displayed):
    """The result of `evaluate_task`.

    Attributes:
        task: name of the task, "valid" or "test".
        metrics: policy -> metric -> mean over users. Policy "all": seen items kept; "unseen": seen items filtered.
        counts: users, items and true items behind the means; explained in `docs/evaluation.md`.
        per_user: one row per user, in the order of the task (or per target, see `rediffuse.data.subsets.Task`):
            ``user`` (number), ``history_length`` (interactions), ``truth_items``, then for each policy ``rank`` (of the
            best true item; null if none can be recommended) and the user's metrics. Names of the policy "unseen" end in
            ``/unseen``.
        ranking: the ranks and lists.
        with_history: as ``metrics``, over the users with a history alone; empty if there are none. Equal to
            ``metrics`` where ``counts["cold_users"]`` is 0.
    """

    task: str
    metrics: dict[str, dict[str, float]]
    counts: dict[str, int | float]
    per_user: pl.DataFrame
    ranking: Ranking
    with_history: dict[str, dict[str, float]] = field(default_factory=dict)

    def value(self, name: str) -> float:
        """The mean called ``name``, for example "ndcg@10" or "ndcg@10/unseen".

        Raises:
            ConfigError: it was not computed; the error gives the closest name.
        """
        values = {
            flat_name(metric, policy): value
            for policy, means in self.metrics.items()
            for metric, value in means.items()
        }
        if name not in values:
            raise ConfigError(f"Metric {name!r} was not computed.", did_you_mean(name, values))
        return values[name]

    def to_dict(self) -> dict[str, Any]:
        """Means and counts, ready for JSON."""
        return {
            "task": self.task,
            "metrics": {policy: dict(means) for policy, means in self.metrics.items()},
            "with_history": {policy: dict(means) for policy, means in self.with_history.items()},
            "counts": dict(self.counts),
        }

    def _display(self) -> tuple[str, dict[str, Any]]:
        names = sorted(self.metrics[POLICIES[0]], key=lambda name: not name.endswith("@10"))
        rows = {name: ", ".join(f"{p} {means[name]:.4f}" for p, means in self.metrics.items()) for name in names}
        if self.counts["cold_users"]:
            rows["without a history"] = without_text(self.counts)
            for name in names[:1] if self.with_history else []:
                means = ", ".join(f"{p} {means[name]:.4f}" for p, means in self.with_history.items())
                rows[f"{name}, with a history"] = means
        return f"TaskResult {self.task}, {users_text(self.counts)}", rows


def _best_ranks(offsets: NDArray[np.int64], ranks: NDArray[np.int64]) -> pl.Series:
    """(users,) the smallest rank of each user, who has at least one; null if it is `NOT_RANKED`."""
    best = np.minimum.reduceat(ranks, offsets[:-1])
    return pl.Series(best).set(pl.Series(best == NOT_RANKED), None)


# Metrics of all lists together, without values per user.
_AGGREGATES = {"coverage": beyond_accuracy.coverage, "gini": beyond_accuracy.gini}


def _per_user_values(
    kind: str, top: NDArray[np.int32], task: RankingTask, features: sparse.csr_array | None
) -> NDArray[np.float64]:
    """(users,) values of a list metric; NaN if undefined."""
    counts = np.asarray(task.popularity)
    if kind in ("diversity", "calibration"):
        if features is None:
            raise ConfigError(f"{kind} needs item features.", "Pass features=..., or leave it out.")
        if kind == "diversity":
            return beyond_accuracy.diversity(top, features)
        return beyond_accuracy.calibration(top, features, task.histories.without_synthetic())
    if kind == "popularity_lift":
        return beyond_accuracy.popularity_lift(top, counts, task.histories.without_synthetic())
    return {"popularity": beyond_accuracy.popularity, "novelty": beyond_accuracy.novelty}[kind](top, counts)


def in_history(task: RankingTask, truth: Histories, num_items: int) -> NDArray[np.bool_]:
    """(true items,) which ones the policy "unseen" filters; ``truth`` has distinct items, see `Ranking`."""
    seen = task.histories if task.seen is None else task.seen
    return np.isin(truth.owners * num_items + truth.items, seen.owners * num_items + seen.items)


def _counts(task: RankingTask, ranking: Ranking, num_items: int) -> dict[str, int | float]:
    history, truth = task.histories, ranking.truth
    never_trained = int((np.asarray(task.popularity)[truth.items] == 0).sum())
    users = np.asarray(ranking.users)
    distinct = len(np.unique(users)) if len(users) and users.min() >= 0 else len(users)
    return {
        "users": distinct,
        **({"targets": len(users)} if distinct < len(users) else {}),
        "items": num_items,
        "truth_items": len(truth.items),
        "cold_users": int((history.without_synthetic().lengths == 0).sum()),
        "truth_in_history": int(in_history(task, truth, num_items).sum()),
        "truth_never_trained": never_trained,
        "truth_never_trained_share": never_trained / len(truth.items),
    }


def evaluate_task(
    score: Score,
    task: RankingTask,
    *,
    num_items: int,
    metrics: Sequence[str] = DEFAULT_METRICS,
    k_list: int = 20,
    user_block: int | None = None,
    shared: bool = False,
    features: sparse.csr_array | None = None,
) -> TaskResult:
    """Rank the whole catalogue for every user of a task, and average the metrics, with seen items kept and filtered.

    Args:
        score: ``score(histories, start)`` -> (B, num_items), see `rank_task`; also for empty histories.
        task: users, their histories and true items, and the training interactions of every item.
        num_items: size of the catalogue.
        metrics: accuracy metrics and list metrics (`rediffuse.evaluation.beyond_accuracy`).
        k_list: length of the lists in the result; longer if a list metric needs it.
        user_block: users scored at once; None: see `rank_task`.
        shared: divide the users among the processes of a distributed job; see `rank_task`.
        features: (num_items, values) binary, for ``diversity@K`` and ``calibration@K``; see `rediffuse.data.features`.

    Raises:
        ConfigError: a metric is unknown, or ``diversity`` or ``calibration`` has no features.
        DataError: there are no users, a user has no true item, or an item is outside the catalogue.
        TrainingError: a score is NaN.
    """
    wanted = parse_metrics(metrics, MEASURED)
    without = int((task.truth.lengths == 0).sum())
    if without or not len(task.truth):
        found = f"has {without} users without a true item" if without else "has no users"
        raise DataError(f"Task {task.name!r} {found}.", "Use a split that leaves something to predict.")
    depth = max([k_list, *(metric.k for metric in wanted if metric.kind in LIST_METRICS)])
    ranking = rank_task(score, task, num_items=num_items, k=depth, user_block=user_block, shared=shared)
    return evaluate_ranking(ranking, task, num_items=num_items, metrics=metrics, features=features)


def evaluate_ranking(
    ranking: Ranking,
    task: RankingTask,
    *,
    num_items: int,
    metrics: Sequence[str] = DEFAULT_METRICS,
    features: sparse.csr_array | None = None,
) -> TaskResult:
    """Average the metrics of ranks and lists; arguments and errors are those of `evaluate_task`.

    Args:
        ranking: of the users of ``task``; its lists are at least as long as the list metrics need.
        task, num_items, metrics, features: as for `evaluate_task`.
    """
    wanted = parse_metrics(metrics, MEASURED)
    accuracy = [metric for metric in wanted if metric.kind in ACCURACY]
    truth = ranking.truth
    columns: dict[str, Any] = {
        "user": ranking.users,
        "history_length": task.histories.without_synthetic().lengths,
        "truth_items": truth.lengths,
    }
    means: dict[str, dict[str, float]] = {}
    known = columns["history_length"] > 0
    with_history: dict[str, dict[str, float]] = {}
    for policy in POLICIES:
        columns[flat_name("rank", policy)] = _best_ranks(truth.offsets, ranking.ranks[policy])
        values = accuracy_values(accuracy, truth.offsets, ranking.ranks[policy], truth.lengths)
        lists = ranking.items[policy]
        means[policy], of_known = {}, {}
        for metric in wanted:
            name = str(metric)
            top = lists[:, : metric.k]
            if metric.kind in _AGGREGATES:
                measure = _AGGREGATES[metric.kind]
                means[policy][name] = measure(top, num_items)
                of_known[name] = means[policy][name] if known.all() else measure(top[known], num_items)
                continue
            value = values[name] if name in values else _per_user_values(metric.kind, top, task, features)
            columns[flat_name(name, policy)] = pl.Series(value).fill_nan(None)
            means[policy][name], of_known[name] = _mean(value), _mean(value[known])
        if known.any():
            with_history[policy] = of_known
    counts = _counts(task, ranking, num_items)
    return TaskResult(task.name, means, counts, pl.DataFrame(columns), ranking, with_history)


def _mean(values: NDArray[np.float64]) -> float:
    """The mean over the users who have a value; 0 if there are none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else 0.0
