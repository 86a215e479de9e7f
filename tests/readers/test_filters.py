"""Filters against slow and obvious versions of themselves."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rediffuse.data import histories
from rediffuse.readers import filters
from rediffuse.readers.filters import at_least, count_repeats, k_core, unique_pairs
from rediffuse.readers.rows import grouped

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


def looked_at(users: np.ndarray, items: np.ndarray, k: int, block: int) -> tuple[np.ndarray, int]:
    """The core, and how many interactions were read to find it."""
    looked = 0
    find = filters._Side.interactions

    def counted(side: filters._Side, nodes: np.ndarray) -> Iterator[np.ndarray]:
        nonlocal looked
        for block_ in find(side, nodes):
            looked += len(block_)
            assert len(block_) <= max(block, int(np.diff(side.offsets).max()))
            yield block_

    with mock.patch.object(filters._Side, "interactions", counted), mock.patch.object(histories, "BLOCK", block):
        return k_core(users, items, k), looked


def test_k_core_of_a_long_chain_is_not_quadratic() -> None:
    """A path falls apart from its ends, one interaction a side and round; each interaction is read twice."""
    n = 20_000
    users = np.arange(n, dtype=np.int32) // 2
    items = (np.arange(n, dtype=np.int32) + 1) // 2
    core, looked = looked_at(users, items, 2, 1000)
    assert not core.any()
    assert looked <= 2 * n


@given(pairs, st.integers(1, 4), st.integers(1, 9))
@settings(deadline=None)
def test_k_core_looks_at_each_event_at_most_twice(rows: list[tuple[int, int]], k: int, block: int) -> None:
    core, looked = looked_at(*arrays(rows), k, block)
    assert core.tolist() == k_core(*arrays(rows), k).tolist()
    assert looked <= 2 * len(rows)


@given(pairs)
@settings(deadline=None)
def test_grouped(rows: list[tuple[int, int]]) -> None:
    nodes = arrays(rows)[0]
    offsets, order = grouped(nodes, 9)
    assert order.tolist() == np.argsort(nodes, kind="stable").tolist()
    assert np.diff(offsets).tolist() == np.bincount(nodes, minlength=9).tolist()
    assert (offsets.dtype, order.dtype) == (np.int32, np.int32)


@given(pairs)
@settings(deadline=None)
def test_unique_pairs(rows: list[tuple[int, int]]) -> None:
    first = [i for i, row in enumerate(rows) if row not in rows[:i]]
    last = [i for i, row in enumerate(rows) if row not in rows[i + 1 :]]
    assert np.flatnonzero(unique_pairs(*arrays(rows), "first")).tolist() == first
    assert np.flatnonzero(unique_pairs(*arrays(rows), "last")).tolist() == last
    assert count_repeats(*arrays(rows)) == len(rows) - len(first)


@pytest.mark.parametrize(("threshold", "kept"), [(3.5, 2), (4.0, 1), (0, 3)])
def test_at_least(threshold: float, kept: int) -> None:
    assert at_least(np.array([1, 3.5, 4], dtype=np.float32), threshold).sum() == kept
