"""Measure losses by the size of the catalogue: time and memory of a training step, and accuracy after equal epochs.

    OMP_NUM_THREADS=2 python -m benchmarks.measure.catalogues steps --items 12000 100000 1000000
    REDIFFUSE_DATA=... python -m benchmarks.measure.catalogues quality --data amazon-beauty --epochs 12
    python -m benchmarks.measure.catalogues quality --items 1000000 --users 300000 --epochs 1

The model is a SASRec with d = 64 and batches of 4,096 targets. ``steps`` measures every case in a process of its own;
its peak of memory includes the item table and the optimizer state. On a GPU it is the peak that torch has allocated.
``quality`` trains with the usual loop, on a public data set or on made-up data, and ranks the whole catalogue for the
users of the test subset with seen items filtered. Each result is one line of a file of JSON lines.
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
from rediffuse.evaluation import evaluate_task, model_scores
from rediffuse.memory import PeakMemory, keep_freed_memory
from rediffuse.models import model_class
from rediffuse.models.base import Batches, Model, TrainingData
from rediffuse.readers.public_datasets import public_dataset
from rediffuse.runs.run_folder import read_run
from rediffuse.training.optimizer import Optimizer
from rediffuse.training.precision import autocast, resolve_precision

# Loss, and optimizer of the item table.
CASES = [
    ("softmax", "adamw"),
    ("sampled_softmax", "adamw"),
    ("sampled_softmax", "rowwise_adagrad"),
    ("in_batch", "rowwise_adagrad"),
    ("gbce", "rowwise_adagrad"),
    ("sce", "rowwise_adagrad"),
]
OPTIONS = {"embedding_size": 64, "batch_size": 4096}
WARM_UP = 2
COMMUNITY = 100
TESTED = 4_000  # users of made-up data with a test and a validation interaction


def made_up_split(items: int, users: int, length: int = 20, seed: int = 0) -> Split:
    """Make histories with something to learn, and split them.

    Every item has three successors and every user a community of items. The next item is a successor (60 %), a popular
    item of the community (30 %) or any popular item. The last two interactions of `TESTED` users are for validation and
    test.
    """
    rng = np.random.default_rng(seed)
    popularity = lambda size: (items * rng.random(size) ** 3).astype(np.int32)  # noqa: E731
    after = popularity((items, 3))
    home = (items // COMMUNITY * rng.random(users) ** 1.5).astype(np.int64)
    path = np.empty((users, length), dtype=np.int32)
    at = popularity(users)
    for step in range(length):
        path[:, step] = at
        successor = after[at, np.searchsorted([0.6, 0.9, 1.0], rng.random(users))]
        popular = home * COMMUNITY + (COMMUNITY * rng.random(users) ** 3).astype(np.int64)
        kind = rng.random(users)
        at = np.where(kind < 0.6, successor, np.where(kind < 0.9, popular, popularity(users)))
    subset = np.full((users, length), TRAIN, dtype=np.int8)
    subset[:TESTED, -1], subset[:TESTED, -2] = TEST, VALID
    offsets = np.arange(users + 1, dtype=np.int64) * length
    data = Dataset(
        Histories(offsets, path.ravel()), pl.Series("user_id", range(users)), pl.Series("item_id", range(items))
    )
    return Split(data, "given", {"scheme": "last"}, subset.ravel())


def step(items: int, loss: str, item_optimizer: str, steps: int) -> dict[str, Any]:
    """Measure a training step, from its batch to its update, and the peak of memory."""
    device, memory = torch.device("cuda" if torch.cuda.is_available() else "cpu"), PeakMemory()
    view = made_up_split(items, TESTED + 1000).training_view()
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
    """Time ``steps`` training steps, each from its batch to its update, after two that do not count."""
    optimizer, precision = Optimizer(model.parameter_groups(), 1e-3, 0.0), resolve_precision("auto", device)
    seconds = []
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
    """Measure a `step` whose peak of memory is its own: on a CPU it runs in a new process."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        return step(items, *CASES[case], steps)
    return measured_alone("one", "--items", str(items), "--cases", str(case), "--steps", str(steps))


def quality(split: Split, loss: str, item_optimizer: str, epochs: int, rate: float, seed: int) -> dict[str, Any]:
    """Train, and evaluate the weights that were best in validation on the test subset."""
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
        "interactions": int((split.subset == TRAIN).sum()),
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
    parser.add_argument("--users", type=int, default=100_000, help="of made-up data")
    parser.add_argument("--data", help="a public data set instead of made-up data")
    every_case = list(range(len(CASES)))
    parser.add_argument("--cases", type=int, nargs="+", default=every_case, help="which of the cases, from 0")
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
        split = rd.split.default(public_dataset(options.data)) if options.data else made_up_split(items, options.users)
        for case in cases:
            for rate in options.rates:
                for seed in options.seeds:
                    name = {"data": options.data or f"made-up, {options.users} users"}
                    record(name | quality(split, *case, options.epochs, rate, seed))


if __name__ == "__main__":
    main()
