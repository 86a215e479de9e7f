"""Every command, with its output as text and as JSON."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

import rediffuse as rd
from rediffuse import cli
from rediffuse.testing import synthetic_interactions
from tests.two_hops import TwoHops


def command(*arguments: object) -> tuple[int, str, str]:
    """Run a command in this process: exit code, stdout and stderr."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["rediffuse", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, out.getvalue(), err.getvalue()


def succeeds(*arguments: object) -> str:
    """Run a command that must succeed; its stdout."""
    code, out, err = command(*arguments)
    assert code == 0, err
    return out


def flat(text: str) -> str:
    """Text without the line breaks of the terminal."""
    return " ".join(text.split())


COLUMNS = ["--user", "userId", "--item", "movieId", "--time", "timestamp"]


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> Path:
    """A folder with ratings.csv and films.csv."""
    folder = tmp_path_factory.mktemp("cli")
    data = synthetic_interactions()
    users = data.user_ids.gather(data.interactions.owners)
    items = data.item_ids.gather(data.interactions.items)
    pl.DataFrame({"userId": users, "movieId": items, "timestamp": data.interactions.times}).write_csv(
        folder / "ratings.csv"
    )
    pl.DataFrame({"movieId": data.item_ids, "title": [f"Film {i}" for i in data.item_ids]}).write_csv(
        folder / "films.csv"
    )
    return folder


@pytest.fixture(scope="module")
def dataset(tables) -> Path:
    films = ["--items", tables / "films.csv", "--title", "title"]
    succeeds("prepare", tables / "ratings.csv", "-o", tables / "data", *COLUMNS, *films)
    return tables / "data"


TINY = ["--set", "epochs=2", "--set", "embedding_size=16", "--set", "blocks=1"]


@pytest.fixture(scope="module")
def trained(dataset) -> Path:
    out = dataset.parent / "run"
    succeeds("train", "diffurec", dataset, "-o", out, *TINY, "--split", "leave-one-out")
    return out


def test_the_module_prints_version_and_help_without_heavy_imports():
    """As `python -m rediffuse`, in a process of its own."""
    probe = (
        "import runpy, sys\n"
        "for option in ('--version', '--help'):\n"
        "    sys.argv = ['rediffuse', option]\n"
        "    try: runpy.run_module('rediffuse', run_name='__main__')\n"
        "    except SystemExit: pass\n"
        "print([m for m in ('torch', 'polars', 'numpy', 'pydantic', 'accelerate', 'scipy') if m in sys.modules])"
    )
    environment = os.environ | {"COLUMNS": "200"}
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.startswith("rediffuse 0.")
    assert "recommend" in done.stdout
    assert done.stdout.strip().endswith("[]")


def test_prepare_reports_and_json(dataset, tables):
    out = succeeds("prepare", tables / "ratings.csv", *COLUMNS, "--k-core", "2", "-o", tables / "core", "--json")
    facts = json.loads(out)
    assert facts["timestamps"] is True
    assert facts["users"] == 60


def test_train_then_evaluate_then_recommend(dataset, trained):
    facts = json.loads(succeeds("evaluate", trained, dataset, "--json"))
    assert facts["counts"]["users"] == 60
    assert facts["leak"].startswith("Leave-one-out leaks")
    assert json.loads((trained / "test.json").read_text())["metrics"] == facts["metrics"]
    per_user = pl.read_parquet(trained / "per_user_test.parquet")
    assert per_user["ndcg@10"].mean() == pytest.approx(facts["metrics"]["all"]["ndcg@10"])
    assert per_user["user_id"][0].startswith("u")

    out = succeeds("recommend", trained, "--history", "Film i1| film I2|i3", "-k", "4", "--json")
    rows = json.loads(out)["recommendations"]
    assert [row["rank"] for row in rows] == [1, 2, 3, 4]
    assert all(row["title"] == f"Film {row['item_id']}" for row in rows)
    assert rows[0]["title"] in succeeds("recommend", trained, "--history", "i1|i2|i3", "-k", "4")
    out = succeeds("recommend", trained, "--history", "i1|i2|i3", "-k", "39", "--exclude", "i9", "--json")
    assert not {"i1", "i2", "i3", "i9"} & {row["item_id"] for row in json.loads(out)["recommendations"]}


