"""Work of two processes of which one is slow, fails or is killed: ``work.py NAME FOLDER``."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rediffuse as rd
from rediffuse import distributed
from rediffuse.comparison import evaluate_run
from rediffuse.data.subsets import Split
from rediffuse.errors import RediffuseError, StorageError
from rediffuse.evaluation import rank
from rediffuse.models.base import Model
from rediffuse.runs import run_folder
from rediffuse.testing import synthetic_interactions
from rediffuse.training import train

TRAINING = sys.modules[train.__module__]
OPTIONS = {"embedding_size": 8, "epochs": 1, "blocks": 1, "batch_size": 256}


def slow(write: Callable[..., None], passed: Path) -> Callable[..., None]:
    """A write that first gives the other process a second to continue without it, which creates ``passed``."""

    def wait_and_write(*args: Any, **options: Any) -> None:
        deadline = time.monotonic() + 1
        while not passed.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        write(*args, **options)

    return wait_and_write


def waits(folder: Path) -> None:
    """Both processes return after process 0 has written."""
    data = synthetic_interactions()
    TRAINING.write_run = slow(TRAINING.write_run, folder / "trained")
    evaluate_run.add_files = slow(evaluate_run.add_files, folder / "evaluated")
    rd.train("sasrec", rd.split.leave_one_out(data), folder / "run", config=OPTIONS)
    report((folder / "run" / "manifest.json").exists())
    (folder / "trained").touch()
    rd.evaluate(folder / "run", data)
    report("test.json" in run_folder.read_manifest(folder / "run")["files"])
    (folder / "evaluated").touch()


def fails(folder: Path) -> None:
    """Process 0 cannot write, and the other process reports that."""

    def refuse(*args: Any) -> None:
        raise StorageError("There is no space.")

    TRAINING.write_run = refuse
    try:
        rd.train("popularity", rd.split.leave_one_out(synthetic_interactions()), folder / "run")
    except RediffuseError as error:
        report(error.problem)


def evaluation(folder: Path) -> None:
    """Process 1 is killed while both evaluate."""
    data = synthetic_interactions()
    rd.train("popularity", rd.split.leave_one_out(data), folder / "run")
    rank._BLOCK_SCORES = 0  # blocks for both
    if distributed.rank() == 1:
        Model.score = lambda *args, **options: os.kill(os.getpid(), signal.SIGKILL)
    try:
        rd.evaluate(folder / "run", data)
    except RediffuseError as error:
        sys.exit(f"Error: {error}")


def view(folder: Path) -> None:
    """Process 0 is killed while it makes the view for both."""
    if distributed.launched() and os.environ["RANK"] == "0":
        Split.training_view = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
    try:
        rd.train("popularity", rd.split.leave_one_out(synthetic_interactions()), folder / "run")
    except RediffuseError as error:
        sys.exit(f"Error: {error}")


def blocked(folder: Path) -> None:
    """Process 0 waits for process 1, which sends it SIGTERM as a launcher would."""
    distributed._GRACE_SECONDS = 0.1
    distributed.init()
    pid_file = folder / "pid"
    if distributed.rank() == 1:
        while not pid_file.exists():
            time.sleep(0.01)
        os.kill(int(pid_file.read_text()), signal.SIGTERM)
        signal.pause()
    main = threading.main_thread().ident

    def write_pid_when_waiting() -> None:
        while sys._current_frames()[main].f_code.co_name != "all_reduce":
            time.sleep(0.01)
        (folder / "new").write_text(str(os.getpid()))
        (folder / "new").rename(pid_file)

    threading.Thread(target=write_pid_when_waiting, daemon=True).start()
    with distributed.fail_together("Do it again."):
        distributed.any_rank(True)


def report(value: object) -> None:
    sys.stdout.write(f"{distributed.rank()}: {value}\n")


if __name__ == "__main__":
    {"waits": waits, "fails": fails, "evaluation": evaluation, "view": view, "blocked": blocked}[sys.argv[1]](
        Path(sys.argv[2])
    )
