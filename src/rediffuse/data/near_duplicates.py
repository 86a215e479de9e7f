"""Users whose item sets are nearly those of another user, found exactly and without comparing all pairs.

Two sets of n and m items with a Jaccard similarity of at least t share at least ``ceil(t n)`` and ``ceil(t m)`` items.
So they also share one of the first ``n - ceil(t n) + 1`` and ``m - ceil(t m) + 1`` items in any one order of all items
(prefix filtering: Chaudhuri, Ganti & Kaushik, ICDE 2006; Bayardo, Ma & Srikant, WWW 2007). Whatever else they share
comes after the beginning that ends first, which bounds their similarity. With the rarest items first, few pairs are
left to compare. The work is the sum over items of the squared number of users who have the item among their rarest
ones; memory is bounded, but for the sets themselves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from rediffuse.data.histories import Histories, row_blocks

# Users are near-duplicates from this Jaccard similarity on, if both have at least so many items.
SIMILARITY, LEAST_ITEMS = 0.5, 3
# Multiplications of a product of sparse matrices that are done at once; a result takes at most 12 bytes for each.
_WORK = 1 << 23


def near_duplicates(
    histories: Histories, similarity: float = SIMILARITY, least_items: int = LEAST_ITEMS
) -> NDArray[np.float64]:
    """(users,) the Jaccard similarity of the item set of each user and the closest other one; 0 where that is lower.

    Args:
        histories: one row per user; repeats of an item count once.
        similarity: above 0; what is lower is not looked for.
        least_items: users with fewer different items are left out.
    """
    found = np.zeros(len(histories))
    users, sets = _sets(histories, least_items)
    if not sets.nnz:
        return found
    sizes = np.diff(sets.indptr)
    rest = np.ceil(similarity * sizes - 1e-9).astype(np.int64) - 1
    prefixes = _beginnings(sets, sizes - rest)
    ends, holders = prefixes.indices[prefixes.indptr[1:] - 1], prefixes.T.tocsr()
    best = np.zeros(len(users))
    work = np.concatenate(([0], np.cumsum(np.diff(holders.indptr)[prefixes.indices])))[prefixes.indptr]
    for first, last in row_blocks(work, _WORK):
        pairs = (prefixes[first:last] @ holders).tocoo()
        left, right = pairs.row.astype(np.int64) + first, pairs.col.astype(np.int64)
        shared = pairs.data + np.where(ends[left] <= ends[right], rest[left], rest[right])  # at most
        shared = np.minimum(shared, np.minimum(sizes[left], sizes[right]))
        chosen = (left < right) & (shared * (1 + similarity) >= similarity * (sizes[left] + sizes[right]) - 1e-9)
        left, right = left[chosen], right[chosen]
        for start, stop in row_blocks(np.concatenate(([0], np.cumsum(sizes[left]))), _WORK):
            one, other = left[start:stop], right[start:stop]
            both = np.asarray(sets[one].multiply(sets[other]).sum(axis=1)).ravel()
            jaccard = both / (sizes[one] + sizes[other] - both)
            jaccard[jaccard < similarity] = 0
            np.maximum.at(best, one, jaccard)
            np.maximum.at(best, other, jaccard)
    found[users] = best
    return found


def _sets(histories: Histories, least_items: int) -> tuple[NDArray[np.int64], Any]:
    """The users with enough items, and their (users, items) sets, in whose rows the rarest items come first."""
    size = int(histories.items.max(initial=0)) + 1
    holders, lengths = np.zeros(size, dtype=np.int64), np.zeros(len(histories), dtype=np.int64)
    for first, rows in histories.blocks():
        owners, items = _distinct(rows.owners, rows.items, size)
        lengths[first : first + len(rows)] = np.bincount(owners, minlength=len(rows))
        holders += np.bincount(items[lengths[first + owners] >= least_items], minlength=size)
    rarity = np.empty(size, dtype=np.int64)
    rarity[np.argsort(holders, kind="stable")] = np.arange(size)
    users = np.flatnonzero(lengths >= least_items)
    parts = [np.empty(0, dtype=np.int32)]
    for first, rows in histories.blocks():
        owners, items = _distinct(rows.owners, rarity[rows.items], size)
        parts.append(items[lengths[first + owners] >= least_items].astype(np.int32))
    indices = np.concatenate(parts)
    indptr = np.concatenate(([0], np.cumsum(lengths[users])))
    return users, _matrix(indices, indptr, size)


def _distinct(
    owners: NDArray[np.int64], items: NDArray[np.integer], size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The different pairs, in the order of owners, then items."""
    pairs = np.sort(owners * size + items)
    pairs = pairs[np.diff(pairs, prepend=-1) > 0]
    return pairs // size, pairs % size


def _beginnings(sets: Any, lengths: NDArray[np.int64]) -> Any:
    """The first ``lengths`` (rows,) entries of each row."""
    positions = np.arange(sets.nnz) - np.repeat(sets.indptr[:-1], np.diff(sets.indptr))
    kept = positions < np.repeat(lengths, np.diff(sets.indptr))
    return _matrix(sets.indices[kept], np.concatenate(([0], np.cumsum(lengths))), sets.shape[1])


def _matrix(indices: NDArray[np.int32], indptr: NDArray[np.int64], columns: int) -> Any:
    ones = np.ones(len(indices), dtype=np.int32)
    return sparse.csr_array((ones, indices, indptr), shape=(len(indptr) - 1, columns))
