"""A full or read-only disk: a clear error, nothing lost, and work continues once there is space."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from tests.dying import start

import rediffuse as rd
from rediffuse import files
from rediffuse.cli import main
from rediffuse.cli.recommend import _write
from rediffuse.data.loading import load_dataset
from rediffuse.errors import DataError, StorageError
from rediffuse.files import is_leftover
from rediffuse.recommender.index_building import build_index
from rediffuse.runs import run_folder
from rediffuse.testing import synthetic_interactions

PLENTY = 64 * 2**20


class Disk:
    """A separate file system in memory."""

    def __init__(self, path):
        self.path = path

    def mount(self, *options):
        return subprocess.run(["mount", *options, self.path], capture_output=True, text=True, check=False)

    def set_free(self, free):
        """Leave this many bytes free."""
        used = shutil.disk_usage(self.path).used
        assert self.mount("-o", f"remount,size={used + max(int(free), 1)}").returncode == 0

    def make_read_only(self):
        assert self.mount("-o", "remount,ro").returncode == 0


@pytest.fixture
def disk(tmp_path):
    disk = Disk(tmp_path / "disk")
    disk.path.mkdir()
    mounted = disk.mount("-t", "tmpfs", "-o", f"size={PLENTY}", "none") if shutil.which("mount") else None
    if mounted is None or mounted.returncode:
        reason = mounted.stderr.strip() if mounted else "no mount command"
        pytest.skip(f"A small disk cannot be mounted here: {reason}")
    yield disk
    subprocess.run(["umount", "--lazy", disk.path], check=False)


def with_file_limit(most, call, folder):
    """Call with files limited to ``most`` bytes, in a process that exits with 3 if a StorageError reports the limit."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    try:
        call(folder)
    except StorageError as error:
        sys.exit(3 if "cannot be written: File too large" in str(error) else 4)


def size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*"))


def content(folder):
    found = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {path: bytes_ for path, bytes_ in found.items() if path.name != ".lock"}


def tiny_training(folder, resume=False):
    options = {"embedding_size": 16, "batch_size": 64, "blocks": 1, "precision": "fp32", "epochs": 2}
    rd.train("sasrec", rd.split.leave_one_out(synthetic_interactions()), folder, config=options, resume=resume)


@pytest.mark.parametrize("most", [10, 500, 8_000])
def test_training_that_could_not_write_is_resumed(tmp_path, most):
    """A limit on the size of files takes the place of a full disk, which not every system can mount."""
    folder = tmp_path / "run"
    process = start({}, with_file_limit, most, tiny_training, folder)
    process.join()
    assert process.exitcode == 3
    assert not [path for path in tmp_path.rglob("*") if is_leftover(path)]
    tiny_training(folder, resume=(folder / "checkpoints" / "identity.safetensors").exists())
    tiny_training(tmp_path / "alone")
    assert (folder / "model.safetensors").read_bytes() == (tmp_path / "alone" / "model.safetensors").read_bytes()


def write_lists(folder):
    frame = pl.DataFrame({"user_id": range(5000), "score": np.random.default_rng(0).random(5000)})
    for name in ("lists.parquet", "lists.csv"):
        try:
            _write(frame, folder / name, guard_formulas=False)
        except StorageError:
            continue
        raise AssertionError(f"{name} was written")
    _write(frame, folder / "lists.parquet", guard_formulas=False)


@pytest.mark.parametrize("most", [0, 10, 8_000])
def test_lists_that_cannot_be_written_are_an_error_of_ours(tmp_path, most):
    process = start({}, with_file_limit, most, write_lists, tmp_path)
    process.join()
    assert process.exitcode == 3
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_created(tmp_path, train, data):
    (tmp_path / "file").touch()
    refused = r"cannot be written: Not a directory\.\n  Check the folder"
    for change in (
        lambda: train(tmp_path / "file" / "run"),
        lambda: rd.tune("sasrec", rd.split.leave_one_out(data), tmp_path / "file" / "study", trials=1),
    ):
        with pytest.raises(StorageError, match=refused):
            change()


