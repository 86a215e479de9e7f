"""From tables to a `Dataset`: read, number, sort, filter, count."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any, Literal

from rediffuse.arguments import require_text
from rediffuse.data.dataset import Dataset
from rediffuse.errors import ConfigError, DataError, RediffuseWarning
from rediffuse.readers import side_tables
from rediffuse.readers.filters import Filters
from rediffuse.readers.report import ReadReport
from rediffuse.readers.rows import Columns, InteractionRows
from rediffuse.readers.tables import Table, read_table


def read_interactions(
    source: Any,
    *,
    user: str = "user_id",
    item: str = "item_id",
    time: str | None = None,
    order: str | None = None,
    rating: str | None = None,
    items: Any = None,
    title: str | None = None,
    users: Any = None,
    social: Any = None,
    kg: Any = None,
    item_entity: Any = None,
    splits: Any = None,
    k_core: int | None = None,
    min_rating: float | None = None,
    duplicates: Literal["keep", "first", "last"] = "keep",
    encoding: str | None = None,
    separator: str | None = None,
) -> Dataset:
    """Read, check and number a table of interactions and the tables that go with it.

    A table is a path (CSV, TSV or any other separator, gzip, Parquet, RecBole atomic files), a folder or
    a glob of such files, a list of paths, or a dataframe (polars, pandas, pyarrow, and others that
    narwhals supports). docs/data.md says what is accepted, what is dropped and counted, and what is refused.

    Args:
        source: table of interactions, one per row.
        user, item: columns of ids, integers or strings.
        time: column of timestamps. None: a column called ``timestamp`` is used if there is one, with a
            warning.
        order: column of numbers that order the interactions of a user, instead of ``time``, or beside it to
            break ties. Where both are equal, and where neither is given, the order of rows counts.
        rating: column of numbers >= 0.
        items, users: tables that describe items and users, with the id column named as in the
            interactions.
        title: column of ``items`` with a readable name; a column called ``title`` is used by default.
        social: table of directed links: source, target.
        kg: table of triples: head, relation, tail. ``item_entity`` links items to entities: item_id,
            entity_id.
        splits: table of user, item, split ("train", "valid", "test") and, if a pair occurs repeatedly,
            the time or order column; and ``scheme``, if it holds several splits.
        min_rating: drop interactions rated lower. Applied first.
        duplicates: whether to keep all repeated interactions of a user with an item, the first or the last.
            Applied second.
        k_core: drop users and items with fewer interactions, until none is left to drop. Applied last.
        encoding: encoding of text files, if it is not UTF-8.
        separator: separator of text files; detected if not given.

    Raises:
        DataError: a table cannot be used; the error names file, column, first bad row and remedy.
        ConfigError: an argument has the wrong type or is out of range, or arguments do not go together.
    """
    columns, filters = Columns(user, item, time, order, rating), Filters(min_rating, duplicates, k_core)
    columns.check()
    filters.check(rating)
    _check_tables(items, title, kg, item_entity, encoding, separator)

    def open_table(source: Any, what: str, *wanted: str, insist: bool = False) -> Table:
        # Tables beside the interactions need not have the same separator.
        return read_table(source, what, wanted=wanted, separator=separator, encoding=encoding, insist=insist)

    table = open_table(source, "interactions", *columns.by_role().values(), insist=True)
    report = ReadReport()
    if time is None and order is None and "timestamp" in table.columns:
        columns = replace(columns, time="timestamp")
        note = "The column 'timestamp' was used as the time of interactions, as no time or order column was named."
        report.note(note)
        warnings.warn(f"{note} Pass time='timestamp' to say so.", RediffuseWarning, stacklevel=2)
    rows = InteractionRows(table, columns, report)
    if rows.sort():
        by = " and ".join(filter(None, ("by user", columns.time, columns.order)))
        report.note(f"Rows were sorted {by}; rows that are equal in this keep their order.")
    if splits is not None:
        given = open_table(splits, "splits", user, item, "split")
        rows.subsets = side_tables.match_splits(given, columns, rows, report)
    filters.apply(rows, report)
    rows.drop_unused_ids()
    user_ids, item_ids = rows.user_ids, rows.item_ids
    if len(item_ids) < 2:
        raise DataError(
            f"{table.name} has a single item, {item_ids[0]!r}, after filtering.",
            "There is nothing to choose from; bring interactions with at least two items, or filter less.",
        )

    graph = item_table = user_table = knowledge = None
    if social is not None:
        graph, user_ids = side_tables.read_social(open_table(social, "social"), user_ids, report)
    if items is not None:
        described = open_table(items, "items", item)
        item_table = side_tables.describe(described, item, "item_id", item_ids, report)
        if title is None and "title" in item_table.columns:
            title = "title"
        if title is not None:
            item_table = side_tables.with_title(described, item_table, title)
    if users is not None:
        user_table = side_tables.describe(open_table(users, "users", user), user, "user_id", user_ids, report)
    if kg is not None:
        links = open_table(item_entity, "item_entity", item)
        knowledge = side_tables.read_knowledge(open_table(kg, "kg"), links, item, item_ids, report)

    report.values.update(interactions=len(rows), users=len(user_ids), items=len(item_ids))
    if len(user_ids) == 1:
        report.note("There is a single user.")
    return Dataset(
        interactions=rows.histories(len(user_ids)),
        user_ids=user_ids.rename("user_id"),
        item_ids=item_ids.rename("item_id"),
        has_timestamps=columns.time is not None,
        items=item_table,
        title=title,
        users=user_table,
        social=graph,
        kg=knowledge,
        given=rows.subsets,
        report=report.as_dict(),
    )


def _check_tables(
    items: Any, title: str | None, kg: Any, item_entity: Any, encoding: str | None, separator: str | None
) -> None:
    for name, value in (("title", title), ("encoding", encoding), ("separator", separator)):
        require_text(name, value)
    if title is not None and items is None:
        raise ConfigError(f"title={title!r} was given without a table of items.", "Pass items=... as well.")
    if (kg is None) != (item_entity is None):
        raise ConfigError(
            "A knowledge graph has two tables: kg (head, relation, tail), item_entity (item_id, entity_id).",
            "Pass the one that is missing, or neither.",
        )
