"""Protocols: what is input, what is filtered, and what is ranked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import rediffuse as rd
from rediffuse.data.histories import Histories
from rediffuse.data.split import TRAIN, VALID, Task
from rediffuse.errors import ConfigError, DataError, RunError
from rediffuse.evaluation import evaluate_task
from rediffuse.evaluation.protocols import among_sampled, protocol, split_for
from rediffuse.testing import synthetic_interactions


@pytest.fixture(scope="module")
def data():
    return synthetic_interactions()


def test_validation_interactions_are_input_by_default(data):
    split = rd.split.leave_one_out(data)
    task = protocol("leave-one-out").task(split)
    known = data.interactions.where((split.subset == TRAIN) | (split.subset == VALID)).take(task.users)
    assert np.array_equal(task.histories.items, known.items)
    assert task.seen is None


def test_paper_diffrec_has_training_interactions_as_input_and_filters_validation_too(data):
    split = rd.split.leave_one_out(data)
    object.__setattr__(split, "name", "given")
    task = protocol("paper:diffrec").task(split)
    train = data.interactions.where(split.subset == TRAIN).take(task.users)
    assert np.array_equal(task.histories.items, train.items)
    assert task.seen is not None
    assert np.array_equal(task.seen.items, split.task("test").histories.items)
    result = evaluate_task(
        lambda histories, start: torch.zeros(len(histories), data.num_items), task, num_items=data.num_items
    )
    for row, items in enumerate(result.ranking.items["unseen"]):
        assert not set(items[items >= 0]) & set(task.seen.row(row))


def test_filtered_items_that_are_not_input_are_unreachable_and_counted():
    task = Task(
        "test",
        np.array([0, 1]),
        histories=Histories.from_lists([[0], [1]]),
        truth=Histories.from_lists([[1], [2]]),
        popularity=np.ones(3, dtype=np.int64),
        seen=Histories.from_lists([[0, 1], [1]]),
    )
    result = evaluate_task(lambda h, start: torch.zeros(len(h), 3), task, num_items=3, metrics=["hr@3"])
    assert result.per_user["rank/unseen"].to_list() == [None, 2]
    assert result.per_user["history_length"].to_list() == [1, 1]
    assert result.counts["truth_in_history"] == 1


def test_a_protocol_that_needs_another_split_is_refused(data):
    with pytest.raises(RunError, match=r"'paper:diffrec' needs the split 'given', and this is 'leave-one-out'"):
        protocol("paper:diffrec").task(rd.split.leave_one_out(data))


def test_names(data):
    with pytest.raises(ConfigError, match="Did you mean 'leave-one-out'"):
        protocol("leave-one-ou")
    for wrong in ("sampled-0", "sampled-", "sampled-x"):
        with pytest.raises(ConfigError):
            protocol(wrong)
    assert protocol("sampled-99").to_dict() | {"note": None} == {
        "name": "sampled-99",
        "candidates": "sampled-99",
        "seen": ["all", "unseen"],
        "validation_is_input": True,
        "comparable": False,
        "note": None,
    }
    assert split_for("global-time", data, quantile=0.8).params["quantile"] == 0.8
    with pytest.raises(DataError, match="without a split"):
        split_for("paper:diffurec", data)
    with pytest.raises(ConfigError, match="Did you mean 'paper:diffrec'"):
        split_for("paper:difrec", data)
    with pytest.raises(ConfigError, match="evaluate with --protocol sampled-99"):
        split_for("sampled-99", data)
    with pytest.raises(ConfigError, match="Did you mean 'leave-one-out'"):
        split_for("leave-on-out", data)


NUM_ITEMS = 30
TASK = Task(
    "test",
    np.array([7, 3, 11]),
    Histories.from_lists([[0, 1, 1], [], list(range(25))]),
    Histories.from_lists([[4, 5], [9], [26]]),
    np.ones(NUM_ITEMS, dtype=np.int64),
)


def scores() -> torch.Tensor:
    return torch.rand(3, NUM_ITEMS, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("block", [1, 2, 3])
def test_sampled_ranks_are_among_the_drawn_items(block):
    matrix = scores()
    score = among_sampled(lambda h, start: matrix[start : start + len(h)].clone(), TASK, 5, NUM_ITEMS, seed=2)
    result = evaluate_task(score, TASK, num_items=NUM_ITEMS, user_block=block, metrics=["hr@1", "mrr@20"])
    ranks = iter(result.ranking.ranks["unseen"])
    for row in range(3):
        kept = torch.isfinite(score(TASK.histories.take(np.array([row])), row)[0]).nonzero().squeeze(1).tolist()
        true, seen = TASK.truth.row(row).tolist(), set(TASK.histories.row(row).tolist())
        drawn = set(kept) - set(true)
        assert len(drawn) == min(5, NUM_ITEMS - len(seen | set(true)))
        assert not drawn & seen
        for item in true:
            others = sum(matrix[row, other] > matrix[row, item] for other in kept)
            assert next(ranks) == others + 1


def test_seen_items_may_be_in_the_sample():
    """As in DiffNet's released code, which excludes only the true items."""
    matrix = scores()
    score = among_sampled(
        lambda h, start: matrix[start : start + len(h)].clone(), TASK, 29, NUM_ITEMS, exclude_seen=False
    )
    kept = torch.isfinite(score(TASK.histories, 0))
    assert kept.all()
    rules = protocol("paper:diffnet")
    assert (rules.negatives, rules.exclude_seen, rules.policies) == (1000, False, ("all",))
    assert rules.to_dict()["candidates"] != protocol("sampled-1000").to_dict()["candidates"]
    assert not rules.comparable


def test_the_sample_is_uniform():
    one = TASK.histories.take(np.array([0]))
    hits = np.zeros(NUM_ITEMS)
    for seed in range(800):
        score = among_sampled(lambda h, start: torch.zeros(1, NUM_ITEMS), TASK, 5, NUM_ITEMS, seed=seed)
        hits += torch.isfinite(score(one, 0)[0]).numpy()
    assert hits[[0, 1]].sum() == 0
    assert (hits[[4, 5]] == 800).all()
    free = np.delete(hits, [0, 1, 4, 5])
    expected = 800 * 5 / 26
    assert (np.abs(free - expected) < 4.5 * np.sqrt(expected)).all()
