"""How well and how fast an index finds the exact best items."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rediffuse.recommender.index import ItemIndex
from rediffuse.topk import exact_top_k

# Rows of exact scores held at once; a million items take 4 MB each.
_ROWS = 16


def recall_of(index: ItemIndex, vectors: Tensor, queries: Tensor, thresholds: Tensor, k: int) -> float:
    """The share of the ``k`` best items of ``queries`` (n, d) that the index finds.

    An item counts if its inner product is at least that of the k-th best, ``thresholds`` (n,), so that it does not
    matter which of several equal items are found.
    """
    found = torch.from_numpy(index.search(queries.numpy(), k))
    hits = 0
    for query, items, threshold in zip(queries, found, thresholds, strict=True):
        near = vectors[items[items >= 0]]
        slack = 1e-6 * query.norm() * near.norm(dim=1)  # products of another order of summation
        hits += int((near @ query >= threshold - slack).sum())
    return hits / (len(queries) * k)


def exact_thresholds(vectors: Tensor, queries: Tensor, k: int) -> Tensor:
    """(n,) the k-th largest inner product of each query."""
    return torch.cat([exact_top_k(part @ vectors.T, k)[0][:, -1] for part in queries.split(_ROWS)])


def median_milliseconds(search: Callable[[Tensor], Any], queries: Tensor) -> float:
    """The median of one query at a time."""
    taken = []
    for query in queries.split(1):
        start = time.perf_counter()
        search(query)
        taken.append(time.perf_counter() - start)
    return round(1000 * statistics.median(taken), 3)
