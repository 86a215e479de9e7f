"""Filters, candidates and re-ranking where lists are made: in Python, in files, on the command line and over HTTP."""

from __future__ import annotations

import dataclasses
import json
import warnings

import numpy as np
import polars as pl
import pytest

import rediffuse as rd
from rediffuse.cli import main
from rediffuse.errors import ConfigError, DataError, RediffuseWarning
from rediffuse.recommender.batch import recommend_to_folder
from rediffuse.recommender.item_files import read_item_ids
from rediffuse.reranking import pool_size

ITEMS, USERS = 240, 40
OPTIONS = {"epochs": 2, "embedding_size": 8, "batch_size": 64}
FILTER = "category == 'c1' and price < 60"


def shop() -> rd.Dataset:
    rng = np.random.default_rng(0)
    rows = [
        (f"u{user}", f"i{item}", 1000 * user + at)
        for user in range(USERS)
        for at, item in enumerate(rng.choice(ITEMS, 20, replace=False).tolist())
    ]
    rows += [("u0", f"i{item}", 100 + item) for item in range(ITEMS)]  # every item is in the catalogue
    table = pl.DataFrame(
        {
            "item": [f"i{n}" for n in range(ITEMS)],
            "category": [f"c{n % 4}" for n in range(ITEMS)],
            "price": [float(n % 100) for n in range(ITEMS)],
            "tags": [[f"t{n % 3}", f"t{n % 5}"] for n in range(ITEMS)],
        }
    )
    frame = pl.DataFrame(rows, schema=["user", "item", "time"], orient="row")
    return rd.read_interactions(frame, user="user", item="item", time="time", items=table)


@pytest.fixture(scope="module")
def data():
    return shop()


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return rd.train("bprmf", rd.split.leave_one_out(data), tmp_path_factory.mktemp("runs") / "a", config=OPTIONS)


@pytest.fixture
def recommender(run):
    found = rd.Recommender.load(run)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found.recommend(users=["u1"])  # says once what the split held out
    return found


def listed(found):
    return found.select("user_id", "item_id").rows()


def allowed(data, test):
    assert data.items is not None
    return [row["item_id"] for row in data.items.iter_rows(named=True) if test(row)]


def test_a_filter_is_the_list_of_its_items_as_candidates(data, recommender):
    ids = allowed(data, lambda row: row["category"] == "c1" and row["price"] < 60)
    warnings.simplefilter("ignore")  # of the unknown user
    found = recommender.recommend(users=["u1", "u2", "new"], filter=FILTER, k=10)
    assert set(found["item_id"]) <= set(ids)
    mapping = {"and": [{"column": "category", "eq": "c1"}, {"column": "price", "range": {"lt": 60}}]}
    expression = (pl.col("category") == "c1") & (pl.col("price") < 60)
    for other in (
        recommender.recommend(users=["u1", "u2", "new"], candidates=ids),
        recommender.recommend(users=["u1", "u2", "new"], filter=mapping),
        recommender.recommend(users=["u1", "u2", "new"], filter=expression),
    ):
        assert listed(other) == listed(found)
    everything = recommender.recommend(users=["u1"], k=ITEMS)
    wanted = [item for item in everything["item_id"] if item in set(ids)][:10]
    assert found.filter(pl.col("user_id") == "u1")["item_id"].to_list() == wanted


def test_filter_candidates_and_excluded_items_together(recommender):
    found = recommender.recommend(
        users=["u1"],
        filter="price < 60",
        candidates=["i1", "i2", "i3", "i99", "i99"],
        exclude=["i2"],
        filter_seen=False,
        k=2,
    )
    assert sorted(found["item_id"]) == ["i1", "i3"]


def test_a_filter_that_leaves_few_items_says_so(recommender):
    with pytest.warns(RediffuseWarning, match=f"The filter leaves 3 of {ITEMS} items, fewer than k = 10"):
        assert len(recommender.recommend(users=["u1"], filter="price == 7", filter_seen=False)) == 3
    with pytest.warns(RediffuseWarning, match=f"The filter leaves none of {ITEMS} items: all lists are empty"):
        assert recommender.recommend(users=["u1"], filter="price > 1000").is_empty()
    with pytest.warns(RediffuseWarning, match="1 of 2 users get fewer than k = 10 items"):  # u0 has seen all
        recommender.recommend(users=["u0", "u1"], filter=FILTER)


