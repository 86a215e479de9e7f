"""Weights and options are chosen on users with a history; both values are reported; nothing is chosen on none."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

import rediffuse as rd
from rediffuse.config import WITH_HISTORY, selected_value
from rediffuse.errors import DataError, RediffuseWarning
from rediffuse.evaluation import evaluate_task, model_scores
from rediffuse.readers.interactions import read_interactions
from rediffuse.runs.run_folder import read_run
from rediffuse.training import estimate
from rediffuse.training.loop import Trainer
from rediffuse.training.refit import _chosen_steps

SMALL = {"epochs": 3, "embedding_size": 8, "blocks": 1, "max_length": 8}


def dataset(users: int = 40, spread: int = 600):
    """Users who begin at different times, so that some are new in validation and in the test."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(users):
        start = int(rng.integers(0, spread))
        item = int(rng.integers(0, 15))
        rows += [(user, (item + n) % 15, start + 30 * n) for n in range(8)]
    return read_interactions(pl.DataFrame(rows, ["user_id", "item_id", "time"], orient="row"), time="time")


def sessions():
    rows = [(s, (3 * s + i) % 9, 100 * s + i) for s in range(40) for i in range(4)]
    return read_interactions(pl.DataFrame(rows, ["user_id", "item_id", "time"], orient="row"), time="time")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    split = rd.split.global_time(dataset(), 0.8, 0.8)
    folder = tmp_path_factory.mktemp("without")
    with pytest.warns(RediffuseWarning, match=r"validation users \(\d+ %\) have no history"):
        run = rd.train("sasrec", split, folder / "sasrec", config=SMALL)
    return split, run


def test_both_values_are_those_of_a_plain_evaluation(trained):
    split, run = trained
    valid = split.task("valid")
    assert 0 < valid.has_history.sum() < len(valid.users)
    model = read_run(run.path).model
    for task, before in ((valid, ""), (valid.with_history(), WITH_HISTORY)):
        found = evaluate_task(model_scores(model, task), task, num_items=15, metrics=["ndcg@10", "hr@10"])
        for name in ("ndcg@10", "hr@10", "ndcg@10/unseen", "hr@10/unseen"):
            assert run.validation[before + name] == pytest.approx(found.value(name), abs=1e-12)
    assert run.validation["ndcg@10"] != run.validation[WITH_HISTORY + "ndcg@10"]
    assert run.config["data"]["without_history"]["valid"] == int((~valid.has_history).sum())


def test_every_line_of_the_log_has_both_and_the_best_epoch_is_chosen_by_one(trained):
    _, run = trained
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    metric = run.config["config"]["metric"]
    values = [line["validation"][WITH_HISTORY + metric] for line in lines]
    assert all(metric in line["validation"] for line in lines)
    assert run.config["training"]["best_epoch"] == 1 + values.index(max(values))
    card = (run.path / "README.md").read_text()
    assert "on the validation users with a history" in card
    assert f"| {WITH_HISTORY}ndcg@10 |" in card


def test_users_without_a_history_cannot_outvote_the_others(tmp_path, monkeypatch):
    """All users are best in the second epoch, those with a history in the first: the first is kept, also by refit."""
    true = Trainer.validate
    epochs = iter([(0.1, 0.5), (0.9, 0.2), (0.3, 0.3), (0.3, 0.3)])

    def scripted(self, task=None):
        everyone, known = next(epochs)
        return {name: known if name.startswith(WITH_HISTORY) else everyone for name in true(self, task)}

    monkeypatch.setattr(Trainer, "validate", scripted)
    split = rd.split.global_time(dataset(), 0.8, 0.8)
    with pytest.warns(RediffuseWarning, match="have no history"):
        run = rd.train("sasrec", split, tmp_path / "run", config=SMALL)
    assert run.config["training"]["best_epoch"] == 1
    first = json.loads((run.path / "metrics.jsonl").read_text().splitlines()[0])
    assert _chosen_steps(read_run(run.path)) == {"fit": first["steps"]}


