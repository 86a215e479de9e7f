"""Cross entropy over a whole catalogue, without the (targets x items) matrix of logits in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Logits in memory at once. On a CPU they should fit into its caches, but a training batch on a catalogue of ten
# thousand items is one slice (measured fastest); a GPU needs few large products.
SLICE_ELEMENTS = {"cpu": 4_000_000, "cuda": 256_000_000}
# Rows of a product are a multiple of this.
ROWS = 64

# An additive bias on some logits: row numbers, item numbers, and the bias, one for all (a scalar) or one for each.
Biased = tuple[Tensor, Tensor, Tensor]


def softmax_cross_entropy(
    hidden: Tensor,
    items: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    biased: Biased | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross entropy of ``hidden @ items.T`` at ``targets`` over the whole catalogue.

    If `ROWS` rows of logits fit into a slice, they are processed in slices of rows, and the gradient is computed in the
    forward pass, so logits are read while they are in cache and computed once. Larger catalogues are processed in
    slices of items, and logits are computed again in the backward pass, so memory grows with the table alone. Under
    autocast the products run in its dtype.

    Args:
        hidden: (n, d) one row per target.
        items: (items, d) item table.
        targets: (n,) int64 item numbers.
        weights: (n,) importance weights, or None for ones. Not differentiated.
        biased: (rows, columns, bias): ``bias``, a scalar or one value per pair, is added to the logits at these pairs,
            which are distinct.

    Returns:
        The scalar loss, which is the mean over rows of weight * cross entropy; and the (n,) unweighted cross entropies,
        detached.
    """
    count, dtype = len(hidden), _product_dtype(hidden)
    if weights is None:
        weights = torch.ones(count, dtype=torch.float32, device=hidden.device)
    # Padded to a multiple of ROWS with rows of weight zero: the CPU's half-precision products are compiled for each new
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
    form = _SlicedByRows if ROWS * len(items) <= _slice_elements(hidden) else _SlicedByItems
    loss, per_row = form.apply(hidden, items, bias, targets, scale, rows, columns, dtype)  # type: ignore[misc]
    return loss, per_row[:count]


def _slice_elements(hidden: Tensor) -> int:
    return SLICE_ELEMENTS.get(hidden.device.type, SLICE_ELEMENTS["cpu"])


