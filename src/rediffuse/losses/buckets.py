"""Softmax losses that set a target against the items near it, found by random projections."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rediffuse.topk import exact_top_k

# Items whose projections are held at once.
BLOCK = 65_536


def scalable_cross_entropy(
    hidden: Tensor,
    positives: Tensor,
    table: Tensor,
    vectors: Callable[[Tensor], Tensor],
    targets: Tensor,
    negatives: int = 256,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """SCE: cross entropy within buckets of rows and items that lie in the same direction.

    Mezentsev et al., RecSys 2024, algorithm 1 with Mix: 2 sqrt(n) directions are random mixtures of the rows; a bucket
    has the 2 sqrt(n) rows and the ``negatives`` items that reach farthest in its direction. A row in several buckets
    has the largest of its losses; a row in none has no part in the mean.

    Args:
        hidden: (n, d) one row per target.
        positives: (n, d) the vectors of the targets.
        table: (items, d) what items are chosen by; not differentiated.
        vectors: item numbers (...) int64 -> (..., d), differentiable.
        targets: (n,) int64.
        negatives: items of a bucket.
        weights: (n,) importance weights, or None.

    Returns:
        The scalar loss and the (n,) unweighted losses, detached; NaN where a row was in no bucket.
    """
    count = len(hidden)
    size = min(count, math.ceil(2 * math.sqrt(count)))
    with torch.no_grad():
        mixture = torch.randn(size, count, device=hidden.device, dtype=hidden.dtype) / math.sqrt(count)
        directions = mixture @ hidden
        rows = (directions @ hidden.T).topk(size, dim=1).indices  # (buckets, size)
        reach = directions @ table.T
        items = exact_top_k(reach, min(negatives, len(table)))[1]  # (buckets, negatives)
        del reach
    # Not by indexing, whose gradient is added up in no fixed order.
    logits = (F.embedding(rows, hidden) @ vectors(items).transpose(1, 2)).float()
    logits = logits.masked_fill(items[:, None, :] == targets[rows][:, :, None], -torch.inf)
    positive = (hidden * positives).sum(-1).float()
    own = F.embedding(rows, positive[:, None]).squeeze(2)
    inside = torch.logaddexp(torch.logsumexp(logits, dim=2), own) - own
    per_row = positive.new_full((count,), -torch.inf)
    per_row = per_row.scatter_reduce(0, rows.flatten(), inside.flatten(), "amax")
    reached = per_row > -torch.inf
    kept = per_row.masked_fill(~reached, 0.0)
    loss = (kept if weights is None else kept * weights).sum() / reached.sum()
    return loss, per_row.detach().masked_fill(~reached, torch.nan)


def reduced_cross_entropy(
    hidden: Tensor,
    items: Tensor,
    targets: Tensor,
    negatives: int = 4096,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """RECE: cross entropy over the items that a locality-sensitive hash puts beside each row.

    Gusak et al., CIKM 2024, with one round and one extra chunk on either side: rows and items are sorted by the random
    direction they are closest to, both are cut into the same number of chunks, and each row is set against the items of
    its own chunk and of the two beside it.

    Args:
        hidden: (n, d) one row per target.
        items: (items, d) item table.
        targets: (n,) int64.
        negatives: about how many items a row is set against.
        weights: (n,) importance weights, or None.

    Returns:
        The scalar loss and the (n,) unweighted losses, detached.
    """
    chunks = max(1, min(len(hidden), 3 * len(items) // negatives))
    with torch.no_grad():
        directions = torch.randn(chunks, hidden.shape[1], device=hidden.device, dtype=hidden.dtype)
        rows, filled = _sorted_chunks(hidden, directions)
        numbers, real = _sorted_chunks(items, directions)
        # Beyond the first and the last chunk there are no items.
        numbers, real = F.pad(numbers, (0, 0, 1, 1)), F.pad(real, (0, 0, 1, 1))
    queries, vectors = F.embedding(rows, hidden), F.embedding(numbers, items)
    parts = []
    for shift in range(3):
        near = slice(shift, shift + chunks)
        logits = (queries @ vectors[near].transpose(1, 2)).float()
        hide = (numbers[near, None, :] == targets[rows][:, :, None]) | ~real[near, None, :]
        parts.append(torch.logsumexp(logits.masked_fill(hide, -torch.inf), dim=2))
    against = torch.logsumexp(torch.stack(parts), dim=0)[filled]  # (n,) in the order of the hash
    positive = (hidden * F.embedding(targets, items)).sum(-1).float()
    per_row = torch.logaddexp(against[torch.argsort(rows[filled])], positive) - positive
    return (per_row if weights is None else per_row * weights).mean(), per_row.detach()


def _sorted_chunks(vectors: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of ``vectors`` (n, d), sorted by the direction that each is closest to and cut into as many chunks as
    there are directions, whose sizes differ by one at most: (chunks, size), and which places are filled."""
    closest = torch.cat([(part @ directions.T).argmax(1) for part in vectors.split(BLOCK)])
    order = torch.argsort(closest, stable=True)
    count, chunks = len(order), len(directions)
    bounds = torch.arange(chunks + 1, device=order.device) * count // chunks
    places = bounds[:-1, None] + torch.arange(-(-count // chunks), device=order.device)
    filled = places < bounds[1:, None]
    return order[places.clamp(max=count - 1)], filled
