"""SLIST against rows that are cut one by one, in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.fitting import training_data

from rediffuse.data import histories
from rediffuse.data.histories import Histories
from rediffuse.errors import ConfigError
from rediffuse.models.baselines import slist
from rediffuse.models.baselines.slist import SLIST, SLISTConfig

ITEMS = 15


@pytest.fixture
def rows() -> Histories:
    rng = np.random.default_rng(0)
    # With repeated items, an item without users, users without interactions and users with one.
    return Histories.from_lists([rng.integers(0, ITEMS - 1, rng.integers(0, 9)).tolist() for _ in range(60)])


def cut(rows: Histories, decay: float, targets: str) -> tuple[np.ndarray, np.ndarray]:
    """S and T: a row for each cut of each history."""
    past, future = [], []
    for user in range(len(rows)):
        row = rows.row(user).tolist()
        for at in range(1, len(row)):
            s, t = np.zeros(ITEMS), np.zeros(ITEMS)
            for place, item in enumerate(row[:at]):
                s[item] += np.exp(-(at - 1 - place) / decay)
            for place, item in enumerate(row[at : at + 1] if targets == "next" else row[at:]):
                t[item] += np.exp(-place / decay)
            past.append(s)
            future.append(t)
    return np.array(past), np.array(future)


@pytest.mark.parametrize("targets", ["next", "future"])
@pytest.mark.parametrize(("alpha", "decay"), [(0.0, 0.5), (0.3, 2.0), (0.7, 100.0), (1.0, 1.0)])
def test_weights_are_the_minimum_of_the_objective(rows, targets, alpha, decay):
    x = np.zeros((len(rows), ITEMS))
    x[rows.owners, rows.items] = 1
    past, future = cut(rows, decay, targets)
    # The objective as one ridge regression: all rows, scaled, one below the other.
    inputs = np.concatenate((alpha**0.5 * x, (1 - alpha) ** 0.5 * past, 2**0.5 * np.eye(ITEMS)))
    outputs = np.concatenate((alpha**0.5 * x, (1 - alpha) ** 0.5 * future, np.zeros((ITEMS, ITEMS))))
    expected = np.linalg.lstsq(inputs, outputs, rcond=None)[0]
    model = SLIST(SLISTConfig(regularization=2.0, alpha=alpha, decay_train=decay, targets=targets), ITEMS)
    model.fit(training_data(rows, ITEMS))
    np.testing.assert_allclose(model.weight.numpy(), expected, atol=3e-6)


def test_blocks_of_users_do_not_change_the_weights(rows, monkeypatch):
    whole, blocks = (SLIST(SLISTConfig(), ITEMS) for _ in range(2))
    whole.fit(training_data(rows, ITEMS))
    monkeypatch.setattr(histories, "BLOCK", 20)
    blocks.fit(training_data(rows, ITEMS))
    torch.testing.assert_close(whole.weight, blocks.weight, rtol=0, atol=1e-6)


def test_scores_are_a_row_of_falling_weights(rows):
    model = SLIST(SLISTConfig(decay_inference=3.0), ITEMS)
    model.fit(training_data(rows, ITEMS))
    found = model.score(Histories.from_lists([[4, 9, 2], [5, 9, 5]]))
    w, falls = model.weight, [float(np.exp(-since / 3)) for since in range(3)]
    expected = torch.stack((falls[2] * w[4] + falls[1] * w[9] + w[2], falls[1] * w[9] + w[5]))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_it_learns_what_follows_and_not_what_came_before():
    ring = Histories.from_lists([[(start + step) % ITEMS for step in range(5)] for start in range(ITEMS)] * 3)
    model = SLIST(SLISTConfig(alpha=0.0, regularization=1.0), ITEMS)
    model.fit(training_data(ring, ITEMS))
    scores = model.score(Histories.from_lists([[item] for item in range(ITEMS)]))
    assert scores.argmax(1).tolist() == [(item + 1) % ITEMS for item in range(ITEMS)]


def test_what_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(slist, "free_memory", lambda: 2**30)
    with pytest.raises(ConfigError, match=r"SLIST needs 1\.1 GiB for 10,000 items[\s\S]*Use ease or itemknn"):
        SLIST(SLISTConfig(), 10_000)
    monkeypatch.setattr(slist, "free_memory", lambda: 2**45)
    with pytest.raises(ConfigError, match=r"37,868 items .* LAPACK solves 23,170 items at most"):
        SLIST(SLISTConfig(), 37_868)