def test_where_all_have_a_history_nothing_is_added(tmp_path, recwarn):
    run = rd.train("sasrec", rd.split.leave_one_out(dataset()), tmp_path / "run", config=SMALL | {"epochs": 1})
    assert not [name for name in run.validation if name.startswith(WITH_HISTORY)]
    assert not [w for w in recwarn if "history" in str(w.message)]
    assert selected_value(run.validation, "ndcg@10") == run.validation["ndcg@10"]


def test_the_test_has_both_values_and_compare_shows_them(trained, tmp_path):
    split, run = trained
    result = rd.evaluate(run, split.dataset)
    task = split.task("test")
    model = read_run(run.path).model
    for part, key in ((task, "metrics"), (task.with_history(), "metrics_with_history")):
        found = evaluate_task(model_scores(model, part), part, num_items=15, metrics=["ndcg@10", "coverage@10"])
        for policy in ("all", "unseen"):
            for name in ("ndcg@10", "coverage@10"):
                assert result[key][policy][name] == pytest.approx(found.metrics[policy][name], abs=1e-12)
    assert "with a history" in repr(result)
    known = int(task.has_history.sum())
    card = (run.path / "README.md").read_text()
    assert f"{len(task.users)} users, {len(task.users) - known} (" in card
    comparison = rd.compare([run], out=tmp_path / "report")
    row = comparison.summary.filter(policy="all", metric="ndcg@10").row(0, named=True)
    assert row["mean"] == pytest.approx(result["metrics"]["all"]["ndcg@10"])
    assert row["with_history"] == pytest.approx(result["metrics_with_history"]["all"]["ndcg@10"])
    row = comparison.summary.filter(policy="unseen", metric="coverage@10").row(0, named=True)
    assert row["with_history"] == result["metrics_with_history"]["unseen"]["coverage@10"]
    assert f"Over the {known:,} users with a history:" in (tmp_path / "report" / "report.md").read_text()


def test_nothing_is_chosen_on_users_who_have_no_history(tmp_path):
    split = rd.split.global_time(sessions(), 0.75, 0.8)
    refused = pytest.raises(DataError, match=r"(?s)None of the \d+ validation users has a history.*--split sessions")
    with refused:
        rd.train("sasrec", split, tmp_path / "run", config=SMALL)
    assert not (tmp_path / "run").exists()
    with refused:
        rd.tune("sasrec", split, tmp_path / "study", trials=1, config={"epochs": 1})
    assert not (tmp_path / "study").exists()
    with refused:
        estimate("sasrec", split, config=SMALL)


def test_a_model_in_closed_form_keeps_its_settings_and_says_so(tmp_path):
    data = sessions()
    split = rd.split.global_time(data, 0.75, 0.8)
    with pytest.warns(RediffuseWarning, match=r"None of the \d+ validation users has a history, so nothing is chosen"):
        run = rd.train("popularity", split, tmp_path / "popularity")
    with pytest.warns(RediffuseWarning, match=r"None of the \d+ test users has a history"):
        result = rd.evaluate(run, data)
    assert result["metrics_with_history"] is None
    assert result["counts"]["cold_users"] == result["counts"]["users"]
    with pytest.warns(RediffuseWarning, match="nothing is chosen"):
        theat = rd.train("theat", split, tmp_path / "theat")
    assert theat.config["resolved"].get("curve") in (None, [])
    with pytest.raises(DataError, match="the weights of a blend cannot be chosen"):
        rd.blend([run, theat], data, tmp_path / "blend")


def test_a_choice_on_very_few_users_is_called_that(tmp_path):
    with pytest.warns(RediffuseWarning, match=r"chosen on the other 1; both .* So few decide little.*--split sessions"):
        rd.train("popularity", rd.split.global_time(sessions(), 0.75, 0.79), tmp_path / "run")
