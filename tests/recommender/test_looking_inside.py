"""Similar items, the item map, the denoising trajectory, and recommendations among candidates."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import rediffuse as rd
from rediffuse.errors import ConfigError, RediffuseWarning
from rediffuse.recommender.item_map import item_map
from rediffuse.testing import synthetic_interactions

TINY = {"embedding_size": 16, "batch_size": 64, "epochs": 3, "precision": "fp32", "patience": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    split = rd.split.leave_one_out(synthetic_interactions())
    for name, extra in (("diffurec", {"blocks": 1}), ("sasrec", {"blocks": 1}), ("diffrec", {}), ("itemknn", {})):
        known = rd.models.model_class(name).Config.model_fields
        options = {option: value for option, value in (TINY | extra).items() if option in known}
        rd.train(name, split, out / name, config=options, seed=1)
    return out


@pytest.fixture(scope="module")
def runs(folder):
    return {path.name: rd.Recommender.load(path) for path in folder.iterdir()}


HISTORY = ["i3", "i4", "i5"]


def test_only_candidates_are_recommended(runs):
    for recommender in runs.values():
        candidates = ["i9", "i20", "i4", "no such item"]
        with pytest.warns(RediffuseWarning, match="1 candidates are not in the catalogue"):
            found = recommender.recommend(histories=[HISTORY], k=10, candidates=candidates)
        assert sorted(found["item_id"]) == ["i20", "i9"]  # i4 was seen
        every = recommender.recommend(histories=[HISTORY], k=40)
        order = [item for item in every["item_id"] if item in candidates]
        assert found["item_id"].to_list() == order


def test_sampling_steps_and_noise_reach_the_model(runs):
    model = runs["diffurec"]
    few, many = (model.recommend(histories=[HISTORY], k=20, sampling_steps=steps) for steps in (1, 32))
    assert few["score"].to_list() != many["score"].to_list()
    quiet = [model.recommend(histories=[HISTORY], k=20, noise=0.0, seed=seed) for seed in (0, 1)]
    assert quiet[0].equals(quiet[1])
    loud = model.recommend(histories=[HISTORY], k=20, samples=8, noise=50.0)["uncertainty"].mean()
    assert loud > model.recommend(histories=[HISTORY], k=20, samples=8)["uncertainty"].mean() > 0


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("diffurec", {"sampling_steps": 33}, "trained with 32"),
        ("diffurec", {"sampling_steps": 0}, "at least 1"),
        ("diffurec", {"noise": float("nan")}, "noise is nan"),
        ("diffurec", {"noise": -1.0}, "noise is -1"),
        ("sasrec", {"sampling_steps": 2}, "no sampling steps to choose"),
        ("sasrec", {"noise": 2.0}, "draws no noise"),
        ("itemknn", {"sampling_steps": 1}, "no sampling steps to choose"),
    ],
)
def test_sampling_options_that_the_model_does_not_have_are_refused(runs, name, options, says):
    with pytest.raises(ConfigError, match=says):
        runs[name].recommend(histories=[HISTORY], **options)


def test_similar_items_are_the_nearest_by_cosine(runs):
    for name in ("diffurec", "sasrec", "diffrec"):
        recommender = runs[name]
        vectors = recommender.model.index_vectors().detach().numpy()
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        ids = recommender.items["item_id"].to_list()
        cosines = vectors @ vectors[ids.index("i7")]
        best = [ids[i] for i in np.argsort(-cosines, kind="stable") if ids[i] != "i7"]
        with pytest.warns(RediffuseWarning, match="1 items are not"):
            found = recommender.similar(["unknown", "i7"], k=5)
        assert found["similar_id"].to_list() == best[:5]
        assert set(found["item_id"]) == {"i7"}
        np.testing.assert_allclose(found["cosine"], np.sort(cosines)[::-1][1:6], atol=1e-5)
    assert len(runs["sasrec"].similar(["i7"], k=1000)) == 39
    assert "weight" in runs["itemknn"].similar(["i7"]).columns


def test_the_map_shows_the_two_main_directions():
    rng = np.random.default_rng(0)
    plane = torch.from_numpy(rng.standard_normal((50, 2)) @ rng.standard_normal((2, 8)))
    found = item_map(plane)
    assert found.explained == pytest.approx(1, abs=1e-5)
    directions = torch.nn.functional.normalize(plane.float(), dim=1)
    theirs = (directions[:, None] - directions).norm(dim=2)
    torch.testing.assert_close((found.points[:, None] - found.points).norm(dim=2), theirs, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.place(plane), found.points, atol=1e-5, rtol=0)
    assert torch.equal(item_map(plane).points, found.points)


@pytest.mark.parametrize(("name", "steps"), [("diffurec", 4), ("diffurec", 1), ("diffrec", None)])
def test_the_denoising_trajectory_ends_at_the_recommendation(runs, name, steps):
    recommender = runs[name]
    frame = recommender.denoise(history=HISTORY, sampling_steps=steps, k=40, seed=3)
    assert frame["step"].max() + 1 == (steps or recommender.config["config"]["diffusion_steps"])
    assert frame.filter(frame["step"] == 0)["t"][0] >= frame["t"].min()
    last = frame.filter(frame["step"] == frame["step"].max())
    assert last["t"].unique().to_list() == [0] or steps == 1
    answer = recommender.recommend(histories=[HISTORY], k=40, sampling_steps=steps, seed=3)
    unseen = last.filter(~last["item_id"].is_in(HISTORY))
    assert unseen["item_id"].to_list() == answer["item_id"].to_list()
    np.testing.assert_allclose(unseen["score"], answer["score"], atol=1e-4)
    assert recommender.denoise(user="u1", sampling_steps=steps)["rank"].max() == 10


def test_models_and_users_without_denoising(runs):
    for name in ("sasrec", "itemknn"):
        with pytest.raises(ConfigError, match=f"{name} does not denoise"):
            runs[name].denoise(history=HISTORY)
    with pytest.warns(RediffuseWarning, match="nothing to denoise"):
        assert len(runs["diffurec"].denoise(history=[])) == 0
    with pytest.raises(ConfigError, match="either a user or a history"):
        runs["diffurec"].denoise(user="u1", history=["i1"])


def test_titles_are_searched_by_beginning_then_by_popularity(runs):
    titles = runs["sasrec"].titles
    ids = runs["sasrec"].items["item_id"]
    assert ids[titles.search("FILM i39", 5)[0]] == "i39"
    everything = titles.search("", 100)
    counts = runs["sasrec"].items["train_count"].gather(everything).to_list()
    assert counts == sorted(counts, reverse=True)
    assert len(everything) == 40
    assert titles.search("no such film", 5) == []
    assert titles.search("[", 5) == []
