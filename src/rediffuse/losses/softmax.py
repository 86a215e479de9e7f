"""Softmax losses over a catalogue that never hold more than a slice of the (targets x items) matrix."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# A slice of logits holds at most this many numbers. Large enough that a training batch on a catalogue of
# ten thousand items is one slice (measured fastest), small enough that memory stays flat for large ones.
SLICE_ELEMENTS = 4_000_000
ROWS = 64

# What (rows, items) pairs get an additive bias: three tensors (row numbers, item numbers, scalar bias).
Biased = tuple[Tensor, Tensor, Tensor]


def softmax_cross_entropy(
    hidden: Tensor,
    items: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    biased: Biased | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross entropy of ``hidden @ items.T`` at ``targets`` over the whole catalogue.

    The gradient is computed in the forward pass, slice by slice, so that logits are read while they are in
    cache and are never written out for the backward pass. Under autocast the products run in its dtype.

    Args:
        hidden: (n, d) one row per target.
        items: (items, d) item table.
        targets: (n,) int64 item numbers.
        weights: (n,) importance weights, or None for ones. Not differentiated.
        biased: (rows, columns, bias): ``bias`` () is added to the logits at those pairs, which are distinct.

    Returns:
        The scalar loss, mean over rows of weight * cross entropy, and the (n,) unweighted cross entropies,
        detached.
    """
    count, dtype = len(hidden), _product_dtype(hidden)
    if weights is None:
        weights = torch.ones(count, dtype=torch.float32, device=hidden.device)
    # Rows of weight zero make up a multiple of ROWS: the CPU's half-precision products are compiled for each new
    # shape, which takes longer than the product.
    extra = -count % ROWS
    if extra:
        hidden, targets, weights = (
            F.pad(hidden, (0, 0, 0, extra)),
            F.pad(targets, (0, extra)),
            F.pad(weights, (0, extra)),
        )
    scale = (weights / max(count, 1)).to(hidden.dtype)
    rows, columns, bias = biased if biased is not None else (None, None, None)
    loss, per_row = _SlicedCrossEntropy.apply(hidden, items, bias, targets, scale, rows, columns, dtype)  # type: ignore[misc]
    return loss, per_row[:count]


def _product_dtype(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


class _SlicedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        items: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: Tensor,
        rows: Tensor | None,
        columns: Tensor | None,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        count = len(hidden)
        table = items.to(dtype)
        queries = hidden.to(dtype)
        per_row = torch.empty(count, dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        grad_hidden = torch.empty_like(hidden)
        grad_items = torch.zeros_like(items)
        grad_bias = None if bias is None else torch.zeros_like(bias)
        step = max(1, SLICE_ELEMENTS // len(items) // ROWS) * ROWS
        for start in range(0, count, step):
            part = slice(start, start + step)
            logits = queries[part] @ table.T
            target = targets[part]
            own = torch.arange(len(target), device=target.device)
            pair = None
            if rows is not None and bias is not None:
                inside = (rows >= start) & (rows < start + step)
                pair = (rows[inside] - start, columns[inside])  # type: ignore[index]
                logits[pair] += bias.to(dtype)
            chances = torch.softmax(logits, dim=-1)
            at_target = chances[own, target].to(per_row.dtype)
            per_row[part] = -at_target.log()
            faint = at_target < 1e-30  # about to underflow: take the log of the sum directly
            if bool(faint.any()):
                full = logits[faint].to(per_row.dtype)
                per_row[part][faint] = torch.logsumexp(full, dim=-1) - full[own[: len(full)], target[faint]]
            chances[own, target] -= 1
            if pair is not None and grad_bias is not None:
                grad_bias += (chances[pair].to(scale.dtype) * scale[part][pair[0]]).sum()
            # Rows are weighted on the narrow side of each product, not in the wide matrix of chances.
            grad_hidden[part] = (chances @ table) * scale[part][:, None]
            grad_items += chances.T @ (hidden[part] * scale[part][:, None]).to(dtype)
        loss = (per_row * scale).sum()
        ctx.save_for_backward(grad_hidden, grad_items, grad_bias)
        ctx.mark_non_differentiable(per_row)
        return loss, per_row

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _grad_rows: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grad_hidden, grad_items, grad_bias = ctx.saved_tensors
        # The loss ends the graph, so its incoming gradient is a scalar (1, or a loss scale) that we fold in.
        return (
            grad_hidden * grad_loss,
            grad_items * grad_loss,
            None if grad_bias is None else grad_bias * grad_loss,
            *(None,) * 5,
        )


def sampled_softmax(
    hidden: Tensor,
    items: Tensor,
    targets: Tensor,
    negatives: Tensor,
    log_chance: Tensor,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross entropy over the target and shared sampled negatives, with the logQ correction.

    Bengio & Senecal 2008; Yi et al., RecSys 2019, eq. 3: the log of the chance to be drawn is taken off the
    negatives' logits, so that the expected gradient is that of the full softmax. A negative that equals a
    row's target is masked out of that row.

    Args:
        hidden: (n, d) one row per target.
        items: (items, d) item table.
        targets: (n,) int64.
        negatives: (m,) int64 items drawn for the whole batch.
        log_chance: (items,) log of the expected number of times an item is among the ``m`` negatives.
        weights: (n,) importance weights, or None.

    Returns:
        The scalar loss and the (n,) unweighted cross entropies, detached.
    """
    positive = (hidden * items[targets]).sum(-1)
    against = hidden @ items[negatives].T - log_chance[negatives].to(hidden.dtype)
    against = against.masked_fill(negatives[None, :] == targets[:, None], -torch.inf)
    logits = torch.cat((positive[:, None], against.to(positive.dtype)), dim=1).float()
    per_row = torch.logsumexp(logits, dim=1) - logits[:, 0]
    loss = (per_row if weights is None else per_row * weights).mean()
    return loss, per_row.detach()
