"""The training loop: exact resuming, selection, errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.dying import dies

import rediffuse as rd
from rediffuse.errors import ConfigError, RediffuseWarning, RunError, TrainingError
from rediffuse.files import is_leftover
from rediffuse.models.diffurec import DiffuRec
from rediffuse.runs.run_folder import read_run
from rediffuse.seeds import derive
from rediffuse.testing import synthetic_interactions

TINY = {"embedding_size": 16, "batch_size": 64, "epochs": 6, "blocks": 1, "patience": 3, "precision": "fp32"}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def split():
    return rd.split.leave_one_out(synthetic_interactions())


def test_the_seed_determines_the_weights(split, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        rd.train("diffurec", split, tmp_path / name, config=TINY, seed=seed)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


def test_training_does_not_change_the_random_state_of_the_caller(split, tmp_path):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    rd.train("diffurec", split, tmp_path / "run", config=TINY | {"epochs": 1}, seed=1)
    assert torch.equal(torch.rand(3), expected)


LOSSAWARE = TINY | {"timestep_sampler": "lossaware", "diffusion_steps": 4}


@pytest.fixture(scope="module")
def uninterrupted(split, tmp_path_factory):
    return rd.train("diffurec", split, tmp_path_factory.mktemp("uninterrupted") / "run", config=LOSSAWARE, seed=3)


@pytest.mark.parametrize(
    ("place", "count"),
    [
        *(("step", 2), ("update", 17), ("checkpoint", 9), ("rename", 6), ("write", 4), ("evaluation", 3), ("end", 0)),
        *(("block", 2000), ("block", 4085)),  # within a checkpoint, and within the weights of the finished run
    ],
)
def test_a_killed_run_resumes_to_the_same_weights(split, uninterrupted, tmp_path, place, count):
    dies(place, count, rd.train, "diffurec", split, tmp_path / "run", config=LOSSAWARE, seed=3)
    again = rd.train("diffurec", split, tmp_path / "run", config=LOSSAWARE, seed=3, resume=True)
    assert same(weights(uninterrupted.path), weights(tmp_path / "run"))
    assert again.validation == uninterrupted.validation
    assert log(uninterrupted.path) == log(tmp_path / "run")
    assert not [path for path in (tmp_path / "run").rglob("*") if is_leftover(path)]


def log(run: Path) -> list[tuple]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["epoch"], line["loss"], line["validation"]) for line in lines]


def test_a_run_out_of_time_is_continued_with_more_time(split, tmp_path):
    with pytest.warns(RediffuseWarning, match="before the first validation"):
        rd.train("sasrec", split, tmp_path / "run", config=TINY, max_minutes=0.0)
    rd.train("sasrec", split, tmp_path / "run", config=TINY, resume=True)
    rd.train("sasrec", split, tmp_path / "uninterrupted", config=TINY)
    assert same(weights(tmp_path / "run"), weights(tmp_path / "uninterrupted"))


def test_the_best_epoch_is_kept_not_the_last(split, tmp_path):
    run = rd.train(
        "sasrec", split, tmp_path / "run", config=TINY | {"epochs": 30, "patience": 2, "learning_rate": 0.01}
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    values = [line["validation"]["ndcg@10"] for line in lines]
    assert run.config["training"]["best_epoch"] == 1 + int(np.argmax(values))
    assert run.validation["ndcg@10"] == max(values)
    assert len(values) == 30 or len(values) == run.config["training"]["best_epoch"] + 2


def test_the_test_subset_has_no_influence(tmp_path):
    """Other interactions in the test subset give the same weights."""
    data = synthetic_interactions()
    split = rd.split.leave_one_out(data)
    changed = data.interactions.items.copy()
    changed[split.subset == 2] = (changed[split.subset == 2] + 7) % data.num_items
    object.__setattr__(data.interactions, "items", changed)
    rd.train("diffurec", split, tmp_path / "changed", config=TINY)
    rd.train("diffurec", rd.split.leave_one_out(synthetic_interactions()), tmp_path / "original", config=TINY)
    assert same(weights(tmp_path / "changed"), weights(tmp_path / "original"))


def test_an_infinite_loss_is_an_error_with_step_users_and_remedy(split, tmp_path, monkeypatch):
    monkeypatch.setattr(DiffuRec, "loss", lambda self, batch: self.item_embedding.weight.sum() * float("nan"))
    with pytest.raises(TrainingError, match=r"nan at step 1 of epoch 1.*users u\d+[\s\S]*learning_rate"):
        rd.train("diffurec", split, tmp_path / "run", config=TINY)


def test_a_folder_with_a_run_is_refused_and_not_changed(split, tmp_path):
    rd.train("popularity", split, tmp_path / "run")
    before = sorted((p.name, p.stat().st_mtime_ns) for p in (tmp_path / "run").rglob("*"))
    with pytest.raises(RunError, match="not empty"):
        rd.train("popularity", split, tmp_path / "run")
    assert before == sorted((p.name, p.stat().st_mtime_ns) for p in (tmp_path / "run").rglob("*"))


def test_resuming_with_other_options_is_refused_with_the_difference(split, tmp_path):
    rd.train("sasrec", split, tmp_path / "run", config=TINY | {"epochs": 1})
    with pytest.raises(RunError, match="embedding_size was 16, is 8"):
        rd.train("sasrec", split, tmp_path / "run", config=TINY | {"epochs": 1, "embedding_size": 8}, resume=True)
    with pytest.raises(RunError, match="no training to resume"):
        rd.train("sasrec", split, tmp_path / "new", config=TINY, resume=True)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="not a run folder"):
        read_run(tmp_path)


def test_unknown_names_are_refused_with_a_suggestion(split, tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'diffurec'"):
        rd.train("difurec", split, tmp_path / "x")
    with pytest.raises(ConfigError, match="Did you mean 'epochs'"):
        rd.train("diffurec", split, tmp_path / "x", config={"epoch": 3})
    with pytest.raises(ConfigError, match="metric"):
        rd.train("sasrec", split, tmp_path / "y", config=TINY | {"metric": "ncdg@10"})
    assert not (tmp_path / "x").exists()


def test_tensorboard_through_accelerate(split, tmp_path):
    rd.train("sasrec", split, tmp_path / "run", config=TINY | {"epochs": 2}, tracker="tensorboard")
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))


def test_derived_seeds_differ_by_place():
    places = [(0,), (1,), (0, 1), (0, "fit", 1), (0, "fit", 2)]
    assert len({derive(*place) for place in places}) == len(places)
    assert derive(-1, "a") >= 0