def test_sampled_protocols_are_marked_and_compared_among_themselves(dataset, trained):
    code, _, err = command("compare", trained, "--protocol", "sampled-5")
    assert code == 2
    assert f"rediffuse evaluate {trained} DATASET --protocol sampled-5" in err
    out = flat(succeeds("evaluate", trained, dataset, "--protocol", "sampled-5"))
    assert "NOT COMPARABLE" in out
    assert "Validation interactions are part of the histories" in out
    assert "Krichene & Rendle" in out
    assert (trained / "test-sampled-5.json").exists()
    assert "NOT COMPARABLE" in succeeds("compare", trained, "--protocol", "sampled-5")
    found = json.loads(succeeds("compare", trained, "--protocol", "sampled-5", "--json"))
    assert found["facts"]["protocol"]["candidates"] == "sampled-5"


def test_compare_writes_a_report(dataset, trained, tmp_path):
    succeeds("evaluate", trained, dataset, "--sampling-seeds", "2")
    succeeds("train", "itemknn", dataset, "-o", tmp_path / "knn", "--split", "leave-one-out")
    code, _, err = command("compare", trained, tmp_path / "knn")
    assert code == 2
    assert f"rediffuse evaluate {tmp_path / 'knn'} DATASET" in flat(err)
    succeeds("evaluate", tmp_path / "knn", dataset)
    (tmp_path / "published.yaml").write_text("A paper:\n  source: here\n  hr@10: 0.5\n")
    out = succeeds(
        "compare", trained, tmp_path / "knn", "-o", tmp_path / "report", "--published", tmp_path / "published.yaml"
    )
    assert "itemknn" in out
    assert "diffurec" in out
    assert {file.name for file in (tmp_path / "report").iterdir()} >= {"report.html", "report.md", "report.json"}
    out = succeeds("compare", trained, tmp_path / "knn", "--json")
    assert {row["variant"] for row in json.loads(out)["costs"]} == {"diffurec", "itemknn"}


def test_tune_prints_the_command_that_trains_with_the_best_options(dataset, tmp_path):
    out = succeeds("tune", "ease", dataset, "-o", tmp_path / "study", "--trials", "3", "--json")
    assert json.loads(out)["best_value"] > 0
    assert "--config" in succeeds("tune", "ease", dataset, "-o", tmp_path / "study", "--trials", "3")
    succeeds("train", "ease", dataset, "-o", tmp_path / "run", "--config", tmp_path / "study/best.yaml")


def test_recommend_for_a_user_file(trained, tmp_path):
    pl.DataFrame({"user_id": ["u3", "u5", "stranger"]}).write_csv(tmp_path / "users.csv")
    lists = tmp_path / "lists.parquet"
    code, out, err = command("recommend", trained, "--users", tmp_path / "users.csv", "-o", lists, "--json")
    assert code == 0, err
    assert json.loads(out)["rows"] == 30
    assert "1 of 3 users are unknown" in err
    assert pl.read_parquet(lists)["user_id"].unique().sort().to_list() == ["stranger", "u3", "u5"]


def test_train_prints_json_and_the_leak(dataset, tmp_path):
    code, out, err = command("train", "popularity", dataset, "-o", tmp_path / "p", "--split", "leave-one-out", "--json")
    assert code == 0, err
    assert set(json.loads(out)["validation"]) >= {"ndcg@10", "ndcg@10/unseen"}
    assert "leaks the future" in err


def test_theat_chooses_and_is_updated(dataset, tables, tmp_path):
    code, out, err = command("train", "theat", dataset, "-o", tmp_path / "run", "--split", "leave-one-out")
    assert code == 0, err
    assert "Chosen on validation data: half_life = " in out
    assert "Then fitted again, with the validation interactions." in out
    known = rd.load_dataset(dataset)
    latest = int(known.interactions.times.max())
    later = pl.DataFrame({"user": ["u1", "new"], "item": ["i3", "fresh"], "time": [latest + 60, latest + 120]})
    later.write_csv(tmp_path / "later.csv")
    columns = ("--user", "user", "--item", "item", "--time", "time")
    succeeds("prepare", tmp_path / "later.csv", *columns, "-o", tmp_path / "later")
    facts = json.loads(succeeds("update", tmp_path / "run", tmp_path / "later", "-o", tmp_path / "today", "--json"))
    assert facts["added"] == 2
    assert (facts["users"], facts["items"]) == (known.num_users + 1, known.num_items + 1)
    rows = json.loads(succeeds("recommend", tmp_path / "today", "--user", "new", "-k", "3", "--json"))
    assert len(rows["recommendations"]) == 3
    assert "fresh" not in {row["item_id"] for row in rows["recommendations"]}


