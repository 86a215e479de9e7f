"""Means, list metrics, counts and per-user values of a task."""

import json

import numpy as np
import polars as pl
import pytest
import torch

from rediffuse.data.histories import Histories
from rediffuse.data.split import Task
from rediffuse.errors import ConfigError, DataError
from rediffuse.evaluation import DEFAULT_METRICS, POLICIES, evaluate_lists, evaluate_task
from rediffuse.evaluation.metrics import ACCURACY


def make_task(histories, truth, popularity, users=None):
    users = np.arange(len(truth)) if users is None else np.asarray(users)
    return Task("test", users, Histories.from_lists(histories), Histories.from_lists(truth), np.asarray(popularity))


def from_matrix(scores):
    return lambda histories, start: scores[start : start + len(histories)]


# Items 0..4. User 7 has seen 0; 1 and 2 are true. User 9 has no history; 4 is true and was never in training.
SCORES = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
TASK = make_task([[0, 0], []], [[2, 1], [4]], [20, 10, 5, 1, 0], users=[7, 9])


def test_by_hand():
    result = evaluate_task(
        from_matrix(SCORES),
        TASK,
        num_items=5,
        metrics=["hr@1", "mrr@5", "recall@2", "coverage@1", "popularity@2"],
    )
    assert result.metrics["all"] == {
        "hr@1": 0.0,
        "mrr@5": pytest.approx((1 / 2 + 1 / 5) / 2),
        "recall@2": 0.25,
        "coverage@1": 1 / 5,
        "popularity@2": 15.0,
    }
    assert result.metrics["unseen"] == {
        "hr@1": 0.5,
        "mrr@5": pytest.approx((1 + 1 / 5) / 2),
        "recall@2": 0.5,
        "coverage@1": 2 / 5,
        "popularity@2": (7.5 + 15) / 2,
    }
    assert result.counts == {
        "users": 2,
        "items": 5,
        "truth_items": 3,
        "cold_users": 1,
        "truth_in_history": 0,
        "truth_never_trained": 1,
        "truth_never_trained_share": 1 / 3,
    }
    assert result.value("hr@1") == 0.0
    assert result.value("hr@1/unseen") == 0.5


def test_per_user_values_are_a_plain_table(tmp_path):
    result = evaluate_task(from_matrix(SCORES), TASK, num_items=5, metrics=["mrr@5", "popularity@2", "coverage@1"])
    result.per_user.write_parquet(tmp_path / "users.parquet")
    rows = pl.read_parquet(tmp_path / "users.parquet").to_dicts()
    assert rows == [
        {"user": 7, "history_length": 2, "truth_items": 2, "rank": 2, "mrr@5": 0.5, "popularity@2": 15.0,
         "rank/unseen": 1, "mrr@5/unseen": 1.0, "popularity@2/unseen": 7.5},
        {"user": 9, "history_length": 0, "truth_items": 1, "rank": 5, "mrr@5": 0.2, "popularity@2": 15.0,
         "rank/unseen": 5, "mrr@5/unseen": 0.2, "popularity@2/unseen": 15.0},
    ]  # fmt: skip


def test_true_items_that_cannot_be_recommended_have_no_rank():
    task = make_task([[0], [1]], [[0], [1, 2]], [1, 1, 1])
    result = evaluate_task(from_matrix(torch.zeros(2, 3)), task, num_items=3, metrics=["hr@3"])
    assert result.per_user["rank/unseen"].to_list() == [None, 2]
    assert result.per_user["rank"].to_list() == [3, 2]
    assert result.metrics == {"all": {"hr@3": 1.0}, "unseen": {"hr@3": 0.5}}
    assert result.counts["truth_in_history"] == 2


def test_a_user_without_anything_left_to_recommend():
    # The first user has seen everything: without a list, popularity is null and not part of the mean.
    task = make_task([[0, 1], [0]], [[0], [1]], [3, 4])
    result = evaluate_task(from_matrix(torch.zeros(2, 2)), task, num_items=2, metrics=["popularity@2", "hr@2"])
    assert result.per_user["popularity@2/unseen"].to_list() == [None, 4.0]
    assert result.metrics["unseen"] == {"popularity@2": 4.0, "hr@2": 0.5}
    without_lists = make_task([[0, 1]], [[0]], [3, 4])
    result = evaluate_task(from_matrix(torch.zeros(1, 2)), without_lists, num_items=2, metrics=["popularity@2"])
    assert result.metrics["unseen"] == {"popularity@2": 0.0}


def test_the_lists_alone_give_the_same_numbers():
    """`evaluate_lists` gets only the lists, and must agree with `evaluate_task` up to their length."""
    rng = np.random.default_rng(1)
    users, items = 60, 400
    scores = torch.from_numpy(rng.permuted(np.tile(np.arange(items, dtype=np.float32), (users, 1)), axis=1))
    truth = [rng.integers(0, items, rng.integers(1, 60)).tolist() for _ in range(users)]
    history = [rng.integers(0, items, rng.integers(0, 100)).tolist() for _ in range(users)]
    result = evaluate_task(
        from_matrix(scores), make_task(history, truth, np.ones(items)), num_items=items, user_block=16
    )
    for policy in POLICIES:
        lists = {user: row.tolist() for user, row in enumerate(result.ranking.items[policy])}
        names = [f"{kind}@{k}" for kind in ACCURACY for k in (5, 10, 20)]
        expected = evaluate_lists(lists, dict(enumerate(truth)), names)
        for name in names:
            assert result.metrics[policy][name] == pytest.approx(expected[name], abs=1e-12)
            assert expected[name] > 0


def test_defaults_and_json():
    result = evaluate_task(from_matrix(SCORES), TASK, num_items=5)
    assert set(result.metrics["all"]) == set(result.metrics["unseen"]) == set(DEFAULT_METRICS)
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False)) == result.to_dict()
    assert result.ranking.items["all"].shape == (2, 20)
    assert "per_user" not in repr(result)


def test_lists_are_as_long_as_list_metrics_need():
    result = evaluate_task(from_matrix(SCORES), TASK, num_items=5, metrics=["coverage@4"], k_list=2)
    assert result.metrics["all"]["coverage@4"] == 4 / 5
    assert result.ranking.items["all"].shape == (2, 4)


def test_refusals():
    score = from_matrix(SCORES)
    with pytest.raises(ConfigError, match="Did you mean 'coverage'"):
        evaluate_task(score, TASK, num_items=5, metrics=["covrage@10"])
    with pytest.raises(ConfigError, match="Did you mean 'hr@1/unseen'"):
        evaluate_task(score, TASK, num_items=5, metrics=["hr@1"]).value("hr@1/unsen")
    with pytest.raises(DataError, match="has 1 users without a true item"):
        evaluate_task(score, make_task([[0], []], [[1], []], [1] * 5), num_items=5)
    with pytest.raises(DataError, match="has no users"):
        evaluate_task(score, make_task([], [], [1] * 5), num_items=5)
