"""`evaluate`: its result and the files that it writes into the run folder."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import polars as pl
import pytest
from tests.dying import dies

import rediffuse as rd
from rediffuse.data.split import TRAIN
from rediffuse.errors import ConfigError, RunError
from rediffuse.evaluation import evaluate_task, model_scores
from rediffuse.evaluation.protocols import split_for
from rediffuse.runs.run_folder import add_files
from rediffuse.testing import synthetic_interactions


@pytest.fixture(scope="module")
def data():
    return synthetic_interactions()


@pytest.fixture
def run(data, tmp_path):
    return rd.train("itemknn", rd.split.leave_one_out(data), tmp_path / "run").path


def test_files_hold_the_result(run, data):
    facts = rd.evaluate(run, data)
    split = rd.split.leave_one_out(data)
    task, model = split.task("test"), rd.Recommender.load(run).model
    direct = evaluate_task(model_scores(model, task), task, num_items=data.num_items)
    for policy in ("all", "unseen"):
        assert facts["metrics"][policy] == pytest.approx(direct.metrics[policy])
    assert json.loads((run / "test.json").read_text()) == facts

    users = pl.read_parquet(run / "per_user_test.parquet")
    assert users["user_id"].to_list() == data.user_ids.gather(task.users).to_list()
    assert users["ndcg@10/unseen"].mean() == pytest.approx(facts["metrics"]["unseen"]["ndcg@10"])
    truth = pl.read_parquet(run / "truth_test.parquet")
    assert truth["item_id"].to_list() == data.item_ids.gather(task.truth.items).to_list()
    assert (truth["rank"] <= 10).mean() == pytest.approx(facts["metrics"]["all"]["hr@10"])
    lists = pl.read_parquet(run / "lists_test.parquet").filter(pl.col("policy").cast(pl.String) == "unseen")
    recommended = rd.Recommender.load(run).recommend(
        histories=[data.item_ids.gather(task.histories.row(row)).to_list() for row in range(5)], k=20
    )
    ours = lists.filter(pl.col("user_id").is_in(users["user_id"].head(5).to_list()))
    assert ours["item_id"].to_list() == recommended["item_id"].to_list()
    rd.Recommender.load(run)  # the manifest lists the new files


def test_several_draws_of_a_stochastic_model_are_averaged(data, tmp_path):
    options = {"epochs": 1, "embedding_size": 16, "blocks": 1, "lambda_uncertainty": 0.5, "sampling_steps": 2}
    run = rd.train("diffurec", rd.split.leave_one_out(data), tmp_path / "run", config=options).path
    facts = rd.evaluate(run, data, seeds=[4, 5, 6])
    assert facts["sampling_seeds"] == [4, 5, 6]
    each = [draw["all"]["mrr@10"] for draw in facts["metrics_by_seed"]]
    assert len(set(each)) > 1
    assert facts["metrics"]["all"]["mrr@10"] == pytest.approx(np.mean(each))
    users = pl.read_parquet(run / "per_user_test.parquet")
    assert users["mrr@10"].mean() == pytest.approx(np.mean(each))


def test_a_deterministic_model_is_evaluated_once(run, data):
    assert rd.evaluate(run, data, seeds=[1, 2, 3])["sampling_seeds"] == [1]


def test_another_protocol_has_files_of_its_own(run, data):
    full = rd.evaluate(run, data)
    sampled = rd.evaluate(run, data, protocol="sampled-5")
    assert json.loads((run / "test.json").read_text()) == full
    assert json.loads((run / "test-sampled-5.json").read_text()) == sampled
    assert (run / "per_user_test-sampled-5.parquet").exists()
    assert sampled["protocol"]["comparable"] is False
    assert sampled["task_fingerprint"] != full["task_fingerprint"]
    assert sampled["metrics"]["unseen"]["hr@5"] > full["metrics"]["unseen"]["hr@5"]  # far easier


@pytest.fixture
def released(data):
    """The data with a given split."""
    return dataclasses.replace(data, given={"released": rd.split.leave_one_out(data).subset})


def test_protocols_of_papers_determine_input_filter_and_policies(released, tmp_path):
    split = split_for("paper:diffrec", released)
    run = rd.train("itemknn", split, tmp_path / "run").path
    facts = rd.evaluate(run, released, protocol="paper:diffrec")
    assert facts["protocol"]["validation_is_input"] is False
    assert list(facts["metrics"]) == ["unseen"]
    assert not (run / "test.json").exists()
    users = pl.read_parquet(run / "per_user_test-paper-diffrec.parquet")
    train = released.interactions.where(split.subset == TRAIN).take(split.task("test").users)
    assert users["history_length"].to_list() == train.lengths.tolist()
    assert all(column.endswith("/unseen") for column in users.columns[4:])
    assert pl.read_parquet(run / "truth_test-paper-diffrec.parquet").columns[4:] == ["rank/unseen"]
    lists = pl.read_parquet(run / "lists_test-paper-diffrec.parquet").with_columns(pl.col("policy").cast(pl.String))
    assert lists["policy"].unique().to_list() == ["unseen"]
    known = split.task("test").histories
    seen = {(released.user_ids[int(user)], released.item_ids[int(item)])
            for user, item in zip(split.task("test").users[known.owners], known.items, strict=True)}  # fmt: skip
    assert not seen & set(lists.select("user_id", "item_id").rows())

    kept = rd.evaluate(run, released, protocol="paper:diffurec")
    assert list(kept["metrics"]) == ["all"]
    assert not any("/" in column for column in pl.read_parquet(run / "per_user_test-paper-diffurec.parquet").columns)
    whole = rd.evaluate(run, released)
    assert kept["metrics"]["all"] == whole["metrics"]["all"]
    assert facts["metrics"]["unseen"] != whole["metrics"]["unseen"]  # validation interactions help
    assert len({each["task_fingerprint"] for each in (facts, kept, whole)}) == 3


def test_a_split_that_differs_is_refused(released, tmp_path):
    run = rd.train("popularity", rd.split.given(released), tmp_path / "run").path
    config = json.loads((run / "config.json").read_text())
    config["split"]["fingerprint"] = "0" * 64
    add_files(run, {"config.json": json.dumps(config).encode()})
    with pytest.raises(RunError, match="The split given of these data differs"):
        rd.evaluate(run, released)


@pytest.mark.parametrize("seeds", [[], [-1], range(0)])
def test_seeds_are_checked_before_any_work(run, data, seeds):
    with pytest.raises(ConfigError, match="sampling seeds are"):
        rd.evaluate(run, data, seeds=seeds)
    assert not (run / "test.json").exists()


def test_seeds_may_be_numpy_integers(run, data):
    facts = rd.evaluate(run, data, seeds=np.arange(2, 4))
    assert json.loads((run / "test.json").read_text())["seed"] == facts["seed"] == 2


def test_other_data_is_refused(run):
    with pytest.raises(RunError, match="was trained on other data"):
        rd.evaluate(run, synthetic_interactions(seed=1))


@pytest.mark.parametrize("renames", range(2, 7))
def test_a_run_survives_a_kill_while_it_is_evaluated_again(run, data, renames):
    rd.evaluate(run, data)
    dies("rename", renames, rd.evaluate, run, data, seeds=[1])
    rd.Recommender.load(run)
    rd.evaluate(run, data)
    rd.compare([run])
