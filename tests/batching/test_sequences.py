"""Windows cover every target once; ranks share a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rediffuse.batching.sequences import BUCKET_BATCHES, ROWS, SequenceBatches, bucket, pad_right
from rediffuse.data.histories import Histories
from rediffuse.readers.public_datasets import public_dataset

LENGTHS = st.lists(st.integers(0, 23), min_size=1, max_size=12)


def histories(lengths: list[int]) -> Histories:
    """Event e of the flat array is item e, so that targets name themselves."""
    return Histories(np.cumsum([0, *lengths]), np.arange(sum(lengths), dtype=np.int32))


def batches(rows: Histories, every_position: bool, seed: int = 0, batch_size: int = 16) -> SequenceBatches:
    rng = np.random.default_rng(seed)
    return SequenceBatches(rows, max_length=5, batch_size=batch_size, pad=999, every_position=every_position, rng=rng)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.booleans(), st.integers(0, 3), st.integers(1, 40))
def test_every_event_but_the_first_is_a_target_once(lengths, every_position, seed, batch_size):
    rows = histories(lengths)
    made = batches(rows, every_position, seed, batch_size)
    found = []
    for index in range(len(made)):
        batch = made.get(index)
        assert batch.items.shape[1] <= 5
        assert bool((batch.lengths >= 1).all())
        before = batch.items[batch.rows, batch.positions]
        assert torch.equal(before + 1, batch.targets)  # the target follows its input, within one history
        real = torch.arange(batch.items.shape[1]) < batch.lengths[:, None]
        assert bool(((batch.items == 999) == ~real).all())
        found += batch.targets.tolist()
    firsts = set(rows.offsets[:-1][rows.lengths > 0].tolist())
    assert sorted(found) == [event for event in range(len(rows.items)) if event not in firsts]


@settings(max_examples=40, deadline=None)
@given(LENGTHS, st.booleans(), st.integers(2, 4))
def test_ranks_share_a_batch_and_their_mean_is_the_mean(lengths, every_position, ranks):
    made = batches(histories(lengths), every_position)
    for index in range(len(made)):
        whole = made.get(index)
        parts = [made.get(index, rank, ranks) for rank in range(ranks)]
        # A rank that is left without windows repeats one that does not count, so that it has something to compute.
        assert all(len(part.targets) for part in parts)
        counted = [part for part in parts if part.rank_weight]
        assert sorted(t for part in counted for t in part.targets.tolist()) == sorted(whole.targets.tolist())
        value = sum(part.rank_weight * part.targets.double().mean() for part in parts) / ranks
        assert float(value) == pytest.approx(float(whole.targets.double().mean()))


def test_order_depends_on_the_generator_alone():
    rows = histories([9] * 40)
    first, again, other = (batches(rows, True, seed) for seed in (1, 1, 2))
    assert all(torch.equal(first.get(i).targets, again.get(i).targets) for i in range(len(first)))
    assert any(not torch.equal(first.get(i).targets, other.get(i).targets) for i in range(len(first)))


def test_no_batch_is_larger_than_asked_for():
    """Also where the shortest windows of one pool meet the longest of the next."""
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


@settings(max_examples=40, deadline=None)
@given(LENGTHS, st.integers(0, 6))
def test_histories_tail_and_take_by_brute_force(lengths, keep):
    rows = histories(lengths)
    tail = rows.tail(keep)
    order = np.random.default_rng(0).permutation(len(rows))
    taken = rows.take(order)
    for place, user in enumerate(order):
        own = rows.items[rows.offsets[user] : rows.offsets[user + 1]].tolist()
        assert taken.row(place).tolist() == own
        assert tail.row(user).tolist() == (own[-keep:] if keep else [])


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
    """Pools are sorted one after the other; here all windows are, by pool and length."""
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
