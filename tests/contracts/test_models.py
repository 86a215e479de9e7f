"""What every registered model must keep: new models are picked up by name and cannot skip this."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tests.synthetic import walks

import rediffuse as rd
from rediffuse import models
from rediffuse.data.histories import Histories
from rediffuse.errors import ConfigError, RediffuseWarning
from rediffuse.models.sampling import Sampling

# The smallest configuration that trains; unknown options of a model are left out.
TINY = {
    **{"embedding_size": 16, "batch_size": 64, "epochs": 3, "blocks": 1, "patience": 2},
    **{"n": 2, "generator_epochs": 2, "pretrain_epochs": 2},
}


# One of the people has friends and no events.
pytestmark = pytest.mark.filterwarnings("ignore:1 of 61 histories are empty")


@pytest.fixture(scope="module")
def split():
    return rd.split.leave_one_out(walks(friends=3, knowledge=True))


@pytest.fixture(scope="module", params=models.names())
def run(request, split, tmp_path_factory):
    known = models.model_class(request.param).Config.model_fields
    options = {name: value for name, value in TINY.items() if name in known}
    return rd.train(request.param, split, tmp_path_factory.mktemp("runs") / request.param, config=options, seed=5)


def test_saved_and_loaded_gives_identical_lists(run, split):
    first, second = (rd.Recommender.load(run.path) for _ in range(2))
    users = split.dataset.user_ids.to_list()
    assert first.recommend(users=users, k=10, seed=3).equals(second.recommend(users=users, k=10, seed=3))


def test_batch_size_and_company_do_not_change_lists(run, split):
    recommender = rd.Recommender.load(run.path)
    users = split.dataset.user_ids.to_list()
    together = recommender.recommend(users=users, k=10, seed=1)
    in_small_batches = recommender.recommend(users=users, k=10, seed=1, batch_size=7)
    assert together.drop("score").equals(in_small_batches.drop("score"))
    alone = recommender.recommend(users=users[11:12], k=10, seed=1)
    assert alone["item_id"].to_list() == together.filter(together["user_id"] == users[11])["item_id"].to_list()


def test_unknown_users_and_items_are_answered(run, split):
    recommender = rd.Recommender.load(run.path)
    with pytest.warns(RediffuseWarning):
        lists = recommender.recommend(users=["nobody", "u1"], k=5)
    assert lists["user_id"].value_counts().to_dict(as_series=False)["count"] == [5, 5]
    with pytest.warns(RediffuseWarning):
        partly = recommender.recommend(histories=[["i1", "no such item", "i2"]], k=5)
    assert partly["item_id"].to_list() == recommender.recommend(histories=[["i1", "i2"]], k=5)["item_id"].to_list()


def test_seen_items_are_filtered_unless_asked_for(run):
    recommender = rd.Recommender.load(run.path)
    history = ["i1", "i2", "i3"]
    assert not set(history) & set(recommender.recommend(histories=[history], k=37)["item_id"])
    everything = recommender.recommend(histories=[history], k=40, filter_seen=False)
    assert sorted(everything["item_id"]) == sorted(f"i{i}" for i in range(40))


def test_scores_are_finite_for_any_history(run):
    recommender = rd.Recommender.load(run.path)
    rows = Histories.from_lists([[], [0], [3] * 200, list(range(40))])
    scores = recommender.model.score(rows, seed=0)
    assert scores.shape == (4, 40)
    assert scores.dtype == torch.float32
    assert np.isfinite(scores.numpy()).all()


def test_vectors_rank_as_the_model_does(run):
    """What an index searches, and what `Recommender` scores with, are the scores of the model itself."""
    model = rd.Recommender.load(run.path).model
    with torch.inference_mode():
        items = model.index_vectors()
        if items is None:
            return  # it ranks in another way
        rows, who = Histories.from_lists([[0], [3] * 70, [5, 6, 7, 5]]), np.array([-1, 2, -1])
        queries = model.query_vectors(rows, who, Sampling(seed=4))
        scores = model.score(rows, users=who, seed=4)
        torch.testing.assert_close(model.scores_by_vectors(queries, items, rows), scores, atol=1e-5, rtol=1e-5)
        for row, history in enumerate(([0], [3], [5, 6, 7])):
            unseen = np.setdiff1d(np.arange(40), history)
            torch.testing.assert_close((queries @ items.T)[row, unseen], scores[row, unseen], atol=1e-5, rtol=1e-5)


def test_candidates_are_ranked_as_in_the_whole_list(run):
    recommender = rd.Recommender.load(run.path)
    asked = {"users": ["u1", "u2"], "k": 40, "seed": 2}
    among = [f"i{i}" for i in range(0, 40, 3)]
    every = recommender.recommend(**asked)
    every = every.filter(every["item_id"].is_in(among))
    found = recommender.recommend(**asked, candidates=among)
    assert found.drop("rank").equals(every.drop("rank"))


def test_a_bad_configuration_is_refused(run, split, tmp_path):
    name = run.config["model"]
    with pytest.raises(ConfigError, match="Unknown option 'learning_rat'"):
        rd.train(name, split, tmp_path / "x", config={"learning_rat": 1})
    with pytest.raises(ConfigError, match="epochs"):
        rd.train(name, split, tmp_path / "x", config={"epochs": -1})


def test_same_seed_same_weights_losses_and_lists_to_the_bit(run, split, tmp_path):
    again = rd.train(run.config["model"], split, tmp_path / "again", config=run.config["config"], seed=5)
    assert (again.path / "model.safetensors").read_bytes() == (run.path / "model.safetensors").read_bytes()
    assert again.validation == run.validation
    if run.config["training"]["best_epoch"]:
        assert losses(again.path) == losses(run.path)
    users = split.dataset.user_ids.to_list()
    left, right = (rd.Recommender.load(r.path).recommend(users=users, k=10, seed=2) for r in (run, again))
    assert left.equals(right)


def test_another_seed_is_another_training(run, split, tmp_path):
    if not run.config["training"]["best_epoch"]:
        return  # in closed form, nothing is drawn
    other = rd.train(run.config["model"], split, tmp_path / "other", config=run.config["config"], seed=6)
    assert losses(other.path) != losses(run.path)


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
