"""Batches of sparse rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rediffuse.batching.matrix import binary_matrix, weighted_matrix
from rediffuse.batching.rows import RowBatches, row_batch
from rediffuse.data import histories
from rediffuse.data.histories import Histories

ROWS = Histories.from_lists([[0, 1, 1, 2], [], [5, 0], [3], [2, 4]])


def batches(seed: int = 0, size: int = 3) -> RowBatches:
    return RowBatches(binary_matrix(ROWS, 6), batch_size=size, rng=np.random.default_rng(seed))


def test_every_user_with_an_interaction_comes_once():
    found = batches()
    assert sorted(np.concatenate([found.users(i) for i in range(len(found))])) == [0, 2, 3, 4]
    dense = torch.cat([found.get(i).dense(6) for i in range(len(found))]).numpy()
    order = np.concatenate([found.users(i) for i in range(len(found))])
    assert (dense == binary_matrix(ROWS, 6).toarray()[order]).all()


def test_order_depends_on_the_generator_alone():
    first, again = batches(3), batches(3)
    assert (first.order == again.order).all()
    assert any((first.order != batches(seed).order).any() for seed in range(4, 8))


def test_empty_rows_keep_their_place():
    batch = row_batch(binary_matrix(ROWS, 6))
    assert batch.owners.tolist() == [0, 0, 0, 2, 2, 3, 4, 4]
    assert batch.dense(6)[1].sum() == 0
    assert row_batch(binary_matrix(Histories.from_lists([[], []]), 6)).dense(6).tolist() == [[0.0] * 6] * 2


@pytest.mark.parametrize("block", [1, 5, 100])
def test_an_item_has_the_weight_of_its_last_interaction(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(histories, "BLOCK", block)
    weights = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9], dtype=np.float32)
    found = weighted_matrix(ROWS, 6, weights).toarray()
    assert np.allclose(found[0], [0.1, 0.3, 0.4, 0, 0, 0])
    assert np.allclose(found[2], [0.6, 0, 0, 0, 0, 0.5])
    assert not found[1].any()
    empty = Histories.from_lists([[], []])
    assert weighted_matrix(empty, 6, np.empty(0, dtype=np.float32)).shape == (2, 6)
