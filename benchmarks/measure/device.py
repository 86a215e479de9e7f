"""Measure users per second of `recommend` on a device and on the CPU, by the size of the catalogue.

    python -m benchmarks.measure.device --device auto
    python -m benchmarks.measure.device --device cpu --items 2000 20000 --users 64

The model is a SASRec with d = 64 that is hardly trained, on made-up histories, since the speed depends on neither: of
the size of Amazon Beauty (12,101 items) and with 10 million items. Its users are asked in batches; ids, filters and the
lists themselves are part of the time, as in `rd.Recommender.recommend`. The lists of the two devices are compared:
items may differ where scores differ by rounding alone. Of 10 million items, `recommend` scores 26 users at once at
most, which is a gigabyte of scores.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

import rediffuse as rd
from benchmarks.common import out_option, write_result
from rediffuse import devices
from rediffuse.data.dataset import Dataset
from rediffuse.data.histories import Histories
from rediffuse.memory import PeakMemory

K = 20
LENGTH = 20  # interactions of a user


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--items", type=int, nargs="+", default=[12_101, 10_000_000])
    parser.add_argument("--users", type=int, default=2048, help="per measurement; 32 on the CPU beyond a million items")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64, 512], help="users scored together")
    parser.add_argument("--repeats", type=int, default=3)
    out_option(parser, "device.json")
    arguments = parser.parse_args()
    device = devices.resolve(arguments.device)
    cases = []
    for items in arguments.items:
        with tempfile.TemporaryDirectory() as folder:
            cases += measure(Path(folder) / "run", items, device, arguments)
    report = {"model": "sasrec, d = 64", "k": K, "history": LENGTH, "seed": 0, "cases": cases}
    write_result(arguments.out, report, precision="fp32", device=devices.description(device))


def measure(run: Path, items: int, device: torch.device, arguments: Any) -> list[dict[str, Any]]:
    """Users per second by device and batch, of one catalogue."""
    users = made_up_run(run, items, arguments.users)
    found, lists = [], {}
    for name in dict.fromkeys(("cpu", str(device))):
        memory = PeakMemory(torch.device(name))
        recommender = rd.Recommender.load(run, device=name)
        asked = users[:32] if name == "cpu" and items > 1_000_000 else users
        for batch in arguments.batches:
            some = asked[: min(len(asked), 64 * batch)]
            recommender.recommend(users=some[:batch], k=K, batch_size=batch)  # warms up
            seconds = []
            for _ in range(arguments.repeats):
                began = time.perf_counter()
                lists[name, batch] = recommender.recommend(users=some, k=K, batch_size=batch)
                seconds.append(time.perf_counter() - began)
            row = {
                "items": items,
                "device": name,
                "batch": batch,
                "users": len(some),
                "users_per_second": round(len(some) / statistics.median(seconds), 1),
                "milliseconds_per_batch": round(1000 * statistics.median(seconds) / -(-len(some) // batch), 2),
                "peak_mib": memory.mib(),
            }
            if name != "cpu":
                row["same_items_as_cpu"] = share_of_equal_items(lists["cpu", batch], lists[name, batch])
            print(row, flush=True)
            found.append(row)
    return found


def share_of_equal_items(left: pl.DataFrame, right: pl.DataFrame) -> float:
    """The share of places of the lists that hold the same item, of the users that both have."""
    both = left.join(right, on=["user_id", "rank"], suffix="_right")
    return round(float((both["item_id"] == both["item_id_right"]).mean()), 5)  # type: ignore[arg-type]


def made_up_run(run: Path, items: int, users: int) -> list[int]:
    """Write a run; returns its users."""
    rng = np.random.default_rng(0)
    offsets = np.arange(users + 1, dtype=np.int64) * LENGTH
    histories = Histories(offsets, (items * rng.random(users * LENGTH) ** 2).astype(np.int32))
    data = Dataset(histories, pl.Series("user_id", range(users)), pl.Series("item_id", range(items)))
    split = rd.split.none(data)
    options = {"epochs": 1, "embedding_size": 64, "loss": "sampled_softmax", "item_optimizer": "rowwise_adagrad"}
    rd.train("sasrec", split, run, config=options, seed=0)
    return list(range(users))


if __name__ == "__main__":
    main()
