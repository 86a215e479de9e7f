"""Batches of sequences: their sizes, order and users, and where windows are cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from rediffuse.batching.sequences import BUCKET_BATCHES, ROWS, SequenceBatches, bucket, pad_right
from rediffuse.data.histories import Histories
from rediffuse.readers.public_datasets import public_dataset

LENGTHS = st.lists(st.integers(0, 23), min_size=1, max_size=12)


def histories(lengths: list[int]) -> Histories:
    """Interaction n of the flat array has item n, so that a target is its own index."""
    return Histories(np.cumsum([0, *lengths]), np.arange(sum(lengths), dtype=np.int32))


def batches(rows: Histories, every_position: bool, seed: int = 0, batch_size: int = 16) -> SequenceBatches:
    rng = np.random.default_rng(seed)
    return SequenceBatches(rows, max_length=5, batch_size=batch_size, pad=999, every_position=every_position, rng=rng)


def test_order_depends_on_the_generator_alone():
    rows = histories([9] * 40)
    first, again, other = (batches(rows, True, seed) for seed in (1, 1, 2))
    assert all(torch.equal(first.get(i).targets, again.get(i).targets) for i in range(len(first)))
    assert any(not torch.equal(first.get(i).targets, other.get(i).targets) for i in range(len(first)))


def test_no_batch_is_larger_than_batch_size():
    """Also where the shortest windows of one pool precede the longest of the next."""
    rng = np.random.default_rng(0)
    rows = Histories.from_lists([list(range(n)) for n in rng.integers(2, 21, 4000)])
    for every_position in (True, False):
        made = SequenceBatches(
            rows, max_length=20, batch_size=64, pad=20, every_position=every_position, rng=np.random.default_rng(1)
        )
        assert max(len(made.get(i).targets) for i in range(len(made))) <= 64


def test_users_of_a_batch():
    rows = histories([3, 0, 7, 2])
    made = batches(rows, True, batch_size=3)
    for index in range(len(made)):
        owners = rows.owners[made.get(index).targets.numpy()]
        assert made.users(index).tolist() == sorted(set(owners.tolist()))


def test_pad_right_keeps_the_newest():
    items, lengths = pad_right(Histories.from_lists([[1, 2, 3, 4], [], [7]]), 3, pad=9)
    assert items.tolist() == [[2, 3, 4], [9, 9, 9], [7, 9, 9]]
    assert lengths.tolist() == [3, 0, 1]


@pytest.mark.real_data
@pytest.mark.parametrize("every_position", [True, False])
def test_beauty_has_131413_targets(data_root, every_position):
    import rediffuse as rd

    view = rd.split.given(public_dataset("amazon-beauty", root=data_root)).training_view()
    made = SequenceBatches(
        view.train,
        max_length=50,
        batch_size=1024,
        pad=view.num_items,
        every_position=every_position,
        rng=np.random.default_rng(0),
    )
    assert sum(len(made.get(i).targets) for i in range(len(made))) == 131_413


@pytest.mark.parametrize(("batch_size", "longest"), [(1, 9), (16, 9), (100, 200), (4096, 30)])
def test_buckets_are_those_of_one_sort_of_all_windows(batch_size: int, longest: int) -> None:
    """Pools are sorted one after the other; here all windows are sorted at once, by pool and length."""
    lengths = np.random.default_rng(1).integers(1, longest, 3000)
    for weight in (lengths, np.ones_like(lengths)):
        rng = np.random.default_rng(2)
        order = rng.permutation(len(lengths))
        pool = np.cumsum(weight[order]) // (batch_size * BUCKET_BATCHES)
        order = order[np.lexsort((-lengths[order], pool))]
        expected, start = [], 0
        while start < len(order):
            rows = max(1, batch_size // int(weight[order[start]]))
            rows = rows // ROWS * ROWS or rows
            stop = min(start + rows, int(np.searchsorted(pool, pool[start], side="right")))
            expected.append(order[start:stop].tolist())
            start = stop
        expected = [expected[i] for i in rng.permutation(len(expected))]
        found = bucket(lengths.astype(np.int32), weight.astype(np.int32), batch_size, np.random.default_rng(2))
        assert [batch.tolist() for batch in found] == expected
