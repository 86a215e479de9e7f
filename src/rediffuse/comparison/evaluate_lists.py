"""Evaluation of recommendations that another library made, like that of a run."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from rediffuse.comparison.evaluation_content import (
    LIST_LENGTH,
    Evaluation,
    evaluation_content,
    evaluation_files,
    measures,
)
from rediffuse.comparison.runs import LISTS
from rediffuse.data.dataset import Dataset
from rediffuse.data.features import item_features
from rediffuse.data.histories import Histories
from rediffuse.data.split import Split, Task
from rediffuse.errors import ConfigError, DataError, RediffuseWarning
from rediffuse.evaluation import NOT_RANKED, protocols
from rediffuse.evaluation.rank import Ranking, Score, rank_task
from rediffuse.evaluation.task_evaluation import evaluate_ranking
from rediffuse.runs.run_folder import add_files


def evaluate_listed(
    lists: pl.DataFrame,
    split: Split,
    folder: Path,
    *,
    label: str,
    seed: int = 0,
    protocol: str | None = None,
    metrics: Sequence[str] = (),
    source: dict[str, Any] | None = None,
) -> Evaluation:
    """Evaluate recommendations on the test subset of a split, and write the result into a folder for `compare`.

    The lists are taken as they are for seen items kept; for seen items filtered, these are taken out. Equal scores
    count against the lists, a true item that is in no list is not found, an unknown item is a miss in its place, and
    metrics at more places than the longest list has are left out.

    Args:
        lists: ``user_id`` and ``item_id`` as text, and ``key``, lower is better; -inf or inf: not recommended.
        split: its test users count, with a list or without.
        folder: of the evaluation; that of run folders, but without a model.
        label: what made the lists.
        seed: that they were made with. Lists of one label and several seeds are one variant.
        protocol: as for `evaluate`.
        metrics: besides the usual ones.
        source: where the lists are from, to be written beside the results.

    Raises:
        DataError: an item is in a list twice, or no test user has a list.
        ConfigError: the protocol ranks a sample, or the split has several targets for a user.

    Warns:
        RediffuseWarning: lists were left out; items are unknown or seen; test users have no list; lists are short.
    """
    rules = protocols.protocol(protocol or split.name).on(split)
    task, dataset = rules.task(split), split.dataset
    if rules.negatives is not None:
        raise ConfigError(
            f"The protocol {rules.name!r} ranks a sample of items, and lists are of the whole catalogue.",
            "Leave out the lists, or choose another protocol.",
        )
    if task.by_target:
        raise ConfigError(
            "The split predicts several targets of a user one after the other, and lists are one per user.",
            "Leave out the lists, or choose another split.",
        )
    rows, unknown, notes = _numbered(lists, task, dataset, label)
    longest = int(_lengths(task, rows, unknown).max())
    wanted = measures(dataset, metrics)
    kept = [str(metric) for metric in wanted if metric.k <= longest]
    dropped = [str(metric) for metric in wanted if metric.k > longest]
    if dropped:
        notes.append(f"the longest list has {longest} items, so {', '.join(dropped)} are left out")
    if not kept:
        raise DataError(f"The longest list of {label} has {longest} items, too few for any metric.", "Export more.")
    for note in notes:
        warnings.warn(f"Lists of {label}: {note}.", RediffuseWarning, stacklevel=2)
    depth = max(LIST_LENGTH, *(metric.k for metric in wanted))
    ranking = rank_task(_score(rows, dataset.num_items), task, num_items=dataset.num_items, k=depth)
    ranking = _with_misses(ranking, rows, unknown)
    features = item_features(dataset.items)
    result = evaluate_ranking(ranking, task, num_items=dataset.num_items, metrics=kept, features=features)
    content, tables = evaluation_content([result], split, task, rules, [0], metrics, name=label)
    config = {
        "model": label,
        "class": None,
        "preset": None,
        "config": {},
        "seed": seed,
        "split": {"name": split.name, "params": split.params, "fingerprint": split.fingerprint, "leak": split.leak},
        "data": {
            "fingerprint": dataset.fingerprint_without_synthetic,
            "users": dataset.num_users,
            "items": dataset.num_items,
            "interactions": dataset.num_interactions,
        },
        "resolved": {},
        "training": {"minutes": None, "best_epoch": None, "parameters": None},
        "lists": source or {},
        "notes": notes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    files = evaluation_files(content, tables, None if rules.name == split.name else rules.name)
    add_files(folder, {LISTS: json.dumps(config, indent=2).encode(), **files})
    return content


def _numbered(
    lists: pl.DataFrame, task: Task, dataset: Dataset, label: str
) -> tuple[pl.DataFrame, pl.DataFrame, list[str]]:
    """The lists of test users.

    Returns:
        Their known items with ``row`` (in the task), ``item`` (number) and ``key``; their unknown items with ``row``
        and ``key``; and what was left out, in words.
    """
    repeated = lists.filter(lists.select("user_id", "item_id").is_duplicated())
    if len(repeated):
        user, item = repeated.select("user_id", "item_id").row(0)
        raise DataError(
            f"Lists of {label}: {len(repeated):,} rows repeat a user and an item, for example user {user} and item "
            f"{item}.",
            "Give each item of a list once.",
        )
    notes = []
    listed = lists.filter(pl.col("key").is_finite())
    if without := len(lists) - len(listed):
        notes.append(f"{without:,} rows with an infinite score are no recommendations")
    users = pl.DataFrame({"user_id": dataset.user_ids.cast(pl.String)}).with_row_index("user")
    items = pl.DataFrame({"item_id": dataset.item_ids.cast(pl.String)}).with_row_index("item")
    for ids, what, then in ((users, "user", "left out"), (items, "item", "misses in their places")):
        others = listed.join(ids, on=f"{what}_id", how="anti", maintain_order="left")[f"{what}_id"]
        if len(others):
            notes.append(f"{others.n_unique():,} unknown {what}s are {then}, for example {others[0]!r}")
    of_task = pl.DataFrame({"user": task.users}, schema={"user": pl.UInt32}).with_row_index("row")
    known = listed.join(users, on="user_id")
    tested = known.join(of_task, on="user", maintain_order="left").join(items, on="item_id", how="left")
    rows, unknown = tested.filter(pl.col("item").is_not_null()), tested.filter(pl.col("item").is_null())
    if not len(rows):
        raise DataError(
            f"Lists of {label}: no row has a test user and a known item; the first row is user "
            f"{lists['user_id'].first()!r}, item {lists['item_id'].first()!r}.",
            f"Use the ids of the data, such as user {dataset.user_ids[0]!r} and item {dataset.item_ids[0]!r}.",
        )
    if untested := known["user"].n_unique() - tested["user"].n_unique():
        notes.append(f"{untested:,} users are not in the test subset and do not count")
    lengths = _lengths(task, rows, unknown)
    if missing := int((lengths == 0).sum()):
        user = dataset.user_ids[int(task.users[int((lengths == 0).argmax())])]
        notes.append(f"{missing:,} of {len(lengths):,} test users have no list and count as zero, for example {user!r}")
    if short := int(((lengths > 0) & (lengths < lengths.max())).sum()):
        notes.append(f"{short:,} lists have fewer items than the longest, which has {lengths.max()}")
    filtered = task.histories if task.seen is None else task.seen
    seen = pl.DataFrame({"row": filtered.owners, "item": filtered.items}, schema={"row": pl.UInt32, "item": pl.UInt32})
    if shorter := rows.join(seen, on=["row", "item"], how="semi")["row"].n_unique():
        notes.append(f"{shorter:,} lists hold seen items, and are shorter where these are filtered")
    return rows, unknown, notes


def _lengths(task: Task, rows: pl.DataFrame, unknown: pl.DataFrame) -> NDArray[np.int64]:
    """(test users,) the lengths of the lists, with unknown items."""
    return np.bincount(pl.concat([rows["row"], unknown["row"]]).to_numpy(), minlength=len(task.users))


def _with_misses(ranking: Ranking, rows: pl.DataFrame, unknown: pl.DataFrame) -> Ranking:
    """The ranks, with the unknown items before a true item counted; equal keys count against the list."""
    if not len(unknown):
        return ranking
    truth = ranking.truth
    true = pl.DataFrame({"row": truth.owners, "item": truth.items}, schema={"row": pl.UInt32, "item": pl.UInt32})
    true = true.with_row_index("place").join(rows.select("row", "item", "key"), on=["row", "item"])
    before = true.join(unknown.select("row", miss="key"), on="row").filter(pl.col("miss") <= pl.col("key"))
    misses = np.bincount(before["place"].to_numpy(), minlength=len(truth.items))
    moved = {p: np.where(ranks == NOT_RANKED, ranks, ranks + misses) for p, ranks in ranking.ranks.items()}
    return dataclasses.replace(ranking, ranks=moved)


def _score(rows: pl.DataFrame, num_items: int) -> Score:
    """Scores that order the items as the lists do; equal keys have equal scores, and items outside a list -inf."""
    place = rows.select("row", "item", place=pl.col("key").rank("dense").over("row")).sort("row")
    owners, items = place["row"].to_numpy(), place["item"].to_numpy().astype(np.int64)
    scores = -place["place"].to_numpy().astype(np.float32)

    def score(histories: Histories, start: int) -> Tensor:
        first, last = np.searchsorted(owners, (start, start + len(histories)))
        block: NDArray[np.float32] = np.full((len(histories), num_items), -np.inf, dtype=np.float32)
        block[owners[first:last] - start, items[first:last]] = scores[first:last]
        return torch.from_numpy(block)

    return score
