"""Trackers, each really used: an event file, W&B offline, MLflow with files and SQLite. Nothing needs a network."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

import rediffuse as rd
from rediffuse.errors import ConfigError, MissingExtraError, RediffuseWarning
from rediffuse.runs import tracking
from rediffuse.testing import synthetic_interactions

TINY = {"embedding_size": 16, "batch_size": 64, "epochs": 3, "blocks": 1, "precision": "fp32"}


@pytest.fixture(scope="module")
def split():
    return rd.split.leave_one_out(synthetic_interactions())


@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# --- MLflow --------------------------------------------------------------------------------------------------


@pytest.fixture(params=["files", "sqlite"])
def store(request, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = f"file://{tmp_path}/mlruns"
    if request.param == "sqlite":
        if not _has_database():
            pytest.skip("mlflow-skinny has no database: install mlflow.")
        uri = f"sqlite:///{tmp_path}/mlflow.db"
    mlflow.set_tracking_uri(uri)
    yield mlflow.MlflowClient(uri)
    mlflow.set_tracking_uri(None)


def _has_database() -> bool:
    import importlib.util

    return all(importlib.util.find_spec(name) for name in ("alembic", "sqlalchemy"))


def test_mlflow_holds_the_run_from_options_to_test_metrics(split, tmp_path, store):
    run = rd.train("sasrec", split, tmp_path / "run", config=TINY, tracker="mlflow", track_artifacts=True, seed=4)
    tracked = run.config["tracking"]
    found = store.get_run(tracked["run"])
    assert found.info.status == "FINISHED"
    params = found.data.params
    assert params["model"] == "sasrec"
    assert params["seed"] == "4"
    assert params["options.embedding_size"] == "16"
    assert params["split.name"] == "leave-one-out"
    assert params["data.fingerprint"] == split.dataset.fingerprint_without_synthetic
    assert params["versions.rediffuse"] == rd.__version__
    lines = log(run.path)
    for name, value in lines[0]["validation"].items():
        history = store.get_metric_history(tracked["run"], "validation/" + tracking.legal_name(name, "mlflow"))
        assert [(point.step, point.value) for point in history] == [
            (line["epoch"], line["validation"][name]) for line in lines
        ]
        assert history[0].value == value
    for name in ("loss", "learning_rate"):
        history = store.get_metric_history(tracked["run"], name)
        assert [point.value for point in history] == [line[name] for line in lines]
    stored = {file.path for file in store.list_artifacts(tracked["run"], "run")}
    assert {"run/model.safetensors", "run/config.json", "run/manifest.json"} <= stored

    result = rd.evaluate(run, split.dataset)
    metrics = store.get_run(tracked["run"]).data.metrics
    assert metrics["test/hr_at_10"] == result["metrics"]["all"]["hr@10"]
    assert metrics["test/ndcg_at_10_unseen"] == result["metrics"]["unseen"]["ndcg@10"]


def test_a_resumed_training_adds_to_the_same_run(split, tmp_path, store):
    class Stops:
        def on_validation(self, event):
            if event.epoch == 2:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        rd.train("sasrec", split, tmp_path / "run", config=TINY, tracker="mlflow", callbacks=[Stops()])
    run = rd.train("sasrec", split, tmp_path / "run", config=TINY, tracker="mlflow", resume=True)
    (found,) = store.search_runs([store.get_experiment_by_name("rediffuse").experiment_id])
    assert found.info.run_id == run.config["tracking"]["run"]
    assert [point.step for point in store.get_metric_history(found.info.run_id, "loss")] == [1, 2, 3]


def test_a_tracker_that_fails_does_not_end_training(split, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    from accelerate.tracking import MLflowTracker

    def fail(self, values, step=None):
        raise OSError("the server is gone")

    monkeypatch.setattr(MLflowTracker, "log", fail)
    with pytest.warns(RediffuseWarning, match="OSError: the server is gone") as warned:
        run = rd.train("sasrec", split, tmp_path / "run", config=TINY, tracker="mlflow")
    assert len([entry for entry in warned if "the server is gone" in str(entry.message)]) == 1
    assert len(log(run.path)) == 3


# --- W&B -----------------------------------------------------------------------------------------------------


def wait_for(what: bytes, *files: Path) -> bytes:
    """The content of W&B's files once one holds ``what``: its service may write them after the run has ended."""
    deadline = time.monotonic() + 60
    while True:
        content = b"".join(file.read_bytes() for file in files)
        if what in content or time.monotonic() > deadline:
            return content
        time.sleep(0.05)


