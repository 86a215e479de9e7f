"""Metrics of lists, each against a plain loop."""

from __future__ import annotations

import itertools
import math

import numpy as np
import polars as pl
import pytest
from scipy import sparse

from rediffuse.data.features import item_features
from rediffuse.data.histories import Histories
from rediffuse.evaluation import lists as lists_of

COUNTS = np.array([10, 4, 4, 0, 1, 7])
LISTS = np.array([[0, 1, 2], [3, 0, -1], [5, 4, 0], [-1, -1, -1]], dtype=np.int32)
GENRES = [{"a", "b"}, {"b"}, {"a", "b", "c"}, {"c"}, set(), {"a"}]


def names(row: np.ndarray) -> list[int]:
    return [int(item) for item in row if item >= 0]


def test_novelty_and_popularity():
    chance = (COUNTS + 1) / (COUNTS.sum() + len(COUNTS))
    assert chance.sum() == pytest.approx(1)
    novelty, popularity = lists_of.novelty(LISTS, COUNTS), lists_of.popularity(LISTS, COUNTS)
    for place, row in enumerate(LISTS[:3]):
        assert novelty[place] == pytest.approx(np.mean([-math.log2(chance[item]) for item in names(row)]))
        assert popularity[place] == pytest.approx(np.mean([COUNTS[item] for item in names(row)]))
    assert np.isnan([novelty[3], popularity[3]]).all()


def test_popularity_lift():
    histories = Histories.from_lists([[1, 2], [], [3], [0]])
    found = lists_of.popularity_lift(LISTS, COUNTS, histories)
    assert found[0] == pytest.approx((6 - 4) / 4)
    assert np.isnan(found[1:]).all()  # no history; a history never trained on; no list


def test_gini_is_the_mean_absolute_difference():
    counts = np.bincount(LISTS[LISTS >= 0], minlength=6)
    by_pairs = np.abs(counts[:, None] - counts).sum() / (2 * 6**2 * counts.mean())
    assert lists_of.gini(LISTS, 6) == pytest.approx(by_pairs)
    assert lists_of.gini(np.arange(6, dtype=np.int32)[:, None], 6) == pytest.approx(0)
    assert lists_of.gini(np.zeros((9, 1), dtype=np.int32), 6) == pytest.approx(5 / 6)
    assert lists_of.gini(np.full((2, 3), -1, dtype=np.int32), 6) == 0


@pytest.mark.parametrize("block", [1, 1_000_000])
def test_diversity_is_mean_jaccard_distance(block, monkeypatch):
    monkeypatch.setattr(lists_of, "_BLOCK_PAIRS", block)
    features = item_features(pl.DataFrame({"genres": [sorted(genres) for genres in GENRES]}))
    assert features is not None
    found = lists_of.diversity(LISTS, features)
    for place, row in enumerate(LISTS):
        known = [item for item in names(row) if GENRES[item]]
        distances = [
            1 - len(GENRES[i] & GENRES[j]) / len(GENRES[i] | GENRES[j]) for i, j in itertools.combinations(known, 2)
        ]
        assert found[place] == pytest.approx(np.mean(distances)) if distances else np.isnan(found[place])


def test_coverage():
    assert lists_of.coverage(LISTS, 6) == 1.0
    assert lists_of.coverage(LISTS[1:2], 6) == pytest.approx(2 / 6)


def test_features_from_text_and_lists():
    expected = sparse.csr_array(np.array([[1, 1], [0, 1], [0, 0], [0, 0]])).toarray()
    text = pl.DataFrame({"title": ["x"] * 4, "genres": ["Drama| Crime", "Crime", "", None]})
    listed = pl.DataFrame({"tags": [["Drama", "Crime"], ["Crime", "Crime"], [], None]})
    for table in (text, listed):
        found = item_features(table)
        assert found is not None
        found = found.toarray()
        assert found.sum(0).tolist() in ([2, 1], [1, 2])
        assert sorted(map(tuple, found.T)) == sorted(map(tuple, expected.T))
    assert item_features(pl.DataFrame({"title": ["x"]})) is None
    assert item_features(None) is None
