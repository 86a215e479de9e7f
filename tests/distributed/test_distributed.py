"""Several processes do what one does: the same losses, the same state in every process, one writer, no hang."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from safetensors.torch import load_file
from tests.distributed.train_all import DRAWN, FITS, folder_name

import rediffuse as rd
from rediffuse import distributed
from rediffuse.errors import ConfigError, RediffuseError
from rediffuse.evaluation import evaluate_task, model_scores
from rediffuse.runs.run_folder import read_run
from rediffuse.testing import synthetic_interactions
from rediffuse.training.loop import VALIDATION_METRICS

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# Models whose processes each draw noise, masks or negatives have the losses of one process only on average.
DRAWS = {"bert4rec", "maskdiff", "s3rec", "diffkg", "diffuasr", "ldiffrec"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TRAIN_ONE = str(HERE / "train_one.py")


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; a hang is a failure."""
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def output(*command: str, **environment: str) -> str:
    """What a command prints; fails unless it succeeds."""
    done = run(*command, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def log(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# In closed form, or trained by the code of another model that is not in this set.
ALIKE = {"bert4rec", "diffnet", "friends", "gru4rec", "heat", "itemknn", "popularity", "recentpop", "s3rec", "slist"}
ALIKE |= {"d3rec", "flowcf", "giffcf", "ldiffrec", "maskdiff", "preferdiff", "tdiffrec", "transition"}


def asked_for(request: pytest.FixtureRequest) -> list[str]:
    """Names of the models that the selected tests are about."""
    calls = [getattr(item, "callspec", None) for item in request.session.items if item.path == request.path]
    return sorted({call.params["name"] for call in calls if call is not None and "name" in call.params})


@pytest.fixture(scope="module")
def one_process(request, tmp_path_factory) -> Path:
    """Models, trained by one process."""
    folder = tmp_path_factory.mktemp("one")
    output(sys.executable, str(HERE / "train_all.py"), str(folder), *asked_for(request))
    return folder


@pytest.fixture(scope="module")
def two_processes(request, tmp_path_factory) -> Path:
    """Models, trained by two processes."""
    folder = tmp_path_factory.mktemp("two")
    output(*TORCHRUN, str(HERE / "train_all.py"), str(folder), *asked_for(request))
    return folder


every_fit = pytest.mark.parametrize(
    ("name", "options"),
    [pytest.param(*fit, id=folder_name(*fit), marks=[pytest.mark.slow] if fit[0] in ALIKE else []) for fit in FITS],
)


@every_fit
def test_two_processes_have_the_losses_of_one(one_process, two_processes, name, options):
    of_one, of_two = (log(folder / folder_name(name, options)) for folder in (one_process, two_processes))
    # One process writes: each epoch of each phase is logged once.
    assert [(x["phase"], x["epoch"]) for x in of_one] == [(x["phase"], x["epoch"]) for x in of_two]
    tolerance = 0.35 if name in DRAWS or options is DRAWN else 1e-5
    losses = [np.array([x["loss"] for x in lines]) for lines in (of_one, of_two)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=tolerance)


@every_fit
def test_all_processes_end_with_the_same_state(two_processes, name, options):
    """The state is the weights and buffers, with the history of the loss-aware sampler."""
    folder = two_processes / folder_name(name, options)
    records = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    first, second = (record["state"] for record in records)
    assert first == second
    assert min(record["ranked"] for record in records) >= 4  # two blocks, with seen items and without
    if options is DRAWN:
        assert any(key.endswith("timesteps.history") for key in first)
        history = load_file(folder / "model.safetensors")
        assert any(bool(value.any()) for key, value in history.items() if key.endswith("timesteps.history"))


@every_fit
def test_evaluation_by_two_processes_equals_that_by_one_exactly(two_processes, name, options):
    contents = read_run(two_processes / folder_name(name, options))
    view = rd.split.leave_one_out(synthetic_interactions(friends=3, knowledge=True)).training_view()
    metrics = dict.fromkeys((*VALIDATION_METRICS, contents.model.config.metric.removesuffix("/unseen")))
    found = evaluate_task(
        model_scores(contents.model, view.valid, 3), view.valid, num_items=view.num_items, metrics=list(metrics)
    )
    of_two = contents.config["validation"]
    assert contents.config["training"]["processes"] == 2
    assert found.metrics["all"] == {name: of_two[name] for name in found.metrics["all"]}
    assert found.metrics["unseen"] == {name: of_two[f"{name}/unseen"] for name in found.metrics["unseen"]}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    output(*TORCHRUN, TRAIN_ONE, str(folder))
    return folder


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("killed", "again"),
    [
        pytest.param("0", TORCHRUN, id="first"),
        pytest.param("1", [sys.executable], id="second", marks=pytest.mark.slow),
    ],
)
def test_a_killed_process_ends_all_with_a_clear_error_and_the_run_resumes(tmp_path, uninterrupted, killed, again):
    done = run(*TORCHRUN, TRAIN_ONE, str(tmp_path / "run"), "--kill", killed)
    assert done.returncode != 0
    assert "Another process of this job has ended." in done.stderr
    assert "--resume" in done.stderr
    output(*again, TRAIN_ONE, str(tmp_path / "run"), "--resume")
    assert [line["epoch"] for line in log(tmp_path / "run")] == [1, 2, 3, 4]
    # Only the same number of processes gives the same weights.
    assert (weights(tmp_path / "run") == weights(uninterrupted)) is (again is TORCHRUN)


def test_restarts_by_a_launcher_are_refused(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    with pytest.raises(ConfigError, match=r"--max-restarts\) are not supported[\s\S]*--resume"):
        distributed.init()


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE=x"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE=-1"),
        ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE=999"),
        ({"WORLD_SIZE": "\u0662"}, "WORLD_SIZE="),
        ({"RANK": "first", "WORLD_SIZE": "2"}, "RANK=first"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 and WORLD_SIZE=2"),
        ({"TORCHELASTIC_MAX_RESTARTS": "many"}, "TORCHELASTIC_MAX_RESTARTS=many"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT=http"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 and no RANK, MASTER_ADDR, MASTER_PORT"),
    ],
)
def test_an_environment_that_no_launcher_made_is_refused(monkeypatch, variables, said):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMPI_COMM_WORLD_RANK", "PMI_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=said) as caught:
        distributed.init()
    assert "unset" in str(caught.value.remedy).lower()


