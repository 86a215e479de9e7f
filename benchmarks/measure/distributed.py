"""Compare one process that uses all cores with several processes of one thread each: throughput, losses, metrics.

    REDIFFUSE_DATA=... python -m benchmarks.measure.distributed --processes 2 --models diffurec sasrec --batch 1024

Both train the same model on Amazon Beauty with the same batches, in turns; the fastest epoch of each counts. Then both
evaluate the run of the distributed training.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import out_option, write_result
from rediffuse.readers.public_datasets import public_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--models", nargs="+", default=["diffurec", "sasrec"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1024])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--turns", type=int, default=2)
    out_option(parser, "processes.json")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "beauty"
        public_dataset("amazon-beauty").save(data)
        for model in arguments.models:
            for batch in arguments.batch:
                rows.append(measured(Path(folder), data, model, batch, arguments))
                print(json.dumps(rows[-1]), flush=True)
    report = {"data": "amazon-beauty, given split", "processes": arguments.processes, "rows": rows}
    write_result(arguments.out, report, precision=", ".join(sorted({row["precision"] for row in rows})))


def measured(folder: Path, data: Path, model: str, batch: int, arguments: Any) -> dict[str, Any]:
    """Train with both in turns, then evaluate the last run with both."""
    logs: dict[int, list[dict[str, Any]]] = {1: [], arguments.processes: []}
    run = folder
    for turn in range(arguments.turns):
        for world_size in logs:
            run = folder / f"{model}-{batch}-{world_size}-{turn}"
            options = [f"epochs={arguments.epochs}", f"batch_size={batch}", f"validate_every={arguments.epochs}"]
            options += ["sampling_steps=1"] if model == "diffurec" else []  # so that no steps are chosen after training
            settings = [word for option in options for word in ("--set", option)]
            train = ["train", model, str(data), "-o", str(run), "--split", "given", *settings]
            rediffuse(world_size, arguments.processes, *train)
            logs[world_size] += [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    tests = [json.loads(rediffuse(n, arguments.processes, "evaluate", str(run), str(data), "--json")) for n in logs]
    fastest = [min(line["seconds"] for line in lines) for lines in logs.values()]
    losses = [[line["loss"] for line in lines[: arguments.epochs]] for lines in logs.values()]
    return {
        "model": model,
        "batch": batch,
        "precision": json.loads((run / "config.json").read_text())["training"]["precision"],
        "epoch_seconds_one_process": fastest[0],
        "epoch_seconds_several": fastest[1],
        "throughput_ratio": fastest[0] / fastest[1],
        "losses_one_process": losses[0],
        "losses_several": losses[1],
        "test_metrics_identical": tests[0]["metrics"] == tests[1]["metrics"],
        "evaluation_users_per_second": [test["users_per_second"] for test in tests],
    }


def rediffuse(world_size: int, cores: int, *words: str) -> str:
    """Run the command in ``world_size`` processes that share ``cores`` threads, and return what it prints."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world_size)]
    done = subprocess.run(
        [sys.executable, *(launcher if world_size > 1 else []), "-m", "rediffuse", *words],
        env=os.environ | {"OMP_NUM_THREADS": str(cores // world_size)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


if __name__ == "__main__":
    main()
