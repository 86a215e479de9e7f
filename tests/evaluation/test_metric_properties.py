"""Metrics against their definitions in plain loops, and invariances."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rediffuse.data.histories import Histories
from rediffuse.data.split import Task
from rediffuse.evaluation.list_evaluation import evaluate_lists
from rediffuse.evaluation.metrics import ACCURACY, NOT_RANKED, POLICIES, Metric, accuracy_values
from rediffuse.evaluation.task_evaluation import evaluate_task

SETTLED = settings(derandomize=True, deadline=None, max_examples=30)
KS = (1, 2, 5, 10)
NAMES = [f"{kind}@{k}" for kind in ACCURACY for k in KS]


def plain(kind: str, k: int, ranks: list[int], true: int) -> float:
    """One metric of one user, from the ranks of the true items that can be recommended."""
    hits = sorted(rank for rank in ranks if rank <= k)
    if kind == "hr":
        return float(bool(hits))
    if kind == "precision":
        return len(hits) / k
    if kind == "recall":
        return len(hits) / true
    if kind == "capped_recall":
        return len(hits) / min(true, k)
    if kind == "mrr":
        return 1 / hits[0] if hits else 0.0
    if kind == "map":
        return sum(sum(other <= rank for other in hits) / rank for rank in hits) / true
    assert kind == "ndcg"
    best = sum(1 / math.log2(place + 1) for place in range(1, min(true, k) + 1))
    return sum(1 / math.log2(rank + 1) for rank in hits) / best


def worst_ranks(scores: list[float], true: set[int], hidden: set[int] = frozenset()) -> dict[int, int]:  # pyright: ignore
    """True item -> rank, with all other items of the same score before it; only items that can be recommended."""
    candidates = [item for item in range(len(scores)) if item not in hidden and scores[item] > -math.inf]
    order = sorted(candidates, key=lambda item: (-scores[item], item in true, item))
    return {item: place for place, item in enumerate(order, start=1) if item in true}


@SETTLED
@given(st.lists(st.tuples(st.sets(st.integers(1, 14), max_size=6), st.integers(0, 4)), min_size=1, max_size=5))
def test_accuracy_by_definition(users: list[tuple[set[int], int]]) -> None:
    users = [(ranks, max(1, len(ranks) + missed)) for ranks, missed in users]
    flat = [[*sorted(ranks, reverse=True), *[NOT_RANKED] * (true - len(ranks))] for ranks, true in users]
    values = accuracy_values(
        [Metric(kind, k) for kind in ACCURACY for k in KS],
        np.cumsum([0, *map(len, flat)]),
        np.array([rank for row in flat for rank in row], dtype=np.int64),
        np.array([true for _, true in users]),
    )
    for kind in ACCURACY:
        for k in KS:
            found = values[f"{kind}@{k}"]
            assert found == pytest.approx([plain(kind, k, list(ranks), true) for ranks, true in users], abs=1e-12)
            assert ((found >= 0) & (found <= 1 + 1e-12)).all()


@st.composite
def worlds(draw: st.DrawFn, values: tuple[float, ...] = (-2.0, -0.5, 0.0, 0.25, 3.0)) -> tuple[Any, Any, Any, Any]:
    """Scores (users, items), histories, truth and the number of items; few different scores, so many ties."""
    items, users = draw(st.integers(2, 9)), draw(st.integers(1, 4))
    row = st.lists(st.sampled_from(values), min_size=items, max_size=items)
    some = st.lists(st.integers(0, items - 1), max_size=6)
    scores = draw(st.lists(row, min_size=users, max_size=users))
    truth = draw(st.lists(st.lists(st.integers(0, items - 1), min_size=1, max_size=6), min_size=users, max_size=users))
    return scores, draw(st.lists(some, min_size=users, max_size=users)), truth, items


def task(histories: list[list[int]], truth: list[list[int]], items: int) -> Task:
    past, future = Histories.from_lists(histories), Histories.from_lists(truth)
    counts = np.bincount(past.items, minlength=items).astype(np.int64)
    return Task("test", np.arange(len(past)), past, future, counts)


def result(scores: Any, histories: Any, truth: Any, items: int, block: int | None = None) -> Any:
    table = torch.tensor(scores, dtype=torch.float32)

    def score(rows: Histories, start: int) -> torch.Tensor:
        return table[start : start + len(rows)].clone()

    return evaluate_task(
        score, task(histories, truth, items), num_items=items, metrics=NAMES, k_list=items, user_block=block
    )


@SETTLED
@given(worlds((-math.inf, -1.0, 0.0, 0.5, 0.5)), st.integers(1, 3))
def test_a_task_by_definition_in_blocks_of_any_size(world: tuple, block: int) -> None:
    scores, histories, truth, _items = world
    found = result(*world, block=block)
    assert found.metrics == result(*world).metrics
    for policy in POLICIES:
        hidden = [set(row) if policy == "unseen" else set() for row in histories]
        ranks = [worst_ranks(s, set(t), h) for s, t, h in zip(scores, truth, hidden, strict=True)]
        for kind in ACCURACY:
            for k in KS:
                each = [plain(kind, k, [*r.values()], len(set(t))) for r, t in zip(ranks, truth, strict=True)]
                assert found.metrics[policy][f"{kind}@{k}"] == pytest.approx(sum(each) / len(each), abs=1e-12)


@SETTLED
@given(worlds(), st.sampled_from([lambda x: 3 * x - 7, lambda x: x**3, math.exp, lambda x: -1 / (x + 9)]))
def test_only_the_order_of_scores_matters(world: tuple, rising: Any) -> None:
    scores, *rest = world
    changed = [[rising(value) for value in row] for row in scores]
    assert result(changed, *rest).metrics == result(scores, *rest).metrics


@SETTLED
@given(worlds())
def test_evaluate_lists_agrees_with_evaluate_task(world: tuple) -> None:
    """On lists with scores, ties included; and on the task's own lists by rank, if nothing is tied."""
    scores, histories, truth, items = world
    found = result(*world)
    true = pl.DataFrame({"user_id": range(len(truth)), "item_id": truth}).explode("item_id")
    for policy in POLICIES:
        rows = [
            (user, item, scores[user][item])
            for user in range(len(scores))
            for item in range(items)
            if policy == "all" or item not in histories[user]
        ]
        lists = pl.DataFrame(rows, {"user_id": pl.Int64, "item_id": pl.Int64, "score": pl.Float64}, orient="row")
        assert dict(evaluate_lists(lists, true, NAMES)) == pytest.approx(found.metrics[policy], abs=1e-12)
    untied = [[value + item / 100 for item, value in enumerate(row)] for row in scores]
    found = result(untied, histories, truth, items)
    for policy in POLICIES:
        lists = {user: [i for i in row.tolist() if i >= 0] for user, row in enumerate(found.ranking.items[policy])}
        assert dict(evaluate_lists(lists, dict(enumerate(truth)), NAMES)) == pytest.approx(
            found.metrics[policy], abs=1e-12
        )


