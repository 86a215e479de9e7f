"""`phases_from={"fit": run}`: a prior beside a network that is trained already."""

from __future__ import annotations

import pytest
import torch

import rediffuse as rd
from rediffuse.errors import ConfigError
from rediffuse.runs.run_folder import read_run
from rediffuse.testing import synthetic_interactions

OPTIONS = {"embedding_size": 16, "batch_size": 64, "epochs": 2, "precision": "fp32"}


@pytest.fixture(scope="module")
def split():
    return rd.split.leave_one_out(synthetic_interactions())


@pytest.fixture(scope="module")
def alone(split, tmp_path_factory):
    return rd.train("gru4rec", split, tmp_path_factory.mktemp("network") / "run", config=OPTIONS, seed=3)


def network(run: rd.Run) -> dict[str, torch.Tensor]:
    weights = read_run(run.path).model.state_dict()
    return {name: tensor for name, tensor in weights.items() if not name.startswith("prior.")}


def test_it_is_the_run_that_was_trained_with_the_prior(split, alone, tmp_path):
    taken = rd.train("gru4rec", split, tmp_path / "taken", config={"prior": "head"}, phases_from={"fit": alone})
    trained = rd.train("gru4rec", split, tmp_path / "trained", config=OPTIONS | {"prior": "head"}, seed=3)
    for name, tensor in network(trained).items():
        torch.testing.assert_close(network(taken)[name], tensor, rtol=0, atol=0)
    for what in ("resolved", "validation", "config", "seed"):
        assert taken.config[what] == trained.config[what]
    ours, theirs = (rd.evaluate(run, split.dataset)["metrics"] for run in (taken, trained))
    assert ours == theirs
    assert taken.config["training"]["best_epoch"] == alone.config["training"]["best_epoch"]
    assert taken.minutes >= alone.minutes
    assert taken.config["phases_from"]["fit"]["run"] == str(alone.path)


def test_the_prior_can_be_taken_off(split, alone, tmp_path):
    head = rd.train("gru4rec", split, tmp_path / "head", config={"prior": "head"}, phases_from={"fit": alone})
    off = rd.train("gru4rec", split, tmp_path / "off", config={"prior": "none"}, phases_from={"fit": head})
    assert off.validation == alone.validation


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("sasrec", {}, "gru4rec, whose network sasrec cannot use"),
        ("gru4rec", {"config": {"dropout": 0.1, "epochs": 9}}, "dropout, epochs cannot change"),
        ("gru4rec", {"config": {"prior": "residual"}}, "cannot change from none to residual"),
    ],
)
def test_what_was_in_the_training_cannot_change(split, alone, tmp_path, model, arguments, message):
    with pytest.raises(ConfigError, match=message):
        rd.train(model, split, tmp_path / "run", phases_from={"fit": alone}, **arguments)
    assert not (tmp_path / "run").exists()
