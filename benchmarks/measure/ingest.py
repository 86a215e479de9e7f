"""Measure reading many interactions from Parquet, and everything from there to the batches of an epoch.

    python -m benchmarks.measure.ingest --rows 100_000_000 --users 5_000_000 --items 500_000 --files 100 --k-core 5

Made-up interactions are written to Parquet files in a temporary folder. One new process reads and saves them, another
loads, splits and batches them. The result is one line of a file of JSON lines.

For each stage: seconds of the clock and of the processors; peak_gib, resident memory with mapped file pages;
private_gib, the peak of memory that belongs to this process alone, sampled 50 times a second. Linux only.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common import append_result, measured_alone, out_option

CHUNK = 1_000_000
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
Stages = dict[str, dict[str, float]]


def write(folder: Path, rows: int, users: int, items: int, files: int, strings: bool, seed: int) -> None:
    """Write rows in random order, with users and items of uneven popularity; string ids have 14 and 12 characters."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(seed)
    user_ids, item_ids = rng.permutation(users), rng.permutation(items)
    ids = [pa.array(user_ids), pa.array(item_ids)]
    if strings:
        ids = [pa.array([f"user_{n:09d}" for n in user_ids]), pa.array([f"item_{n:07d}" for n in item_ids])]
    for file, start in enumerate(range(0, rows, -(-rows // files))):
        end = min(start + -(-rows // files), rows)
        partition = folder / f"part={file:04d}"
        partition.mkdir()
        writer = None
        for first in range(start, end, CHUNK):
            size = min(CHUNK, end - first)
            table = pa.table(
                {
                    "user_id": ids[0].take(pa.array((users * rng.random(size) ** 1.5).astype(np.int64))),
                    "item_id": ids[1].take(pa.array((items * rng.random(size) ** 3).astype(np.int64))),
                    "rating": rng.integers(1, 6, size).astype(np.float32),
                    "timestamp": rng.integers(1_000_000_000, 1_700_000_000, size),
                }
            )
            writer = writer or pq.ParquetWriter(partition / "rows.parquet", table.schema, compression="zstd")
            writer.write_table(table)
        if writer:
            writer.close()


def memory(field: str) -> float:
    """Read a field of /proc/self/status, in GiB."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) / 2**20


@contextmanager
def stage(name: str, stages: Stages) -> Iterator[None]:
    """Measure what is done inside, and add it to ``stages``."""
    CLEAR.write_text("5")  # the peak of resident memory is counted from here
    done, peak = threading.Event(), [memory("RssAnon")]
    before = peak[0]

    def on_step() -> None:
        while not done.wait(0.02):
            peak.append(max(peak.pop(), memory("RssAnon")))

    thread = threading.Thread(target=on_step)
    thread.start()
    start, cpu = time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        found = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
        done.set()
        thread.join()
    found |= {"peak_gib": memory("VmHWM"), "private_before_gib": before, "private_gib": peak[0]}
    stages[name] = {key: round(value, 2) for key, value in found.items()}
    print(name, stages[name], file=sys.stderr, flush=True)


def read_and_save(source: str, folder: str, k_core: int | None) -> dict[str, Any]:
    """Read the files, and save the dataset."""
    from rediffuse.readers.interactions import read_interactions

    stages: Stages = {}
    with stage("ingest", stages):
        data = read_interactions(source, time="timestamp", rating="rating", k_core=k_core)
    with stage("fingerprint", stages):
        fingerprint = data.fingerprint
    with stage("save", stages):
        data.save(folder)
    return {
        "interactions": data.num_interactions,
        "users": data.num_users,
        "items": data.num_items,
        "fingerprint": fingerprint,
        "stages": stages,
    }


def load_and_batch(folder: str, batches: int) -> dict[str, Any]:
    """Load the dataset, split it, and begin an epoch of every kind of batches."""
    import numpy as np

    from rediffuse.batching.matrix import binary_matrix
    from rediffuse.batching.pairs import PairBatches
    from rediffuse.batching.rows import RowBatches
    from rediffuse.batching.sequences import SequenceBatches
    from rediffuse.data import split
    from rediffuse.data.loading import load_dataset

    stages: Stages = {}
    with stage("load", stages):
        data = load_dataset(folder)
    with stage("split", stages):
        made = split.global_time(data)
    with stage("view", stages):
        view = made.training_view()
    train, items = view.train, view.num_items
    kinds = {
        "sequences": lambda rng: SequenceBatches(
            train, max_length=50, batch_size=4096, pad=items, every_position=True, rng=rng
        ),
        "prefixes": lambda rng: SequenceBatches(
            train, max_length=50, batch_size=1024, pad=items, every_position=False, rng=rng
        ),
        "pairs": lambda rng: PairBatches(train, num_items=items, batch_size=4096, rng=rng),
        "rows": lambda rng: RowBatches(binary_matrix(train, items), batch_size=512, rng=rng),
    }
    for name, make in kinds.items():
        with stage(name, stages):
            epoch = make(np.random.default_rng(0))
        with stage(f"{name}: batches", stages):
            for index in range(min(batches, len(epoch))):
                epoch.get(index)
        stages[name]["batches"] = len(epoch)
        stages[f"{name}: batches"]["batches"] = min(batches, len(epoch))
        del epoch
    return {"stages": stages, "train_interactions": len(train.items)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=25_000_000)
    parser.add_argument("--users", type=int, default=160_000)
    parser.add_argument("--items", type=int, default=60_000)
    parser.add_argument("--ids", choices=["strings", "integers"], default="strings")
    parser.add_argument("--files", type=int, default=1, help="Parquet files, each in a folder part=0000, ...")
    parser.add_argument("--k-core", type=int)
    parser.add_argument("--batches", type=int, default=1000, help="of each kind of batches, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="where the files are written (default: a temporary folder)")
    out_option(parser, "ingest.jsonl")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        warnings.simplefilter("error")
        function, *rest = json.loads(options.child)
        print(json.dumps({"read": read_and_save, "load": load_and_batch}[function](*rest)))
        return
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        source, saved = Path(folder) / "source", Path(folder) / "dataset"
        source.mkdir()
        strings = options.ids == "strings"
        write(source, options.rows, options.users, options.items, options.files, strings, options.seed)
        size = sum(file.stat().st_size for file in source.rglob("*.parquet"))
        found = measured_alone("--child", json.dumps(["read", str(source), str(saved), options.k_core]))
        saved_size = sum(file.stat().st_size for file in saved.iterdir())
        batched = measured_alone("--child", json.dumps(["load", str(saved), options.batches]))
    result = {
        "benchmark": "ingest",
        **{name: getattr(options, name) for name in ("rows", "ids", "files", "k_core")},
        "source_mib": round(size / 2**20),
        "dataset_mib": round(saved_size / 2**20),
        "rows_per_second": round(options.rows / found["stages"]["ingest"]["seconds"]),
        **found,
        **batched,
        "stages": {**found["stages"], **batched["stages"]},
    }
    print(json.dumps(result))
    append_result(options.out, result, precision=None, device="cpu", packages=["pyarrow"])


if __name__ == "__main__":
    main()
