"""Measure a training step of two processes whose item table is copied or sharded: time, memory, bytes sent.

    OMP_NUM_THREADS=1 python -m benchmarks.measure.sharded

SASRec with d = 64, batches of 4,096 targets and sampled_softmax on made-up histories, with the trainer of each way; two
processes of one thread each, by gloo. The ways run in turns; the fastest turn of each counts. Bytes are what the first
process has given to the system to send (Linux). The peak of memory is that of the first process from before its model
is built, without and then with a checkpoint; it includes the interpreter and the data. Ranking is of the 50 first
validation users, both policies, by both processes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import launched, out_option, write_result
from benchmarks.measure.catalogues import TESTED, WARM_UP, made_up_split
from rediffuse import distributed
from rediffuse.data.subsets import Task
from rediffuse.memory import PeakMemory, keep_freed_memory
from rediffuse.models import model_class
from rediffuse.seeds import seed_torch
from rediffuse.training.train import make_trainer

# Way -> optimiser of the item table.
WAYS = {"copied": "adamw", "copied, sparse": "rowwise_adagrad", "sharded": "rowwise_adagrad"}
PROCESSES = 2
OPTIONS = {
    **{"embedding_size": 64, "batch_size": 4096, "precision": "fp32", "epochs": 1},
    "loss": "sampled_softmax",
}
RANKED = 50


def measured(way: str, items: int, steps: int, folder: Path) -> dict[str, Any]:
    """The median of ``steps`` steps in this process, which is one of several."""
    from rediffuse.engines import sharded  # TorchRec is for this way only, so it is loaded where that is measured

    distributed.init()
    split = made_up_split(items, TESTED + 20_000)
    view, kind = split.training_view(), model_class("sasrec")
    make = sharded.make_trainer if way == "sharded" else make_trainer
    with keep_freed_memory():
        memory = PeakMemory()
        options = kind.Config.build(None, OPTIONS | {"item_optimizer": WAYS[way]})
        trainer = make(kind, options, view, folder, seed=0, user_ids=split.dataset.user_ids)
        seed_torch(0, "fit")
        trainer.model.fit(trainer.data)
        trainer.started = time.monotonic()
        optimizer, _, network, stepper = trainer.begin_phase("fit")
        batches = trainer.batches("fit", 0)
        trainer.model.train()
        seconds, sent = [], []
        for index in range(WARM_UP + steps):
            before, started = bytes_sent(), time.perf_counter()
            trainer.try_step(network, stepper, batches, "fit", index)
            seconds.append(time.perf_counter() - started)
            sent.append(bytes_sent() - before)
        of_steps = memory.mib()
        started = time.perf_counter()
        trainer._save(optimizer)
        distributed.any_rank(False)
        saved = time.perf_counter() - started
        of_checkpoint = memory.mib()
        started = time.perf_counter()
        rows, valid = np.arange(RANKED), view.valid
        task = Task("valid", valid.users[rows], valid.histories.take(rows), valid.truth.take(rows), valid.popularity)
        metrics = trainer.validate(task)
        ranked = time.perf_counter() - started
        distributed.any_rank(False)
    return {
        "way": way,
        "items": items,
        "step_seconds": round(statistics.median(seconds[WARM_UP:]), 3),
        "mib_sent_per_step": round(statistics.median(sent[WARM_UP:]) / 2**20, 2),
        "peak_mib_steps": of_steps,
        "checkpoint_seconds": round(saved, 2),
        "peak_mib_checkpoint": of_checkpoint,
        "ranking_seconds": round(ranked, 2),
        "peak_mib_ranking": memory.mib(),
        "ndcg@10": metrics["ndcg@10"],
    }


def bytes_sent() -> int:
    """Bytes that this process has written so far, to sockets and files."""
    lines = Path("/proc/self/io").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("wchar:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[100_000, 1_000_000, 4_000_000])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--turns", type=int, default=2)
    out_option(parser, "sharded.json")
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        found = measured(options.one, options.items[0], options.steps, options.out)
        if distributed.rank() == 0:
            print(json.dumps(found), flush=True)
        return
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    for items in options.items:
        for way in [*WAYS] * options.turns:
            found = of_processes(way, items, options.steps)
            print(json.dumps(found), flush=True)
            known = rows.setdefault((items, way), found)
            if found["step_seconds"] < known["step_seconds"]:
                rows[items, way] = found
    fixed = {"processes": PROCESSES, "turns": options.turns, "seed": 0, "options": OPTIONS, "ranked_users": RANKED}
    report = fixed | {"rows": list(rows.values())}
    write_result(options.out, report, precision="fp32", device="cpu", packages=("torchrec", "fbgemm_gpu-cpu"))


def of_processes(way: str, items: int, steps: int) -> dict[str, Any]:
    """What the first of several processes measures."""
    words = ["--one", way, "--items", str(items), "--steps", str(steps)]
    with tempfile.TemporaryDirectory() as folder:
        printed = launched(PROCESSES, "benchmarks.measure.sharded", *words, "--out", folder)
    return json.loads(printed.splitlines()[-1])


if __name__ == "__main__":
    main()
