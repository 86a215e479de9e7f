"""The training loop: exact resume, selection, errors that help."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.dying import dies
from tests.synthetic import walks

import rediffuse as rd
from rediffuse.errors import ConfigError, RediffuseWarning, RunError, TrainingError
from rediffuse.files import is_leftover
from rediffuse.models.diffurec import DiffuRec
from rediffuse.runs.run_folder import read_run
from rediffuse.seeds import derive

TINY = {"embedding_size": 16, "batch_size": 64, "epochs": 6, "blocks": 1, "patience": 3, "precision": "fp32"}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def split():
    return rd.split.leave_one_out(walks())


def test_same_seed_same_weights_and_another_seed_others(split, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        rd.train("diffurec", split, tmp_path / name, config=TINY, seed=seed)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


def test_training_does_not_touch_the_callers_random_state(split, tmp_path):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    rd.train("diffurec", split, tmp_path / "run", config=TINY | {"epochs": 1}, seed=1)
    assert torch.equal(torch.rand(3), expected)


LOSSAWARE = TINY | {"timestep_sampler": "lossaware", "diffusion_steps": 4}


@pytest.fixture(scope="module")
def alone(split, tmp_path_factory):
    return rd.train("diffurec", split, tmp_path_factory.mktemp("alone") / "run", config=LOSSAWARE, seed=3)


@pytest.mark.parametrize(
    ("place", "count"),
    [("step", 2), ("update", 17), ("checkpoint", 9), ("rename", 6), ("write", 40), ("evaluation", 3), ("end", 0)],
)
def test_a_killed_run_resumes_to_the_weights_of_one_left_alone(split, alone, tmp_path, place, count):
    dies(place, count, rd.train, "diffurec", split, tmp_path / "run", config=LOSSAWARE, seed=3)
    again = rd.train("diffurec", split, tmp_path / "run", config=LOSSAWARE, seed=3, resume=True)
    assert same(weights(alone.path), weights(tmp_path / "run"))
    assert again.validation == alone.validation
    assert log(alone.path) == log(tmp_path / "run")
    assert not [path for path in (tmp_path / "run").rglob("*") if is_leftover(path)]


def log(run: Path) -> list[tuple]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["epoch"], line["loss"], line["validation"]) for line in lines]


def test_more_time_goes_on_from_where_it_stopped(split, tmp_path):
    with pytest.warns(RediffuseWarning, match="before the first validation"):
        rd.train("sasrec", split, tmp_path / "run", config=TINY, max_minutes=0.0)
    rd.train("sasrec", split, tmp_path / "run", config=TINY, resume=True)
    rd.train("sasrec", split, tmp_path / "alone", config=TINY)
    assert same(weights(tmp_path / "run"), weights(tmp_path / "alone"))


def test_the_best_epoch_is_kept_not_the_last(split, tmp_path):
    run = rd.train(
        "sasrec", split, tmp_path / "run", config=TINY | {"epochs": 30, "patience": 2, "learning_rate": 0.01}
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    values = [line["validation"]["ndcg@10"] for line in lines]
    assert run.config["training"]["best_epoch"] == 1 + int(np.argmax(values))
    assert run.validation["ndcg@10"] == max(values)
    assert len(values) == 30 or len(values) == run.config["training"]["best_epoch"] + 2


def test_the_test_part_has_no_influence(tmp_path):
    """Training after the test events were replaced by others gives the same weights."""
    data = walks()
    split = rd.split.leave_one_out(data)
    changed = data.interactions.items.copy()
    changed[split.subset == 2] = (changed[split.subset == 2] + 7) % data.num_items
    object.__setattr__(data.interactions, "items", changed)
    rd.train("diffurec", split, tmp_path / "changed", config=TINY)
    rd.train("diffurec", rd.split.leave_one_out(walks()), tmp_path / "original", config=TINY)
    assert same(weights(tmp_path / "changed"), weights(tmp_path / "original"))


def test_infinite_loss_stops_with_step_users_and_advice(split, tmp_path, monkeypatch):
    monkeypatch.setattr(DiffuRec, "loss", lambda self, batch: self.item_embedding.weight.sum() * float("nan"))
    with pytest.raises(TrainingError, match=r"nan at step 1 of epoch 1.*users u\d+[\s\S]*learning_rate"):
        rd.train("diffurec", split, tmp_path / "run", config=TINY)


def test_a_folder_in_use_is_refused_and_left_alone(split, tmp_path):
    rd.train("popularity", split, tmp_path / "run")
    before = sorted((p.name, p.stat().st_mtime_ns) for p in (tmp_path / "run").rglob("*"))
    with pytest.raises(RunError, match="not empty"):
        rd.train("popularity", split, tmp_path / "run")
    assert before == sorted((p.name, p.stat().st_mtime_ns) for p in (tmp_path / "run").rglob("*"))


def test_resuming_with_other_options_names_them(split, tmp_path):
    rd.train("sasrec", split, tmp_path / "run", config=TINY | {"epochs": 1})
    with pytest.raises(RunError, match="embedding_size was 16, is 8"):
        rd.train("sasrec", split, tmp_path / "run", config=TINY | {"epochs": 1, "embedding_size": 8}, resume=True)
    with pytest.raises(RunError, match="no training to resume"):
        rd.train("sasrec", split, tmp_path / "new", config=TINY, resume=True)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "items.parquet", "users.parquet"])
@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_a_damaged_run_is_refused_by_name(split, tmp_path, file, harm):
    rd.train("popularity", split, tmp_path / "run")
    path = tmp_path / "run" / file
    content = bytearray(path.read_bytes())
    if harm == "remove":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content if harm == "flip" else content[:-1])
    with pytest.raises(RunError, match=file):
        read_run(tmp_path / "run")


def test_other_damage_is_refused_by_name(split, tmp_path):
    with pytest.raises(RunError, match="not a run folder"):
        read_run(tmp_path)
    rd.train("popularity", split, tmp_path / "run")
    manifest = tmp_path / "run" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 9'))
    with pytest.raises(RunError, match="format 9"):
        read_run(tmp_path / "run")


def test_unknown_names_have_suggestions(split, tmp_path):
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


def test_seeds_differ_by_place():
    places = [(0,), (1,), (0, 1), (0, "fit", 1), (0, "fit", 2)]
    assert len({derive(*place) for place in places}) == len(places)
    assert derive(-1, "a") >= 0


TWO_RANKS = textwrap.dedent(
    """
    import sys
    import rediffuse as rd
    from tests.synthetic import walks
    rd.train("diffurec", rd.split.leave_one_out(walks()), sys.argv[1], config=%r, seed=3)
    """
) % (
    TINY
    | {"timestep_sampler": "lossaware", "diffusion_steps": 4, "epochs": 2, "dropout": 0.0, "embedding_dropout": 0.0},
)


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(TWO_RANKS)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", str(script), str(tmp_path / "two")]
    subprocess.run(launch, env=environment, check=True, timeout=180)
    lines = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[1]["loss"] < lines[0]["loss"]
