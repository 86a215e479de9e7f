"""Metrics beyond accuracy: properties of the top-K lists that do not depend on the true items.

``lists`` is (users, k) item numbers, -1 past the end of a list; ``counts`` is (num_items,) training interactions per
item. A per-user value is NaN where it is undefined.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from rediffuse.data.histories import Histories
from rediffuse.data.measures import gini_index

Lists = NDArray[np.int32]
PerUser = NDArray[np.float64]
# Item pairs that `diversity` compares at once.
_BLOCK_PAIRS = 200_000
# Steck's alpha in `calibration`.
_SMOOTHING = 0.01


def coverage(lists: Lists, num_items: int) -> float:
    """Share of the catalogue that is in at least one list."""
    return len(np.unique(lists[lists >= 0])) / num_items


def gini(lists: Lists, num_items: int) -> float:
    """Gini index of how often each item is recommended: 0 if all equally often, towards 1 if always the same few."""
    return gini_index(np.bincount(lists[lists >= 0], minlength=num_items))


def popularity(lists: Lists, counts: NDArray[np.int64]) -> PerUser:
    """(users,) mean training interactions of the items in each list."""
    return _mean(lists, np.asarray(counts, dtype=np.float64))


def novelty(lists: Lists, counts: NDArray[np.int64]) -> PerUser:
    """(users,) mean self-information ``-log2 p_i`` in bits, p_i = (count_i + 1) / (sum of counts + num_items).

    Vargas & Castells, RecSys 2011, with Laplace smoothing, so that items without training interactions count too.
    """
    return _mean(lists, -np.log2((counts + 1) / (counts.sum() + len(counts))))


def popularity_lift(lists: Lists, counts: NDArray[np.int64], histories: Histories) -> PerUser:
    """(users,) how much more popular the list is than the history: (list - history) / history of mean training counts.

    0: as popular as the history; 1: twice as popular. Abdollahpouri et al., UMAP 2020 (there, averaged over groups).
    NaN for users whose history is empty, or has only items without training interactions.
    """
    total = np.bincount(histories.owners, weights=counts[histories.items], minlength=len(histories))
    with np.errstate(invalid="ignore", divide="ignore"):
        own = total / histories.lengths
        lift = (popularity(lists, counts) - own) / own
    return np.where(np.isfinite(lift), lift, np.nan)


def diversity(lists: Lists, features: sparse.csr_array) -> PerUser:
    """(users,) mean of 1 - Jaccard similarity of features, over the pairs of items in each list.

    Intra-list distance (Ziegler et al., WWW 2005). Items without features are left out; NaN if fewer than two are left.

    Args:
        features: (num_items, values) binary, for example from `rediffuse.data.features.item_features`.
    """
    sizes = features.sum(axis=1, dtype=np.float64)
    first, second = np.triu_indices(lists.shape[1], 1)
    result = np.full(len(lists), np.nan)
    step = max(1, _BLOCK_PAIRS // max(len(first), 1))
    for start in range(0, len(lists), step):
        items = lists[start : start + step]
        known = (items >= 0) & (sizes[items] > 0)
        both = known[:, first] & known[:, second]
        # Rows stay sparse: there may be tens of thousands of tags, and an item has a few of them.
        one, other = items[:, first][both], items[:, second][both]
        common = features[one].multiply(features[other]).sum(axis=1)
        distance = 1 - common / (sizes[one] + sizes[other] - common)
        pairs = both.sum(1)
        total = np.bincount(np.nonzero(both)[0], distance, minlength=len(items))
        result[start : start + step] = np.divide(total, pairs, where=pairs > 0, out=np.full(len(items), np.nan))
    return result


def calibration(lists: Lists, features: sparse.csr_array, histories: Histories) -> PerUser:
    """(users,) KL(p || q) in nats of the shares of features in the history (p) and in the list (q); 0 is the best.

    Steck, RecSys 2018: each item divides one vote among its features, and 1 % of p is mixed into q. Items without
    features are left out; NaN if none is left in the history or in the list.

    Args:
        features: as for `diversity`.
        histories: of the users.
    """
    votes = sparse.csr_array(features, dtype=np.float64)  # a copy
    votes.data /= np.repeat(np.diff(votes.indptr), np.diff(votes.indptr))

    def shares(owners: NDArray[np.int64], items: NDArray[np.integer]) -> sparse.csr_array:
        """(users, values) shares; an empty row if no item has a feature."""
        taken = sparse.csr_array((np.ones(len(items)), (owners, items)), shape=(len(lists), len(votes.indptr) - 1))
        found = sparse.csr_array(taken @ votes)
        found.data /= np.repeat(found.sum(axis=1), np.diff(found.indptr))
        return found

    wanted = shares(histories.owners, histories.items)
    listed = shares(np.nonzero(lists >= 0)[0], lists[lists >= 0])
    rows, columns = wanted.nonzero()
    p = wanted.data
    q = (1 - _SMOOTHING) * np.asarray(listed[rows, columns]) + _SMOOTHING * p
    divergence = np.bincount(rows, p * np.log(p / q), minlength=len(lists))
    defined = (np.diff(wanted.indptr) > 0) & (np.diff(listed.indptr) > 0)
    return np.where(defined, divergence, np.nan)


def _mean(lists: Lists, values: NDArray[np.float64]) -> PerUser:
    """(users,) mean of ``values`` (num_items,) over each list; NaN for a list without items."""
    listed = lists >= 0
    total = np.where(listed, values[lists], 0).sum(axis=1, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return total / listed.sum(axis=1)
