"""Measure the memory that each of two processes holds to train on many interactions, up to its first step.

    python -m benchmarks.measure.view_memory --rows 4_000_000 --users 200_000 --items 20_000

Made-up interactions with times and ratings are saved as a dataset; two processes then train a small SASRec on its
default split (by time) until the first step ends. For each process: own_bytes, anonymous memory per interaction at the
first step, beyond what the process held before it loaded the dataset; peak_bytes, the highest value up to there,
sampled 200 times a second; shared_bytes, what it maps from files, of which a host holds one copy. "copied": every
process makes the split and the view for itself, as before they were shared. Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

from benchmarks.common import launched, out_option, write_result

STATUS = Path("/proc/self/status")
OPTIONS = {"embedding_size": 8, "blocks": 1, "epochs": 1, "batch_size": 1024, "loss": "sampled_softmax"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--of-process", nargs=2, metavar=("FOLDER", "FORM"), help=argparse.SUPPRESS)
    out_option(parser, "view_memory.json")
    arguments = parser.parse_args()
    if arguments.of_process:
        train(Path(arguments.of_process[0]), arguments.of_process[1])
        return
    ranks: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        made_up(arguments.rows, arguments.users, arguments.items).save(Path(name) / "data")
        for form in ("copied", "mapped"):
            launched(arguments.processes, "benchmarks.measure.view_memory", "--of-process", name, form)
            ranks[form] = [json.loads(path.read_text()) for path in sorted(Path(name).glob(f"{form}-rank*.json"))]
            print(form, json.dumps(ranks[form]), flush=True)
    sizes = {name: getattr(arguments, name) for name in ("rows", "users", "items", "processes")}
    write_result(arguments.out, {**sizes, "bytes_per_interaction": ranks}, precision="fp32")


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


def train(folder: Path, form: str) -> None:
    """Train until the first step ends, and write what this process holds then."""
    import rediffuse as rd
    from rediffuse import distributed
    from rediffuse.data.split import Split
    from rediffuse.testing import synthetic_interactions
    from rediffuse.training import train as of_package

    distributed.init()
    if form == "copied":
        module: Any = sys.modules[of_package.__module__]
        module.shared_view = Split.training_view
        module.shared_split = lambda dataset, make: make(dataset)
        module.shared_json = lambda make: make()
    warnings.simplefilter("ignore", rd.errors.RediffuseWarning)
    # First, all is loaded that a training needs.
    rd.train("sasrec", synthetic_interactions(), folder / f"{form}-first", config=OPTIONS)
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
        rd.train("sasrec", data, folder / form, config=OPTIONS, callbacks=[Stop()])
    except Done:
        ended.set()
    rows = data.num_interactions
    found = {
        "own_bytes": round((at_step["RssAnon"] - before["RssAnon"]) / rows, 2),
        "peak_bytes": round((peak[0] - before["RssAnon"]) / rows, 2),
        "shared_bytes": round((at_step["RssFile"] - before["RssFile"]) / rows, 2),
        "seconds": round(time.monotonic() - start, 1),
    }
    (folder / f"{form}-rank{distributed.rank()}.json").write_text(json.dumps(found))


def give_back() -> None:
    """Return freed memory to the system from now on, as before `rediffuse.memory.keep_freed_memory`."""
    libc = ctypes.CDLL(None)
    for setting in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        libc.mallopt(setting, 128 << 10)
    libc.malloc_trim(0)


if __name__ == "__main__":
    main()
