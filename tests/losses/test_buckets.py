"""SCE against the full softmax, row by row, and its gradients against finite differences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.losses.test_softmax import case

from rediffuse.losses import scalable_cross_entropy


def sce(hidden, table, targets, negatives, weights=None):
    return scalable_cross_entropy(
        hidden, table[targets], table.detach(), lambda items: F.embedding(items, table), targets, negatives, weights
    )


def test_sce_with_all_items_in_every_bucket_is_the_full_softmax():
    hidden, table, targets, _, _ = case(9, items=20)
    loss, rows = sce(hidden, table, targets, 20)
    reached = ~rows.isnan()
    full = F.cross_entropy(hidden @ table.T, targets, reduction="none").detach()
    assert reached.sum() >= 6  # a bucket has six rows
    torch.testing.assert_close(rows[reached], full[reached].float())
    assert loss.item() == pytest.approx(full[reached].mean().item(), rel=1e-6)


def test_sce_has_the_largest_loss_of_a_row_and_no_more_than_the_full_softmax():
    hidden, table, targets, weights, _ = case(40, items=60)
    torch.manual_seed(0)
    loss, rows = sce(hidden, table, targets, 8, weights)
    reached = ~rows.isnan()
    full = F.cross_entropy(hidden @ table.T, targets, reduction="none").detach()
    assert (rows[reached] <= full[reached] + 1e-5).all()
    assert loss.item() == pytest.approx((rows * weights)[reached].mean().item(), rel=1e-5)
    # By hand: the same directions, and each bucket by sorting.
    torch.manual_seed(0)
    size = 13  # 2 sqrt(40), rounded up
    directions = torch.randn(size, 40, dtype=hidden.dtype) @ hidden.detach()
    expected = torch.full((40,), torch.nan)
    for direction in directions:
        for row in (hidden.detach() @ direction).argsort(descending=True)[:size]:
            near = (table.detach() @ direction).argsort(descending=True)[:8]
            near = near[near != targets[row]]
            scores = hidden[row] @ table[torch.cat((targets[row, None], near))].T
            own = -F.log_softmax(scores, 0)[0].item()
            expected[row] = max(own, -1 if expected[row].isnan() else expected[row].item())
    torch.testing.assert_close(rows, expected, equal_nan=True)


def test_gradients_are_those_of_the_losses_by_hand():
    """Checked in single precision inside, so against differences that are not too small."""
    hidden, table, targets, weights, _ = case(12, items=20)

    def loss(h, t):
        torch.manual_seed(5)
        return sce(h, t, targets, 5, weights)[0]

    ours = torch.autograd.grad(loss(hidden, table), (hidden, table))
    for which, gradient in enumerate(ours):
        for place in [(0, 0), (3, 2), (11, 4)]:
            inputs = [hidden.detach().clone(), table.detach().clone()]
            step = 1e-3
            inputs[which][place] += step
            above = loss(*inputs)
            inputs[which][place] -= 2 * step
            below = loss(*inputs)
            assert gradient[place].item() == pytest.approx(((above - below) / (2 * step)).item(), abs=2e-4)


def test_rows_in_no_bucket_have_the_loss_nan():
    hidden, table, targets, _, _ = case(400, items=50)
    torch.manual_seed(0)
    directions = torch.zeros_like(hidden)
    directions[:, 0] = 1.0  # most rows lie in the same direction
    loss, rows = sce((hidden.detach() * 0.01 + directions), table, targets, 10)
    assert 0 < rows.isnan().sum() < 400
    assert loss.isfinite()
