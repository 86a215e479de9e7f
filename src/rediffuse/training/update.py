"""`update`: add new interactions to a run of a model in closed form."""

from __future__ import annotations

import contextlib
import datetime
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rediffuse.data.dataset import Dataset
from rediffuse.data.histories import Histories
from rediffuse.data.loading import as_dataset
from rediffuse.data.merging import extended_ids, merge
from rediffuse.errors import ConfigError, DataError, RediffuseWarning, RunError
from rediffuse.memory import PeakMemory
from rediffuse.models.base import TrainingData
from rediffuse.objects.folders import output
from rediffuse.runs.card import model_card
from rediffuse.runs.environment import environment
from rediffuse.runs.identity import open_run_folder
from rediffuse.runs.item_features import copied_encoder, read_encoder
from rediffuse.runs.run_folder import Run, RunContents, named, read_run, run_path, write_run
from rediffuse.training.train import counts


def update(run: str | Path | Run, data: Dataset | str | Path, out: str | Path) -> Run:
    """Add new interactions to a run of a model in closed form, and write the result as a run of its own.

    Options stay as they were chosen. Models that are sums over users (theat, transition) take out what the changed
    users gave and add what they give now; other models are fitted again. Both give what a fit to all interactions
    gives, to rounding. New users and new items are added.

    The new run has no split: it also learns from what the split of the old one held out, so it cannot be evaluated.

    Args:
        run: a run that has learned from all its interactions (option ``refit``).
        data: the new interactions, as a dataset or its folder. It may hold the old ones too; an interaction of the same
            user with the same item at the same time counts once. Without times, all interactions count as new.
        out: the new run folder.

    Raises:
        ConfigError: the model is trained by gradient, or an argument has the wrong type.
        RunError: the run cannot be read, or has not learned from its validation interactions; ``out`` is not empty.
        DataError: ids are of another type, times are missing, or nothing is new.
        StorageError: ``out`` cannot be written.

    Warns:
        RediffuseWarning: interactions that the run knows already were left out; interactions that its split held out
            are learned too; features of new items are missing or were not known in training.
    """
    began, memory = time.monotonic(), PeakMemory()
    place = output("out", out, 'Name a folder for the new run: out="runs/updated".')
    place.start()
    folder = place.folder
    source = run_path("run", run)
    new = as_dataset("data", data)
    contents = read_run(source)
    _check(contents, new)
    merged = _merge(contents, new)
    kind, earlier = type(contents.model), contents.model
    model = kind(earlier.config, len(merged.item_ids), len(merged.user_ids))
    model.resolve(contents.config["resolved"])
    popularity = np.bincount(merged.after.items, minlength=len(merged.item_ids))
    item_table, encoder = _item_columns(contents, new, merged), read_encoder(contents)
    if encoder is not None and item_table is not None and len(added := item_table[len(contents.items) :]):
        for note in encoder.notes(added):
            warnings.warn(f"New items: {note}", RediffuseWarning, stacklevel=2)
    training_data = TrainingData(
        merged.after,
        len(merged.user_ids),
        len(merged.item_ids),
        popularity,
        seed=contents.config["seed"],
        has_timestamps=merged.after.times is not None and contents.config["data"].get("has_timestamps", False),
        content=None if encoder is None or item_table is None else encoder.encode(item_table),
    )
    model.check(training_data)
    model.update(training_data, earlier, merged.before, merged.changed)
    model.eval()
    model.prepare()
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    minutes = (time.monotonic() - began) / 60
    made_of = ("histories_updated_from", "items_added_to")
    earlier_config = {name: value for name, value in contents.config.items() if name not in made_of}
    run_config = earlier_config | {
        "created": now,
        "split": {"name": "none", "params": {}, "fingerprint": None, "leak": None},
        "data": contents.config["data"]
        | {
            "fingerprint": None,
            "users": len(merged.user_ids),
            "items": len(merged.item_ids),
            "interactions": len(merged.after.items),
            "subsets": _all_in_training(merged.after),
            "histories_end": merged.after.last_time() if contents.config["data"].get("has_timestamps") else None,
        },
        "training": contents.config["training"] | {"minutes": minutes, "peak_memory_mib": memory.mib()},
        "validation": None,
        "updated_from": {
            "run": named(run, source),
            "weights": contents.weights,
            "interactions": merged.added,
        },
    }
    made_in = environment()
    with contextlib.ExitStack() as stack:
        open_run_folder(folder, run_config, resume=False, stack=stack)
        write_run(
            folder,
            run_config,
            made_in,
            model,
            _item_table(contents, new, merged, popularity),
            merged.user_ids,
            merged.after,
            model_card(kind, run_config, made_in),
            model.artifacts(merged.user_ids, merged.item_ids),
            item_table=item_table,
            others=copied_encoder(contents),
        )
    place.publish()
    return Run(place.path, run_config, None, minutes)


