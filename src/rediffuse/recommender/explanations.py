"""Explanations of scores that are sums: what each item of the history, each hop and each prior adds to a score."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from rediffuse.data.histories import Histories
from rediffuse.models.base import Contribution, Model
from rediffuse.recommender.ranker import RankedItems

# The part that stands for all sources that are not listed.
OTHER = "other"
# Sources of a score that are listed beside a recommendation; the rest is one row.
SOURCES = 5
# Paths of the knowledge graph that are listed, by `Recommender.explain` and beside a recommendation.
PATHS, PATHS_IN_LISTS = 3, 2
_SCHEMA = {"row": pl.Int64, "history_item": pl.Int64, "part": pl.String, "contribution": pl.Float64}


def contributions(
    model: Model,
    rows: Histories,
    user_numbers: NDArray[np.int64],
    items: Sequence[NDArray[np.int64]],
    top: int | None = None,
) -> pl.DataFrame:
    """What makes up the scores of the items of n users; the contributions to an item add up to its score.

    Args:
        model: one that explains scores.
        rows: n histories of item numbers.
        user_numbers: (n,) numbers of the users in training, or -1.
        items: item numbers, an array per user.
        top: the most sources per item. A source is an item of the history, with all its hops, or a prior. Those with
            smaller contributions become one row with the part "other"; a single one is left as it is.

    Returns:
        row (position of the item in ``items`` end to end), history_item (item number; null where no interaction
        contributes), part, contribution and share (contribution / score; null if the score is 0): the items in order,
        with their largest contributions first, and "other" last. Contributions of 0 have no row, so an item whose
        score is 0 may have none.
    """
    frames, start = [pl.DataFrame(schema=_SCHEMA)], 0
    for user, own in enumerate(items):
        parts = _parts(model, rows.take(np.asarray([user])), user_numbers[[user]], own) if len(own) else []
        if parts:
            values = np.stack([part.values for part in parts])
            number, row = np.nonzero(values)
            columns = {
                "row": row + start,
                "history_item": np.asarray([part.source for part in parts])[number],
                "part": pl.Series([part.part for part in parts], dtype=pl.String).gather(number),
                "contribution": values[number, row],
            }
            frames.append(pl.DataFrame(columns).cast(_SCHEMA))  # pyright: ignore[reportArgumentType]
        start += len(own)
    found = pl.concat(frames).with_columns(history_item=pl.when(pl.col("history_item") >= 0).then("history_item"))
    found = found.group_by("row", "history_item", "part", maintain_order=True).agg(pl.col("contribution").sum())
    if top is not None:
        found = _with_the_rest_as_one(found, top)
    order = ["row", pl.col("part") == OTHER, pl.col("contribution").abs()]
    found = found.sort(order, descending=[False, False, True], maintain_order=True)
    score = pl.col("contribution").sum().over("row")
    return found.with_columns(share=pl.when(score != 0).then(pl.col("contribution") / score))


@torch.inference_mode()
def _parts(
    model: Model, row: Histories, user_number: NDArray[np.int64], items: NDArray[np.int64]
) -> list[Contribution]:
    """The contributions to the scores of one user, also if they are those of users without a history."""
    row = row if model.reads_synthetic else row.without_synthetic()
    if len(row.items) or model.has_user_state(user_number)[0]:
        return model.contributions(row, user_number, items)
    part = "popularity" if torch.equal(model.fallback, model.popularity) else "recent popularity"
    return [Contribution(-1, part, model.fallback.cpu()[torch.from_numpy(items)].double().numpy())]


def _with_the_rest_as_one(found: pl.DataFrame, top: int) -> pl.DataFrame:
    """Keep the ``top`` sources of each item, and add up the others unless there is only one."""
    source = ["row", "history_item", "prior"]
    found = found.with_columns(prior=pl.when(pl.col("history_item").is_null()).then("part"))
    totals = found.group_by(source, maintain_order=True).agg(total=pl.col("contribution").sum().abs())
    totals = totals.sort("total", descending=True, maintain_order=True).with_columns(
        place=pl.int_range(pl.len()).over("row"), sources=pl.len().over("row")
    )
    found = found.join(totals, on=source, how="left", nulls_equal=True, maintain_order="left")
    listed = (pl.col("place") < top) | (pl.col("sources") <= top + 1)
    rest = found.filter(~listed).group_by("row", maintain_order=True).agg(pl.col("contribution").sum())
    rest = rest.with_columns(history_item=pl.lit(None, pl.Int64), part=pl.lit(OTHER))
    return pl.concat([found.filter(listed).select(*_SCHEMA), rest.select(*_SCHEMA)])


def with_ids(found: pl.DataFrame, catalogue: pl.DataFrame) -> pl.DataFrame:
    """Contributions with the ids of the history items, and their titles if items have titles.

    Args:
        found: from `contributions`.
        catalogue: row i describes item number i.
    """
    columns = {"history_item": catalogue["item_id"].gather(found["history_item"])}
    if "title" in catalogue.columns:
        columns["history_title"] = catalogue["title"].gather(found["history_item"])
    return found.with_columns(**columns).select("row", *columns, "part", "contribution", "share")


def explained_frame(found: pl.DataFrame, items: NDArray[np.int64], catalogue: pl.DataFrame) -> pl.DataFrame:
    """The contributions to the scores of ``items`` (n,) as `Recommender.explain` returns them.

    Args:
        found: from `contributions`.
        items: item numbers.
        catalogue: row i describes item number i.
    """
    numbers = items[found["row"].to_numpy()]
    frame = with_ids(found, catalogue).drop("row").with_columns(item_id=catalogue["item_id"].gather(numbers))
    order = ["item_id", "history_item", "part", "contribution", "share"]
    if "title" in catalogue.columns:
        frame, order = frame.with_columns(title=catalogue["title"].gather(numbers)), [*order, "title", "history_title"]
    return frame.select(order)


def spread_frame(
    hops: Sequence[str], best: Sequence[tuple[NDArray[np.int64], NDArray[np.float32]]], catalogue: pl.DataFrame
) -> tuple[NDArray[np.int64], pl.DataFrame]:
    """The item numbers of the rows, and the frame, without titles, that `Recommender.spread` returns.

    Args:
        hops: the name of each hop.
        best: item numbers and masses after each hop, largest first.
        catalogue: row i describes item number i.
    """
    lengths = [len(items) for items, _ in best]
    number = np.repeat(np.arange(len(hops)), lengths)
    items = np.concatenate([np.empty(0, np.int64), *(items for items, _ in best)])
    columns = {
        "step": pl.Series(number, dtype=pl.Int32),
        "hop": pl.Series(hops, dtype=pl.String).gather(number),
        "rank": np.concatenate([np.arange(1, length + 1, dtype=np.int32) for length in (0, *lengths)]),
        "item_id": catalogue["item_id"].gather(items),
        "mass": np.concatenate([np.empty(0, np.float32), *(masses for _, masses in best)]),
    }
    return items, pl.DataFrame(columns)


def because(
    model: Model,
    rows: Histories,
    user_numbers: NDArray[np.int64],
    ranked: Sequence[RankedItems],
    catalogue: pl.DataFrame,
) -> pl.Series:
    """The column ``because`` of the lists of n users: a list of structs per row, with the fields of `with_ids`.

    Args:
        model, rows, user_numbers: as for `contributions`.
        ranked: the lists of the users.
        catalogue: row i describes item number i.
    """
    found = contributions(model, rows, user_numbers, [user.items for user in ranked], SOURCES)
    found = with_ids(found, catalogue)
    fields = pl.struct(pl.exclude("row")).alias("because")
    grouped = found.group_by("row", maintain_order=True).agg(fields)
    every = pl.DataFrame({"row": np.arange(sum(len(user.items) for user in ranked))})
    listed = every.join(grouped, on="row", how="left", maintain_order="left")["because"]
    return listed.fill_null(pl.Series([[]], dtype=listed.dtype))


def sentence(reasons: Iterable[dict[str, Any]]) -> str:
    """The reasons of one recommendation in words: "Film A 41%, Film B 22%, recent popularity 3%, other 34%".

    Args:
        reasons: the structs of the column ``because`` in one row. Those of one history item are added up.
    """
    shares: dict[tuple[Any, str], float] = {}  # by history item, or None, and name
    for reason in reasons:
        item = reason["history_item"]
        source = item, str(reason["part"] if item is None else reason.get("history_title") or item)
        shares[source] = shares.get(source, 0.0) + (reason["share"] or 0.0)
    order = sorted(shares, key=lambda source: (source == (None, OTHER), -abs(shares[source])))
    return ", ".join(f"{source[1]} {shares[source]:.0%}" for source in order)
