"""Intervals and tests against scipy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from rediffuse.comparison.statistics import holm, mean_interval, paired_test


def test_interval_of_three_seeds_by_hand():
    found = mean_interval(np.array([0.1, 0.2, 0.3]))
    # t(0.975, 2) = 4.302653, standard error 0.1 / sqrt(3)
    assert found.mean == pytest.approx(0.2)
    assert found.high == pytest.approx(0.2 + 4.302653 * 0.1 / 3**0.5, rel=1e-6)
    assert found.low == pytest.approx(0.2 - 4.302653 * 0.1 / 3**0.5, rel=1e-6)


def test_one_value_has_no_interval():
    assert mean_interval(np.array([0.4])).to_dict() == {"mean": 0.4, "low": None, "high": None}


def test_paired_test_is_scipys():
    rng = np.random.default_rng(0)
    first = rng.random(300)
    second = first - rng.normal(0.02, 0.2, 300)
    found = paired_test(first, second)
    theirs = stats.ttest_rel(first, second)
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-12)
    interval = theirs.confidence_interval(0.95)
    assert (found.difference.low, found.difference.high) == pytest.approx((interval.low, interval.high), rel=1e-12)
    assert found.effect == pytest.approx(theirs.statistic / np.sqrt(300), rel=1e-12)
    back = paired_test(second, first)
    assert (back.p, back.effect) == pytest.approx((found.p, -found.effect))


def test_no_user_differs():
    same = paired_test(np.ones(5), np.ones(5))
    assert (same.p, same.effect, same.difference.mean) == (1.0, 0.0, 0.0)


def test_users_without_a_value_are_left_out():
    first, second = np.array([0.1, np.nan, 0.5, 0.7]), np.array([0.2, 0.3, 0.1, np.nan])
    found = paired_test(first, second)
    assert found.users == 2
    assert found == paired_test(first[[0, 2]], second[[0, 2]])


def test_holm_by_hand():
    # Sorted .01 .02 .03 .04 times 4 3 2 1 = .04 .06 .06 .04, made monotone: .04 .06 .06 .06.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_its_level():
    """Of many families without any effect, at most about 5 % have a finding."""
    rng = np.random.default_rng(1)
    found = sum(min(holm(rng.random(10).tolist())) < 0.05 for _ in range(2000))
    assert 0.03 < found / 2000 < 0.07


def test_errors_clustered_by_user_are_those_of_the_sandwich_estimator():
    """Against the sandwich estimator written out: the mean as a regression on a constant, clusters by user."""
    rng = np.random.default_rng(3)
    users = rng.permutation(np.repeat(np.arange(30), rng.integers(1, 8, 30)))
    values = rng.normal(size=30)[users] + 0.3 * rng.normal(size=len(users)) + 0.4
    n, ones = len(values), np.ones((len(values), 1))
    bread = np.linalg.inv(ones.T @ ones)
    meat = sum(
        ones[users == u].T @ np.outer(r := values[users == u] - values.mean(), r) @ ones[users == u] for u in range(30)
    )
    error = float(np.sqrt((bread @ meat @ bread)[0, 0] * 30 / 29))
    half = stats.t.ppf(0.975, 29) * error
    found = mean_interval(values, users)
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half))
    test = paired_test(values, np.zeros(n), users)
    assert test.p == pytest.approx(2 * stats.t.sf(values.mean() / error, 29))
    assert test.difference == found
    assert found.high - found.low > mean_interval(values).high - mean_interval(values).low


def test_one_value_per_user_gives_the_usual_interval_and_test():
    values = np.random.default_rng(0).normal(0.1, 1, 50)
    users = np.random.default_rng(1).permutation(50)
    assert mean_interval(values, users) == mean_interval(values)
    assert paired_test(values, np.zeros(50), users) == paired_test(values, np.zeros(50))
    alone = mean_interval(values, np.zeros(50, dtype=int))
    assert (alone.low, alone.high) == (None, None)
    assert paired_test(values, np.zeros(50), np.zeros(50, dtype=int)).p == 1
