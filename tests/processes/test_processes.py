"""Several processes do what one does: the same losses, the same state in all, one writer, no hang."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from tests.processes.train_all import DRAWN, FITS, folder_name
from tests.synthetic import walks

import rediffuse as rd
from rediffuse import processes
from rediffuse.errors import RediffuseError
from rediffuse.evaluation import evaluate_task, model_scores
from rediffuse.training import read_run
from rediffuse.training.loop import VALIDATION_METRICS

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# What draws noise, masks or negatives of its own in each process meets the losses of one process only on average.
DRAWS = {"bert4rec", "s3rec", "diffkg", "diffuasr", "ldiffrec"}
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def started(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The finished command; a hang is a failure."""
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def succeeds(*command: str, **environment: str) -> str:
    done = started(*command, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def log(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    succeeds(sys.executable, str(HERE / "train_all.py"), str(folder))
    return folder


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    succeeds(*TWO, str(HERE / "train_all.py"), str(folder))
    return folder


every_fit = pytest.mark.parametrize(("name", "options"), FITS, ids=[folder_name(*fit) for fit in FITS])


@every_fit
def test_two_processes_meet_the_losses_of_one(alone, together, name, options):
    of_one, of_two = (log(folder / folder_name(name, options)) for folder in (alone, together))
    # One writer: each epoch of each phase once.
    assert [(x["phase"], x["epoch"]) for x in of_one] == [(x["phase"], x["epoch"]) for x in of_two]
    drawn = name in DRAWS or options is DRAWN
    tolerance = 0.35 if drawn else 2e-3 if name == "pdrec" else 1e-5
    losses = [np.array([x["loss"] for x in lines]) for lines in (of_one, of_two)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=tolerance)


@every_fit
def test_all_processes_end_with_the_same_state(together, name, options):
    """Weights and buffers, the history of the loss-aware sampler among them."""
    folder = together / folder_name(name, options)
    first, second = (json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    if options is DRAWN:
        assert any(key.endswith("timesteps.history") for key in first)
        history = load_file(folder / "model.safetensors")
        assert any(bool(value.any()) for key, value in history.items() if key.endswith("timesteps.history"))


@every_fit
def test_evaluation_by_two_processes_equals_that_by_one_exactly(together, name, options):
    run = read_run(together / folder_name(name, options))
    view = rd.split.leave_one_out(walks(friends=3, knowledge=True)).training_view()
    metrics = dict.fromkeys((*VALIDATION_METRICS, run.model.config.metric.removesuffix("/unseen")))
    found = evaluate_task(
        model_scores(run.model, view.valid, 3), view.valid, num_items=view.num_items, metrics=list(metrics)
    )
    of_two = run.config["validation"]
    assert run.config["training"]["processes"] == 2
    assert found.metrics["all"] == {name: of_two[name] for name in found.metrics["all"]}
    assert found.metrics["unseen"] == {name: of_two[f"{name}/unseen"] for name in found.metrics["unseen"]}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    succeeds(*TWO, str(HERE / "train_one.py"), str(folder), "-1")
    return load_file(folder / "model.safetensors")


def is_undisturbed(folder: Path, weights: dict[str, torch.Tensor]) -> bool:
    found = load_file(folder / "model.safetensors")
    return found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in found)


def test_a_killed_process_ends_all_with_a_clear_message_and_the_run_resumes(tmp_path, undisturbed):
    script = str(HERE / "train_one.py")
    done = started(*TWO, script, str(tmp_path / "run"), "7")
    assert done.returncode != 0
    assert "Another of the processes that train together has ended." in done.stderr
    assert "--resume" in done.stderr
    succeeds(*TWO, script, str(tmp_path / "run"), "-1", "--resume")
    assert is_undisturbed(tmp_path / "run", undisturbed)


def test_a_launcher_that_starts_again_goes_on_from_the_checkpoint(tmp_path, undisturbed):
    again = [*TWO[:-2], "--max-restarts", "1", *TWO[-2:]]
    succeeds(*again, str(HERE / "train_one.py"), str(tmp_path / "run"), "7")
    assert is_undisturbed(tmp_path / "run", undisturbed)


def test_the_commands_under_accelerate_launch(tmp_path):
    walks().save(tmp_path / "data")
    data, run = str(tmp_path / "data"), str(tmp_path / "run")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--main_process_port", "0", "-m", "rediffuse"]  # --multi_gpu: several processes, also without any GPU
    options = [word for name in ("epochs=2", "embedding_size=16") for word in ("--set", name)]
    said = succeeds(*launch, "train", "diffurec", data, "-o", run, "--split", "leave-one-out", *options, "--json")
    assert json.loads(said)["validation"]["ndcg@10"] > 0  # one object: one process speaks
    refused = started(*launch, "train", "diffurec", data, "-o", run, "--split", "leave-one-out")
    assert refused.returncode != 0
    assert "is not empty" in refused.stderr
    of_two = json.loads(succeeds(*launch, "evaluate", run, data, "--json"))
    per_user = pl.read_parquet(Path(run) / "per_user_test.parquet")
    of_one = json.loads(succeeds(sys.executable, "-m", "rediffuse", "evaluate", run, data, "--json"))
    assert of_two["metrics"] == of_one["metrics"]
    assert per_user.equals(pl.read_parquet(Path(run) / "per_user_test.parquet"))
    other = started(*launch, "doctor")
    assert "runs in one process" in other.stderr


def test_that_accelerate_started_one_process_for_several_is_said():
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "-m", "rediffuse"]
    assert "started one process alone" in started(*launch, "data").stderr


def test_alone_nothing_is_exchanged():
    ranks = np.array([3, 1])
    processes.largest(ranks)
    assert (processes.count(), processes.index()) == (1, 0)
    assert processes.mean(2.5) == 2.5
    assert processes.any_of(True)
    assert not processes.any_of(False)
    assert ranks.tolist() == [3, 1]
    with pytest.raises(RediffuseError, match="no"), processes.together():
        processes.first_alone(refuse)


def refuse() -> None:
    raise RediffuseError("no")
