"""The greedy choice: a list is chosen item by item from a pool, by relevance, by a rule for whole lists and by limits.

Each item is the one with the largest ``(1 - weight) * relevance + weight * gain``, among those that no limit forbids.
The relevance is the score, scaled to 0..1 over the pool; the gain is that of `rediffuse.reranking.slates`. Of equal
items, the first of the pool is chosen: the one with the higher score, or else with the lower number. The list may be
shorter than k if the limits leave too few items of the pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rediffuse.data.histories import Histories
from rediffuse.reranking.limits import ValueLimit
from rediffuse.reranking.slates import Calibration, Slate

_NOTHING = np.empty(0, dtype=np.int64)


def pool_size(k: int) -> int:
    """How many of the items that a model ranks first a list of ``k`` is made of."""
    return max(10 * k, 100)


@dataclass(frozen=True)
class Reranking:
    """How lists are made of pools.

    Attributes:
        limits: limits per value; an item must keep to all of them.
        slate: the rule for whole lists; None: there is none.
        weight: of that rule against the relevance, from 0 (relevance alone) to 1.
    """

    limits: Sequence[ValueLimit] = ()
    slate: Slate | None = None
    weight: float = 0.0

    def choose(
        self,
        items: NDArray[np.integer[Any]],
        scores: NDArray[np.float32],
        k: int,
        history: NDArray[np.integer[Any]] = _NOTHING,
    ) -> NDArray[np.int64]:
        """Positions (up to k,) in a pool (n,), in the order of the list.

        Args:
            items: item numbers, best first.
            scores: their scores, finite.
            k: length of the list.
            history: (h,) item numbers of the user's history.
        """
        relevance = scores.astype(np.float64)
        spread = float(np.ptp(relevance)) if len(relevance) else 0.0
        relevance = (relevance - relevance.min()) / spread if spread > 0 else np.zeros(len(items))
        own = [[limit.of_item(int(item)) for item in items] for limit in self.limits]
        used: list[dict[int, int]] = [{} for _ in self.limits]
        choice = None if self.slate is None else self.slate.begin(items, k, history)

        def gain() -> NDArray[np.float64]:
            return relevance if choice is None else (1 - self.weight) * relevance + self.weight * choice.gain()

        found = gain()
        open_ = np.ones(len(items), dtype=np.bool_)
        chosen: list[int] = []
        while len(chosen) < k and open_.any():
            best = int(np.where(open_, found, -np.inf).argmax())
            open_[best] = False
            if any(
                counts.get(int(value), 0) >= limit.limit
                for limit, values, counts in zip(self.limits, own, used, strict=True)
                for value in values[best]
            ):
                continue  # the counts only grow, so it never fits again
            chosen.append(best)
            for values, counts in zip(own, used, strict=True):
                for value in values[best].tolist():
                    counts[value] = counts.get(value, 0) + 1
            if choice is not None and len(chosen) < k:
                choice.add(best)
                found = gain()
        return np.asarray(chosen, dtype=np.int64)

    def uncalibrated(self, histories: Histories) -> int:
        """For how many of these histories lists cannot be calibrated, because no item of theirs has a value."""
        return self.slate.sets.without_values(histories) if isinstance(self.slate, Calibration) else 0


def uncalibrated_remark(count: int, users: int) -> str:
    """A sentence about the users of whom `Reranking.uncalibrated` counts ``count``."""
    return (
        f"{count:,} of {users:,} histories have no value in the column that lists are calibrated by (diversity_by): "
        "these lists are by relevance alone."
    )
