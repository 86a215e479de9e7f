"""Pairs: negatives that the user has not interacted with, and an order that depends on the generator alone."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import numpy as np
import pytest

from rediffuse.batching import negatives
from rediffuse.batching.negatives import _sorted_keys, draw_negatives, interaction_keys
from rediffuse.batching.pairs import PairBatches
from rediffuse.data import histories
from rediffuse.data.histories import Histories

ROWS = Histories.from_lists([[0, 1, 1, 2], [], [5, 0], [3]])


def batches(seed: int = 0, size: int = 3) -> PairBatches:
    return PairBatches(ROWS, num_items=6, batch_size=size, rng=np.random.default_rng(seed))


def test_several_negatives():
    found = PairBatches(ROWS, num_items=6, batch_size=3, rng=np.random.default_rng(0), negatives=4)
    batch = found.get(0)
    assert batch.negatives.shape == (3, 4)
    for user, drawn in zip(batch.users.tolist(), batch.negatives.tolist(), strict=True):
        assert not set(drawn) & set(ROWS.row(user).tolist())


def test_negatives_are_uniform_over_the_other_items():
    users = np.repeat([0, 2], 2000)
    drawn = draw_negatives(users, interaction_keys(ROWS, 6), 6, np.random.default_rng(1))
    assert set(drawn[:2000]) == {3, 4, 5}
    assert set(drawn[2000:]) == {1, 2, 3, 4}
    counts = np.bincount(drawn[:2000])[3:]
    assert (abs(counts - 2000 / 3) < 4 * np.sqrt(2000 * 2 / 9)).all()


@pytest.mark.parametrize("block", [1, 3, 100])
def test_keys_are_found_in_blocks(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(histories, "BLOCK", block)
    assert interaction_keys(dataclasses.replace(ROWS), 6).tolist() == [0, 1, 2, 12, 17, 21]
    assert interaction_keys(Histories.from_lists([[], []]), 6).tolist() == []


def test_keys_are_computed_once_and_kept_as_long_as_the_histories(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = dataclasses.replace(ROWS)
    calls = []
    monkeypatch.setattr(negatives, "_sorted_keys", lambda *given: calls.append(given[1]) or _sorted_keys(*given))
    epochs = [PairBatches(rows, num_items=6, batch_size=3, rng=np.random.default_rng(epoch)).keys for epoch in range(3)]
    assert epochs[0] is epochs[1] is epochs[2]
    assert calls == [6]
    assert interaction_keys(rows, 7).tolist() == [0, 1, 2, 14, 19, 24]
    assert calls == [6, 7]
    kept = weakref.ref(interaction_keys(rows, 7))
    del rows
    gc.collect()
    assert kept() is None


def test_a_user_of_all_items_still_gets_a_negative():
    everything = Histories.from_lists([[0, 1, 2]])
    users, positives = np.zeros(5, dtype=np.int64), interaction_keys(everything, 3)
    assert draw_negatives(users, positives, 3, np.random.default_rng(0)).max() < 3


def test_order_depends_on_the_generator_alone():
    first, again, other = batches(3).get(0), batches(3).get(0), batches(4).get(0)
    assert first.negatives.equal(again.negatives)
    assert not (first.users.equal(other.users) and first.negatives.equal(other.negatives))


def test_users_of_a_batch():
    found = batches()
    assert set(found.users(1)) == set(found.get(1).users.tolist())
