"""Item-kNN and EASE against dense double-precision algebra, and on real data against an independent computation."""

from __future__ import annotations

import dataclasses
import itertools
import math

import ir_measures
import numpy as np
import polars as pl
import pytest
import torch
from scipy import sparse

import rediffuse as rd
from rediffuse.data.histories import Histories
from rediffuse.errors import ConfigError, DataError, RediffuseWarning
from rediffuse.evaluation import evaluate_task, model_scores
from rediffuse.models.base import TrainingData
from rediffuse.models.baselines import ease
from rediffuse.models.baselines.ease import EASE, EASEConfig
from rediffuse.models.baselines.itemknn import ItemKNN, ItemKNNConfig
from rediffuse.readers.public_datasets import public_dataset
from rediffuse.testing import synthetic_interactions


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
    monkeypatch.setattr("rediffuse.models.baselines.item_item.BLOCK", 7)
    blocks = ItemKNN(ItemKNNConfig(), 31)
    blocks.fit(training(rows, 31))
    assert torch.equal(whole.near, blocks.near)
    assert torch.equal(whole.weight, blocks.weight)


def test_fitting_again_forgets_the_first_data(rows):
    again, once = (ItemKNN(ItemKNNConfig(), 31) for _ in range(2))
    again.fit(training(rows, 31))
    few = rows.take(np.arange(5))
    for model in (again, once):
        model.fit(training(few, 31))
    assert torch.equal(again.near, once.near)
    assert torch.equal(again.weight, once.weight)


@pytest.mark.parametrize("kind", [EASE, ItemKNN])
def test_recent_interactions_weigh_more_in_the_row_that_is_scored(rows, kind):
    plain, weighted = kind(kind.Config(), 31), kind(kind.Config(input_weighting="half_life_events", half_life=1.0), 31)
    for model in (plain, weighted):
        model.fit(training(rows, 31))
    assert torch.equal(plain.weight, weighted.weight)
    alone = plain.score(Histories.from_lists([[4], [9], [2]]))
    found = weighted.score(Histories.from_lists([[4, 9, 2], [4, 9, 4]]))
    expected = torch.stack((alone[0] / 4 + alone[1] / 2 + alone[2], alone[0] + alone[1] / 2))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_weights_by_days_need_times(rows, tmp_path):
    data = synthetic_interactions()
    run = rd.train("ease", data, tmp_path / "run", config={"input_weighting": "half_life_days", "half_life": 0.01})
    assert "times" in pl.read_parquet(run.path / "users.parquet").columns
    model = rd.Recommender.load(run.path).model
    history = data.interactions.take(np.array([0]))
    by_order = EASE(EASEConfig(input_weighting="order"), data.num_items)
    by_order.load_state_dict(model.state_dict())
    assert not torch.allclose(model.score(history), by_order.score(history))
    with pytest.warns(RediffuseWarning, match="no times"):
        found = model.score(dataclasses.replace(history, times=None))
    assert torch.equal(found, by_order.score(history))
    without = dataclasses.replace(data, has_timestamps=False)
    with pytest.raises(DataError, match="input_weighting=half_life_days needs the times"):
        rd.train("ease", without, tmp_path / "other", config={"input_weighting": "half_life_days"})


# --- EASE: masking and neighbours -----------------------------------------------------------------------------


def test_masking_predicts_the_cells_that_dropout_hides():
    """The expectation over all masks of a row, as a weighted least squares of each item on the others."""
    p, regularization, items = 0.3, 0.7, 4
    x = (np.random.default_rng(3).random((9, items)) < 0.6).astype(float)
    masks = np.array(list(itertools.product([0, 1], repeat=items)))  # 1: the cell is kept
    chances = np.prod(np.where(masks == 1, 1 - p, p), axis=1)
    expected = np.zeros((items, items))
    for item in range(items):
        others = np.delete(np.arange(items), item)
        normal = p * (1 - p) ** 2 * regularization * np.eye(items - 1)
        right = np.zeros(items - 1)
        for mask, chance in zip(masks, chances, strict=True):
            if mask[item] == 0:  # the loss is at hidden cells alone
                inputs = (x * mask)[:, others]
                normal += chance * inputs.T @ inputs
                right += chance * inputs.T @ x[:, item]
        expected[others, item] = np.linalg.solve(normal, right)
    model = EASE(EASEConfig(regularization=regularization, masking=p), items)
    model.fit(training(Histories.from_lists([np.flatnonzero(row).tolist() for row in x]), items))
    np.testing.assert_allclose(model.weight.numpy() / (1 - p), expected, atol=2e-6)


