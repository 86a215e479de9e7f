"""What PDRec takes from a diffusion model for the training of another one (Ma et al., AAAI 2024, arXiv 2401.02913).

Three signals, each a pure function of the scores of all items for a person: weights of the events (historical behaviour
reweighting), items to be taken as liked (diffusion-based positive augmentation) and items that surely are not
(noise-free negative sampling). `derive_signals` goes through people in blocks; it never holds users x items numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch import Tensor

from rediffuse.data.histories import Histories

# Scores that a block of people may have.
BLOCK_SCORES = 8_000_000
# Draws from the whole catalogue before a negative is picked from the band directly.
TRIES = 40


@dataclass(frozen=True, eq=False)
class Signals:
    """Attributes:
    weights: (events,) float32 loss weights, aligned with the histories; NaN at each person's first event, which is
        nobody's target.
    positives: (users, n) int32 items taken as liked, best first; -1 where there are fewer.
    bands: (users, ceil(num_items / 8)) uint8, a bit for each item that is a safe negative, lowest bit first.
    """

    weights: NDArray[np.float32]
    positives: NDArray[np.int32]
    bands: NDArray[np.uint8]

    def in_band(self, users: NDArray[np.int64], items: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(n,) whether each item is a safe negative of the person."""
        return (self.bands[users, items >> 3] >> (items & 7).astype(np.uint8)) & 1 == 1

    def draw(self, users: NDArray[np.int64], num_items: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """(n,) a safe negative for each of ``users`` (n,), drawn evenly; -1 for people who have none."""
        drawn = rng.integers(0, num_items, len(users))
        wrong = np.flatnonzero(~self.in_band(users, drawn))
        for _ in range(TRIES):
            if not len(wrong):
                return drawn
            drawn[wrong] = rng.integers(0, num_items, len(wrong))
            wrong = wrong[~self.in_band(users[wrong], drawn[wrong])]
        for user in np.unique(users[wrong]):
            rows = wrong[users[wrong] == user]
            band = np.flatnonzero(np.unpackbits(self.bands[user], count=num_items, bitorder="little"))
            drawn[rows] = rng.choice(band, len(rows)) if len(band) else -1
        return drawn

    def to_frame(self, histories: Histories, user_ids: pl.Series, item_ids: pl.Series) -> pl.DataFrame:
        """One row per person: user_id, items and weights of the history (of the first event: null), positives, and
        the band as bytes."""
        people = pl.DataFrame({"user": np.arange(len(histories)), "user_id": user_ids.head(len(histories))})
        events = pl.DataFrame(
            {
                "user": histories.owners,
                "items": item_ids.gather(histories.items),
                "weights": pl.Series(self.weights).fill_nan(None),
            }
        )
        owners, places = np.nonzero(self.positives >= 0)
        liked = pl.DataFrame({"user": owners, "positives": item_ids.gather(self.positives[owners, places])})
        for table in (events, liked):
            lists = table.group_by("user", maintain_order=True).all()
            people = people.join(lists, on="user", how="left", maintain_order="left")
        bands = pl.Series("safe_negatives", [row.tobytes() for row in self.bands], dtype=pl.Binary)
        return people.drop("user").with_columns(pl.selectors.by_dtype(pl.List).fill_null([])).with_columns(bands)


def derive_signals(
    score: Callable[[Histories], Tensor],
    histories: Histories,
    num_items: int,
    *,
    rank_share: float = 0.3,
    largest: float = 3.0,
    scale: float = 4.0,
    band: tuple[float, float] = (80.0, 99.0),
    candidates: int = 100,
    seen_positives: bool = False,
    hidden: Histories | None = None,
) -> Signals:
    """All three signals for all people.

    Args:
        score: histories (B rows) -> (B, num_items), higher is better; for people with at least one event.
        histories: training events.
        rank_share, largest, scale: see `behaviour_weights`.
        band: from and to which per cent of the ranking safe negatives are taken; see `safe_band`.
        candidates: items taken as liked.
        seen_positives: whether they may be items of the history, as in the released code.
        hidden: further events, of the same people, whose items are no negatives either. The released code hides
            validation and test items this way, which tells the training about them.

    Returns:
        People without an event have no positives and no negatives.
    """
    users = len(histories)
    depth = min(candidates, num_items)
    own = [np.empty(0, dtype=np.float32)]
    positives = np.full((users, depth), -1, dtype=np.int32)
    bands = np.zeros((users, -(-num_items // 8)), dtype=np.uint8)
    known = np.flatnonzero(histories.lengths)
    step = max(1, BLOCK_SCORES // num_items)
    for start in range(0, len(known), step):
        people = known[start : start + step]
        rows = histories.take(people)
        scores = score(rows).float().cpu().numpy()
        own.append(scores[rows.owners, rows.items])  # people come in order, and so do their events
        ranking = rank_items(scores)
        seen = _mask(rows, num_items)
        positives[people] = soft_positives(ranking, None if seen_positives else seen, depth)
        if hidden is not None:
            seen |= _mask(hidden.take(people), num_items)
        bands[people] = np.packbits(safe_band(ranking, seen, *band), axis=1, bitorder="little")
    weights = behaviour_weights(np.concatenate(own), histories.offsets, rank_share, largest, scale)
    return Signals(weights, positives, bands)


def behaviour_weights(
    scores: NDArray[np.float32],
    offsets: NDArray[np.int64],
    rank_share: float,
    largest: float,
    scale: float,
    *,
    pad_score: float | None = None,
    floored: bool = True,
) -> NDArray[np.float32]:
    """Historical behaviour reweighting: (events,) weights of the losses at a person's events but the first.

    With p the scores of a person's n targets, q = (p - f) / (max p - f), a = n q / sum q, and r = 1..n the place of
    each from the worst to the best (of equal ones the later is better), the weight is

        scale * min((1 - rank_share) a + rank_share r / n, largest).

    The floor f lies below all of them, so that the worst still counts: half the smallest score m, or 1.5 m where
    that is below zero. The release gets it from its padding, which is scored too (``pad_score``), and has none in
    histories that fill its window (``floored=False``). Where all targets are at the floor, all weigh the same.

    Args:
        scores: (events,) of the events' items.
        offsets: (users + 1,) where each person's events begin.
    """
    weights = np.full(len(scores), np.nan, dtype=np.float32)
    lengths = np.diff(offsets)
    target = np.ones(len(scores), dtype=bool)
    target[offsets[:-1][lengths > 0]] = False
    owners = np.repeat(np.arange(len(lengths)), lengths)[target]
    if not len(owners):
        return weights
    p = scores[target].astype(np.float64)
    counts = np.bincount(owners, minlength=len(lengths))
    n = counts[owners]
    first = np.flatnonzero(np.diff(owners, prepend=-1))
    low, high = (np.repeat(f.reduceat(p, first), counts[counts > 0]) for f in (np.minimum, np.maximum))
    if pad_score is not None:
        low = np.minimum(low, pad_score)
    floor = low * np.where(low > 0, 0.5, 1.5) if floored else low
    q = np.divide(p - floor, high - floor, out=np.ones_like(p), where=high > floor)
    total = np.bincount(owners, q, minlength=len(lengths))[owners]
    a = np.divide(n * q, total, out=np.ones_like(p), where=total > 0)
    order = np.lexsort((p, owners))  # stable: of equal scores the later event comes last
    place = np.empty(len(p), dtype=np.int64)
    place[order] = np.arange(len(p)) - np.repeat(first, counts[counts > 0]) + 1
    weights[target] = scale * np.clip((1 - rank_share) * a + rank_share * place / n, 0, largest)
    return weights


def rank_items(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """(B, items) item numbers by score from the highest, equal ones by number from the lowest.

    Sorted as integers that hold the score and the number: several times as fast as a stable sort of floats.
    """
    bits = (scores + np.float32(0)).view(np.int32)  # + 0: minus zero becomes zero
    bits ^= (bits >> 31) & 0x7FFFFFFF  # floats compare as their bits do, once those below zero are turned round
    keys = (~bits).astype(np.int64)
    keys <<= 32
    keys |= np.arange(scores.shape[1])
    keys.sort(axis=1)
    keys &= 0xFFFFFFFF
    return keys


def soft_positives(ranking: NDArray[np.int64], seen: NDArray[np.bool_] | None, depth: int) -> NDArray[np.int32]:
    """Diffusion-based positive augmentation: (B, depth) the best items, not among ``seen`` (B, items); -1 behind."""
    if seen is None:
        return ranking[:, :depth].astype(np.int32)
    # No more of a ranking is read than the longest history can hide.
    top = ranking[:, : depth + int(seen.sum(1).max(initial=0))]
    free = ~np.take_along_axis(seen, top, axis=1)
    place = free.cumsum(1)
    row, column = np.nonzero(free & (place <= depth))
    chosen = np.full((len(ranking), depth), -1, dtype=np.int32)
    chosen[row, place[row, column] - 1] = top[row, column]
    return chosen


def safe_band(ranking: NDArray[np.int64], seen: NDArray[np.bool_], low: float, high: float) -> NDArray[np.bool_]:
    """Noise-free negative sampling: (B, items) whether each item is a safe negative.

    These are the W = ceil(I high / 100) - floor(I low / 100) items from place floor(I low / 100) on that are not
    ``seen`` (B, items); fewer where the ranking ends. What stands lowest of all is left out: it is known too little.
    """
    items = ranking.shape[1]
    start, width = math.floor(items * low / 100), math.ceil(items * high / 100) - math.floor(items * low / 100)
    tail = ranking[:, start:]
    free = ~np.take_along_axis(seen, tail, axis=1)
    chosen = free & (free.cumsum(1) <= width)
    band = np.zeros_like(seen)
    np.put_along_axis(band, tail, chosen, axis=1)
    return band


def _mask(rows: Histories, num_items: int) -> NDArray[np.bool_]:
    mask = np.zeros((len(rows), num_items), dtype=bool)
    mask[rows.owners, rows.items] = True
    return mask
