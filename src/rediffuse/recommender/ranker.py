"""Ranking in item numbers: histories and queries in, the best items of each user out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rediffuse.data.histories import Histories
from rediffuse.models.base import Model
from rediffuse.models.sampling import Sampling
from rediffuse.recommender.index import ItemIndex
from rediffuse.reranking import Reranking, pool_size
from rediffuse.seeds import derive
from rediffuse.topk import exact_top_k


@dataclass(frozen=True)
class RankingQuery:
    """What to recommend to one user: the best ``k`` items, in item numbers.

    Attributes:
        k: length of the list.
        excluded: items that must not be in it.
        candidates: the only items that may be in it, ascending; None: all items.
        filter_seen: leave out the items of the history.
        reranking: makes the list of the items that the model ranks first; None: it is those items.
        new_items: of the list, at least ``least_new`` are of these item numbers, ascending, if so many are left.
    """

    k: int
    excluded: NDArray[np.int64]
    candidates: NDArray[np.int64] | None = None
    filter_seen: bool = True
    reranking: Reranking | None = None
    new_items: NDArray[np.int64] | None = None
    least_new: int = 0


@dataclass(frozen=True)
class RankedItems:
    """The list of one user: k items, or fewer if fewer are left.

    Attributes:
        items: (n,) item numbers, best first.
        scores: (n,) their scores.
        uncertainty: (n,) standard deviations of the scores over draws; None for a single draw.
    """

    items: NDArray[np.int64]
    scores: NDArray[np.float32]
    uncertainty: NDArray[np.float32] | None


# The longest list that the index makes, with seen and excluded items. Longer lists are ranked exactly: the recall of an
# index is not measured for them, and a search takes longer than scoring all items.
MAX_INDEX_DEPTH = 1024


class Ranker:
    """Ranks items with a model, by scoring all of them or by searching an index.

    Args:
        model: in evaluation mode.
        item_vectors: (num_items, d) of the model, or None.
        index: index of these vectors; None: all items are scored.
    """

    def __init__(self, model: Model, item_vectors: Tensor | None, index: ItemIndex | None) -> None:
        self.model, self.item_vectors, self.index = model, item_vectors, index

    @torch.inference_mode()
    def rank(
        self,
        histories: Histories,
        user_numbers: NDArray[np.int64],
        queries: Sequence[RankingQuery],
        sampling: Sampling,
        samples: int = 1,
    ) -> list[RankedItems]:
        """The best items of n users, who are scored together. A user's list does not depend on the other users.

        Args:
            histories: n rows of item numbers.
            user_numbers: (n,) numbers of the users in training, or -1.
            queries: one per user.
            sampling: options of the first draw; the seeds of the other draws are derived from its seed.
            samples: number of draws to average.
        """
        asked = queries
        queries = [query if query.reranking is None else replace(query, k=pool_size(query.k)) for query in asked]
        draws = [sampling]
        if self.model.stochastic:
            seeds = (derive(sampling.seed, "sample", draw) for draw in range(1, samples))
            draws += [replace(sampling, seed=seed) for seed in seeds]
        ranked: dict[int, RankedItems | None] = {}

        def rank_rows(method: Callable[..., Sequence[RankedItems | None]], rows: NDArray[np.int64]) -> None:
            if len(rows):
                some = [queries[row] for row in rows.tolist()]
                found = method(histories.take(rows), user_numbers[rows], some, draws, samples > 1)
                ranked.update(zip(rows.tolist(), found, strict=True))

        if self.index is not None:
            by_vectors = self._ranked_by_vectors(histories, user_numbers, queries)
            depths = histories.without_synthetic().lengths + [self._depth(query) for query in queries]
            shallow = depths <= min(MAX_INDEX_DEPTH, self.model.num_items // 2)
            rank_rows(self._search_index, np.flatnonzero(by_vectors & shallow))
            among = np.asarray([query.candidates is not None for query in queries], dtype=np.bool_) & by_vectors
            rest = [row for row in range(len(queries)) if among[row] and ranked.get(row) is None]
            rank_rows(self._score_candidates, np.asarray(rest, dtype=np.int64))
        # These include users for whom the index found too few items.
        remaining = [row for row in range(len(histories)) if ranked.get(row) is None]
        rank_rows(self._score_all, np.asarray(remaining, dtype=np.int64))
        found = [items for _, items in sorted(ranked.items()) if items is not None]
        own = histories.without_synthetic()
        lists = [
            _reranked(items, query, own.row(row)) for row, (items, query) in enumerate(zip(found, asked, strict=True))
        ]
        short = [row for row, query in enumerate(asked) if query.least_new > _count_new(lists[row], query)]
        if short:
            rows = np.asarray(short, dtype=np.int64)
            best = self.rank(
                histories.take(rows), user_numbers[rows], [_new_alone(asked[row]) for row in short], sampling, samples
            )
            for row, new in zip(short, best, strict=True):
                lists[row] = _with_new(lists[row], new, asked[row])
        return lists

    def _ranked_by_vectors(
        self, histories: Histories, user_numbers: NDArray[np.int64], queries: Sequence[RankingQuery]
    ) -> NDArray[np.bool_]:
        """(n,) whether inner products of vectors rank the items of each user."""
        lengths = histories.without_synthetic().lengths
        if not self.model.ranks_by_vectors:
            return np.zeros(len(queries), dtype=np.bool_)
        # Vectors do not say how a model changes the scores of seen items; if they are left out, they need not.
        plain = np.asarray([query.filter_seen for query in queries], dtype=np.bool_)
        return plain & ((lengths > 0) | self.model.has_user_state(user_numbers))

    def _depth(self, query: RankingQuery) -> int:
        """How many items the index must find for a query, beside those of the history.

        Where candidates are given, as many as hold twice the wanted number of them, if they are spread evenly.
        """
        if query.candidates is None:
            return query.k + len(query.excluded)
        if not len(query.candidates):
            return self.model.num_items
        return -(-2 * query.k * self.model.num_items // len(query.candidates)) + len(query.excluded)

    def _score_all(
        self,
        histories: Histories,
        user_numbers: NDArray[np.int64],
        queries: Sequence[RankingQuery],
        draws: Sequence[Sampling],
        uncertain: bool,
    ) -> list[RankedItems]:
        """Rank by the scores of all items."""
        own = histories.without_synthetic()
        mean, deviation = _mean_and_deviation(self._scores(histories, user_numbers, draw) for draw in draws)
        for row, query in enumerate(queries):
            if query.candidates is not None:
                others = torch.ones(mean.shape[1], dtype=torch.bool, device=mean.device)
                others[self._tensor(query.candidates)] = False
                mean[row, others] = -torch.inf
        filtered = np.repeat([query.filter_seen for query in queries], own.lengths)
        rows = [own.owners[filtered], np.repeat(np.arange(len(queries)), [len(query.excluded) for query in queries])]
        left_out = [own.items[filtered], *(query.excluded for query in queries)]
        mean[self._tensor(np.concatenate(rows)), self._tensor(np.concatenate(left_out))] = -torch.inf
        # From here on, a device has k numbers per user to send, not one per item.
        scores, items = exact_top_k(mean, min(max((query.k for query in queries), default=1), mean.shape[1]))
        deviation = torch.zeros_like(scores) if deviation is None else deviation.gather(1, items)
        rankings = zip(items.cpu().numpy(), scores.cpu().numpy(), deviation.cpu().numpy(), strict=True)
        return [_ranked_items(*row, query.k, uncertain) for row, query in zip(rankings, queries, strict=True)]

    def _scores(self, histories: Histories, user_numbers: NDArray[np.int64], sampling: Sampling) -> Tensor:
        """The scores of `Model.score`, in a tensor that the caller may change. Item vectors are not computed again,
        because that would take longer than everything else."""
        if (items := self.item_vectors) is None:
            # A model may return a tensor that it keeps.
            return self.model.score(histories, users=user_numbers, sampling=sampling).clone()

        def score(known: Histories, users: NDArray[np.int64]) -> Tensor:
            return self.model.scores_by_vectors(self.model.query_vectors(known, users, sampling), items, known)

        return self.model.score_with_fallback(histories, user_numbers, score)

    def _search_index(
        self,
        histories: Histories,
        user_numbers: NDArray[np.int64],
        queries: Sequence[RankingQuery],
        draws: Sequence[Sampling],
        uncertain: bool,
    ) -> list[RankedItems | None]:
        """Rank the items that the index finds, for users that `_suits_index` admits; None where it finds too few."""
        assert self.index is not None
        assert self.item_vectors is not None
        own = histories.without_synthetic()
        vectors = torch.stack([self.model.query_vectors(histories, user_numbers, draw) for draw in draws])
        left_out = [np.union1d(own.row(row), query.excluded) for row, query in enumerate(queries)]
        # What the index finds depends on the depth of the search, which must not depend on the other users. Depths are
        # powers of two, so that many users still share one.
        lengths = own.lengths.tolist()
        depths = [1 << (self._depth(query) + lengths[row] - 1).bit_length() for row, query in enumerate(queries)]
        found: dict[int, NDArray[np.int64]] = {}
        mean_vectors = vectors.mean(0).cpu().numpy()  # the mean score over draws is the score of the mean vector
        for depth in set(depths):
            rows = [row for row, other in enumerate(depths) if other == depth]
            lists = self.index.search(mean_vectors[rows], min(depth, self.model.num_items))
            found |= dict(zip(rows, lists, strict=True))
        ranked: list[RankedItems | None] = []
        for row, query in enumerate(queries):
            items = found[row][(found[row] >= 0) & ~np.isin(found[row], left_out[row])]
            left = self.model.num_items - len(left_out[row])
            if query.candidates is not None:
                items = items[np.isin(items, query.candidates)]
                left = len(np.setdiff1d(query.candidates, left_out[row]))
            if len(items) < min(query.k, left):
                ranked.append(None)
                continue
            ranked.append(self._best_of(items, vectors[:, row], query.k, uncertain))
        return ranked

    def _score_candidates(
        self,
        histories: Histories,
        user_numbers: NDArray[np.int64],
        queries: Sequence[RankingQuery],
        draws: Sequence[Sampling],
        uncertain: bool,
    ) -> list[RankedItems]:
        """Rank by the inner products of the candidates alone, for users that `_ranked_by_vectors` admits."""
        assert self.item_vectors is not None
        own = histories.without_synthetic()
        vectors = torch.stack([self.model.query_vectors(histories, user_numbers, draw) for draw in draws])
        ranked: list[RankedItems] = []
        for row, query in enumerate(queries):
            assert query.candidates is not None
            items = np.setdiff1d(query.candidates, np.union1d(own.row(row), query.excluded))
            ranked.append(self._best_of(items, vectors[:, row], query.k, uncertain))
        return ranked

    def _best_of(self, items: NDArray[np.int64], vectors: Tensor, k: int, uncertain: bool) -> RankedItems:
        """The best of ``items`` (n,) by their inner products with the vectors (draws, d) of a user."""
        assert self.item_vectors is not None
        mean, deviation = _mean_and_deviation(vectors @ self.item_vectors[self._tensor(items)].T)
        order = torch.argsort(mean, descending=True, stable=True)[:k]
        deviation = torch.zeros_like(mean) if deviation is None else deviation
        ranking = items[order.cpu().numpy()], mean[order].cpu().numpy(), deviation[order].cpu().numpy()
        return _ranked_items(*ranking, k, uncertain)

    def _tensor(self, numbers: NDArray[np.integer]) -> Tensor:
        """Item or row numbers as a tensor, where the model computes."""
        return torch.from_numpy(numbers.astype(np.int64, copy=False)).to(self.model.device)


def _reranked(ranked: RankedItems, query: RankingQuery, history: NDArray[np.int32]) -> RankedItems:
    """The list that a query asks for, of a pool of ranked items."""
    if query.reranking is None:
        return ranked
    chosen = query.reranking.choose(ranked.items, ranked.scores, query.k, history)
    deviation = None if ranked.uncertainty is None else ranked.uncertainty[chosen]
    return RankedItems(ranked.items[chosen], ranked.scores[chosen], deviation)


def _count_new(ranked: RankedItems, query: RankingQuery) -> int:
    """How many items of a list are new."""
    return 0 if query.new_items is None else int(np.isin(ranked.items, query.new_items).sum())


def _new_alone(query: RankingQuery) -> RankingQuery:
    """The query for the best new items alone."""
    assert query.new_items is not None
    allowed = query.new_items if query.candidates is None else np.intersect1d(query.new_items, query.candidates)
    return replace(query, k=query.least_new, candidates=allowed, reranking=None, least_new=0)


def _with_new(ranked: RankedItems, new: RankedItems, query: RankingQuery) -> RankedItems:
    """A list with the best new items in place of its last others, by score; behind the others if it was re-ranked."""
    assert query.new_items is not None
    others = np.flatnonzero(~np.isin(ranked.items, query.new_items))[: query.k - len(new.items)]
    items, scores = (
        np.concatenate((getattr(ranked, name)[others], getattr(new, name))) for name in ("items", "scores")
    )
    order = np.argsort(-scores, kind="stable") if query.reranking is None else np.arange(len(items))
    deviation = None
    if ranked.uncertainty is not None and new.uncertainty is not None:
        deviation = np.concatenate((ranked.uncertainty[others], new.uncertainty))[order]
    return RankedItems(items[order], scores[order], deviation)


def _mean_and_deviation(scores: Iterable[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Mean and standard deviation of scores over draws, by Welford's running sums; no deviation for a single draw.

    The mean is computed in the tensor of the first draw.
    """
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


def _ranked_items(
    items: NDArray[np.int64], scores: NDArray[np.float32], deviation: NDArray[np.float32], k: int, uncertain: bool
) -> RankedItems:
    """The first k items of a ranking, without those left out, whose scores are -inf."""
    left = np.flatnonzero(np.isfinite(scores))[:k]
    return RankedItems(items[left], scores[left], deviation[left] if uncertain else None)
