"""The explanations of recommended items in responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rediffuse.data.histories import Histories
from rediffuse.recommender.explanations import PATHS_IN_LISTS, SOURCES, contributions
from rediffuse.recommender.ranker import RankedItems
from rediffuse.serving.hosted import RunSnapshot

# Nearest items of the history in an explanation.
NEAREST = 3


def explain(
    snapshot: RunSnapshot, histories: Histories, user_numbers: NDArray[np.int64], ranked: Sequence[RankedItems]
) -> list[list[dict[str, Any]]]:
    """Return the content of an `Explanation` for every item of n users.

    Args:
        snapshot: of the run that recommended the items.
        histories: n rows of item numbers.
        user_numbers: (n,) numbers of the users in training, or -1.
        ranked: the recommended items of each user.
    """
    recommender, real = snapshot.recommender, histories.without_synthetic()
    shares = _contributions(snapshot, histories, user_numbers, ranked)
    explained, start = [], 0
    for row, items in enumerate(ranked):
        history = np.unique(real.row(row)).astype(np.int64)
        nearest = _nearest(snapshot, history, items)
        paths = _paths(snapshot, history, items) if recommender.has_paths and len(history) else {}
        explained.append(
            [
                {
                    "contributions": shares.get(start + position, []),
                    "nearest": nearest[position],
                    "paths": paths.get(snapshot.item_ids[item], []),
                }
                for position, item in enumerate(items.items.tolist())
            ]
        )
        start += len(items.items)
    return explained


def _contributions(
    snapshot: RunSnapshot, histories: Histories, user_numbers: NDArray[np.int64], ranked: Sequence[RankedItems]
) -> dict[int, list[dict[str, Any]]]:
    """Return what adds up to each score, by the position of the item in all lists end to end."""
    model, found = snapshot.recommender.model, {}
    if model.explains_scores:
        table = contributions(model, histories, user_numbers, [user.items for user in ranked], SOURCES)
        for row in table.iter_rows(named=True):
            history_item = None if row["history_item"] is None else snapshot.item(row["history_item"])
            part = {name: row[name] for name in ("part", "contribution", "share")}
            found.setdefault(row["row"], []).append({"history_item": history_item} | part)
    return found


def _nearest(snapshot: RunSnapshot, history: NDArray[np.int64], ranked: RankedItems) -> list[list[dict[str, Any]]]:
    """Return the items of the history with the nearest vectors, of models that rank by item vectors."""
    recommender = snapshot.recommender
    if recommender.item_vectors is None or not len(history):
        return [[] for _ in ranked.items]
    directions = recommender.inspector.directions
    recommended, past = (torch.from_numpy(items).to(directions.device) for items in (ranked.items, history))
    similarity = directions[recommended] @ directions[past].T
    cosines, positions = similarity.topk(min(NEAREST, len(history)))
    return [
        [
            snapshot.item(int(history[position])) | {"cosine": round(cosine, 4)}
            for cosine, position in zip(*row, strict=True)
        ]
        for row in zip(cosines.tolist(), positions.tolist(), strict=True)
    ]


def _paths(snapshot: RunSnapshot, history: NDArray[np.int64], ranked: RankedItems) -> dict[Any, list[dict[str, Any]]]:
    """Return the strongest knowledge paths to the history, by the id of the recommended item."""
    recommender, found = snapshot.recommender, {}
    ids = recommender.items["item_id"]
    paths = recommender.paths(ids.gather(ranked.items), ids.gather(history), PATHS_IN_LISTS)
    for row in paths.iter_rows(named=True):
        history_item = snapshot.item(int(recommender.item_index([row["history_item"]])[0]))
        path = {name: row[name] for name in ("relation", "entity", "relation_back", "strength", "kept")}
        path["entity"] = None if row["entity"] is None else str(row["entity"])
        found.setdefault(row["item_id"], []).append(path | {"history_item": history_item})
    return found
