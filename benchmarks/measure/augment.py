"""Measure how long DiffuASR takes, and how much memory, to generate ten interactions for every history of a data set.

    REDIFFUSE_DATA=... python -m benchmarks.measure.augment --data amazon-beauty

The weights are random: they do not change the time. Each kind of guidance runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import time

import torch

import rediffuse as rd
from benchmarks.common import measured_alone, out_option, write_result
from rediffuse.memory import PeakMemory
from rediffuse.models.base import TrainingData
from rediffuse.models.diffuasr import DiffuASR
from rediffuse.readers.public_datasets import public_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="amazon-beauty")
    parser.add_argument("--guidance", help="measure this one only, in this process")
    out_option(parser, "augment.json")
    arguments = parser.parse_args()
    if arguments.guidance:
        print(json.dumps(measure(arguments.data, arguments.guidance)))
        return
    rows = []
    for guidance in ("none", "cf", "cg"):
        rows.append(measured_alone("--data", arguments.data, "--guidance", guidance))
        print(rows[-1], flush=True)
    write_result(arguments.out, {"data": arguments.data, "rows": rows}, precision="fp32", device="cpu")


def measure(data: str, guidance: str) -> dict[str, object]:
    """Generate once for all users."""
    view = rd.split.given(public_dataset(data)).training_view()
    torch.manual_seed(0)
    model = DiffuASR(DiffuASR.Config.build(None, {"guidance": guidance, "backbone": None}), view.num_items).eval()
    model.fit(TrainingData(view.train, view.num_users, view.num_items, view.valid.popularity))
    memory, began = PeakMemory(), time.perf_counter()
    generated = model.generate(view.train)
    seconds = time.perf_counter() - began
    return {
        "guidance": guidance,
        "users": int((generated[:, 0] >= 0).sum()),
        "seconds": seconds,
        "peak_memory_mib": memory.mib(),
    }


if __name__ == "__main__":
    main()
