"""From tables to a `Dataset`: read, number, sort, filter, count."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from rediffuse.arguments import require_text
from rediffuse.data.dataset import Dataset
from rediffuse.data.histories import Histories
from rediffuse.data.targets import seen_before
from rediffuse.errors import ConfigError, DataError, RediffuseWarning
from rediffuse.readers import side_tables
from rediffuse.readers.adjacency import expanded
from rediffuse.readers.events import Events
from rediffuse.readers.filters import Filters
from rediffuse.readers.id_checks import MissingIds
from rediffuse.readers.report import ReadReport
from rediffuse.readers.rows import Columns, Forms, InteractionRows
from rediffuse.readers.tables import Table, read_table
from rediffuse.readers.text_files import TextFile, TextOptions
from rediffuse.readers.unused_columns import note_unused


def read_interactions(
    source: Any,
    *,
    user: str = "user_id",
    item: str = "item_id",
    time: str | None = None,
    time_format: str | None = None,
    time_unit: str | None = None,
    order: str | None = None,
    rating: str | None = None,
    event_type: str | None = None,
    weights: Mapping[str, float] | None = None,
    target_events: str | Iterable[str] | None = None,
    items: Any = None,
    title: str | None = None,
    users: Any = None,
    item_features: str | Sequence[str] | None = None,
    user_features: str | Sequence[str] | None = None,
    social: Any = None,
    kg: Any = None,
    item_entity: Any = None,
    splits: Any = None,
    k_core: int | None = None,
    min_rating: float | None = None,
    duplicates: Literal["keep", "first", "last"] = "keep",
    missing_ids: MissingIds = "refuse",
    item_separator: str | None = None,
    encoding: str | None = None,
    separator: str | None = None,
    quoting: Literal["standard", "none"] = "standard",
    header: Literal[0] | None = 0,
    decimal: Literal[".", ","] | None = None,
    format: Literal["table", "adjacency"] = "table",
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
        time_format: form of times that are text but not ISO text, for example "%d/%m/%Y" or "%d/%m/%Y %H:%M".
        time_unit: what numbers in ``time`` count since 1970: "seconds", "milliseconds", "microseconds", "nanoseconds",
            "minutes", "hours" or "days". None: the unit is inferred from their size, and the report says it.
        order: column of numbers that order the interactions of a user, instead of ``time``, or beside it to
            break ties. Where both are equal, and where neither is given, the order of rows counts.
        rating: column of numbers >= 0.
        event_type: column of types of interactions, such as view and purchase, for the next two arguments.
        weights: type -> weight, which is stored as the rating. All types need one; 0 drops the interactions.
        target_events: types that are truth in validation and test; histories keep all. None: all are truth.
        items, users: tables that describe items and users, with the id column named as in the
            interactions.
        item_features, user_features: columns of these tables that models may learn from, each with its kind (category,
            number, text or vector) or without: "brand,price,title:text", see docs/item-features.md. Kinds that are not
            given are guessed, and the report says how.
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
        missing_ids: what to do where an id of a user or item (or of a link or triple) is empty or a word for a missing
            value, such as NULL, nan or None: "refuse" the table, "drop" the row, or "keep" the word as an id.
        item_separator: what separates the items where ``item`` holds lists in text, for example "|"; "none" if such
            text is an id. None: lists in brackets and lists of integers are found and read, and the report says so.
        encoding: encoding of text files, if it is not UTF-8.
        separator: separator of text files; detected if not given.
        quoting: of text files; "none": quotes are characters like any other.
        header: 0: the first line of text files names the columns; None: there is no header, and columns are named by
            their place, from "0" (or 0). Users and items are in columns 0 and 1 unless others are named.
        decimal: what numbers of text files have before their fraction; None: a point, or a comma in files separated by
            semicolons.
        format: of ``source``; "adjacency": a text file of lines ``user item item ...``, as KGAT and LightGCN publish
            them. Each pair is an interaction.

    Raises:
        DataError: a table cannot be used; the error names file, column, first bad row and remedy.
        ConfigError: an argument has the wrong type or is out of range, or arguments do not go together.
    """
    source = expanded(source, format, user, item)
    text = TextOptions(separator, encoding, quoting, header, decimal)
    if header is None:
        user, item = (
            str(i) if name == usual else name for i, name, usual in ((0, user, "user_id"), (1, item, "item_id"))
        )
        user, item, time, order, rating, event_type = map(_by_place, (user, item, time, order, rating, event_type))
    columns, filters = Columns(user, item, time, order, rating, event_type), Filters(min_rating, duplicates, k_core)
    columns.check()
    events = Events.of(event_type, weights, target_events, rating)
    filters.check(rating is not None or weights is not None)
    _check_tables(items, title, kg, item_entity, encoding, separator)
    forms = Forms(time_format, time_unit, missing_ids, item_separator)
    forms.check()
    opened: list[Table] = []

    def open_table(source: Any, what: str, *wanted: str, insist: bool = False) -> Table:
        # Tables beside the interactions need not have the same separator.
        opened.append(read_table(source, what, wanted=wanted, text=text, insist=insist))
        return opened[-1]

    table = open_table(source, "interactions", *columns.by_role().values(), insist=True)
    beside = {
        what: open_table(given, what, *wanted)
        for what, given, wanted in (
            ("items", items, (item,)),
            ("users", users, (user,)),
            ("social", social, ()),
            ("kg", kg, ()),
            ("item_entity", item_entity, (item,)),
            ("splits", splits, (user, item, "split")),
        )
        if given is not None
    }
    _refuse_unused(opened, text)
    report = ReadReport()
    if time is None and order is None and "timestamp" in table.columns:
        columns = replace(columns, time="timestamp")
        note = "The column 'timestamp' was used as the time of interactions, as no time or order column was named."
        report.note(note)
        warnings.warn(f"{note} Pass time='timestamp' to say so.", RediffuseWarning, stacklevel=2)
    for name, value in (("time_format", time_format), ("time_unit", time_unit)):
        if value is not None and columns.time is None:
            raise ConfigError(f"{name}={value!r} was given without a time column.", 'Name it: time="date".')
    rows = InteractionRows(table, columns, report, events, forms)
    note_unused(table, columns, min_rating is not None, report)
    if rows.sort():
        by = " and ".join(filter(None, ("by user", columns.time, columns.order)))
        report.note(f"Rows were sorted {by}; rows that are equal in this keep their order.")
    if "splits" in beside:
        rows.subsets = side_tables.match_splits(beside["splits"], columns, rows, report)
    filters.apply(rows, report)
    rows.drop_unused_ids()
    user_ids, item_ids = rows.user_ids, rows.item_ids
    if len(item_ids) < 2:
        raise DataError(
            f"{table.name} has a single item, {item_ids[0]!r}, after filtering.",
            "There is nothing to choose from; bring interactions with at least two items, or filter less.",
        )

    graph = item_table = user_table = knowledge = None
    if "social" in beside:
        graph, user_ids = side_tables.read_social(beside["social"], user_ids, report, missing_ids)
    if "items" in beside:
        item_table = side_tables.describe(beside["items"], item, "item_id", item_ids, report, missing_ids)
        if title is None and "title" in item_table.columns:
            title = "title"
        if title is not None:
            item_table = side_tables.with_title(beside["items"], item_table, title)
    if "users" in beside:
        user_table = side_tables.describe(beside["users"], user, "user_id", user_ids, report, missing_ids)
    if "kg" in beside:
        knowledge = side_tables.read_knowledge(beside["kg"], beside["item_entity"], item, item_ids, report, missing_ids)

    interactions = rows.histories(len(user_ids))
    note_targets(interactions, report)
    report.values.update(interactions=len(rows), users=len(user_ids), items=len(item_ids))
    if len(user_ids) == 1:
        report.note("There is a single user.")
    made = Dataset(
        interactions=interactions,
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
    return made.with_features(item_features, user_features)


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


def _by_place(name: Any) -> Any:
    """The name of a column of a table without header; places may be integers."""
    return str(name) if isinstance(name, int) and not isinstance(name, bool) else name


def _refuse_unused(tables: list[Table], options: TextOptions) -> None:
    """Raise if no table is a text file, or none has the separator that was given."""
    text = [file for table in tables for file in table.files if isinstance(file, TextFile)]
    for name in ("encoding", "quoting", "header", "decimal"):
        value = getattr(options, name)
        if value != getattr(TextOptions(), name) and not text:
            raise ConfigError(
                f"{name}={value!r} was given, and none of the tables is a text file.",
                "Leave it out: it is about text files.",
            )
    separator = options.separator
    if separator is not None and not any(file.separator == separator for file in text):
        found = ", ".join(sorted({repr(file.separator) for file in text}))
        raise ConfigError(
            f"separator={separator!r} was given, and "
            + (f"the text files are separated by {found}." if text else "none of the tables is a text file."),
            "Leave it out: separators are detected, and only text files have one.",
        )


def note_targets(interactions: Histories, report: ReadReport) -> None:
    """Note how many interactions are targets, and how many of them are about an item that the user knows."""
    target = interactions.target
    if target is None:
        return
    seen, total = int((seen_before(interactions) & target).sum()), int(target.sum())
    report.values["target_interactions_seen"] = seen
    note = f"{total:,} of {len(target):,} interactions are targets: only these are truth in validation and test."
    if seen:
        note += (
            f" {seen:,} of them ({seen / total:.0%}) are about an item that the user had an earlier interaction with; "
            "where seen items are filtered, these cannot be predicted."
        )
    report.note(note)
