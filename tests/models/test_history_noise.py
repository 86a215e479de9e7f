"""Noise on training histories, against the matrix exponential of a dense graph."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import expm

import rediffuse as rd
from rediffuse.data.histories import Histories
from rediffuse.models.history_noise import HistoryNoise
from rediffuse.runs.run_folder import read_log, read_run
from rediffuse.testing import synthetic_interactions

ITEMS, PAD = 6, 6
# Item 5 is in a history of its own, so it has no neighbours.
HISTORIES = [[0, 1, 2], [1, 2, 3, 0], [4, 2, 1], [2, 2, 4], [5]]
SMALL = {"embedding_size": 16, "batch_size": 64, "epochs": 2, "precision": "fp32"}
CPU = torch.device("cpu")


def dense_graph() -> np.ndarray:
    """P, pair by pair."""
    counts, popularity = np.zeros((ITEMS, ITEMS)), np.zeros(ITEMS)
    for history in HISTORIES:
        for p, item in enumerate(history):
            popularity[item] += 1
            for q, other in enumerate(history):
                if item != other:
                    counts[item, other] += 0.6 ** (abs(q - p) - 1)
    weights = counts / np.sqrt(popularity)
    sums = weights.sum(1, keepdims=True)
    return np.where(sums > 0, weights / np.where(sums > 0, sums, 1), np.eye(ITEMS))


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("time", [0.3, 2.0])
def test_an_item_moves_as_the_heat_kernel_says(time, uniform):
    draws = 40_000
    graph = np.full((ITEMS, ITEMS), 1 / ITEMS) if uniform else dense_graph()
    kernel = expm(-time * (np.eye(ITEMS) - graph))
    noise = HistoryNoise(Histories.from_lists(HISTORIES), ITEMS, time, uniform, CPU)
    torch.manual_seed(1)
    moved = noise.move(torch.arange(ITEMS + 1).repeat(draws, 1))
    assert (moved[:, PAD] == PAD).all()
    for item in range(ITEMS):
        found = np.bincount(moved[:, item].numpy(), minlength=ITEMS) / draws
        # Five standard errors of a share.
        np.testing.assert_array_less(np.abs(found - kernel[item]), 5 * np.sqrt(kernel[item] / draws) + 1e-9)
    if not uniform:
        assert (moved[:, 5] == 5).all()


def test_without_any_pair_nothing_moves():
    noise = HistoryNoise(Histories.from_lists([[0], [1], []]), 3, 1.0, False, CPU)
    items = torch.tensor([[0, 1, 2], [2, 3, 3]])
    assert torch.equal(noise.move(items), items)


def test_synthetic_interactions_are_not_in_the_graph():
    rows = Histories.from_lists([[0, 1], [2, 3]])
    marked = Histories(rows.offsets, rows.items, synthetic=np.array([False, False, True, True]))
    noise = HistoryNoise(marked, 4, 50.0, False, CPU)
    moved = noise.move(torch.tensor([[0, 1, 2, 3]] * 50))
    assert (moved[:, 2:] == torch.tensor([2, 3])).all()
    assert (moved[:, 0] != 0).any()


@pytest.fixture(scope="module")
def split():
    return rd.split.leave_one_out(synthetic_interactions())


@pytest.mark.parametrize("model", ["gru4rec", "bert4rec"])
def test_the_noise_is_in_training_alone(split, tmp_path, model):
    options = SMALL | {"history_noise": 0.5}
    runs = [rd.train(model, split, tmp_path / name, config=options) for name in ("a", "b")]
    plain = rd.train(model, split, tmp_path / "plain", config=SMALL)
    losses = [[record["loss"] for record in read_log(run.path)] for run in (*runs, plain)]
    assert losses[0] == losses[1] != losses[2]
    trained = read_run(runs[0].path).model
    histories = Histories.from_lists([[1, 2, 3], [4, 5]])
    first, second = (trained.score(histories) for _ in range(2))
    assert torch.equal(first, second)


def test_a_resumed_training_draws_the_same_noise(split, tmp_path):
    options = SMALL | {"history_noise": 0.5, "epochs": 4}
    whole = rd.train("gru4rec", split, tmp_path / "whole", config=options)
    rd.train("gru4rec", split, tmp_path / "parts", config=options | {"epochs": 2})
    parts = rd.train("gru4rec", split, tmp_path / "parts", config=options, resume=True)
    one, other = (read_run(run.path).model.state_dict() for run in (whole, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)