def test_max_per_and_diversity(data, recommender):
    assert data.items is not None
    category = dict(data.items.select("item_id", "category").iter_rows())
    plain = recommender.recommend(users=["u1", "u2"], k=6)
    limited = recommender.recommend(users=["u1", "u2"], k=6, max_per={"category": 2, "tags": 4})
    for user, items in limited.group_by("user_id").agg("item_id").iter_rows():
        counts = np.unique([category[item] for item in items], return_counts=True)[1]
        assert counts.max() <= 2, user
        assert len(items) == 6
    assert listed(recommender.recommend(users=["u1", "u2"], k=6, max_per={"category": 6})) == listed(plain)
    assert listed(recommender.recommend(users=["u1", "u2"], k=6, diversity=0)) == listed(plain)

    def cosine(found):
        vectors = recommender.inspector.directions.numpy()[recommender.item_index(found["item_id"])]
        return float((vectors @ vectors.T).sum())

    diverse = recommender.recommend(users=["u1"], k=6, diversity=0.8)
    assert cosine(diverse) < cosine(recommender.recommend(users=["u1"], k=6)) - 1
    assert diverse["item_id"][0] == plain["item_id"][0]
    pool = recommender.recommend(users=["u1"], k=pool_size(6))
    scores = dict(pool.select("item_id", "score").iter_rows())
    assert diverse["score"].to_list() == pytest.approx([scores[item] for item in diverse["item_id"]], rel=1e-6)


SLATES = [
    {"diversity": 0.6, "diversity_by": "category"},
    {"diversity": 0.6, "slate": "dpp"},
    {"diversity": 0.6, "slate": "dpp", "diversity_by": "tags"},
    {"diversity": 0.6, "slate": "calibrated", "diversity_by": "category", "max_per": {"tags": 4}},
]


@pytest.mark.parametrize("rules", SLATES)
def test_lists_as_a_whole_do_not_depend_on_the_batch(recommender, rules):
    users = [f"u{n}" for n in range(1, 9)]
    together = recommender.recommend(users=users, k=6, filter="price < 90", **rules)
    assert listed(together) != listed(recommender.recommend(users=users, k=6, filter="price < 90"))
    alone = [recommender.recommend(users=[user], k=6, filter="price < 90", **rules) for user in users]
    assert listed(together) == listed(pl.concat(alone))
    assert listed(together) == listed(
        recommender.recommend(users=users, k=6, filter="price < 90", batch_size=3, **rules)
    )
    if "slate" not in rules:
        assert listed(together) == listed(
            recommender.recommend(users=users, k=6, filter="price < 90", slate="mmr", **rules)
        )


def test_calibrated_lists_have_the_categories_of_the_history(data, recommender):
    of = {kind: [f"i{n}" for n in range(ITEMS) if f"c{n % 4}" == kind][:4] for kind in ("c1", "c2")}
    rules = {"k": 6, "diversity": 0.99, "diversity_by": "category", "slate": "calibrated"}
    category = dict(data.items.select("item_id", "category").iter_rows())
    histories = [of["c1"], of["c1"][:1] + of["c2"][:2]]
    found = recommender.recommend(histories=histories, **rules)
    kinds = [
        [category[item] for item in items]
        for _, items in found.group_by("user_id", maintain_order=True).agg("item_id").iter_rows()
    ]
    assert kinds[0] == ["c1"] * 6
    assert sorted(kinds[1]) == ["c1"] * 2 + ["c2"] * 4
    with pytest.warns(RediffuseWarning, match="2 of 3 histories have no value in the column"):
        some = recommender.recommend(histories=[[], of["c1"], ["unknown"]], **rules)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = recommender.recommend(histories=[[]], k=6)
    assert some.filter(pl.col("user_id") != 1)["item_id"].to_list() == plain["item_id"].to_list() * 2


