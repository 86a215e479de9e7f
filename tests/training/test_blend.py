"""Blends: the sum that they answer with, how their weights are chosen, and what is refused."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import rediffuse as rd
from rediffuse.cli import app
from rediffuse.data.histories import Histories
from rediffuse.errors import ConfigError, RunError
from rediffuse.models.blend import Blend, simplex, with_share
from rediffuse.models.sampling import Sampling
from rediffuse.runs.run_folder import read_run
from rediffuse.testing import synthetic_interactions

GRU = {"embedding_size": 16, "batch_size": 64, "epochs": 2, "precision": "fp32"}


@pytest.fixture(scope="module")
def data():
    return synthetic_interactions()


@pytest.fixture(scope="module")
def parts(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    split = rd.split.leave_one_out(data)
    options = {"gru4rec": GRU | {"prior": "head"}, "transition": {}, "bprmf": GRU, "popularity": {}}
    return {name: rd.train(name, split, folder / name, config=own, seed=3) for name, own in options.items()}


@pytest.fixture(scope="module")
def blended(parts, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("blend") / "run"
    return rd.blend([parts["gru4rec"], parts["transition"].path], data, folder)


ROWS = Histories.from_lists([[1, 2, 3], [7], [5, 4, 5]])


def test_scores_are_the_weighted_sum_of_logarithms(parts, blended):
    model = read_run(blended.path).model
    assert isinstance(model, Blend)
    model.weights = (0.3, 0.7)
    network, graph = (read_run(parts[name].path).model.score(ROWS).double() for name in ("gru4rec", "transition"))
    expected = 0.3 * (network - network.exp().sum(1, keepdim=True).log())
    expected += 0.7 * (graph / graph.max(1, keepdim=True).values + 1e-3).log()
    torch.testing.assert_close(model.score(ROWS).double(), expected, rtol=1e-5, atol=1e-5)


def test_a_part_alone_ranks_as_its_run(parts, blended):
    model = read_run(blended.path).model
    for weights, name in (((1.0, 0.0), "gru4rec"), ((0.0, 1.0), "transition")):
        model.weights = weights
        expected = read_run(parts[name].path).model.score(ROWS)
        best = expected.argmax(1)
        assert torch.equal(model.score(ROWS).argmax(1), best)


def test_users_whom_one_part_knows_get_the_fallback_of_the_other(parts, data, tmp_path):
    run = rd.blend([parts["bprmf"], parts["transition"]], data, tmp_path / "run")
    model = read_run(run.path).model
    model.weights = (0.5, 0.5)
    rows, users = Histories.from_lists([[], []]), np.array([0, -1])
    assert model.has_user_state(users).tolist() == [True, False]
    of_factors, of_graph = model.logs(rows, users, Sampling(0))
    fallback = model.models[1].fallback
    torch.testing.assert_close(of_graph[0], (fallback / fallback.max() + 1e-3).log())
    scores = model.score(rows, users=users)
    torch.testing.assert_close(scores[0], 0.5 * of_factors[0] + 0.5 * of_graph[0])
    assert torch.equal(scores[1], model.fallback)


def test_weights_are_chosen_on_validation_and_recorded(parts, blended):
    resolved = blended.config["resolved"]
    curve = resolved["curve"]
    assert len(curve) == 11
    (chosen,) = [record for record in curve if record["chosen"]]
    assert chosen["weights"] == resolved["settings"]["weights"]
    assert chosen["ndcg@10/unseen"] == pytest.approx(blended.validation["ndcg@10/unseen"], abs=1e-6)
    # Each part alone has the figure of its own run, which was measured before it learned from the validation subset.
    for weights, name in (([1.0, 0.0], "gru4rec"), ([0.0, 1.0], "transition")):
        (alone,) = [record for record in curve if record["weights"] == weights]
        assert alone["ndcg@10/unseen"] == pytest.approx(parts[name].validation["ndcg@10/unseen"], abs=1e-6)


def test_it_answers_with_parts_that_learned_from_the_validation_interactions(parts, blended):
    model = read_run(blended.path).model
    for part, name in zip(model.models, ("gru4rec", "transition"), strict=True):
        own = read_run(parts[name].path).model
        assert own.state_dict().keys() == part.state_dict().keys()
        assert all(torch.equal(weight, part.state_dict()[key]) for key, weight in own.state_dict().items())
    assert blended.config["training"]["refitted"] == "prior of gru4rec and transition"


def test_it_needs_no_other_folder_and_is_evaluated_compared_and_served(parts, data, tmp_path):
    folders = [shutil.copytree(parts[name].path, tmp_path / name) for name in ("gru4rec", "transition")]
    run = rd.blend(folders, data, tmp_path / "blend")
    before = read_run(run.path).model.score(ROWS)
    for folder in folders:
        shutil.rmtree(folder)
    assert torch.equal(read_run(run.path).model.score(ROWS), before)
    recommended = rd.Recommender.load(run.path).recommend(users=data.user_ids.to_list()[:3], k=5)
    assert len(recommended) == 15
    rd.evaluate(run, data)
    other = rd.train("ease", rd.split.leave_one_out(data), tmp_path / "ease")
    rd.evaluate(other, data)
    labels = set(rd.compare([run.path, other.path], out=tmp_path / "report").facts["variants"])
    assert labels == {"blend", "ease"}
    text = (tmp_path / "report/report.html").read_text()
    assert "blend (only the prior of gru4rec and transition)" in text
    again = rd.blend([other, parts["popularity"]], data, tmp_path / "again")
    rd.evaluate(again, data)
    labels = set(rd.compare([run.path, again.path], out=tmp_path / "two").facts["variants"])
    assert labels == {"blend (gru4rec + transition)", "blend (ease + popularity)"}


def test_more_than_three_parts_are_searched_one_after_the_other(parts, data, tmp_path):
    run = rd.blend(parts.values(), data, tmp_path / "run", metric="recall@20")
    curve = run.config["resolved"]["curve"]
    weights = np.array([record["weights"] for record in curve])
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)
    assert {tuple(row) for row in np.eye(4)} <= {tuple(row) for row in weights}
    best = max(record["recall@20"] for record in curve)
    chosen = next(record["recall@20"] for record in curve if record["chosen"])
    alone = max(record["recall@20"] for record in curve if max(record["weights"]) == 1)
    assert alone <= chosen <= best


def test_weights_cover_the_simplex():
    assert len(simplex(2)) == 11
    assert len(simplex(3)) == 66
    assert all(abs(sum(weights) - 1) < 1e-9 and min(weights) >= 0 for weights in simplex(3))
    assert with_share((0.5, 0.25, 0.25), 0, 0.2) == (0.2, 0.4, 0.4)
    assert with_share((1.0, 0.0), 0, 0.2) == (1.0, 0.0)


def test_what_cannot_be_blended_is_refused(parts, blended, data, tmp_path):
    gru, graph = parts["gru4rec"].path, parts["transition"].path
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="1 runs were given"):
        rd.blend([gru], data, out)
    with pytest.raises(ConfigError, match="1 runs were given"):
        rd.blend(gru, data, out)
    with pytest.raises(ConfigError, match="A run was given twice"):
        rd.blend([gru, gru], data, out)
    with pytest.raises(ConfigError, match="out"):
        rd.blend([gru, graph], data)
    with pytest.raises(RunError, match=r"is a blend.*\n.*made of"):
        rd.blend([gru, blended], data, out)
    with pytest.raises(RunError, match="trained on other data"):
        rd.blend([gru, graph], synthetic_interactions(seed=1), out)
    elsewhere = rd.train("popularity", rd.split.ratio(data), tmp_path / "elsewhere")
    with pytest.raises(RunError, match="different splits"):
        rd.blend([gru, elsewhere], data, out)
    with pytest.raises(ConfigError, match=r"A blend is not trained.*\n.*rediffuse blend RUN RUN"):
        rd.train("blend", rd.split.leave_one_out(data), out)
    assert not out.exists()
    with pytest.raises(RunError, match="not empty"):
        rd.blend([gru, graph], data, blended.path)


def test_the_command_blends(parts, data, tmp_path):
    data.save(tmp_path / "data")
    arguments = ["blend", *(str(parts[name].path) for name in ("gru4rec", "transition")), "--json"]
    done = CliRunner().invoke(app, [*arguments, "--data", str(tmp_path / "data"), "-o", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    assert rd.Recommender.load(tmp_path / "run").model.name == "blend"