def _all_in_training(histories: Histories) -> dict[str, dict[str, int]]:
    everything, nothing = counts(histories), {"interactions": 0, "users": 0, "items": 0, "synthetic": 0}
    return {"train": everything, "valid": nothing, "before_test": everything, "test": nothing}


@dataclass(frozen=True)
class _Merged:
    """Old and new interactions in one numbering; old users and items keep their numbers."""

    user_ids: pl.Series
    item_ids: pl.Series
    before: Histories
    after: Histories
    changed: NDArray[np.int64]
    added: int


def _check(contents: RunContents, new: Dataset) -> None:
    name, folder = contents.config["model"], contents.path
    if contents.model.trained_by_gradient:
        raise ConfigError(
            f"{name} is trained by gradient, so new interactions cannot be added to {folder}.",
            "Train it again, or use a run of theat, transition, heat or another model in closed form.",
        )
    if contents.config["validation"] is not None and not contents.config["training"].get("refitted"):
        raise RunError(
            f"{folder} has not learned from its validation interactions.", "Train it with refit=true, then update it."
        )
    for what, old, ids in (
        ("user", contents.user_ids, new.user_ids),
        ("item", contents.items["item_id"], new.item_ids),
    ):
        if old.dtype != ids.dtype:
            raise DataError(
                f"The {what} ids of {folder} are {_type(old)}, and those of the new interactions are {_type(ids)}.",
                "Read both tables with ids of the same type.",
            )
    if contents.histories.times is not None and (new.interactions.times is None or not new.has_timestamps):
        raise DataError(
            f"{folder} was fitted to interactions with times, and the new interactions have none.",
            "Name their time column when reading them.",
        )


def _type(ids: pl.Series) -> str:
    return "text" if ids.dtype == pl.String else "integers"


def _merge(contents: RunContents, new: Dataset) -> _Merged:
    old = replace(contents.histories, synthetic=None)
    held_out = np.zeros(len(old.items), dtype=np.bool_) if contents.held_out is None else contents.held_out
    interactions = new.interactions.without_synthetic()
    user_ids, users = extended_ids(contents.user_ids, new.user_ids)
    item_ids, items = extended_ids(contents.items["item_id"], new.item_ids)
    merged = merge(old, interactions, users, items, len(user_ids))
    total = len(interactions.items)
    if merged.example is not None:
        user, item = merged.example
        warnings.warn(
            f"{merged.repeated:,} of {total:,} interactions are in the run already and were left out, for example "
            f"user {user_ids[user]!r} with item {item_ids[item]!r}.",
            RediffuseWarning,
            stacklevel=3,
        )
    added = int((merged.source < 0).sum())
    if not added:
        raise DataError(f"None of the {total:,} interactions is new to {contents.path}.", "Give later interactions.")
    if held_out.any():
        fresh = " or that were added to its histories" if "histories_updated_from" in contents.config else ""
        warnings.warn(
            f"{held_out.sum():,} interactions that the split of {contents.path} held out{fresh} are learned too.",
            RediffuseWarning,
            stacklevel=3,
        )
    learned = np.where(merged.source < 0, False, ~held_out[merged.source])
    changed = np.unique(merged.histories.owners[~learned])
    return _Merged(user_ids, item_ids, merged.histories.where(learned), merged.histories, changed, added)


def _item_table(contents: RunContents, new: Dataset, merged: _Merged, popularity: NDArray[np.int64]) -> pl.DataFrame:
    """items.parquet of the new run; titles of new items come from the new dataset, if it has any."""
    table = pl.DataFrame({"item_id": merged.item_ids, "train_count": popularity})
    if "title" not in contents.items.columns:
        return table
    titles = contents.items.select("item_id", "title")
    if new.items is not None and new.title is not None:
        described = pl.DataFrame({"item_id": new.item_ids, "title": new.items[new.title].cast(pl.String)})
        titles = pl.concat([titles, described.join(titles, on="item_id", how="anti")])
    return table.join(titles, on="item_id", how="left", maintain_order="left")


def _item_columns(contents: RunContents, new: Dataset, merged: _Merged) -> pl.DataFrame | None:
    """item_table.parquet of the new run: values of the new dataset win over those of the old run, which fill gaps."""
    tables = [
        table.rename({table.columns[0]: "item_id"}) for table in (new.items, contents.item_table) if table is not None
    ]
    if not tables:
        return None
    described = pl.concat(tables, how="diagonal_relaxed").group_by("item_id").agg(pl.all().drop_nulls().first())
    ids = pl.DataFrame({"item_id": merged.item_ids})
    return ids.join(described, on="item_id", how="left", maintain_order="left")
