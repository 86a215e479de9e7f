"""Events that a generator wrote, before a person's own: how they are put into histories and datasets.

They are marked (`Histories.synthetic`), belong to no validation or test subset, are not loss targets unless asked for, are
never filtered as seen, and only models that read sequences get them.
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
    """Each row with its row of ``synthetic`` (rows, n) items before it; -1 stands for none. Own events stay as they are.

    A written event has the time of the person's first own event, and no rating (NaN). A row without own events gets
    nothing.
    """
    histories = histories.without_synthetic()
    wanted = (synthetic >= 0) & (histories.lengths > 0)[:, None]
    counts = wanted.sum(1)
    offsets = histories.offsets + np.concatenate(([0], np.cumsum(counts)))
    own = np.ones(offsets[-1], dtype=bool)
    place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    own[np.repeat(offsets[:-1], counts) + place] = False
    items = np.empty(len(own), dtype=np.int32)
    items[own], items[~own] = histories.items, synthetic[wanted]
    times: Any = None
    ratings = None
    first = np.repeat(histories.offsets[:-1], counts)
    if histories.times is not None:
        times = np.empty(len(own), dtype=histories.times.dtype)
        times[own], times[~own] = histories.times, histories.times[first]
    if histories.ratings is not None:
        ratings = np.full(len(own), np.nan, dtype=np.float32)
        ratings[own] = histories.ratings
    return Histories(offsets, items, times, ratings, ~own)


def augment(split: Split, synthetic: NDArray[np.int64], name: str, facts: dict[str, Any]) -> Dataset:
    """The dataset of a split with written events before each person's own.

    Args:
        split: whose training subset the events were made from; the dataset has_user_state it and refuses other splits.
        synthetic: (users, n) item numbers, -1 for none.
        name: of the way they were made, for tables.
        facts: how they were made, JSON-able.
    """
    data = split.dataset.without_synthetic()
    longer = prepend(data.interactions, synthetic)
    assert longer.synthetic is not None
    own = ~longer.synthetic
    given = {}
    for scheme, part in data.given.items():
        given[scheme] = np.full(len(own), TRAIN, dtype=np.int8)
        given[scheme][own] = part
    told = {
        "name": name,
        "split": split.name,
        "split_params": split.params,
        "split_fingerprint": split.fingerprint,
        "interactions": int((~own).sum()),
        "users": int((np.diff(longer.offsets) > data.interactions.lengths).sum()),
        **facts,
    }
    told["note"] = f"{told['interactions']:,} events were written before those of {told['users']:,} people ({name})."
    notes = [*data.report.get("notes", []), told["note"]]
    report = {**data.report, "notes": notes, "augmentation": told}
    return dataclasses.replace(data, interactions=longer, given=given, report=report)


def augmentation(dataset: Dataset) -> dict[str, Any] | None:
    """What was added to a dataset, with the fingerprint of the whole; None for data as they came."""
    if dataset.interactions.synthetic is None:
        return None
    return {**dataset.report.get("augmentation", {}), "fingerprint": dataset.fingerprint}
