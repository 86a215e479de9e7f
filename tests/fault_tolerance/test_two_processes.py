"""Two processes in one folder: one writes, the other gets an error that names it; and what killed processes leave."""

from __future__ import annotations

import errno
import os
import shutil

import pytest
from tests.dying import dies, event, hold_lock, start

import rediffuse as rd
from rediffuse.comparison import evaluate_run
from rediffuse.data.loading import load_dataset
from rediffuse.errors import RediffuseWarning, RunError
from rediffuse.runs import run_folder
from rediffuse.runs.lock import folder_lock, is_unused
from rediffuse.testing import synthetic_interactions


@pytest.fixture
def locked(run, tmp_path):
    """A copy of the run, and the process that holds its lock."""
    folder, ready = shutil.copytree(run, tmp_path / "run"), event()
    process = start({}, hold_lock, folder, ready)
    assert ready.wait(60)
    yield folder, process
    process.kill()
    process.join()


def test_a_locked_folder_is_refused_until_its_process_is_killed(locked, train, longer, data, monkeypatch):
    folder, process = locked
    message = rf"run is in use: process {process.pid} on \S+ has been training there since 20\d\d-"
    monkeypatch.setattr(evaluate_run, "PATIENCE", 0.1)
    for work in (
        lambda: train(folder, epochs=3, resume=True),
        lambda: train(folder),
        lambda: rd.evaluate(folder, data),
    ):
        with pytest.raises(RunError, match=message):
            work()
    rd.Recommender.load(folder, "index").recommend(users=["u1"])
    process.kill()
    process.join()
    train(folder, epochs=3, resume=True)
    assert (folder / "model.safetensors").read_bytes() == (longer / "model.safetensors").read_bytes()
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == [".lock"]


def test_a_folder_is_unlocked_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), folder_lock(tmp_path, "training"):
        _ = 1 / 0
    with (
        folder_lock(tmp_path, "training"),
        pytest.raises(RunError, match=f"process {os.getpid()} "),
        folder_lock(tmp_path, "tuning"),
    ):
        pass
    assert is_unused(tmp_path)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_that_cannot_lock_is_used_with_a_warning(data, split, train, run, tmp_path, monkeypatch, code):
    def refuse(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refuse)
    for work in (
        lambda: train(tmp_path / "run"),
        lambda: rd.evaluate(tmp_path / "run", data),
        lambda: rd.tune("itemknn", split, tmp_path / "study", trials=1),
        lambda: train(tmp_path / "run", epochs=2, resume=True),
    ):
        with pytest.warns(RediffuseWarning, match="cannot lock: make sure"):
            work()
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_a_run_that_is_replaced_while_it_is_read_is_refused(run, longer, data, tmp_path, monkeypatch):
    folder, load = shutil.copytree(run, tmp_path / "run"), run_folder.load_tensors

    def load_meanwhile(path):
        shutil.copytree(longer, folder, dirs_exist_ok=True)
        return load(path)

    monkeypatch.setattr(run_folder, "load_tensors", load_meanwhile)
    with pytest.raises(RunError, match="was written to while it was read"):
        rd.Recommender.load(folder)


def test_files_may_be_added_to_a_run_while_it_is_read(run, tmp_path, monkeypatch):
    folder, load = shutil.copytree(run, tmp_path / "run"), run_folder.load_tensors

    def load_meanwhile(path):
        run_folder.add_files(folder, {"notes.txt": b"new", "test.json": b"{}"})
        return load(path)

    monkeypatch.setattr(run_folder, "load_tensors", load_meanwhile)
    rd.Recommender.load(folder)


def test_two_evaluations_at_once_both_succeed(run, data, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    processes = [start({}, rd.evaluate, folder, data, protocol=name) for name in (None, "sampled-5", "sampled-9")]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    rd.Recommender.load(folder)
    listed = run_folder.read_manifest(folder)["files"]
    assert {"test.json", "test-sampled-5.json", "test-sampled-9.json"} <= listed.keys()


def test_an_evaluation_of_weights_that_were_replaced_is_refused(run, longer, data, tmp_path, monkeypatch):
    folder = shutil.copytree(run, tmp_path / "run")
    evaluate_task = evaluate_run.evaluate_task

    def evaluate_meanwhile(*args, **options):
        shutil.copytree(longer, folder, dirs_exist_ok=True)
        return evaluate_task(*args, **options)

    monkeypatch.setattr(evaluate_run, "evaluate_task", evaluate_meanwhile)
    with pytest.raises(RunError, match="was trained further meanwhile"):
        rd.evaluate(folder, data)
    assert "test.json" not in run_folder.read_manifest(folder)["files"]


def save_often(seed, folder):
    data = synthetic_interactions(seed=seed, users=20)
    for _ in range(20):
        data.save(folder)


def test_two_processes_save_to_one_folder(tmp_path):
    processes = [start({}, save_often, seed, tmp_path / "d") for seed in (1, 2)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert load_dataset(tmp_path / "d").fingerprint in {
        synthetic_interactions(seed=seed, users=20).fingerprint for seed in (1, 2)
    }
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


@pytest.mark.parametrize(("syncs", "survivor"), [(0, "old"), (11, "old"), (12, "new")])
def test_a_dataset_survives_a_kill_while_it_is_replaced(data, tmp_path, syncs, survivor):
    old = synthetic_interactions(seed=1)
    folder = old.save(tmp_path / "d")
    dies("sync", syncs, data.save, folder)
    assert load_dataset(folder).fingerprint == {"old": old, "new": data}[survivor].fingerprint
    assert load_dataset(data.save(folder)).fingerprint == data.fingerprint


@pytest.mark.parametrize(
    "left", ["", ".lock", "checkpoints/.identity.safetensors.tmp-01234567", ".a.json.tmp-01234567"]
)
def test_training_starts_in_a_folder_that_a_killed_process_left(train, run, tmp_path, left):
    folder = tmp_path / "run"
    (folder / left).parent.mkdir(parents=True, exist_ok=True)
    (folder / left).touch() if left else (folder / "checkpoints").mkdir(parents=True)
    train(folder)
    assert (folder / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert not list(folder.rglob("*.tmp-*"))


def test_a_folder_with_other_files_is_not_changed(train, tmp_path):
    (tmp_path / ".notes.tmp-01234567").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(RunError, match=r"is not empty|holds no training"):
            train(tmp_path, resume=resume)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".notes.tmp-01234567", "notes.txt"]
