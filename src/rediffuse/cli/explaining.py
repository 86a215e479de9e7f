"""Explanations of ``recommend --explain`` in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

    from rediffuse.recommender import Recommender


def share_lines(found: pl.DataFrame) -> list[str]:
    """One line per recommendation, with the shares of its score.

    Args:
        found: from `Recommender.recommend` with ``explain``.
    """
    from rediffuse.recommender.explanations import sentence

    several = found["user_id"].n_unique() > 1
    lines = ["What each score is made of:"]
    for row in found.iter_rows(named=True):
        name = row.get("title") or row["item_id"]
        user = f"user {row['user_id']}, " if several else ""
        lines.append(f"  {user}{name}: {sentence(row['because']) or 'nothing, its score is 0'}")
    return lines if len(lines) > 1 else []


def because_as_text(found: pl.DataFrame) -> pl.DataFrame:
    """The recommendations with the column ``because``, if there is one, in words, for files that hold no lists."""
    import polars as pl

    from rediffuse.recommender.explanations import sentence

    if "because" not in found.columns:
        return found
    return found.with_columns(because=pl.Series([sentence(one) for one in found["because"].to_list()], dtype=pl.String))


def find_paths(
    recommender: Recommender, items: pl.Series, history: list[Any] | None, user: list[str] | None
) -> pl.DataFrame:
    """Paths of the knowledge graph from the history of one user to the recommended ``items``.

    Args:
        recommender: of a model that learned from a knowledge graph.
        items: ids.
        history: ids, or None.
        user: as given to the command.
    """
    from rediffuse.recommender.explanations import PATHS_IN_LISTS

    if history is None:
        return recommender.explain(items, user=(user or [])[0], top=PATHS_IN_LISTS)
    return recommender.explain(items, history=history, top=PATHS_IN_LISTS)


def path_lines(recommender: Recommender, paths: pl.DataFrame) -> list[str]:
    """One line per path, with titles where there are any."""
    has_titles = "title" in recommender.items.columns
    titles = dict(recommender.items.select("item_id", "title").iter_rows()) if has_titles else {}
    lines = ["Paths of the knowledge graph, with their attention:"]
    for row in paths.iter_rows(named=True):
        end, start = (str(titles.get(row[column]) or row[column]) for column in ("item_id", "history_item"))
        path = f"-- {row['relation']} --"
        if row["entity"] is not None:
            path += f" {row['entity']} -- {row['relation_back']} --"
        pruned = "" if row["kept"] else ", with a pruned edge"
        lines.append(f"  {end} {path} {start} ({row['strength']:.3f}{pruned})")
    if len(lines) == 1:
        return ["No path of the knowledge graph leads from the history to the recommended items."]
    return lines
