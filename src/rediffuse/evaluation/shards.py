"""Ranks and top-k lists where each process scores its own part of the catalogue."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rediffuse import distributed
from rediffuse.data.histories import Histories
from rediffuse.evaluation.metrics import POLICIES
from rediffuse.evaluation.rank import Ranking, RankingTask, Score, at_least, block_of_users, checked, distinct, ranks_of
from rediffuse.topk import exact_top_k


def rank_task_over_shards(
    score: Score, task: RankingTask, *, num_items: int, items: range, k: int = 20, user_block: int | None = None
) -> Ranking:
    """`rediffuse.evaluation.rank.rank_task`, for scores that no process has whole. Collective.

    A rank is the sum, over the processes, of the items that score at least as high as the true item. A list is made of
    the best k of each process. So the result is that of one process with the same scores, ties included.

    Args:
        score: ``score(histories, start)`` -> (B, len(items)): of this process's items, for the same users in all.
        task: users, their histories and their true items.
        num_items: size of the catalogue.
        items: the items of this process. The processes have all items together, in the order of their ranks.
        k: length of the lists.
        user_block: users per block, the same in all processes; None: as many as give about 4 million scores.

    Raises:
        TrainingError: a score is NaN.
        DataError: an item number in a history or among the true items is outside the catalogue.
    """
    seen = distinct(task.histories if task.seen is None else task.seen, num_items, "history")
    truth = distinct(task.truth, num_items, "true")
    users = len(truth)
    block = user_block or block_of_users(-(-num_items // distributed.world_size()))
    depth = min(k, num_items)
    ranks = {policy: np.empty(len(truth.items), dtype=np.int64) for policy in POLICIES}
    lists = {policy: np.full((users, k), -1, dtype=np.int32) for policy in POLICIES}
    tops = {policy: np.full((users, k), -np.inf, dtype=np.float32) for policy in POLICIES}
    for start in range(0, users, block):
        rows = np.arange(start, min(start + block, users))
        with torch.no_grad():
            found = score(task.histories.take(rows), start)
        scores = checked(found, len(rows), len(items), task.users, start)
        scratch = torch.empty_like(scores)
        true, hidden = truth.take(rows), seen.take(rows)
        for policy in POLICIES:
            if policy == "unseen":
                _, where = _within(hidden, items)
                scores[where] = -torch.inf
            held, where = _within(true, items)
            own = torch.full((len(true.items),), -torch.inf)
            own[held] = scores[where].cpu()
            own = distributed.all_gather(own).amax(0)
            counts = at_least(own.to(scores.device), scores, true, scratch)
            counts = distributed.all_gather(counts.cpu()).sum(0)
            ranks[policy][truth.offsets[start] : truth.offsets[rows[-1] + 1]] = ranks_of(own, counts, true)
            tops[policy][rows, :depth], lists[policy][rows, :depth] = (x.numpy() for x in _best(scores, items, depth))
    return Ranking(task.users, truth, ranks, lists, tops)


def _within(histories: Histories, items: range) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Which interactions (n,) are with ``items``, and the rows and the columns of these in the scores of ``items``."""
    held = np.flatnonzero((histories.items >= items.start) & (histories.items < items.stop))
    columns = histories.items[held].astype(np.int64) - items.start
    return torch.from_numpy(held), (torch.from_numpy(histories.owners[held]), torch.from_numpy(columns))


def _best(scores: Tensor, items: range, k: int) -> tuple[Tensor, Tensor]:
    """The k best of all processes' scores (B, n): values (B, k), and item numbers, -1 where a value is -inf."""
    values = torch.full((len(scores), k), -torch.inf)
    numbers = torch.full((len(scores), k), -1)
    best, columns = exact_top_k(scores, min(k, len(items)))
    values[:, : best.shape[1]], numbers[:, : best.shape[1]] = best.cpu(), columns.cpu() + items.start
    # Equal scores are in the order of items within a process, and the processes are in that order too.
    joined, candidates = (distributed.all_gather(x).transpose(0, 1).flatten(1) for x in (values, numbers))
    joined, order = joined.sort(dim=1, descending=True, stable=True)
    values, numbers = joined[:, :k], candidates.gather(1, order)[:, :k]
    return values, numbers.masked_fill(values == -torch.inf, -1)
