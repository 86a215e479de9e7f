"""From tables to a `Dataset`: number, sort, filter, count."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rediffuse.data.dataset import Dataset
from rediffuse.data.histories import BLOCK, Histories, row_blocks
from rediffuse.errors import ConfigError, DataError, RediffuseWarning, did_you_mean
from rediffuse.readers import columns as read
from rediffuse.readers import filters, side_tables
from rediffuse.readers.columns import Pieces
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
    a glob of such files, a list of paths, or a dataframe (polars, pandas, pyarrow, and whatever else
    narwhals knows). docs/data.md says what is accepted, what is dropped and counted, and what is refused.

    Args:
        source: table of interactions, one event per row.
        user, item: columns of ids, integers or strings.
        time: column of timestamps. None: a column called ``timestamp`` is used if there is one, with a
            warning.
        order: column of numbers that order the events of a user, instead of ``time``, or beside it to
            break ties. Where both are equal, and where neither is given, the order of rows counts.
        rating: column of numbers >= 0.
        items, users: tables that describe items and users, with the id column named as in the
            interactions.
        title: column of ``items`` with a readable name; a column called ``title`` is found by itself.
        social: table of directed links: source, target.
        kg: table of triples: head, relation, tail. ``item_entity`` links items to entities: item_id,
            entity_id.
        splits: table of user, item, split ("train", "valid", "test") and, if a pair occurs repeatedly,
            the time or order column; and ``scheme``, if it holds several splits.
        min_rating: drop events rated lower. Applied first.
        duplicates: of repeated events of a user with an item, keep all, the first or the last. Applied
            second.
        k_core: drop users and items with fewer events, until none is left to drop. Applied last.
        encoding: of text files, if it is not UTF-8.
        separator: of text files; found by itself if not given.

    Raises:
        DataError: a table cannot be used; the error names file, column, first bad row and remedy.
        ConfigError: an option is out of range, or options do not go together.
    """
    _check_options(user, item, rating, items, title, kg, item_entity, k_core, min_rating, duplicates)
    wanted = [name for name in (user, item, time, order, rating) if name is not None]
    table = read_table(source, "interactions", wanted=wanted, separator=separator, encoding=encoding)
    notes: list[str] = []
    report: dict[str, Any] = {}
    if time is None and order is None and "timestamp" in table.columns:
        time = "timestamp"
        notes.append("The column 'timestamp' was taken for the time of events, as no time or order column was named.")
        warnings.warn(f"{notes[-1]} Pass time='timestamp' to say so.", RediffuseWarning, stacklevel=3)

    events = _Events.read(table, user, item, time, order, rating, report)
    user_ids, item_ids = events.user_ids, events.item_ids
    report["rows"] = len(events.users)
    if report.get("time_unit", "seconds") != "seconds":
        notes.append(f"Times in column {time!r} were read as {report['time_unit']}.")
    if events.sort():
        by = " and ".join(filter(None, ("by user", time, order)))
        notes.append(f"Rows were sorted {by}; rows that are equal in this keep their order.")

    def beside(source: Any, what: str, *wanted: str) -> Table:
        # Tables that come with the interactions need not have the same separator.
        return read_table(source, what, wanted=wanted, separator=separator, encoding=encoding, insist=False)

    if splits is not None:
        ordering = [name for name in (order, time, "position", "timestamp") if name is not None]
        events.parts = side_tables.match_splits(
            beside(splits, "splits", user, item, "split"),
            user,
            item,
            ordering,
            events.users,
            events.items,
            user_ids,
            item_ids,
            report,
            notes,
        )

    _filter(events, min_rating, duplicates, k_core, report, notes)
    user_ids = user_ids.gather(events.compact("users", len(user_ids)))
    item_ids = item_ids.gather(events.compact("items", len(item_ids)))
    if len(item_ids) < 2:
        raise DataError(
            f"{table.name} has a single item, {item_ids[0]!r}, after filtering.",
            "There is nothing to choose from; bring events with at least two items, or filter less.",
        )

    graph = item_table = user_table = knowledge = None
    if social is not None:
        graph, user_ids = side_tables.read_social(beside(social, "social"), user_ids, report, notes)
    if items is not None:
        other = beside(items, "items", item)
        item_table = side_tables.describe(other, item, "item_id", item_ids, report, notes)
        if title is None and "title" in item_table.columns:
            title = "title"
        if title is not None:
            item_table = side_tables.with_title(other, item_table, title)
    if users is not None:
        user_table = side_tables.describe(beside(users, "users", user), user, "user_id", user_ids, report, notes)
    if kg is not None:
        links = beside(item_entity, "item_entity", item)
        knowledge = side_tables.read_knowledge(beside(kg, "kg"), links, item, item_ids, report, notes)

    report.update(interactions=len(events.users), users=len(user_ids), items=len(item_ids))
    if len(user_ids) == 1:
        notes.append("There is a single user.")
    return Dataset(
        interactions=events.histories(len(user_ids)),
        user_ids=user_ids.rename("user_id"),
        item_ids=item_ids.rename("item_id"),
        has_timestamps=time is not None,
        items=item_table,
        title=title,
        users=user_table,
        social=graph,
        kg=knowledge,
        given=events.parts,
        report={**report, "notes": notes},
    )


