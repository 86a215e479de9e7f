"""Limits and maximal marginal relevance against a brute-force oracle."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from rediffuse.errors import ConfigError
from rediffuse.reranking import ItemColumns, MarginalRelevance, Reranking, ValueLimit, VectorSimilarity, pool_size
from rediffuse.reranking.request import require_diversity, require_max_per

ITEMS = 30


def oracle(items, scores, k, values, limits, diversity, directions):
    """Rebuild the list from nothing at each step; ``values`` has one list of values per limit and item."""
    chosen = []
    low, high = min(scores), max(scores)
    while len(chosen) < k:
        best = None
        for place, item in enumerate(items):
            if item in chosen:
                continue
            fits = True
            for of, limit in zip(values, limits, strict=True):
                for value in of[item]:
                    fits &= sum(value in of[other] for other in chosen) < limit
            if not fits:
                continue
            relevance = (scores[place] - low) / (high - low) if high > low else 0.0
            near = max((float(directions[item] @ directions[other]) for other in chosen), default=0.0)
            gain = (1 - diversity) * relevance - diversity * near
            if best is None or gain > best[0] + 1e-12:
                best = gain, item
        if best is None:
            return chosen
        chosen.append(best[1])
    return chosen


@pytest.mark.parametrize("seed", range(40))
def test_lists_are_those_of_the_oracle(seed):
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((ITEMS, 4))
    directions = (directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype(np.float32)
    category = [None if rng.random() < 0.2 else str(rng.integers(4)) for _ in range(ITEMS)]
    tags = [None if rng.random() < 0.2 else [*rng.choice(5, rng.integers(0, 4)).tolist(), None] for _ in range(ITEMS)]
    values = [
        [[] if one is None else [one] for one in category],
        [[] if one is None else [tag for tag in one if tag is not None] for one in tags],
    ]
    limits = rng.integers(1, 4, 2).tolist()
    items = rng.permutation(ITEMS)[:20]
    scores = np.sort(rng.integers(0, 9, 20) / 8)[::-1].astype(np.float32)  # with ties
    diversity = [0.0, 0.3, 0.7, 1.0][seed % 4]
    reranking = Reranking(
        [ValueLimit.of(pl.Series(one), limit) for one, limit in zip((category, tags), limits, strict=True)],
        MarginalRelevance(VectorSimilarity(directions)) if diversity else None,
        diversity,
    )
    found = items[reranking.choose(items, scores, 8)].tolist()
    expected = oracle(items.tolist(), scores.tolist(), 8, values, limits, diversity, directions.astype(np.float64))
    assert found == expected


def test_without_limits_and_diversity_the_list_is_the_pool():
    scores = np.arange(10, 0, -1, dtype=np.float32)
    assert Reranking().choose(np.arange(10), scores, 4).tolist() == [0, 1, 2, 3]
    assert Reranking().choose(np.arange(3), scores[:3], 4).tolist() == [0, 1, 2]
    assert Reranking().choose(np.arange(0), scores[:0], 4).tolist() == []


def test_arrays_categories_and_numbers_are_limited():
    for series in (
        pl.Series(["a", "b", "a", "a"], dtype=pl.Categorical),
        pl.Series([1.5, 2.5, 1.5, 1.5]),
        pl.Series([[1], [2], [1], [1]], dtype=pl.Array(pl.Int64, 1)),
    ):
        chosen = Reranking([ValueLimit.of(series, 1)]).choose(np.arange(4), np.arange(4, 0, -1, dtype=np.float32), 4)
        assert chosen.tolist() == [0, 1]


def test_missing_values_and_nan_are_not_limited():
    for series in (pl.Series([None, None, None], dtype=pl.String), pl.Series([float("nan")] * 3)):
        chosen = Reranking([ValueLimit.of(series, 1)]).choose(np.arange(3), np.ones(3, dtype=np.float32), 3)
        assert chosen.tolist() == [0, 1, 2]


def test_the_pool():
    assert [pool_size(k) for k in (1, 10, 11, 50)] == [100, 100, 110, 500]


def test_arguments():
    table = pl.DataFrame({"item_id": [1, 2], "category": ["a", "b"]})
    assert require_max_per(None, ItemColumns(None)) == []
    (limit,) = require_max_per({"category": 2}, ItemColumns(table))
    assert (limit.limit, limit.of_item(1).tolist()) == (2, [1])
    for value, known, said in (
        ({"categry": 2}, table, "'category'"),
        ({"category": 0}, table, "at least 1"),
        ({"category": 2}, None, "no item table"),
        (["category"], table, "not a mapping"),
    ):
        with pytest.raises(ConfigError, match=said):
            require_max_per(value, ItemColumns(known))
    for value in (-0.1, 1.1, "much", float("nan")):
        with pytest.raises(ConfigError):
            require_diversity(value)
    assert require_diversity(1) == 1
