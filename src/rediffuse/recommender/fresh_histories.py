"""Fresh histories: newer interactions of known and new users are added to those of a run, without training.

The model stays as it is. Users get lists for what they did last, and nothing that they have just bought. A model that
has learned a vector per user ranks its known users by that vector, whatever their histories are; new users are ranked
by their histories, or, if the model cannot do that, as users without a history are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rediffuse.addresses import address_of, refuse_unknown
from rediffuse.data.dataset import Dataset
from rediffuse.data.histories import Histories
from rediffuse.data.loading import load_dataset
from rediffuse.data.merging import Merged, extended_ids, merge
from rediffuse.data.store import MANIFEST as DATASET_MANIFEST
from rediffuse.errors import DataError, RunError
from rediffuse.objects.folders import output
from rediffuse.objects.store import look
from rediffuse.readers.report import ReadReport
from rediffuse.readers.rows import Columns, Forms, InteractionRows
from rediffuse.readers.tables import read_table
from rediffuse.readers.unused_columns import note_unused
from rediffuse.recommender.id_map import cast_ids
from rediffuse.runs.derived import write_derived
from rediffuse.runs.run_folder import (
    Run,
    RunContents,
    add_files,
    read_run,
    run_path,
)

# How many unknown items a warning names.
_NAMED = 3
_INDEX = ("index.json", "index.faiss")


@dataclass(frozen=True)
class FreshHistories:
    """A run with fresh histories.

    Attributes:
        contents: the run, with the histories, users and configuration that it has now.
        added: interactions that were added.
        repeated: interactions that the run has already, or that repeat each other.
        dropped: interactions with items that the model does not know.
        new_users: users who were added.
        unknown_items: ids of items that the model does not know.
        notes: how the table was read: what was guessed about its times, ids and lists.
    """

    contents: RunContents
    added: int
    repeated: int
    dropped: int
    new_users: int
    unknown_items: pl.Series
    notes: tuple[str, ...] = ()

    def remarks(self) -> list[str]:
        """Sentences about what was left out."""
        found = []
        if self.dropped:
            count = len(self.unknown_items)
            named = ", ".join(repr(item) for item in self.unknown_items.head(_NAMED).to_list())
            items, more = ("item", "") if count == 1 else ("items", f", and {count - _NAMED:,} more")
            found.append(
                f"{self.dropped:,} interactions with {count:,} {items} that the model does not know were left out: "
                f"{named}{more if count > _NAMED else ''}. Refit it to recommend them."
            )
        if self.repeated:
            found.append(f"{self.repeated:,} interactions are in the histories already, and count once.")
        return found


def fresh_histories(
    contents: RunContents,
    interactions: Any,
    *,
    user: str = "user_id",
    item: str = "item_id",
    time: str | None = None,
    time_format: str | None = None,
) -> FreshHistories:
    """Add interactions to the histories of a run; nothing is written.

    Args:
        contents: the run.
        interactions: a `Dataset`, the folder of one, or a table: a path or a dataframe.
        user, item, time: columns of a table. None: a column ``timestamp`` is the time, if there is one.
        time_format: form of times in text, as for `rediffuse.read_interactions`.

    Raises:
        DataError: the table cannot be read; its ids or times do not fit those of the run; or the model knows none of
            its items.
    """
    new = _read(interactions, user, item, time, time_format)
    old, data = contents.histories, contents.config["data"]
    with_times = data.get("has_timestamps", False)
    if old.times is not None and (new.histories.times is None or new.has_timestamps != with_times):
        if with_times:
            problem, remedy = "have times, and the new ones have none", "Name their time column."
        else:
            problem = "have an order column that is no time, and the new ones have none"
            remedy = "Prepare them as a dataset with the same order column."
        raise DataError(f"The interactions of {contents.path} {problem}.", remedy)
    notes = new.notes
    if old.times is not None and new.histories.times is not None and new.histories.times.max() < old.times.min():
        notes = (*notes, "All new interactions are earlier than all of the run. Check what their times count.")
    items = _numbers(cast_ids(new.item_ids, contents.items["item_id"].dtype), contents.items["item_id"])
    known = new.histories.where(items[new.histories.items] >= 0)
    unknown = new.item_ids.filter(pl.Series(items < 0))
    if not len(known.items):
        raise DataError(
            f"{contents.path} knows none of the {len(unknown):,} items of the new interactions, "
            f"for example {unknown[0]!r}.",
            f"Its item ids are like {contents.items['item_id'][0]!r}; name the right column, or refit the run.",
        )
    rows = np.flatnonzero(known.lengths > 0)
    ids = cast_ids(new.user_ids.gather(rows), contents.user_ids.dtype)
    if ids.null_count():
        odd = new.user_ids.gather(rows).filter(ids.is_null())[0]
        raise DataError(
            f"The user ids of {contents.path} are integers, and the new interactions have user {odd!r}.",
            "Give ids of the same type.",
        )
    user_ids, users = extended_ids(contents.user_ids, ids)
    merged = merge(old, known.take(rows), users, items, len(user_ids), distinct=True)
    added = int((merged.source < 0).sum())
    config = contents.config | {
        "data": data | {"histories_end": merged.histories.last_time() if with_times else data.get("histories_end")},
        "histories_updated_from": {
            "run": str(contents.path),
            "weights": contents.weights,
            "interactions": added,
            "new_users": len(user_ids) - len(contents.user_ids),
            "unknown_items": len(unknown),
        },
    }
    updated = replace(
        contents,
        config=config,
        user_ids=user_ids,
        histories=merged.histories,
        held_out=_held_out(contents, merged),
    )
    dropped = len(new.histories.items) - len(known.items)
    new_users = len(user_ids) - len(contents.user_ids)
    return FreshHistories(updated, added, merged.repeated, dropped, new_users, unknown, notes)


def update_histories(
    run: str | Path | Run,
    interactions: Any,
    out: str | Path,
    *,
    user: str = "user_id",
    item: str = "item_id",
    time: str | None = None,
    time_format: str | None = None,
) -> tuple[Run, FreshHistories]:
    """Add interactions to the histories of a run, and write the result as a run of its own.

    It has the weights, the index and the training log of the old one, and no test results: `rediffuse.evaluate` gives
    the same ones again.

    Args:
        run: the old run.
        interactions, user, item, time, time_format: as for `fresh_histories`.
        out: the new run folder.

    Raises:
        DataError: as `fresh_histories`.
        RunError: the run cannot be read or holds no users; ``out`` is not empty.
        StorageError: ``out`` cannot be written.
    """
    place = output("out", out, 'Name a folder for the new run: out="runs/today".')
    place.start()
    source = run_path("run", run)
    old = read_run(source)
    if not len(old.user_ids) and old.config["data"]["users"]:
        raise RunError(
            f"{source} holds no users, so it has no histories to add to.",
            "Update the run that it was made of, or send the histories with each request.",
        )
    found = fresh_histories(old, interactions, user=user, item=item, time=time, time_format=time_format)
    contents = found.contents
    write_derived(place.folder, old, contents)
    if all(name in old.digests for name in _INDEX):
        add_files(place.folder, {name: (source / name).read_bytes() for name in _INDEX})
    place.publish()
    return Run(
        place.path, contents.config, contents.config["validation"], contents.config["training"]["minutes"]
    ), found


@dataclass(frozen=True)
class _New:
    """Interactions in numbers of their own."""

    histories: Histories
    user_ids: pl.Series
    item_ids: pl.Series
    has_timestamps: bool
    notes: tuple[str, ...] = ()


def _is_dataset(place: str | Path) -> bool:
    address = address_of(place)
    if address is None:
        return (Path(place) / DATASET_MANIFEST).is_file()
    refuse_unknown("interactions", place)
    return look(f"{address}/{DATASET_MANIFEST}") is not None


def _read(source: Any, user: str, item: str, time: str | None, time_format: str | None) -> _New:
    if isinstance(source, str | Path) and _is_dataset(source):
        source = load_dataset(source)
    if isinstance(source, Dataset):
        return _New(source.interactions.without_synthetic(), source.user_ids, source.item_ids, source.has_timestamps)
    columns = Columns(user, item, time)
    columns.check()
    try:
        return _read_table(source, columns, time_format)
    except DataError as error:
        if error.remedy is None or not re.search(r"\(--(?!time-format)", error.remedy):
            raise
        # The reader names options of its own.
        remedy = f"{error.remedy} That is an option of rediffuse prepare: prepare the table, and give the dataset."
        raise DataError(error.problem, remedy) from None


def _read_table(source: Any, columns: Columns, time_format: str | None) -> _New:
    table = read_table(source, "interactions", wanted=tuple(columns.by_role().values()))
    if columns.time is None and "timestamp" in table.columns:
        columns = replace(columns, time="timestamp")
    report = ReadReport()
    rows = InteractionRows(table, columns, report, forms=Forms(time_format))
    note_unused(table, columns, False, report)
    rows.sort()
    histories = rows.histories(len(rows.user_ids))
    return _New(histories, rows.user_ids, rows.item_ids, columns.time is not None, tuple(report.notes))


def _numbers(values: pl.Series, ids: pl.Series) -> NDArray[np.int64]:
    """(n,) number of each value among ``ids``, -1 where it is not among them."""
    table = pl.DataFrame({"id": ids, "number": np.arange(len(ids))})
    found = pl.DataFrame({"id": values}).join(table, on="id", how="left", maintain_order="left")
    return found["number"].fill_null(-1).to_numpy()


def _held_out(contents: RunContents, merged: Merged) -> NDArray[np.bool_]:
    """What the model has not learned from: what was held out before, and what is new."""
    before = np.zeros(len(contents.histories.items), dtype=np.bool_) if contents.held_out is None else contents.held_out
    return np.where(merged.source < 0, True, before[merged.source])
