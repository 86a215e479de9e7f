"""Interactions while they are read: from the columns of a table to histories."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from rediffuse.arguments import require_text, wrong_type
from rediffuse.data.histories import BLOCK, Histories, index_type, row_blocks
from rediffuse.errors import ConfigError, DataError, did_you_mean
from rediffuse.readers import columns as read
from rediffuse.readers import id_checks
from rediffuse.readers.columns import Pieces
from rediffuse.readers.events import Events
from rediffuse.readers.item_lists import one_row_per_item
from rediffuse.readers.report import ReadReport
from rediffuse.readers.tables import Table
from rediffuse.readers.time_notes import note_times


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a table of interactions, as arguments of `rediffuse.read_interactions`."""

    user: str
    item: str
    time: str | None = None
    order: str | None = None
    rating: str | None = None
    event_type: str | None = None

    def check(self) -> None:
        """Raise unless they are names, and users and items have a column each.

        Raises:
            ConfigError: they are not.
        """
        for role, name in asdict(self).items():
            if not isinstance(name, str) and not (name is None and role in ("time", "order", "rating", "event_type")):
                raise wrong_type(
                    role,
                    name,
                    "the name of a column",
                    f'Name a column: {role}="{role}". Names that are numbers become text: '
                    "df.columns = df.columns.astype(str).",
                )
        if self.user == self.item:
            raise ConfigError(f"User and item are both column {self.user!r}.", "Name two columns.")

    def by_role(self) -> dict[str, str]:
        """Role -> column, for the roles that have one."""
        return {role: name for role, name in asdict(self).items() if name is not None}


@dataclass(frozen=True)
class Forms:
    """How values are written, as arguments of `rediffuse.read_interactions`."""

    time_format: str | None = None
    time_unit: str | None = None
    missing_ids: id_checks.MissingIds = "refuse"
    item_separator: str | None = None

    def check(self) -> None:
        """Raise unless they are in range.

        Raises:
            ConfigError: they are not.
        """
        require_text("time_format", self.time_format)
        require_text("item_separator", self.item_separator)
        if self.item_separator == "":
            raise ConfigError("item_separator is empty.", 'Name what is between items, for example item_separator="|".')
        id_checks.check_missing_ids(self.missing_ids)
        if self.time_unit is not None and self.time_unit not in read.TIME_UNITS:
            raise ConfigError(f"time_unit was given {self.time_unit!r}.", did_you_mean(self.time_unit, read.TIME_UNITS))
        if self.time_unit is not None and self.time_format is not None:
            raise ConfigError(
                "Both time_unit and time_format were given.", "Numbers have a unit, text has a format: leave out one."
            )


