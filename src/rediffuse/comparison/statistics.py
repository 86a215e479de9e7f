"""Intervals and paired tests, over users and over seeds."""

from __future__ import annotations

from collections.abc import Sequence
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


def mean_interval(values: NDArray[np.float64], users: NDArray[np.int64] | None = None) -> Interval:
    """Student's t interval of the mean of n >= 1 ``values`` (n,), of seeds (few) or users (many).

    Args:
        values: independent, or independent between users.
        users: (n,) the user of each value, where users have several. The error is then that of a mean of independent
            users (clustered standard errors, Liang & Zeger 1986); with one value per user it is the usual one.
    """
    values = np.asarray(values, dtype=np.float64)
    mean = float(values.mean())
    spread, root, independent = _error(values, users)
    if independent < 2:
        return Interval(mean, None, None)
    half = float(stats.t.ppf((1 + LEVEL) / 2, independent - 1) * spread / root)
    return Interval(mean, mean - half, mean + half)


def _error(values: NDArray[np.float64], users: NDArray[np.int64] | None) -> tuple[float, float, int]:
    """What the standard error of the mean is a quotient of, and the number of independent users behind it."""
    n = len(values)
    if users is not None:
        _, groups = np.unique(users, return_inverse=True)
        count = int(groups.max(initial=-1)) + 1
        if count < n:
            sums = np.bincount(groups, weights=values - values.mean())
            spread = np.sqrt(count / (count - 1) * (sums**2).sum()) if count > 1 else 0.0
            return float(spread), n, count
    return float(values.std(ddof=1)) if n > 1 else 0.0, float(np.sqrt(n)), n


@dataclass(frozen=True)
class PairedTest:
    """How one variant differs from another on the same users.

    Attributes:
        difference: mean of (first - second) over users, with its interval.
        effect: Cohen's d_z, the mean difference over its standard deviation; 0 if all differences are equal.
        p: p value of the two-sided paired t test.
        users: number of users, or of targets where users have several; those for whom the metric has no value (NaN) are
            left out.
    """

    difference: Interval
    effect: float
    p: float
    users: int


def paired_test(
    first: NDArray[np.float64], second: NDArray[np.float64], users: NDArray[np.int64] | None = None
) -> PairedTest:
    """Paired t test on per-user values (n,) of two variants; ``users`` is as for `mean_interval`.

    Per-user metrics are not normal, but their mean over hundreds of users nearly is. On retrieval metrics, the t test
    keeps its level and has the most power of the usual tests; Wilcoxon's has less, and does not test the mean (Smucker
    et al., CIKM 2007; Urbano et al., SIGIR 2019). If no user differs, p is 1. It is also 1 if all users differ by
    exactly the same amount, because the test says nothing then.
    """
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    known = ~np.isnan(difference)
    difference, users = difference[known], None if users is None else users[known]
    interval = mean_interval(difference, users)
    spread = float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
    clustered, root, independent = _error(difference, users)
    if spread == 0 or clustered == 0:
        # No user differs, all differ by the same amount, or there is one user.
        return PairedTest(interval, 0.0, 1.0, len(difference))
    if independent == len(difference):
        p = float(stats.ttest_1samp(difference, 0.0)[1])  # pyright: ignore[reportArgumentType]
    else:
        p = float(2 * stats.t.sf(abs(interval.mean) * root / clustered, independent - 1))
    return PairedTest(interval, interval.mean / spread, p, len(difference))


def p_over_seeds(first: Sequence[float], second: Sequence[float]) -> float | None:
    """p of Welch's two-sided t test between the means that two variants reach, one value per training seed.

    It asks whether training both again would show the difference, where `paired_test` asks whether these trained runs
    differ on other users. Seeds are not paired: equal seeds do not make two variants alike. None, if a variant has
    fewer than two seeds, or if each has the same value for all of its seeds and the two values differ: without any
    spread there is nothing to test against. 1, if all values are equal.
    """
    if min(len(first), len(second)) < 2:
        return None
    # The spread of equal values is exactly 0: that of their rounded mean may not be. ttest_ind warns of such values.
    (mean, spread), (other, other_spread) = (
        (float(np.mean(values)), float(np.std(values, ddof=1)) if np.ptp(values) else 0.0) for values in (first, second)
    )
    if spread == other_spread == 0:
        return 1.0 if first[0] == second[0] else None
    test = stats.ttest_ind_from_stats(mean, spread, len(first), other, other_spread, len(second), equal_var=False)
    return float(test[1])  # pyright: ignore[reportArgumentType]


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg's adjustment of p values (Journal of the Royal Statistical Society B, 1995).

    It bounds the false discovery rate: the expected share of false findings among those reported. The proof is for
    independent tests. For all pairs of a set, which share members, it holds in simulation (Williams, Jones & Tukey,
    Journal of Educational and Behavioral Statistics, 1999).
    """
    return stats.false_discovery_control(p_values, method="bh").tolist()


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
