"""The row denoiser beside a transcription of the released network in numpy, and the two forms of the reverse chain."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rediffuse.diffusion import ancestral, noise_schedule
from rediffuse.nn import RowDenoiser

ITEMS, STEPS = 50, 10


def build(hidden_sizes=(16,), **options) -> RowDenoiser:
    torch.manual_seed(1)
    return RowDenoiser(ITEMS, hidden_sizes, 5, STEPS, **options).eval()


def rows(count: int = 7) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy((rng.random((count, ITEMS)) < 0.2) * rng.random((count, ITEMS))).float()


def sparse(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    owners, items = torch.nonzero(x, as_tuple=True)
    offsets = torch.searchsorted(owners, torch.arange(len(x)))
    return items, offsets, x[owners, items]


def by_hand(net: RowDenoiser, x: np.ndarray, t: int) -> np.ndarray:
    """DiffRec's released DNN.py: with e a linear layer of the embedding of t (cosines, then sines), [x, e] goes through
    the in-layers, each with tanh, and the out-layers, with tanh between."""
    weights = {name: p.detach().double().numpy() for name, p in net.named_parameters()}
    half = net.time_size // 2
    angle = t * np.exp(-np.log(1e4) * np.arange(half) / half)
    embedded = np.concatenate((np.cos(angle), np.sin(angle), np.zeros(net.time_size % 2)))
    e = weights["time.weight"] @ embedded + weights["time.bias"]
    joint = np.concatenate((weights["first"].T, weights["first_time.weight"]), axis=1)
    h = np.tanh(np.concatenate((x, np.tile(e, (len(x), 1))), axis=1) @ joint.T + weights["first_time.bias"])
    for layer in range(len(net.between)):
        h = np.tanh(h @ weights[f"between.{layer}.weight"].T + weights[f"between.{layer}.bias"])
    return h @ weights["last.weight"].T + weights["last.bias"]


@pytest.mark.parametrize("hidden_sizes", [(16,), (8, 24), (4, 8, 12)])
def test_it_is_the_released_network(hidden_sizes):
    net, x = build(hidden_sizes), rows()
    assert [layer.out_features for layer in net.between] == [*hidden_sizes[-2::-1], *hidden_sizes[1:]]
    for t in (0, 3, 9):
        found = net(x, torch.full((len(x),), t))
        np.testing.assert_allclose(found.detach().numpy(), by_hand(net, x.double().numpy(), t), atol=2e-6)


@pytest.mark.parametrize("normalize", [False, True])
def test_sparse_rows_are_read_as_dense_ones_are(normalize):
    net, x = build(normalize=normalize), rows()
    x[2] = 0  # an empty row
    z = net.read(*sparse(x))
    expected = (torch.nn.functional.normalize(x, dim=1) if normalize else x) @ net.first
    torch.testing.assert_close(z, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("hidden_sizes", [(16,), (8, 24), (4, 8, 12)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_the_hidden_chain_is_the_plain_chain(hidden_sizes, dtype, tolerance):
    net, x = build(hidden_sizes).to(dtype), rows().to(dtype)
    with torch.no_grad():  # far from the initialisation, which is nearly linear
        for parameter in net.parameters():
            parameter.mul_(2)
    schedule = noise_schedule("linear_var", STEPS, noise_scale=0.5, noise_min=0.01, noise_max=0.5)
    plain = ancestral(net, x, schedule, variance=None)
    coefficients = schedule.posterior_mean_coef1.tolist(), schedule.posterior_mean_coef2.tolist()
    found = net.last(net.reverse(x @ net.first, net.fold(), *coefficients))
    torch.testing.assert_close(found, plain, atol=tolerance * plain.abs().max().item(), rtol=0)


def test_dropout_is_on_the_row_only():
    net = build(dropout=0.5).train()
    nothing = torch.zeros(3, ITEMS)
    assert torch.equal(net(nothing, torch.tensor([0, 1, 2])), net.eval()(nothing, torch.tensor([0, 1, 2])))
    net.train()
    assert not torch.equal(net(rows(), torch.zeros(7, dtype=torch.int64)), net(rows(), torch.zeros(7).long()))


def test_initial_weights_have_xaviers_spread():
    torch.manual_seed(0)
    net = RowDenoiser(3000, (200, 600), 10, STEPS)
    joint = torch.cat((net.first, net.first_time.weight.T))
    assert joint.std().item() == pytest.approx((2 / (3010 + 600)) ** 0.5, rel=0.02)
    assert net.between[0].weight.std().item() == pytest.approx((2 / 800) ** 0.5, rel=0.02)
    assert net.last.bias.std().item() == pytest.approx(0.001, rel=0.1)
