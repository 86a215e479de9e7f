"""Explanations of scores that are sums: they add up, whatever is left out, and follow the mass hop by hop."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import polars as pl
import pytest
from tests.two_hops import TwoHops

import rediffuse as rd
from rediffuse.errors import ConfigError, RediffuseWarning
from rediffuse.recommender.batch import recommend_to_folder
from rediffuse.recommender.explanations import sentence
from rediffuse.testing import synthetic_interactions

HISTORY = ["i3", "i4", "i5", "i20"]


@pytest.fixture(scope="module")
def split():
    return rd.split.leave_one_out(synthetic_interactions(knowledge=True))


@pytest.fixture(scope="module")
def folder(split, tmp_path_factory):
    return rd.train(TwoHops, split, tmp_path_factory.mktemp("run") / "hops").path


@pytest.fixture(scope="module")
def recommender(folder):
    return rd.Recommender.load(folder)


FAMILY = [name for name in ("heat", "transition", "theat") if name in rd.models.names()]


@pytest.fixture(scope="module", params=FAMILY)
def member(split, tmp_path_factory, request):
    """Each built-in model that explains scores."""
    return rd.Recommender.load(rd.train(request.param, split, tmp_path_factory.mktemp("family") / "run"))


@pytest.mark.parametrize("asked", [{"histories": [HISTORY]}, {"users": ["u1"]}, {"users": ["stranger"]}])
@pytest.mark.filterwarnings("ignore::rediffuse.errors.RediffuseWarning")
def test_built_in_models_are_explained_exactly(member, asked):
    lists = member.recommend(**asked, k=40, filter_seen=False, explain=True)
    own = {"history": HISTORY} if "histories" in asked else {"user": asked["users"][0]}
    explained = member.explain(lists["item_id"], **own).group_by("item_id").agg(pl.col("contribution").sum())
    sums = lists.join(explained, on="item_id", how="left", maintain_order="left").fill_null(0)
    np.testing.assert_allclose(sums["contribution"], lists["score"], rtol=1e-5)
    listed = lists["because"].list.eval(pl.element().struct.field("contribution")).list.sum()
    np.testing.assert_allclose(listed, lists["score"], rtol=1e-5)
    if "stranger" not in asked.get("users", ()):
        spread = member.spread(**own, k=40)
        assert spread["hop"][0] == "history"
        last = spread.filter(hop="scores")
        nonzero = lists.filter(pl.col("score") != 0)
        assert last["item_id"].to_list() == nonzero["item_id"].to_list()
        np.testing.assert_allclose(last["mass"], nonzero["score"], rtol=1e-6)


@pytest.fixture(scope="module")
def others(split, tmp_path_factory):
    """Models that do not explain scores; the first learned from a knowledge graph."""
    out = tmp_path_factory.mktemp("others")
    small = {"embedding_size": 8, "epochs": 1, "precision": "fp32"}
    rd.train("diffkg", split, out / "diffkg", config=small)
    rd.train("itemknn", split, out / "itemknn")
    return {name: rd.Recommender.load(out / name) for name in ("diffkg", "itemknn")}


@pytest.mark.parametrize("top", [None, 1, 2, 3, 100])
@pytest.mark.parametrize("asked", [{"history": HISTORY}, {"user": "u1"}])
def test_contributions_add_up_to_the_scores(recommender, asked, top):
    lists = {"users": ["u1"]} if "user" in asked else {"histories": [HISTORY]}
    scored = recommender.recommend(**lists, k=40, filter_seen=False)
    explained = recommender.explain(scored["item_id"], **asked, top=top)
    assert explained["item_id"].unique(maintain_order=True).to_list() == scored["item_id"].to_list()
    sums = explained.group_by("item_id", maintain_order=True).agg(pl.col("contribution", "share").sum())
    np.testing.assert_allclose(sums["contribution"], scored["score"], rtol=1e-5)
    np.testing.assert_allclose(sums["share"], 1, rtol=1e-9)
    # Within an item, the largest contributions come first, and what is left comes last.
    listed = explained.filter(pl.col("part") != "other").with_columns(pl.col("contribution").abs())
    for item in listed.partition_by("item_id"):
        assert item["contribution"].is_sorted(descending=True)
    if top is not None:
        sources = listed.with_columns(prior=pl.when(pl.col("history_item").is_null()).then("part"))
        counts = sources.group_by("item_id").agg(pl.struct("history_item", "prior").n_unique())
        assert counts[:, 1].max() <= top + 1
        last = explained.group_by("item_id", maintain_order=True).last()
        for row in last.filter(part="other").iter_rows(named=True):
            assert row["history_item"] is None
            assert counts.filter(item_id=row["item_id"])[0, 1] == top


def test_top_keeps_whole_sources_and_the_largest(recommender):
    every = recommender.explain(["i6"], history=HISTORY)
    some = recommender.explain(["i6"], history=HISTORY, top=1)
    totals = every.group_by("history_item").agg(pl.col("contribution").sum()).sort("contribution", descending=True)
    best = totals["history_item"][0]
    assert best in HISTORY
    assert some.filter(history_item=best).equals(every.filter(history_item=best))
    assert some["part"][-1] == "other"
    assert set(every.filter(history_item=best)["part"]) <= {"hop 1", "hop 2"}
    assert every.filter(pl.col("history_item").is_null())["part"].to_list() == ["popularity"]


def test_titles_kinds_and_repeated_and_unknown_items(recommender):
    with pytest.warns(RediffuseWarning, match="1 items are not in the catalogue"):
        explained = recommender.explain(["i6", "no such item", "i6", "i5"], history=HISTORY)
    assert explained.columns == ["item_id", "history_item", "part", "contribution", "share", "title", "history_title"]
    assert explained["item_id"].unique(maintain_order=True).to_list() == ["i6", "i5"]
    known = explained.drop_nulls("history_item")
    assert (known["history_title"] == "Film " + known["history_item"]).all()
    assert explained.filter(pl.col("history_item").is_null())["history_title"].null_count() == 2
    found = recommender.explain(pd.Series(["i6"]), history=HISTORY)
    assert isinstance(found, pd.DataFrame)
    assert recommender.explain([], history=HISTORY).schema == explained.schema


def test_users_without_a_history_have_a_prior_alone(recommender):
    with pytest.warns(RediffuseWarning, match="they get popular items"):
        scored = recommender.recommend(users=["stranger"], k=3, explain=True)
    with pytest.warns(RediffuseWarning, match="they get popular items"):
        explained = recommender.explain(scored["item_id"], user="stranger")
    assert set(explained["part"]) == {"recent popularity"}  # the interactions have times
    assert explained["history_item"].null_count() == 3
    np.testing.assert_allclose(explained["contribution"], scored["score"], rtol=1e-5)
    assert [row[0]["share"] for row in scored["because"].to_list()] == [1, 1, 1]


def test_because_has_the_rows_of_explain(recommender):
    users = ["u1", "u2", "u7"]
    lists = recommender.recommend(users=users, k=4, explain=True, batch_size=2)
    assert lists.drop("because").equals(recommender.recommend(users=users, k=4))
    for user in users:
        own = lists.filter(user_id=user)
        explained = recommender.explain(own["item_id"], user=user, top=5)
        rows = (
            own.explode("because").unnest("because").select("item_id", "history_item", "part", "contribution", "share")
        )
        assert rows.equals(explained.select(rows.columns))
    assert recommender.recommend(users=[], explain=True).schema == lists.schema
    nothing = recommender.recommend(users=["u1"], candidates=[], explain=True)
    assert nothing.schema == lists.schema
    assert isinstance(recommender.recommend(users=pd.Series(users), explain=True)["because"][0], list)


def test_sentences_add_up_the_hops_of_an_item():
    reasons = [
        {"history_item": 1, "history_title": "A", "part": "hop 1", "share": 0.3},
        {"history_item": None, "history_title": None, "part": "other", "share": 0.4},
        {"history_item": 2, "history_title": None, "part": "hop 1", "share": 0.15},
        {"history_item": None, "history_title": None, "part": "recent popularity", "share": 0.05},
        {"history_item": 1, "history_title": "A", "part": "hop 2", "share": 0.1},
    ]
    assert sentence(reasons) == "A 40%, 2 15%, recent popularity 5%, other 40%"
    assert sentence([]) == ""


def test_part_files_have_the_column(recommender, tmp_path):
    pl.DataFrame({"user_id": ["u1", "u2", "u3"]}).write_csv(tmp_path / "users.csv")
    arguments = (recommender, tmp_path / "users.csv", tmp_path / "out")
    recommend_to_folder(*arguments, k=3, explain=True, rows_per_part=2)
    found = pl.concat([pl.read_parquet(path) for path in sorted((tmp_path / "out").glob("part-*"))])
    assert found.drop("score").equals(recommender.recommend(users=["u1", "u2", "u3"], k=3, explain=True).drop("score"))
    assert json.loads((tmp_path / "out/request.json").read_text())["options"]["explain"] is True
    with pytest.raises(ConfigError, match="explain was True, is False"):
        recommend_to_folder(*arguments, k=3, rows_per_part=2)


def test_mass_spreads_from_the_history_to_the_scores(recommender):
    spread = recommender.spread(history=HISTORY, k=40)
    assert spread.columns == ["step", "hop", "rank", "item_id", "mass", "title"]
    assert spread["hop"].unique(maintain_order=True).to_list() == ["history", "hop 1", "hop 2", "scores"]
    assert set(spread.filter(step=0)["item_id"]) == set(HISTORY)
    for hop in ("history", "hop 1", "hop 2"):
        assert spread.filter(hop=hop)["mass"].sum() == pytest.approx(1, abs=1e-5)
    scored = recommender.recommend(histories=[HISTORY], k=40, filter_seen=False)
    last = spread.filter(hop="scores")
    assert last["item_id"].to_list() == scored["item_id"].to_list()
    np.testing.assert_allclose(last["mass"], scored["score"])
    assert recommender.spread(user="u1")["rank"].max() == 10
    with pytest.warns(RediffuseWarning, match="no mass to spread"):
        nothing = recommender.spread(history=[])
    assert nothing.schema == spread.schema
    assert len(nothing) == 0


def test_map_vectors_give_similar_items_and_a_map_but_rank_nothing(recommender, monkeypatch):
    assert recommender.item_vectors is None
    assert recommender.inspector.has_vectors
    vectors = recommender.model.map_vectors()
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    ids = recommender.items["item_id"].to_list()
    found = recommender.similar(["i7"], k=3)
    cosines = (vectors @ vectors[ids.index("i7")]).tolist()
    expected = sorted((id for id in ids if id != "i7"), key=lambda id: -cosines[ids.index(id)])[:3]
    assert found["similar_id"].to_list() == expected
    assert recommender.inspector.map.points.shape == (40, 2)


def test_models_that_cannot_explain_say_what_can(recommender, others, tmp_path):
    knn, kg = others["itemknn"], others["diffkg"]
    for ask in (lambda: knn.explain(["i1"], user="u1"), lambda: knn.recommend(users=["u1"], explain=True)):
        with pytest.raises(ConfigError, match="itemknn cannot explain") as raised:
            ask()
        assert "heat, transition or theat, or of diffkg" in raised.value.remedy
    with pytest.raises(ConfigError, match="diffkg are no sums; it explains items by paths"):
        kg.recommend(users=["u1"], explain=True)
    assert len(kg.explain(["i1"], history=["i0"], top=1)) == 1
    pl.DataFrame({"user_id": ["u1"]}).write_csv(tmp_path / "users.csv")
    with pytest.raises(ConfigError, match="itemknn cannot explain"):
        recommend_to_folder(knn, tmp_path / "users.csv", tmp_path / "out", explain=True)
    assert not (tmp_path / "out").exists()
    for one in (knn, kg):
        with pytest.raises(ConfigError, match="diffuses no mass"):
            one.spread(user="u1")
    for top in (0, "three"):
        with pytest.raises(ConfigError, match="top is"):
            recommender.explain(["i1"], user="u1", top=top)
