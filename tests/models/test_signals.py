"""PDRec's signals: vectors of the specification, brute force, and what they must not look at."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
import torch

from rediffuse.data.histories import Histories
from rediffuse.models.signals import (
    Signals,
    behaviour_weights,
    derive_signals,
    rank_items,
    safe_band,
    soft_positives,
)

ITEMS = 37


# --- historical behaviour reweighting: B10, d rows indexed by item id, id 0 is the padding ---------------------

D1, D2, D3 = (
    [0.02, 0.9, 0.4, 0.1, 0.6, 0.05],
    [-0.01, 0.8, 0.3, -0.02, 0.5, 0.2],
    [0, 0.7, 0.6, 0.5, 0.4, 0.3],
)
PADDED = [
    (D1, [1, 2, 3], (0.1, 3, 2), [3.708029, 1.670560, 0.421411]),
    (D1, [1, 2, 3], (0.1, 1, 4), [4, 3.341119, 0.842822]),
    (D1, [1, 2, 3], (0.5, 3, 4), [5.897810, 3.041363, 1.060827]),
    (D2, [1, 2, 3, 4], (0.1, 3, 2), [3.715294, 1.497647, 0.092353, 2.394706]),
]


def weigh(scores, rank_share, largest, scale, **options):
    """Weights of one person's targets; an event without a target comes first."""
    events = np.asarray([0.0, *scores], dtype=np.float32)
    found = behaviour_weights(events, np.array([0, len(events)]), rank_share, largest, scale, **options)
    assert np.isnan(found[0])
    return found[1:]


@pytest.mark.parametrize(("d", "targets", "options", "expected"), PADDED)
def test_weights_with_padding(d, targets, options, expected):
    assert weigh([d[i] for i in targets], *options, pad_score=d[0]) == pytest.approx(expected, abs=2e-6)


def test_weights_of_a_full_window():
    expected = [3.252381, 2.447619, 1.642857, 0.838095, 0.033333, 3.285714]
    found = weigh([D3[i] for i in (1, 2, 3, 4, 5, 1)], 0.1, 3, 2, floored=False)
    assert found == pytest.approx(expected, abs=2e-6)


def test_without_padding_the_floor_is_the_persons_own():
    p = np.array([0.9, 0.4, 0.1])
    q = (p - 0.05) / 0.85
    expected = 2 * (0.9 * 3 * q / q.sum() + 0.1 * np.array([3, 2, 1]) / 3)
    assert weigh(p, 0.1, 3, 2) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("score", [0.7, 0.0, -3.0])
@pytest.mark.parametrize(("rank_share", "largest", "scale"), [(0.3, 3.0, 4.0), (0.0, 0.5, 2.0), (1.0, 1.0, 1.0)])
def test_an_only_target_has_the_scale(score, rank_share, largest, scale):
    assert weigh([score], rank_share, largest, scale) == pytest.approx([min(1.0, largest) * scale])


def test_equal_scores_weigh_the_same_without_ranks():
    assert weigh([0.3, 0.3, 0.3], 0.0, 3, 1) == pytest.approx([1, 1, 1])
    assert weigh([0.3, 0.3, 0.3], 0.0, 3, 1, floored=False) == pytest.approx([1, 1, 1])


def test_before_the_bound_weights_average_as_the_specification_says():
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 9, 50)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    scores = rng.normal(size=offsets[-1]).astype(np.float32)
    by_score = behaviour_weights(scores, offsets, 0.0, 1e9, 1.0)
    by_rank = behaviour_weights(scores, offsets, 1.0, 1e9, 1.0)
    for user, n in enumerate(lengths):
        row = slice(offsets[user] + 1, offsets[user + 1])
        if n > 1:
            assert by_score[row].mean() == pytest.approx(1, abs=1e-5)
            assert by_rank[row].sum() == pytest.approx(n / 2, abs=1e-4)  # (targets + 1) / 2
            # People do not touch each other's weights.
            assert by_score[row] == pytest.approx(weigh(scores[row], 0.0, 1e9, 1.0), abs=1e-6)
    assert np.isnan(by_score[offsets[:-1][lengths > 0]]).all()
    assert len(behaviour_weights(np.empty(0, dtype=np.float32), np.array([0, 0]), 0.1, 3, 2)) == 0


# --- the ranking and what is taken from it ---------------------------------------------------------------------


def test_ranking_is_a_stable_sort():
    rng = np.random.default_rng(0)
    scores = rng.integers(-3, 4, size=(20, 50)).astype(np.float32)  # many ties, and zeros of both signs
    scores[0, :5] = [0.0, -0.0, 0.0, -0.0, 0.0]
    scores[1] = [math.inf, -math.inf, *rng.normal(scale=1e-30, size=48)]
    scores[2] = rng.normal(size=50)
    assert (rank_items(scores) == np.argsort(-scores, axis=1, kind="stable")).all()


def falling(items: int = 20) -> np.ndarray:
    """Scores strictly decreasing in the id; ids count from 1 in the specification, from 0 here."""
    return rank_items(np.arange(items, 0, -1, dtype=np.float32)[None])


def mask(items: int, *ids: int) -> np.ndarray:
    found = np.zeros((1, items), dtype=bool)
    found[0, [i - 1 for i in ids]] = True
    return found


def test_the_band_of_the_specification():
    band = safe_band(falling(), mask(20, 1, 13, 20), 50, 90)
    assert (np.flatnonzero(band[0]) + 1).tolist() == [11, 12, 14, 15, 16, 17, 18, 19]


