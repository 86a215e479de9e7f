"""The sampled softmax against the full one, and the frequencies of draws."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tests.losses.test_softmax import case

from rediffuse.losses import Draws, sampled_softmax


def test_it_is_unbiased_up_to_the_sample():
    """With the logQ correction and many draws the loss approaches the full softmax; without it, it does not."""
    hidden, table, targets, _, _ = case(40, items=30)
    draws = Draws(torch.rand(30, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.05)
    torch.manual_seed(2)
    drawn = draws.draw(200_000)
    log_counts = draws.log_probabilities[drawn] + math.log(len(drawn))
    loss, _ = sampled_softmax(hidden, table[targets], table[drawn], targets, drawn, log_counts)
    full = F.cross_entropy(hidden @ table.T, targets)
    assert loss.item() == pytest.approx(full.item(), rel=0.005)
    level = torch.full_like(log_counts, log_counts.mean().item())
    wrong, _ = sampled_softmax(hidden, table[targets], table[drawn], targets, drawn, level)
    assert abs(wrong.item() - full.item()) > 0.015 * full.item()


def test_in_batch_it_is_unbiased_too():
    """Targets that come as often as their items do, as negatives of each other."""
    hidden, table, _, _, _ = case(1, items=12)
    draws = Draws(torch.rand(12, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) + 0.1)
    torch.manual_seed(4)
    targets = draws.draw(20_000)
    queries = hidden.expand(len(targets), -1)
    log_counts = draws.log_probabilities[targets] + math.log(len(targets))
    loss, rows = sampled_softmax(queries[:50], table[targets[:50]], table[targets], targets[:50], targets, log_counts)
    full = F.cross_entropy(queries[:50] @ table.T, targets[:50])
    assert loss.item() == pytest.approx(full.item(), rel=0.01)
    assert rows.shape == (50,)


def test_a_negative_that_is_the_target_is_masked():
    hidden, table, _, _, _ = case(1, items=4)
    two = torch.tensor([2])
    loss, _ = sampled_softmax(hidden, table[two], table[[2, 2]], two, torch.tensor([2, 2]), torch.zeros(2))
    assert loss.item() == 0.0


def test_a_row_is_not_compared_with_its_own_group():
    hidden, table, _, _, _ = case(4, items=9)
    targets, groups = torch.tensor([0, 1, 2, 3]), torch.tensor([7, 7, 8, 9])
    nothing = torch.zeros(4)
    _, rows = sampled_softmax(hidden, table[targets], table[targets], targets, targets, nothing, None, (groups, groups))
    scores = (hidden @ table[targets].T).float()
    for row, met in enumerate([[0, 2, 3], [1, 2, 3], [2, 0, 1, 3], [3, 0, 1, 2]]):
        assert rows[row].item() == pytest.approx(-F.log_softmax(scores[row, met], 0)[0].item(), rel=1e-5)


def test_items_are_drawn_in_proportion_to_their_weights():
    weights = torch.tensor([0.0, 3.0, 0.0, 1.0, 4.0, 0.0])
    draws = Draws(weights)
    torch.manual_seed(0)
    counts = torch.bincount(draws.draw(80_000), minlength=6) / 10_000
    assert counts[weights == 0].sum() == 0
    torch.testing.assert_close(counts, weights, rtol=0.05, atol=0)
    torch.testing.assert_close(draws.log_probabilities.exp(), weights / 8)


def test_draws_have_no_largest_catalogue():
    """torch.multinomial refuses more than 2**24 items."""
    draws = Draws(torch.ones(2**24 + 10))
    torch.manual_seed(0)
    drawn = draws.draw(1000)
    assert drawn.min() >= 0
    assert drawn.max() < 2**24 + 10
    assert drawn.double().mean().item() == pytest.approx(2**23, rel=0.1)
