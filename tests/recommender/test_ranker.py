"""Answers by an index beside answers by all scores: the same lists, whoever else is asked about."""

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
    """Wants what is like the sum of a history's vectors, give or take some noise."""

    name = "sums"
    stochastic = True

    def __init__(self):
        super().__init__(ModelConfig(), ITEMS)
        self.vectors = torch.randn(ITEMS, SIZE, generator=torch.Generator().manual_seed(0))
        self.popularity.copy_(torch.arange(ITEMS))

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
    index.effort = index.efforts[-1]  # looks everywhere, or nearly so
    return Ranker(model, model.vectors, None), Ranker(model, model.vectors, index)


def people():
    rng = np.random.default_rng(0)
    rows = Histories.from_lists([rng.choice(ITEMS, size, replace=False).tolist() for size in (1, 3, 0, 40, 7, 2, 5)])
    none = np.empty(0, np.int64)
    asks = [
        RankingQuery(10, none),
        RankingQuery(50, rng.choice(ITEMS, 200, replace=False)),
        RankingQuery(5, none),  # nothing known of them: popular items
        RankingQuery(10, none),
        RankingQuery(10, none, filter_seen=False),
        RankingQuery(3, none, candidates=np.arange(50)),
        RankingQuery(2000, none),  # deeper than an index is asked for
    ]
    return rows, np.full(len(rows), -1), asks


@pytest.mark.parametrize("samples", [1, 4])
def test_an_index_gives_the_lists_of_all_scores(pair, samples):
    rows, who, asks = people()
    exact, quick = (one.rank(rows, who, asks, Sampling(3), samples) for one in pair)
    for wanted, found, ask in zip(exact, quick, asks, strict=True):
        assert len(found.items) == min(ask.k, len(wanted.items))
        assert found.items.tolist() == wanted.items.tolist()
        np.testing.assert_allclose(found.scores, wanted.scores, rtol=1e-4, atol=1e-4)
        if samples == 1:
            assert found.uncertainty is None
        else:
            np.testing.assert_allclose(found.uncertainty, wanted.uncertainty, atol=1e-4)


def test_what_an_index_finds_does_not_depend_on_the_others(pair):
    _, quick = pair
    quick.index.effort = quick.index.efforts[0]  # now it misses some, and must miss the same ones
    rows, who, asks = people()
    together = quick.rank(rows, who, asks, Sampling(1))
    for n in range(len(rows)):
        (alone,) = quick.rank(rows.take(np.array([n])), who[:1], asks[n : n + 1], Sampling(1))
        assert alone.items.tolist() == together[n].items.tolist()


def test_whom_an_index_finds_too_little_for_is_answered_exactly(pair, monkeypatch):
    exact, quick = pair
    real = quick.index.search
    monkeypatch.setattr(quick.index, "search", lambda queries, k: np.where(np.arange(k) < 5, real(queries, k), -1))
    rows, who, asks = people()
    wanted, found = (one.rank(rows, who, asks, Sampling(1)) for one in (exact, quick))
    assert [one.items.tolist() for one in found] == [one.items.tolist() for one in wanted]


def test_deep_lists_never_reach_the_index(pair, monkeypatch):
    _, quick = pair
    asked = []
    real = quick.index.search
    monkeypatch.setattr(quick.index, "search", lambda queries, k: asked.append(k) or real(queries, k))
    rows, who, asks = people()
    quick.rank(rows, who, asks, Sampling(1))
    assert asked
    assert max(asked) <= ranker.DEEPEST
