"""A softmax loss over the items near each target, found by random projections."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rediffuse.topk import exact_top_k


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

    Mezentsev et al., RecSys 2024, algorithm 1 with Mix. Each of 2 sqrt(n) buckets has a direction, which is a random
    mixture of the rows, and holds the 2 sqrt(n) rows and the ``negatives`` items with the largest projections on it. A
    row in several buckets has the largest of its losses; a row in none is left out of the mean.

    Args:
        hidden: (n, d) one row per target.
        positives: (n, d) the vectors of the targets.
        table: (items, d) the vectors that items are chosen by; not differentiated.
        vectors: maps item numbers (...) int64 to their vectors (..., d), differentiable.
        targets: (n,) int64.
        negatives: items per bucket.
        weights: (n,) importance weights, or None.

    Returns:
        The scalar loss, and the (n,) unweighted losses, detached; NaN where a row is in no bucket.
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
    # Not by indexing, whose gradient is summed in no fixed order.
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
