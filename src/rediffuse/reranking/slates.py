"""How well the items of a list go together. Lists are chosen one item after another, see `rediffuse.reranking.greedy`.

- Maximal marginal relevance (Carbonell & Goldstein, SIGIR 1998): an item loses its similarity with the most similar
  item that was chosen before.
- A determinantal point process (Chen et al., NeurIPS 2018): an item gains the logarithm of the factor by which it
  multiplies the determinant of the list's similarities, which is largest where no item resembles a mix of the others.
- Calibration (Steck, RecSys 2018): an item loses the divergence of the list's shares of values, such as genres, from
  those of the user's history.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rediffuse.reranking.columns import ItemSets

Gain = NDArray[np.float64]
# By how much two items that are the same resemble each other in a determinant. At 1, a list with more items than the
# similarities have dimensions (two items of one category) has the determinant 0, and no list is better than another.
MOST_ALIKE = 0.9
# Steck's alpha: how much of the user's shares is mixed into those of a list, which keeps the divergence finite.
SMOOTHING = 0.01


class Choice(Protocol):
    """The items of a pool (n,) while a list is chosen from them."""

    def gain(self) -> Gain:
        """(n,) what each item would add to the list, beside its relevance."""
        ...

    def add(self, position: int) -> None:
        """Choose an item."""
        ...


class Slate(Protocol):
    """A rule for whole lists."""

    def begin(self, items: NDArray[np.integer], k: int, history: NDArray[np.integer]) -> Choice | None:
        """Begin a list of up to ``k`` of the items of a pool (n,), for a user with a history (h,) of items.

        Returns:
            None if the history does not say what the list should be like: relevance alone decides.
        """
        ...


# --- similarity --------------------------------------------------------------------------------------------


class Similarity(Protocol):
    """Cosines between items. ``signed``: they may be negative."""

    signed: bool

    def within(self, items: NDArray[np.integer]) -> Callable[[int], Gain]:
        """For a pool (n,): a function of a position, to the similarities (n,) of all items with that one."""
        ...


@dataclass(frozen=True)
class VectorSimilarity:
    """The cosine of item vectors.

    Attributes:
        directions: (num_items, d) item vectors of length one.
    """

    directions: NDArray[np.float32]
    signed = True

    def within(self, items: NDArray[np.integer]) -> Callable[[int], Gain]:
        vectors = self.directions[items].astype(np.float64)
        return lambda position: vectors @ vectors[position]


@dataclass(frozen=True)
class SetSimilarity:
    """The cosine of sets of values, |A and B| / sqrt(|A| |B|). Items without a value are alike, and like no other."""

    sets: ItemSets
    signed = False

    def within(self, items: NDArray[np.integer]) -> Callable[[int], Gain]:
        owners, values = self.sets.entries(items)
        sizes = self.sets.sizes[items].astype(np.float64)
        own = np.zeros(self.sets.num_values)

        def similarity(position: int) -> Gain:
            if not sizes[position]:
                return (sizes == 0).astype(np.float64)
            of_item = self.sets.values[self.sets.offsets[items[position]] : self.sets.offsets[items[position] + 1]]
            own[of_item] = 1
            common = np.bincount(owners, own[values], minlength=len(items))
            own[of_item] = 0
            return common / np.sqrt(np.maximum(sizes * sizes[position], 1))

        return similarity


# --- the rules ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MarginalRelevance:
    """Maximal marginal relevance: minus the similarity with the most similar item of the list; 0 for the first item."""

    similarity: Similarity

    def begin(self, items: NDArray[np.integer], k: int, history: NDArray[np.integer]) -> Choice:
        return _MarginalChoice(self.similarity.within(items), len(items))


class _MarginalChoice:
    def __init__(self, similarity: Callable[[int], Gain], count: int) -> None:
        self._similarity, self._nearest, self._is_first = similarity, np.zeros(count), True

    def gain(self) -> Gain:
        return -self._nearest

    def add(self, position: int) -> None:
        near = self._similarity(position)
        self._nearest, self._is_first = near if self._is_first else np.maximum(self._nearest, near), False


@dataclass(frozen=True)
class Determinant:
    """A determinantal point process, whose most probable list is sought greedily.

    Its kernel is L = Diag(q) S Diag(q) with S_ii = 1, S_ij = `MOST_ALIKE` times the similarity, which is the cosine or,
    where that may be negative, (1 + cosine) / 2, and q_i = exp((1 - w) / (2 w) relevance_i) for a weight w. The
    logarithm of det(L) of a list is then, up to the factor w, (1 - w) times the sum of its relevances plus w times
    log det(S). The factor of each item comes from a Cholesky decomposition that grows with the list.
    """

    similarity: Similarity

    def begin(self, items: NDArray[np.integer], k: int, history: NDArray[np.integer]) -> Choice:
        return _DeterminantChoice(self.similarity.within(items), self.similarity.signed, k, len(items))


class _DeterminantChoice:
    def __init__(self, similarity: Callable[[int], Gain], signed: bool, k: int, count: int) -> None:
        self._similarity, self._signed = similarity, signed
        # What is left of each item's 1 on the diagonal after the list's items; at least 1 - MOST_ALIKE, up to rounding.
        self._left = np.ones(count)
        self._factors, self._size = np.empty((min(k, count), count)), 0

    def gain(self) -> Gain:
        return np.log(np.maximum(self._left, (1 - MOST_ALIKE) / 2))

    def add(self, position: int) -> None:
        near = self._similarity(position)
        row = MOST_ALIKE * ((1 + near) / 2 if self._signed else near)
        row[position] = 1
        before = self._factors[: self._size]
        factor = (row - before[:, position] @ before) / np.sqrt(self._left[position])
        self._factors[self._size] = factor
        self._size += 1
        self._left -= factor**2


@dataclass(frozen=True)
class Calibration:
    """Calibration: minus KL(p || q), in nats, of the shares of values in the history (p) and in the list (q).

    Every item divides one vote among its values; items without a value do not count. 1 % of p is mixed into q
    (`SMOOTHING`), so that q has all values of p. Before the list has an item with a value, q is that 1 % alone.
    """

    sets: ItemSets

    def begin(self, items: NDArray[np.integer], k: int, history: NDArray[np.integer]) -> Choice | None:
        wanted = self.sets.shares(history)
        return _CalibratedChoice(self.sets, wanted, items) if wanted.any() else None


class _CalibratedChoice:
    def __init__(self, sets: ItemSets, wanted: NDArray[np.float64], items: NDArray[np.integer]) -> None:
        owners, values = sets.entries(items)
        vote = 1 / sets.sizes[items][owners]
        # Only values that the user has matter: of another value p is 0, and so is its part of the divergence.
        support = np.flatnonzero(wanted)
        known = wanted[values] > 0
        self._owners, self._vote = owners[known], vote[known]
        self._values = np.searchsorted(support, values[known])
        self._wanted = wanted[support]
        self._has_value = sets.sizes[items] > 0
        self._votes, self._size = np.zeros(len(support)), 0  # of the list
        self._at_best = float(self._wanted @ np.log(self._wanted))

    def _shares(self, size: int) -> NDArray[np.float64]:
        """(values,) the smoothed shares of the votes in a list of ``size`` items with values."""
        return (1 - SMOOTHING) * self._votes / max(size, 1) + SMOOTHING * self._wanted

    def gain(self) -> Gain:
        now, then = self._shares(self._size), self._shares(self._size + 1)
        # The votes of an item change the parts of its own values alone.
        more = then[self._values] + (1 - SMOOTHING) * self._vote / (self._size + 1)
        change = self._wanted[self._values] * (np.log(more) - np.log(then[self._values]))
        added = np.bincount(self._owners, change, minlength=len(self._has_value)) + self._wanted @ np.log(then)
        return np.where(self._has_value, added, self._wanted @ np.log(now)) - self._at_best

    def add(self, position: int) -> None:
        of_item = self._owners == position
        self._votes[self._values[of_item]] += self._vote[of_item]
        self._size += int(self._has_value[position])
