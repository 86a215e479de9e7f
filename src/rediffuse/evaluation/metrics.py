"""Accuracy metrics, computed from the ranks of each user's true items and nothing else.

The definitions are those of trec_eval and ir-measures for binary relevance; `docs/evaluation.md` has the formulas.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rediffuse.arguments import wrong_type
from rediffuse.errors import ConfigError, did_you_mean

# The rank of a true item that cannot be recommended; larger than any K.
NOT_RANKED = np.iinfo(np.int64).max

# A formula gets K; the rank (h,) of each hit up to K; its ordinal (h,), 1 for a user's first hit; a function that sums
# values (h,) over each user's hits; and the number of true items (users,).
_Sum = Callable[[NDArray[np.float64]], NDArray[np.float64]]
_Formula = Callable[[int, NDArray[np.int64], NDArray[np.int64], _Sum, NDArray[np.int64]], NDArray[np.float64]]


def _discount(ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    return 1 / np.log2(ranks + 1.0)


def _ndcg(k: int, rank: NDArray, ordinal: NDArray, total: _Sum, true: NDArray) -> NDArray[np.float64]:
    ideal = np.concatenate(([0.0], np.cumsum(_discount(np.arange(1, min(k, int(true.max())) + 1)))))
    return total(_discount(rank)) / ideal[np.minimum(true, k)]


_FORMULAS: dict[str, _Formula] = {
    "hr": lambda k, rank, ordinal, total, true: total((ordinal == 1).astype(np.float64)),
    "ndcg": _ndcg,
    "recall": lambda k, rank, ordinal, total, true: total(np.ones(len(rank))) / true,
    "capped_recall": lambda k, rank, ordinal, total, true: total(np.ones(len(rank))) / np.minimum(true, k),
    "precision": lambda k, rank, ordinal, total, true: total(np.ones(len(rank))) / k,
    # trec_eval divides by all true items, also if there are more than k.
    "map": lambda k, rank, ordinal, total, true: total(ordinal / rank) / true,
    "mrr": lambda k, rank, ordinal, total, true: total((ordinal == 1) / rank),
}
ACCURACY = tuple(_FORMULAS)
# Properties of the lists alone. They need the catalogue, so only `evaluate_task` computes them.
LIST_METRICS = ("coverage", "gini", "popularity", "novelty", "popularity_lift", "diversity", "calibration")
# All that an evaluation measures.
MEASURED = (*ACCURACY, *LIST_METRICS)

DEFAULT_METRICS: tuple[str, ...] = (
    *(f"{kind}@{k}" for k in (5, 10, 20) for kind in ACCURACY),
    "coverage@10",
    "gini@10",
    "popularity@10",
    "novelty@10",
    "popularity_lift@10",
)

# "all": seen items may be recommended. "unseen": they are filtered.
POLICIES = ("all", "unseen")


def flat_name(name: str, policy: str) -> str:
    """Name of a metric where both policies share a namespace: "ndcg@10", "ndcg@10/unseen"."""
    return name if policy == "all" else f"{name}/{policy}"


@dataclass(frozen=True)
class Metric:
    """A kind of metric and its cut-off, for example ``ndcg@10``."""

    kind: str
    k: int

    def __str__(self) -> str:
        return f"{self.kind}@{self.k}"


def parse_metric(name: str, known: Iterable[str] = ACCURACY) -> Metric:
    """Parse a metric: ``"ndcg@10"`` -> ``Metric("ndcg", 10)``.

    Args:
        name: a kind, an at sign and an integer of at least 1.
        known: the kinds that are allowed.

    Raises:
        ConfigError: the name has another form, an unknown kind (the error gives the closest known one), or K below 1.
    """
    known = tuple(known)
    kind, sign, cut = str(name).strip().lower().partition("@")
    if kind not in known:
        if kind in LIST_METRICS:
            raise ConfigError(
                f"Metric {name!r} needs the whole catalogue, which is not known here.",
                "Use rediffuse.evaluation.evaluate_task, or leave it out.",
            )
        raise ConfigError(f"Unknown metric {name!r}.", did_you_mean(kind, known))
    if not sign or not re.fullmatch(r"[0-9]+", cut) or int(cut) < 1:
        raise ConfigError(f"Metric {name!r} has no valid cut-off.", f"Write it as {kind}@10.")
    return Metric(kind, int(cut))


def parse_metrics(names: Iterable[str], known: Iterable[str] = ACCURACY) -> tuple[Metric, ...]:
    """Parse several metrics, and drop repeats.

    Raises:
        ConfigError: as `parse_metric`, or no name is given.
    """
    if not isinstance(names, Iterable):
        raise wrong_type("metrics", names, "a list of names", 'For example: metrics=["hr@10", "ndcg@10"]')
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise ConfigError("No metric was given.", 'For example: metrics=["hr@10", "ndcg@10"]')
    return tuple(dict.fromkeys(parse_metric(name, known) for name in names))


def accuracy_values(
    metrics: Iterable[Metric],
    offsets: NDArray[np.int64],
    ranks: NDArray[np.int64],
    num_true: NDArray[np.int64],
) -> dict[str, NDArray[np.float64]]:
    """Compute every metric for every user.

    Args:
        metrics: accuracy metrics only.
        offsets: (users + 1,); the ranks of user ``u`` are ``ranks[offsets[u]:offsets[u + 1]]``, in any order.
        ranks: (hits,) ranks of true items, from 1, distinct within a user. A true item that cannot be recommended
            has `NOT_RANKED` or is left out.
        num_true: (users,) number of distinct true items of each user, at least 1.

    Returns:
        Metric name -> (users,) float64.
    """
    users = len(num_true)
    owners = np.repeat(np.arange(users), np.diff(offsets))
    order = np.lexsort((ranks, owners))
    owners, ranks = owners[order], ranks[order]
    ordinals = np.arange(len(ranks)) - offsets[owners] + 1
    values: dict[str, NDArray[np.float64]] = {}
    for metric in metrics:
        hits = ranks <= metric.k
        inside = owners[hits]

        def total(weights: NDArray[np.float64], inside: NDArray[np.int64] = inside) -> NDArray[np.float64]:
            return np.bincount(inside, weights, minlength=users).astype(np.float64, copy=False)

        formula = _FORMULAS[metric.kind]
        values[str(metric)] = formula(metric.k, ranks[hits], ordinals[hits], total, num_true)
    return values