def test_models_without_vectors_or_tables_are_refused(tmp_path, recommender):
    plain = dataclasses.replace(rd.testing.synthetic_interactions(), items=None, title=None)
    run = rd.train("popularity", rd.split.leave_one_out(plain), tmp_path / "run")
    other = rd.Recommender.load(run)
    with pytest.raises(ConfigError, match="no item vectors"):
        other.recommend(histories=[[plain.item_ids[0]]], diversity=0.5)
    with pytest.raises(ConfigError, match="no item table"):
        other.recommend(histories=[[plain.item_ids[0]]], filter="price < 3")
    with pytest.raises(ConfigError, match="no item table, so diversity_by"):
        other.recommend(histories=[[plain.item_ids[0]]], diversity=0.5, diversity_by="category")
    with pytest.raises(ConfigError, match="no item table"):
        other.recommend(histories=[[plain.item_ids[0]]], max_per={"category": 2})
    with pytest.raises(ConfigError, match="'category'"):
        recommender.recommend(users=["u1"], max_per={"categories": 2})


def test_a_folder_of_part_files_holds_the_same_and_knows_its_rules(tmp_path, recommender):
    users = tmp_path / "users.csv"
    users.write_text("user_id\n" + "\n".join(f"u{n}" for n in range(1, 9)))
    rules = {
        "filter": "price < 60",
        "max_per": {"category": 2},
        "diversity": 0.3,
        "candidates": [f"i{n}" for n in range(150)],
    }
    recommend_to_folder(recommender, users, tmp_path / "out", k=5, rows_per_part=3, **rules)
    parts = pl.read_parquet(tmp_path / "out" / "part-*.parquet")
    assert listed(parts) == listed(recommender.recommend(users=[f"u{n}" for n in range(1, 9)], k=5, **rules))
    again = recommend_to_folder(recommender, users, tmp_path / "out", k=5, rows_per_part=3, **rules)
    assert (again.written, again.missing) == (0, 0)
    for name, value in {
        "filter": "price < 61",
        "max_per": {"category": 3},
        "diversity": 0.4,
        "diversity_by": "tags",
        "slate": "dpp",
        "candidates": [f"i{n}" for n in range(149)],
    }.items():
        with pytest.raises(ConfigError, match=r"another request: .* was "):
            recommend_to_folder(recommender, users, tmp_path / "out", k=5, rows_per_part=3, **(rules | {name: value}))


def test_a_folder_counts_histories_that_lists_cannot_be_calibrated_to(tmp_path, recommender):
    users = tmp_path / "users.csv"
    users.write_text("user_id,history\na,i1|i2\nb,x1|x2\nc,x3\nd,i3\n")
    rules = {"k": 5, "diversity": 0.5, "diversity_by": "category", "slate": "calibrated"}
    with pytest.warns(RediffuseWarning, match="2 of 4 histories have no value in the column"):
        found = recommend_to_folder(recommender, users, tmp_path / "out", rows_per_part=3, **rules)
    assert found.counts["uncalibrated"] == 2
    parts = pl.read_parquet(tmp_path / "out" / "part-*.parquet").filter(pl.col("user_id") == "a")
    expected = recommender.recommend(users=["a"], histories=[["i1", "i2"]], **rules)
    assert listed(parts) == listed(expected)


# --- files of items ----------------------------------------------------------------------------------------


def test_files_of_item_ids(tmp_path):
    (tmp_path / "a.txt").write_text("item_id\ni1\ni2\n")
    (tmp_path / "b.csv").write_text("name,item_id\nx,i1\ny,i2\n")
    (tmp_path / "d.txt").write_text("sku\ni1\ni2\n")
    pl.DataFrame({"item_id": ["i1", "i2"]}).write_parquet(tmp_path / "c.parquet")
    for name in ("a.txt", "b.csv", "c.parquet", "d.txt"):
        assert read_item_ids(tmp_path / name, "i1".__eq__).to_list() == ["i1", "i2"]
    (tmp_path / "bare.txt").write_text("i1\ni2\n")
    (tmp_path / "two.csv").write_text("sku,name\ni1,x\n")
    for name, said in (("bare.txt", "not a header"), ("two.csv", "no column item_id"), ("none.txt", "none.txt")):
        with pytest.raises(DataError, match=said):
            read_item_ids(tmp_path / name, "i1".__eq__)


