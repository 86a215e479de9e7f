"""Noise that belongs to a row."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats

from rediffuse.diffusion.noise import RowNoise, row_keys


def test_it_is_standard_normal():
    drawn = RowNoise(torch.arange(2000), seed=4)(torch.empty(2000, 50, dtype=torch.float64))
    assert stats.kstest(drawn.flatten().numpy(), "norm").pvalue > 0.01
    # Neighbouring rows, elements and draws are not correlated.
    source = RowNoise(torch.arange(2000), seed=4)
    first, second = source(drawn), source(drawn)
    assert torch.equal(first, drawn)
    pairs = [(drawn, second), (drawn[1:], drawn[:-1]), (drawn[:, 1:], drawn[:, :-1])]
    other = RowNoise(torch.arange(2000), seed=5)(drawn)
    for left, right in [*pairs, (drawn, other)]:
        assert abs(np.corrcoef(left.flatten().numpy(), right.flatten().numpy())[0, 1]) < 0.02


def test_the_noise_of_a_row_depends_on_no_other_row_and_not_on_its_length():
    keys = torch.tensor([5, 99, -3])
    together = RowNoise(keys, 1)(torch.empty(3, 6, 4))
    torch.testing.assert_close(RowNoise(keys[1:2], 1)(torch.empty(1, 6, 4))[0], together[1])
    torch.testing.assert_close(RowNoise(keys[1:2], 1)(torch.empty(1, 2, 4))[0], together[1, :2])


def test_keys_depend_on_items_and_order_but_not_on_padding():
    items = torch.tensor([[1, 2, 3, 9], [2, 1, 3, 9], [1, 2, 3, 7], [1, 2, 9, 9]])
    keys = row_keys(items, torch.tensor([3, 3, 3, 2]))
    assert keys[0] == keys[2]
    assert len(set(keys.tolist())) == 3
    assert row_keys(items[:1, :3], torch.tensor([3]))[0] == keys[0]


def test_any_seed_is_accepted():
    for seed in (0, -1, 2**63, 2**70):
        assert torch.isfinite(RowNoise(torch.tensor([1]), seed)(torch.empty(1, 3))).all()
