"""Measure how long it takes to add new items to a run, and the memory it takes, without training.

    OMP_NUM_THREADS=1 python -m benchmarks.measure.new_items

Data are made up: items have a category and a vector of 64 numbers near that of their category, and users take items of
few categories. Each model is trained for as short as it goes: what it has learned does not change the time. Both ways
are measured in processes of their own: `Recommender.with_items` from a run that is loaded, and `rediffuse.add_items`
from folder to folder. Processor time stands beside wall time, which other work on the machine makes longer.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import rediffuse as rd
from benchmarks.common import measured_alone, out_option, write_result
from rediffuse.memory import PeakMemory

CATEGORIES, WIDTH, HISTORY = 500, 64, 20
MODELS = {
    "gru4rec": {"epochs": 1, "loss": "sampled_softmax", "max_length": 20},
    "bprmf": {"epochs": 1},
    "theat": {},
}
WAYS = ("with_items", "add_items")


def products(first: int, count: int) -> pl.DataFrame:
    """A table of items with the numbers from ``first`` on."""
    rng = np.random.default_rng(first)
    category = rng.integers(CATEGORIES, size=count)
    centres = np.random.default_rng(0).normal(size=(CATEGORIES, WIDTH))
    vectors = (centres[category] + rng.normal(size=(count, WIDTH))).astype(np.float32)
    names = [f"c{number}" for number in category]
    return pl.DataFrame({"item_id": np.arange(first, first + count), "category": names, "vector": vectors}).cast(
        {"vector": pl.List(pl.Float32)}
    )


def dataset(items: int, users: int) -> rd.Dataset:
    """Users with ``HISTORY`` interactions each, most of them within two categories; every item is taken once."""
    table, rng = products(0, items), np.random.default_rng(1)
    order = table["category"].arg_sort().to_numpy()
    taken = np.concatenate((np.arange(items), rng.integers(items, size=users * HISTORY - items)))
    rng.shuffle(taken[items:])
    home = np.sort(taken)  # by place in the order of categories, so that each user has neighbours in it
    rows = pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(users), HISTORY),
            "item_id": order[home],
            "time": 1_600_000_000 + 86_400 * rng.integers(300, size=users * HISTORY),
        }
    )
    return rd.read_interactions(rows, time="time", items=table, item_features="category,vector:vector")


@contextmanager
def measured(found: dict[str, Any]) -> Iterator[None]:
    """Add the seconds of the body, of the wall and of the processor."""
    wall, processor = time.perf_counter(), time.process_time()
    yield
    found["seconds"] = round(time.perf_counter() - wall, 2)
    found["processor_seconds"] = round(time.process_time() - processor, 2)


def add(way: str, run: Path, new: Path) -> dict[str, Any]:
    """Add the items of a table to a run, and the peak of memory of this process."""
    found: dict[str, Any] = {}
    if way == "with_items":
        recommender = rd.Recommender.load(run)
        memory = PeakMemory()
        found["loaded_mib"] = memory.mib()
        with measured(found):
            grown = recommender.with_items(new)
        found["items"] = len(grown.items)
    else:
        memory = PeakMemory()
        with tempfile.TemporaryDirectory() as folder, measured(found):
            made, _ = rd.add_items(run, new, Path(folder) / "run")
        found["items"] = made.config["data"]["items"]
    return found | {"peak_mib": memory.mib()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--new", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=2, help="of training, at most")
    out_option(parser, "new_items.json")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore", rd.errors.RediffuseWarning)
    if options.one:
        way, run, new = options.one
        print(json.dumps(add(way, Path(run), Path(new))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        new = Path(folder) / "new.parquet"
        products(options.items, options.new).write_parquet(new)
        split = rd.split.none(dataset(options.items, options.users))
        for model in options.models:
            began = time.perf_counter()
            run = rd.train(model, split, Path(folder) / model, config=MODELS[model], max_minutes=options.minutes)
            print(f"{model}: trained in {time.perf_counter() - began:.0f} s", flush=True)
            for way in WAYS:
                rows.append({"model": model, "way": way} | measured_alone("--one", way, str(run.path), str(new)))
                print(json.dumps(rows[-1]), flush=True)
    sizes = {name: getattr(options, name) for name in ("items", "users", "new")}
    facts = sizes | {"category_values": CATEGORIES, "vector_width": WIDTH, "options": MODELS, "rows": rows}
    write_result(options.out, facts, precision="fp32", device="cpu")


if __name__ == "__main__":
    main()
