"""The softmax over a catalogue against torch's own cross entropy, and its gradients against finite differences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rediffuse.losses import softmax, softmax_cross_entropy


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
@pytest.mark.parametrize("items", [37, 300])
@pytest.mark.parametrize("elements", [1, 64 * 37, 64 * 300, 10**9])  # by items, by rows, all at once
@pytest.mark.parametrize("each", [False, True])  # one bias for all pairs, or one for each
def test_value_and_gradients_are_those_of_the_dense_form(n, items, elements, each, monkeypatch):
    monkeypatch.setitem(softmax.SLICE_ELEMENTS, "cpu", elements)
    hidden, table, targets, weights, biased = case(n, items)
    if each:
        rows, columns, _ = biased
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))  # pairs may be in any order
        values = torch.linspace(-2, 3, len(rows), dtype=torch.float64).requires_grad_()
        biased = rows[order], columns[order], values
    loss, per_row = softmax_cross_entropy(hidden, table, targets, weights, biased)
    inputs = (hidden, table, biased[2])
    ours = torch.autograd.grad(loss, inputs)

    logits = (hidden @ table.T).index_put(biased[:2], biased[2], accumulate=True)
    expected = F.cross_entropy(logits, targets, reduction="none")
    theirs = torch.autograd.grad((expected * weights).mean(), inputs)
    torch.testing.assert_close(per_row, expected.detach())
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("elements", [1, 10**9])
def test_gradients_by_finite_differences(elements, monkeypatch):
    monkeypatch.setitem(softmax.SLICE_ELEMENTS, "cpu", elements)

    def loss(h, t, b):
        return softmax_cross_entropy(h, t, targets, weights, (rows, columns, b))[0]

    hidden, table, targets, weights, (rows, columns, bias) = case(6, items=9)
    assert torch.autograd.gradcheck(loss, (hidden, table, bias), atol=1e-6)


@pytest.mark.parametrize("elements", [1, 10**9])
def test_a_hopeless_target_has_its_exact_loss(elements, monkeypatch):
    monkeypatch.setitem(softmax.SLICE_ELEMENTS, "cpu", elements)
    hidden = torch.tensor([[100.0], [1.0]])
    table = torch.tensor([[1.0], [-1.0], [0.5]])
    _, per_row = softmax_cross_entropy(hidden, table, torch.tensor([1, 1]))
    expected = F.cross_entropy(hidden @ table.T, torch.tensor([1, 1]), reduction="none")
    torch.testing.assert_close(per_row, expected)
    assert per_row[0] > 190


@pytest.mark.parametrize("elements", [1, 10**9])
def test_half_precision_is_close_to_full(elements, monkeypatch):
    monkeypatch.setitem(softmax.SLICE_ELEMENTS, "cpu", elements)
    hidden, table, targets, weights, _ = case(200, dtype=torch.float32)
    full, _ = softmax_cross_entropy(hidden, table, targets, weights)
    with torch.autocast("cpu", torch.bfloat16):
        half, _ = softmax_cross_entropy(hidden, table, targets, weights)
    assert half.item() == pytest.approx(full.item(), rel=0.02)
    mine, other = torch.autograd.grad(half, table)[0], torch.autograd.grad(full, table)[0]
    assert (mine - other).norm() < 0.02 * other.norm()


def test_slices_of_items_hold_no_matrix_of_logits(monkeypatch):
    """No tensor of either pass is larger than the table."""
    monkeypatch.setitem(softmax.SLICE_ELEMENTS, "cpu", 64 * 64)
    hidden, table, targets, weights, biased = case(64, items=5_000)
    largest = 0

    class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            found = function(*args, **(kwargs or {}))
            if isinstance(found, torch.Tensor):
                largest = max(largest, found.numel())
            return found

    with LargestTensor():
        softmax_cross_entropy(hidden, table, targets, weights, biased)[0].backward()
    assert table.grad is not None
    assert largest == table.numel() < 64 * 5_000
