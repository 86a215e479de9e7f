"""Losses against sampled items: written out for single numbers."""

from __future__ import annotations

import math

import pytest
import torch

from rediffuse.losses import binary_cross_entropy, bpr, gbce_beta, logistic, squared_error


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_bpr_by_hand():
    found = bpr(torch.tensor([2.0, -1.0]), torch.tensor([[0.5, 1.0], [3.0, -1.5]]))
    assert found.item() == pytest.approx(-sum(math.log(sigmoid(x)) for x in (1.5, 1.0, -4.0, 0.5)) / 4, rel=1e-6)


def test_pointwise_losses_by_hand():
    positive, negative = torch.tensor([1.5, 0.3]), torch.tensor([[-0.5, 2.0], [0.0, 1.0]])
    crosses = [-math.log(sigmoid(s)) for s in (1.5, 0.3)] + [-math.log(1 - sigmoid(s)) for s in (-0.5, 2.0, 0.0, 1.0)]
    assert logistic(positive, negative).item() == pytest.approx(sum(crosses) / 2, rel=1e-6)
    squares = [(1 - sigmoid(s)) ** 2 for s in (1.5, 0.3)] + [sigmoid(s) ** 2 for s in (-0.5, 2.0, 0.0, 1.0)]
    assert squared_error(positive, negative).item() == pytest.approx(sum(squares) / 4, rel=1e-6)


def test_squared_error_of_the_released_code():
    """Vector W2 of the specification."""
    assert squared_error(torch.tensor([1.5]), torch.tensor([[-0.5]])).item() == pytest.approx(0.0879080, abs=1e-7)


def test_binary_cross_entropy_by_hand():
    hidden = torch.tensor([[1.0, 2.0], [-0.5, 0.25]], requires_grad=True)
    items = torch.tensor([[0.3, -0.2], [1.0, 0.5], [0.0, 2.0]], requires_grad=True)
    targets, negatives = torch.tensor([1, 2]), torch.tensor([[0, 2], [2, 0]])  # the second row draws its own target
    loss, rows = binary_cross_entropy(hidden, items, targets, negatives, beta=0.4)
    score = (hidden @ items.T).tolist()
    chosen, left = (lambda x: -0.4 * math.log(sigmoid(x))), (lambda x: -math.log(1 - sigmoid(x)))
    first = chosen(score[0][1]) + left(score[0][0]) + left(score[0][2])
    second = chosen(score[1][2]) + left(score[1][0])
    assert rows.tolist() == pytest.approx([first, second], rel=1e-5)
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-5)
    weighted, _ = binary_cross_entropy(hidden, items, targets, negatives, 0.4, torch.tensor([2.0, 0.0]))
    assert weighted.item() == pytest.approx(first, rel=1e-5)


def test_gradient_by_finite_differences():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    items = torch.randn(6, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    targets, negatives = torch.tensor([0, 5, 2]), torch.tensor([[1, 2], [5, 0], [3, 3]])

    def loss(hidden: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        # The loss adds up in single precision: finite differences need larger steps than gradcheck's own.
        return binary_cross_entropy(hidden, items, targets, negatives, 0.7)[0]

    assert torch.autograd.gradcheck(loss, (hidden, items), eps=1e-2, atol=1e-3)


def test_beta_of_gbce():
    assert gbce_beta(50, 1001, calibration=0.0) == pytest.approx(1.0)
    assert gbce_beta(50, 1001, calibration=1.0) == pytest.approx(0.05)
    assert gbce_beta(1000, 1001, calibration=0.3) == pytest.approx(1.0)  # all other items are drawn: nothing to undo
