"""Intervals and paired tests, over users and over seeds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval; the ends are None if there is only one value."""

    mean: float
    low: float | None
    high: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def mean_interval(values: NDArray[np.float64]) -> Interval:
    """Student's t interval of the mean of n >= 1 independent ``values`` (n,), of seeds (few) or users (many)."""
    values = np.asarray(values, dtype=np.float64)
    mean = float(values.mean())
    if len(values) < 2:
        return Interval(mean, None, None)
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return Interval(mean, mean - half, mean + half)


@dataclass(frozen=True)
class PairedTest:
    """How one variant differs from another on the same users.

    Attributes:
        difference: mean of (first - second) over users, with its interval.
        effect: Cohen's d_z, the mean difference over its standard deviation; 0 if all differences are equal.
        p: p value of the two-sided paired t test.
        users: number of users; users for whom the metric has no value (NaN) are left out.
    """

    difference: Interval
    effect: float
    p: float
    users: int


def paired_test(first: NDArray[np.float64], second: NDArray[np.float64]) -> PairedTest:
    """Paired t test on per-user values (n,) of two variants.

    Per-user metrics are not normal, but their mean over hundreds of users nearly is. On retrieval metrics, the t test
    keeps its level and has the most power of the usual tests; Wilcoxon's has less, and does not test the mean (Smucker
    et al., CIKM 2007; Urbano et al., SIGIR 2019). If no user differs, p is 1. It is also 1 if all users differ by
    exactly the same amount, because the test says nothing then.
    """
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    difference = difference[~np.isnan(difference)]
    spread = float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
    if spread == 0:
        # No user differs, all differ by the same amount, or there is one user.
        return PairedTest(mean_interval(difference), 0.0, 1.0, len(difference))
    p = float(stats.ttest_1samp(difference, 0.0)[1])  # pyright: ignore[reportArgumentType]
    return PairedTest(mean_interval(difference), float(difference.mean()) / spread, p, len(difference))


def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down adjustment of p values (Scandinavian Journal of Statistics, 1979).

    It bounds the chance of any false finding. The i-th smallest of m values is multiplied by m - i + 1, is at least
    the one before it, and at most 1.
    """
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    raised = np.minimum(np.maximum.accumulate(np.asarray(p_values)[order] * factors), 1.0)
    adjusted = np.empty(len(p_values))
    adjusted[order] = raised
    return adjusted.tolist()
