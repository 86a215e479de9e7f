"""Older and newer interactions of the same users in one numbering."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rediffuse.data.histories import Histories


def extended_ids(old: pl.Series, new: pl.Series) -> tuple[pl.Series, NDArray[np.int64]]:
    """The old ids, then those that are new; and the number of each of ``new`` among them."""
    added = new.filter(~new.is_in(old.implode()))
    ids = pl.concat([old, added.alias(old.name)])
    numbers = pl.DataFrame({"id": ids, "number": np.arange(len(ids))})
    found = pl.DataFrame({"id": new}).join(numbers, on="id", how="left", maintain_order="left")["number"]
    return ids, found.to_numpy().astype(np.int64)


@dataclass(frozen=True)
class Merged:
    """Older and newer interactions together.

    Attributes:
        histories: all of them, by user and time; without times, the newer ones after the older ones.
        source: (interactions,) position of each among the older ones, -1 for newer ones.
        repeated: newer interactions that were left out, because the older ones have the same item of the same user at
            the same time.
        example: user and item number of the first of those; None if there is none.
    """

    histories: Histories
    source: NDArray[np.int64]
    repeated: int
    example: tuple[int, int] | None


def merge(
    old: Histories,
    new: Histories,
    users: NDArray[np.int64],
    items: NDArray[np.int64],
    num_users: int,
    *,
    distinct: bool = False,
) -> Merged:
    """Add newer interactions to older ones.

    Args:
        old: the older ones; their rows and items have the numbers that the result has. If they have times, the newer
            ones need times too. Synthetic interactions stay before the real ones of a user.
        new: the newer ones, none of them synthetic.
        users, items: the number of each row, and of each item number, of ``new``.
        num_users: rows of the result.
        distinct: newer interactions that repeat each other, at the same time, count once too.
    """
    columns = {
        "user": np.concatenate((old.owners, users[new.owners])),
        "item": np.concatenate((old.items, items[new.items])).astype(np.int32),
        "source": np.concatenate((np.arange(len(old.items)), np.full(len(new.items), -1))),
    }
    if old.times is not None:
        assert new.times is not None
        columns["time"] = np.concatenate((old.times, new.times))
    if old.synthetic is not None:
        columns["own"] = np.concatenate((~old.synthetic, np.ones(len(new.items), dtype=np.bool_)))
    table = pl.DataFrame(columns)
    repeated = table.clear()
    if old.times is not None:
        same = ["user", "item", "time"]
        is_new = pl.col("source") < 0
        known = table.filter(~is_new).select(same).unique()
        newer = table.filter(is_new).join(known, on=same, how="anti", maintain_order="left")
        repeated = table.filter(is_new).join(known, on=same, how="semi", maintain_order="left")
        if distinct:
            again = ~newer.select(pl.struct(same).is_first_distinct()).to_series()
            repeated = pl.concat([repeated, newer.filter(again)])
            newer = newer.filter(~again)
        table = pl.concat([table.filter(~is_new), newer.select(table.columns)])
    order = [name for name in ("user", "own", "time") if name in table.columns]
    table = table.sort(order, maintain_order=True)
    counts = np.bincount(table["user"].to_numpy(), minlength=num_users)
    histories = Histories(
        np.concatenate(([0], np.cumsum(counts))),
        table["item"].to_numpy(),
        table["time"].to_numpy() if "time" in table.columns else None,
        synthetic=~table["own"].to_numpy() if "own" in table.columns else None,
    )
    example = (int(repeated["user"][0]), int(repeated["item"][0])) if len(repeated) else None
    return Merged(histories, table["source"].to_numpy(), len(repeated), example)
