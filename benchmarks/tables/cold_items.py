"""Items without an interaction in training: who ranks them, and what it costs on the others.

    OMP_NUM_THREADS=1 python -m benchmarks.tables.cold_items --runs runs/cold

Amazon Beauty split by time, with its attributes as item features, or MovieLens-100K with its genres (``--data``). On
Beauty, a quarter of what users take in the test time was never in training: 301 of 12,101 items. Every method ranks the
whole catalogue without the items that a user has seen, and is measured on all true items, on those that are new, and on
those that are known. No method learns from the validation interactions (theat is not refitted), but for the prior of
HeatRec. All that ColdDiff's rows and "content-kNN" differ in is the vectors of the new items: the backbone, a GRU4Rec
without features, is one run. s is the scale of the guidance; 1 unless said.

Floors: "popularity in the category" gives an item the mean, over its attributes, of the mean recent popularity of the
items that have it; "content of the history" ranks by the cosine of an item's content with that of the user's items;
"content-kNN" gives a new item the mean vector of the 50 items that are most like it, weighted by their cosine.

"share" rows keep a least share of each list of 20 for new items (`recommend --new-items`): the best new items take the
places of the last others.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

import rediffuse as rd
from benchmarks.common import RESULTS, write_result
from rediffuse.batching.matrix import binary_matrix
from rediffuse.batching.recency import FALLBACK_HALF_LIFE, recent_popularity
from rediffuse.data.histories import Histories
from rediffuse.data.subsets import Task
from rediffuse.evaluation import evaluate_task, model_scores
from rediffuse.features import Content, FeatureEncoder
from rediffuse.features.neighbours import column_weights, nearest
from rediffuse.models.colddiff import ColdDiff
from rediffuse.readers.public_datasets import public_dataset
from rediffuse.runs.run_folder import read_run

METRIC = "ndcg@10/unseen"
METRICS = ("recall@20", "ndcg@10")
NEIGHBOURS = 50
FEATURES = {"amazon-beauty": "attributes", "ml-100k": "genres"}
BACKBONE = "gru4rec"
# name -> model, options, whether the features are declared; and what is taken from a run.
RUNS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "gru4rec": ("gru4rec", {"item_features": False}, True),
    "gru4rec, features": ("gru4rec", {}, True),
    "heatrec": ("heatrec", {"item_features": False}, True),
    "heatrec, features": ("heatrec", {}, True),
    "theat": ("theat", {"refit": False}, False),
    "theat, features": ("theat", {"refit": False}, True),
    "theat, features, content_weight = 1": ("theat", {"refit": False, "content_weight": 1.0}, True),
    "colddiff": ("colddiff", {}, True),
    "colddiff (no diffusion)": ("colddiff", {"diffusion": False}, True),
}
# What is appended to the name of a row -> options of sampling: a trained generator draws the new items again.
DRAWN_AGAIN: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "colddiff": [
        (", s = 0", {"guidance_scale": 0.0}),
        (", s = 2", {"guidance_scale": 2.0}),
        (", s = 5", {"guidance_scale": 5.0}),
        (", one draw", {"draws": 1}),
        (", one draw, s = 2", {"guidance_scale": 2.0, "draws": 1}),
    ],
    "colddiff (no diffusion)": [(", s = 0", {"guidance_scale": 0.0}), (", s = 2", {"guidance_scale": 2.0})],
}
# Least shares of the first 20 items that are new, as `Recommender.recommend` keeps them, of the rows with features.
SHARES, LIST = (0.05, 0.1, 0.2), 20
BLOCK = 1024
Scores = Callable[[Histories, int], Tensor]


def rows_with(truth: Histories, wanted: np.ndarray) -> tuple[Histories, np.ndarray]:
    """The true items that are ``wanted`` (num_items,) bool, and the rows that have one."""
    left = truth.where(wanted[truth.items])
    return left, np.flatnonzero(left.lengths > 0)


def measure(score: Scores, task: Task, new: np.ndarray) -> dict[str, dict[str, float]]:
    """The metrics on all, new and known true items, seen items filtered. All users are scored once."""
    blocks = range(0, len(task.users), BLOCK)
    rows_of = [np.arange(start, min(start + BLOCK, len(task.users))) for start in blocks]
    scores = torch.cat([score(task.histories.take(rows), int(rows[0])).float() for rows in rows_of])
    found = {}
    for name, wanted in (("all", np.ones_like(new)), ("new", new), ("known", ~new)):
        truth, rows = rows_with(task.truth, wanted)
        seen = None if task.seen is None else task.seen.take(rows)
        part = dataclasses.replace(
            task, users=task.users[rows], histories=task.histories.take(rows), truth=truth.take(rows), seen=seen
        )
        own = scores[torch.from_numpy(rows)]
        result = evaluate_task(
            lambda histories, start, own=own: own[start : start + len(histories)].clone(),
            part,
            num_items=len(new),
            metrics=list(METRICS),
        )
        found[name] = {metric: result.metrics["unseen"][metric] for metric in METRICS}
        found[name] |= {"users": len(rows), "true_items": len(truth.items)}
    return found


def of_category(content: Content, popularity: np.ndarray) -> np.ndarray:
    """(num_items,) the mean over an item's attributes of the mean popularity of the items that have it."""
    has = content.sparse.astype(bool).astype(np.float64)
    of_attribute = (has.T @ popularity) / np.maximum(np.ravel(has.sum(axis=0)), 1)
    return (has @ of_attribute) / np.maximum(np.ravel(has.sum(axis=1)), 1)


