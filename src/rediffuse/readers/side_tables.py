"""Tables beside the interactions: descriptions of items and users, both graphs, and given splits.

Real data are messy here: what cannot be used is dropped, counted in the report and noted in a sentence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rediffuse.data.dataset import KnowledgeGraph, SocialGraph
from rediffuse.data.split import TEST, TRAIN, UNUSED, VALID
from rediffuse.errors import DataError
from rediffuse.readers.columns import (
    Column,
    Pieces,
    checked_ids_like,
    ids_like,
    joined,
    lookup,
    number_ids,
    parse_numbers,
)
from rediffuse.readers.id_checks import MissingIds, without_missing
from rediffuse.readers.report import ReadReport
from rediffuse.readers.tables import DECIMAL_COMMA, Table

if TYPE_CHECKING:
    from rediffuse.readers.rows import Columns, InteractionRows

_SUBSETS = {"train": TRAIN, "valid": VALID, "validation": VALID, "val": VALID, "dev": VALID, "test": TEST}
# The first name is ours, the second RecBole's.
_ALIASES = {
    "source": ("source", "source_id"),
    "target": ("target", "target_id"),
    "head": ("head", "head_id"),
    "relation": ("relation", "relation_id"),
    "tail": ("tail", "tail_id"),
    "entity": ("entity_id", "entity"),
}


def describe(
    table: Table,
    column: str,
    name: str,
    ids: pl.Series,
    report: ReadReport,
    missing_ids: MissingIds = "refuse",
) -> pl.DataFrame:
    """A table with row i about id i: rows of unknown ids are dropped, ids without a row filled with nulls.

    Args:
        table: the item or user table.
        column: its id column, as in the interactions; ``name`` (item_id or user_id) is tried as well.
        name: of the id column in the result.
        ids: position = number.
        report: what is dropped is entered here.
    """
    kind = name.removesuffix("_id")
    column = _find(table, (column, name), kind, 0)
    table, frame = _with_ids(table, [column], missing_ids, f"rows_of_the_{kind}_table", report, table.columns)
    numbers = lookup(ids_like(Column(frame[column], table, kind), ids), ids)
    known = numbers >= 0
    first = np.unique(numbers[known], return_index=True)[1]
    rows = np.flatnonzero(known)[first]
    report.count(
        f"{kind}s_table_unknown",
        int((~known).sum()),
        f"rows of the {kind} table are about {kind}s without interactions and were dropped",
    )
    report.count(
        f"{kind}s_table_repeated",
        int(known.sum()) - len(rows),
        f"rows of the {kind} table repeat "
        f"{'an' if kind == 'item' else 'a'} {kind} and were dropped; the first was kept",
    )
    report.count(
        f"{kind}s_undescribed",
        len(ids) - len(rows),
        f"{kind}s have no row in the {kind} table; their fields are empty",
    )
    _check_meeting(
        table,
        Meeting(
            f"{kind}s of the interactions", f"{kind}s of the {kind} table", f"{kind}s have a row in the {kind} table"
        ),
        (len(rows), len(ids)),
        (frame[column], ids),
        report,
    )
    row_of = np.full(len(ids), -1, dtype=np.int64)
    row_of[numbers[rows]] = rows
    index = pl.select(pl.when(pl.lit(pl.Series(row_of)) >= 0).then(pl.lit(pl.Series(row_of)))).to_series()
    others = [_typed(table, frame[c], report) for c in frame.columns if c not in (column, name)]
    return pl.DataFrame([ids.rename(name), *(series.gather(index) for series in others)])


def _typed(table: Table, values: pl.Series, report: ReadReport) -> pl.Series:
    """A column that describes: numbers if an atomic file declares them as float; other text stays text ("007").

    Numbers get a point for their decimal comma where the caller said that they have one.
    """
    if values.dtype != pl.String:
        return values
    known = values.drop_nulls()
    comma = known.str.contains(DECIMAL_COMMA)
    with_commas = bool(comma.any() and (comma | known.str.contains(r"^[+-]?\d+$")).all())
    said = table.decimal == ","
    if table.types.get(values.name) != "float":
        if with_commas and said:
            return table.pointed(values)
        if with_commas and table.separator == ";" and table.decimal is None:
            report.note(
                f"Column {values.name!r} of {table.name} looks like numbers with a decimal comma, such as "
                f"{known.filter(comma)[0]!r}, and was read as text. Pass decimal=',' (--decimal ,) if it holds numbers."
            )
        return values
    numbers = parse_numbers(table.pointed(values)).cast(pl.Float64)
    lost = numbers.is_null() & values.is_not_null()
    if lost.any():
        hint = "; pass decimal=',' (--decimal ,) if these are decimal commas" if with_commas and not said else ""
        report.warn(
            f"{int(lost.sum()):,} values of column {values.name!r} of {table.name} are no numbers, such as "
            f"{values.filter(lost)[0]!r}, and are empty now{hint}."
        )
    return numbers


def with_title(table: Table, frame: pl.DataFrame, title: str) -> pl.DataFrame:
    """``frame`` with its title column as String, without spaces around it."""
    table.need(title, "title")
    try:
        return frame.with_columns(pl.col(title).cast(pl.String).str.strip_chars())
    except pl.exceptions.PolarsError:
        raise DataError(
            f"{table.name}: column {title!r} (title) holds values of type {frame[title].dtype}.",
            "A title is text: cast the column, or name another.",
        ) from None


def read_social(
    table: Table, user_ids: pl.Series, report: ReadReport, missing_ids: MissingIds = "refuse"
) -> tuple[SocialGraph, pl.Series]:
    """Links as given, in their direction; and the user ids, followed by those of users who only have links."""
    names = [_find(table, _ALIASES[end], end, place) for place, end in enumerate(("source", "target"))]
    table, frame = _with_ids(table, names, missing_ids, "social_links", report)
    ends = [
        Column(frame[name], table, role, keep_words=missing_ids == "keep")
        for name, role in zip(names, ("source", "target"), strict=True)
    ]
    ids = [checked_ids_like(end, user_ids) for end in ends]
    for end, values in zip(ends, ids, strict=True):
        end.refuse_first(
            values.is_null(),
            "is {}, and the users of the interactions are integers",
            "Use the same ids in both tables.",
        )
    linked = pl.concat([values.rename("id") for values in ids]).unique()
    new = linked.filter(lookup(linked, user_ids) < 0).sort()
    _check_meeting(
        table,
        Meeting(
            "users of the interactions", "users of the social links", "users of the social links have interactions"
        ),
        (len(linked) - len(new), len(linked)),
        (frame[names[0]], user_ids),
        report,
    )
    all_ids = pl.concat([user_ids.rename("id"), new])
    source, target = (lookup(values, all_ids) for values in ids)
    keep = source != target
    report.count(
        "social_self_links",
        int((~keep).sum()),
        "social links from a user to itself were dropped",
    )
    keep, repeated = _first_of(keep, source, target)
    report.count("social_repeated", repeated, "repeated social links were dropped")
    report.count(
        "users_without_interactions",
        len(new),
        "users have social links but no interactions; they come after the others",
    )
    report.values["social_links"] = int(keep.sum())
    return SocialGraph(source[keep], target[keep]), all_ids


def read_knowledge(
    table: Table,
    links: Table,
    item: str,
    item_ids: pl.Series,
    report: ReadReport,
    missing_ids: MissingIds = "refuse",
) -> KnowledgeGraph:
    """Triples and the links of items to entities; entities are those of triples and of kept links."""
    names = [_find(table, _ALIASES[role], role, place) for place, role in enumerate(("head", "relation", "tail"))]
    keep_words = missing_ids == "keep"
    table, frame = _with_ids(table, names, missing_ids, "triples", report)
    heads, relation_column, tails = (
        Column(frame[name], table, role, keep_words=keep_words)
        for name, role in zip(names, ("head", "relation", "tail"), strict=True)
    )
    item = _find(links, (item, "item_id"), "item", 0)
    entity = _find(links, _ALIASES["entity"], "entity", 1)
    links, pairs = _with_ids(links, [item, entity], missing_ids, "links_to_entities", report)
    items = lookup(ids_like(Column(pairs[item], links, "item"), item_ids), item_ids)
    known = items >= 0
    report.count(
        "item_entity_unknown",
        int((~known).sum()),
        "links to entities are about items without interactions and were dropped",
    )
    _check_meeting(
        links,
        Meeting("items of the interactions", "items of the links", "items have a link to an entity"),
        (len(np.unique(items[known])), len(item_ids)),
        (pairs[item], item_ids),
        report,
    )
    entities = Column(pairs[entity], links, "entity", keep_words=keep_words)
    (head, tail, linked), entity_ids = number_ids(heads, tails, entities)
    (relation,), relation_ids = number_ids(relation_column)
    keep = head != tail
    report.count("kg_self_links", int((~keep).sum()), "triples from an entity to itself were dropped")
    keep, repeated = _first_of(keep, head, relation, tail)
    report.count("kg_repeated", repeated, "repeated triples were dropped")
    known, repeated = _first_of(known, items, linked)
    in_triples = np.zeros(len(entity_ids), dtype=bool)
    in_triples[head[keep]] = in_triples[tail[keep]] = True
    leads = known & in_triples[linked]
    linked_items, leading_items = len(np.unique(items[known])), len(np.unique(items[leads]))
    nowhere = linked_items - leading_items
    report.count("kg_items_linked_nowhere", nowhere, "items are linked only to entities without a triple")
    _check_meeting(
        links,
        Meeting("entities of the triples", "entities of the links", "linked items lead to an entity with a triple"),
        (leading_items, linked_items),
        (pairs[entity], heads.values),
        report,
    )
    report.count("item_entity_repeated", repeated, "repeated links of an item to an entity were dropped")
    report.values.update(
        kg_triples=int(keep.sum()),
        kg_linked_items=leading_items,
        kg_unlinked_entities=len(entity_ids) - len(np.unique(linked[known])),
    )
    return KnowledgeGraph(
        head[keep],
        relation[keep],
        tail[keep],
        entity_ids.rename("entity_id"),
        relation_ids.rename("relation_id"),
        np.stack([items[known], linked[known]], axis=1),
    )


def match_splits(
    table: Table, columns: Columns, rows: InteractionRows, report: ReadReport
) -> dict[str, NDArray[np.int8]]:
    """The subset of every interaction by scheme.

    The n-th row of a user and item in the splits table is about their n-th interaction, both in the order of the first
    of these columns that the splits table has: order, time, "position", "timestamp"; else in the order of rows.

    Args:
        table: the splits table.
        columns: columns of the interactions.
        rows: the interactions, in order of user and time.
        report: what does not match is entered here.

    Raises:
        DataError: a subset is not train, valid or test, or no row matches an interaction.
    """
    user = _find(table, (columns.user, "user_id"), "user", 0)
    item = _find(table, (columns.item, "item_id"), "item", 1)
    subset_name = _find(table, ("split",), "subset", 2)
    scheme_name = "scheme" if "scheme" in table.columns else None
    ordering = (columns.order, columns.time, "position", "timestamp") if table.has_header else ()
    order = next((name for name in ordering if name in table.columns), None)
    table = table.in_pieces(c for c in (user, item, subset_name, scheme_name, order) if c is not None)

    def subsets_of(piece: Column) -> NDArray[np.int8]:
        names = piece.complete().cast(pl.String).str.to_lowercase()
        piece.refuse_first(~names.is_in(list(_SUBSETS)), "is {}", "Subsets are train, valid and test.")
        return names.replace_strict(_SUBSETS, return_dtype=pl.Int8).to_numpy()

    subset = joined(Pieces(subset_name, table, "subset"), subsets_of, np.int8)
    of_user, of_item = (
        joined(Pieces(name, table, role), lambda piece, ids=ids: lookup(ids_like(piece, ids), ids), np.int32)
        for name, role, ids in ((user, "user", rows.user_ids), (item, "item", rows.item_ids))
    )
    rank = np.zeros(table.rows, np.int8) if order is None else _rank(table.collect([order])[order])
    schemes = {"given": 0} if scheme_name is None else {}

    def schemes_of(piece: Column) -> NDArray[np.int32]:
        names = piece.complete().cast(pl.String)
        for name in names.unique(maintain_order=True):
            schemes.setdefault(name, len(schemes))
        return names.replace_strict(schemes, return_dtype=pl.Int32).to_numpy()

    of_scheme = np.zeros(table.rows, np.int32)
    if scheme_name is not None:
        of_scheme = joined(Pieces(scheme_name, table, "scheme"), schemes_of, np.int32)

    num_items = len(rows.item_ids)
    pairs = rows.users.astype(np.int64) * num_items + rows.items
    nth = _occurrence(pairs)
    most = int(nth.max()) + 1
    keys = pairs * most + nth
    sorter = np.argsort(keys)
    keys = keys[sorter]
    given: dict[str, NDArray[np.int8]] = {}
    for scheme, number in schemes.items():
        found = np.flatnonzero((of_scheme == number) & (of_user >= 0) & (of_item >= 0))
        found = found[np.argsort(rank[found], kind="stable")]
        wanted = of_user[found].astype(np.int64) * num_items + of_item[found]
        nth = _occurrence(wanted)
        found, wanted = found[nth < most], (wanted * most + nth)[nth < most]
        at = np.searchsorted(keys, wanted)
        hit = at < len(keys)
        hit[hit] = keys[at[hit]] == wanted[hit]
        if not hit.any():
            raise DataError(
                f"{table.name}: no row of the split {scheme!r} matches an interaction.",
                "Use the same user and item ids in both tables.",
            )
        subsets = np.full(len(pairs), UNUSED, dtype=np.int8)
        subsets[sorter[at[hit]]] = subset[found[hit]]
        given[scheme] = subsets
        report.count(
            f"split_{scheme}_unmatched",
            int((of_scheme == number).sum()) - int(hit.sum()),
            f"rows of the split {scheme!r} match no interaction and were dropped",
        )
        if 2 * int(hit.sum()) < int((of_scheme == number).sum()):
            report.warn(f"Fewer than half of the rows of the split {scheme!r} match an interaction.")
        report.count(
            f"split_{scheme}_unused",
            int((subsets == UNUSED).sum()),
            f"interactions are in no subset of the split {scheme!r}",
        )
    return given


def _rank(values: pl.Series) -> NDArray[Any]:
    """(rows,) the rank of each value among all: numbers in text count as numbers, ISO times sort as text."""
    numbers = parse_numbers(values) if values.dtype == pl.String else values
    return (values if numbers.null_count() else numbers).rank("dense").fill_null(0).to_numpy()


def _occurrence(key: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) how many equal entries come before each."""
    order = np.argsort(key, kind="stable")
    new = np.ones(len(key), dtype=bool)
    new[1:] = key[order][1:] != key[order][:-1]
    index = np.arange(len(key))
    count = np.empty(len(key), dtype=np.int64)
    count[order] = index - np.maximum.accumulate(np.where(new, index, 0))
    return count


