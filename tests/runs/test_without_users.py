"""A run without its users: it answers histories as the run does, and says that it knows no user."""

from __future__ import annotations

import json

import polars as pl
import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

import rediffuse as rd
from rediffuse.cli import app
from rediffuse.errors import ConfigError, RunError
from rediffuse.recommender.batch import recommend_to_folder
from rediffuse.recommender.fresh_histories import update_histories
from rediffuse.recommender.index_building import build_index
from rediffuse.runs import without_users
from rediffuse.runs.run_folder import add_files, read_run
from rediffuse.runs.without_users import write_without_users
from rediffuse.serving.app import create_app
from rediffuse.testing import train_small

HISTORIES = [[0, 1, 2], [5], []]
pytestmark = pytest.mark.filterwarnings("ignore::rediffuse.errors.RediffuseWarning")


def shop():
    rows = [(f"customer-{user}@shop", (user * 3 + day) % 30, day) for user in range(60) for day in range(8)]
    table = pl.DataFrame(rows, schema=["user", "item", "time"], orient="row")
    return rd.read_interactions(table, user="user", item="item", time="time")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gru4rec")
    run = train_small("gru4rec", folder, {"epochs": 1, "embedding_size": 8}, data=shop()).run
    rd.evaluate(run, shop())
    build_index(run.path, "ivf", k=5)
    add_files(run.path, {"extra.parquet": b"anything"})
    return run


@pytest.fixture(scope="module")
def copy(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving") / "copy"
    write_without_users(run, folder)
    return folder


def test_it_answers_histories_as_the_run(run, copy):
    one, other = rd.Recommender.load(run), rd.Recommender.load(copy)
    assert other.recommend(histories=HISTORIES, k=5).equals(one.recommend(histories=HISTORIES, k=5))
    users = one.user_ids[:3].to_list()
    given = other.recommend(users=users, histories=HISTORIES, k=5)
    assert given["user_id"].unique(maintain_order=True).to_list() == users
    one, other = rd.Recommender.load(run, "index"), rd.Recommender.load(copy, "index")
    assert other.recommend(histories=HISTORIES, k=5).equals(one.recommend(histories=HISTORIES, k=5))


def test_it_holds_no_users(run, copy):
    assert {path.name for path in copy.iterdir()} >= {"manifest.json", "users.parquet", "index.faiss", "test.json"}
    assert not [path for path in copy.iterdir() if b"customer-" in path.read_bytes()]
    assert not {"extra.parquet", "per_user_test.parquet", "lists_test.parquet"} & {path.name for path in copy.iterdir()}
    assert "holds no users" in (copy / "README.md").read_text()
    assert len(read_run(copy).user_ids) == 0
    recommender = rd.Recommender.load(copy)
    assert recommender.held_out_remark is None
    with pytest.raises(ConfigError, match=r"This run holds no users[\s\S]*--history"):
        recommender.recommend(users=[read_run(run.path).user_ids[0]])
    with pytest.raises(RunError, match=r"holds no users, so it has no histories to add to"):
        update_histories(copy, shop(), copy.parent / "updated")


def test_batch_inference_needs_a_column_of_histories(copy, tmp_path):
    recommender = rd.Recommender.load(copy)
    pl.DataFrame({"user_id": ["a", "b"], "history": [[0, 1, 2], [5]]}).write_parquet(tmp_path / "users.parquet")
    recommend_to_folder(recommender, tmp_path / "users.parquet", tmp_path / "lists", k=4)
    found = pl.read_parquet(tmp_path / "lists" / "part-*.parquet")
    assert found["item_id"].to_list() == recommender.recommend(histories=HISTORIES[:2], k=4)["item_id"].to_list()
    pl.DataFrame({"user_id": ["customer-1@shop"]}).write_csv(tmp_path / "ids.csv")
    with pytest.raises(ConfigError, match="This run holds no users"):
        recommend_to_folder(recommender, tmp_path / "ids.csv", tmp_path / "other", k=4)
    for option in (["--user", "customer-1@shop"], ["--users", str(tmp_path / "ids.csv")]):
        failed = CliRunner().invoke(app, ["recommend", str(copy), *option])
        assert isinstance(failed.exception, ConfigError)
        assert "This run holds no users" in str(failed.exception)


def test_the_service_answers_histories_and_refuses_users(run, copy):
    with TestClient(create_app([copy])) as client:
        found = client.post("/v1/recommend", json={"histories": [[0, 1, 2]], "k": 3})
        lists = rd.Recommender.load(run).recommend(histories=[[0, 1, 2]], k=3)
        assert [int(item["item_id"]) for item in found.json()["results"][0]["items"]] == lists["item_id"].to_list()
        for problem in (
            client.post("/v1/recommend", json={"users": ["customer-1@shop"]}),
            client.get("/v1/models/copy/history", params={"user": "customer-1@shop"}),
        ):
            assert problem.status_code == 422
            assert problem.json()["detail"] == "This run holds no users, so it does not know their histories."
            assert "histories" in problem.json()["remedy"]
        assert client.get("/v1/models/copy/users").json() == {"users": []}
        assert client.get("/v1/models").json()["models"][0]["held_out"] is None


def test_models_that_hold_their_users_are_refused(tmp_path):
    run = train_small("bprmf", tmp_path / "bprmf", {"epochs": 1}, data=shop()).run
    with pytest.raises(ConfigError, match=r"weights of bprmf hold the vectors or interactions of its 60 users"):
        write_without_users(run, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_the_command(run, tmp_path):
    arguments = ["export", str(run.path), "-o", str(tmp_path / "copy"), "--format", "run", "--json"]
    result = json.loads(CliRunner().invoke(app, arguments).stdout)
    assert (result["users"], result["model"]) == (60, "gru4rec")
    assert "extra.parquet" in result["left_out"]
    assert result["files"].keys() == {path.name for path in (tmp_path / "copy").iterdir()}
    assert isinstance(CliRunner().invoke(app, arguments).exception, RunError)  # not empty
    shown = CliRunner().invoke(app, [*arguments[:3], str(tmp_path / "second"), *arguments[4:6]])
    assert "60 users, extra.parquet" in " ".join(shown.stdout.split())


def test_a_run_that_changes_meanwhile_is_not_copied(run, tmp_path, monkeypatch):
    files = without_users.files_without_users

    def changed(contents, *rest):
        add_files(contents.path, {"later.parquet": b"anything"})
        return files(contents, *rest)

    monkeypatch.setattr(without_users, "files_without_users", changed)
    with pytest.raises(RunError, match="was written to while it was copied"):
        write_without_users(run, tmp_path / "copy")
    assert not list(tmp_path.iterdir())