def test_models_data_and_doctor_in_json():
    _, out, _ = command("models", "--json")
    assert json.loads(out)["diffurec"]["presets"] == ["default", "paper", "released", "esasrec"]
    _, out, _ = command("data", "--json")
    assert "ml-100k" in json.loads(out)["names"]
    _, out, _ = command("doctor", "--json")
    assert {"python", "cores", "threads", "memory_gib", "packages", "missing_extras"} <= json.loads(out).keys()
    _, out, _ = command("models", "sasrec", "--json")
    assert list(json.loads(out)) == ["sasrec"]
    assert "Did you mean 'sasrec'" in command("models", "SASrek")[2]
    for name in ("models", "data", "doctor"):
        code, out, _ = command(name)
        assert code == 0
        assert out.strip()


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["train", "difurec", "DATA", "-o", "X"], "Did you mean 'diffurec'"),
        (["train", "diffurec", "DATA", "-o", "X", "--set", "epoch=1"], "Did you mean 'epochs'"),
        (["train", "diffurec", "DATA", "-o", "X", "--set", "epochs"], "option=value"),
        (["train", "diffurec", "DATA", "-o", "X", "--preset", "papre"], "Did you mean 'paper'"),
        (["train", "diffurec", "DATA", "-o", "X", "--split", "leave-on-out"], "Did you mean 'leave-one-out'"),
        (["train", "diffurec", "nowhere", "-o", "X"], "nowhere"),
        (["train", "diffurec", "DATA", "-o", "X", "--split", "paper:diffrec"], "came without a split"),
        (["train", "diffurec", "DATA", "-o", "X", "--split", "sampled-99"], "evaluate with --protocol sampled-99"),
        (["evaluate", "RUN", "DATA", "--seed", "-1"], "none below 0"),
        (["evaluate", "RUN", "DATA", "--protocol", "paper:diffurec"], "Train with --split paper:diffurec"),
        (["evaluate", "RUN", "DATA", "--protocol", "leave-one"], "Did you mean 'leave-one-out'"),
        (["tune", "popularity", "DATA", "-o", "X"], "no options to search"),
        (["data", "ml-100"], "-o"),
        (["recommend", "RUN"], "either --users, or --user or --history"),
        (["recommend", "RUN", "--history", "i1", "--users", "users.csv"], "either --users, or --user or --history"),
        (["recommend", "RUN", "--history", "Film i99"], "Did you mean 'Film i"),
        (["recommend", "RUN", "--user", "u1", "-o", "x.txt"], ".parquet"),
        (["recommend", "nowhere", "--user", "u1"], "nowhere"),
    ],
)
def test_errors_are_explained_on_stderr_and_in_json(dataset, trained, tmp_path, arguments, found):
    names = {"DATA": str(dataset), "RUN": str(trained), "X": str(tmp_path / "x")}
    arguments = [names.get(argument, argument) for argument in arguments]
    code, out, err = command(*arguments)
    assert code == 2
    assert found in flat(err)
    assert "Traceback" not in err
    assert not out
    code, out, _ = command(*arguments, "--json")
    assert code == 2
    answer = json.loads(out)
    assert found in f"{answer['error']} {answer['remedy']}"


def test_another_dataset_is_refused(trained, tables):
    succeeds("prepare", tables / "ratings.csv", *COLUMNS, "--duplicates", "last", "-o", tables / "other")
    code, _, err = command("evaluate", trained, tables / "other")
    assert code == 2
    assert "trained on other data" in err