# --- the command line --------------------------------------------------------------------------------------


def command(capsys, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["rediffuse", *map(str, arguments)])
    try:
        main()
        code = 0
    except SystemExit as error:
        code = error.code or 0
    output = capsys.readouterr()
    return code, output.out, output.err


def test_the_command(tmp_path, capsys, monkeypatch, run, recommender):
    (tmp_path / "candidates.txt").write_text("item_id\n" + "\n".join(f"i{n}" for n in range(100)))
    (tmp_path / "sold.csv").write_text("item_id\ni1\ni5\n")
    rules = ["--filter", FILTER, "--candidates", tmp_path / "candidates.txt", "--exclude-file", tmp_path / "sold.csv"]
    rules += ["--exclude", "i9", "--max-per", "tags=3", "--diversity", "0.2"]
    code, out, _ = command(capsys, monkeypatch, "recommend", run.path, "--user", "u3", "-k", "4", "--json", *rules)
    assert code == 0
    expected = recommender.recommend(
        users=["u3"],
        k=4,
        filter=FILTER,
        candidates=[f"i{n}" for n in range(100)],
        exclude=["i1", "i5", "i9"],
        max_per={"tags": 3},
        diversity=0.2,
    )
    assert [row["item_id"] for row in json.loads(out)["recommendations"]] == expected["item_id"].to_list()
    # The same rules for a folder of part files.
    (tmp_path / "users.csv").write_text("user_id\nu3\n")
    folder = tmp_path / "lists"
    code, out, _ = command(
        capsys,
        monkeypatch,
        "recommend",
        run.path,
        "--users",
        tmp_path / "users.csv",
        "-o",
        folder,
        "-k",
        "4",
        "--json",
        *rules,
    )
    assert code == 0, out
    assert listed(pl.read_parquet(folder / "part-*.parquet")) == listed(expected)


@pytest.mark.parametrize("rules", SLATES)
def test_lists_as_a_whole_by_the_command_and_over_http(capsys, monkeypatch, run, recommender, client, rules):
    expected = listed(recommender.recommend(users=["u3"], k=5, **rules))
    options = [f"--{name.replace('_', '-')}={value}" for name, value in rules.items() if name != "max_per"]
    options += [f"--max-per={column}={limit}" for column, limit in rules.get("max_per", {}).items()]
    code, out, _ = command(capsys, monkeypatch, "recommend", run.path, "--user", "u3", "-k", "5", "--json", *options)
    assert code == 0
    assert [(row["user_id"], row["item_id"]) for row in json.loads(out)["recommendations"]] == expected
    answer = client.post("/v1/recommend", json={"users": ["u3"], "k": 5} | rules)
    assert answer.status_code == 200, answer.text
    assert [("u3", item["item_id"]) for item in answer.json()["results"][0]["items"]] == expected