def restricted(x: np.ndarray, neighbours: int, regularization: float, masking: float) -> np.ndarray:
    """Each column by a dense regression on the items with the largest cosines."""
    items, gram, cosines = x.shape[1], x.T @ x, knn_weights(x, neighbours, 1e-12)
    penalized = gram + np.diag(regularization + masking / (1 - masking) * np.diag(gram))
    weights = np.zeros((items, items))
    for item in range(items):
        near = np.flatnonzero(cosines[item])
        weights[near, item] = np.linalg.solve(penalized[np.ix_(near, near)], gram[near, item])
    return weights


@pytest.mark.parametrize("masking", [0.0, 0.4])
@pytest.mark.parametrize("neighbours", [1, 4, 1000])
def test_neighbours_restrict_the_regression(rows, neighbours, masking):
    options = {"regularization": 3.0, "masking": masking}
    model = EASE(EASEConfig(neighbours=neighbours, **options), 31)
    model.fit(training(rows, 31))
    x, known = dense(rows, 31), rows.take(np.flatnonzero(rows.lengths))
    weights = restricted(x, neighbours, **options)
    assert model.weight.shape == model.near.shape == (np.count_nonzero(weights),)
    found = model.score(known).numpy()
    np.testing.assert_allclose(found, dense(known, 31) @ weights, atol=2e-6)


@pytest.mark.parametrize("masking", [0.0, 0.4])
def test_with_all_other_items_as_neighbours_it_is_ease(rows, masking):
    # With this user, every item has a user in common with every other one.
    rows = Histories.joined([rows, Histories.from_lists([list(range(31))])])
    options = {"regularization": 3.0, "masking": masking}
    whole, restricted = EASE(EASEConfig(**options), 31), EASE(EASEConfig(neighbours=30, **options), 31)
    for model in (whole, restricted):
        model.fit(training(rows, 31))
    single = Histories.from_lists([[item] for item in range(31)])
    torch.testing.assert_close(restricted.score(single), whole.score(single), rtol=0, atol=2e-6)


def test_blocks_of_items_do_not_change_sparse_weights(rows, monkeypatch):
    whole, blocks = (EASE(EASEConfig(neighbours=3), 31) for _ in range(2))
    whole.fit(training(rows, 31))
    monkeypatch.setattr("rediffuse.models.baselines.item_item.BLOCK", 7)
    blocks.fit(training(rows, 31))
    assert torch.equal(whole.near, blocks.near)
    assert torch.equal(whole.weight, blocks.weight)


def test_ease_is_sparse_where_the_dense_matrix_does_not_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(ease, "free_memory", lambda: 2**30)
    model = EASE(EASEConfig(), 10_000)
    with pytest.warns(RediffuseWarning, match=r"1\.1 GiB for 10,000 items .* 1\.0 GiB are free.* its 200 nearest"):
        assert model.neighbours() == 200
    assert EASE(EASEConfig(), 9_000).neighbours() is None
    EASE(EASEConfig(neighbours=3_000), 10_000)
    with pytest.raises(ConfigError, match=r"EASE needs 1\.2 GiB for 4,000 neighbours of 10,000 items, and 1\.0 GiB"):
        EASE(EASEConfig(neighbours=4_000), 10_000)

    # On any machine: LAPACK has ended in a segmentation fault here.
    monkeypatch.setattr(ease, "free_memory", lambda: 2**45)
    with pytest.warns(RediffuseWarning, match=r"16\.0 GiB for 37,868 items .* LAPACK inverts 23,170 .* 200 nearest"):
        assert EASE(EASEConfig(), 37_868).neighbours() == 200
    with pytest.raises(ConfigError, match=r"20,000 neighbours of 37,868 items"):
        EASE(EASEConfig(neighbours=20_000), 37_868)

    data = synthetic_interactions()
    monkeypatch.setattr(ease, "free_memory", lambda: 32 * data.num_items * 3)
    with pytest.warns(RediffuseWarning, match="its 3 nearest items instead"):
        run = rd.train("ease", data, tmp_path / "run")
    monkeypatch.undo()  # a run that was trained sparse stays so, also on a larger machine
    loaded = rd.Recommender.load(run.path).model
    assert loaded.weight.shape == loaded.near.shape
    assert 0 < len(loaded.near) <= 3 * data.num_items
    same = EASE(EASEConfig(neighbours=3), data.num_items)
    split = rd.split.default(data)
    same.fit(training(split.training_view().train, data.num_items))
    rows = Histories.from_lists([[1, 2, 3]])
    assert torch.equal(same.score(rows), loaded.score(rows))


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