PDREC = [
    *("--set", "epochs=2", "--set", "backbone=gru4rec", "--set", "backbone_options.embedding_size=16"),
    *("--set", "candidates=5", "--split", "leave-one-out"),
]
TIDIFFREC = ["epochs=2", "hidden_sizes=[8]", "validate_every=1"]


def test_pdrec_end_to_end(dataset, tmp_path):
    """Train both phases, train from a run of the first phase, and write the signals to a file."""
    first = [word for option in TIDIFFREC for word in ("--set", option)]
    common = ["--split", "leave-one-out", "--set", "weighting=interval"]
    succeeds("train", "tdiffrec", dataset, "-o", tmp_path / "ti", *first, *common, "--json")
    both = [word for option in TIDIFFREC for word in ("--set", f"diffusion.{option}")]
    out = succeeds("train", "pdrec", dataset, "-o", tmp_path / "both", *PDREC, *both, "--json")
    assert json.loads(out)["validation"]["hr@10"] >= 0
    succeeds("train", "pdrec", dataset, "-o", tmp_path / "run", *PDREC, "--phase", f"diffusion={tmp_path / 'ti'}")
    out = succeeds("augment", "pdrec", tmp_path / "run", "-o", tmp_path / "signals.parquet", "--json")
    table = pl.read_parquet(tmp_path / "signals.parquet")
    assert json.loads(out)["users"] == len(table) == 60
    assert table.columns == ["user_id", "items", "weights", "positives"]
    for row in table.iter_rows(named=True):
        assert len(row["items"]) == len(row["weights"])
        assert row["weights"][0] is None
        assert min(row["weights"][1:], default=1) > 0
        assert len(row["positives"]) == 5
        assert not set(row["positives"]) & set(row["items"])


def test_augment_refuses_runs_without_signals(trained, tmp_path):
    code, _, err = command("augment", "pdrec", trained, "-o", tmp_path / "signals.parquet")
    assert code == 2
    assert "a run of diffurec and has no signals" in err
    code, _, err = command("augment", "pdrec", trained, "-o", tmp_path / "signals.csv")
    assert code == 2
    assert "Parquet" in err


def test_augmented_data(dataset, tmp_path):
    """Each generator of synthetic interactions, and a model trained on its dataset."""
    common = ["--n", "2", "--split", "leave-one-out", "--json"]
    small = ["classifier.epochs=1", "classifier.embedding_size=16", "generator_epochs=1", "channels=8"]
    generators = {
        "random": [],
        "random-seq": ["--only-shorter-than", "6"],
        "asrep": ["--set", "epochs=1", "--set", "embedding_size=16"],
        "diffuasr": ["--guidance", "cg", *(word for option in small for word in ("--set", option))],
    }
    for name, options in generators.items():
        facts = json.loads(succeeds("augment", name, dataset, "-o", tmp_path / name, *common, *options))
        assert facts["interactions"] == 2 * facts["users"]
        assert facts["name"] == {"diffuasr": "diffuasr-cg"}.get(name, name)
    longer = tmp_path / "diffuasr"
    succeeds("train", "gru4rec", longer, "-o", tmp_path / "run", *TINY[:4], "--split", "leave-one-out")
    code, _, err = command("train", "gru4rec", longer, "-o", tmp_path / "other", *TINY[:4])
    assert code == 2
    assert "augmented for the split leave-one-out" in err
    code, printed, _ = command("augment", "diffuasr", dataset, "-o", longer, "--guidance", "cf", *common)
    assert code == 2
    assert "guidance was 'cg', is 'cf'" in printed


