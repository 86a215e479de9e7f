"""Losses against sampled items: written out for single numbers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from rediffuse.losses import (
    binary_cross_entropy,
    bpr,
    gbce_beta,
    logistic,
    ranking,
    squared_error,
    uniform_softmax,
)


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


def drawn_loss(hidden, items, targets, negatives, *options, vectors=lambda rows: rows, **others):
    return binary_cross_entropy(hidden, vectors(items[targets]), items, vectors, targets, negatives, *options, **others)


def test_binary_cross_entropy_by_hand():
    hidden = torch.tensor([[1.0, 2.0], [-0.5, 0.25]], requires_grad=True)
    items = torch.tensor([[0.3, -0.2], [1.0, 0.5], [0.0, 2.0]], requires_grad=True)
    targets, negatives = torch.tensor([1, 2]), torch.tensor([[0, 2], [2, 0]])  # the second row draws its own target
    loss, rows = drawn_loss(hidden, items, targets, negatives, beta=0.4)
    score = (hidden @ items.T).tolist()
    chosen, left = (lambda x: -0.4 * math.log(sigmoid(x))), (lambda x: -math.log(1 - sigmoid(x)))
    first = chosen(score[0][1]) + left(score[0][0]) + left(score[0][2])
    second = chosen(score[1][2]) + left(score[1][0])
    assert rows.tolist() == pytest.approx([first, second], rel=1e-5)
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-5)
    weighted, _ = drawn_loss(hidden, items, targets, negatives, 0.4, torch.tensor([2.0, 0.0]))
    assert weighted.item() == pytest.approx(first, rel=1e-5)


def test_uniform_softmax_by_hand():
    hidden = torch.tensor([[1.0, 2.0], [-0.5, 0.25], [3.0, 1.0]])
    items = torch.tensor([[0.3, -0.2], [1.0, 0.5], [0.0, 2.0]])
    targets, negatives = torch.tensor([1, 2, 0]), torch.tensor([[0, 2], [2, 0], [0, 0]])  # rows draw their own targets
    weights = torch.tensor([2.0, 0.5, 1.0])
    loss, rows = uniform_softmax(hidden, items[targets], items, lambda x: x, targets, negatives, weights)
    score = (hidden @ items.T).tolist()
    first = math.log(sum(math.exp(s) for s in score[0])) - score[0][1]
    second = math.log(math.exp(score[1][2]) + math.exp(score[1][0])) - score[1][2]
    assert rows.tolist() == pytest.approx([first, second, 0.0], rel=1e-5, abs=1e-6)
    assert loss.item() == pytest.approx((2 * first + 0.5 * second) / 3, rel=1e-5)


def test_uniform_softmax_with_all_items_is_the_softmax():
    """The loss and its gradients, in slices of the targets too."""
    generator = torch.Generator().manual_seed(0)
    hidden, items = (torch.randn(n, 4, generator=generator, requires_grad=True) for n in (5, 6))
    targets = torch.tensor([0, 5, 2, 2, 1])

    def vectors(rows: torch.Tensor) -> torch.Tensor:
        return F.normalize(rows, dim=-1) * 3

    found, _ = uniform_softmax(
        hidden, vectors(items[targets]), items, vectors, targets, torch.arange(6).expand(5, 6).contiguous()
    )
    expected = F.cross_entropy(hidden @ vectors(items).T, targets)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = (torch.autograd.grad(loss, (hidden, items)) for loss in (found, expected))
    for ours, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)


def test_gradient_by_finite_differences():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    items = torch.randn(6, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    targets, negatives = torch.tensor([0, 5, 2]), torch.tensor([[1, 2], [5, 0], [3, 3]])

    def loss(hidden: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        # The loss adds up in single precision: finite differences need larger steps than gradcheck's own.
        return drawn_loss(hidden, items, targets, negatives, 0.7)[0]

    assert torch.autograd.gradcheck(loss, (hidden, items), eps=1e-2, atol=1e-3)


@pytest.mark.parametrize("rows", [1, 7, 10**6])
@pytest.mark.parametrize("sparse", [False, True])
def test_slices_and_sparse_gradients_change_nothing(rows, sparse, monkeypatch):
    monkeypatch.setitem(ranking.SLICE_ROWS, "cpu", rows)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(9, 4, generator=generator, requires_grad=True)
    items = torch.randn(12, 4, generator=generator, requires_grad=True)
    targets = torch.randint(12, (9,), generator=generator)
    negatives = torch.randint(12, (9, 5), generator=generator)
    weights = torch.rand(9, generator=generator)
    vectors = lambda rows: 3 * F.normalize(rows, dim=-1)  # noqa: E731
    loss, per_row = drawn_loss(hidden, items, targets, negatives, 0.7, weights, vectors=vectors, sparse=sparse)
    ours = torch.autograd.grad(2 * loss, (hidden, items))
    score = hidden @ vectors(items).T
    against = F.softplus(score.gather(1, negatives)).masked_fill(negatives == targets[:, None], 0.0).sum(1)
    expected = 0.7 * F.softplus(-score.gather(1, targets[:, None]).squeeze(1)) + against
    theirs = torch.autograd.grad(2 * (expected * weights).mean(), (hidden, items))
    torch.testing.assert_close(per_row, expected.detach())
    torch.testing.assert_close(ours[0], theirs[0])
    torch.testing.assert_close(ours[1].to_dense(), theirs[1])


def test_beta_of_gbce():
    assert gbce_beta(50, 1001, calibration=0.0) == pytest.approx(1.0)
    assert gbce_beta(50, 1001, calibration=1.0) == pytest.approx(0.05)
    assert gbce_beta(1000, 1001, calibration=0.3) == pytest.approx(1.0)  # all other items are drawn: no correction
