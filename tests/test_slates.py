"""Rules for whole lists against brute force: determinants, divergences and similarities in plain loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import polars as pl
import pytest

from rediffuse.data.histories import Histories
from rediffuse.errors import ConfigError
from rediffuse.reranking import (
    Calibration,
    Determinant,
    ItemColumns,
    ItemSets,
    MarginalRelevance,
    Reranking,
    RerankingOptions,
    SetSimilarity,
    ValueLimit,
    VectorSimilarity,
    reranking_of,
    uncalibrated_remark,
)

ITEMS, POOL, K = 24, 14, 7
WEIGHTS = (0.05, 0.3, 0.7, 1.0)


class Case:
    """A catalogue with sets of genres and vectors, a pool of distinct scores, and a history."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.genres = [sorted(rng.choice(list("abcde"), rng.integers(0, 4), replace=False)) for _ in range(ITEMS)]
        self.sets = ItemSets.of(pl.Series(["|".join(one) if one else None for one in self.genres]))
        vectors = rng.standard_normal((ITEMS, 3))
        self.directions = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        self.items = rng.permutation(ITEMS)[:POOL]
        self.scores = np.sort(rng.random(POOL))[::-1].astype(np.float32)
        self.history = rng.integers(0, ITEMS, 6)
        spread = self.scores.astype(np.float64)
        self.relevance = (spread - spread.min()) / (spread.max() - spread.min())

    def cosine(self, one, other):
        """Of the sets of two items."""
        a, b = set(self.genres[one]), set(self.genres[other])
        if not a or not b:
            return float(not a and not b)
        return len(a & b) / math.sqrt(len(a) * len(b))

    def shares(self, items):
        """Genre -> its share of the votes."""
        known = [item for item in items if self.genres[item]]
        return {
            genre: sum((genre in self.genres[i]) / len(self.genres[i]) for i in known) / max(len(known), 1)
            for genre in "abcde"
        }

    def divergence(self, items):
        """KL of a list from the history; before a list has a genre, q is zero."""
        p, q = self.shares(self.history), self.shares(items)
        return sum(p[g] * math.log(p[g] / (0.99 * q[g] + 0.01 * p[g])) for g in p if p[g])

    def greedy(self, value):
        """The positions that maximise ``value(positions)`` one by one, rebuilding each list from nothing."""
        chosen = []
        for _ in range(K):
            left = [place for place in range(POOL) if place not in chosen]
            values = [value([*chosen, place]) for place in left]
            chosen.append(left[next(n for n, found in enumerate(values) if found >= max(values) - 1e-9)])
        return chosen


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("by", ["vectors", "genres"])
@pytest.mark.parametrize("seed", range(8))
def test_dpp_is_greedy_in_the_determinant_of_its_kernel(seed, by, weight):
    case = Case(seed)
    vectors = case.directions.astype(np.float64)
    similarity = np.array(
        [
            [(1 + vectors[i] @ vectors[j]) / 2 if by == "vectors" else case.cosine(i, j) for j in case.items]
            for i in case.items
        ]
    )
    similarity = 0.9 * similarity
    np.fill_diagonal(similarity, 1)
    quality = np.exp((1 - weight) / (2 * weight) * case.relevance)
    kernel = quality[:, None] * similarity * quality

    def log_determinant(places):
        sign, value = np.linalg.slogdet(kernel[np.ix_(places, places)])
        assert sign == 1
        return value

    rule = Determinant(VectorSimilarity(case.directions) if by == "vectors" else SetSimilarity(case.sets))
    found = Reranking((), rule, weight).choose(case.items, case.scores, K)
    assert found.tolist() == case.greedy(log_determinant)


