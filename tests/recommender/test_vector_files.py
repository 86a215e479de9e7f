"""Exported vectors: their inner products are the scores, in the files of a database."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

import rediffuse as rd
from rediffuse.cli import app
from rediffuse.errors import ConfigError, DataError, RediffuseWarning, RunError
from rediffuse.recommender.vector_files import write_vectors
from rediffuse.runs.without_users import write_without_users
from rediffuse.testing import synthetic_interactions, train_small

pytestmark = pytest.mark.filterwarnings("ignore::rediffuse.errors.RediffuseWarning")
TINY = {"epochs": 1, "embedding_size": 8}


@pytest.fixture(scope="module")
def data():
    return synthetic_interactions()


@pytest.fixture(scope="module")
def recommenders(data, tmp_path_factory):
    """By the name of the model; each is trained once."""
    made = {}

    def of(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = rd.Recommender.load(train_small(name, folder, {"epochs": 1}, data=data).run)
        return made[name]

    return of


def lists_of(folder, seen, k):
    """The best items of each user that are not in their history, by NumPy alone; and their scores."""
    items, queries = pl.read_parquet(folder / "items.parquet"), pl.read_parquet(folder / "queries.parquet")
    scores = queries["vector"].to_numpy() @ items["vector"].to_numpy().T
    found = {}
    for user, row in zip(queries["user_id"], scores, strict=True):
        row[items["item_id"].is_in(seen[user]).to_numpy()] = -np.inf
        best = np.argsort(-row, kind="stable")[:k]
        found[user] = (items["item_id"].gather(best).to_list(), row[best])
    return found


@pytest.mark.parametrize("name", ["sasrec", "diffurec", "bprmf", "lightgcn"])
def test_inner_products_give_the_lists_of_the_run(recommenders, data, tmp_path, name):
    recommender = recommenders(name)
    result = write_vectors(recommender, tmp_path, rows=7)
    seen = {
        user: data.item_ids.gather(data.interactions.row(number)).to_list() for number, user in enumerate(data.user_ids)
    }
    found = lists_of(tmp_path, seen, k=5)
    assert list(found) == data.user_ids.to_list()
    expected = recommender.recommend(users=data.user_ids, k=5)
    for user, lists in expected.group_by("user_id", maintain_order=True):
        assert found[user[0]][0] == lists["item_id"].to_list()
        np.testing.assert_allclose(found[user[0]][1], lists["score"], rtol=1e-4, atol=1e-5)
    assert result["queries"] == len(data.user_ids)


def test_the_files_are_described(recommenders, data, tmp_path):
    recommender = recommenders("sasrec")
    write_vectors(recommender, tmp_path / "out")
    described = json.loads((tmp_path / "out" / "vectors.json").read_text())
    size = recommender.item_vectors.shape[1]
    assert (described["metric"], described["size"], described["items"]) == ("inner product", size, data.num_items)
    assert described["run"] == recommender.fingerprint
    for name, digest in described["files"].items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest
    items = pl.read_parquet(tmp_path / "out" / "items.parquet")
    assert items.schema["vector"] == pl.Array(pl.Float32, size)
    assert items["item_id"].to_list() == data.item_ids.to_list()
    # What a user without a history gets.
    popular = recommender.recommend(histories=[[]], k=data.num_items)
    by_popularity = dict(items.select("item_id", "popularity").iter_rows())
    assert [by_popularity[item] for item in popular["item_id"]] == sorted(by_popularity.values(), reverse=True)
    write_vectors(recommender, tmp_path / "out")  # replaced as a whole
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="other files"):
        write_vectors(recommender, tmp_path / "out")


def test_a_user_file_with_histories(recommenders, data, tmp_path):
    recommender = recommenders("sasrec")
    ids = data.item_ids[:3].to_list()
    (tmp_path / "users.csv").write_text(f"user_id,history\nann,{ids[0]}|{ids[1]}\nben,\ncarl,{ids[2]}|no-such-item\n")
    with pytest.warns(RediffuseWarning) as caught:
        write_vectors(recommender, tmp_path / "out", tmp_path / "users.csv", rows=2)
    said = [str(one.message) for one in caught]
    assert any("1 of 3 histories are empty; they have no vector and are left out" in one for one in said)
    assert any("1 items in the histories are not in the catalogue" in one for one in said)
    found = lists_of(tmp_path / "out", {"ann": ids[:2], "carl": ids[2:]}, k=4)
    lists = recommender.recommend(users=["ann", "carl"], histories=[ids[:2], ids[2:]], k=4)
    assert {user: best for user, (best, _) in found.items()} == {
        user[0]: rows["item_id"].to_list() for user, rows in lists.group_by("user_id")
    }
    # The same from a run without its users.
    write_without_users(recommender._run.path, tmp_path / "copy")
    copy = rd.Recommender.load(tmp_path / "copy")
    write_vectors(copy, tmp_path / "again", tmp_path / "users.csv", rows=2)
    for name in ("items.parquet", "queries.parquet"):
        assert pl.read_parquet(tmp_path / "again" / name).equals(pl.read_parquet(tmp_path / "out" / name))
    with pytest.raises(ConfigError, match="holds no users"):
        write_vectors(copy, tmp_path / "third")


def test_a_failure_in_the_middle_leaves_nothing(recommenders, data, tmp_path, monkeypatch):
    def fail(*args):
        raise DataError("The file has changed.")

    recommender = recommenders("sasrec")
    monkeypatch.setattr(type(recommender), "resolve_users", fail)
    with pytest.raises(DataError, match=r"The file has changed\.$"):
        write_vectors(recommender, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("ease", {}, "has no vectors to export"),
        ("popularity", {}, "has no vectors to export"),
        ("sasrec", {"epochs": 1, "prior": "residual"}, "a prior is added"),
    ],
)
def test_models_that_do_not_rank_by_vectors_are_refused(data, tmp_path, name, options, reason):
    run = train_small(name, tmp_path / "run", options, data=data).run
    with pytest.raises(ConfigError, match=reason):
        write_vectors(rd.Recommender.load(run), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(recommenders, tmp_path):
    run = str(recommenders("sasrec")._run.path)
    done = CliRunner().invoke(app, ["export", run, "-o", str(tmp_path / "out"), "--format", "vectors", "--json"])
    result = json.loads(done.stdout)
    assert result["metric"] == "inner product"
    assert result["files"].keys() == {"items.parquet", "queries.parquet", "vectors.json"}
    done = CliRunner().invoke(app, ["export", run, "-o", str(tmp_path / "other"), "--users", "users.csv"])
    assert isinstance(done.exception, ConfigError)
