"""The longer data sets that compare.py's augmentation variants train on.

    REDIFFUSE_DATA=... python -m benchmarks.tables.augmented --data amazon-beauty --split given --runs runs/asr

Every way to augment writes ten events before every history, once per seed. What is there already is kept; an
interrupted training goes on.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import rediffuse as rd
from rediffuse.data.split import Split
from rediffuse.data.zoo import fetch

# The classifier, and the SASRec from right to left, are trained as the SASRec that is compared.
SASREC = {"embedding_size": 64, "dropout": 0.2, "learning_rate": 2e-3, "epochs": 6, "validate_every": 2}
GENERATOR = {"classifier_model": "sasrec", "classifier": SASREC}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("random", {}),
    "random-seq": ("random-seq", {}),
    "asrep": ("asrep", SASREC),
    "cf": ("diffuasr", GENERATOR | {"guidance": "cf"}),
    "cg": ("diffuasr", GENERATOR | {"guidance": "cg"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/asr"))
    parser.add_argument("--generator-epochs", type=int, default=60, help="more where there are few people")
    arguments = parser.parse_args()
    split = rd.split.by_name(arguments.split, fetch(arguments.data))
    for seed in arguments.seeds:
        for way in METHODS:
            began = time.perf_counter()
            runs = arguments.runs / f"{arguments.data}-{split.name}"
            write(split, runs, way, seed, arguments.generator_epochs)
            print(f"{arguments.data} {way} seed {seed}: {time.perf_counter() - began:.0f} s", flush=True)


def where(runs: Path, way: str, seed: int) -> Path:
    """Folder of a data set, in that of the runs which are compared."""
    return runs / "augmented" / f"{way}-{seed}"


def write(split: Split, runs: Path, way: str, seed: int, generator_epochs: int) -> None:
    """One data set, unless it is there."""
    folder = where(runs, way, seed)
    if (folder / "manifest.json").exists():
        return
    method, options = METHODS[way]
    if method == "diffuasr":
        options = options | {"generator_epochs": generator_epochs}
    run = folder.with_name(f"{way}-{seed}-generator") if options else None
    rd.augment(split, method, n=10, run=run, config=options or None, seed=seed).save(folder)


if __name__ == "__main__":
    main()
