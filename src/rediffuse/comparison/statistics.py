"""Intervals and paired tests over people and over seeds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval; the ends are None where one value alone says nothing about the spread."""

    mean: float
    low: float | None
    high: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def mean_interval(values: NDArray[np.float64]) -> Interval:
    """Student's t interval of the mean of n >= 1 independent ``values`` (n,): over seeds (few) or people (many)."""
    values = np.asarray(values, dtype=np.float64)
    mean = float(values.mean())
    if len(values) < 2:
        return Interval(mean, None, None)
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return Interval(mean, mean - half, mean + half)


@dataclass(frozen=True)
class PairedTest:
    """How one variant differs from another on the same people.

    Attributes:
        difference: mean of (first - second) over people, with its interval.
        effect: Cohen's d_z, the mean difference over its standard deviation; 0 where all differences are 0.
        p: of the two-sided paired t test.
        users: people behind it; those about whom a metric says nothing (NaN) are left out.
    """

    difference: Interval
    effect: float
    p: float
    users: int


def paired_test(first: NDArray[np.float64], second: NDArray[np.float64]) -> PairedTest:
    """A paired t test on per-person values (n,) of two variants.

    Per-person metrics are not normal, but their mean over hundreds of people nearly is, and on retrieval metrics the t
    test keeps its level and has the most power of the usual tests, more than Wilcoxon's, which also tests something
    else than the mean (Smucker et al., CIKM 2007; Urbano et al., SIGIR 2019). Where nobody differs, p is 1; so it is
    where all differ by exactly the same, of which the test can say nothing.
    """
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    difference = difference[~np.isnan(difference)]
    spread = float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
    if spread == 0:
        # All alike: either nothing differs, or everyone does by the same, or there is one person.
        return PairedTest(mean_interval(difference), 0.0, 1.0, len(difference))
    p = float(stats.ttest_1samp(difference, 0.0)[1])  # pyright: ignore[reportArgumentType]
    return PairedTest(mean_interval(difference), float(difference.mean()) / spread, p, len(difference))


def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down adjustment (Scandinavian Journal of Statistics, 1979): keeps the chance of any false finding.

    The i-th smallest of m values is multiplied by m - i + 1, is no smaller than the one before it, and at most 1.
    """
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    raised = np.minimum(np.maximum.accumulate(np.asarray(p_values)[order] * factors), 1.0)
    adjusted = np.empty(len(p_values))
    adjusted[order] = raised
    return adjusted.tolist()
