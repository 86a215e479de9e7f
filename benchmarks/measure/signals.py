"""Measure PDRec's signals: our pass over all users against the released way, one user at a time; and a T-DiffRec epoch.

    REDIFFUSE_DATA=... python -m benchmarks.measure.signals --run runs/pdrec/pdrec-douban-book-given/tidiffrec-0

The released code runs T passes over all items for each user, then sorts all of them with a stable sort. Both ways are
timed in turns on the same users in one process. The peak of memory is that of a process that only makes the signals.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

import rediffuse as rd
from benchmarks.common import measured_alone, out_option, write_result
from rediffuse.memory import PeakMemory
from rediffuse.models.base import TrainingData
from rediffuse.models.diffrec import DiffRec
from rediffuse.models.signals import derive_signals
from rediffuse.readers.public_datasets import public_dataset
from rediffuse.runs.run_folder import read_run
from rediffuse.training.precision import autocast, resolve_precision

PLAIN_USERS, ROUNDS = 40, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="pdrec-douban-book")
    parser.add_argument("--run", type=Path, required=True, help="a run of tdiffrec on this data")
    parser.add_argument("--only-signals", action="store_true", help="make them and print the peak of memory")
    out_option(parser, "signals.json")
    arguments = parser.parse_args()
    view = rd.split.given(public_dataset(arguments.data)).training_view()
    model = read_run(arguments.run).model
    assert isinstance(model, DiffRec)
    if arguments.only_signals:
        memory, began = PeakMemory(), time.perf_counter()
        derive_signals(model.score, view.train, view.num_items)
        print(json.dumps({"seconds": time.perf_counter() - began, "peak_memory_mib": memory.mib()}))
        return
    whole = measured_alone("--data", arguments.data, "--run", str(arguments.run), "--only-signals")
    some = np.random.default_rng(0).permutation(np.flatnonzero(view.train.lengths))
    ours, plain = [], []
    for turn in range(ROUNDS):
        users = some[turn * 1000 : (turn + 1) * 1000]
        began = time.perf_counter()
        derive_signals(model.score, view.train.take(users), view.num_items)
        ours.append((time.perf_counter() - began) / len(users))
        began = time.perf_counter()
        for user in users[:PLAIN_USERS]:
            row = torch.from_numpy(model.rows(view.train.take(np.array([user]))).toarray())
            with torch.inference_mode():
                model.plain_chain(row)[0].sort(descending=True, stable=True)
        plain.append((time.perf_counter() - began) / PLAIN_USERS)
    facts = {
        "data": arguments.data,
        "users": int((view.train.lengths > 0).sum()),
        "items": view.num_items,
        "signals": whole,
        "ms_per_user": 1e3 * float(np.median(ours)),
        "ms_per_user_released_way": 1e3 * float(np.median(plain)),
        "ratio": float(np.median(np.asarray(plain) / np.asarray(ours))),
        "tdiffrec_epoch_seconds": epoch(model, view),
    }
    print(json.dumps(facts, indent=2))
    precision = f"fp32, the epoch {resolve_precision('auto', torch.device('cpu'))}"
    write_result(arguments.out, facts, precision=precision, device="cpu")


def epoch(model: DiffRec, view: rd.data.split.TrainingView) -> float:
    """Time one epoch of training, without validation."""
    data = TrainingData(view.train, view.num_users, view.num_items, view.valid.popularity)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    batches, device = model.batches(data, np.random.default_rng(0)), torch.device("cpu")
    precision = resolve_precision("auto", device)
    model.train()
    began = time.perf_counter()
    for index in range(len(batches)):
        with autocast(precision, device):
            loss = model.loss(batches.get(index))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
