"""What all benchmarks share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def rerun(*words: str, stdin: str | None = None, read: bool = False) -> str:
    """Run the benchmark that is running once more, in a process of its own and with other arguments.

    Args:
        words: its arguments.
        stdin: what it reads from standard input.
        read: return what it prints instead of printing it.

    Raises:
        SystemExit: it failed.
    """
    main = sys.modules["__main__"].__spec__
    assert main is not None, "Run benchmarks as modules: python -m benchmarks.measure.speed"
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", main.name, *words],
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
