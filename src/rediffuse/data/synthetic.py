"""Synthetic interactions: how they are put before the interactions of users, in histories and datasets.

They are marked (`Histories.synthetic`), are in no validation or test subset and are never filtered as seen. Only
sequence models read them, and they are loss targets only with ``synthetic_targets``.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rediffuse.data.dataset import Dataset
from rediffuse.data.histories import Histories
from rediffuse.data.split import TRAIN, Split


def prepend(histories: Histories, synthetic: NDArray[np.int64]) -> Histories:
    """Put the items of ``synthetic`` (rows, n; -1: none) before each history, in place of earlier synthetic ones.

    Synthetic interactions have the time of the user's first own interaction and no rating (NaN), and are no targets. An
    empty history stays empty.
    """
    histories = histories.without_synthetic()
    kept = (synthetic >= 0) & (histories.lengths > 0)[:, None]
    counts = kept.sum(1)
    offsets = histories.offsets + np.concatenate(([0], np.cumsum(counts)))
    own = np.ones(offsets[-1], dtype=bool)
    place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    own[np.repeat(offsets[:-1], counts) + place] = False
    items = np.empty(len(own), dtype=np.int32)
    items[own], items[~own] = histories.items, synthetic[kept]
    times: Any = None
    ratings = None
    first = np.repeat(histories.offsets[:-1], counts)
    if histories.times is not None:
        times = np.empty(len(own), dtype=histories.times.dtype)
        times[own], times[~own] = histories.times, histories.times[first]
    if histories.ratings is not None:
        ratings = np.full(len(own), np.nan, dtype=np.float32)
        ratings[own] = histories.ratings
    target = None
    if histories.target is not None:
        target = np.zeros(len(own), dtype=bool)
        target[own] = histories.target
    return Histories(offsets, items, times, ratings, ~own, target)


def with_synthetic(split: Split, synthetic: NDArray[np.int64], name: str, details: dict[str, Any]) -> Dataset:
    """The dataset of a split with synthetic interactions before each user's own.

    Args:
        split: they were generated from its training subset. The dataset records it and refuses other splits.
        synthetic: (users, n) item numbers, -1 for none.
        name: name of the method, for tables.
        details: how they were generated, JSON-able.
    """
    data = split.dataset.without_synthetic()
    interactions = prepend(data.interactions, synthetic)
    assert interactions.synthetic is not None
    own = ~interactions.synthetic
    given = {}
    for scheme, subset in data.given.items():
        given[scheme] = np.full(len(own), TRAIN, dtype=np.int8)
        given[scheme][own] = subset
    record = {
        "name": name,
        "split": split.name,
        "split_params": split.params,
        "split_fingerprint": split.fingerprint,
        "interactions": int((~own).sum()),
        "users": int((np.diff(interactions.offsets) > data.interactions.lengths).sum()),
        **details,
    }
    record["note"] = (
        f"{record['interactions']:,} synthetic interactions ({name}) precede those of {record['users']:,} users."
    )
    notes = [*data.report.get("notes", []), record["note"]]
    report = {**data.report, "notes": notes, "augmentation": record}
    return dataclasses.replace(data, interactions=interactions, given=given, report=report)


def augmentation(dataset: Dataset) -> dict[str, Any] | None:
    """The record of a dataset's synthetic interactions, with the fingerprint of the dataset; None if it has none."""
    if dataset.interactions.synthetic is None:
        return None
    return {**dataset.report.get("augmentation", {}), "fingerprint": dataset.fingerprint}
