"""FlowCF: the interpolation, the loss and the flow, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.fitting import steps, training_data

from rediffuse.data.histories import Histories
from rediffuse.errors import ConfigError
from rediffuse.models.flowcf import FlowCF
from rediffuse.models.sampling import Sampling

ITEMS = 9
ROWS = [[0, 1, 2], [3], [], [8, 4, 4, 0]]


def build(**options) -> FlowCF:
    torch.manual_seed(0)
    small = {"hidden_sizes": (6, 5), "time_size": 4, "dropout": 0.0, "precision": "fp32"}
    return FlowCF(FlowCF.Config.build(None, small | options), ITEMS).eval()


def dense(rows: list[list[int]]) -> np.ndarray:
    matrix = np.zeros((len(rows), ITEMS))
    for row, items in zip(matrix, rows, strict=True):
        row[items] = 1
    return matrix


def network(model: FlowCF, x: np.ndarray, t: float) -> np.ndarray:
    """x_1_hat, layer by layer."""
    state = {name: value.detach().double().numpy() for name, value in model.state_dict().items()}
    angles = 2 * np.pi * t / 10_000.0 ** (np.arange(2) / 2)
    time = np.concatenate((np.cos(angles), np.sin(angles))) @ state["time.weight"].T + state["time.bias"]
    h = np.hstack((x, np.tile(time, (len(x), 1))))
    for layer in range(3):
        h = h @ state[f"layers.{layer}.weight"].T + state[f"layers.{layer}.bias"]
        h = np.tanh(h) if layer < 2 else h
    return h


def test_the_prior_is_the_share_of_users_with_the_item():
    model = build()
    model.fit(training_data(Histories.from_lists(ROWS), ITEMS))
    np.testing.assert_allclose(model.frequency.numpy(), dense(ROWS).mean(0), atol=1e-7)


def test_an_element_is_that_of_the_row_with_the_probability_t_and_else_of_the_prior():
    model, count = build(), 20_000
    model.frequency.copy_(torch.linspace(0, 1, ITEMS))
    row = torch.tensor(dense([[0, 4, 7]])[0], dtype=torch.float32)
    for t in (0.0, 0.3, 1.0):
        found = model.interpolated(row.expand(count, -1), torch.full((count,), t))
        assert set(found.unique().tolist()) == {0.0, 1.0}
        expected = t * row + (1 - t) * model.frequency
        assert (found.mean(0) - expected).abs().max() < 4 * (0.25 / count) ** 0.5


def test_the_loss_is_the_squared_error_of_the_row(monkeypatch):
    """With a prior that is certain, and all elements of x_0: nothing is left to chance but the time."""
    model = build(diffusion_steps=4)
    batch = model.batches(training_data(Histories.from_lists(ROWS), ITEMS), np.random.default_rng(0)).get(0)
    model.frequency.copy_(torch.arange(ITEMS) % 2)
    monkeypatch.setattr(torch, "rand_like", torch.ones_like)
    rows, prior = batch.dense(ITEMS).numpy(), np.arange(ITEMS)[None] % 2
    seen = set()
    for seed in range(12):
        torch.manual_seed(seed)
        times = torch.randint(0, 4, (3,))
        torch.manual_seed(seed)
        seen |= set(times.tolist())
        errors = [network(model, prior, int(t) / 4) - row for t, row in zip(times, rows, strict=True)]
        assert model.loss(batch).item() == pytest.approx(np.mean(np.square(errors)), rel=1e-5)
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize("sampled", [1, 2, 4])
def test_the_flow_takes_the_last_steps_of_euler_and_turns_items_on(sampled):
    model = build(diffusion_steps=5, sampling_steps=sampled)
    with torch.no_grad():
        model.layers[-1].weight.mul_(4)  # so that some items pass one half
    rows = [row for row in ROWS if row]
    x = own = dense(rows)
    on = 0
    for step in range(5 - sampled, 4):
        velocity = (network(model, x, step / 5) - x) / (1 - step / 5)
        x = np.where((x + velocity / 5 > 0.5) | (own == 1), 1.0, 0.0)
        on = max(on, int((x - own).sum()))
    assert (on > 0) == (sampled > 1)
    expected = network(model, x, 4 / 5)
    with torch.no_grad():
        histories, users = Histories.from_lists(rows), np.arange(3)
        found = model.score(histories, users=users)
        by_vectors = model.query_vectors(histories, users, Sampling()) @ model.index_vectors().T  # pyright: ignore
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(by_vectors, expected, atol=1e-5)


def test_the_ablation_reads_the_row_itself_at_the_last_time():
    model = build(diffusion=False, diffusion_steps=5)
    data = training_data(Histories.from_lists(ROWS), ITEMS)
    batch = model.batches(data, np.random.default_rng(0)).get(0)
    rows = batch.dense(ITEMS).numpy()
    errors = np.square(rows - network(model, rows, 0.8))
    assert model.loss(batch).item() == pytest.approx(errors.mean(), rel=1e-5)
    assert model.max_sampling_steps is None


def test_more_steps_than_the_flow_has_are_refused():
    with pytest.raises(ConfigError, match="sampling_steps=4 is more than diffusion_steps=3"):
        build(diffusion_steps=3, sampling_steps=4)


def test_it_ranks_what_similar_users_have():
    groups = [[0, 1, 2, 3], [4, 5, 6, 7]]
    rows = [[item for item in group if item != left] for group in groups for left in group]
    model, data = build(hidden_sizes=(16,)), training_data(Histories.from_lists(rows), ITEMS)
    model.fit(data)
    steps(model, data, 50, 0.02)
    with torch.no_grad():
        scores = model.score(Histories.from_lists([[0, 2, 3], [4, 5, 6]]), users=np.array([-1, -1]))
    unseen = scores.masked_fill(torch.from_numpy(dense([[0, 2, 3], [4, 5, 6]]) == 1), -torch.inf)
    assert unseen.argmax(1).tolist() == [1, 7]
