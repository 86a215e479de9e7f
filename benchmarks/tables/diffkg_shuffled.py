"""Train DiffKG on a graph that says nothing true: the control for whether it uses knowledge.

    OMP_NUM_THREADS=1 python -m benchmarks.tables.diffkg_shuffled --data lastfm-hetrec --epochs 12 --seeds 0 1 2

The graph stays as it is, but items are dealt out anew to the entities that stand for items. What the true graph gains
over this one is knowledge; the rest comes from any graph, the contrast and the additional parameters. Nothing is
pruned. For the true graph, run `compare.py` with as many epochs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np

import rediffuse as rd
from benchmarks.common import RESULTS, write_result
from rediffuse.readers.public_datasets import public_dataset

METRICS = ("hr@10", "ndcg@10", "recall@20")
VARIANTS = {"diffkg-none": {"pruning": "none"}, "diffkg-plain": {"pruning": "none", "contrast": 0.0}}


def shuffled(data: rd.Dataset, seed: int) -> rd.Dataset:
    """Deal the items out anew to the entities that stand for items."""
    assert data.kg is not None
    links = data.kg.item_entity.copy()
    linked = np.unique(links[:, 0])
    place = np.searchsorted(linked, links[:, 0])
    links[:, 0] = np.random.default_rng(seed).permutation(linked)[place]
    return dataclasses.replace(data, kg=dataclasses.replace(data.kg, item_entity=links))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="given")
    parser.add_argument("--models", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--minutes", type=float, default=30.0, help="at most, per run")
    parser.add_argument("--runs", type=Path, default=Path("runs/shuffled"))
    parser.add_argument("--out", type=Path, help="result file; default: results/diffkg_shuffled-DATA.json")
    arguments = parser.parse_args()
    rows = []
    for seed in arguments.seeds:
        data = shuffled(public_dataset(arguments.data), seed)
        split = rd.split.by_name(arguments.split, data)
        for name in arguments.models:
            folder = arguments.runs / f"{arguments.data}-{name}-{seed}"
            shutil.rmtree(folder, ignore_errors=True)
            options = VARIANTS[name] | {"metric": "ndcg@10/unseen", "epochs": arguments.epochs, "patience": 8}
            run = rd.train("diffkg", split, folder, config=options, seed=seed, max_minutes=arguments.minutes)
            found = rd.evaluate(folder, data)["metrics"]
            figures = {f"{m}/{policy}": found[policy][m] for policy in ("all", "unseen") for m in METRICS}
            precision = run.config["training"]["precision"]
            rows.append({"variant": name, "seed": seed, "minutes": run.minutes, "precision": precision} | figures)
            print(json.dumps(rows[-1]), flush=True)
    facts = {"data": arguments.data, "epochs": arguments.epochs, "rows": rows}
    out = arguments.out or RESULTS / f"diffkg_shuffled-{arguments.data}.json"
    write_result(out, facts, precision=rows[0]["precision"])


if __name__ == "__main__":
    main()
