"""What all benchmarks share: the stamp of a result, writing results, and running once more in a new process."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def out_option(parser: argparse.ArgumentParser, name: str) -> None:
    """Add ``--out``, by default ``name`` in benchmarks/results."""
    default = RESULTS / name
    parser.add_argument("--out", type=Path, default=default, help=f"result file; default: results/{name}")


def write_result(path: Path, content: dict[str, Any], **how: Any) -> None:
    """Write a JSON file of ``content`` and its `stamp`, which gets the other arguments.

    The file is replaced atomically: a reader finds the old one or the new one.
    """
    from rediffuse.files import atomic_write_text

    atomic_write_text(path, json.dumps({"stamp": stamp(**how)} | content, indent=1, default=str) + "\n")


def append_result(path: Path, content: dict[str, Any], **how: Any) -> None:
    """Append ``content`` and its `stamp` to a file of JSON lines, in one write: two processes may append at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        file.write((json.dumps({"stamp": stamp(**how)} | content, default=str) + "\n").encode())


def stamp(precision: str | None, device: str | None = None, packages: Iterable[str] = ()) -> dict[str, Any]:
    """Describe what a result was made with: commit, date, command, hardware, versions and precision.

    Args:
        precision: in which matrix products were computed ("fp32", "bf16"); None where nothing is computed.
        device: "cpu" where a GPU, if there is one, was not used; by default the GPU if there is one.
        packages: further packages whose versions matter.
    """
    import psutil

    from rediffuse.runs.environment import environment

    made_with = environment()
    made_with["packages"] |= {name: importlib.metadata.version(name) for name in packages}
    return {
        "commit": COMMIT,
        "date": datetime.now(UTC).date().isoformat(),
        "command": command_line(sys.argv[1:]),
        "precision": precision,
        "device": device or made_with["cuda"] or "cpu",
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        **made_with,
    }


def command_line(arguments: Iterable[str]) -> str:
    """The command that is running, without folders of this machine: paths outside the checkout are cut to a name."""
    main = sys.modules["__main__"].__spec__
    return shlex.join(["python", "-m", main.name if main else "benchmarks", *map(_portable, arguments)])


def _portable(argument: str) -> str:
    option, equals, value = argument.rpartition("=") if argument.startswith("--") else ("", "", argument)
    path = Path(value)
    if path.is_absolute():
        value = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
    return option + equals + value


def _commit() -> str:
    """The commit of this checkout, with "+dirty" if anything but results differs from it; "unknown" without git."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != ROOT:
            return "unknown"
        changed = git("status", "--porcelain", "--", ".", ":(exclude)benchmarks/results")
        return git("rev-parse", "HEAD") + ("+dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


COMMIT = _commit()  # when the code is loaded: the checkout may change while a long benchmark runs


def rerun(*words: str, stdin: str | None = None, read: bool = False, module: str | None = None) -> str:
    """Run a benchmark in a new process.

    Args:
        words: its arguments.
        module: the benchmark; None: the one that is running, with other arguments.
        stdin: what it reads from standard input.
        read: return what it prints instead of printing it.

    Raises:
        SystemExit: it failed.
    """
    main = sys.modules["__main__"].__spec__
    module = module or (main.name if main else None)
    assert module is not None, "Run benchmarks as modules: python -m benchmarks.measure.speed"
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        env=os.environ | {"PYTHONPATH": path},
        input=stdin,
        stdout=subprocess.PIPE if read else None,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout or ""


def measured_alone(*words: str, stdin: str | None = None) -> dict[str, Any]:
    """`rerun`, and read the JSON on the last line that it prints; its peak of memory is its own."""
    return json.loads(rerun(*words, stdin=stdin, read=True).splitlines()[-1])


def launched(processes: int, module: str, *words: str) -> str:
    """Run a module in several processes of one thread each, by torchrun, and return what they print.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", module, *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


def anonymous_growth(call: Callable[[], object]) -> float:
    """MiB by which the anonymous memory of this process grew at most during a call, without mapped files. On Linux."""
    ended, before = threading.Event(), _anonymous_kib()
    most = before

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.001):
            most = max(most, _anonymous_kib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        call()
    finally:
        ended.set()
        watcher.join()
    return round((max(most, _anonymous_kib()) - before) / 1024, 1)


def _anonymous_kib() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))
