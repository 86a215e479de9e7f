"""Losses that compare a positive item with negatives drawn at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Rows of the table per slice; on a CPU they should fit into its caches.
SLICE_ROWS = {"cpu": 16_384, "cuda": 1_048_576}


def bpr(positive: Tensor, negative: Tensor) -> Tensor:
    """Bayesian personalised ranking, ``mean(-log sigmoid(positive - negative))`` (Rendle et al., UAI 2009).

    Args:
        positive: (n,) scores.
        negative: (n, k) scores.
    """
    return -F.logsigmoid(positive.float()[:, None] - negative.float()).mean()


def logistic(positive: Tensor, negative: Tensor) -> Tensor:
    """Binary cross entropy of each positive and its negatives; arguments as for `bpr`.

    ``mean over n of -log sigmoid(s+) - sum over k of log(1 - sigmoid(s-))``
    """
    return (F.softplus(-positive.float()) + F.softplus(negative.float()).sum(1)).mean()


def squared_error(positive: Tensor, negative: Tensor) -> Tensor:
    """Half the squared error of the probabilities; arguments as for `bpr`.

    ``mean over n of ((1 - sigmoid(s+))^2 + sum over k of sigmoid(s-)^2) / 2``; DiffNet's released code has the sum over
    n.
    """
    of_positive = torch.sigmoid(-positive.float()).square()
    return (of_positive + torch.sigmoid(negative.float()).square().sum(1)).mean() / 2


def binary_cross_entropy(
    hidden: Tensor,
    positives: Tensor,
    table: Tensor,
    vectors: Callable[[Tensor], Tensor],
    targets: Tensor,
    negatives: Tensor,
    beta: float = 1.0,
    weights: Tensor | None = None,
    sparse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Binary cross entropy of each target and its negatives: ``-beta log sigmoid(s+) - sum of log(1 - sigmoid(s-))``.

    With one negative and ``beta`` 1 it is SASRec's loss (Kang & McAuley, ICDM 2018); with many and `gbce_beta` it is
    gBCE (Petrov & Macdonald, RecSys 2023). A negative that equals the row's target is left out.

    The (n, k, d) vectors of the negatives are processed slice by slice, and their gradient is computed in the forward
    pass, while they are in cache.

    Args:
        hidden: (n, d) one row per target.
        positives: (n, d) the vectors of the targets.
        table: (items, d) the item table.
        vectors: maps rows of the table (..., d) to item vectors (..., d), differentiable; without parameters.
        targets: (n,) int64.
        negatives: (n, k) int64.
        weights: (n,) importance weights, or None.
        sparse: whether the gradient of the table is sparse.

    Returns:
        The scalar loss, and the (n,) unweighted losses, detached.
    """

    def of(positive: Tensor, logits: Tensor) -> Tensor:
        return beta * F.softplus(-positive) + F.softplus(logits).sum(1)

    return _against_negatives(of, hidden, positives, table, vectors, targets, negatives, weights, sparse)


def uniform_softmax(
    hidden: Tensor,
    positives: Tensor,
    table: Tensor,
    vectors: Callable[[Tensor], Tensor],
    targets: Tensor,
    negatives: Tensor,
    weights: Tensor | None = None,
    sparse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Cross entropy over each target and negatives of its own, drawn uniformly: ``log(e^s+ + sum of e^s-) - s+``.

    The sampled softmax of eSASRec (Tikhonovich et al., RecSys 2025). All candidates are drawn alike, so their logits
    need no correction; a negative that equals the row's target is left out.

    Arguments and results are those of `binary_cross_entropy`.
    """

    def of(positive: Tensor, logits: Tensor) -> Tensor:
        return torch.cat((positive[:, None], logits), 1).logsumexp(1) - positive

    return _against_negatives(of, hidden, positives, table, vectors, targets, negatives, weights, sparse)


def _against_negatives(
    loss: Callable[[Tensor, Tensor], Tensor],
    hidden: Tensor,
    positives: Tensor,
    table: Tensor,
    vectors: Callable[[Tensor], Tensor],
    targets: Tensor,
    negatives: Tensor,
    weights: Tensor | None,
    sparse: bool,
) -> tuple[Tensor, Tensor]:
    """The mean over n of ``loss(s+ (n,), s- (n, k)) -> (n,)``, and these, detached; s- of a target is -inf."""
    positive = (hidden * positives).sum(-1).float()
    scale = torch.ones_like(positive) if weights is None else weights
    scale = scale.detach() / len(positive)
    return _NegativesLoss.apply(hidden, positive, table, sparse, vectors, targets, negatives, scale, loss)  # type: ignore[return-value]


class _NegativesLoss(torch.autograd.Function):
    """The sum over n of scale * loss(s+, s-), and the (n,) losses, which have no gradient."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        positive: Tensor,
        table: Tensor,
        sparse: bool,
        vectors: Callable[[Tensor], Tensor],
        targets: Tensor,
        negatives: Tensor,
        scale: Tensor,
        loss: Callable[[Tensor, Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:
        count, drawn = negatives.shape
        per_row = torch.empty_like(scale)
        grad_hidden, grad_positive = torch.empty_like(hidden), torch.empty_like(positive)
        grad_rows = torch.empty(count, drawn, table.shape[1], dtype=table.dtype, device=table.device)
        step = max(1, SLICE_ROWS.get(table.device.type, SLICE_ROWS["cpu"]) // drawn)
        for start in range(0, count, step):
            chosen = slice(start, start + step)
            with torch.enable_grad():
                queries = hidden[chosen].detach().requires_grad_()
                own = positive[chosen].detach().requires_grad_()
                rows = F.embedding(negatives[chosen], table.detach()).requires_grad_()
                logits = torch.einsum("nd,nkd->nk", queries, vectors(rows).to(queries.dtype)).float()
                is_target = negatives[chosen] == targets[chosen, None]
                losses = loss(own, logits.masked_fill(is_target, -torch.inf))
                total = (losses * scale[chosen]).sum()
            found = torch.autograd.grad(total, (queries, own, rows))
            grad_hidden[chosen], grad_positive[chosen], grad_rows[chosen] = found
            per_row[chosen] = losses.detach()
        ctx.save_for_backward(grad_hidden, grad_positive, grad_rows, negatives)
        ctx.items, ctx.sparse = len(table), sparse
        ctx.mark_non_differentiable(per_row)
        return (per_row * scale).sum(), per_row

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _grad_rows: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grad_hidden, grad_positive, grad_rows, negatives = ctx.saved_tensors
        if grad_loss != 1:  # saves a pass over the gradient where there is one process
            grad_rows = grad_rows * grad_loss
        grad_table = torch.ops.aten.embedding_backward(grad_rows, negatives, ctx.items, -1, False, ctx.sparse)
        return grad_hidden * grad_loss, grad_positive * grad_loss, grad_table, *(None,) * 6


def gbce_beta(negatives: int, num_items: int, calibration: float = 0.75) -> float:
    """The power of the positive probability that corrects the overconfidence of sampling k negatives.

    Petrov & Macdonald, RecSys 2023: alpha = k / (num_items - 1), beta = alpha (t (1 - 1 / alpha) + 1 / alpha). It
    is 1 at t = 0 (plain binary cross entropy) and alpha at t = 1 (calibrated).
    """
    alpha = min(negatives / max(num_items - 1, 1), 1.0)
    return alpha * (calibration * (1 - 1 / alpha) + 1 / alpha)
