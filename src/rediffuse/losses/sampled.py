"""The softmax over a catalogue, estimated from items that the whole batch is set against."""

from __future__ import annotations

import torch
from torch import Tensor


def sampled_softmax(
    hidden: Tensor,
    positives: Tensor,
    against: Tensor,
    targets: Tensor,
    negatives: Tensor,
    log_chance: Tensor,
    weights: Tensor | None = None,
    apart: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross entropy over the target and shared negatives, with the logQ correction.

    Bengio & Senecal 2008; Yi et al., RecSys 2019, eq. 3: the log of the chance to be drawn is taken off the
    negatives' logits, so that the expected gradient is that of the full softmax. A negative that equals a
    row's target is masked out of that row. With the targets of the batch themselves as negatives this is the in-batch
    softmax of Yi et al.

    Args:
        hidden: (n, d) one row per target.
        positives: (n, d) the vectors of the targets.
        against: (m, d) the vectors of the negatives.
        targets: (n,) int64.
        negatives: (m,) int64 items drawn for the whole batch.
        log_chance: (m,) log of the expected number of times that each negative is among the ``m``.
        weights: (n,) importance weights, or None.
        apart: groups of the rows (n,) and of the negatives (m,): a row is not set against negatives of its own group,
            as the targets of one history are no draws by chance. None: no groups.

    Returns:
        The scalar loss and the (n,) unweighted cross entropies, detached.
    """
    positive = (hidden * positives).sum(-1)
    others = hidden @ against.T - log_chance.to(hidden.dtype)
    hide = negatives[None, :] == targets[:, None]
    if apart is not None:
        hide |= apart[0][:, None] == apart[1][None, :]
    others = others.masked_fill(hide, -torch.inf)
    logits = torch.cat((positive[:, None], others.to(positive.dtype)), dim=1).float()
    per_row = torch.logsumexp(logits, dim=1) - logits[:, 0]
    loss = (per_row if weights is None else per_row * weights).mean()
    return loss, per_row.detach()


class Draws:
    """Items drawn with replacement by given chances, of any number of items (`torch.multinomial` ends at 2**24).

    Args:
        chances: (items,) not negative, not all zero.
    """

    def __init__(self, chances: Tensor) -> None:
        self.sums = chances.cpu().double().cumsum(0)
        self.log_chances = (chances / chances.sum()).log()

    def draw(self, count: int) -> Tensor:
        """(count,) int64 item numbers; an item of chance 0 is never among them."""
        # Places in (0, sum]: of items that end at the same place, the first is the one with a chance.
        places = (1 - torch.rand(count, dtype=torch.float64)) * self.sums[-1]
        return torch.searchsorted(self.sums, places).to(self.log_chances.device)
