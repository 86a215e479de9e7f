"""Answers on a device: those of the CPU, of every model. The device is `tests.fake_device`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.on_fake_device import BLEND, CHECKS

import rediffuse as rd
from rediffuse import devices, models
from rediffuse.errors import ConfigError
from rediffuse.recommender import recommender
from rediffuse.testing import synthetic_interactions

# Beside the built-in models: a prior, noise that is drawn, guidance, and a blend of a network with a graph.
NAMES = [*models.names(installed=False), "gru4rec-residual", "bprmf-head", "diffrec-noised", "d3rec-guided", BLEND]
# Score with the code of models that are not in this set.
ALIKE = {"bert4rec", "bprmf", "diffnet", "diffuasr", "friends", "itemknn", "ldiffrec", "pdrec", "recentpop", "s3rec"}
ALIKE |= {"d3rec", "diffnetpp", "flowcf", "giffcf", "lightgcn", "maskdiff", "preferdiff", "slist", "tdiffrec"}


def answers(folder: Path, names: list[str]) -> dict:
    """What `tests.on_fake_device` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.on_fake_device", str(folder), *names],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return answers(tmp_path_factory.mktemp("runs"), [name for name in NAMES if name not in ALIKE])


@pytest.fixture(scope="module")
def outcomes_alike(tmp_path_factory):
    return answers(tmp_path_factory.mktemp("alike"), [*sorted(ALIKE), "gru4rec", "theat", "sasrec", BLEND])


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ALIKE])
def test_every_model_answers_on_a_device_as_on_the_cpu(outcomes, name):
    assert outcomes[name] == {}, "\n".join(f"{question}: {wrong}" for question, wrong in outcomes[name].items())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ALIKE))
def test_models_alike_answer_on_a_device_as_on_the_cpu(outcomes_alike, name):
    wrong = outcomes_alike[name]
    assert wrong == {}, "\n".join(f"{question}: {answer}" for question, answer in wrong.items())


@pytest.mark.parametrize("check", [check.__name__ for check in CHECKS])
def test_what_else_answers_on_a_device(outcomes, check):
    assert outcomes[check] == "", outcomes[check]


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
@pytest.mark.parametrize(
    ("device", "remedy"),
    [
        ("cuda", "driver"),
        ("cuda:1", "driver"),
        ("mps", "driver"),
        ("gpu", "Known: auto, cpu"),
        ("meta", "Known"),
        (0, "Known"),
    ],
)
def test_a_device_that_does_not_exist_is_refused_before_anything_is_read(tmp_path, device, remedy):
    for ask in (
        lambda: rd.Recommender.load(tmp_path / "no run", device=device),
        lambda: rd.evaluate(tmp_path / "no run", tmp_path / "no data", device=device),
    ):
        with pytest.raises(ConfigError, match=r"There is no device .*: torch finds cpu") as caught:
            ask()
        assert remedy in caught.value.remedy


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_auto_is_the_cpu_where_there_is_no_accelerator():
    assert devices.available() == ["cpu"]
    assert (
        devices.resolve("auto") == devices.resolve("cpu") == devices.resolve(torch.device("cpu")) == torch.device("cpu")
    )


def test_a_large_catalogue_is_scored_for_fewer_users_at_once(tmp_path, monkeypatch):
    data = synthetic_interactions()
    made = rd.Recommender.load(rd.train("popularity", rd.split.none(data), tmp_path / "run"))
    users, scored = data.user_ids.to_list(), []
    expected = made.recommend(users=users, k=5)
    rank = made.ranker.rank
    monkeypatch.setattr(made.ranker, "rank", lambda rows, *others: scored.append(len(rows)) or rank(rows, *others))
    monkeypatch.setattr(recommender, "MAX_SCORES", 7 * data.num_items + 1)
    assert made.recommend(users=users, k=5).equals(expected)
    assert max(scored) == 7
    assert sum(scored) == len(users)
