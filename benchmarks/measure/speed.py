"""Measure the speed of training and ranking, against the rate of matrix products in the same run (`make bench`).

    REDIFFUSE_DATA=... python -m benchmarks.measure.speed

Without REDIFFUSE_DATA, made-up data of the size of Amazon Beauty take its place.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import polars as pl
import torch

import rediffuse as rd
from benchmarks.common import out_option, write_result
from rediffuse.data.dataset import Dataset
from rediffuse.evaluation import evaluate_task
from rediffuse.memory import keep_freed_memory
from rediffuse.models import model_class
from rediffuse.models.base import TrainingData
from rediffuse.models.sequence import SequenceModel
from rediffuse.readers.interactions import read_interactions
from rediffuse.readers.public_datasets import public_dataset
from rediffuse.training.precision import autocast, resolve_precision

CPU = torch.device("cpu")
# Figures of the released code and of RecTools' SASRec on a 2-core machine without AMX. They are quoted: this script
# does not measure them. `rectools_sasrec.py` measures RecTools.
STATED = {"prefix": "893 s (released code)", "causal": "314 s (RecTools SASRec)", "ranking": "24 users/s (32 steps)"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out_option(parser, "speed.json")
    arguments = parser.parse_args()
    name = "amazon-beauty" if os.environ.get("REDIFFUSE_DATA") else "made-up"
    split = rd.split.given(public_dataset(name)) if name == "amazon-beauty" else rd.split.leave_one_out(made_up())
    precision = resolve_precision("auto", CPU)
    with keep_freed_memory():
        rates = {kind: gemm_rate(kind) for kind in (torch.float32, torch.bfloat16)}
        rate = rates[torch.bfloat16 if precision == "bf16" else torch.float32]
        report: dict[str, Any] = {
            "data": name,
            "precision": precision,
            "gemm_gflops": {str(kind).removeprefix("torch."): round(value / 1e9) for kind, value in rates.items()},
            "epochs": {
                "diffurec causal": epoch("diffurec", split, None, precision, rate),
                "diffurec causal, fp32": epoch("diffurec", split, None, "fp32", rates[torch.float32]),
                "diffurec prefix (paper)": epoch("diffurec", split, "paper", precision, rate),
                "sasrec": epoch("sasrec", split, None, precision, rate),
            },
            "milliseconds_per_step_in_turns": alternating(split, precision),
            "ranking_users_per_second": ranking(split),
            "stated_elsewhere": STATED,
        }
    write_result(arguments.out, report, precision=precision, device="cpu")
    print(json.dumps(report, indent=2))


def made_up() -> Dataset:
    """Make 22,363 users, 12,101 items and about 198,502 interactions."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(5 + rng.geometric(0.25, 22_363), 200)
    owners = np.repeat(np.arange(len(lengths)), lengths)
    items = (12_101 * rng.random(len(owners)) ** 2).astype(np.int64)
    return read_interactions(
        pl.DataFrame({"user": owners, "item": items, "time": np.arange(len(owners))}),
        user="user",
        item="item",
        time="time",
    )


def gemm_rate(kind: torch.dtype) -> float:
    """Measure floating-point operations per second of a product of the softmax's shape; best of 20."""
    left, right = torch.randn(1024, 128).to(kind), torch.randn(12_288, 128).to(kind)
    best = min(_seconds(lambda: left @ right.T) for _ in range(20))
    return 2 * 1024 * 128 * 12_288 / best


def _seconds(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def epoch(name: str, split: Any, preset: str | None, precision: str, rate: float) -> dict[str, Any]:
    """Time one epoch after a warm-up of 10 steps, and the share of each stage."""
    view = split.training_view()
    data = TrainingData(view.train, view.num_users, view.num_items, view.valid.popularity)
    kind = model_class(name)
    torch.manual_seed(0)
    model = kind(kind.Config.build(preset), view.num_items)
    assert isinstance(model, SequenceModel)
    model.fit(data)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    stages: dict[str, float] = defaultdict(float)

    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        stages[stage] += time.perf_counter() - began

    softmax = model.losses

    def timed_softmax(*args: Any) -> Any:
        with timed("softmax"):
            return softmax(*args)

    model.losses = timed_softmax  # type: ignore[method-assign]
    tokens = flops = 0.0
    for epoch_number, limit in ((0, 10), (1, None)):
        stages.clear()
        began = time.perf_counter()
        with timed("batching"):
            batches = model.batches(data, np.random.default_rng(epoch_number))
        for index in range(len(batches))[:limit]:
            with timed("batching"):
                batch = batches.get(index)
            with timed("encoder forward and softmax"), autocast(precision, CPU):
                loss = model.loss(batch)
            with timed("encoder backward"):
                loss.backward()
            with timed("optimizer"):
                optimizer.step()
                optimizer.zero_grad()
            if epoch_number:
                tokens += batch.items.numel()
                flops += 6 * len(batch.targets) * view.num_items * model.config.embedding_size
    seconds = time.perf_counter() - began
    stages["encoder forward"] = stages.pop("encoder forward and softmax") - stages["softmax"]
    blocks = getattr(model.config, "blocks", 0)
    flops += 6 * tokens * blocks * 12 * model.config.embedding_size**2
    return {
        "seconds": round(seconds, 2),
        "steps": len(batches),
        "padded_tokens": int(tokens),
        "share": {stage: round(value / seconds, 3) for stage, value in sorted(stages.items(), key=lambda x: -x[1])},
        "share_of_gemm_rate": round(flops / rate / seconds, 3),
    }


def alternating(split: Any, precision: str) -> dict[str, float]:
    """Time steps of SASRec and of DiffuRec in turns, in milliseconds: what slows the machine slows both."""
    view, turns = split.training_view(), {}
    data = TrainingData(view.train, view.num_users, view.num_items, view.valid.popularity)
    for name in ("sasrec", "diffurec"):
        kind = model_class(name)
        torch.manual_seed(0)
        model = kind(kind.Config.build(), view.num_items)
        model.fit(data)
        optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3, fused=True)
        turns[name] = (model, optimizer, model.batches(data, np.random.default_rng(0)), [])
    for _ in range(8):
        for model, optimizer, batches, times in turns.values():
            began = time.perf_counter()
            for index in range(12):
                with autocast(precision, CPU):
                    loss = model.loss(batches.get(index))
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            times.append((time.perf_counter() - began) / 12 * 1000)
    return {name: round(float(np.median(times)), 1) for name, (*_, times) in turns.items()}


def ranking(split: Any) -> dict[str, int]:
    """Measure users per second, from scores to all default metrics, by number of sampling steps."""
    task, rates = split.task("test"), {}
    for label, preset, steps in (("causal", None, 1), ("causal", None, 32), ("prefix (paper)", "paper", 1)):
        kind = model_class("diffurec")
        model = kind(kind.Config.build(preset, {"sampling_steps": steps}), split.dataset.num_items).eval()
        model.popularity.copy_(torch.from_numpy(task.popularity))
        seconds = _seconds(
            lambda model=model: evaluate_task(
                lambda histories, _start: model.score(histories, seed=0), task, num_items=split.dataset.num_items
            )
        )
        rates[f"{label}, {steps} steps"] = round(len(task.users) / seconds)
    return rates


if __name__ == "__main__":
    main()
