"""`refit` against a training on all interactions by hand."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
import torch

import rediffuse as rd
from rediffuse.data.split import TEST
from rediffuse.errors import ConfigError, RediffuseWarning, RunError
from rediffuse.runs.run_folder import read_log, read_run

OPTIONS = {"embedding_size": 8, "epochs": 3, "batch_size": 32, "patience": 1, "precision": "fp32"}


def events(days: int = 8) -> pl.DataFrame:
    rows = [(f"u{user}", f"i{(user * 3 + day) % 20}", 86_400 * day + user) for user in range(30) for day in range(days)]
    return pl.DataFrame(rows, schema=["user", "item", "time"], orient="row")


def dataset(days: int = 8):
    return rd.read_interactions(events(days), user="user", item="item", time="time")


def weights(run):
    return read_run(run.path).model.state_dict()


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    split = rd.split.global_time(dataset(), quantile=0.8, valid_quantile=0.8)
    return rd.train("gru4rec", split, tmp_path_factory.mktemp("runs") / "chosen", config=OPTIONS)


@pytest.fixture(scope="module")
def live(chosen, tmp_path_factory):
    return rd.refit(chosen, dataset(), tmp_path_factory.mktemp("runs") / "live")


def test_a_refit_is_a_training_on_all_interactions(chosen, live, tmp_path):
    epochs = live.config["training"]["epochs"]["fit"]
    by_hand = rd.train("gru4rec", rd.split.none(dataset()), tmp_path / "hand", config=OPTIONS | {"epochs": epochs})
    assert equal(weights(live), weights(by_hand))
    assert not equal(weights(live), weights(chosen))


def test_the_steps_are_those_to_the_best_weights(chosen, live):
    best = chosen.config["training"]["best_epoch"]
    steps = sum(record["steps"] for record in read_log(chosen.path)[:best])
    assert live.config["refit_of"]["steps"] == {"fit": steps}
    trained = [record["steps"] for record in read_log(live.path)]
    assert len(trained) == max(1, round(steps / trained[0]))


def test_more_interactions_get_fewer_epochs(chosen, tmp_path):
    long = rd.train(
        "gru4rec",
        rd.split.global_time(dataset(), quantile=0.8, valid_quantile=0.8),
        tmp_path / "long",
        config=OPTIONS | {"patience": 100, "epochs": 12, "learning_rate": 1e-5},
    )
    few = rd.refit(long, dataset(), tmp_path / "few").config
    many = rd.refit(long, dataset(40), tmp_path / "many").config
    assert many["training"]["epochs"]["fit"] <= few["training"]["epochs"]["fit"]
    assert many["refit_of"]["steps"] == few["refit_of"]["steps"]


def test_a_refit_says_what_it_was_chosen_by(chosen, live):
    assert live.validation is None
    assert live.config["split"]["name"] == "none"
    card = (live.path / "README.md").read_text()
    assert f"Chosen as {chosen.path} (split global-time) with ndcg@10" in card
    assert "no test figures of its own" in card
    assert "Histories end at 1970-01-08" in card
    with pytest.raises(RunError, match="has learned from all its interactions"):
        rd.evaluate(live, dataset())


@pytest.mark.parametrize("name", ["gru4rec", "theat"])
def test_a_refit_that_keeps_the_test_is_a_training_on_both_subsets(name, tmp_path):
    split = rd.split.global_time(dataset(), quantile=0.8, valid_quantile=0.8)
    options = OPTIONS | {"prior": "head"} if name == "gru4rec" else {"refit": False}
    run = rd.train(name, split, tmp_path / "run", config=options)
    made = rd.refit(run, dataset(), tmp_path / "refitted", keep_test=True)
    known = np.sum(split.subset != TEST)
    assert read_run(made.path).items["train_count"].sum() == known
    assert made.config["split"] == run.config["split"]
    assert made.config["training"]["refitted"]
    found = rd.evaluate(made, dataset())
    assert found["metrics"]["unseen"] != rd.evaluate(run, dataset())["metrics"]["unseen"]
    compared = rd.compare([run, made], tmp_path / "report")
    assert compared.facts["variants"] == [name, f"{name} (refitted)"]
    assert f"{name} (refitted)" in compared.facts["refitted"]
    card = (made.path / "README.md").read_text()
    assert "then trained on the training and validation subsets" in card
    assert "no test figures" not in card
    with pytest.raises(RunError, match="was trained on other data"):
        rd.refit(run, dataset(9), tmp_path / "x", keep_test=True)


def test_a_network_that_was_taken_is_refitted_too(chosen, tmp_path):
    taken = rd.train(
        "gru4rec",
        rd.split.global_time(dataset(), quantile=0.8, valid_quantile=0.8),
        tmp_path / "taken",
        config={"prior": "head"},
        phases_from={"fit": chosen},
    )
    made = rd.refit(taken, dataset(), tmp_path / "live")
    assert (
        made.config["training"]["epochs"]
        == rd.refit(chosen, dataset(), tmp_path / "alone").config["training"]["epochs"]
    )


def test_a_refit_recommends_nothing_that_a_user_had(live):
    found = rd.Recommender.load(live).recommend(users=[f"u{user}" for user in range(30)], k=5)
    assert len(found) == 150
    assert not len(found.join(events(), left_on=["user_id", "item_id"], right_on=["user", "item"], how="inner"))


@pytest.mark.parametrize("name", ["theat", "ease", "transition"])
def test_closed_form_keeps_its_choices(name, tmp_path):
    split = rd.split.global_time(dataset(), quantile=0.8, valid_quantile=0.8)
    run = rd.train(name, split, tmp_path / "run")
    made = rd.refit(run, dataset(), tmp_path / "live")
    assert made.config["resolved"].get("settings") == run.config["resolved"].get("settings")
    assert read_run(made.path).items["train_count"].sum() == len(events())
    scores = [read_run(path).model for path in (run.path, made.path)]
    assert not equal(scores[0].state_dict(), scores[1].state_dict())


def test_a_prior_is_refitted_with_its_weights(tmp_path):
    split = rd.split.global_time(dataset(), quantile=0.8, valid_quantile=0.8)
    run = rd.train("gru4rec", split, tmp_path / "run", config=OPTIONS | {"prior": "head"})
    made = rd.refit(run, dataset(), tmp_path / "live")
    one, other = read_run(run.path).model, read_run(made.path).model
    assert one.prior.weights == other.prior.weights
    assert one.prior.graph.settings == other.prior.graph.settings


def test_an_interrupted_refit_resumes_to_the_same_weights(chosen, live, tmp_path):
    with pytest.raises(rd.errors.TrainingError, match="time ran out"):
        rd.refit(chosen, dataset(), tmp_path / "live", max_minutes=0)
    resumed = rd.refit(chosen, dataset(), tmp_path / "live", resume=True)
    assert equal(weights(resumed), weights(live))


def test_what_cannot_be_refitted_is_refused(chosen, tmp_path):
    split = rd.split.global_time(dataset(), quantile=0.8, valid_quantile=0.8)
    other = rd.train("itemknn", split, tmp_path / "itemknn")
    blend = rd.blend([chosen, other], dataset(), tmp_path / "blend")
    with pytest.raises(ConfigError, match="is a blend"):
        rd.refit(blend, dataset(), tmp_path / "live")
    assert not (tmp_path / "live").exists()


def test_the_command(chosen, tmp_path, capsys, monkeypatch):
    from rediffuse.cli import main

    dataset().save(tmp_path / "data")
    command = ["rediffuse", "refit", str(chosen.path), str(tmp_path / "data"), "-o", str(tmp_path / "live"), "--json"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    printed = json.loads(capsys.readouterr().out)
    assert printed["interactions"] == len(events())
    assert printed["refit_of"] == str(chosen.path)


def test_without_validation_nothing_is_chosen_and_that_is_said(tmp_path):
    split = rd.split.none(dataset())
    with pytest.warns(RediffuseWarning, match="all 3 epochs are trained and the last weights are kept"):
        run = rd.train("gru4rec", split, tmp_path / "gru4rec", config=OPTIONS)
    assert [record["epoch"] for record in read_log(run.path)] == [1, 2, 3]
    with pytest.warns(RediffuseWarning, match="theat keeps its usual settings"):
        rd.train("theat", split, tmp_path / "theat")
