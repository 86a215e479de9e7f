"""Losses that set what was chosen against items drawn at random."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def bpr(positive: Tensor, negative: Tensor) -> Tensor:
    """Bayesian personalised ranking, ``mean(-log sigmoid(positive - negative))`` (Rendle et al., UAI 2009).

    Args:
        positive: (n,) scores.
        negative: (n, k) scores.
    """
    return -F.logsigmoid(positive.float()[:, None] - negative.float()).mean()


def logistic(positive: Tensor, negative: Tensor) -> Tensor:
    """Binary cross entropy of each positive and all its negatives, ``mean over n of -log sigmoid(s+) - sum over k of
    log(1 - sigmoid(s-))``; arguments as for `bpr`."""
    return (F.softplus(-positive.float()) + F.softplus(negative.float()).sum(1)).mean()


def squared_error(positive: Tensor, negative: Tensor) -> Tensor:
    """Half the squared error of probabilities, ``mean over n of ((1 - sigmoid(s+))^2 + sum over k of sigmoid(s-)^2) /
    2``, which DiffNet's released code sums over n; arguments as for `bpr`."""
    of_positive = torch.sigmoid(-positive.float()).square()
    return (of_positive + torch.sigmoid(negative.float()).square().sum(1)).mean() / 2


def binary_cross_entropy(
    hidden: Tensor,
    items: Tensor,
    targets: Tensor,
    negatives: Tensor,
    beta: float = 1.0,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One against sampled items: ``-beta log sigmoid(s+) - sum over k of log(1 - sigmoid(s-))``.

    SASRec's loss with one negative and ``beta`` 1 (Kang & McAuley, ICDM 2018); with many and `gbce_beta`, gBCE
    (Petrov & Macdonald, RecSys 2023). A negative that equals the row's target is left out.

    Args:
        hidden: (n, d) one row per target.
        items: (items, d) item table.
        targets: (n,) int64.
        negatives: (n, k) int64.
        weights: (n,) importance weights, or None.

    Returns:
        The scalar loss and the (n,) unweighted losses, detached.
    """
    positive = (hidden * items[targets]).sum(-1).float()
    against = torch.einsum("nd,nkd->nk", hidden, items[negatives].to(hidden.dtype)).float()
    against = F.softplus(against).masked_fill(negatives == targets[:, None], 0.0)
    per_row = beta * F.softplus(-positive) + against.sum(1)
    return (per_row if weights is None else per_row * weights).mean(), per_row.detach()


def gbce_beta(negatives: int, num_items: int, calibration: float = 0.75) -> float:
    """The power of the positive probability that undoes the overconfidence of sampling k of the other items.

    Petrov & Macdonald, RecSys 2023: alpha = k / (num_items - 1), beta = alpha (t (1 - 1 / alpha) + 1 / alpha). It
    is 1 at t = 0 (plain binary cross entropy) and alpha at t = 1 (calibrated).
    """
    alpha = min(negatives / max(num_items - 1, 1), 1.0)
    return alpha * (calibration * (1 - 1 / alpha) + 1 / alpha)
