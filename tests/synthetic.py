"""Small made-up data with something to learn: users move along a ring of items, and jump now and then."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from rediffuse.data.dataset import Dataset
from rediffuse.readers.interactions import read_interactions


def ring_dataset(
    users: int = 60,
    items: int = 40,
    length: int = 12,
    seed: int = 0,
    named: bool = True,
    friends: int = 0,
    knowledge: bool = False,
) -> Dataset:
    """Histories along the ring, with timestamps and titles; ids are strings if ``named``.

    With ``friends``, each user is linked to that many users who started close by, and "u_alone", a user without
    interactions, is linked to u0. With ``knowledge``, items are entities, and facts say in which section of the ring
    they are, of sections of five and of two items.
    """
    rng = np.random.default_rng(seed)
    rows = []
    starts = []
    for user in range(users):
        at = int(rng.integers(items))
        starts.append(at)
        for step in range(int(rng.integers(4, length + 1))):
            rows.append((f"u{user}" if named else user, f"i{at}" if named else at, 1_000_000 + 977 * step + user))
            at = (at + 1) % items if rng.random() < 0.8 else int(rng.integers(items))
    table = pl.DataFrame(rows, schema=["user", "item", "time"], orient="row")
    ids = table["item"].unique().sort()
    films = pl.DataFrame({"item": ids, "title": [f"Film {i}" for i in ids]})
    social = None
    if friends:
        order = np.argsort(starts, kind="stable")
        pairs = [(f"u{order[i]}", f"u{order[(i + n) % users]}") for i in range(users) for n in range(1, friends + 1)]
        social = pl.DataFrame([*pairs, ("u_alone", "u0")], schema=["source", "target"], orient="row")
    columns: dict[str, Any] = {"user": "user", "item": "item", "time": "time"}
    if knowledge:
        facts = [(f"e{i}", f"of {size}", f"part {size}.{i // size}") for i in range(items) for size in (5, 2)]
        links = pl.DataFrame({"item": ids, "entity": [f"e{str(i).removeprefix('i')}" for i in ids]})
        kg = pl.DataFrame(facts, schema=["head", "relation", "tail"], orient="row")
        columns |= {"kg": kg, "item_entity": links}
    return read_interactions(table, **columns, items=films, title="title", social=social)


walks = ring_dataset  # until every test uses the new name