class InteractionRows:
    """Interactions as parallel arrays (rows,), which are dropped once they are not needed.

    Attributes:
        users, items: int32 numbers, positions in ``user_ids`` and ``item_ids``.
        times: seconds since the epoch or an order column, or None.
        ratings: float32, or None.
        targets: whether each may be truth in validation and test; None: all may.
        weighted: whether each has a weight above 0; None: there are no weights.
        keys: what orders the interactions of a user, most significant first.
        subsets: scheme -> int8 subset, of given splits.
    """

    def __init__(
        self,
        table: Table,
        columns: Columns,
        report: ReadReport,
        events: Events | None = None,
        forms: Forms | None = None,
    ) -> None:
        """Read and check the columns.

        Raises:
            DataError: a column is missing, or a value cannot be used.
        """
        events, forms = events or Events(), forms or Forms()
        named = {role: table.need(name, role) for role, name in columns.by_role().items()}
        declared = table.types
        table = table.in_pieces(named.values())
        table = one_row_per_item(table, named, forms.item_separator, declared, report)
        if forms.missing_ids == "drop":
            table = id_checks.without_missing(table, [named["user"], named["item"]], "interactions", report)
        keep_words = forms.missing_ids == "keep"
        (self.users,), self.user_ids = read.number_ids(Pieces(named["user"], table, "user", keep_words))
        (self.items,), self.item_ids = read.number_ids(Pieces(named["item"], table, "item", keep_words))
        self._refuse_header(table, named)
        self._note_odd_ids(table, named, report)
        self.times: NDArray[Any] | None = None
        self.ratings: NDArray[np.float32] | None = None
        self.keys: list[NDArray[Any]] = []
        self.subsets: dict[str, NDArray[np.int8]] = {}
        report.values["rows"] = len(self)
        if "time" in named:
            parsed = read.times(Pieces(named["time"], table, "time"), forms.time_format, forms.time_unit)
            self.times, self.keys = parsed.seconds, [parsed.key]
            report.values["time_unit"] = parsed.unit
            note_times(parsed, named["time"], forms.time_format is None and forms.time_unit is None, report)
        if "order" in named:
            self.keys.append(read.order(Pieces(named["order"], table, "order")))
            self.times = self.keys[-1] if self.times is None else self.times
        if "rating" in named:
            self.ratings = read.ratings(Pieces(named["rating"], table, "rating"))
        self.targets: NDArray[np.bool_] | None = None
        self.weighted: NDArray[np.bool_] | None = None
        if "event_type" in named:
            weights, self.targets, self.weighted = events.read(Pieces(named["event_type"], table, "event_type"), report)
            self.ratings = self.ratings if weights is None else weights

    def _refuse_header(self, table: Table, named: dict[str, str]) -> None:
        """Raise at a row that names the columns, in whatever order, case and quotes.

        Raises:
            DataError: there is one.
        """
        if self.user_ids.dtype != pl.String or self.item_ids.dtype != pl.String:
            return
        names = [id_checks.plain_name(named[role]) for role in ("user", "item")]
        of_user, of_item = (
            np.flatnonzero(id_checks.plain_names(ids).is_in(names).to_numpy()) for ids in (self.user_ids, self.item_ids)
        )
        rows = np.flatnonzero(np.isin(self.users, of_user) & np.isin(self.items, of_item)) if len(of_user) else []
        if len(rows):
            raise DataError(
                f"{table.place(int(rows[0]))} is the header again: another file seems to begin there.",
                "Give the files as a list or a folder, or remove the line.",
            )

    def _note_odd_ids(self, table: Table, named: dict[str, str], report: ReadReport) -> None:
        for kind, numbers, ids in (("user", self.users, self.user_ids), ("item", self.items, self.item_ids)):
            if ids.dtype != pl.String:
                if ids[0] == -1 and len(ids) > 1:  # sorted: the only negative id
                    row = int(np.argmax(numbers == 0))
                    report.warn(
                        f"The {kind} id -1 in column {named[kind]!r} ({table.place(row)}) is the only negative one. It "
                        f"may stand for a missing value, and was read like the others."
                    )
                continue
            if note := id_checks.written_oddly(ids, kind):
                report.warn(note)
            words = ids.filter(id_checks.words_for_nothing(ids))
            if len(words):
                report.warn(
                    f"{', '.join(map(repr, words))} in column {named[kind]!r} may stand for a missing value, and was "
                    f"read as a {kind} (missing_ids='keep')."
                )
            id_checks.note_alike(ids, kind, report)
            others = ~id_checks.written_as_integers(ids).to_numpy()
            count = int(others.sum())
            if not 0 < 2 * count <= len(ids):
                continue
            row = int(np.argmax(others[numbers]))
            report.warn(
                f"All but {count:,} of {len(ids):,} {kind} ids in column {named[kind]!r} are integers. The first other "
                f"one is {ids[int(numbers[row])]!r} ({table.place(row)}). So all {kind} ids were read as text."
            )

    def __len__(self) -> int:
        return len(self.users)

    def sort(self) -> bool:
        """Sort by user, then by the keys; equal rows keep their order. Returns whether any row moved."""
        offsets, order = grouped(self.users, len(self.user_ids))
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
        """Drop the rows outside the mask; returns how many those were."""
        dropped = len(mask) - int(mask.sum())
        if dropped:
            self._select(mask)
        return dropped

    def _select(self, index: NDArray[Any]) -> None:
        self.users = _taken(self.users, index)
        self.items = _taken(self.items, index)
        self.times = None if self.times is None else _taken(self.times, index)
        self.ratings = None if self.ratings is None else _taken(self.ratings, index)
        self.targets = None if self.targets is None else _taken(self.targets, index)
        self.weighted = None if self.weighted is None else _taken(self.weighted, index)
        self.subsets = {scheme: _taken(subset, index) for scheme, subset in self.subsets.items()}

    def drop_unused_ids(self) -> None:
        """Renumber users and items without gaps, and drop the ids of those without interactions."""
        self.users, self.user_ids = _compact(self.users, self.user_ids)
        self.items, self.item_ids = _compact(self.items, self.item_ids)

    def offsets(self, num_users: int) -> NDArray[np.int64]:
        """(num_users + 1,) where the interactions of each user begin, once they are sorted."""
        return np.concatenate(([0], np.cumsum(np.bincount(self.users, minlength=num_users), dtype=np.int64)))

    def blocks(self) -> list[slice]:
        """Blocks of rows that hold whole users, once they are sorted."""
        offsets = self.offsets(len(self.user_ids))
        return [slice(offsets[first], offsets[last]) for first, last in row_blocks(offsets)]

    def distinct(self, which: Literal["users", "items"]) -> int:
        """How many users or items have an interaction."""
        return int(np.count_nonzero(np.bincount(getattr(self, which))))

    def histories(self, num_users: int) -> Histories:
        return Histories(self.offsets(num_users), self.items, self.times, self.ratings, target=self.targets)


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
    """``values[index]``, a block at a time, because numpy makes int64 of an int32 index."""
    if index.dtype == bool:
        return values[index]
    taken = np.empty(len(index), dtype=values.dtype)
    for start in range(0, len(index), BLOCK):
        taken[start : start + BLOCK] = values[index[start : start + BLOCK]]
    return taken


def _compact(numbers: NDArray[np.int32], ids: pl.Series) -> tuple[NDArray[np.int32], pl.Series]:
    present = np.bincount(numbers, minlength=len(ids)) > 0
    if present.all():
        return numbers, ids
    return (np.cumsum(present, dtype=np.int32) - 1)[numbers], ids.gather(np.flatnonzero(present))


def grouped(nodes: NDArray[np.int32], count: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Sort interactions by node in linear time (a counting sort, which scipy has as conversion from COO to CSR).

    Args:
        nodes: (interactions,) numbers below ``count``.

    Returns:
        (count + 1,) where the interactions of each node begin; (interactions,) the interactions, in their order within
        each node. Both int32 where that is enough.
    """
    interactions = np.arange(len(nodes), dtype=index_type(len(nodes)))
    marks = np.ones(len(nodes), dtype=np.int8)
    matrix = sparse.coo_array((marks, (nodes, interactions)), shape=(count, len(nodes))).tocsr()
    return matrix.indptr, matrix.indices
