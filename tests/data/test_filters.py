"""Filters against slow and obvious versions of themselves."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rediffuse.data.filters import at_least, k_core, unique_pairs

pairs = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=80)


def arrays(rows: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    both = np.asarray(rows, dtype=np.int32).reshape(-1, 2)
    return both[:, 0].copy(), both[:, 1].copy()


@given(pairs, st.integers(1, 4))
@settings(deadline=None)
def test_k_core_is_the_fixed_point(rows: list[tuple[int, int]], k: int) -> None:
    left = list(range(len(rows)))
    while True:
        users = [rows[i][0] for i in left]
        items = [rows[i][1] for i in left]
        kept = [i for i in left if users.count(rows[i][0]) >= k and items.count(rows[i][1]) >= k]
        if kept == left:
            break
        left = kept
    assert np.flatnonzero(k_core(*arrays(rows), k)).tolist() == left


def test_k_core_of_a_long_chain_is_not_quadratic() -> None:
    """A path falls apart from its ends, two events a round: as many rounds as events."""
    n = 20_000
    users = np.arange(n, dtype=np.int32) // 2
    items = (np.arange(n, dtype=np.int32) + 1) // 2
    start = time.perf_counter()
    assert not k_core(users, items, 2).any()
    assert time.perf_counter() - start < 5


@given(pairs)
@settings(deadline=None)
def test_unique_pairs(rows: list[tuple[int, int]]) -> None:
    first = [i for i, row in enumerate(rows) if row not in rows[:i]]
    last = [i for i, row in enumerate(rows) if row not in rows[i + 1 :]]
    assert np.flatnonzero(unique_pairs(*arrays(rows), "first")).tolist() == first
    assert np.flatnonzero(unique_pairs(*arrays(rows), "last")).tolist() == last


@pytest.mark.parametrize(("threshold", "kept"), [(3.5, 2), (4.0, 1), (0, 3)])
def test_at_least(threshold: float, kept: int) -> None:
    assert at_least(np.array([1, 3.5, 4], dtype=np.float32), threshold).sum() == kept
