"""Recall and latency of an index, compared with exact search."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rediffuse.recommender.index import ItemIndex
from rediffuse.topk import exact_top_k

# Rows of exact scores held at once. With a million items, each takes 4 MB.
_ROWS = 16


def recall_of(index: ItemIndex, vectors: Tensor, queries: Tensor, thresholds: Tensor, k: int) -> float:
    """The share of the exact best ``k`` items of ``queries`` (n, d) that the index finds.

    An item counts if its inner product is at least that of the exact k-th item, given in ``thresholds`` (n,). So it
    does not matter which of several tied items the index finds.
    """
    found = torch.from_numpy(index.search(queries.numpy(), k))
    hits = 0
    for query, items, threshold in zip(queries, found, thresholds, strict=True):
        near = vectors[items[items >= 0]]
        slack = 1e-6 * query.norm() * near.norm(dim=1)  # another order of summation rounds differently
        hits += int((near @ query >= threshold - slack).sum())
    return hits / (len(queries) * k)


def exact_thresholds(vectors: Tensor, queries: Tensor, k: int) -> Tensor:
    """(n,) the k-th largest inner product of each query."""
    return torch.cat([exact_top_k(part @ vectors.T, k)[0][:, -1] for part in queries.split(_ROWS)])


def median_milliseconds(search: Callable[[Tensor], Any], queries: Tensor) -> float:
    """Median time of a search, one query at a time."""
    seconds = []
    for query in queries.split(1):
        start = time.perf_counter()
        search(query)
        seconds.append(time.perf_counter() - start)
    return round(1000 * statistics.median(seconds), 3)
