"""The ranks and lists that re-ranking makes of those of a model."""

from __future__ import annotations

import dataclasses

import numpy as np

from rediffuse.data.histories import Histories
from rediffuse.evaluation.metrics import NOT_RANKED, POLICIES
from rediffuse.evaluation.rank import Ranking
from rediffuse.reranking import Reranking


def rerank(ranking: Ranking, reranking: Reranking, k: int, histories: Histories) -> Ranking:
    """Make lists of ``k`` items of the lists of a ranking.

    Args:
        ranking: its lists are the pools: `rediffuse.reranking.pool_size` of ``k`` items per user.
        reranking: how lists are made.
        k: length of the lists.
        histories: of the users of the ranking.

    Returns:
        The lists; the rank of a true item is its place in the list, `NOT_RANKED` if it is not in it.
    """
    users, own = len(ranking.users), histories.without_synthetic()
    truth, items, scores, ranks = ranking.truth, {}, {}, {}
    for policy in POLICIES:
        items[policy] = np.full((users, k), -1, dtype=np.int32)
        scores[policy] = np.full((users, k), -np.inf, dtype=np.float32)
        ranks[policy] = np.full(len(truth.items), NOT_RANKED)
        for user in range(users):
            pool = ranking.items[policy][user]
            size = int((pool >= 0).sum())
            chosen = reranking.choose(pool[:size], ranking.scores[policy][user, :size], k, own.row(user))
            items[policy][user, : len(chosen)] = pool[chosen]
            scores[policy][user, : len(chosen)] = ranking.scores[policy][user, chosen]
            found = truth.row(user)[:, None] == pool[chosen]
            true = slice(truth.offsets[user], truth.offsets[user + 1])
            if len(chosen):
                ranks[policy][true] = np.where(found.any(1), found.argmax(1) + 1, NOT_RANKED)
    return dataclasses.replace(ranking, items=items, scores=scores, ranks=ranks)