class _Events:
    """The interactions while they are read: parallel arrays (rows,), dropped once they are not needed."""

    def __init__(
        self,
        users: NDArray[np.int32],
        items: NDArray[np.int32],
        user_ids: pl.Series,
        item_ids: pl.Series,
        times: NDArray[Any] | None,
        ratings: NDArray[np.float32] | None,
        keys: list[NDArray[Any]],
    ) -> None:
        self.users, self.items, self.times, self.ratings = users, items, times, ratings
        self.user_ids, self.item_ids = user_ids, item_ids
        self.keys = keys  # what orders the events of a user, most significant first
        self.parts: dict[str, NDArray[np.int8]] = {}

    @classmethod
    def read(
        cls,
        table: Table,
        user: str,
        item: str,
        time: str | None,
        order: str | None,
        rating: str | None,
        report: dict[str, Any],
    ) -> _Events:
        roles = {"user": user, "item": item, "time": time, "order": order, "rating": rating}
        named = {role: table.need(name, role) for role, name in roles.items() if name is not None}
        table = table.in_pieces(named.values())

        def column(role: str) -> Pieces:
            return Pieces(named[role], table, role)

        (users,), user_ids = read.number_ids(column("user"))
        (items,), item_ids = read.number_ids(column("item"))
        times, keys = None, []
        if time is not None:
            parsed = read.times(column("time"))
            times, keys = parsed.seconds, [parsed.key]
            report["time_unit"] = parsed.unit
        if order is not None:
            keys.append(read.order(column("order")))
            times = keys[-1] if times is None else times
        ratings = None if rating is None else read.ratings(column("rating"))
        return cls(users, items, user_ids, item_ids, times, ratings, keys)

    def sort(self) -> bool:
        """Sort by user, then time; rows equal in both keep their order. Returns whether anything moved."""
        offsets, order = filters.grouped(self.users, len(self.user_ids))
        for first, last in row_blocks(offsets):
            rows = order[offsets[first] : offsets[last]]
            if self.keys:
                rows[:] = rows[_order(self.users[rows], [key[rows] for key in self.keys])]
        self.keys = []
        moved = bool((order[1:] < order[:-1]).any())
        if moved:
            self._select(order)
        return moved

    def keep(self, mask: NDArray[np.bool_]) -> int:
        """Drop what is not under the mask; returns how many events that were."""
        dropped = len(mask) - int(mask.sum())
        if dropped:
            self._select(mask)
        return dropped

    def _select(self, index: NDArray[Any]) -> None:
        self.users = _taken(self.users, index)
        self.items = _taken(self.items, index)
        self.times = None if self.times is None else _taken(self.times, index)
        self.ratings = None if self.ratings is None else _taken(self.ratings, index)
        self.parts = {scheme: _taken(part, index) for scheme, part in self.parts.items()}

    def compact(self, which: Literal["users", "items"], count: int) -> NDArray[np.int64]:
        """Renumber users or items without gaps; returns the old number of each."""
        numbers: NDArray[np.int32] = getattr(self, which)
        present = np.bincount(numbers, minlength=count) > 0
        if not present.all():
            setattr(self, which, (np.cumsum(present, dtype=np.int32) - 1)[numbers])
        return np.flatnonzero(present)

    def offsets(self, num_users: int) -> NDArray[np.int64]:
        """(num_users + 1,) where the events of each user begin, once they are sorted."""
        return np.concatenate(([0], np.cumsum(np.bincount(self.users, minlength=num_users), dtype=np.int64)))

    def histories(self, num_users: int) -> Histories:
        return Histories(self.offsets(num_users), self.items, self.times, self.ratings)


