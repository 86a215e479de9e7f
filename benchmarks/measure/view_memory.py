"""Measure the memory that each of two processes holds to train on many interactions, up to its first step.

    python -m benchmarks.measure.view_memory --rows 4_000_000 --users 200_000 --items 20_000

Made-up interactions with times and ratings are saved as a dataset; two processes then train a small SASRec on its
default split (by time) until the first step ends. For each process: own_bytes, anonymous memory per interaction at the
first step, beyond what the process held before it loaded the dataset; peak_bytes, the highest value up to there,
sampled 200 times a second; shared_bytes, what it maps from files and other processes can map too. Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

from benchmarks.common import out_option, write_result

STATUS = Path("/proc/self/status")
OPTIONS = {"embedding_size": 8, "blocks": 1, "epochs": 1, "batch_size": 1024, "loss": "sampled_softmax"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--of-process", metavar="FOLDER", help=argparse.SUPPRESS)
    out_option(parser, "view_memory.json")
    arguments = parser.parse_args()
    if arguments.of_process:
        train(Path(arguments.of_process))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made_up(arguments.rows, arguments.users, arguments.items).save(folder / "data")
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(arguments.processes)]
        subprocess.run(
            [sys.executable, *launcher, "-m", "benchmarks.measure.view_memory", "--of-process", name],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            check=True,
        )
        rows = [json.loads(path.read_text()) for path in sorted(folder.glob("rank*.json"))]
    sizes = {name: getattr(arguments, name) for name in ("rows", "users", "items", "processes")}
    print(json.dumps(rows))
    write_result(arguments.out, {**sizes, "ranks": rows}, precision="fp32")


def made_up(rows: int, users: int, items: int) -> Any:
    """A dataset of interactions with times in seconds and ratings; users and items are of uneven popularity."""
    import numpy as np
    import polars as pl

    import rediffuse as rd

    rng = np.random.default_rng(0)
    table = {
        "user_id": (users * rng.random(rows) ** 1.5).astype(np.int64),
        "item_id": (items * rng.random(rows) ** 3).astype(np.int64),
        "rating": rng.integers(1, 6, rows).astype(np.float32),
        "timestamp": rng.integers(1_000_000_000, 1_700_000_000, rows),
    }
    return rd.read_interactions(pl.DataFrame(table), time="timestamp", rating="rating")


def memory(field: str) -> int:
    """Read a field of /proc/self/status, in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


class Done(Exception):
    """Ends training after its first step."""


def train(folder: Path) -> None:
    """Train until the first step ends, and write what this process holds then."""
    import rediffuse as rd
    from rediffuse import distributed

    distributed.init()
    rd.train("sasrec", small(), folder / "warm-up", config={"epochs": 1, "embedding_size": 8, "blocks": 1})
    give_back()
    fields = ("RssAnon", "RssFile")
    before = {field: memory(field) for field in fields}
    at_step, peak, ended = dict(before), [0], threading.Event()

    def sample() -> None:
        while not ended.wait(0.005):
            peak[0] = max(peak[0], memory("RssAnon"))

    class Stop:
        def on_step(self, event: Any) -> None:
            at_step.update({field: memory(field) for field in fields})
            raise Done

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    start, data = time.monotonic(), rd.load_dataset(folder / "data")
    try:
        warnings.simplefilter("ignore", rd.errors.RediffuseWarning)
        rd.train("sasrec", data, folder / "run", config=OPTIONS, callbacks=[Stop()])
    except Done:
        ended.set()
    rows = data.num_interactions
    found = {
        "own_bytes": round((at_step["RssAnon"] - before["RssAnon"]) / rows, 2),
        "peak_bytes": round((peak[0] - before["RssAnon"]) / rows, 2),
        "shared_bytes": round((at_step["RssFile"] - before["RssFile"]) / rows, 2),
        "seconds": round(time.monotonic() - start, 1),
    }
    (folder / f"rank{distributed.rank()}.json").write_text(json.dumps(found))


def give_back() -> None:
    """Return freed memory to the system from now on, as before `rediffuse.memory.keep_freed_memory`."""
    libc = ctypes.CDLL(None)
    for setting in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        libc.mallopt(setting, 128 << 10)
    libc.malloc_trim(0)


def small() -> Any:
    """What is trained first, so that all is loaded that a training needs."""
    from rediffuse.testing import synthetic_interactions

    return synthetic_interactions()


if __name__ == "__main__":
    main()
