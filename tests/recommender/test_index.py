"""The approximate index: what it finds, what it refuses, and what it writes into the run folder."""

from __future__ import annotations

import importlib
import json
import shutil

import numpy as np
import pytest

import rediffuse as rd
from rediffuse.cli import index as index_command
from rediffuse.cli import main
from rediffuse.errors import ConfigError, MissingExtraError, RediffuseWarning, RunError
from rediffuse.recommender import index as index_module
from rediffuse.recommender.index import ItemIndex, read_index
from rediffuse.recommender.index_building import build_index
from rediffuse.runs.run_folder import add_files, read_run
from rediffuse.testing import synthetic_interactions

pytest.importorskip("faiss")

assert index_command  # imported: registered

KINDS = ("hnsw", "ivf")


def vectors_and_queries(items: int, size: int = 16, users: int = 40):
    rng = np.random.default_rng(items)
    lengths = rng.uniform(0.3, 2, (items, 1))  # inner products are not cosines
    vectors = (lengths * rng.standard_normal((items, size))).astype(np.float32)
    return vectors, rng.standard_normal((users, size)).astype(np.float32)


def best(vectors, queries, k):
    return np.argsort(-(queries.astype(np.float64) @ vectors.T), axis=1)[:, :k]


def recall(found, truth):
    return np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, truth, strict=True)])


def trained(model, folder, seed=0, **options):
    split = rd.split.leave_one_out(synthetic_interactions())
    return rd.train(model, split, folder, config={"epochs": 1, "embedding_size": 16} | options, seed=seed).path


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    return trained("sasrec", tmp_path_factory.mktemp("runs") / "sasrec", blocks=1)


@pytest.fixture(scope="module")
def indexed(fresh, tmp_path_factory):
    """The same run with an index of kind ivf, and the content of its index.json."""
    folder = shutil.copytree(fresh, tmp_path_factory.mktemp("runs") / "indexed")
    return folder, build_index(folder, kind="ivf", k=10)