def test_graphs_end_to_end(tables, tmp_path):
    """A social graph and a knowledge graph as files: lists for a user who has only friends, and explanations."""
    data = synthetic_interactions(friends=3, knowledge=True)
    social, kg = data.social, data.kg
    ends = {"source": data.user_ids.gather(social.source), "target": data.user_ids.gather(social.target)}
    pl.DataFrame(ends).write_csv(tmp_path / "friends.csv")
    facts = {"head": kg.entity_ids.gather(kg.head), "relation": kg.relation_ids.gather(kg.relation)}
    pl.DataFrame(facts | {"tail": kg.entity_ids.gather(kg.tail)}).write_csv(tmp_path / "facts.csv")
    items, entities = kg.item_entity.T
    links = {"item_id": data.item_ids.gather(items), "entity_id": kg.entity_ids.gather(entities)}
    pl.DataFrame(links).write_csv(tmp_path / "links.csv")
    films = ["--items", tables / "films.csv", "--title", "title", "--social", tmp_path / "friends.csv"]
    graphs = ["--kg", tmp_path / "facts.csv", "--item-entity", tmp_path / "links.csv"]
    succeeds("prepare", tables / "ratings.csv", "-o", tmp_path / "data", *COLUMNS, *films, *graphs)

    small = ["--set", "epochs=2", "--set", "embedding_size=8", "--split", "leave-one-out"]
    succeeds("train", "diffnet", tmp_path / "data", "-o", tmp_path / "social", *small)
    code, out, err = command("recommend", tmp_path / "social", "--user", "u_alone", "-k", "3", "--json")
    assert code == 0, err
    assert "empty" not in err
    assert len(json.loads(out)["recommendations"]) == 3
    code, _, err = command("recommend", tmp_path / "social", "--user", "u1", "--explain")
    assert code == 2
    assert "no knowledge graph" in err

    succeeds("train", "diffkg", tmp_path / "data", "-o", tmp_path / "facts", *small)
    explain = ["recommend", tmp_path / "facts", "--history", "Film i1|Film i2", "-k", "20", "--explain"]
    found = json.loads(succeeds(*explain, "--json"))
    assert found["paths"]
    assert {row["history_item"] for row in found["paths"]} <= {"i1", "i2"}
    assert {row["item_id"] for row in found["paths"]} <= {row["item_id"] for row in found["recommendations"]}
    assert "-- of 5 -- part 5.0 -- of 5 -- Film i1" in succeeds(*explain)
    whole_catalogue = "|".join(data.item_ids)
    out = succeeds("recommend", tmp_path / "facts", "--history", whole_catalogue, "--explain")
    assert "No path of the knowledge graph" in out
    code, _, err = command("recommend", tmp_path / "facts", "--users", tables / "ratings.csv", "--explain")
    assert code == 2
    assert "one list at a time" in err


def test_scores_are_explained_on_screen_in_json_and_in_files(dataset, trained, tmp_path):
    run = tmp_path / "hops"
    rd.train(TwoHops, rd.split.leave_one_out(rd.load_dataset(dataset)), run)
    asked = ["recommend", run, "--history", "Film i4|Film i5", "-k", "3", "--explain"]
    rows = json.loads(succeeds(*asked, "--json"))["recommendations"]
    for row in rows:
        assert sum(one["contribution"] for one in row["because"]) == pytest.approx(row["score"], rel=1e-5)
    lines = [line for line in succeeds(*asked).splitlines() if line.startswith("  Film")]
    assert [line.split(":")[0].strip() for line in lines] == [row["title"] for row in rows]
    assert re.fullmatch(r"  Film i6: Film i5 \d+%, Film i4 \d+%, popularity \d+%", lines[0])
    assert "  user u2, Film i" in succeeds("recommend", run, "--user", "u1", "--user", "u2", "--explain")

    pl.DataFrame({"user_id": ["u1", "u2"]}).write_csv(tmp_path / "users.csv")
    asked = ["recommend", run, "--users", tmp_path / "users.csv", "-k", "3", "--explain", "-o"]
    for out in ("lists.parquet", "lists.csv", "lists"):
        succeeds(*asked, tmp_path / out)
    found = pl.read_parquet(tmp_path / "lists.parquet")
    sums = found["because"].list.eval(pl.element().struct.field("contribution")).list.sum()
    assert sums.to_numpy() == pytest.approx(found["score"].to_numpy(), rel=1e-5)
    assert pl.read_parquet(tmp_path / "lists/part-*.parquet")["because"].dtype == found["because"].dtype
    assert pl.read_csv(tmp_path / "lists.csv")["because"].str.contains(r"^Film i\d+ \d+%, ").all()
    for out in ([], ["-o", tmp_path / "x.csv"], ["-o", tmp_path / "x"]):
        code, _, err = command("recommend", trained, "--users", tmp_path / "users.csv", "--explain", *out)
        assert code == 2
        assert "diffurec cannot explain" in flat(err)
        assert "Use a run of heat, transition or theat" in flat(err)
    assert not (tmp_path / "x").exists()