def test_dpp_finds_a_likely_list_among_all():
    """Over several pools, greedy lists gain most of what the best of all lists gain over plain ones, in logarithms."""
    gained = possible = 0.0
    for seed in range(5):
        case = Case(seed)
        rule = Determinant(SetSimilarity(case.sets))
        similarity = 0.9 * np.array([[case.cosine(i, j) for j in case.items] for i in case.items])
        np.fill_diagonal(similarity, 1)

        def value(places, similarity=similarity, case=case):
            return 0.5 * case.relevance[places].sum() + 0.5 * np.linalg.slogdet(similarity[np.ix_(places, places)])[1]

        every = max(value(list(places)) for places in itertools.combinations(range(POOL), 4))
        found = value(Reranking((), rule, 0.5).choose(case.items, case.scores, 4).tolist())
        plain = value(list(range(4)))
        assert found <= every + 1e-9
        gained, possible = gained + found - plain, possible + every - plain
    assert gained > 0.8 * possible > 0


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("seed", range(12))
def test_calibrated_lists_are_greedy_in_relevance_and_divergence(seed, weight):
    case = Case(seed)

    def value(places):
        relevance = case.relevance[places].sum()
        return (1 - weight) * relevance - weight * case.divergence(case.items[places])

    found = Reranking((), Calibration(case.sets), weight).choose(case.items, case.scores, K, case.history)
    assert found.tolist() == case.greedy(value)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("seed", range(8))
def test_mmr_by_a_column_is_that_of_the_cosines_of_its_sets(seed, weight):
    case = Case(seed)
    chosen = []
    while len(chosen) < K:
        near = [max((case.cosine(i, case.items[j]) for j in chosen), default=0) for i in case.items]
        gains = (1 - weight) * case.relevance - weight * np.array(near)
        gains[chosen] = -np.inf
        chosen.append(int(np.flatnonzero(gains >= gains.max() - 1e-9)[0]))
    found = Reranking((), MarginalRelevance(SetSimilarity(case.sets)), weight).choose(case.items, case.scores, K)
    assert found.tolist() == chosen


def test_a_history_without_values_leaves_the_list_plain():
    sets = ItemSets.of(pl.Series([["a"], ["a"], ["b"], None], dtype=pl.List(pl.String)))
    rule = Reranking((), Calibration(sets), 0.9)
    scores = np.arange(4, 0, -1, dtype=np.float32)
    for history in ([], [3], [3, 3]):
        assert rule.choose(np.arange(4), scores, 3, np.asarray(history, dtype=np.int64)).tolist() == [0, 1, 2]
    assert rule.choose(np.arange(4), scores, 2, np.asarray([2])).tolist() == [2, 3]  # item 3 does not change the shares
    histories = Histories.from_lists([[], [3], [0, 3], [2], []])
    assert rule.uncalibrated(histories) == 3
    assert Reranking((), MarginalRelevance(SetSimilarity(sets)), 0.9).uncalibrated(histories) == 0
    assert uncalibrated_remark(3, 5).startswith("3 of 5 histories")


def test_equal_items_are_in_the_order_of_the_pool_and_limits_hold():
    """One category, or none: every rule has only ties, so the lists are those by relevance and number."""
    items, scores = np.array([5, 2, 4, 0]), np.array([1, 1, 0.5, 0.5], dtype=np.float32)
    for column in (["x"] * 6, [None] * 5 + ["x"]):
        sets = ItemSets.of(pl.Series(column, dtype=pl.String))
        for rule in (MarginalRelevance(SetSimilarity(sets)), Determinant(SetSimilarity(sets)), Calibration(sets)):
            chosen = items[Reranking((), rule, 0.2).choose(items, scores, 4, np.array([5]))]
            assert chosen.tolist() == [5, 2, 4, 0]
    limit = ValueLimit.of(pl.Series(["a", "a", "a", "b", "b", "b"]), 1)
    for rule in (MarginalRelevance(SetSimilarity(sets)), Determinant(SetSimilarity(sets)), Calibration(sets)):
        assert items[Reranking([limit], rule, 0.2).choose(items, scores, 4, np.array([5]))].tolist() == [5, 2]
        assert Reranking((), rule, 0.5).choose(items[:0], scores[:0], 3, np.array([5])).tolist() == []