@SETTLED
@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.integers(0, 7),
            st.sampled_from([math.nan, None, -math.inf, -1.0, -0.0, 0.0, 2.0, math.inf]),
        ),
        max_size=25,
    ),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 7)), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
)
def test_lists_by_definition(rows: list[tuple], truth: list[tuple], random: Any) -> None:
    """Ties count against the lists, NaN comes after all scores, the best of repeats counts; in any order of rows."""
    users = list(dict.fromkeys(user for user, _ in truth))
    ranks = []
    for current in users:
        true = {item for user, item in truth if user == current}
        own = [
            (item, None if score is None or math.isnan(score) else score)
            for user, item, score in rows
            if user == current
        ]
        order = sorted(own, key=lambda row: (row[1] is None, -(row[1] or 0.0), row[0] in true))
        once = list(dict.fromkeys(item for item, _ in order))
        ranks.append(([place for place, item in enumerate(once, start=1) if item in true], len(true)))
    random.shuffle(rows)
    lists = pl.DataFrame(rows, {"user_id": pl.Int64, "item_id": pl.Int64, "score": pl.Float64}, orient="row")
    true_rows = pl.DataFrame(truth, ["user_id", "item_id"], orient="row")
    # Lists without a user of the truth give a warning, which test_list_evaluation checks.
    assume(lists.is_empty() or not lists.filter(pl.col("user_id").is_in(users)).is_empty())
    found = evaluate_lists(lists, true_rows, NAMES)
    assert found.per_user["user_id"].to_list() == users
    for kind in ACCURACY:
        for k in KS:
            expected = [plain(kind, k, hits, true) for hits, true in ranks]
            assert found.per_user[f"{kind}@{k}"].to_list() == pytest.approx(expected, abs=1e-12)
            assert found[f"{kind}@{k}"] == pytest.approx(sum(expected) / len(expected), abs=1e-12)
