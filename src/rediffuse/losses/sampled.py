"""The softmax over a catalogue, estimated from negatives that the whole batch shares."""

from __future__ import annotations

import torch
from torch import Tensor


def sampled_softmax(
    hidden: Tensor,
    positives: Tensor,
    against: Tensor,
    targets: Tensor,
    negatives: Tensor,
    log_counts: Tensor,
    weights: Tensor | None = None,
    groups: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross entropy over the target and shared negatives, with the logQ correction.

    Bengio & Senecal 2008; Yi et al., RecSys 2019, eq. 3: the log of the expected count of a negative is subtracted from
    its logit, which makes the loss approach the full softmax as the number of negatives grows. A negative that equals a
    row's target is masked out of that row. With the targets of the batch as negatives, this is the in-batch softmax of
    Yi et al.

    Args:
        hidden: (n, d) one row per target.
        positives: (n, d) the vectors of the targets.
        against: (m, d) the vectors of the negatives.
        targets: (n,) int64.
        negatives: (m,) int64 items drawn for the whole batch.
        log_counts: (m,) log of the expected number of times that each negative is among the ``m``.
        weights: (n,) importance weights, or None.
        groups: groups of the rows (n,) and of the negatives (m,): a row is not compared with negatives of its own
            group, because the targets of one history are not independent draws. None: no groups.

    Returns:
        The scalar loss, and the (n,) unweighted cross entropies, detached.
    """
    positive = (hidden * positives).sum(-1)
    others = hidden @ against.T - log_counts.to(hidden.dtype)
    hide = negatives[None, :] == targets[:, None]
    if groups is not None:
        hide |= groups[0][:, None] == groups[1][None, :]
    others = others.masked_fill(hide, -torch.inf)
    logits = torch.cat((positive[:, None], others.to(positive.dtype)), dim=1).float()
    per_row = torch.logsumexp(logits, dim=1) - logits[:, 0]
    loss = (per_row if weights is None else per_row * weights).mean()
    return loss, per_row.detach()


class Draws:
    """Draws of items with replacement, from a catalogue of any size (`torch.multinomial` takes at most 2**24 items).

    Args:
        weights: (items,) what the probabilities are proportional to: not negative, not all zero.

    Attributes:
        log_probabilities: (items,) log of the probability of each item.
    """

    def __init__(self, weights: Tensor) -> None:
        self.sums = weights.cpu().double().cumsum(0)
        self.log_probabilities = (weights / weights.sum()).log()

    def draw(self, count: int) -> Tensor:
        """(count,) int64 item numbers; an item of weight 0 is never drawn."""
        # Places in (0, sum]: an item of weight 0 ends where the item before it ends, and the first of the two is found.
        places = (1 - torch.rand(count, dtype=torch.float64)) * self.sums[-1]
        return torch.searchsorted(self.sums, places).to(self.log_probabilities.device)
