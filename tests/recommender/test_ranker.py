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