def test_dpp_lists_may_be_longer_than_the_similarities_have_dimensions():
    sets = ItemSets.of(pl.Series(["a", "b"] * 30))
    scores = np.linspace(1, 0, 60).astype(np.float32)
    found = Reranking((), Determinant(SetSimilarity(sets)), 0.5).choose(np.arange(60), scores, 60)
    assert sorted(found.tolist()) == list(range(60))
    assert (found[:20] % 2).sum() == 10  # as many of each
    directions = np.ones((60, 1), dtype=np.float32)
    found = Reranking((), Determinant(VectorSimilarity(directions)), 0.9).choose(np.arange(60), scores, 60)
    assert found.tolist() == list(range(60))  # all alike: by relevance


def test_sets_of_columns():
    for column in (
        pl.Series(["a|b", "b; c", None, ""]),
        pl.Series([["a", "b"], ["b", "c"], None, []], dtype=pl.List(pl.String)),
        pl.Series([[1, 2, 1], [2, 3], None, []], dtype=pl.List(pl.Int64)),
    ):
        sets = ItemSets.of(column)
        assert (sets.sizes.tolist(), sets.num_values) == ([2, 2, 0, 0], 3)
        assert sets.shares(np.array([0, 0, 1, 2])).tolist() == pytest.approx([1 / 3, 1 / 2, 1 / 6])
        assert sets.shares(np.array([2, 3])).tolist() == [0, 0, 0]


TABLE = pl.DataFrame({"item_id": [1, 2], "category": ["a", "b"], "empty": pl.Series([None, None], dtype=pl.String)})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"slate": "dp", "diversity": 0.5}, "There is no slate 'dp'"),
        ({"slate": 3, "diversity": 0.5}, "slate"),
        ({"slate": "dpp"}, "slate is 'dpp', which has no effect without diversity"),
        ({"diversity_by": "category"}, "diversity_by is 'category', which has no effect without diversity"),
        ({"slate": "calibrated", "diversity": 0.5}, "need diversity_by.*category, empty"),
        ({"diversity": 0.5, "diversity_by": "categry"}, "no column 'categry'.*category"),
        ({"diversity": 0, "diversity_by": "categry"}, "no column 'categry'"),
        ({"diversity": 0.5, "diversity_by": "empty"}, "No item has a value in column 'empty'"),
        ({"diversity": 1.5, "slate": "dpp"}, "diversity is 1.5"),
    ],
)
def test_wrong_options_are_refused(options, said):
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        reranking_of(RerankingOptions(**options), ItemColumns(TABLE), lambda: np.ones((2, 1), dtype=np.float32))


def test_options_and_the_rules_they_make():
    columns = ItemColumns(TABLE)

    def made(**options):
        return reranking_of(RerankingOptions(**options), columns, lambda: np.ones((2, 1), dtype=np.float32))

    assert made() is None
    for weight in (0, 0.0):
        assert made(diversity=weight) is made(diversity=weight, slate="dpp") is None
    kinds = {
        None: (MarginalRelevance, VectorSimilarity),
        "mmr": (MarginalRelevance, VectorSimilarity),
        "dpp": (Determinant, VectorSimilarity),
    }
    for slate, (rule, similarity) in kinds.items():
        plain, by_column = made(diversity=0.3, slate=slate), made(diversity=0.3, slate=slate, diversity_by="category")
        assert (type(plain.slate), type(plain.slate.similarity), plain.weight) == (rule, similarity, 0.3)
        assert (type(by_column.slate), type(by_column.slate.similarity)) == (rule, SetSimilarity)
    calibrated = made(diversity=1, slate="calibrated", diversity_by="category", max_per={"category": 1})
    assert isinstance(calibrated.slate, Calibration)
    assert [limit.limit for limit in calibrated.limits] == [1]
    with pytest.raises(ConfigError, match="no item table, so diversity_by"):
        reranking_of(RerankingOptions(diversity=0.5, diversity_by="x"), ItemColumns(None), lambda: np.ones((1, 1)))
