"""Paths between items in a weighted knowledge graph, as tables of ids."""

from __future__ import annotations

import polars as pl


def strongest_paths(edges: pl.DataFrame, items: pl.Series, history: pl.Series, limit: int) -> pl.DataFrame:
    """The strongest paths from each of ``items`` to any item of ``history``, at most ``limit`` per item.

    A path is item - relation - entity - relation - history item, with the product of both edge weights as its strength,
    or item - relation - history item, with the edge weight as its strength.

    Args:
        edges: edges of items, with the columns item_id, relation, entity or other_item (the end), weight, kept.
        items: ids of items.
        history: ids of items.
        limit: paths per item.

    Returns:
        item_id (in the order of ``items``), relation, entity and relation_back (null on a direct edge), history_item,
        strength, and kept (whether all edges are), strongest first. Items without a path have no row.
    """
    wanted = pl.DataFrame({"item_id": items}).unique(maintain_order=True)
    ends = pl.DataFrame({"history_item": history}).unique()
    # The middle of a path can be an item as well.
    edges = edges.with_columns(node=pl.coalesce("entity", pl.format("item {}", "other_item")))
    leaving = wanted.join(edges, on="item_id")
    arriving = edges.rename({"item_id": "history_item", "relation": "relation_back"}).join(ends, on="history_item")
    columns = ["item_id", "relation", "entity", "relation_back", "history_item", "strength", "kept"]
    through = leaving.join(arriving, on="node").with_columns(
        entity="node", strength=pl.col("weight") * pl.col("weight_right"), kept=pl.col("kept") & pl.col("kept_right")
    )
    direct = leaving.join(ends, left_on="other_item", right_on="history_item", coalesce=False).with_columns(
        strength="weight", entity=pl.lit(None, pl.String), relation_back=pl.lit(None, pl.String)
    )
    found = pl.concat([through.select(columns), direct.select(columns)])
    found = found.filter(pl.col("history_item") != pl.col("item_id"))
    best = found.sort("strength", "relation", "history_item", "entity", descending=[True, False, False, False])
    best = best.group_by("item_id", maintain_order=True).head(limit)
    return wanted.join(best, on="item_id", maintain_order="left_right")
