"""Measure one epoch of DiffNet and of DiffNet++ on Yelp: time and peak memory.

    REDIFFUSE_DATA=... python -m benchmarks.measure.social_speed

Each model trains three epochs in a process of its own; the last two count. DiffNet has d = 32 and 8 negatives per
interaction, as published; DiffNet++ has d = 64 and two layers.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import rediffuse as rd
from benchmarks.common import measured_alone, out_option, write_result
from rediffuse.memory import PeakMemory
from rediffuse.readers.public_datasets import public_dataset

MODELS = {"diffnet": {"embedding_size": 32}, "diffnetpp": {"embedding_size": 64, "hops": 2}}


def measure(model: str) -> dict[str, object]:
    """Train a model without validation before the last epoch."""
    memory = PeakMemory()
    split = rd.split.given(public_dataset("diffnet-yelp"))
    options = MODELS[model] | {"negatives": 8, "epochs": 3, "validate_every": 3}
    with tempfile.TemporaryDirectory() as folder:
        run = rd.train(model, split, Path(folder) / "run", config=options)
        seconds = [json.loads(line)["seconds"] for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return {
        "model": model,
        "seconds": round(sum(seconds[1:]) / 2, 2),
        "peak_memory_mib": memory.mib(),
        "precision": run.config["training"]["precision"],
        **options,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, help="measure this one only, in this process")
    out_option(parser, "social_speed.json")
    arguments = parser.parse_args()
    if arguments.model:
        print(json.dumps(measure(arguments.model)))
        return
    rows = []
    for model in MODELS:
        rows.append(measured_alone("--model", model))
        print(rows[-1], flush=True)
    write_result(arguments.out, {"rows": rows}, precision=rows[0]["precision"])


if __name__ == "__main__":
    main()
