"""Softmax losses against torch's own cross entropy, and their gradients against finite differences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rediffuse.losses import sampled_softmax, softmax, softmax_cross_entropy


def case(n: int, items: int = 37, d: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64):
    make = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, d, generator=make, dtype=dtype).requires_grad_()
    table = torch.randn(items, d, generator=make, dtype=dtype).requires_grad_()
    targets = torch.randint(items, (n,), generator=make)
    weights = torch.rand(n, generator=make, dtype=dtype) + 0.1
    keys = torch.unique(torch.randint(n * items, (3 * n,), generator=make))
    bias = torch.tensor(-0.7, dtype=dtype, requires_grad=True)
    return hidden, table, targets, weights, (keys // items, keys % items, bias)


@pytest.mark.parametrize("n", [1, 63, 64, 65, 300])
@pytest.mark.parametrize("elements", [1, 37 * 70, 10**9])
def test_value_and_gradients_are_those_of_the_dense_form(n, elements, monkeypatch):
    monkeypatch.setattr(softmax, "SLICE_ELEMENTS", elements)
    hidden, table, targets, weights, biased = case(n)
    loss, per_row = softmax_cross_entropy(hidden, table, targets, weights, biased)
    inputs = (hidden, table, biased[2])
    ours = torch.autograd.grad(loss, inputs)

    logits = (hidden @ table.T).index_put(biased[:2], biased[2], accumulate=True)
    expected = F.cross_entropy(logits, targets, reduction="none")
    theirs = torch.autograd.grad((expected * weights).mean(), inputs)
    torch.testing.assert_close(per_row, expected.detach())
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-9)


def test_gradients_by_finite_differences():
    hidden, table, targets, weights, (rows, columns, bias) = case(6, items=9)

    def loss(h, t, b):
        return softmax_cross_entropy(h, t, targets, weights, (rows, columns, b))[0]

    hidden, table, targets, weights, (rows, columns, bias) = case(6, items=9)
    assert torch.autograd.gradcheck(loss, (hidden, table, bias), atol=1e-6)


def test_a_hopeless_target_has_its_exact_loss():
    hidden = torch.tensor([[100.0], [1.0]])
    table = torch.tensor([[1.0], [-1.0], [0.5]])
    _, per_row = softmax_cross_entropy(hidden, table, torch.tensor([1, 1]))
    expected = F.cross_entropy(hidden @ table.T, torch.tensor([1, 1]), reduction="none")
    torch.testing.assert_close(per_row, expected)
    assert per_row[0] > 190


def test_half_precision_is_close_to_full():
    hidden, table, targets, weights, _ = case(200, dtype=torch.float32)
    full, _ = softmax_cross_entropy(hidden, table, targets, weights)
    with torch.autocast("cpu", torch.bfloat16):
        half, _ = softmax_cross_entropy(hidden, table, targets, weights)
    assert half.item() == pytest.approx(full.item(), rel=0.02)
    mine, other = torch.autograd.grad(half, table)[0], torch.autograd.grad(full, table)[0]
    assert (mine - other).norm() < 0.02 * other.norm()


def test_sampled_softmax_is_unbiased_up_to_the_sample():
    """With the logQ correction and many draws the loss approaches the full softmax; without it, it does not."""
    hidden, table, targets, _, _ = case(40, items=30)
    chance = torch.rand(30, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.05
    chance /= chance.sum()
    drawn = torch.multinomial(chance, 200_000, replacement=True, generator=torch.Generator().manual_seed(2))
    log_chance = (chance * len(drawn)).log()
    loss, _ = sampled_softmax(hidden, table, targets, drawn, log_chance)
    full = F.cross_entropy(hidden @ table.T, targets)
    assert loss.item() == pytest.approx(full.item(), rel=0.005)
    wrong, _ = sampled_softmax(hidden, table, targets, drawn, torch.full_like(log_chance, log_chance.mean().item()))
    assert abs(wrong.item() - full.item()) > 0.015 * full.item()


def test_sampled_softmax_masks_a_negative_that_is_the_target():
    hidden, table, _, _, _ = case(1, items=4)
    loss, _ = sampled_softmax(hidden, table, torch.tensor([2]), torch.tensor([2, 2]), torch.zeros(4))
    assert loss.item() == 0.0
