"""Intervals and tests against scipy and by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from rediffuse.comparison.statistics import benjamini_hochberg, holm, mean_interval, p_over_seeds, paired_test


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


def test_benjamini_hochberg_by_hand():
    # Sorted .005 .03 .035 .9 times 4/1 4/2 4/3 4/4 = .02 .06 .0467 .9; from the largest down, none above the next.
    assert benjamini_hochberg([0.9, 0.005, 0.035, 0.03]) == pytest.approx([0.9, 0.02, 0.14 / 3, 0.14 / 3])
    assert benjamini_hochberg([0.3]) == [0.3]
    assert benjamini_hochberg([]) == []


def test_benjamini_hochberg_rejects_what_its_definition_rejects():
    """The step-up rule written out: all up to the last i with p_(i) <= level * i / m. Holm finds no more."""
    rng = np.random.default_rng(2)
    for _ in range(50):
        p = np.round(rng.random(rng.integers(1, 12)) ** 3, 2)  # with ties
        adjusted, m = np.array(benjamini_hochberg(p.tolist())), len(p)
        for level in rng.random(20):
            last = max((i for i in range(1, m + 1) if np.sort(p)[i - 1] <= level * i / m), default=0)
            rejected = p <= np.sort(p)[last - 1] if last else np.zeros(m, dtype=bool)
            assert (adjusted <= level).tolist() == rejected.tolist()
        assert (adjusted <= np.array(holm(p.tolist())) + 1e-12).all()


def test_benjamini_hochberg_keeps_its_level_over_pairs_that_share_variants():
    """Of four equal variants and two better ones: the mean share of false findings among all findings."""
    rng, pairs = np.random.default_rng(4), np.array(list(itertools.combinations(range(6), 2)))
    true = np.array([0.0, 0.0, 0.0, 0.0, 3.0, 6.0])
    different, shares = true[pairs[:, 0]] != true[pairs[:, 1]], []
    for _ in range(2000):
        z = np.diff((true + rng.normal(size=6))[pairs])[:, 0] / np.sqrt(2)
        found = np.array(benjamini_hochberg((2 * stats.norm.sf(abs(z))).tolist())) < 0.05
        shares.append((found & ~different).sum() / max(found.sum(), 1))
    assert 0.005 < np.mean(shares) < 0.05


def welch(first, second):
    """Welch's t test written out."""
    a, b = np.var(first, ddof=1) / len(first), np.var(second, ddof=1) / len(second)
    t = (np.mean(first) - np.mean(second)) / np.sqrt(a + b)
    return 2 * stats.t.sf(abs(t), (a + b) ** 2 / (a**2 / (len(first) - 1) + b**2 / (len(second) - 1)))


@pytest.mark.parametrize(("n", "m"), [(2, 2), (3, 2), (5, 3)])
def test_p_over_seeds_is_that_of_welchs_test(n, m):
    rng = np.random.default_rng(n + m)
    first, second = rng.normal(0.06, 0.001, n).tolist(), rng.normal(0.061, 0.002, m).tolist()
    found = p_over_seeds(first, second)
    assert found == pytest.approx(welch(first, second))
    assert found == pytest.approx(stats.ttest_ind(first, second, equal_var=False)[1])
    assert found == pytest.approx(p_over_seeds(second, first))


@pytest.mark.filterwarnings("error")
def test_p_over_seeds_of_values_without_a_spread():
    """0.1 three times has a rounded mean above 0.1, and so a spread for numpy."""
    constant = [0.1, 0.1, 0.1]
    assert np.std(constant) > 0
    assert p_over_seeds(constant, constant) == 1.0
    assert p_over_seeds([0.0, 0.0], [0.0, 0.0]) == 1.0
    assert p_over_seeds(constant, [0.2, 0.2]) is None
    # One constant: t = (0.1 - 0.11) / 0.005 = -2 with one degree of freedom.
    assert p_over_seeds(constant, [0.105, 0.115]) == pytest.approx(2 * stats.t.sf(2, 1))


def test_p_over_seeds_needs_two_seeds_of_both():
    assert p_over_seeds([0.1], [0.1, 0.2]) is None
    assert p_over_seeds([0.1, 0.2], [0.3]) is None


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