@pytest.fixture
def run(indexed, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(indexed[0], tmp_path / "run")


def item_vectors(folder):
    return read_run(folder).model.index_vectors().detach().numpy()


# --- the index ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_more_effort_finds_more_and_the_highest_finds_all(kind):
    vectors, queries = vectors_and_queries(2000)
    index = ItemIndex.build(vectors, kind, threads=1)
    truth = best(vectors, queries, 100)
    assert index.efforts[0] == index.effort
    lowest = recall(index.search(queries, 100), truth)
    index.effort = index.efforts[-1]
    found = index.search(queries, 100)
    assert found.shape == (40, 100)
    assert found.dtype == np.int64
    assert recall(found, truth) > 0.999 >= lowest
    np.testing.assert_array_equal(found[:, :3], truth[:, :3])  # best first


def test_a_large_catalogue_is_searched_by_codes_and_ranked_exactly():
    vectors, queries = vectors_and_queries(12_000)
    index = ItemIndex.build(vectors, "ivf", threads=1)
    index.effort = index.efforts[-1]
    found, truth = index.search(queries, 100), best(vectors, queries, 100)
    assert recall(found, truth) > 0.99
    products = np.einsum("bd,bkd->bk", queries, vectors[found])
    assert (np.diff(products, axis=1) <= 1e-5).all()
    # Codes alone would take more than the vectors' 4 bytes a number.
    assert len(index.to_bytes()) < 1.5 * vectors.nbytes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("items", [1, 30, 2000, 12_000])
def test_bytes_give_the_same_index(kind, items):
    vectors, queries = vectors_and_queries(items, size=5)
    index = ItemIndex.build(vectors, kind, threads=1)
    index.effort = index.efforts[len(index.efforts) // 2]
    again = ItemIndex.from_bytes(index.to_bytes())
    assert (again.kind, again.effort, again.num_items, again.size) == (kind, index.effort, items, 5)
    np.testing.assert_array_equal(again.search(queries, 20), index.search(queries, 20))
    assert again.matches(vectors)
    assert not again.matches(vectors[:, ::-1])
    assert not again.matches(vectors[:-1])


@pytest.mark.parametrize("kind", KINDS)
def test_missing_results_are_minus_one(kind):
    vectors, queries = vectors_and_queries(30)
    index = ItemIndex.build(vectors, kind, threads=1)
    index.effort = index.efforts[-1]
    found = index.search(queries, 50)
    assert sorted(found[0][:30]) == list(range(30))
    assert (found[:, 30:] == -1).all()
    assert index.search(queries[:0], 5).shape == (0, 5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_result_does_not_depend_on_the_other_queries(kind):
    vectors, queries = vectors_and_queries(2000)
    index = ItemIndex.build(vectors, kind, threads=1)
    alone = np.concatenate([index.search(query[None], 10) for query in queries])
    np.testing.assert_array_equal(index.search(queries, 10), alone)


def test_bytes_of_something_else_are_refused():
    with pytest.raises(ValueError, match="not an index"):
        ItemIndex.from_bytes(b"no index at all")


# --- the run -----------------------------------------------------------------------------------------------


def test_the_index_is_listed_in_the_manifest_and_described_in_the_model_card(indexed):
    folder, facts = indexed
    assert json.loads((folder / "index.json").read_text()) == facts
    assert facts["bytes"] == (folder / "index.faiss").stat().st_size
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    assert {"index.json", "index.faiss", "README.md"} <= listed.keys()
    assert (facts["kind"], facts["k"], facts["items"], facts["reached"]) == ("ivf", 10, 40, True)
    assert 2 * facts["queries"] == 60
    assert facts["recall"] >= 0.9
    card = (folder / "README.md").read_text()
    assert card.count("## Index") == 1
    assert f"{facts['recall']:.4f} of the exact best 10" in card
    assert "## Options" in card
    read_run(folder)  # verifies every file


def test_building_again_replaces_the_index_and_its_section(run):
    before = (run / "README.md").read_text()
    facts = build_index(run, kind="hnsw", k=5)
    card = (run / "README.md").read_text()
    assert card.count("## Index") == 1
    assert card.split("## Index")[0] == before.split("## Index")[0]
    assert "- hnsw over 40 items" in card
    index = read_index(run, item_vectors(run))
    assert (index.kind, index.effort) == ("hnsw", facts["effort"])


def test_other_sections_of_the_model_card_stay():
    from rediffuse.recommender.index_building import index_section
    from rediffuse.runs.card import with_section

    facts = {"kind": "ivf", "items": 3, "bytes": 9, "effort": 1, "date": "today", "faiss": "1", "recall": 1.0, "k": 2}
    facts |= {"queries": 4, "ms_per_query": 0.1, "exact_ms_per_query": 0.1, "processor": "a", "reached": False}
    facts |= {"wanted_recall": 0.9}
    card = with_section("# A\n\n## Index\n\n- stale\n\n## B\n\nLast.\n", "Index", index_section(facts))
    assert card.startswith("# A\n\n## B\n\nLast.\n\n## Index\n")
    assert "stale" not in card
    assert "No effort reached the wanted 0.9" in card


def test_an_index_at_full_effort_answers_like_exact_search(run):
    build_index(run, kind="ivf", k=40, recall=1.0)
    exact, indexed = (rd.Recommender.load(run, retrieval=retrieval) for retrieval in ("exact", "index"))
    users = exact.user_ids.to_list()
    lists = [one.recommend(users=users, k=10).sort("user_id", "rank") for one in (exact, indexed)]
    assert lists[0].drop("score").equals(lists[1].drop("score"))
    np.testing.assert_allclose(lists[0]["score"], lists[1]["score"], rtol=1e-4, atol=1e-5)


def test_a_recall_out_of_reach_is_reported(run, monkeypatch):
    monkeypatch.setattr("rediffuse.recommender.index_building.recall_of", lambda *_: 0.5)
    with pytest.warns(RediffuseWarning, match="highest is kept, at 50"):
        facts = build_index(run, kind="ivf", k=10)
    assert not facts["reached"]
    assert read_index(run, item_vectors(run)).effort == facts["effort"] == 1  # one cluster holds 40 items
    assert "No effort reached the wanted" in (run / "README.md").read_text()


@pytest.mark.parametrize(("model", "options"), [("itemknn", {}), ("ldiffrec", {"clusters": 1})])
def test_models_that_do_not_rank_by_inner_products_are_refused(tmp_path, model, options):
    known = rd.models.model_class(model).Config.model_fields
    options = {name: value for name, value in ({"epochs": 1} | options).items() if name in known}
    folder = rd.train(model, rd.split.leave_one_out(synthetic_interactions()), tmp_path / model, config=options).path
    with pytest.raises(ConfigError, match=f"{model} cannot use an index.*not inner products"):
        build_index(folder)
    assert not (folder / "index.faiss").exists()
    with pytest.raises(RunError, match="no item vectors"):
        read_index(folder, None)


def test_a_run_without_an_index_is_refused_with_the_command_that_builds_one(fresh):
    with pytest.raises(RunError, match="rediffuse index"):
        read_index(fresh, item_vectors(fresh))


def test_an_index_of_other_vectors_is_refused(run, tmp_path):
    vectors = item_vectors(run)
    with pytest.raises(RunError, match="present weights"):
        read_index(run, vectors + np.float32(0.1))
    other = trained("sasrec", tmp_path / "other", seed=1, blocks=1)
    add_files(other, {name: (run / name).read_bytes() for name in ("index.faiss", "index.json")})
    with pytest.raises(RunError, match="present weights"):
        read_index(other, item_vectors(other))


def test_resumed_training_drops_the_index(run):
    config = {"epochs": 1, "embedding_size": 16, "blocks": 1}
    rd.train("sasrec", rd.split.leave_one_out(synthetic_interactions()), run, config=config, resume=True)
    assert (run / "index.faiss").exists()  # but the manifest no longer lists it
    with pytest.raises(RunError, match="has no index"):
        read_index(run, item_vectors(run))


@pytest.mark.parametrize("name", ["index.faiss", "index.json"])
def test_a_damaged_index_is_refused_and_can_be_built_again(run, name):
    vectors = item_vectors(run)
    (run / name).write_bytes(b"{}")
    with pytest.raises(RunError, match=f"(?s){name}.*rediffuse index"):
        read_run(run)
    with pytest.raises(RunError, match=r"(?s)damaged.*rediffuse index"):
        read_index(run, vectors)
    build_index(run, kind="ivf", k=10)
    assert read_index(run, item_vectors(run)).kind == "ivf"


def test_options_out_of_range_are_refused(fresh):
    for options, named in (({"kind": "lsh"}, "lsh"), ({"k": 0}, "k is 0"), ({"recall": 95}, "recall is 95")):
        with pytest.raises(ConfigError, match=named):
            build_index(fresh, **options)


def test_without_faiss_the_extra_is_named(run, monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(name)

    vectors = item_vectors(run)
    monkeypatch.setattr(index_module.importlib, "import_module", absent)
    for call in (lambda: build_index(run), lambda: read_index(run, vectors)):
        with pytest.raises(MissingExtraError, match=r"(?s)faiss is needed.*rediffuse\[ann\]"):
            call()
    assert importlib.import_module is absent  # the patched module is the one that index.py uses


def test_the_command_prints_the_measured_recall(run, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["rediffuse", "index", str(run), "--kind", "ivf", "-k", "10", "--json"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["run"], facts["k"]) == ("ivf", str(run), 10)
    monkeypatch.setattr("sys.argv", ["rediffuse", "index", str(run), "--kind", "lsh"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "--kind is 'lsh'" in capsys.readouterr().err
