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
from safetensors.torch import load_file
from tests.distributed.train_all import DRAWN, FITS, folder_name
from tests.synthetic import walks

import rediffuse as rd
from rediffuse import distributed
from rediffuse.errors import ConfigError, RediffuseError
from rediffuse.evaluation import evaluate_task, model_scores
from rediffuse.runs.run_folder import read_run
from rediffuse.training.loop import VALIDATION_METRICS

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# What draws noise, masks or negatives of its own in each process meets the losses of one process only on average.
DRAWS = {"bert4rec", "s3rec", "diffkg", "diffuasr", "ldiffrec"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TWO = TORCHRUN
TRAIN_ONE = str(HERE / "train_one.py")


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
    tolerance = 0.35 if name in DRAWS or options is DRAWN else 1e-5
    losses = [np.array([x["loss"] for x in lines]) for lines in (of_one, of_two)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=tolerance)


@every_fit
def test_all_processes_end_with_the_same_state(together, name, options):
    """Weights and buffers, the history of the loss-aware sampler among them."""
    folder = together / folder_name(name, options)
    told = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    first, second = (one["state"] for one in told)
    assert first == second
    assert min(one["ranked"] for one in told) >= 4  # two blocks, with seen items and without
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
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    succeeds(*TWO, TRAIN_ONE, str(folder))
    return folder


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("dies", "again"), [("0", TWO), ("1", [sys.executable])], ids=["first", "second"])
def test_a_killed_process_ends_all_with_a_clear_message_and_the_run_resumes(tmp_path, undisturbed, dies, again):
    done = started(*TWO, TRAIN_ONE, str(tmp_path / "run"), "--dies", dies)
    assert done.returncode != 0
    assert "Another process of this job has ended." in done.stderr
    assert "--resume" in done.stderr
    succeeds(*again, TRAIN_ONE, str(tmp_path / "run"), "--resume")
    assert [line["epoch"] for line in log(tmp_path / "run")] == [1, 2, 3, 4]
    # As many processes as before come to the same weights.
    assert (weights(tmp_path / "run") == weights(undisturbed)) is (again is TWO)


def test_restarts_by_a_launcher_are_refused(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    with pytest.raises(ConfigError, match=r"--max-restarts\) are not supported[\s\S]*--resume"):
        distributed.init()


def test_a_tracker_does_not_part_the_processes(tmp_path):
    said = succeeds(*TWO, TRAIN_ONE, str(tmp_path / "run"), "--track", "tensorboard")
    assert sorted(said.splitlines()) == ["0 of 2", "1 of 2"]
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))


def work(name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return started(*TWO, str(HERE / "work.py"), name, str(folder))


def test_all_processes_return_when_the_first_has_written(tmp_path):
    assert sorted(work("waits", tmp_path).stdout.splitlines()) == ["0: True", "0: True", "1: True", "1: True"]


def test_what_the_first_cannot_write_the_others_hear_of(tmp_path):
    said = work("fails", tmp_path).stdout
    assert sorted(said.splitlines()) == ["0: There is no space.", "1: Process 0 of this job failed."]


def test_a_process_that_dies_while_all_evaluate_is_said(tmp_path):
    said = work("evaluation", tmp_path).stderr
    assert "Error: Another process of this job has ended." in said
    assert "Start the same command again." in said


def test_a_process_that_waits_for_another_still_hears_its_launcher(tmp_path):
    said = work("blocked", tmp_path).stderr
    assert "Error: Another process of this job has ended." in said
    assert "Do it again." in said


def test_the_commands_under_accelerate_launch(tmp_path):
    walks().save(tmp_path / "data")
    data, run, command = str(tmp_path / "data"), str(tmp_path / "run"), str(HERE / "command.py")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--main_process_port", "0", command]  # --multi_gpu: several processes, also without any GPU
    options = [word for name in ("epochs=2", "embedding_size=16") for word in ("--set", name)]
    said = succeeds(*launch, "train", "diffurec", data, "-o", run, "--split", "leave-one-out", *options, "--json")
    assert json.loads(said)["validation"]["ndcg@10"] > 0  # one object: one process speaks
    refused = started(*launch, "train", "diffurec", data, "-o", run, "--split", "leave-one-out", "--json")
    assert refused.returncode != 0
    assert "is not empty" in json.loads(refused.stdout)["error"]
    assert "Error (process 1): Process 0 of this job failed." in refused.stderr
    two = started(*launch, "evaluate", run, data, "--json")
    assert two.stderr.count("scored 2 blocks") == 2
    per_user = pl.read_parquet(Path(run) / "per_user_test.parquet")
    one = started(sys.executable, command, "evaluate", run, data, "--json")
    assert "scored 4 blocks" in one.stderr
    assert json.loads(two.stdout)["metrics"] == json.loads(one.stdout)["metrics"]
    assert per_user.equals(pl.read_parquet(Path(run) / "per_user_test.parquet"))


def test_accelerate_launch_that_starts_one_process_for_several_is_refused(tmp_path):
    """Without --multi_gpu and without GPUs, Accelerate starts one process."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "-m", "rediffuse"]
    refused = started(*launch, "train", "popularity", str(tmp_path), "-o", str(tmp_path / "run"))
    assert refused.returncode != 0
    assert "accelerate launch started one process instead of several" in refused.stderr
    assert "torchrun --nproc-per-node N" in refused.stderr
    assert not (tmp_path / "run").exists()


def test_commands_that_do_not_share_work_refuse_a_launcher(tmp_path):
    refused = started(*TORCHRUN, "-m", "rediffuse", "doctor")
    assert refused.returncode != 0
    assert "rediffuse doctor runs in one process" in refused.stderr


def test_alone_nothing_is_exchanged():
    ranks = np.array([3, 1])
    distributed.all_reduce_max(ranks)
    assert (distributed.world_size(), distributed.rank()) == (1, 0)
    assert distributed.all_reduce_mean(2.5) == 2.5
    assert distributed.any_rank(True)
    assert not distributed.any_rank(False)
    assert ranks.tolist() == [3, 1]
    with pytest.raises(RediffuseError, match="no"), distributed.fail_together("Nobody dies."):
        distributed.main_process_first(refuse)


def refuse() -> None:
    raise RediffuseError("no")
