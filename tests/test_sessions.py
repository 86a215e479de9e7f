"""Splits with successive targets from end to end: split, train, evaluate, compare, tune, refit, recommend."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

import rediffuse as rd
from rediffuse.cli.app import app
from rediffuse.cli.splits import split_options, split_params
from rediffuse.errors import ConfigError, DataError
from rediffuse.readers.interactions import read_interactions
from rediffuse.runs.run_folder import read_run

ITEMS = 12
SMALL = {
    "sasrec": {"epochs": 12, "embedding_size": 16, "blocks": 1, "max_length": 8, "dropout": 0.0, "learning_rate": 0.01},
    "diffrec": {"epochs": 4, "hidden_sizes": [16]},
}
MODELS = [*SMALL, "ease", "theat", "popularity"]


@pytest.fixture(scope="module")
def data():
    """Sessions of a chain: after item i comes i + 1; every id is active once, as in the case of issue 21."""
    rng = np.random.default_rng(0)
    rows = []
    for session in range(120):
        first = int(rng.integers(ITEMS))
        rows += [(f"s{session}", (first + n) % ITEMS, 1_600_000_000 + 3600 * session + 20 * n) for n in range(5)]
    return read_interactions(pl.DataFrame(rows, ["user_id", "item_id", "time"], orient="row"), time="time")


@pytest.fixture(scope="module", params=["sessions", "successive"])
def split(request, data):
    if request.param == "sessions":
        return rd.split.sessions(data, 0.8, 0.8)
    return rd.split.global_time(data, 0.8, 0.8, targets="successive")


@pytest.fixture(scope="module")
def runs(split, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sessions")
    return {name: rd.train(name, split, folder / name, config=SMALL.get(name)) for name in MODELS}


def ndcg(model, history, item, known, unseen) -> float:
    """NDCG@10 of one target, from the scores of one history; ties count against the model."""
    from rediffuse.data.histories import Histories

    scores = model.score(Histories.from_lists([history]), users=np.array([known])).squeeze(0).double().numpy()
    if unseen:
        scores[history] = -np.inf
    if scores[item] == -np.inf:
        return 0.0
    rank = int((scores >= scores[item]).sum())
    return 1 / np.log2(rank + 1) if rank <= 10 else 0.0


def test_metrics_are_those_of_a_loop_over_prefixes(split, runs, data):
    for name in ("sasrec", "diffrec", "ease"):
        result = rd.evaluate(runs[name], data)
        model = read_run(runs[name].path).model
        values = {"all": [], "unseen": []}
        known_values = {"all": [], "unseen": []}
        per_user = pl.read_parquet(runs[name].path / "per_user_test.parquet")
        users = []
        offsets = data.interactions.offsets
        for user in range(data.num_users):
            items = data.interactions.row(user).tolist()
            for n, item in enumerate(items):
                if split.subset[offsets[user] + n] != 2 or (split.name == "sessions" and n == 0):
                    continue
                users.append(data.user_ids[user])
                for policy in values:
                    value = ndcg(model, items[:n], item, user, policy == "unseen")
                    values[policy].append(value)
                    known_values[policy] += [value] if n else []
        assert per_user["user_id"].to_list() == users
        for policy in values:
            assert result["metrics"][policy]["ndcg@10"] == pytest.approx(np.mean(values[policy]), abs=1e-6)
            found = result["metrics_with_history"][policy]["ndcg@10"]
            assert found == pytest.approx(np.mean(known_values[policy]), abs=1e-6)
        assert result["counts"]["targets"] == len(users)
        assert result["counts"]["users"] == len(set(users))
        lists = pl.read_parquet(runs[name].path / "lists_test.parquet").filter(pl.col("policy") == "all")
        assert not lists.select("user_id", "history_length", "rank").is_duplicated().any()
        truth = pl.read_parquet(runs[name].path / "truth_test.parquet")
        assert truth["history_length"].to_list() == per_user["history_length"].to_list()


def test_a_session_model_learns_what_comes_next(runs, data):
    learned, popular = rd.evaluate(runs["sasrec"], data), rd.evaluate(runs["popularity"], data)
    assert learned["metrics_with_history"]["all"]["ndcg@10"] > 0.9
    assert popular["metrics_with_history"]["all"]["ndcg@10"] < 0.6


def test_all_models_go_all_the_way(split, runs, data, tmp_path):
    for run in runs.values():
        result = rd.evaluate(run, data, protocol="sampled-5")
        assert result["counts"]["targets"] > result["counts"]["users"]
        rd.evaluate(run, data)
    comparison = rd.compare(list(runs.values()), out=tmp_path / "report")
    assert len(comparison.facts["variants"]) == len(MODELS)
    text = (tmp_path / "report" / "report.md").read_text()
    assert "clustered by user" in text
    assert (
        f"targets of {comparison.facts['counts']['users']} users" in (tmp_path / "report" / "report.html").read_text()
    )
    blended = rd.blend([runs["ease"], runs["theat"]], data, tmp_path / "blend")
    assert rd.evaluate(blended, data)["counts"]["targets"]


def test_recommendations_are_made_from_the_whole_session(split, runs, data, tmp_path):
    live = rd.refit(runs["sasrec"], data, tmp_path / "live")
    user = data.user_ids[data.num_users - 1]  # held out, to its last item
    items = data.interactions.row(data.num_users - 1)
    following = data.item_ids[int(items[-1] + 1) % ITEMS]
    for run in (runs["sasrec"], live):
        recommender = rd.Recommender.load(run.path)
        by_id = recommender.recommend(users=[user], k=3)
        whole = recommender.recommend(histories=[data.item_ids.gather(items).to_list()], k=3)
        assert by_id["item_id"].to_list() == whole["item_id"].to_list()
        assert by_id["item_id"][0] == following


def test_a_study_has_values_to_choose_between(split, tmp_path):
    study = rd.tune("sasrec", split, tmp_path / "study", trials=3, config=SMALL["sasrec"] | {"epochs": 2})
    assert study.trials["value"].drop_nulls().n_unique() > 1


def test_the_usual_split_of_these_data_is_refused_and_the_command_takes_what_is_offered(data, tmp_path):
    data.save(tmp_path / "data")
    run = CliRunner().invoke
    small = [word for pair in SMALL["sasrec"].items() for word in ("--set", f"{pair[0]}={pair[1]}")]

    def train(*options: str):
        return run(app, ["train", "sasrec", str(tmp_path / "data"), "-o", str(tmp_path / "run"), *small, *options])

    refused = train("--split", "global-time", "--quantile", "0.75", "--valid-quantile", "0.8")
    assert isinstance(refused.exception, DataError)
    assert "None of the" in str(refused.exception)
    for options in (["--split", "global-time", "--targets", "successive"], ["--split", "sessions"]):
        assert " ".join(options) in str(refused.exception)
        found = train(*options, "--overwrite")
        assert found.exit_code == 0, found.output
        best = json.loads((tmp_path / "run" / "config.json").read_text())["training"]["best_epoch"]
        assert best > 1
        shown = run(app, ["evaluate", str(tmp_path / "run"), str(tmp_path / "data")])
        assert "targets of" in shown.output


def test_options_of_the_command():
    assert split_params("global-time", 0.8, targets="next") == {"quantile": 0.8, "targets": "next"}
    assert split_params("sessions", 0.8, 0.7) == {"quantile": 0.8, "valid_quantile": 0.7}
    assert split_options("global-time", 0.8, targets="next") == [
        *("--split", "global-time", "--quantile", "0.8", "--targets", "next")
    ]
    with pytest.raises(ConfigError, match="--targets does not go with --split sessions: it holds out whole sessions"):
        split_params("sessions", targets="next")
    with pytest.raises(ConfigError, match=r"(?s)--quantile does not go with --split ratio.*Add --split global-time"):
        split_params("ratio", 0.8)


def test_an_interrupted_training_is_resumed_to_the_same_weights_and_choice(split, tmp_path):
    class Stop:
        def on_validation(self, event):
            if event.epoch == 2:
                raise KeyError("stop")

    config = SMALL["sasrec"] | {"epochs": 5}
    whole = rd.train("sasrec", split, tmp_path / "whole", config=config)
    with pytest.raises(KeyError):
        rd.train("sasrec", split, tmp_path / "run", config=config, callbacks=[Stop()])
    resumed = rd.train("sasrec", split, tmp_path / "run", config=config, resume=True)
    weights = [(run.path / "model.safetensors").read_bytes() for run in (whole, resumed)]
    assert weights[0] == weights[1]
    assert whole.validation == resumed.validation
    assert whole.config["training"]["best_epoch"] == resumed.config["training"]["best_epoch"]
