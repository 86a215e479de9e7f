"""Selection among settings against the full evaluation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rediffuse.data.histories import Histories
from rediffuse.data.subsets import Task
from rediffuse.evaluation import evaluate_task, selection
from rediffuse.evaluation.selection import SubsetValidation
from rediffuse.models.base import is_clearly_better

ITEMS, USERS = 30, 50
RNG = np.random.default_rng(0)
TASK = Task(
    "valid",
    np.arange(USERS),
    Histories.from_lists([RNG.integers(0, ITEMS, RNG.integers(0, 6)).tolist() for _ in range(USERS)]),
    Histories.from_lists([RNG.integers(0, ITEMS, RNG.integers(1, 5)).tolist() for _ in range(USERS)]),
    np.zeros(ITEMS, dtype=np.int64),
)
TABLES = torch.from_numpy(RNG.random((3, USERS, ITEMS)).astype(np.float32).round(1))  # with ties


def score(histories, users):
    yield from (table[torch.from_numpy(users)].clone() for table in TABLES)


@pytest.mark.parametrize("metric", ["ndcg@10", "ndcg@10/unseen", "recall@5/unseen", "hr@1"])
@pytest.mark.parametrize("block", [7, 1000])
def test_every_setting_has_the_metric_of_the_evaluation(metric, block, monkeypatch):
    monkeypatch.setattr(selection, "block_of_users", lambda num_items: block)
    name, _, policy = metric.partition("/")
    found = SubsetValidation(TASK, metric, ITEMS, lambda: 0.0).compare(score)
    assert len(found) == 3
    for table, values in zip(TABLES, found, strict=True):
        result = evaluate_task(
            lambda rows, start, table=table: table[start : start + len(rows)].clone(),
            TASK,
            num_items=ITEMS,
            metrics=[name],
        )
        expected = result.per_user[name if not policy else metric].to_numpy()
        np.testing.assert_allclose(values, expected)


def test_many_users_are_sampled_evenly(monkeypatch):
    monkeypatch.setattr(selection, "MAX_USERS", 10)
    validation = SubsetValidation(TASK, "hr@10", ITEMS, lambda: 0.5)
    users = validation.rows()
    assert len(users) == 10
    assert users[0] == 0
    assert users[-1] == USERS - 1
    assert validation.owners.tolist() == TASK.users[users].tolist()
    assert [len(values) for values in validation.compare(score)] == [10] * 3
    assert validation() == 0.5
    monkeypatch.setattr(selection, "MAX_SCORES", 3 * ITEMS)
    assert len(validation.rows()) == 3


def test_a_gain_is_clear_by_the_standard_error_over_users():
    start = RNG.random(400)
    for gain in (0.02, 0.2):
        difference = gain + RNG.normal(0, 1, 400)
        expected = difference.mean() > difference.std() / 400**0.5
        assert is_clearly_better(start + difference, start, RNG.permutation(400)) == expected
    assert not is_clearly_better(start, start, np.arange(400))


def test_many_targets_of_few_users_are_no_clear_gain():
    """One user of five gains in each of 200 targets: clear over targets, and luck over users."""
    owners = np.repeat(np.arange(5), 200)
    start, gain = np.full(1000, 0.5), np.where(owners == 0, 0.3, -0.02)
    assert gain.mean() > gain.std() / 1000**0.5
    assert not is_clearly_better(start + gain, start, owners)
    assert is_clearly_better(start + 0.1 + gain, start, owners)
