"""Re-ranking: a list of k items, made of the items that a model ranks first.

- A limit per value: at most n items of one category, brand or tag.
- Diversity: maximal marginal relevance (Carbonell & Goldstein, SIGIR 1998). Items are chosen one by one, each with the
  largest ``(1 - diversity) * relevance - diversity * similarity``. The relevance is the score, scaled to 0..1 over the
  pool; the similarity is the cosine with the most similar item that was chosen before, 0 for the first.

Both choose greedily from a pool, so the list may be shorter than k if the limits leave too few items of the pool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rediffuse.arguments import described, require_integer, require_number, wrong_type
from rediffuse.errors import ConfigError, did_you_mean


def pool_size(k: int) -> int:
    """How many of the items that a model ranks first a list of ``k`` is made of."""
    return max(10 * k, 100)


@dataclass(frozen=True)
class ValueLimit:
    """The most items of one value in a list.

    Attributes:
        limit: how many.
        offsets: (num_items + 1,) where the values of each item begin in ``values``.
        values: numbers of the values of all items, without repetition within an item; an item without a value has none.
    """

    limit: int
    offsets: NDArray[np.int64]
    values: NDArray[np.int64]

    @classmethod
    def of(cls, series: pl.Series, limit: int) -> ValueLimit:
        """From a column with one value, or a list of values, per item. Missing values and NaN are not limited."""
        series = series.fill_nan(None) if series.dtype.is_float() else series
        frame = pl.DataFrame({"item": np.arange(len(series)), "value": series})
        if isinstance(series.dtype, pl.List | pl.Array):
            frame = frame.with_columns(pl.col("value").cast(pl.List(series.dtype.inner)))  # pyright: ignore
            frame = frame.explode("value")
        frame = frame.drop_nulls().unique(maintain_order=True)
        numbers = frame.select(pl.col("value").unique(maintain_order=True)).with_row_index("number")
        frame = frame.join(numbers, on="value", how="left", maintain_order="left")
        counts = np.bincount(frame["item"].to_numpy(), minlength=len(series))
        return cls(limit, np.concatenate(([0], np.cumsum(counts))), frame["number"].to_numpy().astype(np.int64))

    def of_item(self, item: int) -> NDArray[np.int64]:
        """The values of an item."""
        return self.values[self.offsets[item] : self.offsets[item + 1]]


@dataclass(frozen=True)
class Reranking:
    """How lists are made of pools.

    Attributes:
        limits: limits per value; an item must keep to all of them.
        diversity: 0 (relevance alone) to 1.
        directions: (num_items, d) item vectors of length one; needed if ``diversity`` is above 0.
    """

    limits: Sequence[ValueLimit] = ()
    diversity: float = 0.0
    directions: NDArray[np.float32] | None = None

    def choose(self, items: NDArray[np.integer[Any]], scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """Positions (up to k,) in a pool (n,), in the order of the list; of equal items the first of the pool.

        Args:
            items: item numbers, best first.
            scores: their scores, finite.
            k: length of the list.
        """
        relevance = scores.astype(np.float64)
        spread = float(np.ptp(relevance)) if len(relevance) else 0.0
        relevance = (relevance - relevance.min()) / spread if spread > 0 else np.zeros(len(items))
        own = [[limit.of_item(int(item)) for item in items] for limit in self.limits]
        used: list[dict[int, int]] = [{} for _ in self.limits]
        vectors = None
        if self.diversity > 0:
            assert self.directions is not None
            vectors = self.directions[items].astype(np.float64)
        similarity = np.zeros(len(items))
        open_ = np.ones(len(items), dtype=np.bool_)
        chosen: list[int] = []
        while len(chosen) < k and open_.any():
            gain = (1 - self.diversity) * relevance - self.diversity * similarity
            best = int(np.where(open_, gain, -np.inf).argmax())
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
            if vectors is not None:
                near = vectors @ vectors[best]
                similarity = near if len(chosen) == 1 else np.maximum(similarity, near)
        return np.asarray(chosen, dtype=np.int64)


def require_max_per(
    value: Any, item_table: pl.DataFrame | None, known: dict[str, ValueLimit] | None = None
) -> list[ValueLimit]:
    """The limits of a mapping from columns of the item table to the most items of one value.

    Args:
        value: the argument ``max_per``.
        item_table: row i describes item number i, or None.
        known: the values of columns that were limited before, kept between calls.

    Raises:
        ConfigError: it is something else, there is no item table, or it has no such column.
    """
    if value is None:
        return []
    if not isinstance(value, Mapping):
        raise wrong_type("max_per", value, "a mapping", 'For example max_per={"category": 2}.')
    known, limits = {} if known is None else known, []
    for column, limit in value.items():
        limit = require_integer(f"max_per of column {column!r}", limit)
        if item_table is None:
            raise ConfigError(
                "This run has no item table, so lists cannot be limited by its columns.",
                "Prepare the data with a table of items (rediffuse prepare --items FILE, in Python items=...), and "
                "train or refit on them.",
            )
        if column not in item_table.columns:
            raise ConfigError(f"The item table has no column {column!r}.", did_you_mean(column, item_table.columns))
        if column not in known:
            known[column] = ValueLimit.of(item_table[column], limit)
        limits.append(replace(known[column], limit=limit))
    return limits


def require_diversity(value: Any) -> float:
    """The diversity, from 0 to 1.

    Raises:
        ConfigError: it is something else.
    """
    found = require_number("diversity", value)
    if not 0 <= found <= 1:
        raise ConfigError(f"diversity is {described(value)}.", "Give a number from 0 (the plain list) to 1.")
    return found
