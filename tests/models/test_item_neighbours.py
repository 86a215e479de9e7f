"""Rows of item-item matrices: what a history of one item scores, for every model that has such a matrix."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

import rediffuse as rd
from rediffuse.data.histories import Histories
from rediffuse.errors import ConfigError
from rediffuse.testing import synthetic_interactions

ITEMS = np.asarray([7, 0, 7, 12])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    split = rd.split.leave_one_out(synthetic_interactions())
    out = tmp_path_factory.mktemp("runs")

    @functools.cache
    def run(name, **options):
        return rd.Recommender.load(rd.train(name, split, out / f"{name}{len(options)}", config=options))

    return run


@pytest.mark.parametrize(
    ("name", "options"),
    [("itemknn", {"neighbours": 5}), ("ease", {}), ("ease", {"neighbours": 6}), ("slist", {})],
)
def test_rows_are_the_scores_of_one_item(trained, name, options):
    model = trained(name, **options).model
    alone = Histories(np.arange(len(ITEMS) + 1), ITEMS.astype(np.int32))
    torch.testing.assert_close(model.item_neighbours(ITEMS), model.score(alone))
    assert model.item_neighbours(ITEMS[:0]).shape == (0, model.num_items)


@pytest.mark.parametrize("name", ["transition", "heat", "theat"])
def test_rows_of_propagation_add_up_the_hops_of_one_item(trained, name):
    model = trained(name).model
    every = np.arange(model.num_items)
    factor = np.broadcast_to(model.prior(model.settings)[0], model.num_items)
    for item in (7, 12):
        alone = Histories(np.asarray([0, 1]), np.asarray([item], dtype=np.int32))
        parts = model.contributions(alone, np.asarray([-1]), every)
        expected = sum(part.values for part in parts if part.source == item) / factor
        expected[item] /= model.settings["seen_weight"] or 1
        found = model.item_neighbours(np.asarray([item]))[0].numpy()
        np.testing.assert_allclose(np.delete(found, item), np.delete(expected, item), rtol=1e-4, atol=1e-7)
        assert found.any()


@pytest.mark.parametrize("name", ["itemknn", "ease", "slist", "transition"])
def test_similar_items_have_the_largest_positive_weights_of_the_row(trained, name):
    recommender = trained(name)
    before = recommender.model.item_neighbours(np.asarray([7]))
    row = before[0].clone()
    row[7] = 0
    expected = [n for n in torch.argsort(row, descending=True, stable=True).tolist() if row[n] > 0]
    ids = recommender.items["item_id"]
    found = recommender.similar([ids[7]], k=recommender.model.num_items)
    assert found["similar_id"].to_list() == ids.gather(expected).to_list()
    assert found["rank"].to_list() == list(range(1, len(expected) + 1))
    np.testing.assert_allclose(found["weight"], row[expected])
    assert recommender.similar([ids[7]], k=2).equals(found.head(2))
    assert torch.equal(recommender.model.item_neighbours(np.asarray([7])), before)  # the model is as it was


def test_models_with_neither_are_refused(trained):
    popularity = trained("popularity")
    assert not popularity.inspector.has_similar
    with pytest.raises(ConfigError, match="popularity has no item vectors"):
        popularity.similar([popularity.items["item_id"][0]])
