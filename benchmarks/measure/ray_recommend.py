"""Batch inference by the plain writer and by Ray actors: users per second, in one run.

    python -m benchmarks.measure.ray_recommend

A run of SASRec on a generated catalogue and one user file with histories. The three work in turns, each with a cluster
of its own, and the fastest turn of each counts: from the call, with the start of Ray and the loading of the run, to the
finished folder. Set OMP_NUM_THREADS=1, so that the plain writer has as many threads as an actor.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import rediffuse as rd
from benchmarks.common import out_option, write_result
from rediffuse.engines import ray
from rediffuse.recommender.batch import recommend_to_folder

EVENTS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=60_000)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--rows-per-part", type=int, default=3_000)
    parser.add_argument("--turns", type=int, default=1)
    out_option(parser, "ray_recommend.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run, users = made(folder, arguments.users, arguments.items)
        rows = [
            measured(run, users, folder / f"lists-{turn}-{workers}", workers, arguments.rows_per_part)
            for turn in range(arguments.turns)
            for workers in (0, 1, 2)
        ]
    fastest = [max(row["users_per_second"] for row in rows if row["workers"] == workers) for workers in (0, 1, 2)]
    report: dict[str, Any] = {"users": arguments.users, "items": arguments.items, "turns": rows}
    for workers in (1, 2):
        report[f"ratio_{workers}_actors"] = fastest[workers] / fastest[0]
    print(json.dumps(report, indent=1))
    write_result(arguments.out, report, precision="fp32", device="cpu", packages=["ray"])


def made(folder: Path, users: int, items: int) -> tuple[Path, Path]:
    """A run of a small training, and a user file of histories."""
    generator = np.random.default_rng(0)
    interactions = pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(items // 2), EVENTS),
            "item_id": np.concatenate([np.arange(items), generator.integers(0, items, items // 2 * EVENTS - items)]),
            "time": np.arange(items // 2 * EVENTS),
        }
    )
    split = rd.split.leave_one_out(rd.read_interactions(interactions, time="time"))
    config = {"epochs": 1, "embedding_size": 64, "loss": "sampled_softmax"}
    run = rd.train("sasrec", split, folder / "run", config=config).path
    histories = pl.Series(generator.integers(0, items, (users, EVENTS))).cast(pl.List(pl.Int64))
    pl.DataFrame({"user_id": np.arange(users), "history": histories}).write_parquet(folder / "users.parquet")
    return run, folder / "users.parquet"


def measured(run: Path, users: Path, out: Path, workers: int, rows_per_part: int) -> dict[str, Any]:
    """Time one command; ``workers`` 0: the plain writer."""
    start = time.perf_counter()
    if workers:
        result = ray.recommend(run, users, out, workers=workers, rows_per_part=rows_per_part)
    else:
        result = recommend_to_folder(rd.Recommender.load(run), users, out, rows_per_part=rows_per_part)
    seconds = time.perf_counter() - start
    assert not result.missing
    found = {"workers": workers, "seconds": seconds, "users_per_second": result.counts["users"] / seconds}
    print(json.dumps(found), flush=True)
    return found


if __name__ == "__main__":
    main()
