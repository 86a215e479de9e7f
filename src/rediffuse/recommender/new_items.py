"""New items: described by a table, they are added to the catalogue of a run without training.

The model must have learned from the features of items. It ranks a new item by its content, as it ranks items of the
catalogue that had no interaction in training.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from rediffuse.errors import ConfigError, DataError
from rediffuse.objects.folders import output
from rediffuse.readers.tables import read_table
from rediffuse.recommender.id_map import cast_ids
from rediffuse.recommender.index import METADATA_FILE
from rediffuse.recommender.index_building import build_index
from rediffuse.runs.derived import write_derived
from rediffuse.runs.item_features import read_encoder
from rediffuse.runs.run_folder import Run, RunContents, read_run, run_path


@dataclass(frozen=True)
class NewItems:
    """A run with new items.

    Attributes:
        contents: the run with the catalogue, model and configuration that it has now.
        added: items that were added.
        repeated: rows about items that the run has already, or that repeat each other.
        example: the id of one of these; None without any.
        notes: sentences about features that are missing or were not known in training.
    """

    contents: RunContents
    added: int
    repeated: int
    example: Any
    notes: tuple[str, ...] = ()

    def remarks(self) -> list[str]:
        """Sentences about what was left out or is not known."""
        found = list(self.notes)
        if self.repeated:
            found.append(
                f"{self.repeated:,} rows are about items that the run has already, such as {self.example!r}, or repeat "
                "one. They were left out; what the run knows about its items does not change."
            )
        return found


def with_new_items(run: RunContents, items: Any, *, item: str = "item_id") -> NewItems:
    """Add items to the catalogue of a run; nothing is written.

    Args:
        run: a run of a model that has learned from item features.
        items: a table with the columns that the features were declared on: a path or a dataframe.
        item: its column of ids.

    Raises:
        ConfigError: the model cannot score new items.
        DataError: the table cannot be read, or lacks ids or a feature; its ids are of another type; or nothing is new.
    """
    encoder = read_encoder(run)
    if encoder is None or not run.model.scores_new_items:
        raise ConfigError(
            f"{run.config['model']} cannot rank new items in this run: it has learned nothing from the features of "
            "items.",
            "Declare features (rediffuse prepare --items FILE --item-features ...), and train theat, or a model with "
            "item vectors, such as gru4rec, sasrec, diffurec, bprmf or lightgcn.",
        )
    source, known = read_table(items, "items", wanted=(item,)), run.items["item_id"]
    source.need(item, "item")
    table = source.collect(source.columns)
    table = _with_ids(table, item, known, str(run.path))
    fresh = table.filter(~pl.col("item_id").is_in(known.implode())).unique("item_id", keep="first", maintain_order=True)
    left_out = table.filter(pl.col("item_id").is_in(known.implode()) | ~pl.col("item_id").is_first_distinct())
    if not len(fresh):
        raise DataError(
            f"The run has all {len(table):,} items of the table already, for example {table['item_id'][0]!r}.",
            "Give a table with new items.",
        )
    model = run.model.with_items(encoder.encode(fresh))
    model.resolve(run.config["resolved"])
    config = run.config | {
        "data": run.config["data"] | {"items": len(known) + len(fresh)},
        "items_added_to": {
            "run": str(run.path),
            "weights": run.weights,
            "items": len(fresh) + run.config.get("items_added_to", {}).get("items", 0),
        },
    }
    contents = replace(run, config=config, model=model, items=_catalogue(run, fresh), item_table=_table(run, fresh))
    example = left_out["item_id"][0] if len(left_out) else None
    notes = encoder.notes(fresh)
    if run.item_table is not None and (others := [c for c in fresh.columns if c not in run.item_table.columns]):
        notes.append(f"Columns that the run's item table does not have were left out: {', '.join(others)}.")
    return NewItems(contents, len(fresh), len(left_out), example, tuple(notes))


def add_items(run: str | Path | Run, items: Any, out: str | Path, *, item: str = "item_id") -> tuple[Run, NewItems]:
    """Add items to the catalogue of a run, and write the result as a run of its own.

    It has the weights and the training log of the old one, but not its test results. An index is built again, with the
    same options.

    Args:
        run: the old run.
        items, item: as for `with_new_items`.
        out: the new run folder.

    Raises:
        ConfigError, DataError: as `with_new_items`.
        RunError: the run cannot be read; ``out`` is not empty.
        StorageError: ``out`` cannot be written.
    """
    place = output("out", out, 'Name a folder for the new run: out="runs/today".')
    place.start()
    source = run_path("run", run)
    old = read_run(source)
    found = with_new_items(old, items, item=item)
    contents = found.contents
    write_derived(place.folder, old, contents)
    if METADATA_FILE in old.digests:
        options = json.loads((old.path / METADATA_FILE).read_text(encoding="utf-8"))
        build_index(place.folder, options["kind"], options["k"], options["wanted_recall"])
    place.publish()
    return Run(
        place.path, contents.config, contents.config["validation"], contents.config["training"]["minutes"]
    ), found


def _with_ids(table: pl.DataFrame, item: str, known: pl.Series, run: str) -> pl.DataFrame:
    """The table with a column item_id of the type of ``known``."""
    ids = cast_ids(table[item], known.dtype)
    if ids.null_count():
        lost = int(ids.is_null().arg_max() or 0)
        raise DataError(
            f"Row {lost} of the table of items has the id {table[item][lost]!r}; the ids of {run} are like "
            f"{known[0]!r}.",
            "Give every item an id of that type.",
        )
    others = table.drop(item) if item != "item_id" else table
    return others.with_columns(ids.alias("item_id"))


def _catalogue(run: RunContents, fresh: pl.DataFrame) -> pl.DataFrame:
    """The items of the run, and the new ones behind them."""
    old = run.items
    added = fresh.select("item_id").with_columns(pl.lit(0, old["train_count"].dtype).alias("train_count"))
    title = run.config["data"].get("title")
    if "title" in old.columns:
        text = (
            fresh[title].cast(pl.String) if title in fresh.columns else pl.Series([None] * len(fresh), dtype=pl.String)
        )
        added = added.with_columns(text.alias("title"))
    return pl.concat((old, added.select(old.columns)))


def _table(run: RunContents, fresh: pl.DataFrame) -> pl.DataFrame | None:
    """The item table with the new items; columns that the run does not have are left out."""
    if run.item_table is None:
        return None
    columns = {name: run.item_table[name].dtype for name in fresh.columns if name in run.item_table.columns}
    for name, dtype in columns.items():
        lost = fresh[name].cast(dtype, strict=False).is_null() & fresh[name].is_not_null()
        if lost.any():
            raise DataError(
                f"Column {name!r} of the run's item table is {dtype}, and the new items have "
                f"{fresh[name].filter(lost)[0]!r}.",
                "Give values of that type.",
            )
    return pl.concat((run.item_table, fresh.select(list(columns)).cast(columns)), how="diagonal")  # pyright: ignore
