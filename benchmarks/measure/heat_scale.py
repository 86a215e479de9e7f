"""Measure how theat and transition grow with the catalogue: time and memory of a fit, of the choices, of an answer.

    OMP_NUM_THREADS=2 python -m benchmarks.measure.heat_scale

Data are made up, as in `catalogues.py`, with 100 interactions per user and as many users as items; times are random.
Each size runs in a process of its own, so that its peak of memory is known.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from typing import Any

import numpy as np
import torch

from benchmarks.common import append_result, measured_alone, out_option
from benchmarks.measure.catalogues import made_up_split
from rediffuse.batching.recency import DAY
from rediffuse.data.histories import Histories
from rediffuse.evaluation.selection import SubsetValidation
from rediffuse.memory import PeakMemory
from rediffuse.models import model_class
from rediffuse.models.base import TrainingData

LENGTH, ANSWERED = 100, 256
SIZES = (10_000, 100_000, 1_000_000)


def measure(model: str, items: int) -> dict[str, Any]:
    """Fit, choose options on a validation subset, fit again, and answer ``ANSWERED`` users one by one."""
    split = made_up_split(items, items, LENGTH)
    view = split.training_view()
    rng = np.random.default_rng(1)
    # Years of times that ascend within each history.
    times = (rng.random(len(view.train.items)) * 3 + view.train.positions * 10).astype(np.int64) * int(DAY)
    train = Histories(view.train.offsets, view.train.items, times)
    data = TrainingData(train, view.num_users, items, view.valid.popularity, has_timestamps=True)
    task = view.valid
    del split, view
    memory = PeakMemory()
    kind = model_class(model)
    network = kind(kind.Config.build(None, {}), items, data.num_users)
    found: dict[str, Any] = {"model": model, "items": items, "interactions": len(train.items)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        began = time.perf_counter()
        network.fit(data)
        found["fit_seconds"] = round(time.perf_counter() - began, 1)
    network.eval()
    began = time.perf_counter()
    validation = SubsetValidation(task, network.config.metric, items, lambda: 0.0)
    network.resolve(network.calibrate(validation))
    network.prepare()
    found |= {"choice_seconds": round(time.perf_counter() - began, 1), "validation_users": len(validation.users())}
    rows = np.arange(min(ANSWERED, len(task.users)))
    histories = task.histories.take(rows)
    taken = []
    for row in rows:
        began = time.perf_counter()
        torch.topk(network.score(histories.take(np.array([row]))), 10)
        taken.append(time.perf_counter() - began)
    return found | {
        "milliseconds_per_answer": round(float(np.median(taken)) * 1000, 1),
        "peak_gib": round((memory.mib() or 0) / 1024, 2),
        "model_gib": round(sum(t.numel() * t.element_size() for t in network.state_dict().values()) / 2**30, 2),
        "dropped": {name: round(share, 3) for name, share in network.dropped.items()},
        "warnings": [str(one.message) for one in caught],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["theat"])
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    out_option(parser, "heat_scale.jsonl")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], int(options.one[1]))))
        return
    for model in options.models:
        for size in options.sizes:
            found = measured_alone("--one", model, str(size))
            print(json.dumps(found), flush=True)
            append_result(options.out, found, precision="fp32", device="cpu")


if __name__ == "__main__":
    main()
