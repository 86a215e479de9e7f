"""Pairs: every event once, negatives never touched, nothing left to chance but the generator."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import numpy as np
import pytest
import torch

from rediffuse.batching import negatives
from rediffuse.batching.matrix import binary_matrix
from rediffuse.batching.negatives import _sorted_keys, draw_negatives, interaction_keys
from rediffuse.batching.pairs import PairBatches
from rediffuse.data import histories
from rediffuse.data.histories import Histories

ROWS = Histories.from_lists([[0, 1, 1, 2], [], [5, 0], [3]])


def batches(seed: int = 0, size: int = 3) -> PairBatches:
    return PairBatches(ROWS, num_items=6, batch_size=size, rng=np.random.default_rng(seed))


def test_every_event_is_a_positive_once():
    found = batches()
    seen = [found.get(i) for i in range(len(found))]
    found_pairs = [(u, i) for b in seen for u, i in torch.stack((b.users, b.positives), 1).tolist()]
    assert sorted(found_pairs) == sorted(zip(ROWS.owners.tolist(), ROWS.items.tolist(), strict=False))


def test_several_negatives():
    found = PairBatches(ROWS, num_items=6, batch_size=3, rng=np.random.default_rng(0), negatives=4)
    batch = found.get(0)
    assert batch.negatives.shape == (3, 4)
    for user, drawn in zip(batch.users.tolist(), batch.negatives.tolist(), strict=True):
        assert not set(drawn) & set(ROWS.row(user).tolist())


def test_negatives_were_never_touched_and_reach_all_others():
    users = np.repeat([0, 2], 2000)
    drawn = draw_negatives(users, interaction_keys(ROWS, 6), 6, np.random.default_rng(1))
    assert set(drawn[:2000]) == {3, 4, 5}
    assert set(drawn[2000:]) == {1, 2, 3, 4}
    counts = np.bincount(drawn[:2000])[3:]
    assert (abs(counts - 2000 / 3) < 4 * np.sqrt(2000 * 2 / 9)).all()


@pytest.mark.parametrize("block", [1, 3, 100])
def test_what_was_touched_is_found_in_blocks(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(histories, "BLOCK", block)
    assert interaction_keys(dataclasses.replace(ROWS), 6).tolist() == [0, 1, 2, 12, 17, 21]
    assert interaction_keys(Histories.from_lists([[], []]), 6).tolist() == []


def test_what_was_touched_is_found_once_and_kept_as_long_as_the_histories(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = dataclasses.replace(ROWS)
    calls = []
    monkeypatch.setattr(negatives, "_sorted_keys", lambda *asked: calls.append(asked[1]) or _sorted_keys(*asked))
    epochs = [
        PairBatches(rows, num_items=6, batch_size=3, rng=np.random.default_rng(epoch)).touched for epoch in range(3)
    ]
    assert epochs[0] is epochs[1] is epochs[2]
    assert calls == [6]
    assert interaction_keys(rows, 7).tolist() == [0, 1, 2, 14, 19, 24]
    assert calls == [6, 7]
    kept = weakref.ref(interaction_keys(rows, 7))
    del rows
    gc.collect()
    assert kept() is None


def test_a_person_who_touched_everything_still_gets_an_item():
    everything = Histories.from_lists([[0, 1, 2]])
    users, touched = np.zeros(5, dtype=np.int64), interaction_keys(everything, 3)
    assert draw_negatives(users, touched, 3, np.random.default_rng(0)).max() < 3


def test_ranks_share_a_batch():
    found = batches(size=4)
    whole, parts = found.get(0), [found.get(0, rank, 2) for rank in range(2)]
    assert sorted(whole.positives.tolist()) == sorted(torch.cat([part.positives for part in parts]).tolist())
    assert sum(part.rank_weight for part in parts) == 2.0


def test_order_depends_on_the_generator_alone():
    first, again, other = batches(3).get(0), batches(3).get(0), batches(4).get(0)
    assert first.negatives.equal(again.negatives)
    assert not (first.users.equal(other.users) and first.negatives.equal(other.negatives))


def test_users_of_a_batch():
    found = batches()
    assert set(found.users(1)) == set(found.get(1).users.tolist())


def test_the_matrix_is_binary():
    assert binary_matrix(ROWS, 6).toarray().tolist() == [
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 1],
        [0, 0, 0, 1, 0, 0],
    ]
