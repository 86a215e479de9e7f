"""Beyond accuracy: what the top-K lists are like, whatever the truth.

Every function takes ``lists`` (users, k) of item numbers, -1 past the end of a list, and ``counts`` (num_items,)
training events per item. Per-user values are NaN where there is nothing to say.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from rediffuse.data.histories import Histories

Lists = NDArray[np.int32]
PerUser = NDArray[np.float64]
# Pairs of items that are compared at once for `diversity`.
_BLOCK_PAIRS = 200_000


def coverage(lists: Lists, num_items: int) -> float:
    """Share of the catalogue that stands in at least one list."""
    return len(np.unique(lists[lists >= 0])) / num_items


def gini(lists: Lists, num_items: int) -> float:
    """Gini index of how often each item of the catalogue is recommended: 0 all alike, towards 1 ever the same few.

    With counts in ascending order c_1 .. c_n: ``sum over i of (2 i - n - 1) c_i / (n sum c)``.
    """
    counts = np.sort(np.bincount(lists[lists >= 0], minlength=num_items)).astype(np.float64)
    if not counts.any():
        return 0.0
    return float(((2 * np.arange(1, num_items + 1) - num_items - 1) * counts).sum() / (num_items * counts.sum()))


def popularity(lists: Lists, counts: NDArray[np.int64]) -> PerUser:
    """(users,) mean training count of the items of each list."""
    return _mean(lists, np.asarray(counts, dtype=np.float64))


def novelty(lists: Lists, counts: NDArray[np.int64]) -> PerUser:
    """(users,) mean self-information ``-log2 p_i`` in bits, p_i = (count_i + 1) / (events + num_items).

    Vargas & Castells, RecSys 2011, with Laplace smoothing, so that items without training events count too.
    """
    return _mean(lists, -np.log2((counts + 1) / (counts.sum() + len(counts))))


def popularity_lift(lists: Lists, counts: NDArray[np.int64], histories: Histories) -> PerUser:
    """(users,) how much more popular the list is than the history: (list - history) / history, of mean training counts.

    0: as popular as what the person touches; 1: twice. Abdollahpouri et al., UMAP 2020 (there, averaged over groups).
    NaN for people whose history is empty or was never in training.
    """
    total = np.bincount(histories.owners, weights=counts[histories.items], minlength=len(histories))
    with np.errstate(invalid="ignore", divide="ignore"):
        own = total / histories.lengths
        lift = (popularity(lists, counts) - own) / own
    return np.where(np.isfinite(lift), lift, np.nan)


def diversity(lists: Lists, features: sparse.csr_array) -> PerUser:
    """(users,) mean over pairs of items of a list of 1 - Jaccard similarity of their features.

    Intra-list distance (Ziegler et al., WWW 2005). Items without features are left out; NaN with fewer than two left.

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
        # Rows stay sparse: tags come in tens of thousands, and an item has a few of them.
        one, other = items[:, first][both], items[:, second][both]
        common = features[one].multiply(features[other]).sum(axis=1)
        distance = 1 - common / (sizes[one] + sizes[other] - common)
        pairs = both.sum(1)
        total = np.bincount(np.nonzero(both)[0], distance, minlength=len(items))
        result[start : start + step] = np.divide(total, pairs, where=pairs > 0, out=np.full(len(items), np.nan))
    return result


def _mean(lists: Lists, values: NDArray[np.float64]) -> PerUser:
    """(users,) mean of ``values`` (num_items,) over each list; NaN for a list without items."""
    listed = lists >= 0
    total = np.where(listed, values[lists], 0).sum(axis=1, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return total / listed.sum(axis=1)