@pytest.mark.parametrize("share", [0, 0.1, 0.3, 0.5, 0.7, 0.9])
def test_training_on_a_full_disk_is_resumed_once_there_is_space(disk, train, longer, share):
    folder = disk.path / "run"
    disk.set_free(share * size(longer))
    with pytest.raises(StorageError, match=r"cannot be written: No space left on device\.\n  Make space.*--resume"):
        train(folder, epochs=3)
    assert not [path for path in disk.path.rglob("*") if is_leftover(path)]
    disk.set_free(PLENTY)
    train(folder, epochs=3, resume=(folder / "checkpoints" / "identity.safetensors").exists())
    assert (folder / "model.safetensors").read_bytes() == (longer / "model.safetensors").read_bytes()
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("pages", [0, 2, 16])
def test_a_finished_run_survives_a_full_disk_during_further_training(disk, run, train, longer, pages):
    folder = shutil.copytree(run, disk.path / "run")
    disk.set_free(4096 * pages)
    with pytest.raises(StorageError, match="No space left"):
        train(folder, epochs=3, resume=True)
    assert (folder / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    rd.Recommender.load(folder, "index")
    disk.set_free(PLENTY)
    train(folder, epochs=3, resume=True)
    assert (folder / "model.safetensors").read_bytes() == (longer / "model.safetensors").read_bytes()


def test_a_finished_run_survives_a_disk_that_is_full_when_it_is_replaced(run, train, longer, tmp_path, monkeypatch):
    folder, sync = shutil.copytree(run, tmp_path / "run"), files.sync

    def full(path):
        if "users.parquet" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(path)

    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(StorageError, match=r"users\.parquet cannot be written: No space"):
        train(folder, epochs=3, resume=True)
    monkeypatch.undo()
    rd.Recommender.load(folder, "index")
    assert (folder / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    train(folder, epochs=3, resume=True)
    assert (folder / "model.safetensors").read_bytes() == (longer / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_each_write_of_a_training_can_fail(tmp_path, train, longer, monkeypatch):
    """Each write in turn fails as on a full disk."""
    original, calls = files.sync, 0
    for fails in range(100):
        folder, calls = tmp_path / str(fails), 0

        def sync(path, fails=fails):
            nonlocal calls
            calls += 1
            if calls == fails + 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            original(path)

        monkeypatch.setattr(files, "sync", sync)
        try:
            train(folder, epochs=3)
        except StorageError:
            train(folder, epochs=3, resume=(folder / "checkpoints" / "identity.safetensors").exists())
        else:
            break
        assert (folder / "model.safetensors").read_bytes() == (longer / "model.safetensors").read_bytes()
        shutil.rmtree(folder)
    assert fails > 20


@pytest.mark.parametrize("pages", [0, 1, 3])
@pytest.mark.parametrize("command", ["evaluate", "index"])
def test_adding_files_to_a_run_on_a_full_disk_changes_nothing(disk, run, data, command, pages):
    folder = shutil.copytree(run, disk.path / "run")
    add = {"evaluate": lambda: rd.evaluate(folder, data), "index": lambda: build_index(folder, "hnsw", k=10)}[command]
    disk.set_free(4096 * pages)
    with pytest.raises(StorageError, match="No space left"):
        add()
    assert content(folder) == content(run)
    disk.set_free(PLENTY)
    add()
    rd.Recommender.load(folder, "index")


@pytest.mark.parametrize("share", [0, 0.2, 0.5, 0.9])
def test_saving_a_dataset_on_a_full_disk_leaves_the_old_one(disk, data, tmp_path, share):
    old = synthetic_interactions(seed=1, users=5)
    folder = old.save(disk.path / "d")
    disk.set_free(share * size(data.save(tmp_path / "measured")))
    with pytest.raises(DataError, match="cannot be written: No space left on device"):
        data.save(folder)
    assert load_dataset(folder).fingerprint == old.fingerprint
    assert [path.name for path in disk.path.iterdir()] == ["d"]
    disk.set_free(PLENTY)
    assert load_dataset(data.save(folder)).fingerprint == data.fingerprint


def test_a_read_only_folder(disk, run, train, data, monkeypatch, capsys):
    folder = shutil.copytree(run, disk.path / "run")
    data.save(disk.path / "d")
    disk.make_read_only()
    refused = r"cannot be written: Read-only file system\.\n  Choose a folder that you may write to"
    for change in (
        lambda: train(disk.path / "new"),
        lambda: train(folder, epochs=3, resume=True),
        lambda: rd.evaluate(folder, data),
        lambda: build_index(folder, k=10),
        lambda: rd.tune("sasrec", rd.split.leave_one_out(data), disk.path / "study", trials=1),
    ):
        with pytest.raises(StorageError, match=refused):
            change()
    with pytest.raises(DataError, match="cannot be written: Read-only"):
        data.save(disk.path / "d")
    # Reading needs no lock.
    rd.Recommender.load(folder, "index").recommend(users=["u1"])
    assert load_dataset(disk.path / "d").fingerprint == data.fingerprint
    out = disk.path / "lists.parquet"
    monkeypatch.setattr(sys, "argv", ["rediffuse", "recommend", str(folder), "--user", "u1", "-o", str(out)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "lists.parquet cannot be written: Read-only" in capsys.readouterr().err


def test_other_errors_of_the_system_give_no_traceback(monkeypatch, capsys, tmp_path):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", "secret.parquet")

    monkeypatch.setattr(run_folder, "read_config", refuse)
    monkeypatch.setattr(sys, "argv", ["rediffuse", "evaluate", str(tmp_path), str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "Error: secret.parquet cannot be read or written: Permission denied" in capsys.readouterr().err
