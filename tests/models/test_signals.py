"""PDRec's signals: the formula by hand, brute force, and draws of negatives."""

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


# --- historical behaviour reweighting --------------------------------------------------------------------------


def weigh(scores, rank_share, largest, scale):
    """Weights of one user's targets; an interaction that is not a target comes first."""
    scores = np.asarray([0.0, *scores], dtype=np.float32)
    found = behaviour_weights(scores, np.array([0, len(scores)]), rank_share, largest, scale)
    assert np.isnan(found[0])
    return found[1:]


# q is the score above the floor, up to a factor: half the lowest score, or 1.5 times a negative one. The weight is
# scale * min((1 - rank_share) * n q / sum q + rank_share * rank / n, largest), with rank 1 for the worst target.
BY_HAND = [
    # floor .05: q = .85 .35 .05, sum 1.25, n q / sum = 2.04 .84 .12; rank / n = 1 2/3 1/3
    ([0.9, 0.4, 0.1], (0.1, 3, 2), [2 * (1.836 + 0.1), 2 * (0.756 + 0.2 / 3), 2 * (0.108 + 0.1 / 3)]),
    ([0.9, 0.4, 0.1], (0.5, 3, 4), [4 * (1.02 + 0.5), 4 * (0.42 + 1 / 3), 4 * (0.06 + 0.5 / 3)]),
    ([0.9, 0.4, 0.1], (0.1, 1, 4), [4, 4 * (0.756 + 0.2 / 3), 4 * (0.108 + 0.1 / 3)]),  # bounded
    # floor -.03: q = .83 .33 .01 .53, sum 1.7, n = 4; rank / n = 1 1/2 1/4 3/4
    ([0.8, 0.3, -0.02, 0.5], (0.1, 3, 2), [3.715294, 1.497647, 0.092353, 2.394706]),
    # floor .15: q = .55 .45 .35 .25 .15 .55, sum 2.3, n = 6; of equal scores the later has the higher rank: 5 4 3 2 1 6
    (
        [0.7, 0.6, 0.5, 0.4, 0.3, 0.7],
        (0.1, 3, 2),
        [
            2 * (0.9 * 6 * q / 2.3 + 0.1 * rank / 6)
            for q, rank in zip([0.55, 0.45, 0.35, 0.25, 0.15, 0.55], [5, 4, 3, 2, 1, 6], strict=True)
        ],
    ),
    ([0.3, 0.3, 0.3], (0.0, 3, 1), [1, 1, 1]),
]


# Of the released program, in windows of six; the lowest score may be that of the padding.
AS_RELEASED = [
    # padding .02: q = .89 .39 .09, sum 1.37
    (0.02, [0.9, 0.4, 0.1], (0.1, 3, 2), [3.708029, 1.670560, 0.421411]),
    (0.02, [0.9, 0.4, 0.1], (0.5, 3, 4), [5.897810, 3.041363, 1.060827]),
    (-0.01, [0.8, 0.3, -0.02, 0.5], (0.1, 3, 2), [3.715294, 1.497647, 0.092353, 2.394706]),
    # no padding: the floor is the lowest score, .3
    (-9, [0.7, 0.6, 0.5, 0.4, 0.3, 0.7], (0.1, 3, 2), [3.252381, 2.447619, 1.642857, 0.838095, 0.033333, 3.285714]),
    # the same after an older target
    (-9, [9, 0.7, 0.6, 0.5, 0.4, 0.3, 0.7], (0.1, 3, 2), [3.252381, 2.447619, 1.642857, 0.838095, 0.033333, 3.285714]),
]


@pytest.mark.parametrize(("padding", "scores", "options", "expected"), AS_RELEASED)
def test_released_weights_are_those_that_the_program_computes(padding, scores, options, expected):
    own = np.asarray([0.0, *scores], dtype=np.float32)
    offsets, below = np.array([0, len(own)]), np.array([padding], dtype=np.float32)
    found = behaviour_weights(own, offsets, *options, window=6, padding=below)
    assert np.isnan(found[: len(own) - len(expected)]).all()
    assert found[-len(expected) :] == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(("scores", "options", "expected"), BY_HAND)
def test_weights_by_hand(scores, options, expected):
    assert weigh(scores, *options) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("score", [0.7, 0.0, -3.0])
@pytest.mark.parametrize(("rank_share", "largest", "scale"), [(0.3, 3.0, 4.0), (0.0, 0.5, 2.0), (1.0, 1.0, 1.0)])
def test_an_only_target_has_the_scale(score, rank_share, largest, scale):
    assert weigh([score], rank_share, largest, scale) == pytest.approx([min(1.0, largest) * scale])