def test_the_command_refuses_such_an_environment():
    done = run(sys.executable, "-m", "rediffuse", "models", WORLD_SIZE="x")
    assert done.returncode == 2
    assert "WORLD_SIZE=x" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_tracker_does_not_destroy_the_process_group(tmp_path):
    printed = output(*TORCHRUN, TRAIN_ONE, str(tmp_path / "run"), "--track", "tensorboard")
    assert sorted(printed.splitlines()) == ["0 of 2", "1 of 2"]
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))


def work(name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return run(*TORCHRUN, str(HERE / "work.py"), name, str(folder))


@pytest.mark.slow
def test_all_processes_return_after_the_first_has_written(tmp_path):
    assert sorted(work("waits", tmp_path).stdout.splitlines()) == ["0: True", "0: True", "1: True", "1: True"]


@pytest.mark.slow
def test_all_processes_fail_if_the_first_cannot_write(tmp_path):
    printed = work("fails", tmp_path).stdout
    assert sorted(printed.splitlines()) == ["0: There is no space.", "1: Process 0 of this job failed."]


@pytest.mark.slow
def test_a_process_killed_during_evaluation_is_reported(tmp_path):
    errors = work("evaluation", tmp_path).stderr
    assert "Error: Another process of this job has ended." in errors
    assert "Start the same command again." in errors


@pytest.mark.slow
def test_a_process_killed_while_it_makes_the_view_is_reported(tmp_path):
    errors = work("view", tmp_path).stderr
    assert "Error: Another process of this job has ended." in errors
    assert "Start the same command again." in errors


def test_a_process_that_waits_for_another_still_handles_sigterm(tmp_path):
    errors = work("blocked", tmp_path).stderr
    assert "Error: Another process of this job has ended." in errors
    assert "Do it again." in errors


@pytest.mark.slow
def test_the_commands_under_accelerate_launch(tmp_path):
    synthetic_interactions().save(tmp_path / "data")
    data, folder, command = str(tmp_path / "data"), str(tmp_path / "run"), str(HERE / "command.py")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--main_process_port", "0", command]  # --multi_gpu starts several processes, also without GPUs
    options = [word for name in ("epochs=2", "embedding_size=16") for word in ("--set", name)]
    printed = output(*launch, "train", "diffurec", data, "-o", folder, "--split", "leave-one-out", *options, "--json")
    assert json.loads(printed)["validation"]["ndcg@10"] > 0  # one object: only one process prints
    refused = run(*launch, "train", "diffurec", data, "-o", folder, "--split", "leave-one-out", "--json")
    assert refused.returncode != 0
    assert "is not empty" in json.loads(refused.stdout)["error"]
    assert "Error (process 1): Process 0 of this job failed." in refused.stderr
    two = run(*launch, "evaluate", folder, data, "--json")
    # Two blocks of users each, and one when the run is loaded and checked.
    assert two.stderr.count("scored 3 blocks") == 2
    per_user = pl.read_parquet(Path(folder) / "per_user_test.parquet")
    one = run(sys.executable, command, "evaluate", folder, data, "--json")
    assert "scored 5 blocks" in one.stderr
    assert json.loads(two.stdout)["metrics"] == json.loads(one.stdout)["metrics"]
    assert per_user.equals(pl.read_parquet(Path(folder) / "per_user_test.parquet"))


def test_accelerate_launch_that_starts_one_process_for_several_is_refused(tmp_path):
    """Without --multi_gpu and without GPUs, Accelerate starts one process."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "-m", "rediffuse"]
    refused = run(*launch, "train", "popularity", str(tmp_path), "-o", str(tmp_path / "run"))
    assert refused.returncode != 0
    assert "accelerate launch started one process instead of several" in refused.stderr
    assert "torchrun --nproc-per-node N" in refused.stderr
    assert not (tmp_path / "run").exists()


def test_commands_of_a_single_process_refuse_a_launcher(tmp_path):
    refused = run(*TORCHRUN, "-m", "rediffuse", "doctor")
    assert refused.returncode != 0
    assert "rediffuse doctor runs in one process" in refused.stderr


def test_a_single_process_needs_no_process_group():
    ranks = np.array([3, 1])
    distributed.all_reduce_max(ranks)
    assert (distributed.world_size(), distributed.rank()) == (1, 0)
    assert distributed.all_reduce_mean(2.5) == 2.5
    assert distributed.any_rank(True)
    assert not distributed.any_rank(False)
    assert ranks.tolist() == [3, 1]
    with pytest.raises(RediffuseError, match="no"), distributed.fail_together("Do it again."):
        distributed.main_process_first(refuse)


def refuse() -> None:
    raise RediffuseError("no")


@pytest.mark.slow
def test_successive_targets_and_users_without_a_history_are_the_same_for_two_processes(tmp_path):
    command = str(HERE / "train_successive.py")
    one, two, copy = tmp_path / "one", tmp_path / "two", tmp_path / "copy"
    output(sys.executable, command, str(one), str(one))
    shutil.copytree(one, copy)
    output(*TORCHRUN, command, str(two), str(copy))
    for first, second in zip(log(one), log(two), strict=True):
        assert first["loss"] == pytest.approx(second["loss"], rel=1e-4)
        assert "with_history/ndcg@10" in first["validation"]
        assert first["validation"] == pytest.approx(second["validation"], abs=0.02)
    best = [json.loads((folder / "config.json").read_text())["training"]["best_epoch"] for folder in (one, two)]
    assert best[0] == best[1]
    alone, together = (json.loads((folder / "test.json").read_text()) for folder in (one, copy))
    for key in ("metrics", "metrics_with_history", "counts"):
        assert alone[key] == together[key]
    assert alone["counts"]["cold_users"] > 0
    assert alone["users_per_second"] != together["users_per_second"]  # it was evaluated again
