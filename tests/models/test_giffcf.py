"""GiffCF: the graph filter, the network and the chain, against dense NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.fitting import steps, training_data

from rediffuse.data.histories import Histories
from rediffuse.models.directions import item_directions
from rediffuse.models.giffcf import GiffCF

ITEMS, USERS = 11, 14
RNG = np.random.default_rng(3)
ROWS = [RNG.permutation(ITEMS - 1)[: RNG.integers(1, 7)].tolist() for _ in range(USERS - 1)] + [[]]


def build(**options) -> GiffCF:
    torch.manual_seed(0)
    small = {"embedding_size": 6, "dropout": 0.0, "precision": "fp32", "batch_size": USERS}
    model = GiffCF(GiffCF.Config.build(None, small | options), ITEMS, USERS)
    model.fit(training_data(Histories.from_lists(ROWS), ITEMS))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2).add_(0.05)  # no bias is zero
    return model.eval()


def dense(rows: list[list[int]]) -> np.ndarray:
    matrix = np.zeros((len(rows), ITEMS))
    for row, items in zip(matrix, rows, strict=True):
        row[items] = 1
    return matrix


def graph_filter() -> np.ndarray:
    """A, from the dense matrix; the eigenvalue from NumPy."""
    matrix = dense(ROWS)
    of_users, of_items = (np.maximum(matrix.sum(axis), 1e-9) for axis in (1, 0))
    normalised = of_users[:, None] ** -0.25 * matrix * of_items**-0.5
    product = normalised.T @ normalised
    return product / np.linalg.eigvalsh(product)[-1]


def network(model: GiffCF, z: np.ndarray, c: np.ndarray, t: int) -> np.ndarray:
    """x_hat; the mixers read a stack of all arrays."""
    state = {name: value.detach().double().numpy() for name, value in model.state_dict().items()}

    def swish(x):
        return x / (1 + np.exp(-x))

    def layers(name: str, first: str, second: str, x):
        inner = swish(x @ state[f"{name}{first}.weight"].T + state[f"{name}{first}.bias"])
        return inner @ state[f"{name}{second}.weight"].T + state[f"{name}{second}.bias"]

    def mix(name: str, *arrays):
        stack = np.stack(np.broadcast_arrays(*arrays), axis=-1)
        return layers(f"{name}.", "inner", "outer", stack)[..., 0]

    angles = t / 10_000.0 ** (np.arange(10) / 10)
    embedded = np.concatenate((np.cos(angles), np.sin(angles)))
    times = [layers(f"times.{number}.", "0", "2", embedded)[0] for number in (0, 1)]
    items = state["item_embedding"]
    share = c / np.maximum(c.sum(1, keepdims=True), 1)
    u = mix("inner_mixer", z @ items / ITEMS, share @ items, times[0])
    return mix("outer_mixer", u @ items.T, c, c @ graph_filter(), times[1])


def test_the_filter_is_the_normalised_item_graph():
    x = torch.randn(4, ITEMS)
    np.testing.assert_allclose(build().smooth(x), x.numpy() @ graph_filter(), atol=1e-5)


@pytest.mark.parametrize(("decay", "steps"), [(0.5, 3), (0.0, 2), (1.0, 1)])
def test_the_chain_sharpens_the_blurred_row(decay, steps):
    model = build(noise_decay=decay, diffusion_steps=steps, alpha=1.2)
    rows = [row for row in ROWS if row]
    x, filtered = dense(rows), graph_filter()

    def blur(x, t):
        return x + 1.2 * t / steps * (x @ filtered - x)

    z = blur(x, steps)
    for t in range(steps, 0, -1):
        estimate = network(model, z, x, t)
        z = blur(estimate, t - 1) + decay * (z - blur(estimate, t))
    with torch.no_grad():
        found = model.score(Histories.from_lists(rows), users=np.full(len(rows), -1))
    np.testing.assert_allclose(found, z, atol=1e-4)


@pytest.mark.parametrize("diffusion", [True, False])
def test_the_loss_is_the_squared_error_of_whole_rows(diffusion):
    """One step alone: t is known. The ablation reads the row itself."""
    model = build(diffusion=diffusion, diffusion_steps=1)
    batch = model.batches(training_data(Histories.from_lists(ROWS), ITEMS), np.random.default_rng(0)).get(0)
    x = batch.dense(ITEMS).double().numpy()
    z = x + 1.5 * (x @ graph_filter() - x) if diffusion else x
    expected = np.square(x - network(model, z, x, 1)).sum(1).mean()
    assert model.loss(batch).item() == pytest.approx(expected, rel=1e-5)


def test_in_training_the_condition_loses_items_and_the_target_does_not():
    model = build(dropout=0.5).train()
    seen = []
    model.denoised = lambda z, c, smoothed, t: seen.append((z, c, smoothed, t)) or torch.zeros_like(z)
    batch = model.batches(training_data(Histories.from_lists(ROWS), ITEMS), np.random.default_rng(0)).get(0)
    x = batch.dense(ITEMS)
    assert model.loss(batch).item() == pytest.approx(x.sum().item() / len(x))
    ((z, c, smoothed, t),) = seen
    assert set(c.unique().tolist()) == {0.0, 2.0}
    assert not c[x == 0].any()
    np.testing.assert_allclose(smoothed, c.numpy() @ graph_filter(), atol=1e-5)
    np.testing.assert_allclose(z, x + t[:, None] / 2 * (x.double() @ torch.from_numpy(graph_filter()) - x), atol=1e-5)
    assert t.min() >= 1
    assert t.max() <= 3


def test_directions_of_a_parameter_need_no_gradient():
    np.testing.assert_allclose(item_directions(build()).numpy() ** 2 @ np.ones(6), 1, rtol=1e-5)


def test_it_ranks_what_similar_users_have():
    groups = [[0, 1, 2, 3], [4, 5, 6, 7]]
    rows = [[item for item in group if item != left] for group in groups for left in group] * 3
    data = training_data(Histories.from_lists(rows), ITEMS)
    torch.manual_seed(0)
    options = {"embedding_size": 8, "dropout": 0.5, "batch_size": 28}
    model = GiffCF(GiffCF.Config.build(None, options), ITEMS, len(rows))
    model.fit(data)
    steps(model, data, 60, 0.03)
    with torch.no_grad():
        scores = model.score(Histories.from_lists([[0, 2, 3], [4, 5, 6]]), users=np.array([-1, -1]))
    unseen = scores.masked_fill(torch.from_numpy(dense([[0, 2, 3], [4, 5, 6]]) == 1), -torch.inf)
    assert unseen.argmax(1).tolist() == [1, 7]
