"""Losses by the size of the catalogue: seconds and memory of a training step, and what is learned in equal epochs.

    OMP_NUM_THREADS=2 python -m benchmarks.measure.catalogues steps --items 12000 100000 1000000
    REDIFFUSE_DATA=... python -m benchmarks.measure.catalogues quality --data amazon-beauty --epochs 12
    python -m benchmarks.measure.catalogues quality --items 1000000 --people 300000 --epochs 1

Each line is a SASRec with d = 64 and batches of 4,096 targets. ``steps`` takes every case in a process of its own and
says its peak of memory, the table and its optimiser included; on a GPU, the peak of what torch has allocated there.
``quality`` trains through the usual loop, on a public data set or on made-up walks, and ranks the whole catalogue for
people of the test part, seen items filtered. Results are added to a file, one JSON line each.
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
import polars as pl
import torch

import rediffuse as rd
from benchmarks.common import append_result, measured_alone, out_option
from rediffuse.data.dataset import Dataset
from rediffuse.data.histories import Histories
from rediffuse.data.split import TEST, TRAIN, VALID, Split
from rediffuse.data.zoo import fetch
from rediffuse.evaluation import evaluate_task, model_scores
from rediffuse.models import model_class
from rediffuse.models.base import Batches, Model, TrainingData
from rediffuse.training.environment import PeakMemory
from rediffuse.training.optimizer import Optimizer
from rediffuse.training.precision import autocast, keep_freed_memory, resolve_precision
from rediffuse.training.run_folder import read_run

# Loss and optimiser of the item table.
CASES = [
    ("softmax", "adamw"),
    ("sampled_softmax", "adamw"),
    ("sampled_softmax", "rowwise_adam"),
    ("sampled_softmax", "rowwise_adagrad"),
    ("in_batch", "rowwise_adam"),
    ("gbce", "rowwise_adam"),
    ("sce", "rowwise_adam"),
    ("rece", "adamw"),
]
OPTIONS = {"embedding_size": 64, "batch_size": 4096}
WARM_UP = 2
COMMUNITY = 100
LAST_OF = 4_000  # people whose last events are tested and validated, of made-up data


def walks(items: int, people: int, length: int = 20, seed: int = 0) -> Split:
    """Made-up people who follow an item's three successors, return to popular items of their community, or jump.

    The last event of some people is tested, the one before it validates.
    """
    rng = np.random.default_rng(seed)
    popularity = lambda size: (items * rng.random(size) ** 3).astype(np.int32)  # noqa: E731
    after = popularity((items, 3))
    home = (items // COMMUNITY * rng.random(people) ** 1.5).astype(np.int64)
    path = np.empty((people, length), dtype=np.int32)
    at = popularity(people)
    for step in range(length):
        path[:, step] = at
        successor = after[at, np.searchsorted([0.6, 0.9, 1.0], rng.random(people))]
        popular = home * COMMUNITY + (COMMUNITY * rng.random(people) ** 3).astype(np.int64)
        kind = rng.random(people)
        at = np.where(kind < 0.6, successor, np.where(kind < 0.9, popular, popularity(people)))
    part = np.full((people, length), TRAIN, dtype=np.int8)
    part[:LAST_OF, -1], part[:LAST_OF, -2] = TEST, VALID
    offsets = np.arange(people + 1, dtype=np.int64) * length
    data = Dataset(
        Histories(offsets, path.ravel()), pl.Series("user_id", range(people)), pl.Series("item_id", range(items))
    )
    return Split(data, "given", {"scheme": "last"}, part.ravel())


def step(items: int, loss: str, item_optimizer: str, steps: int) -> dict[str, Any]:
    """Seconds of a step from its batch to its update, and the peak of memory."""
    device, memory = torch.device("cuda" if torch.cuda.is_available() else "cpu"), PeakMemory()
    view = walks(items, LAST_OF + 1000).training_view()
    kind = model_class("sasrec")
    torch.manual_seed(0)
    model = kind(kind.Config.build(None, OPTIONS | {"loss": loss, "item_optimizer": item_optimizer}), items).to(device)
    data = TrainingData(view.train, view.num_users, items, view.valid.popularity)
    model.fit(data)
    with keep_freed_memory():
        seconds = seconds_of_steps(model, model.batches(data, np.random.default_rng(0)), steps, device)
    return {
        "items": items,
        "loss": loss,
        "item_optimizer": item_optimizer,
        "seconds": round(statistics.median(seconds), 4),
        "slowest": round(max(seconds), 4),
        "peak_gib": round((memory.mib() or 0) / 1024, 2),
        "precision": resolve_precision("auto", device),
    }


def seconds_of_steps(model: Model, batches: Batches, steps: int, device: torch.device) -> list[float]:
    """Each of ``steps`` training steps, from its batch to its update, after two that do not count."""
    optimizer, precision, seconds = (
        Optimizer(model.parameter_groups(), 1e-3, 0.0),
        resolve_precision("auto", device),
        [],
    )
    model.train()
    for index in range(WARM_UP + steps):
        started = time.perf_counter()
        with autocast(precision, device):
            value = model(batches.get(index % len(batches)).to(device))
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        float(value.detach())
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return seconds[WARM_UP:]


def alone(items: int, case: int, steps: int) -> dict[str, Any]:
    """`step`, with memory counted from nothing: on a CPU in a process of its own."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        return step(items, *CASES[case], steps)
    return measured_alone("one", "--items", str(items), "--cases", str(case), "--steps", str(steps))


