"""Two processes share a training view: ``share.py FOLDER``, which holds a dataset; each writes what it found."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

import rediffuse as rd
from rediffuse import distributed
from rediffuse.data import shared
from rediffuse.data.histories import Histories
from rediffuse.data.subsets import Split, TrainingView
from rediffuse.errors import RediffuseError
from rediffuse.testing import synthetic_interactions
from rediffuse.training import train

TRAINING = sys.modules[train.__module__]


def anonymous() -> int:
    """Bytes of memory that no other process can share."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))


def arrays(view: TrainingView) -> dict[str, Any]:
    rows = {"train": view.train, "histories": view.valid.histories, "truth": view.valid.truth}
    found = {f"{name}.{f.name}": getattr(part, f.name) for name, part in rows.items() for f in fields(Histories)}
    return found | {"users": view.valid.users, "popularity": view.valid.popularity}


def differing(one: TrainingView, other: TrainingView) -> list[str]:
    """Names of the arrays of two views that differ in a value or a type."""
    mine, others = arrays(one), arrays(other)

    def same(name: str) -> bool:
        if mine[name] is None or others[name] is None:
            return mine[name] is others[name]
        return mine[name].dtype == others[name].dtype and np.array_equal(mine[name], others[name])

    return [name for name in mine if not same(name)]


def main(folder: Path) -> None:
    distributed.init()
    data, calls = rd.load_dataset(folder / "data"), []

    def by_time(dataset: rd.Dataset) -> Split:
        calls.append(distributed.rank())
        return rd.split.global_time(dataset)

    split = shared.shared_split(data, by_time)
    before = anonymous()
    mapped = shared.shared_view(split)
    of_mapped = anonymous() - before
    before = anonymous()
    copied = split.training_view()
    found: dict[str, Any] = {
        "calls": len(calls),
        "split": split.fingerprint,
        "mapped": of_mapped / data.num_interactions,
        "copied": (anonymous() - before) / data.num_interactions,
        "differing": differing(mapped, copied),
    }
    del mapped, copied
    small = synthetic_interactions()
    options = {"embedding_size": 8, "epochs": 2, "blocks": 1, "batch_size": 64}
    rd.train("sasrec", small, folder / "mapped", config=options)
    TRAINING.shared_view = Split.training_view
    rd.train("sasrec", small, folder / "copied", config=options)
    try:
        rd.train("sasrec", synthetic_interactions(length=4).without_synthetic(), folder / "mapped", config=options)
    except RediffuseError as error:
        found["error"] = error.problem
    (folder / f"rank{distributed.rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
