"""Item-kNN and EASE against dense double-precision algebra, and on real data against an independent computation."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import ir_measures
import numpy as np
import pytest
import torch
from scipy import sparse

import rediffuse as rd
from rediffuse.data.histories import Histories
from rediffuse.errors import ConfigError
from rediffuse.evaluation import evaluate_task, model_scores
from rediffuse.models.base import TrainingData
from rediffuse.models.baselines import ease
from rediffuse.models.baselines.ease import EASE, EASEConfig
from rediffuse.models.baselines.itemknn import ItemKNN, ItemKNNConfig
from rediffuse.readers.public_datasets import public_dataset


def dense(rows: Histories, num_items: int) -> np.ndarray:
    matrix = np.zeros((len(rows), num_items))
    matrix[rows.owners, rows.items] = 1
    return matrix


def counts_in_common(x: np.ndarray) -> np.ndarray:
    """X^T X; sparse, because that is fast."""
    matrix = sparse.csr_array(x)
    return (matrix.T @ matrix).toarray()


def ease_weights(x: np.ndarray, regularization: float) -> np.ndarray:
    """Steck 2019, eq. 8, in double precision."""
    inverse = np.linalg.inv(counts_in_common(x) + regularization * np.eye(x.shape[1]))
    weights = np.eye(x.shape[1]) - inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return weights


def knn_weights(x: np.ndarray, neighbours: int, shrinkage: float) -> np.ndarray:
    """Row i: the similarity of its nearest neighbours to item i; ties to the lower number."""
    count = x.sum(0)
    similarity = counts_in_common(x) / (np.sqrt(np.outer(count, count)) + shrinkage)
    np.fill_diagonal(similarity, 0)
    for row in similarity:
        row[np.argsort(-row, kind="stable")[neighbours:]] = 0
    return similarity


def training(rows: Histories, num_items: int) -> TrainingData:
    return TrainingData(rows, len(rows), num_items, np.bincount(rows.items, minlength=num_items))


@pytest.fixture
def rows() -> Histories:
    rng = np.random.default_rng(0)
    lists = [rng.integers(0, 30, rng.integers(0, 12)).tolist() for _ in range(80)]
    return Histories.from_lists(lists)  # with repeated items, an item without users, users without interactions


def test_ease_is_the_closed_form(rows):
    model = EASE(EASEConfig(regularization=3.0), 31)
    model.fit(training(rows, 31))
    expected = ease_weights(dense(rows, 31), 3.0)
    np.testing.assert_allclose(model.weight.numpy(), expected, atol=2e-6)
    known = np.flatnonzero(rows.lengths)
    found = model.score(rows.take(known)).numpy()
    np.testing.assert_allclose(found, dense(rows.take(known), 31) @ expected, atol=1e-5)


@pytest.mark.parametrize(("neighbours", "shrinkage"), [(5, 0.0), (3, 7.0), (1000, 2.0)])
def test_item_knn_is_shrunk_cosine(rows, neighbours, shrinkage):
    model = ItemKNN(ItemKNNConfig(neighbours=neighbours, shrinkage=shrinkage), 31)
    model.fit(training(rows, 31))
    known = np.flatnonzero(rows.lengths)
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 for the item without users
        expected = np.nan_to_num(knn_weights(dense(rows, 31), neighbours, shrinkage))
    np.testing.assert_allclose(model.score(rows.take(known)).numpy(), dense(rows.take(known), 31) @ expected, atol=1e-5)


def test_blocks_of_items_do_not_change_neighbours(rows, monkeypatch):
    whole = ItemKNN(ItemKNNConfig(), 31)
    whole.fit(training(rows, 31))
    monkeypatch.setattr("rediffuse.models.baselines.itemknn.BLOCK", 7)
    blocks = ItemKNN(ItemKNNConfig(), 31)
    blocks.fit(training(rows, 31))
    assert torch.equal(whole.near, blocks.near)
    assert torch.equal(whole.weight, blocks.weight)


def test_ease_refuses_what_does_not_fit(monkeypatch):
    monkeypatch.setattr(ease.psutil, "virtual_memory", lambda: SimpleNamespace(available=2**30))
    EASE(EASEConfig(), 9_000)
    with pytest.raises(ConfigError, match=r"EASE needs 1\.1 GiB for 10,000 items .* 1\.0 GiB are free"):
        EASE(EASEConfig(), 10_000)


@pytest.fixture(scope="module")
def movielens(data_root) -> rd.split.Split:
    return rd.split.given(public_dataset("diffrec-ml1m-clean", root=data_root))


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["ease", "itemknn"])
def test_real_figures_agree_with_an_independent_computation(name, movielens):
    """Fitted to all training rows; the validation items of 1,000 users ranked without their training items."""
    view, task = movielens.training_view(), movielens.task("valid")
    some = np.arange(0, len(task.users), len(task.users) // 1000)[:1000]
    task = dataclasses.replace(
        task, users=task.users[some], histories=task.histories.take(some), truth=task.truth.take(some)
    )
    kind, config = {"ease": (EASE, EASEConfig()), "itemknn": (ItemKNN, ItemKNNConfig())}[name]
    model = kind(config, view.num_items)
    model.fit(training(view.train, view.num_items))
    ours = evaluate_task(
        model_scores(model, task), task, num_items=view.num_items, metrics=["recall@20", "ndcg@10", "mrr@10"]
    )

    x = dense(view.train, view.num_items)
    weights = ease_weights(x, 250.0) if name == "ease" else knn_weights(x, 100, 10.0)
    scores = x[task.users] @ weights
    scores[x[task.users] > 0] = -np.inf
    best = np.argsort(-scores, axis=1, kind="stable")[:, :20]
    run = {str(u): {str(i): 20.0 - place for place, i in enumerate(best[n])} for n, u in enumerate(task.users)}
    truth = {str(u): {str(i): 1 for i in task.truth.row(n)} for n, u in enumerate(task.users)}
    measures = [ir_measures.parse_measure(m) for m in ("R@20", "nDCG@10", "RR@10")]
    theirs = ir_measures.calc_aggregate(measures, truth, run)
    for ours_name, measure in zip(("recall@20", "ndcg@10", "mrr@10"), measures, strict=True):
        assert math.isclose(ours.value(ours_name + "/unseen"), theirs[measure], abs_tol=5e-5)