@dataclass(frozen=True)
class Meeting:
    """Words about two tables that share ids."""

    here: str
    there: str
    met: str


def _check_meeting(
    table: Table, words: Meeting, met: tuple[int, int], examples: tuple[pl.Series, pl.Series], report: ReadReport
) -> None:
    """Refuse tables of which nothing meets, and warn if less than half does.

    Args:
        table: the table beside the interactions.
        words: what the two sides are.
        met: how many meet, of how many.
        examples: ids of ``table``, and those that they should be among.

    Raises:
        DataError: none meets; the error has an id of each side.
    """
    count, total = met
    there, here = examples
    if not count:
        raise DataError(
            f"{table.name}: none of the {words.there} is among the {words.here}. The first is {there[0]!r}, and the "
            f"{words.here} have ids such as {here[0]!r}.",
            "Use the same ids in both tables, name the right columns, or leave the table out.",
        )
    if 2 * count < total:
        report.warn(f"{table.name}: only {count:,} of {total:,} {words.met} ({count / total:.0%}).")


def _with_ids(
    table: Table,
    names: list[str],
    missing_ids: MissingIds,
    what: str,
    report: ReadReport,
    columns: list[str] | None = None,
) -> tuple[Table, pl.DataFrame]:
    """The table, and some columns; without rows that lack an id in ``names``, if these are to be dropped.

    Args:
        what: what a row is, as in `without_missing`.
        columns: None: ``names``.
    """
    columns = names if columns is None else columns
    if missing_ids == "drop":
        table = without_missing(table.in_pieces(columns), names, what, report)
    return table, table.collect(columns)


def _first_of(keep: NDArray[np.bool_], *columns: NDArray[np.int32]) -> tuple[NDArray[np.bool_], int]:
    """``keep`` without rows that repeat an earlier kept one, and how many those were."""
    rows = np.flatnonzero(keep)
    frame = pl.DataFrame({str(i): column[rows] for i, column in enumerate(columns)})
    first = np.zeros(len(keep), dtype=bool)
    first[rows[frame.select(pl.struct(pl.all()).is_first_distinct()).to_series().to_numpy()]] = True
    return first, int(keep.sum() - first.sum())


def _find(table: Table, names: tuple[str, ...], role: str, place: int) -> str:
    """The column under one of its names, or of a table without header the one at ``place``.

    Raises:
        DataError: there is none.
    """
    if not table.has_header:
        return table.need(str(place), role)
    found = next((name for name in names if name in table.columns), None)
    return table.need(names[0], role, fixed=True) if found is None else found
