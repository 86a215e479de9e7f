"""Confidences: selective risk and calibration, against brute force."""

from __future__ import annotations

import re
from itertools import pairwise, permutations
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rediffuse.evaluation.confidence import (
    area_under_risk_coverage,
    calibration_error,
    mean_of_the_surest,
    reliability,
)

USERS = st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1, width=16)), min_size=1, max_size=5)


@settings(max_examples=50)
@given(USERS)
def test_the_curve_is_the_mean_over_all_orders_of_equally_sure_users(users: list[tuple[int, float]]) -> None:
    confidence, values = zip(*users, strict=True)
    orders = [order for order in permutations(users) if list(order) == sorted(order, key=lambda user: -user[0])]
    curves = [[np.mean([value for _, value in order[:kept]]) for kept in range(1, len(order) + 1)] for order in orders]
    wanted = np.mean(curves, axis=0)
    np.testing.assert_allclose(mean_of_the_surest(confidence, values), wanted, atol=1e-12)
    assert area_under_risk_coverage(confidence, values) == pytest.approx(wanted.mean())


def test_no_confidence_has_less_risk_than_the_oracle_and_equal_ones_have_the_mean() -> None:
    rng = np.random.default_rng(0)
    risk = rng.random(50)
    best = area_under_risk_coverage(-risk, risk)
    assert all(best <= area_under_risk_coverage(rng.random(50), risk) for _ in range(20))
    assert area_under_risk_coverage(np.ones(50), risk) == pytest.approx(risk.mean())


def test_bins_hold_equal_numbers_and_equal_statements_share_one() -> None:
    stated = np.arange(100) / 100
    rows = reliability(stated, stated**2)
    assert [row["count"] for row in rows] == [10] * 10
    for number, row in enumerate(rows):
        members = stated[10 * number : 10 * number + 10]
        assert (row["stated"], row["observed"]) == pytest.approx((members.mean(), (members**2).mean()))
    assert reliability([0.5] * 4, [1, 0, 0, 0]) == [{"stated": 0.5, "observed": 0.25, "count": 4}]
    # Equal statements are in one bin, and a rest of less than half a bin joins the last.
    assert [row["count"] for row in reliability([0, 1, 2, 3, 4], [0] * 5, bins=3)] == [2, 2, 1]
    assert [row["count"] for row in reliability([0, *[1] * 9, 2], [0] * 11, bins=6)] == [10, 1]
    assert [row["count"] for row in reliability([0, *[1] * 9, 2], [0] * 11, bins=5)] == [11]


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=30), st.integers(1, 10))
def test_bins_are_few_whole_and_in_order(pairs: list[tuple[int, bool]], bins: int) -> None:
    stated, came_true = zip(*pairs, strict=True)
    rows = reliability(stated, came_true, bins)
    assert len(rows) <= bins
    assert sum(row["count"] for row in rows) == len(pairs)
    assert sum(row["count"] * row["observed"] for row in rows) == pytest.approx(sum(came_true))
    assert all(low["stated"] < high["stated"] for low, high in pairwise(rows))
    assert all(row["count"] >= len(pairs) / bins for row in rows[:-1])


def test_the_calibration_error_is_the_mean_distance_of_the_bins() -> None:
    stated, came_true = [0.1, 0.1, 0.1, 0.9], [1, 0, 0, 1]
    assert calibration_error(stated, came_true, bins=2) == pytest.approx((3 * abs(0.1 - 1 / 3) + abs(0.9 - 1)) / 4)
    rng = np.random.default_rng(0)
    probability = rng.random(20_000)
    assert calibration_error(probability, rng.random(20_000) < probability) < 0.01
    assert calibration_error(probability, rng.random(20_000) < probability / 2) == pytest.approx(0.25, abs=0.01)


def test_the_example_of_the_page_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "uncertainty.md").read_text(encoding="utf-8")
    example = next(code for code in re.findall(r"```python\n(.*?)```", page, flags=re.S) if "import numpy" in code)
    names: dict = {}
    exec(dedent(example), names)
    confidence, hit = names["confidence"], names["hit"]
    assert mean_of_the_surest(confidence, hit) == pytest.approx([1, 0.75, 2 / 3, 0.5])
    assert area_under_risk_coverage(confidence, 1 - hit) == pytest.approx(0.27, abs=0.01)
