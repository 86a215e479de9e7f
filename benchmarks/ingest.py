"""Time and peak memory of reading interactions with string ids from Parquet.

Writes synthetic interactions to a temporary Parquet file (in chunks, in this process), reads them in a fresh
process, and prints one JSON line:

    python benchmarks/ingest.py --rows 25_000_000
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

CHUNK = 1_000_000

READ = """
import json, resource, sys, time
start = time.perf_counter()
from rediffuse.data.dataset import Dataset
imported = time.perf_counter()
data = Dataset.from_interactions(sys.argv[1], time="timestamp", rating="rating")
done = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({
    "import_seconds": round(imported - start, 2),
    "ingest_seconds": round(done - imported, 2),
    "peak_gib": round(peak * (1 if sys.platform == "darwin" else 1024) / 2**30, 2),
    "events": data.num_events, "users": data.num_users, "items": data.num_items,
}))
"""


def write(path: Path, rows: int, users: int, items: int, seed: int) -> None:
    """Rows in random order, users and items of uneven popularity, ids of 14 and 12 characters."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(seed)
    user_ids = pa.array([f"user_{number:09d}" for number in rng.permutation(users)])
    item_ids = pa.array([f"item_{number:07d}" for number in rng.permutation(items)])
    writer = None
    for start in range(0, rows, CHUNK):
        size = min(CHUNK, rows - start)
        user = (users * rng.random(size) ** 1.5).astype(np.int64)
        item = (items * rng.random(size) ** 3).astype(np.int64)
        table = pa.table(
            {
                "user_id": user_ids.take(pa.array(user)),
                "item_id": item_ids.take(pa.array(item)),
                "rating": rng.integers(1, 6, size).astype(np.float32),
                "timestamp": rng.integers(1_000_000_000, 1_700_000_000, size),
            }
        )
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    if writer:
        writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=25_000_000)
    parser.add_argument("--users", type=int, default=160_000)
    parser.add_argument("--items", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "interactions.parquet"
        write(path, options.rows, options.users, options.items, options.seed)
        size = path.stat().st_size
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", READ, str(path)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    import numpy
    import polars

    result = {
        "benchmark": "ingest",
        "rows": options.rows,
        "file_mib": round(size / 2**20),
        **json.loads(done.stdout),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "polars": polars.__version__,
        "numpy": numpy.__version__,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