def test_without_validation_and_test_items_the_band_moves():
    band = safe_band(falling(), mask(20, 1), 50, 90)
    assert (np.flatnonzero(band[0]) + 1).tolist() == [11, 12, 13, 14, 15, 16, 17, 18]


def test_a_band_ends_where_the_ranking_ends():
    everything_low = mask(20, *range(11, 20))
    assert (np.flatnonzero(safe_band(falling(), everything_low, 50, 90)[0]) + 1).tolist() == [20]
    assert not safe_band(falling(), mask(20, *range(1, 21)), 50, 90).any()


def test_liked_items_are_the_best_that_are_not_known():
    assert soft_positives(falling(), mask(20, 1, 3), 3).tolist() == [[1, 3, 4]]
    assert soft_positives(falling(), None, 3).tolist() == [[0, 1, 2]]
    nearly_all = mask(4, 1, 2, 4)
    assert soft_positives(falling(4), nearly_all, 3).tolist() == [[2, -1, -1]]


# --- all of it --------------------------------------------------------------------------------------------------


def some_rows(users: int = 25) -> Histories:
    rng = np.random.default_rng(3)
    return Histories.from_lists([rng.integers(ITEMS, size=rng.integers(0, 9)).tolist() for _ in range(users)])


def score(rows: Histories) -> torch.Tensor:
    """A deterministic scorer of a row alone, with ties."""
    table = torch.from_numpy(np.random.default_rng(0).normal(size=(ITEMS, ITEMS)).round(1))
    return torch.stack([table[row.astype(np.int64)].mean(0) for row in map(rows.row, range(len(rows)))]).float()


def by_hand(rows: Histories, low: float, high: float, candidates: int, hidden: Histories | None):
    """One person at a time, with sorts and sets."""
    positives, bands, own = [], [], []
    for user in range(len(rows)):
        history = rows.row(user).tolist()
        if not history:
            positives.append([])
            bands.append(set())
            continue
        scores = score(rows.take(np.array([user])))[0].numpy()
        order = sorted(range(ITEMS), key=lambda i: (-scores[i], i))
        positives.append([i for i in order if i not in history][:candidates])
        excluded = set(history) | set(hidden.row(user).tolist() if hidden else [])
        first, width = math.floor(ITEMS * low / 100), math.ceil(ITEMS * high / 100) - math.floor(ITEMS * low / 100)
        bands.append(set([i for i in order[first:] if i not in excluded][:width]))
        own += [scores[i] for i in history]
    return positives, bands, np.asarray(own, dtype=np.float32)


def unpack(signals: Signals, user: int) -> set[int]:
    return set(np.flatnonzero(np.unpackbits(signals.bands[user], count=ITEMS, bitorder="little")).tolist())


@pytest.mark.parametrize("block", [8_000_000, 1, 5 * ITEMS])
@pytest.mark.parametrize("hide", [False, True])
def test_signals_beside_brute_force(monkeypatch, block, hide):
    monkeypatch.setattr("rediffuse.models.signals.BLOCK_SCORES", block)
    rows = some_rows()
    hidden = Histories.from_lists([[user % ITEMS] for user in range(len(rows))]) if hide else None
    found = derive_signals(score, rows, ITEMS, band=(40, 85), candidates=6, hidden=hidden)
    positives, bands, own = by_hand(rows, 40, 85, 6, hidden)
    for user in range(len(rows)):
        assert [i for i in found.positives[user].tolist() if i >= 0] == positives[user]
        assert unpack(found, user) == bands[user]
        assert not set(found.positives[user]) & set(rows.row(user).tolist())
    expected = behaviour_weights(own, rows.offsets, 0.3, 3.0, 4.0)
    np.testing.assert_allclose(found.weights, expected, rtol=1e-5)


def test_negatives_are_drawn_evenly_from_the_band():
    rows = some_rows()
    signals = derive_signals(score, rows, ITEMS, band=(40, 85))
    user = int(np.flatnonzero(rows.lengths)[0])
    band = sorted(unpack(signals, user))
    drawn = signals.draw(np.full(4000, user), ITEMS, np.random.default_rng(0))
    counts = np.bincount(drawn, minlength=ITEMS)
    assert set(np.flatnonzero(counts)) == set(band)
    expected = 4000 / len(band)
    assert (abs(counts[band] - expected) < 4.5 * np.sqrt(expected)).all()


def test_a_narrow_band_is_found_and_an_empty_one_is_said():
    wide = 20_000
    bands = np.zeros((3, wide // 8), dtype=np.uint8)
    bands[1, 100] = 0b0010_0000
    signals = Signals(np.empty(0, np.float32), np.empty((3, 0), np.int32), bands)
    drawn = signals.draw(np.array([0, 1, 1, 2]), wide, np.random.default_rng(0))
    assert drawn.tolist() == [-1, 805, 805, -1]


def test_as_a_table():
    rows = Histories.from_lists([[1, 2, 1], [], [3]])
    signals = derive_signals(score, rows, ITEMS, candidates=2)
    ids = pl.Series([f"i{i}" for i in range(ITEMS)])
    table = signals.to_frame(rows, pl.Series(["a", "b", "c"]), ids)
    assert table["user_id"].to_list() == ["a", "b", "c"]
    assert table["items"].to_list() == [["i1", "i2", "i1"], [], ["i3"]]
    assert table["weights"].to_list()[0][0] is None
    assert table["weights"].to_list()[0][1:] == pytest.approx(signals.weights[1:3].tolist())
    assert table["positives"].to_list()[0] == [f"i{i}" for i in signals.positives[0]]
    assert table["positives"].to_list()[1] == []
    assert table["safe_negatives"].to_list()[2] == signals.bands[2].tobytes()