def test_a_history_for_a_user(capsys, monkeypatch, run, recommender):
    code, out, _ = command(
        capsys, monkeypatch, "recommend", run.path, "--user", "u3", "--history", "i1|i2", "-k", "3", "--json"
    )
    expected = recommender.recommend(users=["u3"], histories=[["i1", "i2"]], k=3)
    assert code == 0
    assert [(row["user_id"], row["item_id"]) for row in json.loads(out)["recommendations"]] == listed(expected)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--user", "u1", "--user", "u2", "--history", "i1"], "names 2 users"),
        (["--users", "users.csv", "--user", "u1"], "Give either --users"),
        ([], "Give either --users"),
        (["--user", "u1", "--max-per", "category"], "--max-per is 'category'"),
        (["--user", "u1", "--max-per", "tags=1", "--max-per", "tags=2"], "twice"),
        (["--user", "u1", "--filter", "colour == 'red'"], "no column 'colour'"),
        (["--user", "u1", "--steps", "4"], "sampling steps"),
        (["--user", "u1", "--noise", "2"], "draws no noise"),
        (["--user", "u1", "--diversity", "2"], "from 0"),
        (["--user", "u1", "--slate", "dpp"], "no effect without diversity"),
        (["--user", "u1", "--diversity", "0.5", "--slate", "mix"], "no slate 'mix'"),
    ],
)
def test_what_the_command_refuses(capsys, monkeypatch, run, arguments, said):
    code, _, err = command(capsys, monkeypatch, "recommend", run.path, *arguments)
    assert code == 2
    assert said in err


def test_candidates_that_the_run_does_not_know_are_refused(tmp_path, capsys, monkeypatch, run):
    path = tmp_path / "candidates.csv"
    path.write_text("item_id\nNULL\n7.0\n")
    code, _, err = command(capsys, monkeypatch, "recommend", run.path, "--user", "u1", "--candidates", path)
    assert code == 2
    assert "knows none of the items" in err
    assert "'NULL'" in err
    # Items that are sold out may be newer than the run.
    code, *_ = command(capsys, monkeypatch, "recommend", run.path, "--user", "u1", "--exclude-file", path)
    assert code == 0


# --- HTTP --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(run):
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from rediffuse.serving.app import create_app

    with TestClient(create_app([run.path]), base_url="http://localhost") as found:
        yield found


def test_rules_over_http(client, recommender):
    condition = {"and": [{"column": "category", "eq": "c1"}, {"column": "price", "range": {"lt": 60}}]}
    body = {"users": ["u1", "u2"], "k": 4, "filter": condition, "max_per": {"tags": 3}, "diversity": 0.3}
    answer = client.post("/v1/recommend", json=body)
    assert answer.status_code == 200, answer.text
    expected = recommender.recommend(users=["u1", "u2"], k=4, filter=condition, max_per={"tags": 3}, diversity=0.3)
    rows = [(one["user"], item["item_id"]) for one in answer.json()["results"] for item in one["items"]]
    assert rows == listed(expected)
    few = client.post("/v1/recommend", json={"users": ["u1"], "filter": {"column": "price", "eq": 7}}).json()
    assert f"The filter leaves 3 of {ITEMS} items, fewer than k = 10." in few["notes"]
    rules = {"diversity": 0.5, "diversity_by": "category", "slate": "calibrated"}
    notes = client.post("/v1/recommend", json={"histories": [["i1"], []]} | rules).json()["notes"]
    assert any(note.startswith("1 of 2 histories have no value in the column") for note in notes)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"filter": {"column": "prize", "eq": 1}}, "no column 'prize'"),
        ({"filter": {"column": "price", "eq": "low"}}, "holds numbers"),
        ({"filter": {}}, "has nothing"),
        ({"filter": "price < 3"}, "body.filter"),
        ({"max_per": {"category": 0}}, "body.max_per"),
        ({"max_per": {"colour": 1}}, "no column 'colour'"),
        ({"diversity": 2}, "body.diversity"),
        ({"diversity": 0.5, "slate": "mix"}, "body.slate"),
        ({"diversity": 0.5, "slate": "calibrated"}, "need diversity_by"),
        ({"slate": "dpp"}, "no effect without diversity"),
        ({"diversity": 0.5, "diversity_by": "colour"}, "no column 'colour'"),
        ({"diversity": 0.5, "k": 1000, "users": ["u1", "u2", "u3"]}, "max_per or diversity"),
    ],
)
def test_wrong_rules_over_http_are_problems(client, body, said):
    answer = client.post("/v1/recommend", json={"users": ["u1"]} | body)
    assert answer.status_code == 422
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert said in answer.text


# --- the cost in accuracy ----------------------------------------------------------------------------------