def _product_dtype(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


class _SlicedByRows(torch.autograd.Function):
    """The loss in slices of rows; the gradient is computed in the forward pass."""

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
        step = max(1, _slice_elements(hidden) // len(items) // ROWS) * ROWS
        for start in range(0, count, step):
            chosen = slice(start, start + step)
            logits = queries[chosen] @ table.T
            target = targets[chosen]
            own = torch.arange(len(target), device=target.device)
            pair = inside = None
            if rows is not None and bias is not None:
                inside = (rows >= start) & (rows < start + step)
                pair = (rows[inside] - start, columns[inside])  # type: ignore[index]
                logits[pair] += (bias if bias.dim() == 0 else bias[inside]).to(dtype)
            probabilities = torch.softmax(logits, dim=-1)
            at_target = probabilities[own, target].to(per_row.dtype)
            per_row[chosen] = -at_target.log()
            tiny = at_target < 1e-30  # close to underflow: compute the log of the sum directly
            if bool(tiny.any()):
                full = logits[tiny].to(per_row.dtype)
                per_row[chosen][tiny] = torch.logsumexp(full, dim=-1) - full[own[: len(full)], target[tiny]]
            probabilities[own, target] -= 1
            if pair is not None and grad_bias is not None:
                of_pairs = probabilities[pair].to(scale.dtype) * scale[chosen][pair[0]]
                if grad_bias.dim():
                    grad_bias[inside] = of_pairs.to(grad_bias.dtype)
                else:
                    grad_bias += of_pairs.sum()
            # Rows are weighted on the narrow side of each product, not in the wide matrix of probabilities.
            grad_hidden[chosen] = (probabilities @ table) * scale[chosen][:, None]
            grad_items += probabilities.T @ (hidden[chosen] * scale[chosen][:, None]).to(dtype)
        loss = (per_row * scale).sum()
        ctx.save_for_backward(grad_hidden, grad_items, grad_bias)
        ctx.mark_non_differentiable(per_row)
        return loss, per_row

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _grad_rows: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grad_hidden, grad_items, grad_bias = ctx.saved_tensors
        # The incoming gradient is a scalar: 1, or what the loss was multiplied by.
        return (
            grad_hidden * grad_loss,
            grad_items * grad_loss,
            None if grad_bias is None else grad_bias * grad_loss,
            *(None,) * 5,
        )


class _SlicedByItems(torch.autograd.Function):
    """The loss in slices of items; logits are computed again in the backward pass."""

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
        wide = torch.promote_types(hidden.dtype, torch.float32)
        if rows is not None and columns is not None:  # in order of items, so that each slice takes a range of them
            order = torch.argsort(columns, stable=True)
            rows, columns = rows[order], columns[order]
            ctx.order = order
            if bias is not None and bias.dim():
                bias = bias[order]
        queries = hidden.to(dtype)
        ctx.dtype = dtype
        log_total = torch.full((len(hidden),), -torch.inf, dtype=wide, device=hidden.device)
        at_target = torch.empty_like(log_total)
        for _, _, logits, own, target, _, _ in _slices(queries, items, bias, targets, rows, columns, wide):
            log_total = torch.logaddexp(log_total, torch.logsumexp(logits, dim=1))
            at_target[own] = logits[own, target]
        per_row = log_total - at_target
        ctx.save_for_backward(hidden, items, bias, targets, scale, rows, columns, log_total)
        ctx.mark_non_differentiable(per_row)
        return (per_row * scale).sum(), per_row

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _grad_rows: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, items, bias, targets, scale, rows, columns, log_total = ctx.saved_tensors
        scale = scale * grad_loss
        queries = hidden.to(ctx.dtype)
        weighted = (hidden * scale[:, None]).to(ctx.dtype)
        grad_hidden, grad_items = torch.zeros_like(hidden), torch.empty_like(items)
        grad_bias = None if bias is None else torch.zeros_like(bias)
        for chosen, table, logits, own, target, pair, inside in _slices(
            queries, items, bias, targets, rows, columns, log_total.dtype
        ):
            probabilities = logits.sub_(log_total[:, None]).exp_()
            probabilities[own, target] -= 1
            if pair is not None and grad_bias is not None:
                of_pairs = probabilities[pair] * scale[pair[0]]
                if grad_bias.dim():
                    grad_bias[ctx.order[inside]] = of_pairs.to(grad_bias.dtype)
                else:
                    grad_bias += of_pairs.sum()
            probabilities = probabilities.to(ctx.dtype)
            # Rows are weighted on the narrow side of each product, not in the wide matrix of probabilities.
            grad_hidden += probabilities @ table
            grad_items[chosen] = probabilities.T @ weighted
        return grad_hidden * scale[:, None], grad_items, grad_bias, *(None,) * 5


def _slices(
    queries: Tensor,
    items: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    rows: Tensor | None,
    columns: Tensor | None,
    wide: torch.dtype,
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor, Tensor, tuple[Tensor, Tensor] | None, slice]]:
    """Yield slices of items.

    Each has: the slice, its rows of the table (m, d), its logits (n, m), the rows whose target is in it, these targets
    as columns of the slice, the biased pairs (row, column of the slice), and which pairs they are. ``columns`` must
    ascend.
    """
    # A quarter of the size, because each slice is read several times: measured fastest on a CPU.
    width = max(1, _slice_elements(queries) // 4 // len(queries) // ROWS) * ROWS
    starts = list(range(0, len(items), width))
    bounds = [0] * (len(starts) + 1)
    if columns is not None:
        edges = torch.tensor([*starts, len(items)], device=columns.device)
        bounds = torch.searchsorted(columns, edges).tolist()
    for number, start in enumerate(starts):
        chosen = slice(start, min(start + width, len(items)))
        table = items[chosen].to(queries.dtype)
        logits = (queries @ table.T).to(wide)
        pair, inside = None, slice(bounds[number], bounds[number + 1])
        if rows is not None and columns is not None and bias is not None:
            pair = (rows[inside], columns[inside] - start)
            logits[pair] += (bias if bias.dim() == 0 else bias[inside]).to(wide)
        own = torch.nonzero((targets >= chosen.start) & (targets < chosen.stop)).squeeze(1)
        yield chosen, table, logits, own, targets[own] - start, pair, inside