def quality(split: Split, loss: str, item_optimizer: str, epochs: int, rate: float, seed: int) -> dict[str, Any]:
    """Trains through the loop and tests the weights that were best in validation."""
    options = OPTIONS | {"loss": loss, "item_optimizer": item_optimizer, "epochs": epochs, "learning_rate": rate}
    with tempfile.TemporaryDirectory() as folder:
        run = rd.train("sasrec", split, Path(folder) / "run", config=options, seed=seed)
        model, task = read_run(run.path).model, split.task("test")
        result = evaluate_task(model_scores(model, task), task, num_items=split.dataset.num_items, metrics=["ndcg@10"])
        log = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return {
        "items": split.dataset.num_items,
        "loss": loss,
        "item_optimizer": item_optimizer,
        "learning_rate": rate,
        "seed": seed,
        "events": int((split.part == TRAIN).sum()),
        "epochs": len(log),
        "train_seconds": round(sum(line["seconds"] for line in log), 1),
        "valid_ndcg@10/unseen": max(line["validation"]["ndcg@10/unseen"] for line in log if "validation" in line),
        "test_ndcg@10/unseen": float(result.metrics["unseen"]["ndcg@10"]),
        "tested": len(task.users),
        "precision": run.config["training"]["precision"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["steps", "quality", "one"])
    parser.add_argument("--items", type=int, nargs="+", default=[12_000])
    parser.add_argument("--people", type=int, default=100_000, help="of made-up walks")
    parser.add_argument("--data", help="a public data set instead of made-up walks")
    parser.add_argument("--cases", type=int, nargs="+", default=list(range(len(CASES))), help="which, from 0")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3], help="learning rates")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    out_option(parser, "catalogues.jsonl")
    options = parser.parse_args()
    cases = [CASES[number] for number in options.cases]
    if options.what == "one":
        print(json.dumps(step(options.items[0], *cases[0], options.steps)))
        return

    def record(found: dict[str, Any]) -> None:
        print(json.dumps(found), flush=True)
        append_result(options.out, {"what": options.what} | found, precision=found["precision"])

    for items in options.items:
        if options.what == "steps":
            for number in options.cases:
                record(alone(items, number, options.steps))
            continue
        split = rd.split.default(fetch(options.data)) if options.data else walks(items, options.people)
        for case in cases:
            for rate in options.rates:
                for seed in options.seeds:
                    name = {"data": options.data or f"walks of {options.people} people"}
                    record(name | quality(split, *case, options.epochs, rate, seed))


if __name__ == "__main__":
    main()
