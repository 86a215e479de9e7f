"""The prior beside a network, and the residual in its loss, against dense recomputations."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest
import torch
from tests.fitting import steps

import rediffuse as rd
from rediffuse.data.histories import Histories
from rediffuse.errors import ConfigError
from rediffuse.models import model_class, residual
from rediffuse.models.base import TrainingData
from rediffuse.models.baselines.gru4rec import GRU4Rec
from rediffuse.models.prior import FLOOR, GraphPrior, log_scores
from rediffuse.models.theat import TemporalHeat, TemporalHeatConfig
from rediffuse.runs.run_folder import read_run
from rediffuse.testing import synthetic_interactions

SMALL = {"embedding_size": 16, "batch_size": 64, "epochs": 2, "precision": "fp32", "patience": 2}


@pytest.fixture(scope="module")
def split():
    return rd.split.leave_one_out(synthetic_interactions())


@pytest.fixture(scope="module")
def runs(split, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prior")
    return {
        prior: rd.train("gru4rec", split, folder / prior, config=SMALL | {"prior": prior}, seed=3)
        for prior in ("none", "head", "residual")
    }


def histories(items: int = 12, users: int = 15, seed: int = 0) -> Histories:
    """Histories with repeated items, and one user without any."""
    rng = np.random.default_rng(seed)
    rows = [rng.integers(items, size=rng.integers(2, 9)).tolist() for _ in range(users)]
    return Histories.from_lists([*rows, [], [5]])


def data_of(rows: Histories, items: int) -> TrainingData:
    return TrainingData(rows, len(rows), items, np.bincount(rows.without_synthetic().items, minlength=items))


# --- the head ----------------------------------------------------------------------------------------------


def test_log_scores_of_amounts_and_logits():
    amounts = torch.tensor([[4.0, 1.0, 0.0, -3.0], [0.0, 0.0, 0.0, 0.0]])
    expected = torch.tensor([[1.0 + FLOOR, 0.25 + FLOOR, FLOOR, FLOOR], [FLOOR] * 4]).log()
    torch.testing.assert_close(log_scores(amounts, False), expected)
    torch.testing.assert_close(log_scores(amounts, True), amounts - amounts.exp().sum(1, keepdim=True).log())


def test_scores_are_the_sum_of_three_logarithms(runs):
    model = read_run(runs["head"].path).model
    model.prior.weights = (0.3, 0.8)
    rows = Histories.from_lists([[1, 2, 3], [], [7]])
    found = model.score(rows)
    model.prior.weights = (0.0, 0.0)
    network = model.score(rows).double()
    graph = model.prior.graph
    theat = graph.score(rows).double()
    recent = graph.recent.value
    known = [0, 2]
    expected = network[known] - network[known].exp().sum(1, keepdim=True).log()
    expected += 0.3 * (recent / recent.max() + 1e-3).log()
    expected += 0.8 * (theat[known] / theat[known].max(1, keepdim=True).values + 1e-3).log()
    torch.testing.assert_close(found[known].double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(found[1], model.fallback)


def test_the_head_leaves_the_network_as_it_is(runs):
    plain, head = (read_run(runs[prior].path).model for prior in ("none", "head"))
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, head.state_dict()[name]), name
    head.prior.weights = (0.0, 0.0)
    rows = Histories.from_lists([[1, 2, 3], []])
    assert torch.equal(plain.score(rows), head.score(rows))
    assert head.ranks_by_vectors


def test_the_choice_is_recorded_and_is_that_of_the_validation_metrics(runs):
    resolved = runs["head"].config["resolved"]["prior"]
    curve = resolved["curve"]
    assert [record for record in curve if record["chosen"]] == [
        record for record in curve if {k: record[k] for k in ("popularity", "graph")} == resolved["settings"]
    ]
    assert {"popularity": 0.0, "graph": 0.0} in [{k: r[k] for k in ("popularity", "graph")} for r in curve]
    # All users of this task are compared, so the curve has the figures that the run reports.
    chosen = next(record["ndcg@10"] for record in curve if record["chosen"])
    assert chosen == pytest.approx(runs["head"].validation["ndcg@10"], abs=1e-6)
    alone = next(record["ndcg@10"] for record in curve if record["popularity"] == record["graph"] == 0)
    assert alone == pytest.approx(runs["none"].validation["ndcg@10"], abs=1e-6)
    assert chosen >= alone
    assert set(resolved["theat"]) >= {"settings", "curve"}


def test_the_graph_learns_from_the_validation_interactions_after_the_choice(runs, split):
    assert runs["head"].config["training"]["refitted"] == "prior"
    assert runs["none"].config["training"]["refitted"] is False
    model = read_run(runs["head"].path).model
    graph = TemporalHeat(TemporalHeatConfig(), model.num_items)
    before = split.before_test()
    graph.fit(dataclasses.replace(data_of(before, model.num_items), has_timestamps=True))
    assert (graph.shared_users.csr != model.prior.graph.shared_users.csr).nnz == 0
    assert "prior was refitted" in (runs["head"].path / "README.md").read_text()


@pytest.mark.parametrize("name", ["lightgcn", "tdiffrec", "diffurec", "pdrec"])
def test_other_networks_answer_with_a_prior(name, split, tmp_path):
    kind = model_class(name)
    own = {"backbone_options": {"embedding_size": 16}, "diffusion": {"epochs": 1}} if name == "pdrec" else {}
    options = {k: v for k, v in (SMALL | {"epochs": 1}).items() if k in kind.Config.model_fields} | own
    run = rd.train(name, split, tmp_path / "run", config=options | {"prior": "head"})
    model = read_run(run.path).model
    assert model.prior.on
    assert run.config["training"]["refitted"] == "prior"
    rows = Histories.from_lists([[1, 2], [3]])
    combined = model.score(rows)
    model.prior.weights = (0.0, 0.0)
    network = model.score(rows)
    model.prior.resolve(run.config["resolved"]["prior"])
    torch.testing.assert_close(combined, model.prior.combine(network, rows, name != "tdiffrec"))
    if name == "diffurec":
        assert run.config["resolved"]["sampling_steps"] == model.sampling_steps


def test_without_times_recent_popularity_is_popularity():
    prior = GraphPrior(12, "ndcg@10", residual=False)
    rows = histories()
    prior.fit(data_of(rows, 12))
    popularity, _ = prior.parts(Histories.from_lists([[1]]), torch.device("cpu"))
    counts = np.bincount(rows.items, minlength=12)
    np.testing.assert_allclose(popularity[0].numpy(), np.log(counts / counts.max() + 1e-3), atol=1e-5)


def test_an_index_and_an_export_are_refused(runs, tmp_path):
    pytest.importorskip("faiss")
    from rediffuse.exporting import export
    from rediffuse.recommender.index_building import build_index

    for prior in ("head", "residual"):
        with pytest.raises(ConfigError, match=r"a prior is added.*\n.*prior=none"):
            build_index(runs[prior].path)
        with pytest.raises(ConfigError, match=r"a prior from the item graph.*\n.*prior=none"):
            export(runs[prior].path, tmp_path / prior, "torch-export")


def test_where_a_prior_does_not_fit_it_is_refused(split, tmp_path):
    cases = [
        ("bprmf", {"prior": "residual"}, "bprmf cannot have prior=residual"),
        ("bert4rec", {"prior": "residual"}, "bert4rec cannot have prior=residual"),
        ("sasrec", {"prior": "residual", "loss": "bce"}, "prior=residual is for loss=softmax"),
        ("pdrec", {"backbone_options": {"prior": "head"}}, "backbone_options.prior is 'head'"),
        ("pdrec", {"diffusion": {"prior": "head"}}, "diffusion.prior is 'head'"),
        ("diffuasr", {"classifier": {"prior": "head"}}, "classifier.prior is 'head'"),
        ("ease", {"prior": "head"}, "Unknown option 'prior'"),
    ]
    for name, options, message in cases:
        with pytest.raises(ConfigError, match=message):
            rd.train(name, split, tmp_path / "refused", config=options)
    assert not (tmp_path / "refused").exists()


# --- the residual ------------------------------------------------------------------------------------------


def dense(values, rows: int, items: int) -> np.ndarray:
    matrix = np.zeros((rows, items), dtype=np.float32)
    row, item, value = (part.numpy() for part in values)
    assert len(np.unique(row * items + item)) == len(row)
    matrix[row, item] = value
    return matrix


def expected_row(rows: Histories, items: int, user: int, position: int) -> np.ndarray:
    """r before an interaction of a user, from the interactions of all other users, in loops."""
    history = rows.row(user)[:position].tolist()
    others = [rows.row(other).tolist() for other in range(len(rows)) if other != user]
    every = [rows.row(other).tolist() for other in range(len(rows))]
    degrees = np.array([sum(item in row for row in every) for item in range(items)], dtype=float)
    reached = np.array([sum(item in row for row in others) for item in range(items)], dtype=float)
    score = np.zeros(items)
    for target in set(range(items)) - set(history):
        for since, item in enumerate(reversed(history[-residual.RECENT :])):
            shared = sum(len(set(row)) ** -0.5 for row in others if item in row and target in row)
            if shared:
                score[target] += 2 ** (-since / 5.0) * degrees[item] ** -0.5 * shared * reached[target] ** -0.6
        last = history[-1]
        follows = sum(
            0.5 ** (lag - 1)
            for row in others
            for p in range(len(row))
            for lag in (1, 2, 3)
            if p + lag < len(row) and row[p] == last and row[p + lag] == target
        )
        if follows:
            score[target] += 0.3 * degrees[last] ** -0.5 * follows * reached[target] ** -0.5
    return np.log1p(score / 1e-3)


def fitted(rows: Histories, items: int) -> GraphPrior:
    prior = GraphPrior(items, "ndcg@10", residual=True)
    prior.fit(data_of(rows, items))
    return prior


def test_in_training_the_user_is_left_out_of_the_graph():
    rows, items = histories(), 12
    prior = fitted(rows, items)
    targets = np.flatnonzero(rows.positions > 0)
    found = dense(prior.residual.training_values(prior.graph, torch.from_numpy(targets)), len(targets), items)
    for number, target in enumerate(targets):
        expected = expected_row(rows, items, int(rows.owners[target]), int(rows.positions[target]))
        np.testing.assert_allclose(found[number], expected, rtol=1e-4, atol=1e-3)
    assert (found > 0).any()


def test_a_graph_of_the_users_own_pairs_alone_says_nothing():
    rows = Histories.from_lists([[0, 1, 2, 3], [4, 5, 6, 7]])
    prior = fitted(rows, 8)
    targets = torch.from_numpy(np.flatnonzero(rows.positions > 0))
    assert not len(prior.residual.training_values(prior.graph, targets)[0])


def test_scoring_adds_what_training_added():
    """Before the last interaction of a user, training sees what scoring sees when that interaction is yet unknown."""
    rows, items = histories(), 12
    prior = fitted(rows, items)
    for user in (0, 3, 8):
        last = rows.offsets[user + 1] - 1
        now = prior.residual.training_values(prior.graph, torch.tensor([last]))
        shorter = rows.where(np.arange(len(rows.items)) != last)
        graph = TemporalHeat(TemporalHeatConfig(), items)
        graph.fit(data_of(shorter, items))
        then = prior.residual.values(graph, shorter.take(np.array([user])), torch.device("cpu"))
        np.testing.assert_allclose(dense(now, 1, items), dense(then, 1, items), rtol=1e-4, atol=1e-3)


def test_synthetic_interactions_are_not_in_the_graph():
    rows, items = histories(), 12
    counts = np.full(len(rows), 2)
    lists = [[9, 8, *rows.row(user).tolist()] for user in range(len(rows))]
    longer = Histories.from_lists(lists)
    longer = dataclasses.replace(longer, synthetic=longer.positions < np.repeat(counts, longer.lengths))
    plain, augmented = fitted(rows, items), fitted(longer, items)
    targets = np.flatnonzero(longer.positions > 0)
    found = dense(augmented.residual.training_values(augmented.graph, torch.from_numpy(targets)), len(targets), items)
    own = np.flatnonzero(rows.positions > 0)
    expected = dense(plain.residual.training_values(plain.graph, torch.from_numpy(own)), len(own), items)
    has_history = longer.positions[targets] > 2
    np.testing.assert_array_equal(found[has_history], expected)
    assert not found[~has_history].any()


def test_only_the_largest_values_are_kept(monkeypatch):
    rows, items = histories(), 12
    prior = fitted(rows, items)
    every = dense(prior.residual.values(prior.graph, rows, torch.device("cpu")), len(rows), items)
    monkeypatch.setattr(residual, "KEPT", 3)
    kept = dense(prior.residual.values(prior.graph, rows, torch.device("cpu")), len(rows), items)
    for all_of_row, of_row in zip(every, kept, strict=True):
        assert np.count_nonzero(of_row) <= 3
        assert sorted(of_row[of_row > 0]) == sorted(all_of_row[all_of_row > 0])[-3:]


@pytest.mark.parametrize("repeat_bias", [True, False])
def test_the_loss_is_that_of_dense_biased_logits(repeat_bias):
    rows, items = histories(), 12
    data = data_of(rows, items)
    torch.manual_seed(0)
    config = GRU4Rec.Config.build(None, SMALL | {"prior": "residual", "repeat_bias": repeat_bias, "dropout": 0.0})
    model = GRU4Rec(config, items)
    model.fit(data)
    if model.repeat is not None:
        torch.nn.init.constant_(model.repeat, -0.2)
    batch = model.batches(data, np.random.default_rng(0)).get(0)
    loss = model.loss(batch)
    loss.backward()
    found = model.prior.residual.strength.grad.clone()
    model.zero_grad()
    logits = model.metric_space(model.encode(batch).vectors) @ model.metric_space(model.catalogue()).T
    for target, (row, position) in enumerate(zip(batch.rows, batch.positions, strict=True)):
        for item in set(batch.items[row, : position + 1].tolist()) if repeat_bias else ():
            logits[target, item] = logits[target, item] + 10 * model.repeat
    own = [(rows.owners[i], rows.positions[i]) for i in batch.interactions.numpy()]
    r = torch.from_numpy(np.stack([expected_row(rows, items, int(u), int(p)) for u, p in own])).float()
    logits = logits + 10 * model.prior.residual.strength * r
    expected = torch.nn.functional.cross_entropy(logits, batch.targets)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    expected.backward()
    torch.testing.assert_close(found, model.prior.residual.strength.grad, rtol=1e-3, atol=1e-4)


def test_scores_add_the_residual_to_the_network(runs):
    model = read_run(runs["residual"].path).model
    model.prior.weights = (0.0, 0.0)
    rows = Histories.from_lists([[1, 2, 3], [7]])
    found = model.score(rows)
    beta = model.prior.residual.beta
    r = dense(model.prior.residual.values(model.prior.graph, rows, torch.device("cpu")), 2, model.num_items)
    with torch.no_grad():
        model.prior.residual.strength.zero_()
        torch.testing.assert_close(found, model.score(rows) + beta * torch.from_numpy(r))
    assert not model.ranks_by_vectors
    assert not r[0, [1, 2, 3]].any()
    assert r.any()


def test_beta_grows_where_the_graph_tells_the_next_item():
    starts = np.random.default_rng(0).integers(20, size=120)
    rows = Histories.from_lists([[(int(s) + step) % 20 for step in range(7)] for s in starts])
    torch.manual_seed(0)
    model = GRU4Rec(GRU4Rec.Config.build(None, SMALL | {"prior": "residual"}), 20)
    data = data_of(rows, 20)
    model.fit(data)
    losses = steps(model, data, 5, 0.01)
    assert losses[-1] < losses[0]
    assert model.prior.residual.beta > residual.START


def test_recommendations_are_those_of_the_combined_scores(runs, split):
    run = runs["residual"]
    recommender = rd.Recommender.load(run.path)
    users = split.dataset.user_ids.to_list()[:4]
    found = recommender.recommend(users=users, k=5, filter_seen=False)
    contents = read_run(run.path)
    scores = contents.model.score(contents.histories.take(np.arange(4)), users=np.arange(4))
    best = torch.argsort(scores, dim=1, descending=True, stable=True)[:, :5]
    expected = [split.dataset.item_ids[item] for row in best.tolist() for item in row]
    assert pl.Series(expected).equals(found["item_id"].alias(""))
