"""List metrics, each against a plain loop."""

from __future__ import annotations

import itertools
import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from rediffuse.data.features import item_features
from rediffuse.data.histories import Histories
from rediffuse.evaluation import beyond_accuracy

COUNTS = np.array([10, 4, 4, 0, 1, 7])
LISTS = np.array([[0, 1, 2], [3, 0, -1], [5, 4, 0], [-1, -1, -1]], dtype=np.int32)
GENRES = [{"a", "b"}, {"b"}, {"a", "b", "c"}, {"c"}, set(), {"a"}]


def names(row: np.ndarray) -> list[int]:
    return [int(item) for item in row if item >= 0]


def test_novelty_and_popularity():
    chance = (COUNTS + 1) / (COUNTS.sum() + len(COUNTS))
    assert chance.sum() == pytest.approx(1)
    novelty, popularity = beyond_accuracy.novelty(LISTS, COUNTS), beyond_accuracy.popularity(LISTS, COUNTS)
    for place, row in enumerate(LISTS[:3]):
        assert novelty[place] == pytest.approx(np.mean([-math.log2(chance[item]) for item in names(row)]))
        assert popularity[place] == pytest.approx(np.mean([COUNTS[item] for item in names(row)]))
    assert np.isnan([novelty[3], popularity[3]]).all()


def test_popularity_lift():
    histories = Histories.from_lists([[1, 2], [], [3], [0]])
    found = beyond_accuracy.popularity_lift(LISTS, COUNTS, histories)
    assert found[0] == pytest.approx((6 - 4) / 4)
    assert np.isnan(found[1:]).all()  # no history; a history never trained on; no list


def test_gini_is_the_mean_absolute_difference():
    counts = np.bincount(LISTS[LISTS >= 0], minlength=6)
    by_pairs = np.abs(counts[:, None] - counts).sum() / (2 * 6**2 * counts.mean())
    assert beyond_accuracy.gini(LISTS, 6) == pytest.approx(by_pairs)
    assert beyond_accuracy.gini(np.arange(6, dtype=np.int32)[:, None], 6) == pytest.approx(0)
    assert beyond_accuracy.gini(np.zeros((9, 1), dtype=np.int32), 6) == pytest.approx(5 / 6)
    assert beyond_accuracy.gini(np.full((2, 3), -1, dtype=np.int32), 6) == 0


def jaccard_distance(items: list[int], sets: list[set[str]]) -> float:
    """The mean over pairs, in plain loops."""
    pairs = itertools.combinations([item for item in items if sets[item]], 2)
    distances = [1 - len(sets[i] & sets[j]) / len(sets[i] | sets[j]) for i, j in pairs]
    return float(np.mean(distances)) if distances else math.nan


@pytest.mark.parametrize("block", [1, 1_000_000])
def test_diversity_is_mean_jaccard_distance(block, monkeypatch):
    monkeypatch.setattr(beyond_accuracy, "_BLOCK_PAIRS", block)
    features = item_features(pl.DataFrame({"genres": [sorted(genres) for genres in GENRES]}))
    assert features is not None
    expected = [jaccard_distance(names(row), GENRES) for row in LISTS]
    assert np.isnan(expected).tolist() == [False, False, False, True]
    assert beyond_accuracy.diversity(LISTS, features) == pytest.approx(expected, nan_ok=True)


def shares(items, sets):
    """Each item with features divides one vote among them."""
    found = dict.fromkeys("abc", 0.0)
    known = [item for item in items if sets[item]]
    for item in known:
        for name in sets[item]:
            found[name] += 1 / len(sets[item]) / len(known)
    return found if known else None


def divergence(items, history, sets):
    """Steck's divergence, as in equation (6) of the paper, in plain loops."""
    p, q = shares(history, sets), shares(items, sets)
    if p is None or q is None:
        return math.nan
    return sum(p[g] * math.log(p[g] / (0.99 * q[g] + 0.01 * p[g])) for g in p if p[g])


def test_calibration_is_the_divergence_of_the_shares():
    features = item_features(pl.DataFrame({"genres": [sorted(genres) for genres in GENRES]}))
    assert features is not None
    lists = np.array([[0, 2], [1, 4], [3, -1], [4, -1], [0, 1], [-1, -1]], dtype=np.int32)
    histories = [[0, 2], [1], [1, 1], [1], [4], [0]]
    found = beyond_accuracy.calibration(lists, features, Histories.from_lists(histories))
    # The same shares; the same; nothing in common; no feature in the list; none in the history; an empty list.
    assert found[:3] == pytest.approx([0, 0, math.log(100)])
    assert np.isnan(found[3:]).all()
    before = features.toarray()
    swapped = np.array([[0, 1]], dtype=np.int32)
    found = beyond_accuracy.calibration(swapped, features, Histories.from_lists([[2, 0, 0]]))
    assert found == pytest.approx([divergence([0, 1], [2, 0, 0], GENRES)])
    assert (features.toarray() == before).all()


@st.composite
def catalogues(draw):
    """Lists of different items, ragged, with training counts, histories and feature sets."""
    num_items = draw(st.integers(1, 7))
    item = st.integers(0, num_items - 1)
    k = draw(st.integers(1, 9))
    rows = draw(st.lists(st.lists(item, max_size=k, unique=True), min_size=1, max_size=5))
    lists = np.full((len(rows), k), -1, dtype=np.int32)
    for place, row in enumerate(rows):
        lists[place, : len(row)] = row
    counts = draw(st.lists(st.integers(0, 5), min_size=num_items, max_size=num_items))
    histories = [draw(st.lists(item, max_size=4)) for _ in rows]
    sets = [draw(st.sets(st.sampled_from("abc"))) for _ in range(num_items)]
    return lists, np.array(counts), histories, sets


@settings(max_examples=60, deadline=None)
@given(catalogues())
def test_any_lists_against_plain_loops(case):
    lists, counts, histories, sets = case
    listed = [names(row) for row in lists]
    num_items = len(counts)
    features = sparse.csr_array(np.array([[name in features for name in "abc"] for features in sets], dtype=np.float32))

    def mean(values):
        return sum(values) / len(values) if values else math.nan

    bits = [mean([-math.log2((counts[i] + 1) / (sum(counts) + num_items)) for i in row]) for row in listed]
    assert beyond_accuracy.novelty(lists, counts) == pytest.approx(bits, nan_ok=True)
    lifts = []
    for row, history in zip(listed, histories, strict=True):
        own = mean([counts[i] for i in history])
        lifts.append((mean([counts[i] for i in row]) - own) / own if history and own else math.nan)
    found = beyond_accuracy.popularity_lift(lists, counts, Histories.from_lists(histories))
    assert found == pytest.approx(lifts, nan_ok=True)
    assert beyond_accuracy.diversity(lists, features) == pytest.approx(
        [jaccard_distance(row, sets) for row in listed], nan_ok=True
    )
    assert beyond_accuracy.calibration(lists, features, Histories.from_lists(histories)) == pytest.approx(
        [divergence(row, history, sets) for row, history in zip(listed, histories, strict=True)], nan_ok=True
    )
    times = [sum(i in row for row in listed) for i in range(num_items)]
    assert beyond_accuracy.coverage(lists, num_items) == sum(map(bool, times)) / num_items
    gaps = sum(abs(a - b) for a in times for b in times)
    assert beyond_accuracy.gini(lists, num_items) == pytest.approx(
        gaps / (2 * num_items * sum(times)) if any(times) else 0
    )


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
