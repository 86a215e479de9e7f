"""From item numbers to item numbers: people's histories in, their best items out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rediffuse.data.histories import Histories
from rediffuse.models.base import Model
from rediffuse.models.sampling import Sampling
from rediffuse.recommender.index import ItemIndex
from rediffuse.seeds import derive
from rediffuse.topk import exact_top_k


@dataclass(frozen=True)
class RankingQuery:
    """What one person is to get: ``k`` items, none of ``excluded``, and of ``candidates`` alone unless that is None.

    Both hold item numbers. ``filter_seen`` leaves out the items of the history.
    """

    k: int
    excluded: NDArray[np.int64]
    candidates: NDArray[np.int64] | None = None
    filter_seen: bool = True


@dataclass(frozen=True)
class RankedItems:
    """(n,) item numbers, best first; their scores, and the scores' standard deviations if they were asked for."""

    items: NDArray[np.int64]
    scores: NDArray[np.float32]
    uncertainty: NDArray[np.float32] | None


# Of lists that an index makes, seen and excluded items among them: deeper ones, whose recall nobody measured and which
# take an index longer than scoring, are exact.
DEEPEST = 1024


class Ranker:
    """A model, and what finds the items it ranks first.

    Args:
        model: in evaluation mode.
        item_vectors: (num_items, d) of the model, or None.
        index: over these, or None: all items are scored.
    """

    def __init__(self, model: Model, item_vectors: Tensor | None, index: ItemIndex | None) -> None:
        self.model, self.item_vectors, self.index = model, item_vectors, index

    @torch.inference_mode()
    def rank(
        self,
        rows: Histories,
        who: NDArray[np.int64],
        asks: Sequence[RankingQuery],
        sampling: Sampling,
        samples: int = 1,
    ) -> list[RankedItems]:
        """The best items of each of n people, scored together; an answer does not depend on the others.

        Args:
            rows: n histories of item numbers.
            who: (n,) their numbers in training, or -1.
            asks: n of them.
            sampling: of the first draw; further ones have seeds derived from its seed.
            samples: draws to average.
        """
        draws = [sampling]
        if self.model.stochastic:
            seeds = (derive(sampling.seed, "sample", draw) for draw in range(1, samples))
            draws += [replace(sampling, seed=seed) for seed in seeds]
        own = rows.without_synthetic()
        quick = np.zeros(len(rows), dtype=np.bool_)
        if self.index is not None:
            most = min(DEEPEST, self.model.num_items // 2)
            # The index does not know what a model says of items already in the history; left out, it does not matter.
            depths = own.lengths + [ask.k + len(ask.excluded) for ask in asks]
            plain = np.asarray([ask.filter_seen and ask.candidates is None for ask in asks], dtype=np.bool_)
            quick = plain & (depths <= most) & ((own.lengths > 0) | self.model.has_user_state(who))
        answers: dict[int, RankedItems | None] = {}
        if len(people := np.flatnonzero(quick)):
            some = [asks[person] for person in people.tolist()]
            found = self._by_index(rows.take(people), who[people], some, draws, samples > 1)
            answers |= dict(zip(people.tolist(), found, strict=True))
        # Also whom the index found too little for.
        if len(people := np.asarray([n for n in range(len(rows)) if answers.get(n) is None], dtype=np.int64)):
            some = [asks[person] for person in people.tolist()]
            found = self._by_all_scores(rows.take(people), who[people], some, draws, samples > 1)
            answers |= dict(zip(people.tolist(), found, strict=True))
        return [answer for _, answer in sorted(answers.items()) if answer is not None]

    def _by_all_scores(
        self,
        rows: Histories,
        who: NDArray[np.int64],
        asks: Sequence[RankingQuery],
        draws: Sequence[Sampling],
        uncertain: bool,
    ) -> list[RankedItems]:
        own = rows.without_synthetic()
        mean, spread = _over(self._scores(rows, who, sampling) for sampling in draws)
        for person, ask in enumerate(asks):
            if ask.candidates is not None:
                others = torch.ones(mean.shape[1], dtype=torch.bool)
                others[torch.from_numpy(ask.candidates)] = False
                mean[person, others] = -torch.inf
            if len(ask.excluded):
                mean[person, torch.from_numpy(ask.excluded)] = -torch.inf
        filtered = np.repeat([ask.filter_seen for ask in asks], own.lengths)
        at = own.owners[filtered], own.items[filtered].astype(np.int64)
        mean[torch.from_numpy(at[0]), torch.from_numpy(at[1])] = -torch.inf
        scores, items = exact_top_k(mean, min(max((ask.k for ask in asks), default=1), mean.shape[1]))
        spread = spread.gather(1, items).numpy() if spread is not None else np.zeros(items.shape, dtype=np.float32)
        scores, items = scores.numpy(), items.numpy()
        return [_answer(items[i], scores[i], spread[i], ask, uncertain) for i, ask in enumerate(asks)]

    def _scores(self, rows: Histories, who: NDArray[np.int64], sampling: Sampling) -> Tensor:
        """As `Model.score`, in memory of its own, with item vectors that are known already: to compute them takes
        longer than the rest."""
        if (items := self.item_vectors) is None:
            # A model may answer with what it keeps, and the caller writes into it.
            return self.model.score(rows, users=who, sampling=sampling).clone()

        def score(known: Histories, users: NDArray[np.int64]) -> Tensor:
            return self.model.scores_by_vectors(self.model.query_vectors(known, users, sampling), items, known)

        return self.model.score_with_fallback(rows, who, score)

    def _by_index(
        self,
        rows: Histories,
        who: NDArray[np.int64],
        asks: Sequence[RankingQuery],
        draws: Sequence[Sampling],
        uncertain: bool,
    ) -> list[RankedItems | None]:
        """As `_by_all_scores`, for people with an answer of their own whose seen items are left out. None: the index
        found too few."""
        assert self.index is not None
        assert self.item_vectors is not None
        own = rows.without_synthetic()
        queries = torch.stack([self.model.query_vectors(rows, who, sampling) for sampling in draws])
        left_out = [np.union1d(own.row(person), ask.excluded) for person, ask in enumerate(asks)]
        # How deep the index looks decides what it finds: that must not depend on who else is asked about. Depths are
        # powers of two, so that many people still share one.
        depths = [1 << (ask.k + len(left) - 1).bit_length() for ask, left in zip(asks, left_out, strict=True)]
        found: dict[int, NDArray[np.int64]] = {}
        mean_queries = queries.mean(0).numpy()  # the mean of scores over draws is the score of the mean query
        for depth in set(depths):
            people = [person for person, one in enumerate(depths) if one == depth]
            lists = self.index.search(mean_queries[people], min(depth, self.model.num_items))
            found |= dict(zip(people, lists, strict=True))
        answers: list[RankedItems | None] = []
        for person, ask in enumerate(asks):
            items = found[person][(found[person] >= 0) & ~np.isin(found[person], left_out[person])]
            if len(items) < min(ask.k, self.model.num_items - len(left_out[person])):
                answers.append(None)
                continue
            scores = queries[:, person] @ self.item_vectors[torch.from_numpy(items)].T
            mean, spread = _over(scores)
            order = torch.argsort(mean, descending=True, stable=True)[: ask.k]
            spread = torch.zeros_like(mean) if spread is None else spread
            answers.append(_answer(items[order.numpy()], mean[order].numpy(), spread[order].numpy(), ask, uncertain))
        return answers


def _over(scores: Iterable[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Mean over draws of scores, and their standard deviation, None of one draw; by Welford's running sums. The mean
    takes the place of the first draw."""
    mean, squares, count = None, None, 0
    for drawn in scores:
        count += 1
        if mean is None:
            mean = drawn
            continue
        squares = torch.zeros_like(mean) if squares is None else squares
        difference = drawn - mean
        mean += difference / count
        squares += difference * (drawn - mean)
    assert mean is not None
    return mean, None if squares is None else (squares / (count - 1)).sqrt()


def _answer(
    items: NDArray[np.int64],
    scores: NDArray[np.float32],
    spread: NDArray[np.float32],
    ask: RankingQuery,
    uncertain: bool,
) -> RankedItems:
    left = np.flatnonzero(np.isfinite(scores))[: ask.k]
    return RankedItems(items[left], scores[left], spread[left] if uncertain else None)
