"""Training on Ray Train: the weights of a launcher's processes, also after a worker was killed; and errors of ours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import rediffuse as rd
from rediffuse import distributed
from rediffuse.engines.ray import train as train_on_ray
from rediffuse.engines.ray.mailbox import Mailbox, sending
from rediffuse.errors import ConfigError, DataError, MissingExtraError, RediffuseWarning, RunError
from rediffuse.readers.public_datasets import public_dataset
from rediffuse.testing import synthetic_interactions
from rediffuse.training.progress import logger

OPTIONS = {"epochs": 3, "embedding_size": 16, "max_length": 20}
SETTINGS = [word for name, value in OPTIONS.items() for word in ("--set", f"{name}={value}")]


def test_what_can_be_refused_is_refused_before_ray_starts(tmp_path, monkeypatch):
    for name in ("ray", "ray.data", "ray.train"):
        monkeypatch.setitem(sys.modules, name, None)
    split = rd.split.leave_one_out(synthetic_interactions())
    used = rd.train("popularity", split, tmp_path / "used").path
    for arguments, options, kind, said in [
        (("sasrec", split, used), {}, RunError, "is not empty"),
        (("sasrec", split, tmp_path / "new"), {"resume": True}, RunError, "no training to resume"),
        (("sasrec", split, tmp_path / "new"), {"config": {"epoch": 3}}, ConfigError, "epoch"),
        (("sasrc", split, tmp_path / "new"), {}, ConfigError, "sasrec"),
        (("sasrec", split, tmp_path / "new"), {"workers": 0}, ConfigError, "workers"),
        (("sasrec", split), {}, ConfigError, "out"),
        (("sasrec", split, tmp_path / "new"), {}, MissingExtraError, r"rediffuse\[ray\]"),
    ]:
        with pytest.raises(kind, match=said):
            train_on_ray(*arguments, **options)
    assert not (tmp_path / "new").exists()


class _Local:
    """A mailbox in this process, with the calls of an actor."""

    def __init__(self) -> None:
        self.box = Mailbox()

    def __getattr__(self, name: str):
        method = getattr(self.box, name)
        return type("Method", (), {"remote": staticmethod(method)})


def test_a_worker_sends_its_progress_and_warnings():
    mailbox = _Local()
    with sending(mailbox):
        logger.info("epoch 1")
        warnings.warn("Mind the gap.", RediffuseWarning, stacklevel=1)
        warnings.warn("Of another library.", UserWarning, stacklevel=1)
    logger.info("after")
    assert mailbox.box.collect() == [("progress", "epoch 1"), ("warning", "Mind the gap.")]
    assert mailbox.box.collect() == []
    mailbox.box.fail(1, DataError("of 1"))
    mailbox.box.fail(0, DataError("of 0"))
    assert str(mailbox.box.first_error()) == "of 0"


# --- on two workers of this machine ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(data_root, tmp_path_factory) -> Path:
    pytest.importorskip("ray.train", reason="Ray is not installed")
    folder = tmp_path_factory.mktemp("data") / "ml-100k"
    public_dataset("ml-100k", root=data_root).save(folder)
    return folder


def weights(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


def command(data: Path, out: Path, *more: str, launcher: tuple[str, ...] = ()) -> None:
    words = ["train", "sasrec", str(data), "-o", str(out), "--split", "leave-one-out", "--seed", "5", *SETTINGS, *more]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "rediffuse", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def launched(data, tmp_path_factory) -> Path:
    """The run of two processes of torchrun."""
    out = tmp_path_factory.mktemp("launched") / "run"
    command(data, out, launcher=("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"))
    return out


class Kills:
    """A callback that kills worker 1 in the second epoch, once."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def on_step(self, event) -> None:
        if distributed.rank() == 1 and (event.epoch, event.step) == (2, 3) and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.real_data
def test_two_workers_end_with_the_weights_of_a_launcher(data, launched, tmp_path):
    command(data, tmp_path / "run", "--engine", "ray", "--workers", "2")
    assert weights(tmp_path / "run") == weights(launched)
    assert rd.Recommender.load(tmp_path / "run").config["training"]["processes"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # Ray's records are gone


@pytest.mark.slow
@pytest.mark.real_data
def test_a_killed_worker_is_started_again_and_resumes_to_the_same_weights(data, launched, tmp_path):
    split, marker = rd.split.leave_one_out(rd.load_dataset(data)), tmp_path / "killed"
    run = train_on_ray("sasrec", split, tmp_path / "run", config=OPTIONS, seed=5, callbacks=[Kills(marker)])
    assert marker.exists()
    assert weights(run.path) == weights(launched)
    assert len((run.path / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.slow
@pytest.mark.real_data
def test_workers_that_die_too_often_end_with_an_error_and_the_run_resumes(data, launched, tmp_path):
    split, out = rd.split.leave_one_out(rd.load_dataset(data)), tmp_path / "run"
    options = {"config": OPTIONS, "seed": 5}
    with pytest.raises(RunError, match=r"Ray failed[\s\S]*--resume"):
        train_on_ray("sasrec", split, out, restarts=0, callbacks=[Kills(tmp_path / "killed")], **options)
    assert weights(train_on_ray("sasrec", split, out, resume=True, **options).path) == weights(launched)


@pytest.mark.slow
def test_an_error_of_a_worker_arrives_as_it_was_raised(tmp_path):
    pytest.importorskip("ray.train", reason="Ray is not installed")
    with pytest.raises(DataError, match=r"nowhere") as caught:
        train_on_ray("sasrec", tmp_path / "nowhere", tmp_path / "run", restarts=1)
    assert type(caught.value) is DataError
    assert len(str(caught.value).splitlines()) < 4
    with pytest.raises(ConfigError, match=r"99 workers need a CPU each, and Ray has \d+ CPUs"):
        train_on_ray("sasrec", tmp_path / "nowhere", tmp_path / "run", workers=99)
