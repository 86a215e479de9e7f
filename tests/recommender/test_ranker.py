"""An index gives the lists that scoring all items gives, whichever other users are ranked with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rediffuse.config import ModelConfig
from rediffuse.data.histories import Histories
from rediffuse.models.base import Model
from rediffuse.models.sampling import Sampling
from rediffuse.recommender import ranker
from rediffuse.recommender.index import ItemIndex
from rediffuse.recommender.ranker import Ranker, RankingQuery

ITEMS, SIZE = 3000, 16


class Sums(Model):
    """Ranks by the inner product with the sum of the history's vectors, plus some noise."""

    name = "sums"
    stochastic = True

    def __init__(self):
        super().__init__(ModelConfig(), ITEMS)
        self.vectors = torch.randn(ITEMS, SIZE, generator=torch.Generator().manual_seed(0))
        self.fallback.copy_(torch.arange(ITEMS))

    def index_vectors(self):
        return self.vectors

    def query_vectors(self, histories, users, sampling):
        noise = torch.randn(SIZE, generator=torch.Generator().manual_seed(sampling.seed % 2**32)) / 5
        return torch.stack([self.vectors[histories.row(n)].sum(0) + noise for n in range(len(histories))])

    def score_known(self, histories, users, sampling):
        return self.query_vectors(histories, users, sampling) @ self.vectors.T


@pytest.fixture(scope="module", params=["ivf", "hnsw"])
def pair(request):
    model = Sums()
    index = ItemIndex.build(model.vectors.numpy(), request.param, threads=1)
    index.effort = index.efforts[-1]  # examines nearly all items
    return Ranker(model, model.vectors, None), Ranker(model, model.vectors, index)


def requests():
    rng = np.random.default_rng(0)
    rows = Histories.from_lists([rng.choice(ITEMS, size, replace=False).tolist() for size in (1, 3, 0, 40, 7, 2, 5)])
    none = np.empty(0, np.int64)
    queries = [
        RankingQuery(10, none),
        RankingQuery(50, rng.choice(ITEMS, 200, replace=False)),
        RankingQuery(5, none),  # an empty history: popular items
        RankingQuery(10, none),
        RankingQuery(10, none, filter_seen=False),
        RankingQuery(3, none, candidates=np.arange(50)),
        RankingQuery(2000, none),  # longer than an index makes
    ]
    return rows, np.full(len(rows), -1), queries


@pytest.mark.parametrize("samples", [1, 4])
def test_an_index_gives_the_lists_of_all_scores(pair, samples):
    rows, user_numbers, queries = requests()
    exact, indexed = (one.rank(rows, user_numbers, queries, Sampling(3), samples) for one in pair)
    for wanted, found, query in zip(exact, indexed, queries, strict=True):
        assert len(found.items) == min(query.k, len(wanted.items))
        assert found.items.tolist() == wanted.items.tolist()
        np.testing.assert_allclose(found.scores, wanted.scores, rtol=1e-4, atol=1e-4)
        if samples == 1:
            assert found.uncertainty is None
        else:
            np.testing.assert_allclose(found.uncertainty, wanted.uncertainty, atol=1e-4)


def test_what_an_index_finds_does_not_depend_on_the_others(pair):
    _, indexed = pair
    indexed.index.effort = indexed.index.efforts[0]  # now it misses some items, and must miss the same ones
    rows, user_numbers, queries = requests()
    together = indexed.rank(rows, user_numbers, queries, Sampling(1))
    for n in range(len(rows)):
        (alone,) = indexed.rank(rows.take(np.array([n])), user_numbers[:1], queries[n : n + 1], Sampling(1))
        assert alone.items.tolist() == together[n].items.tolist()


def test_users_for_whom_the_index_finds_too_little_are_ranked_exactly(pair, monkeypatch):
    exact, indexed = pair
    real = indexed.index.search
    monkeypatch.setattr(indexed.index, "search", lambda queries, k: np.where(np.arange(k) < 5, real(queries, k), -1))
    rows, user_numbers, queries = requests()
    wanted, found = (one.rank(rows, user_numbers, queries, Sampling(1)) for one in (exact, indexed))
    assert [one.items.tolist() for one in found] == [one.items.tolist() for one in wanted]


def test_long_lists_do_not_use_the_index(pair, monkeypatch):
    _, indexed = pair
    depths = []
    real = indexed.index.search
    monkeypatch.setattr(indexed.index, "search", lambda queries, k: depths.append(k) or real(queries, k))
    rows, user_numbers, queries = requests()
    indexed.rank(rows, user_numbers, queries, Sampling(1))
    assert depths
    assert max(depths) <= ranker.MAX_INDEX_DEPTH


def filtered_requests():
    """Candidates from none of the items to all of them, with seen and excluded items."""
    rng = np.random.default_rng(1)
    rows = Histories.from_lists([rng.choice(ITEMS, 30, replace=False).tolist() for _ in range(9)])
    excluded = rng.choice(ITEMS, 100, replace=False)
    sizes = (0, 1, 5, 40, 200, 1000, 2000, 2990, ITEMS)
    chosen = [np.sort(rng.choice(ITEMS, size, replace=False)) for size in sizes]
    return rows, np.full(len(rows), -1), [RankingQuery(10, excluded, candidates) for candidates in chosen]


@pytest.mark.parametrize("samples", [1, 4])
def test_an_index_ranks_candidates_as_all_scores_do(pair, samples, monkeypatch):
    exact, indexed = pair
    indexed.index.effort = indexed.index.efforts[-1]
    rows, user_numbers, queries = filtered_requests()
    searched, scored = [], []
    search, score = indexed.index.search, indexed._score_candidates
    monkeypatch.setattr(
        indexed.index, "search", lambda vectors, k: searched.extend([k] * len(vectors)) or search(vectors, k)
    )
    monkeypatch.setattr(indexed, "_score_candidates", lambda *of: scored.extend(of[2]) or score(*of))
    monkeypatch.setattr(indexed, "_score_all", lambda *of: pytest.fail("all items were scored"))
    wanted = exact.rank(rows, user_numbers, queries, Sampling(3), samples)
    for one, found, query in zip(
        wanted, indexed.rank(rows, user_numbers, queries, Sampling(3), samples), queries, strict=True
    ):
        assert found.items.tolist() == one.items.tolist()
        np.testing.assert_allclose(found.scores, one.scores, rtol=1e-4, atol=1e-4)
        assert not np.isin(found.items, query.excluded).any()
    assert len(searched) == 5  # more than an eighth of the catalogue may be recommended
    assert [len(query.candidates) for query in scored] == [0, 1, 5, 40]


def test_where_a_deep_search_finds_too_few_candidates_they_are_scored(pair):
    """Candidates far from the user are missed by a search, whatever its depth."""
    exact, indexed = pair
    rows = Histories.from_lists([[0]])
    order = exact.rank(rows, np.array([-1]), [RankingQuery(ITEMS, np.empty(0, np.int64))], Sampling(1))[0].items
    query = RankingQuery(10, np.empty(0, np.int64), candidates=np.sort(order[-400:]))
    (found,) = indexed.rank(rows, np.array([-1]), [query], Sampling(1))
    assert found.items.tolist() == order[-400:-390].tolist()