def unit_rows(content: Content, weights: np.ndarray) -> np.ndarray:
    """(num_items, columns) content with weighted columns, of length one."""
    rows = content.matrix() * np.concatenate((weights, np.ones(content.dense.shape[1], np.float32)))
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def floors(split: Any, content: Content, known: np.ndarray) -> dict[str, Scores]:
    """What needs no training, as functions of histories."""
    train = split.training_view().train
    recent = recent_popularity(train, len(known), FALLBACK_HALF_LIFE)
    category = torch.from_numpy(of_category(content, recent)).float()
    rows = unit_rows(content, column_weights(content, known))

    def by_content(histories: Histories, start: int) -> Tensor:
        return torch.from_numpy((binary_matrix(histories, len(known)) @ rows @ rows.T).astype(np.float32))

    return {
        "popularity in the category": lambda histories, start: category.repeat(len(histories), 1),
        "content of the history": by_content,
    }


def with_share(score: Scores, new: np.ndarray, share: float) -> Scores:
    """Scores that put so many new items among the first `LIST` unseen ones, where they are not there already."""
    least, is_new = int(np.ceil(share * LIST)), torch.from_numpy(new)

    def shared(histories: Histories, start: int) -> Tensor:
        found = score(histories, start).float().clone()
        unseen = found.clone()
        unseen[torch.from_numpy(histories.owners), torch.from_numpy(histories.items.astype(np.int64))] = -torch.inf
        ranked = unseen.argsort(dim=1, descending=True, stable=True)
        for row, order in enumerate(ranked):
            fresh = order[is_new[order]][:least]
            short = least - int(is_new[order[:LIST]].sum())
            if short > 0:
                others = order[~is_new[order]]
                top, below = found[row, others[LIST - least - 1]], found[row, others[LIST - least]]
                places = torch.linspace(1, 0, least + 2)[1:-1]
                found[row, fresh] = torch.maximum(found[row, fresh], below + (top - below) * places)
        return found

    return shared


