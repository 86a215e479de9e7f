"""Whether confidences say which lists are right: reliability, calibration error, selective risk.

A confidence is one number per user, higher is surer; what came true is a number per user as well, such as HR@10 or
1 - NDCG@10 of the user's list, from `TaskResult.per_user` for example. docs/uncertainty.md measures some with it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def mean_of_the_surest(confidence: ArrayLike, values: ArrayLike) -> NDArray[np.float64]:
    """(n,) means of ``values`` (n,) over the 1, 2, ... n surest users: the curve over coverage 1/n, 2/n, ... 1.

    Of equally sure users, those that are kept are random, and the means are expected values.
    """
    _, group = np.unique(-np.asarray(confidence, dtype=np.float64), return_inverse=True)
    means = np.bincount(group, np.asarray(values, dtype=np.float64)) / np.bincount(group)
    return np.cumsum(means[np.sort(group)]) / np.arange(1, len(group) + 1)


def area_under_risk_coverage(confidence: ArrayLike, risk: ArrayLike) -> float:
    """The mean over all coverages of the ``risk`` (n,) of the users kept (Geifman, Uziel & El-Yaniv, ICLR 2019).

    A random confidence has the mean risk, and the least possible has the confidence ``-risk``.
    """
    return float(mean_of_the_surest(confidence, risk).mean())


def reliability(stated: ArrayLike, came_true: ArrayLike, bins: int = 10) -> list[dict[str, float]]:
    """Probabilities that were stated (n,), and how often they came true (n,), in bins.

    A bin is filled, from the lowest statement on, until it holds at least its part of them; equal statements share one.
    So there may be fewer, larger bins.

    Returns:
        Per bin, by ascending probability: the means ``stated`` and ``observed``, and ``count``.
    """
    stated, came_true = np.asarray(stated, dtype=np.float64), np.asarray(came_true, dtype=np.float64)
    _, group, counts = np.unique(stated, return_inverse=True, return_counts=True)
    full, ends, filled = len(stated) / bins, [], 0
    for value, count in enumerate(counts.tolist()):
        filled += count
        if filled >= full:
            ends.append(value)
            filled = 0
    if filled >= full / 2 or not ends:
        ends.append(len(counts) - 1)
    ends[-1] = len(counts) - 1  # a small rest joins the last bin
    numbers = np.searchsorted(ends, group)
    return [
        {"stated": float(stated[of].mean()), "observed": float(came_true[of].mean()), "count": int(of.sum())}
        for of in (numbers == number for number in range(len(ends)))
    ]


def calibration_error(stated: ArrayLike, came_true: ArrayLike, bins: int = 10) -> float:
    """Expected calibration error: the mean over statements of | stated - observed | of their bin of `reliability`."""
    rows = reliability(stated, came_true, bins)
    return sum(row["count"] * abs(row["stated"] - row["observed"]) for row in rows) / sum(row["count"] for row in rows)