def test_unbounded_weights_average_one_by_score_and_have_a_fixed_sum_by_rank():
    """For each user, whatever the others have: the a of the formula average 1, and the ranks 1..n over n sum to
    (n + 1) / 2."""
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
            assert by_rank[row].sum() == pytest.approx(n / 2, abs=1e-4)  # of n - 1 targets
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


def in_order(items: int = 20) -> np.ndarray:
    """The ranking of scores that decrease with the item's number."""
    return rank_items(np.arange(items, 0, -1, dtype=np.float32)[None])


def mask(items: int, *seen: int) -> np.ndarray:
    found = np.zeros((1, items), dtype=bool)
    found[0, list(seen)] = True
    return found


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        # From 50 to 90 % of 20 items: 8 places from place 10 on; seen items are skipped.
        ([0], [10, 11, 12, 13, 14, 15, 16, 17]),
        ([0, 12, 19], [10, 11, 13, 14, 15, 16, 17, 18]),
        (range(10, 19), [19]),  # the ranking ends
        (range(20), []),
    ],
)
def test_the_band_of_safe_negatives(seen, expected):
    assert np.flatnonzero(safe_band(in_order(), mask(20, *seen), 50, 90)[0]).tolist() == expected


def test_liked_items_are_the_best_unseen_ones():
    assert soft_positives(in_order(), mask(20, 0, 2), 3).tolist() == [[1, 3, 4]]
    assert soft_positives(in_order(), None, 3).tolist() == [[0, 1, 2]]
    nearly_all = mask(4, 0, 1, 3)
    assert soft_positives(in_order(4), nearly_all, 3).tolist() == [[2, -1, -1]]


# --- all of it --------------------------------------------------------------------------------------------------


def some_rows(users: int = 25) -> Histories:
    rng = np.random.default_rng(3)
    return Histories.from_lists([rng.integers(ITEMS, size=rng.integers(0, 9)).tolist() for _ in range(users)])


def score(rows: Histories) -> torch.Tensor:
    """A deterministic scorer of a row alone, with ties."""
    table = torch.from_numpy(np.random.default_rng(0).normal(size=(ITEMS, ITEMS)).round(1))
    return torch.stack([table[row.astype(np.int64)].mean(0) for row in map(rows.row, range(len(rows)))]).float()


def by_hand(rows: Histories, low: float, high: float, candidates: int):
    """One user at a time, with sorts and sets."""
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
        first, width = math.floor(ITEMS * low / 100), math.ceil(ITEMS * high / 100) - math.floor(ITEMS * low / 100)
        bands.append(set([i for i in order[first:] if i not in history][:width]))
        own += [scores[i] for i in history]
    return positives, bands, np.asarray(own, dtype=np.float32)


def unpack(signals: Signals, user: int) -> set[int]:
    return set(np.flatnonzero(np.unpackbits(signals.bands[user], count=ITEMS, bitorder="little")).tolist())


@pytest.mark.parametrize("block", [8_000_000, 1, 5 * ITEMS])
def test_signals_beside_brute_force(monkeypatch, block):
    monkeypatch.setattr("rediffuse.models.signals.BLOCK_SCORES", block)
    rows = some_rows()
    found = derive_signals(score, rows, ITEMS, band=(40, 85), candidates=6)
    positives, bands, own = by_hand(rows, 40, 85, 6)
    for user in range(len(rows)):
        assert [i for i in found.positives[user].tolist() if i >= 0] == positives[user]
        assert unpack(found, user) == bands[user]
        assert not set(found.positives[user]) & set(rows.row(user).tolist())
    expected = behaviour_weights(own, rows.offsets, 0.3, 3.0, 4.0)
    np.testing.assert_allclose(found.weights, expected, rtol=1e-5)


def test_negatives_are_drawn_uniformly_from_the_band():
    rows = some_rows()
    signals = derive_signals(score, rows, ITEMS, band=(40, 85))
    user = int(np.flatnonzero(rows.lengths)[0])
    band = sorted(unpack(signals, user))
    drawn = signals.draw(np.full(4000, user), ITEMS, np.random.default_rng(0))
    counts = np.bincount(drawn, minlength=ITEMS)
    assert set(np.flatnonzero(counts)) == set(band)
    expected = 4000 / len(band)
    assert (abs(counts[band] - expected) < 4.5 * np.sqrt(expected)).all()


def test_a_narrow_band_is_found_and_an_empty_one_gives_no_negatives():
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
