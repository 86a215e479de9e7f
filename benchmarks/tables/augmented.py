"""Make the augmented data sets that the augmentation variants of `compare.py` are trained on.

    REDIFFUSE_DATA=... python -m benchmarks.tables.augmented --data amazon-beauty --split given --runs runs/asr

Each method puts ten synthetic interactions before every history, once per seed. Existing data sets are kept, and
interrupted training is resumed.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import rediffuse as rd
from rediffuse.data.split import Split
from rediffuse.readers.public_datasets import public_dataset

# The classifier and the right-to-left SASRec are trained like the SASRec that is compared.
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
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--runs", type=Path, default=Path("runs/asr"))
    parser.add_argument("--generator-epochs", type=int, default=60, help="use more where there are few users")
    arguments = parser.parse_args()
    split = rd.split.by_name(arguments.split, public_dataset(arguments.data))
    for seed in arguments.seeds:
        for name in arguments.methods:
            began = time.perf_counter()
            runs = arguments.runs / f"{arguments.data}-{split.name}"
            augment(split, runs, name, seed, arguments.generator_epochs)
            print(f"{arguments.data} {name} seed {seed}: {time.perf_counter() - began:.0f} s", flush=True)


def where(runs: Path, name: str, seed: int) -> Path:
    """Return the folder of an augmented data set, beside the runs that are compared."""
    return runs / "augmented" / f"{name}-{seed}"


def augment(split: Split, runs: Path, name: str, seed: int, generator_epochs: int) -> None:
    """Make one data set, unless it is there."""
    folder = where(runs, name, seed)
    if (folder / "manifest.json").exists():
        return
    method, options = METHODS[name]
    if method == "diffuasr":
        options = options | {"generator_epochs": generator_epochs}
    run = folder.with_name(f"{name}-{seed}-generator") if options else None
    rd.augment(split, method, n=10, run=run, config=options or None, seed=seed).save(folder)


if __name__ == "__main__":
    main()
