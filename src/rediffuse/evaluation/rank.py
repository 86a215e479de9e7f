"""Ranks of the true items in the whole catalogue, and top-K lists, one block of users at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rediffuse import distributed
from rediffuse.data.histories import Histories
from rediffuse.errors import ConfigError, DataError, TrainingError
from rediffuse.evaluation.metrics import NOT_RANKED, POLICIES
from rediffuse.models.base import Model
from rediffuse.topk import exact_top_k

# Scores held at once. Larger blocks do not fit the caches; smaller ones make matrix products inefficient.
_BLOCK_SCORES = 4_000_000

# Scores (B, num_items) for the users ``start .. start + B`` of a task, given their histories.
Score = Callable[[Histories, int], Tensor]


class RankingTask(Protocol):
    """The users to rank for: `rediffuse.data.split.Task`, or any object with these attributes."""

    @property
    def name(self) -> str: ...
    @property
    def users(self) -> NDArray[np.int64]: ...  # (n,)
    @property
    def histories(self) -> Histories: ...  # n rows: input of the model
    @property
    def truth(self) -> Histories: ...  # n rows: true items
    @property
    def seen(self) -> Histories | None: ...  # n rows: filtered by the policy "unseen"; None: histories
    @property
    def popularity(self) -> NDArray[np.int64]: ...  # (num_items,) training interactions per item


def block_of_users(num_items: int) -> int:
    """How many users to score at once."""
    return min(max(_BLOCK_SCORES // num_items, 16), 1024)


def model_scores(model: Model, task: RankingTask, seed: int = 0) -> Score:
    """The scoring function of a trained model for the users of a task, for `rank_task`."""

    def score(histories: Histories, start: int) -> Tensor:
        return model.score(histories, users=task.users[start : start + len(histories)], seed=seed)

    return score


@dataclass(frozen=True, eq=False)
class Ranking:
    """Ranks of the true items and top-K lists, under each of the `POLICIES`.

    Attributes:
        users: (n,) int64 user numbers.
        truth: n rows of distinct true items, ascending within a user.
        ranks: policy -> (true items,) int64, aligned with ``truth.items``, from 1; ties count against the model.
            `NOT_RANKED` if the item cannot be recommended (it is filtered, or scored -inf).
        items: policy -> (n, k) int32 item numbers, best first, equal scores by item number; -1 past the end.
        scores: policy -> (n, k) float32, -inf past the end.
    """

    users: NDArray[np.int64]
    truth: Histories
    ranks: dict[str, NDArray[np.int64]]
    items: dict[str, NDArray[np.int32]]
    scores: dict[str, NDArray[np.float32]]


def distinct(rows: Histories, num_items: int, what: str) -> Histories:
    """The distinct items of each row, ascending.

    Raises:
        DataError: an item number is outside ``0 .. num_items - 1``.
    """
    items = rows.items.astype(np.int64)
    wrong = (items < 0) | (items >= num_items)
    if wrong.any():
        first = int(wrong.argmax())
        raise DataError(
            f"{int(wrong.sum())} {what} item numbers are outside the catalogue of {num_items} items; "
            f"the first is {items[first]} in row {rows.owners[first]}.",
            "Use the item numbers that the model was trained on, and drop all other items.",
        )
    keys = np.unique(rows.owners * num_items + items)
    offsets = np.searchsorted(keys, np.arange(len(rows) + 1) * num_items)
    return Histories(offsets.astype(np.int64), (keys % num_items).astype(np.int32))


def cells(rows: Histories, device: torch.device) -> tuple[Tensor, Tensor]:
    """(t,) row and (t,) column of each item of the rows, in a matrix of scores on a device."""
    return torch.from_numpy(rows.owners).to(device), torch.from_numpy(rows.items.astype(np.int64)).to(device)


def checked(scores: Tensor, rows: int, num_items: int, users: NDArray[np.int64], start: int) -> Tensor:
    """The scores as contiguous float32. NaN raises an error that names the users."""
    if tuple(scores.shape) != (rows, num_items):
        raise ValueError(f"score returned shape {tuple(scores.shape)}, expected {(rows, num_items)}")
    scores = scores.to(torch.float32).contiguous()
    bad = scores.amax(1).isnan()  # amax propagates NaN, so no mask of the size of the scores is needed
    if bool(bad.any()):
        position = bad.nonzero().squeeze(1).cpu().numpy() + start
        raise TrainingError(
            f"The model scored {int(scores.isnan().sum())} items as NaN for {len(position)} of the users "
            f"{start}..{start + rows - 1} of the task (first: user number {users[position[0]]}).",
            "Weights or inputs are not finite: train with a lower learning rate, or clip gradients.",
        )
    return scores


def _tied_later(scores: NDArray[np.float32], owners: NDArray[np.int64]) -> NDArray[np.int64]:
    """(t,) number of true items of the same user with the same score that come later in ``scores`` (t,)."""
    order = np.lexsort((scores, owners))  # stable: equal scores stay in item order
    owners, scores = owners[order], scores[order]
    same = (owners[1:] == owners[:-1]) & (scores[1:] == scores[:-1])
    ends = np.append(~same, True)  # True at the last of each group of ties
    position = np.arange(len(order))
    last = np.minimum.accumulate(np.where(ends, position, len(order))[::-1])[::-1]
    later = np.empty(len(order), dtype=np.int64)
    later[order] = last - position
    return later


def true_ranks(scores: Tensor, truth: Histories, scratch: Tensor) -> NDArray[np.int64]:
    """(t,) ranks of the true items of a block; ties count against the model.

    A rank is the number of items scored at least as high (the item itself included), minus the true items that are
    tied with it and come later. So within a tie, other items come first, then the true ones by item number.
    """
    device = scores.device
    own = scores[cells(truth, device)]
    return ranks_of(own, at_least(own, scores, truth, scratch), truth)


def at_least(own: Tensor, scores: Tensor, truth: Histories, scratch: Tensor) -> Tensor:
    """(t,) how many of the scores (B, n) of its user are at least each score ``own`` (t,) of a true item."""
    device = scores.device
    counts = torch.zeros(len(own), dtype=torch.int64, device=device)
    lengths = truth.lengths
    for j in range(int(lengths.max(initial=0))):
        rows = np.flatnonzero(lengths > j)
        entries = torch.from_numpy(truth.offsets[rows] + j).to(device)
        selected = scores if len(rows) == len(scores) else scores[torch.from_numpy(rows).to(device)]
        # Sums of floats are three times as fast as sums of booleans. In single precision they are exact below 2**24.
        higher = torch.ge(selected, own[entries, None], out=scratch[: len(rows)])
        wide = torch.int64 if higher.shape[1] >= 2**24 else None  # not every device has double precision
        counts[entries] = higher.sum(1, dtype=wide).long()
    return counts


def ranks_of(own: Tensor, counts: Tensor, truth: Histories) -> NDArray[np.int64]:
    """(t,) as `true_ranks`, from the scores ``own`` (t,) of the true items and from `at_least` of the catalogue."""
    true_scores = own.cpu().numpy()
    ranks = counts.cpu().numpy()
    if len(own) > len(truth):
        ranks -= _tied_later(true_scores, truth.owners)
    return np.where(true_scores == -np.inf, NOT_RANKED, ranks)


def ranks_up_to(k: int, scores: Tensor, truth: Histories) -> NDArray[np.int64]:
    """(t,) as `true_ranks` where a rank is at most ``k``, otherwise `NOT_RANKED`: what a metric at k needs, faster."""
    best, _ = exact_top_k(scores, min(k, scores.shape[1]))
    owners, items = cells(truth, scores.device)
    own, worst = scores[owners, items], best[owners, -1]
    at_least = (best[owners] >= own[:, None]).sum(1)
    tied = torch.nonzero(own == worst).squeeze(1)  # with items beyond the k-th, perhaps
    at_least[tied] = (scores[owners[tied]] >= own[tied, None]).sum(1)
    true_scores, ranks = own.cpu().numpy(), at_least.cpu().numpy()
    if len(owners) > len(truth):
        ranks -= _tied_later(true_scores, truth.owners)
    return np.where((own < worst).cpu().numpy() | (true_scores == -np.inf) | (ranks > k), NOT_RANKED, ranks)


def rank_task(
    score: Score,
    task: RankingTask,
    *,
    num_items: int,
    k: int = 20,
    user_block: int | None = None,
    shared: bool = False,
) -> Ranking:
    """Compute exact ranks of all true items, and top-k lists, with seen items kept and filtered.

    At most one block of scores is in memory. The result does not depend on the block size.

    Args:
        score: ``score(histories, start)`` -> (B, num_items), higher is better, for the rows ``start``,
            ``start + 1``, ... of ``task.histories``. Ranked as float32. An item scored -inf cannot be recommended.
        task: users, their histories and their true items.
        num_items: size of the catalogue.
        k: length of the lists; beyond the catalogue they are padded with -1.
        user_block: users per block; None: as many as give about 4 million scores.
        shared: divide the blocks among the processes of a distributed job. Every process must call this; all get the
            result of a single process, to the bit.

    Raises:
        TrainingError: a score is NaN.
        DataError: an item number in a history or among the true items is outside the catalogue.
        ConfigError: ``num_items``, ``k`` or ``user_block`` is below 1.
    """
    for option, value in (("num_items", num_items), ("k", k), ("user_block", user_block)):
        if value is not None and value < 1:
            raise ConfigError(f"{option} is {value}; it must be at least 1.")
    seen = distinct(task.histories if task.seen is None else task.seen, num_items, "history")
    truth = distinct(task.truth, num_items, "true")
    users = len(truth)
    block = user_block or block_of_users(num_items)
    depth = min(k, num_items)
    ranks = {policy: np.full(len(truth.items), np.iinfo(np.int64).min) for policy in POLICIES}
    items = {policy: np.full((users, k), -1, dtype=np.int32) for policy in POLICIES}
    tops = {policy: np.full((users, k), -np.inf, dtype=np.float32) for policy in POLICIES}

    with torch.inference_mode():
        scratch = None
        rank, world_size = (distributed.rank(), distributed.world_size()) if shared else (0, 1)
        for start in range(rank * block, users, world_size * block):
            rows = np.arange(start, min(start + block, users))
            scores = checked(score(task.histories.take(rows), start), len(rows), num_items, task.users, start)
            if scratch is None:
                scratch = torch.empty_like(scores)
            true, hidden = truth.take(rows), seen.take(rows)
            where = cells(hidden, scores.device)
            kept = scores[where]
            for policy in POLICIES:
                if policy == "unseen":
                    scores[where] = -torch.inf
                ranks[policy][truth.offsets[start] : truth.offsets[rows[-1] + 1]] = true_ranks(scores, true, scratch)
                best, columns = exact_top_k(scores, depth)
                tops[policy][rows, :depth] = best.cpu().numpy()
                items[policy][rows, :depth] = columns.masked_fill(best == -torch.inf, -1).cpu().numpy()
            scores[where] = kept  # the model may own the tensor
    if shared:
        for arrays in (ranks, items, tops):
            distributed.all_reduce_max(*arrays.values())
    return Ranking(task.users, truth, ranks, items, tops)