def _order(users: NDArray[np.int32], keys: list[NDArray[Any]]) -> NDArray[np.int64]:
    """A stable sort by user and keys, for users that are in order already."""
    low, high = keys[0].min(), keys[0].max()
    span = int(high) - int(low) + 1
    if (
        len(keys) > 1
        or keys[0].dtype.kind != "i"
        or span * (int(users[-1]) - int(users[0]) + 1) > np.iinfo(np.int64).max
    ):
        return np.lexsort((*reversed(keys), users))
    # One number holds both, and such numbers are nearly in order: ten times as fast.
    return np.argsort((users.astype(np.int64) - users[0]) * span + (keys[0] - low), kind="stable")


def _taken(values: NDArray[Any], index: NDArray[Any]) -> NDArray[Any]:
    """``values[index]``; whole numbers are turned into numpy's own a block at a time."""
    if index.dtype == bool:
        return values[index]
    taken = np.empty(len(index), dtype=values.dtype)
    for start in range(0, len(index), BLOCK):
        taken[start : start + BLOCK] = values[index[start : start + BLOCK]]
    return taken


def _filter(
    events: _Events,
    min_rating: float | None,
    duplicates: Literal["keep", "first", "last"],
    k_core: int | None,
    report: dict[str, Any],
    notes: list[str],
) -> None:
    if min_rating is not None and events.ratings is not None:
        highest = float(events.ratings.max())
        dropped = events.keep(filters.at_least(events.ratings, min_rating))
        report["dropped_below_min_rating"] = dropped
        notes.append(f"{dropped:,} events rated below {min_rating} were dropped.")
        _refuse_empty(events, f"min_rating={min_rating}", f"The highest rating is {highest:g}: lower min_rating.")
    offsets = events.offsets(len(events.user_ids))
    runs = [slice(offsets[first], offsets[last]) for first, last in row_blocks(offsets)]
    repeated = sum(filters.count_repeats(events.users[run], events.items[run]) for run in runs)
    report["repeated_events"] = repeated
    if repeated and duplicates != "keep":
        kept = [filters.unique_pairs(events.users[run], events.items[run], duplicates) for run in runs]
        report["dropped_duplicates"] = events.keep(np.concatenate(kept))
        notes.append(f"{repeated:,} repeated events of a user with an item were dropped; the {duplicates} was kept.")
    elif repeated:
        notes.append(f"{repeated:,} events repeat a user and item; they were kept.")
    if k_core is not None:
        users, items = (np.count_nonzero(np.bincount(numbers)) for numbers in (events.users, events.items))
        dropped = events.keep(filters.k_core(events.users, events.items, k_core))
        report["dropped_by_k_core"] = dropped
        _refuse_empty(events, f"k_core={k_core}", "Lower k_core.")
        users -= np.count_nonzero(np.bincount(events.users))
        items -= np.count_nonzero(np.bincount(events.items))
        notes.append(f"The {k_core}-core dropped {dropped:,} events, {users:,} users and {items:,} items.")


def _refuse_empty(events: _Events, filter_: str, remedy: str) -> None:
    if not len(events.users):
        raise DataError(f"No events are left after {filter_}.", remedy)


def _check_options(
    user: str,
    item: str,
    rating: str | None,
    items: Any,
    title: str | None,
    kg: Any,
    item_entity: Any,
    k_core: int | None,
    min_rating: float | None,
    duplicates: str,
) -> None:
    if user == item:
        raise ConfigError(f"User and item are both column {user!r}.", "Name two columns.")
    if duplicates not in ("keep", "first", "last"):
        raise ConfigError(
            f"duplicates was given {duplicates!r}.", did_you_mean(str(duplicates), ["keep", "first", "last"])
        )
    if k_core is not None and (not isinstance(k_core, int) or k_core < 1):
        raise ConfigError(f"k_core was given {k_core!r}.", "It is a whole number from 1 on, for example 5.")
    if min_rating is not None and rating is None:
        raise ConfigError("min_rating was given without a rating column.", 'Name the column: rating="rating".')
    if title is not None and items is None:
        raise ConfigError(f"title={title!r} was given without a table of items.", "Pass items=... as well.")
    if (kg is None) != (item_entity is None):
        raise ConfigError(
            "A knowledge graph has two tables: kg (head, relation, tail), item_entity (item_id, entity_id).",
            "Pass the one that is missing, or neither.",
        )
