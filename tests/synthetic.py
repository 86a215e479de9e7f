"""Small made-up data with something to learn: people walk round a ring of items, now and then jumping."""

from __future__ import annotations

import numpy as np
import polars as pl

from rediffuse.data.dataset import Dataset


def walks(users: int = 60, items: int = 40, length: int = 12, seed: int = 0, named: bool = True) -> Dataset:
    """A dataset of ring walks with timestamps and titles; ids are strings where ``named``."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        at = int(rng.integers(items))
        for step in range(int(rng.integers(4, length + 1))):
            rows.append((f"u{user}" if named else user, f"i{at}" if named else at, 1_000_000 + 977 * step + user))
            at = (at + 1) % items if rng.random() < 0.8 else int(rng.integers(items))
    table = pl.DataFrame(rows, schema=["user", "item", "time"], orient="row")
    ids = table["item"].unique().sort()
    films = pl.DataFrame({"item": ids, "title": [f"Film {i}" for i in ids]})
    return Dataset.from_interactions(table, user="user", item="item", time="time", items=films, title="title")