def by_neighbours(model: ColdDiff, content: Content, known: np.ndarray) -> None:
    """Give the new items of a trained model the mean vector of their neighbours by content."""
    new, numbers = np.flatnonzero(~known), np.flatnonzero(known)
    found = nearest(content.take(new), new, content.take(numbers), numbers, column_weights(content, known), NEIGHBOURS)
    weights = sparse.csr_array(found / np.maximum(np.ravel(found.sum(axis=1)), 1e-12)[:, None])
    vectors = model.backbone.index_vectors()
    assert vectors is not None
    mean = weights @ vectors.detach().numpy()[: weights.shape[1]]
    model.backbone.place_items(torch.from_numpy(new), torch.from_numpy(mean.astype(np.float32)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20, help="of the networks, at most")
    parser.add_argument("--generator-epochs", type=int, default=20, help="at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/cold"))
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--subset", choices=("valid", "test"), default="test")
    parser.add_argument("--data", choices=FEATURES, default="amazon-beauty")
    parser.add_argument("--out", type=Path, help="result file; default: results/cold_items-DATA.json")
    arguments = parser.parse_args()
    plain, features = public_dataset(arguments.data), FEATURES[arguments.data]
    data = plain.with_features(features)
    split = rd.split.global_time(data)
    task, known = split.task(arguments.subset), split.training_view().valid.popularity > 0
    assert data.items is not None
    encoder = FeatureEncoder.fit(data.items, data.item_features, known)
    content = encoder.encode(data.items)
    rows: dict[str, Any] = {}

    def add(name: str, score: Scores, **facts: Any) -> None:
        rows[name] = measure(score, task, ~known) | facts
        print(json.dumps({"name": name} | rows[name]), flush=True)

    for name, score in floors(split, content, known).items():
        add(name, score)
        for share in SHARES:
            add(f"{name}, share {share:g}", with_share(score, ~known, share))
    precision = None
    for name in arguments.only:
        kind, options, declared = RUNS[name]
        folder = arguments.runs / f"{name.replace(', ', '-').replace(' ', '-')}-{arguments.seed}"
        if not (folder / "manifest.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            options = options | {"metric": METRIC}
            if kind in (BACKBONE, "heatrec"):
                options |= {"epochs": arguments.epochs, "patience": 3}
            elif kind == "colddiff":
                options |= {"epochs": arguments.generator_epochs, "patience": 3}
            taken = {"backbone": arguments.runs / f"{BACKBONE}-{arguments.seed}"} if kind == "colddiff" else {}
            on = split if declared else rd.split.global_time(plain)
            rd.train(kind, on, folder, config=options, phases_from=taken, seed=arguments.seed)
        run = read_run(folder)
        training = run.config["training"]
        precision = training["precision"] or precision
        facts = {key: training[key] for key in ("minutes", "best_epoch", "stopped", "parameters")}
        chosen, usual = run.config["config"], run.config["defaults"]
        changed = {option: value for option, value in chosen.items() if value != usual[option]}
        facts |= {"options": changed, "hidden_items": run.config["resolved"].get("hidden_items")}
        model, score = run.model, model_scores(run.model, task)
        add(name, score, **facts)
        for share in SHARES if declared and model.scores_new_items and not isinstance(model, ColdDiff) else ():
            add(f"{name}, share {share:g}", with_share(score, ~known, share))
        if isinstance(model, ColdDiff):
            trained = model.config
            for label, sampling in DRAWN_AGAIN[name]:
                model.config = trained.model_copy(update=sampling)
                model.prepare()
                add(name + label, score, options=sampling)
            if "content-kNN" not in rows:
                by_neighbours(model, content, known)
                add("content-kNN", score)
    print(table(rows))
    found = {
        "data": arguments.data,
        "features": features,
        "split": split.name,
        "params": split.params,
        "seed": arguments.seed,
    }
    found |= {"subset": arguments.subset, "items": len(known), "new_items": int((~known).sum()), "rows": rows}
    write_result(arguments.out or RESULTS / f"cold_items-{arguments.data}.json", found, precision=precision)


def table(rows: dict[str, Any]) -> str:
    """The rows as Markdown, in per cent."""
    parts = ("new", "known", "all")
    heads = [
        f"{metric.replace('recall', 'Recall').replace('ndcg', 'NDCG')}, {part}" for part in parts for metric in METRICS
    ]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "--:|" * len(heads)]
    for name, row in rows.items():
        figures = [f"{100 * row[part][metric]:.2f}" for part in parts for metric in METRICS]
        lines.append(f"| {name} | {' | '.join(figures)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
