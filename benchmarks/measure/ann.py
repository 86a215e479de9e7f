"""Measure approximate search over random vectors against exact search: build time, memory, recall@100, query time.

    OMP_NUM_THREADS=1 python -m benchmarks.measure.ann --items 1_000_000 --dim 64

Vectors and queries are standard normal and not normalised. They have no clusters and hardly any near neighbours, which
is hard for every kind of index. Each kind runs in a process of its own with one thread, one query at a time. The effort
is the lowest with which 200 queries reach the recall; 500 others are measured. Times are in milliseconds of the clock
and, since machines are shared, of the processor.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.common import measured_alone, out_option, write_result
from rediffuse.memory import PeakMemory
from rediffuse.recommender.index import ItemIndex, load_faiss
from rediffuse.recommender.index_building import recall_of
from rediffuse.topk import exact_top_k

K, RECALL, CHOOSING, REPORTING = 100, 0.95, 200, 500


def milliseconds(search: Callable[[torch.Tensor], Any], queries: torch.Tensor) -> dict[str, float]:
    """Measure queries one at a time: the median and the 99th percentile of their latency."""
    clock, processor = [], []
    for query in queries.split(1):
        start, worked = time.perf_counter(), time.thread_time()
        search(query)
        processor.append(1000 * (time.thread_time() - worked))
        clock.append(1000 * (time.perf_counter() - start))
    times = {"ms": clock, "cpu_ms": processor}
    return {f"{name}_p{p}": round(float(np.percentile(of, p)), 2) for name, of in times.items() for p in (50, 99)}


def measure(kind: str, items: int, dim: int) -> dict[str, Any]:
    """Measure one kind, or exact search, in this process."""
    torch.set_num_threads(1)
    load_faiss().omp_set_num_threads(1)
    rng = np.random.default_rng(0)
    table = rng.standard_normal((items, dim), dtype=np.float32)
    vectors = torch.from_numpy(table)
    queries = torch.from_numpy(rng.standard_normal((CHOOSING + REPORTING, dim), dtype=np.float32))
    reported = queries[CHOOSING:]
    row: dict[str, Any] = {"kind": kind, "items": items, "dim": dim, "index_mib": round(table.nbytes / 2**20)}
    if kind == "exact":
        return row | {"recall": 1.0} | milliseconds(lambda query: exact_top_k(query @ vectors.T, K), reported[:100])
    thresholds = torch.cat([exact_top_k(batch @ vectors.T, K)[0][:, -1] for batch in queries.split(16)])
    memory = PeakMemory()
    start, worked = time.perf_counter(), time.process_time()
    index = ItemIndex.build(table, "hnsw" if kind == "hnsw" else "ivf", threads=1)
    row |= {
        "build_seconds": round(time.perf_counter() - start, 1),
        "build_cpu_seconds": round(time.process_time() - worked, 1),
        "build_peak_mib": memory.mib(),
        "index_mib": round(len(index.to_bytes()) / 2**20),
    }
    tried = []
    for effort in index.efforts:
        index.effort = effort
        found = recall_of(index, vectors, queries[:CHOOSING], thresholds[:CHOOSING], K)
        times = milliseconds(lambda query: index.search(query.numpy(), K), queries[:CHOOSING])
        tried.append({"effort": effort, "recall": round(found, 4), "cpu_ms_p50": times["cpu_ms_p50"]})
        print(tried[-1], file=sys.stderr, flush=True)
        if found >= RECALL:
            break
    found = recall_of(index, vectors, reported, thresholds[CHOOSING:], K)
    row |= {"effort": index.effort, "recall": round(found, 4)}
    return row | milliseconds(lambda query: index.search(query.numpy(), K), reported) | {"tried": tried}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--kind", choices=["exact", "ivf", "hnsw"], help="measure this one only, in this process")
    out_option(parser, "ann.json")
    arguments = parser.parse_args()
    if arguments.kind:
        print(json.dumps(measure(arguments.kind, arguments.items, arguments.dim)))
        return
    rows = []
    for kind in ("exact", "ivf", "hnsw"):
        rows.append(measured_alone("--kind", kind, f"--items={arguments.items}", f"--dim={arguments.dim}"))
        print(rows[-1], flush=True)
    write_result(arguments.out, {"rows": rows}, precision="fp32", device="cpu", packages=["faiss-cpu"])


if __name__ == "__main__":
    main()