def test_folders_of_part_files(trained, tmp_path):
    ids = [f"u{n % 60}" for n in range(61)] + ["stranger"]
    pl.DataFrame({"user_id": ids}).write_csv(tmp_path / "users.csv")
    out = tmp_path / "out"
    recommend = ["recommend", trained, "--users", tmp_path / "users.csv", "-o", out, "-k", "3", "--rows-per-part", "8"]
    code, text, err = command(*recommend, "--json")
    assert code == 0, err
    facts = json.loads(text)
    assert (facts["users"], facts["rows"], facts["parts"], facts["unknown_users"]) == (62, 186, 8, 1)
    assert facts["finished"] is True
    assert err.count("1 of 62 users are unknown") == 1
    found = pl.read_parquet(out / "part-*.parquet")
    assert found["user_id"].to_list() == [user for user in ids for _ in range(3)]
    assert {"item_id", "rank", "score", "title"} <= set(found.columns)

    code, text, err = command(*recommend)
    assert code == 0, err
    assert "was finished already: 186 rows for 62 users in 8 part files" in flat(text)
    assert "unknown" not in err


def test_part_sizes_and_engines_need_a_folder(trained, tmp_path):
    pl.DataFrame({"user_id": ["u1"]}).write_csv(tmp_path / "users.csv")
    recommend = ["recommend", trained, "--users", tmp_path / "users.csv"]
    for more in ([], ["-o", tmp_path / "lists.csv"]):
        for option, said in [
            (["--rows-per-part", "5"], "--rows-per-part is for a folder of part files"),
            (["--engine", "ray"], "--engine writes a folder of part files"),
            (["--engine", "rya"], "There is no engine 'rya'. Did you mean 'ray'"),
            (["--workers", "2"], "Add --engine ray"),
        ]:
            code, out, err = command(*recommend, *more, *option)
            assert code == 2
            assert not out
            assert said in flat(err)
    assert not (tmp_path / "lists.csv").exists()


def test_recommending_under_a_launcher_is_refused(trained, tmp_path, monkeypatch):
    pl.DataFrame({"user_id": ["u1"]}).write_csv(tmp_path / "users.csv")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    for more in (["--user", "u1"], ["--users", tmp_path / "users.csv", "-o", tmp_path / "lists"]):
        code, out, err = command("recommend", trained, *more)
        assert code == 2
        assert not out
        assert "rediffuse recommend runs in one process, and a launcher started several" in flat(err)
        assert "--engine ray" in err
    assert not (tmp_path / "lists").exists()


def test_part_files_need_a_user_file(trained, tmp_path):
    (tmp_path / "lists.v2").mkdir()
    pl.DataFrame({"user_id": ["u1"]}).write_csv(tmp_path / "users.csv")
    code, _, err = command("recommend", trained, "--user", "u1", "-o", tmp_path / "lists.v2")
    assert code == 2
    assert "which needs --users FILE" in flat(err)
    succeeds("recommend", trained, "--users", tmp_path / "users.csv", "-o", tmp_path / "lists.v2")
    assert (tmp_path / "lists.v2/part-00000.parquet").exists()
    code, _, err = command("recommend", trained, "--users", tmp_path / "users.csv", "-o", tmp_path / "lists.v3")
    assert code == 2
    assert "neither .parquet nor .csv" in err


def test_user_files_may_have_histories(trained, tmp_path):
    pl.DataFrame({"user_id": ["new", "newer"], "history": ["i1|i2|i3", "i7"]}).write_csv(tmp_path / "users.csv")
    succeeds("recommend", trained, "--users", tmp_path / "users.csv", "-o", tmp_path / "lists.csv")
    found = pl.read_csv(tmp_path / "lists.csv")
    out = succeeds("recommend", trained, "--history", "i1|i2|i3", "--json")
    alone = [row["item_id"] for row in json.loads(out)["recommendations"]]
    assert found.filter(pl.col("user_id") == "new")["item_id"].to_list() == alone
