"""Measure what a step of two processes sends and takes, by how the gradient of a large item table travels.

    OMP_NUM_THREADS=1 python -m benchmarks.measure.row_gradients

SASRec on a made-up catalogue, the same batches in each way, which run in turns. Dense: DDP all-reduces it (AdamW).
Sparse: DDP all-reduces it, as before, which gloo alone can do; or its rows are exchanged.
Bytes are what one process sends: of an all-reduce of n bytes by two processes, n; of an all-gather, its own part.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from benchmarks.common import launched, out_option, write_result
from benchmarks.measure.catalogues import TESTED, WARM_UP, made_up_split
from benchmarks.measure.growth import fresh, training_data
from rediffuse import distributed
from rediffuse.memory import PeakMemory
from rediffuse.training.optimizer import Optimizer, summed_rows
from rediffuse.training.row_gradients import exchange_rows, exclude_tables

WAYS = ("dense, DDP", "sparse, DDP", "sparse, rows exchanged")
PROCESSES = 2


def measured(way: str, items: int, steps: int) -> dict[str, Any]:
    """The median of ``steps`` steps in this process, which is one of several."""
    distributed.init()
    data = training_data(made_up_split(items, TESTED + 20_000))
    options = {"embedding_size": 64, "batch_size": 4096, "loss": "sampled_softmax", "precision": "fp32"}
    model = fresh("sasrec", data, **options, item_optimizer="adamw" if way == WAYS[0] else "rowwise_adagrad")
    groups, memory = model.parameter_groups(), PeakMemory()
    table = model.item_embedding.weight
    tables = exclude_tables(model, groups) if way == WAYS[2] else []
    optimizer = Optimizer(groups, 1e-3, 0.0)
    network = DistributedDataParallel(model, find_unused_parameters=True, gradient_as_bucket_view=True)
    others = sum(parameter.nbytes for parameter in model.parameters() if parameter is not table)
    batches, seconds, sent = model.batches(data, np.random.default_rng(0)), [], []
    for index in range(WARM_UP + steps):
        batch = batches.get(index % len(batches), distributed.rank(), distributed.world_size())
        with network.no_sync():
            network(batch).backward()  # for the size of this process's own gradient
        sent.append(bytes_of(table.grad, way))
        optimizer.zero_grad()
        started = time.perf_counter()
        network(batch).backward()
        exchange_rows(tables)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    return {
        "way": way,
        "items": items,
        "step_seconds": round(statistics.median(seconds[WARM_UP:]), 3),
        "table_mib_sent": round(statistics.mean(sent) / 2**20, 2),
        "other_mib_sent": round(others / 2**20, 2),
        "peak_mib": memory.mib(),
    }


def bytes_of(gradient: torch.Tensor | None, way: str) -> int:
    """The bytes that a process sends of its own gradient; DDP sends the numbers of rows in 64 bits."""
    assert gradient is not None
    if not gradient.is_sparse:
        return gradient.nbytes
    return len(summed_rows(gradient)[0]) * ((8 if way == WAYS[1] else 4) + 4 * gradient.shape[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--turns", type=int, default=2)
    out_option(parser, "row_gradients.json")
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        found = measured(options.one, options.items, options.steps)
        if distributed.rank() == 0:
            print(json.dumps(found), flush=True)
        return
    rows: dict[str, dict[str, Any]] = {}
    for _ in range(options.turns):
        for way in WAYS:
            words = ["--one", way, "--items", str(options.items), "--steps", str(options.steps)]
            found = json.loads(launched(PROCESSES, "benchmarks.measure.row_gradients", *words).splitlines()[-1])
            print(json.dumps(found), flush=True)
            if way not in rows or found["step_seconds"] < rows[way]["step_seconds"]:
                rows[way] = found
    write_result(options.out, {"processes": PROCESSES, "rows": list(rows.values())}, precision="fp32", device="cpu")


if __name__ == "__main__":
    main()
