"""The signals that PDRec derives from a diffusion model (Ma et al., AAAI 2024, arXiv 2401.02913).

There are three, each a pure function of a user's scores of all items: weights of interactions (historical behaviour
reweighting), items to be taken as liked (diffusion-based positive augmentation) and items that are unlikely to be liked
(noise-free negative sampling). `derive_signals` takes users in blocks and never holds a users x items matrix.
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

# Most scores in a block of users.
BLOCK_SCORES = 8_000_000
# Draws from the whole catalogue before a negative is drawn from the band itself.
TRIES = 40


@dataclass(frozen=True, eq=False)
class Signals:
    """The signals of all users.

    Attributes:
        weights: (interactions,) float32 loss weights, aligned with the histories; NaN at each user's first interaction,
            which is not a target.
        positives: (users, n) int32 items taken as liked, best first; -1 where there are fewer.
        bands: (users, ceil(num_items / 8)) uint8, one bit per item, lowest bit first: 1 for safe negatives.
    """

    weights: NDArray[np.float32]
    positives: NDArray[np.int32]
    bands: NDArray[np.uint8]

    def in_band(self, users: NDArray[np.int64], items: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(n,) bool, True where ``items`` (n,) are safe negatives of ``users`` (n,)."""
        return (self.bands[users, items >> 3] >> (items & 7).astype(np.uint8)) & 1 == 1

    def draw(self, users: NDArray[np.int64], num_items: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """(n,) a safe negative for each of ``users`` (n,), drawn uniformly; -1 for users without one."""
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
        """One row per user: user_id; items of the history and their weights (null for the first); positives; and
        safe_negatives, the band as bytes."""
        frame = pl.DataFrame({"user": np.arange(len(histories)), "user_id": user_ids.head(len(histories))})
        interactions = pl.DataFrame(
            {
                "user": histories.owners,
                "items": item_ids.gather(histories.items),
                "weights": pl.Series(self.weights).fill_nan(None),
            }
        )
        owners, places = np.nonzero(self.positives >= 0)
        liked = pl.DataFrame({"user": owners, "positives": item_ids.gather(self.positives[owners, places])})
        for table in (interactions, liked):
            lists = table.group_by("user", maintain_order=True).all()
            frame = frame.join(lists, on="user", how="left", maintain_order="left")
        bands = pl.Series("safe_negatives", [row.tobytes() for row in self.bands], dtype=pl.Binary)
        return frame.drop("user").with_columns(pl.selectors.by_dtype(pl.List).fill_null([])).with_columns(bands)


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
    window: int | None = None,
) -> Signals:
    """All three signals for all users. A user without an interaction has no positives and no negatives.

    Args:
        score: histories (B rows) -> (B, num_items), higher is better; for users with at least one interaction. One more
            column is the score of the padding, which `behaviour_weights` then reads.
        histories: training interactions.
        rank_share, largest, scale, window: see `behaviour_weights`.
        band: where the band of safe negatives starts and ends in the ranking, in per cent; see `safe_band`.
        candidates: number of items taken as liked.
        seen_positives: they may be items of the history, as in the released code.
    """
    users = len(histories)
    depth = min(candidates, num_items)
    own, padding = [np.empty(0, dtype=np.float32)], None
    positives = np.full((users, depth), -1, dtype=np.int32)
    bands = np.zeros((users, -(-num_items // 8)), dtype=np.uint8)
    known = np.flatnonzero(histories.lengths)
    step = max(1, BLOCK_SCORES // num_items)
    for start in range(0, len(known), step):
        block = known[start : start + step]
        rows = histories.take(block)
        scores = score(rows).float().cpu().numpy()
        if scores.shape[1] > num_items:
            padding = np.zeros(users, dtype=np.float32) if padding is None else padding
            scores, padding[block] = scores[:, :num_items], scores[:, num_items]
        own.append(scores[rows.owners, rows.items])  # users are in order, and so are their interactions
        ranking = rank_items(scores)
        seen = np.zeros((len(rows), num_items), dtype=bool)
        seen[rows.owners, rows.items] = True
        positives[block] = soft_positives(ranking, None if seen_positives else seen, depth)
        bands[block] = np.packbits(safe_band(ranking, seen, *band), axis=1, bitorder="little")
    weights = behaviour_weights(
        np.concatenate(own), histories.offsets, rank_share, largest, scale, window=window, padding=padding
    )
    return Signals(weights, positives, bands)


def behaviour_weights(
    scores: NDArray[np.float32],
    offsets: NDArray[np.int64],
    rank_share: float,
    largest: float,
    scale: float,
    *,
    window: int | None = None,
    padding: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Historical behaviour reweighting: (interactions,) weights of the losses at a user's interactions; first: NaN.

    With p the scores of a user's n targets, q = (p - f) / (max p - f), a = n q / sum q, and r = 1..n the rank of each
    target from the worst to the best (of equal scores the later is better), the weight is

        scale * min((1 - rank_share) a + rank_share r / n, largest).

    The floor f is below all scores, so that the worst target still counts: half the lowest score m, or 1.5 m if m is
    negative. If all targets are at the floor, all weigh the same.

    Args:
        scores: (interactions,) of the interactions' items.
        offsets: (users + 1,) where each user's interactions begin.
        window: as in the released program, only so many latest targets of a user have a weight; others have NaN.
        padding: (users,) the score of the padding, which in the released program fills the window of a user with fewer
            targets: m is then the lower of the two. A user with a full window has m itself as the floor.
    """
    weights = np.full(len(scores), np.nan, dtype=np.float32)
    lengths = np.diff(offsets)
    target = np.ones(len(scores), dtype=bool)
    target[offsets[:-1][lengths > 0]] = False
    owners = np.repeat(np.arange(len(lengths)), lengths)
    if window is not None:
        target &= offsets[1:][owners] - np.arange(len(scores)) <= window
    owners = owners[target]
    if not len(owners):
        return weights
    p = scores[target].astype(np.float64)
    counts = np.bincount(owners, minlength=len(lengths))
    n = counts[owners]
    first = np.flatnonzero(np.diff(owners, prepend=-1))
    low, high = (np.repeat(f.reduceat(p, first), counts[counts > 0]) for f in (np.minimum, np.maximum))
    full = np.zeros(len(p), dtype=bool)
    if padding is not None:
        full = n == window
        low = np.where(full, low, np.minimum(low, padding[owners]))
    floor = np.where(full, low, low * np.where(low > 0, 0.5, 1.5))
    q = np.divide(p - floor, high - floor, out=np.ones_like(p), where=high > floor)
    total = np.bincount(owners, q, minlength=len(lengths))[owners]
    a = np.divide(n * q, total, out=np.ones_like(p), where=total > 0)
    order = np.lexsort((p, owners))  # stable: of equal scores the later comes last
    rank = np.empty(len(p), dtype=np.int64)
    rank[order] = np.arange(len(p)) - np.repeat(first, counts[counts > 0]) + 1
    weights[target] = scale * np.clip((1 - rank_share) * a + rank_share * rank / n, 0, largest)
    return weights


def rank_items(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """(B, items) item numbers in descending order of score; equal scores in ascending order of number.

    Sorts integers that hold the score and the number, several times as fast as a stable sort of floats.
    """
    bits = (scores + np.float32(0)).view(np.int32)  # + 0: minus zero becomes zero
    bits ^= (bits >> 31) & 0x7FFFFFFF  # floats compare as their bits do, once negative ones are inverted
    keys = (~bits).astype(np.int64)
    keys <<= 32
    keys |= np.arange(scores.shape[1])
    keys.sort(axis=1)
    keys &= 0xFFFFFFFF
    return keys


def soft_positives(ranking: NDArray[np.int64], seen: NDArray[np.bool_] | None, depth: int) -> NDArray[np.int32]:
    """Diffusion-based positive augmentation: (B, depth) the best items not ``seen`` (B, items), padded with -1."""
    if seen is None:
        return ranking[:, :depth].astype(np.int32)
    # At most as many items are skipped as the longest history has.
    top = ranking[:, : depth + int(seen.sum(1).max(initial=0))]
    free = ~np.take_along_axis(seen, top, axis=1)
    place = free.cumsum(1)
    row, column = np.nonzero(free & (place <= depth))
    chosen = np.full((len(ranking), depth), -1, dtype=np.int32)
    chosen[row, place[row, column] - 1] = top[row, column]
    return chosen


def safe_band(ranking: NDArray[np.int64], seen: NDArray[np.bool_], low: float, high: float) -> NDArray[np.bool_]:
    """Noise-free negative sampling: (B, items) bool, True for safe negatives.

    These are the W = ceil(I high / 100) - floor(I low / 100) items from place floor(I low / 100) of the ranking on that
    are not ``seen`` (B, items); fewer where the ranking ends. The lowest places are left out: too little is known about
    these items.
    """
    items = ranking.shape[1]
    start, width = math.floor(items * low / 100), math.ceil(items * high / 100) - math.floor(items * low / 100)
    tail = ranking[:, start:]
    free = ~np.take_along_axis(seen, tail, axis=1)
    chosen = free & (free.cumsum(1) <= width)
    band = np.zeros_like(seen)
    np.put_along_axis(band, tail, chosen, axis=1)
    return band