def test_evaluate_measures_reranked_lists_beside_those_of_the_model(data, run):
    plain = rd.evaluate(run, data)
    found = rd.evaluate(run, data, max_per={"category": 2}, diversity=0.4)
    assert found["metrics"] == plain["metrics"]
    assert json.loads((run.path / "test.json").read_text()) == found
    reranked = found["reranked"]
    assert (reranked["max_per"], reranked["diversity"]) == ({"category": 2}, 0.4)
    for policy, values in reranked["difference"].items():
        for name, value in values.items():
            assert value == pytest.approx(reranked["metrics"][policy][name] - plain["metrics"][policy][name])

    # The lists are those of `recommend`, here measured by hand.
    task = rd.split.leave_one_out(data).task("test")
    recommender = rd.Recommender.load(run)
    ranks = []
    for row, user in enumerate(task.users.tolist()):
        history = data.item_ids.gather(task.histories.row(row)).to_list()
        numbers = np.asarray([user])
        query, _ = recommender.build_query(20, history, None, True, None, recommender.reranking({"category": 2}, 0.4))
        (ranked,) = recommender.ranker.rank(
            task.histories.take(np.asarray([row])), numbers, [query], recommender.sampling()
        )
        places = np.flatnonzero(ranked.items == task.truth.row(row)[0])
        ranks.append(places[0] + 1 if len(places) else 10**6)
    for k in (5, 10, 20):
        assert reranked["metrics"]["unseen"][f"hr@{k}"] == pytest.approx(np.mean(np.asarray(ranks) <= k))
    assert reranked["metrics"]["unseen"]["mrr@20"] == pytest.approx(np.mean([1 / r if r <= 20 else 0 for r in ranks]))
    assert "reranked" not in rd.evaluate(run, data)


@pytest.mark.parametrize("slate", ["dpp", "calibrated"])
def test_evaluate_measures_lists_as_a_whole(data, run, slate):
    found = rd.evaluate(run, data, diversity=0.7, diversity_by="category", slate=slate)
    reranked = found["reranked"]
    assert (reranked["slate"], reranked["diversity_by"], reranked["max_per"]) == (slate, "category", {})
    better = reranked["difference"]["unseen"]
    if slate == "dpp":
        assert better["diversity@10"] > 0.01
    else:
        assert better["calibration@10"] < -0.01

    # The calibration of the lists of `recommend`, with the histories of the test.
    task, recommender = rd.split.leave_one_out(data).task("test"), rd.Recommender.load(run)
    assert data.items is not None
    category = data.items["category"].to_list()
    values = []
    query, _ = recommender.build_query(20, [], None, True, None, recommender.reranking(None, 0.7, "category", slate))
    for row, user in enumerate(task.users.tolist()):
        (ranked,) = recommender.ranker.rank(
            task.histories.take(np.asarray([row])), np.asarray([user]), [query], recommender.sampling()
        )
        kinds = [[category[item] for item in items] for items in (task.histories.row(row), ranked.items[:10])]
        p, q = ({kind: of.count(kind) / len(of) for kind in set(of)} for of in kinds)
        values.append(sum(p[g] * np.log(p[g] / (0.99 * q.get(g, 0) + 0.01 * p[g])) for g in p))
    assert reranked["metrics"]["unseen"]["calibration@10"] == pytest.approx(np.mean(values))


def test_the_command_evaluate(tmp_path, capsys, monkeypatch, data, run):
    data.save(tmp_path / "data")
    rules = ["--max-per", "category=2", "--diversity", "0.5", "--diversity-by", "tags", "--slate", "dpp"]
    code, out, _ = command(capsys, monkeypatch, "evaluate", run.path, tmp_path / "data", *rules)
    assert code == 0
    assert "Re-ranked lists" in out
    assert "calibration@10" in out
    reranked = json.loads((run.path / "test.json").read_text())["reranked"]
    assert {name: reranked[name] for name in ("max_per", "diversity", "diversity_by", "slate")} == {
        "max_per": {"category": 2},
        "diversity": 0.5,
        "diversity_by": "tags",
        "slate": "dpp",
    }
    assert "Difference" in out