def test_wandb_offline(split, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = rd.train("sasrec", split, tmp_path / "run", config=TINY, tracker="wandb", track_artifacts=True)
    tracked = run.config["tracking"]
    (file,) = (tmp_path / "wandb").glob(f"offline-run-*-{tracked['run']}/*.wandb")
    content = wait_for(b"model.safetensors", file)
    for name in ("validation/ndcg_at_10_unseen", "loss", "learning_rate", "embedding_size", "leave-one-out"):
        assert name.encode() in content
    # The option metric keeps its value, and W&B may store what was printed.
    assert b"validation/ndcg@10" not in content
    assert b"model.safetensors" in content
    while time.strftime("%Y%m%d_%H%M%S") in file.parent.name:  # W&B names folders by the second
        time.sleep(0.05)
    rd.evaluate(run, split.dataset)
    later = list((tmp_path / "wandb").glob(f"offline-run-*-{tracked['run']}/*.wandb"))
    assert len(later) == 2
    assert b"test/ndcg_at_10" in wait_for(b"test/ndcg_at_10", *later)


# --- TensorBoard ---------------------------------------------------------------------------------------------


def test_tensorboard_event_files(split, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = rd.train("sasrec", split, tmp_path / "run", config=TINY, tracker="tensorboard")
    rd.evaluate(run, split.dataset)
    events = EventAccumulator(str(run.path / "rediffuse"))
    events.Reload()
    lines = log(run.path)
    assert [point.value for point in events.Scalars("validation/hr@10/unseen")] == pytest.approx(
        [line["validation"]["hr@10/unseen"] for line in lines]
    )
    assert [point.step for point in events.Scalars("loss")] == [1, 2, 3]
    assert "test/hr@10" in events.Tags()["scalars"]


def test_phases_have_names_and_steps_that_go_on(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    split = rd.split.leave_one_out(synthetic_interactions())
    config = {"embedding_size": 16, "batch_size": 64, "epochs": 2, "pretrain_epochs": 3, "blocks": 1}
    run = rd.train("s3rec", split, tmp_path / "run", config=config, tracker="tensorboard")
    events = EventAccumulator(str(run.path / "rediffuse"))
    events.Reload()
    assert [point.step for point in events.Scalars("pretrain/loss")] == [1, 2, 3]
    assert [point.step for point in events.Scalars("finetune/validation/ndcg@10")] == [4, 5]


# --- before training -----------------------------------------------------------------------------------------


def test_an_unknown_or_missing_tracker_is_an_error_before_training(split, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"Unknown tracker 'ml-flow'\.[\s\S]*Did you mean 'mlflow'"):
        rd.train("sasrec", split, tmp_path / "run", config=TINY, tracker="ml-flow")
    with pytest.raises(ConfigError, match="track_artifacts needs a tracker"):
        rd.train("sasrec", split, tmp_path / "run", config=TINY, track_artifacts=True)
    with pytest.raises(ConfigError, match="TensorBoard stores no artifacts"):
        rd.train("sasrec", split, tmp_path / "run", config=TINY, tracker="tensorboard", track_artifacts=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", tracking.EXTRAS)
def test_a_package_that_is_missing_is_named_with_its_extra(split, tmp_path, monkeypatch, name):
    found = tracking.importlib.util.find_spec
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda asked: None if asked == name else found(asked))
    with pytest.raises(MissingExtraError, match=rf"{name} is needed[\s\S]*rediffuse\[{tracking.EXTRAS[name]}\]"):
        rd.train("sasrec", split, tmp_path / "run", config=TINY, tracker=name)
    assert not (tmp_path / "run").exists()


def test_a_folder_called_wandb_is_not_the_package(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(MissingExtraError):
        tracking.check_tracker("wandb", False)


def test_an_evaluation_without_the_tracker_says_so_and_succeeds(split, tmp_path, monkeypatch):
    run = rd.train("sasrec", split, tmp_path / "run", config=TINY, tracker="tensorboard")
    found = tracking.importlib.util.find_spec
    monkeypatch.setattr(
        tracking.importlib.util, "find_spec", lambda asked: None if asked == "tensorboard" else found(asked)
    )
    with pytest.warns(RediffuseWarning, match="test metrics were not tracked"):
        assert rd.evaluate(run, split.dataset)["metrics"]


def test_names_and_addresses():
    assert tracking.legal_name("validation/hr@10/unseen", "mlflow") == "validation/hr_at_10_unseen"
    assert tracking.legal_name("test sampled-100/hr@10", "wandb") == "test sampled-100/hr_at_10"
    assert tracking.legal_name("hr@10/unseen", "tensorboard") == "hr@10/unseen"
    assert tracking._without_password("https://me:secret@host:5000/a") == "https://host:5000/a"
    assert tracking._without_password("sqlite:///a.db") == "sqlite:///a.db"
