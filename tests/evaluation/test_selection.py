"""Selection among settings against the full evaluation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rediffuse.data.histories import Histories
from rediffuse.data.subsets import Task
from rediffuse.evaluation import evaluate_task, selection
from rediffuse.evaluation.selection import SubsetValidation

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
    users = validation.users()
    assert len(users) == 10
    assert users[0] == 0
    assert users[-1] == USERS - 1
    assert [len(values) for values in validation.compare(score)] == [10] * 3
    assert validation() == 0.5
    monkeypatch.setattr(selection, "MAX_SCORES", 3 * ITEMS)
    assert len(validation.users()) == 3
