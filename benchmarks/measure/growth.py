"""Measure how time and memory grow with users, items, the length of histories, and edges of a graph.

    OMP_NUM_THREADS=2 python -m benchmarks.measure.growth

Each size is measured on made-up data in a process of its own, so that its peak of memory is known. One axis grows; the
others keep their size. Results are appended to a file of JSON lines. Reading is in `ingest.py`, the training step by
size of the catalogue in `catalogues.py`, DiffKG in `diffkg_scale.py`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from benchmarks.common import anonymous_growth, append_result, measured_alone, out_option
from benchmarks.measure.catalogues import TESTED, made_up_split, seconds_of_steps
from rediffuse.data.dataset import SocialGraph
from rediffuse.evaluation import evaluate_task, model_scores
from rediffuse.files import atomic_write_bytes
from rediffuse.memory import PeakMemory, keep_freed_memory
from rediffuse.models import model_class
from rediffuse.models.base import Model, TrainingData
from rediffuse.training.checkpoint import load_training, restore_optimizer, save_training
from rediffuse.training.optimizer import Optimizer
from rediffuse.training.precision import resolve_precision

CPU = torch.device("cpu")
ITEMS, USERS, LENGTH, RANKED = 12_000, 20_000, 20, 512


def fresh(name: str, data: TrainingData, **options: Any) -> Model:
    """Make a model ready for its first training step."""
    kind = model_class(name)
    torch.manual_seed(0)
    model = kind(kind.Config.build(None, options), data.num_items, data.num_users)
    model.check(data)
    model.fit(data)
    model.begin_phase(model.phases[0], data)
    return model


def training_data(split: Any, social: SocialGraph | None = None) -> TrainingData:
    view = split.training_view()
    return TrainingData(view.train, view.num_users, view.num_items, view.valid.popularity, social=social)


def steps_of(model: Model, data: TrainingData, steps: int) -> dict[str, Any]:
    """Measure the median of ``steps`` training steps, and count the steps of an epoch."""
    batches = model.batches(data, np.random.default_rng(0))
    seconds = seconds_of_steps(model, batches, steps, CPU)
    return {"step_seconds": round(statistics.median(seconds), 4), "steps_per_epoch": len(batches)}


def users(size: int, model: str) -> dict[str, Any]:
    """Measure a step with ``size`` users of ``LENGTH`` interactions each, and extrapolate an epoch."""
    data = training_data(made_up_split(ITEMS, size, LENGTH))
    found = steps_of(fresh(model, data), data, 15)
    return found | {"epoch_seconds": round(found["step_seconds"] * found["steps_per_epoch"], 1)}


def items(size: int, model: str) -> dict[str, Any]:
    """Rank a catalogue of ``size`` items for ``RANKED`` users, with seen items kept and filtered."""
    split = made_up_split(size, USERS, LENGTH)
    task = split.task("valid")
    rows = np.arange(RANKED)
    task = replace(task, users=task.users[rows], histories=task.histories.take(rows), truth=task.truth.take(rows))
    network = fresh(model, training_data(split), embedding_size=64).eval()
    network.prepare()
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        evaluate_task(model_scores(network, task), task, num_items=size, metrics=["ndcg@10"])
        taken.append(time.perf_counter() - started)
    return {"milliseconds_per_user": round(min(taken) / RANKED * 1000, 2)}


def history(size: int, model: str) -> dict[str, Any]:
    """Measure a step of 4,096 targets whose histories have ``size`` interactions."""
    data = training_data(made_up_split(ITEMS, max(4_001, 100_000 // size), size + 3))
    return steps_of(fresh(model, data, max_length=size, batch_size=4096), data, 7)


def interactions(size: int, model: str) -> dict[str, Any]:
    """Measure a step on a graph of users and items with ``size`` edges."""
    data = training_data(made_up_split(ITEMS, size // LENGTH, LENGTH))
    return steps_of(fresh(model, data), data, 7)


def links(size: int, model: str) -> dict[str, Any]:
    """Measure a step on a social graph with ``size`` links."""
    split, rng = made_up_split(ITEMS, 50_000, LENGTH), np.random.default_rng(1)
    ends = rng.integers(50_000, size=(2, size), dtype=np.int32)
    data = training_data(split, SocialGraph(*ends))
    return steps_of(fresh(model, data, validate_every=1), data, 7)


def checkpoint(size: int, model: str) -> dict[str, Any]:
    """Save and load a training checkpoint of ``size`` items, second moments of the optimizer included.

    Beside it, what was done before: the whole file was made in memory.
    """
    data = training_data(made_up_split(size, TESTED + 1000))
    options = {"embedding_size": 64, "loss": "sampled_softmax", "item_optimizer": "rowwise_adagrad"}
    network = fresh(model, data, **options)
    optimizer = Optimizer(network.parameter_groups(), 1e-3, 0.0)
    network(network.batches(data, np.random.default_rng(0)).get(0)).backward()
    optimizer.step()
    again = Optimizer(network.parameter_groups(), 1e-3, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "last.safetensors"
        found = taken("write", lambda: save_training(path, network, optimizer, {}))
        found |= taken("read", lambda: restore_optimizer(again, load_training(path, network).optimizer))
        mib = path.stat().st_size / 2**20
        found |= taken("former_write", lambda: save_in_memory(path, network, optimizer))
    shares = {f"{name}_share": round(found[f"{name}_extra_mib"] / mib, 4) for name in ("write", "read", "former_write")}
    return found | shares | {"mib": round(mib, 1)}


def taken(what: str, call: Callable[[], object]) -> dict[str, Any]:
    """The least seconds of three calls, and the most that anonymous memory grew in one."""
    seconds, grown = [], []
    for _ in range(3):
        started = time.perf_counter()
        grown.append(anonymous_growth(call))
        seconds.append(time.perf_counter() - started)
    return {f"{what}_seconds": round(min(seconds), 2), f"{what}_extra_mib": max(grown)}


def save_in_memory(path: Path, network: Model, optimizer: Optimizer) -> None:
    """Save a checkpoint as before streams: clones of all tensors, and the whole file as bytes."""
    tensors = dict(network.state_dict())
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in values.items()}
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    digest = hashlib.sha256()
    for name in sorted(plain):
        digest.update(plain[name].reshape(-1).view(torch.uint8).numpy().data)
    atomic_write_bytes(path, save(plain, metadata={"sha256": digest.hexdigest()}))


AXES: dict[str, tuple[Callable[[int, str], dict[str, Any]], list[str], list[int]]] = {
    "users": (users, ["diffurec", "diffrec"], [20_000, 80_000, 320_000]),
    "items ranked": (items, ["diffurec", "sasrec"], [12_000, 100_000, 1_000_000]),
    "items saved": (checkpoint, ["sasrec"], [100_000, 1_000_000, 4_000_000]),
    "history length": (history, ["diffurec", "sasrec", "gru4rec"], [25, 50, 100, 200, 400]),
    "edges (interactions)": (interactions, ["lightgcn"], [250_000, 1_000_000, 4_000_000]),
    "edges (links)": (links, ["diffnet", "diffnetpp"], [250_000, 1_000_000, 4_000_000]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES))
    out_option(parser, "growth.jsonl")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        axis, model, size = options.one
        memory = PeakMemory()
        with keep_freed_memory():
            print(json.dumps(AXES[axis][0](int(size), model) | {"peak_mib": memory.mib()}))
        return
    for axis in options.axes:
        precision = "fp32" if axis in ("items ranked", "items saved") else resolve_precision("auto", CPU)
        for model in AXES[axis][1]:
            for size in AXES[axis][2]:
                found = {"axis": axis, "model": model, "size": size} | measured_alone("--one", axis, model, str(size))
                print(json.dumps(found), flush=True)
                append_result(options.out, found, precision=precision, device="cpu")


if __name__ == "__main__":
    main()
