"""Every command as a person runs it, and as a program does with --json."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from rediffuse import cli
from tests.dying import dies
from tests.synthetic import walks


def run(capsys, monkeypatch, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["rediffuse", *arguments])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.fixture
def command(capsys, monkeypatch):
    return lambda *arguments: run(capsys, monkeypatch, *map(str, arguments))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with the user's tables."""
    folder = tmp_path_factory.mktemp("cli")
    data = walks()
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
def dataset(place) -> Path:
    columns = ["--user", "userId", "--item", "movieId", "--time", "timestamp"]
    films = ["--items", str(place / "films.csv"), "--title", "title"]
    command = [sys.executable, "-m", "rediffuse", "prepare", str(place / "ratings.csv"), "-o", str(place / "data")]
    subprocess.run([*command, *columns, *films], check=True, capture_output=True)
    return place / "data"


TINY = ["--set", "epochs=2", "--set", "embedding_size=16", "--set", "blocks=1"]


@pytest.fixture(scope="module")
def trained(dataset) -> Path:
    out = dataset.parent / "run"
    command = [sys.executable, "-m", "rediffuse", "train", "diffurec", str(dataset), "-o", str(out), *TINY]
    subprocess.run([*command, "--split", "leave-one-out"], check=True, capture_output=True)
    return out


def test_help_needs_no_heavy_import():
    probe = (
        "import sys; sys.argv = ['rediffuse', '--help']; from rediffuse.cli import app\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'polars', 'numpy', 'pydantic', 'accelerate', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
    assert "recommend" in done.stdout


def test_prepare_reports_and_json(command, dataset, place):
    code, out, _ = command(
        "prepare", place / "ratings.csv", "--user", "userId", "--item", "movieId", "--time", "timestamp",
        "--k-core", "2", "-o", place / "core", "--json",
    )  # fmt: skip
    facts = json.loads(out)
    assert code == 0
    assert facts["timestamps"] is True
    assert facts["users"] == 60


def test_train_then_evaluate_then_recommend(command, dataset, trained):
    code, out, err = command("evaluate", trained, dataset, "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert facts["counts"]["users"] == 60
    assert facts["leak"].startswith("Leave-one-out leaks")
    assert json.loads((trained / "test.json").read_text())["metrics"] == facts["metrics"]
    per_user = pl.read_parquet(trained / "per_user_test.parquet")
    assert per_user["ndcg@10"].mean() == pytest.approx(facts["metrics"]["all"]["ndcg@10"])
    assert per_user["user_id"][0].startswith("u")

    code, out, err = command("recommend", trained, "--history", "Film i1| film I2|i3", "-k", "4", "--json")
    assert code == 0, err
    rows = json.loads(out)["recommendations"]
    assert [row["rank"] for row in rows] == [1, 2, 3, 4]
    assert all(row["title"] == f"Film {row['item_id']}" for row in rows)
    _, out, _ = command("recommend", trained, "--history", "i1|i2|i3", "-k", "4")
    assert rows[0]["title"] in out
    _, out, _ = command("recommend", trained, "--history", "i1|i2|i3", "-k", "39", "--exclude", "i9", "--json")
    assert not {"i1", "i2", "i3", "i9"} & {row["item_id"] for row in json.loads(out)["recommendations"]}


def test_a_sampled_protocol_says_that_it_is_not_comparable(command, dataset, trained):
    code, out, err = command("evaluate", trained, dataset, "--protocol", "sampled-5")
    assert code == 0, err
    assert "NOT COMPARABLE" in out
    assert "Validation events are part of the histories" in " ".join(out.split())
    assert "Krichene & Rendle" in " ".join(out.split())
    assert (trained / "test-sampled-5.json").exists()


def test_compare_writes_a_report(command, dataset, trained, tmp_path):
    command("evaluate", trained, dataset, "--sampling-seeds", "2")
    command("train", "itemknn", dataset, "-o", tmp_path / "knn", "--split", "leave-one-out")
    code, _, err = command("compare", trained, tmp_path / "knn")
    assert code == 2
    assert f"rediffuse evaluate {tmp_path / 'knn'} DATASET" in " ".join(err.split())
    command("evaluate", tmp_path / "knn", dataset)
    (tmp_path / "published.yaml").write_text("A paper:\n  source: here\n  hr@10: 0.5\n")
    code, out, err = command(
        "compare", trained, tmp_path / "knn", "-o", tmp_path / "report", "--published", tmp_path / "published.yaml"
    )
    assert code == 0, err
    assert "itemknn" in out
    assert "diffurec" in out
    assert {file.name for file in (tmp_path / "report").iterdir()} >= {"report.html", "report.md", "report.json"}
    code, out, _ = command("compare", trained, tmp_path / "knn", "--json")
    assert {row["variant"] for row in json.loads(out)["costs"]} == {"diffurec", "itemknn"}


def test_tune_prints_the_command_that_trains_with_what_it_found(command, dataset, tmp_path):
    code, out, err = command("tune", "ease", dataset, "-o", tmp_path / "study", "--trials", "3", "--json")
    assert code == 0, err
    assert json.loads(out)["best_value"] > 0
    code, out, err = command("tune", "ease", dataset, "-o", tmp_path / "study", "--trials", "3")
    assert code == 0, err
    assert "--config" in out
    code, _, err = command("train", "ease", dataset, "-o", tmp_path / "run", "--config", tmp_path / "study/best.yaml")
    assert code == 0, err


def test_recommend_for_a_file_of_users(command, trained, place):
    pl.DataFrame({"user_id": ["u3", "u5", "stranger"]}).write_csv(place / "users.csv")
    code, out, err = command(
        "recommend", trained, "--users", place / "users.csv", "-o", place / "recs.parquet", "--json"
    )
    assert code == 0
    assert json.loads(out)["rows"] == 30
    assert "1 of 3 users are unknown" in err
    assert pl.read_parquet(place / "recs.parquet")["user_id"].unique().sort().to_list() == ["stranger", "u3", "u5"]


def test_train_prints_json_and_the_leak(command, dataset, tmp_path):
    code, out, err = command("train", "popularity", dataset, "-o", tmp_path / "p", "--split", "leave-one-out", "--json")
    assert code == 0
    assert set(json.loads(out)["validation"]) >= {"ndcg@10", "ndcg@10/unseen"}
    assert "leaks the future" in err


def test_models_data_and_doctor_in_json(command):
    _, out, _ = command("models", "--json")
    assert json.loads(out)["diffurec"]["presets"] == ["default", "paper", "released"]
    _, out, _ = command("data", "--json")
    assert "ml-100k" in json.loads(out)["names"]
    _, out, _ = command("doctor", "--json")
    assert {"python", "cores", "threads", "memory_gib", "packages", "missing_extras"} <= json.loads(out).keys()
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
        (["recommend", "RUN"], "Say for whom"),
        (["recommend", "RUN", "--history", "Film i99"], "Did you mean 'Film i"),
        (["recommend", "RUN", "--user", "u1", "-o", "x.txt"], ".parquet"),
        (["recommend", "nowhere", "--user", "u1"], "nowhere"),
    ],
)
def test_mistakes_are_explained_on_stderr_and_in_json(command, dataset, trained, tmp_path, arguments, found):
    names = {"DATA": str(dataset), "RUN": str(trained), "X": str(tmp_path / "x")}
    arguments = [names.get(argument, argument) for argument in arguments]
    code, out, err = command(*arguments)
    assert code == 2
    assert found in " ".join(err.split())
    assert "Traceback" not in err
    assert not out
    code, out, _ = command(*arguments, "--json")
    assert code == 2
    answer = json.loads(out)
    assert found in f"{answer['error']} {answer['remedy']}"


def test_another_dataset_is_refused(command, trained, place):
    command(
        "prepare", place / "ratings.csv", "--user", "userId", "--item", "movieId", "--time", "timestamp",
        "--duplicates", "last", "-o", place / "other",
    )  # fmt: skip
    code, _, err = command("evaluate", trained, place / "other")
    assert code == 2
    assert "trained on other data" in err


def test_module_form_and_version():
    environment = os.environ | {"COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-m", "rediffuse", "--version"], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.startswith("rediffuse 0.")


PDREC = [
    *("--set", "epochs=2", "--set", "backbone=gru4rec", "--set", "backbone_options.embedding_size=16"),
    *("--set", "candidates=5", "--split", "leave-one-out"),
]
TIDIFFREC = ["epochs=2", "hidden_sizes=[8]", "validate_every=1"]


def test_pdrec_end_to_end(command, dataset, tmp_path):
    """Trained whole, trained from a run of its first phase, and its signals written for others."""
    first = [part for option in TIDIFFREC for part in ("--set", option)]
    common = ["--split", "leave-one-out", "--set", "weighting=interval"]
    code, out, err = command("train", "tdiffrec", dataset, "-o", tmp_path / "ti", *first, *common, "--json")
    assert code == 0, err
    whole = [part for option in TIDIFFREC for part in ("--set", f"diffusion.{option}")]
    code, out, err = command("train", "pdrec", dataset, "-o", tmp_path / "whole", *PDREC, *whole, "--json")
    assert code == 0, err
    assert json.loads(out)["validation"]["hr@10"] >= 0
    code, out, err = command(
        "train", "pdrec", dataset, "-o", tmp_path / "parts", *PDREC, "--phase", f"diffusion={tmp_path / 'ti'}", "--json"
    )
    assert code == 0, err
    code, out, err = command("augment", "pdrec", tmp_path / "parts", "-o", tmp_path / "signals.parquet", "--json")
    assert code == 0, err
    table = pl.read_parquet(tmp_path / "signals.parquet")
    assert json.loads(out)["users"] == len(table) == 60
    assert table.columns == ["user_id", "items", "weights", "positives"]
    for row in table.iter_rows(named=True):
        assert len(row["items"]) == len(row["weights"])
        assert row["weights"][0] is None
        assert min(row["weights"][1:], default=1) > 0
        assert len(row["positives"]) == 5
        assert not set(row["positives"]) & set(row["items"])


def test_augment_refuses_what_has_no_signals(command, trained, tmp_path):
    code, _, err = command("augment", "pdrec", trained, "-o", tmp_path / "signals.parquet")
    assert code == 2
    assert "a run of diffurec and has no signals" in err
    code, _, err = command("augment", "pdrec", trained, "-o", tmp_path / "signals.csv")
    assert code == 2
    assert "Parquet" in err


def test_a_protocol_can_be_compared(command, dataset, trained):
    code, _, err = command("compare", trained, "--protocol", "sampled-9")
    assert code == 2
    assert f"rediffuse evaluate {trained} DATASET --protocol sampled-9" in err
    assert command("evaluate", trained, dataset, "--protocol", "sampled-9", "--json")[0] == 0
    code, out, err = command("compare", trained, "--protocol", "sampled-9", "--json")
    assert code == 0, err
    assert json.loads(out)["facts"]["protocol"]["candidates"] == "sampled-9"


def test_augmented_data_from_the_command_line(command, dataset, tmp_path):
    """Each way to write events, and a model trained on what came out."""
    common = ["--n", "2", "--split", "leave-one-out", "--json"]
    small = ["classifier.epochs=1", "classifier.embedding_size=16", "generator_epochs=1", "channels=8"]
    ways = {
        "random": [],
        "random-seq": ["--only-shorter-than", "6"],
        "asrep": ["--set", "epochs=1", "--set", "embedding_size=16"],
        "diffuasr": ["--guidance", "cg", *(part for option in small for part in ("--set", option))],
    }
    for way, options in ways.items():
        out = tmp_path / way
        code, printed, err = command("augment", way, dataset, "-o", out, *common, *options)
        assert code == 0, err
        told = json.loads(printed)
        assert told["interactions"] == 2 * told["users"]
        assert told["name"] == {"diffuasr": "diffuasr-cg"}.get(way, way)
    longer = tmp_path / "diffuasr"
    code, printed, err = command(
        "train", "gru4rec", longer, "-o", tmp_path / "run", *TINY[:4], "--split", "leave-one-out"
    )
    assert code == 0, err
    code, _, err = command("train", "gru4rec", longer, "-o", tmp_path / "other", *TINY[:4])
    assert code == 2
    assert "augmented for the split leave-one-out" in err
    code, printed, _ = command("augment", "diffuasr", dataset, "-o", longer, "--guidance", "cf", *common)
    assert code == 2
    assert "guidance was 'cg', is 'cf'" in printed


def test_graphs_end_to_end(command, place, tmp_path):
    """Links and a knowledge graph as files: recommendations to who has only friends, and reasons."""
    data = walks(friends=3, knowledge=True)
    social, kg = data.social, data.kg
    ends = {"source": data.user_ids.gather(social.source), "target": data.user_ids.gather(social.target)}
    pl.DataFrame(ends).write_csv(tmp_path / "friends.csv")
    facts = {"head": kg.entity_ids.gather(kg.head), "relation": kg.relation_ids.gather(kg.relation)}
    pl.DataFrame(facts | {"tail": kg.entity_ids.gather(kg.tail)}).write_csv(tmp_path / "facts.csv")
    items, entities = kg.item_entity.T
    links = {"item_id": data.item_ids.gather(items), "entity_id": kg.entity_ids.gather(entities)}
    pl.DataFrame(links).write_csv(tmp_path / "links.csv")
    columns = ["--user", "userId", "--item", "movieId", "--time", "timestamp"]
    films = ["--items", place / "films.csv", "--title", "title", "--social", tmp_path / "friends.csv"]
    graphs = ["--kg", tmp_path / "facts.csv", "--item-entity", tmp_path / "links.csv"]
    code, _, err = command("prepare", place / "ratings.csv", "-o", tmp_path / "data", *columns, *films, *graphs)
    assert code == 0, err

    small = ["--set", "epochs=2", "--set", "embedding_size=8", "--split", "leave-one-out"]
    code, _, err = command("train", "diffnet", tmp_path / "data", "-o", tmp_path / "social", *small)
    assert code == 0, err
    code, out, err = command("recommend", tmp_path / "social", "--user", "u_alone", "-k", "3", "--json")
    assert code == 0, err
    assert "empty" not in err
    assert len(json.loads(out)["recommendations"]) == 3
    code, _, err = command("recommend", tmp_path / "social", "--user", "u1", "--explain")
    assert code == 2
    assert "no knowledge graph" in err

    code, _, err = command("train", "diffkg", tmp_path / "data", "-o", tmp_path / "facts", *small)
    assert code == 0, err
    asked = ["recommend", tmp_path / "facts", "--history", "Film i1|Film i2", "-k", "20", "--explain"]
    code, out, err = command(*asked, "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert answer["paths"]
    assert {row["touched_item"] for row in answer["paths"]} <= {"i1", "i2"}
    assert {row["item_id"] for row in answer["paths"]} <= {row["item_id"] for row in answer["recommendations"]}
    code, out, err = command(*asked)
    assert code == 0, err
    assert "-- of 5 -- part 5.0 -- of 5 -- Film i1" in out
    everything = "|".join(data.item_ids)
    code, out, err = command("recommend", tmp_path / "facts", "--history", everything, "--explain")
    assert code == 0, err
    assert "No path of the knowledge graph" in out
    code, _, err = command("recommend", tmp_path / "facts", "--users", place / "ratings.csv", "--explain")
    assert code == 2
    assert "one list at a time" in err


def shares(trained: Path, users: Path, out: Path, of: int, **environment: str) -> list[subprocess.Popen[str]]:
    """As many processes that write one folder, as a launcher starts them."""
    command = [sys.executable, "-m", "rediffuse", "recommend", str(trained), "--users", str(users), "-o", str(out)]
    command += ["--rows-per-part", "8", "-k", "3", "--json"]
    places = [{"RANK": str(rank), "WORLD_SIZE": str(of)} for rank in range(of)]
    return [
        subprocess.Popen(
            command, env=os.environ | place | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for place in places
    ]


def test_two_processes_share_a_folder_and_one_speaks(command, trained, tmp_path):
    asked = [f"u{n % 60}" for n in range(61)] + ["stranger"]
    pl.DataFrame({"user_id": asked}).write_csv(tmp_path / "users.csv")
    out = tmp_path / "out"
    launched = [process.communicate() for process in shares(trained, tmp_path / "users.csv", out, 2, LOCAL_RANK="1")]
    (told,) = [json.loads(printed) for printed, _ in launched if printed]
    assert (told["users"], told["rows"], told["parts"], told["unknown_users"]) == (62, 186, 8, 1)
    assert told["finished"] is True
    assert "".join(errors for _, errors in launched).count("1 of 62 users are unknown") == 1
    found = pl.read_parquet(out / "part-*.parquet")
    assert found["user_id"].to_list() == [user for user in asked for _ in range(3)]
    assert {"item_id", "rank", "score", "title"} <= set(found.columns)

    code, printed, err = command(
        "recommend", trained, "--users", tmp_path / "users.csv", "-o", out, "-k", "3", "--rows-per-part", "8"
    )
    assert code == 0, err
    assert "was finished already: 186 rows for 62 people in 8 parts" in " ".join(printed.split())
    assert "unknown" not in err


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_process_that_ends_last_tells_of_unknown_people(command, trained, tmp_path, monkeypatch, order):
    pl.DataFrame({"user_id": ["u1", "stranger", "u2"]}).write_csv(tmp_path / "users.csv")
    ask = ["recommend", trained, "--users", tmp_path / "users.csv", "-o", tmp_path / "out", "--rows-per-part", "1"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = []
    for rank in order:
        monkeypatch.setenv("RANK", str(rank))
        code, _, err = command(*ask)
        assert code == 0, err
        told.append(err)
    assert ["1 of 3 users are unknown" in err for err in told] == [False, True]


def test_several_processes_and_sizes_of_parts_are_for_folders(command, trained, tmp_path, monkeypatch):
    pl.DataFrame({"user_id": ["u1"]}).write_csv(tmp_path / "users.csv")
    ask = ["recommend", trained, "--users", tmp_path / "users.csv"]
    for more in ([], ["-o", tmp_path / "lists.csv"]):
        code, _, err = command(*ask, *more, "--rows-per-part", "5")
        assert code == 2
        assert "--rows-per-part is for a folder of parts" in err
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    for more in ([], ["-o", tmp_path / "lists.csv"]):
        code, out, err = command(*ask, *more)
        assert code == 2
        assert not out
        assert "A launcher started several processes" in err
    assert not (tmp_path / "lists.csv").exists()


def test_machines_without_a_launcher_say_what_is_missing(command, trained, tmp_path, monkeypatch):
    pl.DataFrame({"user_id": [f"u{n}" for n in range(30)]}).write_csv(tmp_path / "users.csv")
    ask = ["recommend", trained, "--users", tmp_path / "users.csv", "-o", tmp_path / "out", "--rows-per-part", "10"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    code, out, err = command(*ask, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert (told["written_parts"], told["missing_parts"], told["users"], told["finished"]) == (2, 1, 20, False)
    _, out, _ = command(*ask)
    assert "1 parts of other processes are missing yet" in " ".join(out.split())
    monkeypatch.setenv("RANK", "1")
    _, out, _ = command(*ask, "--json")
    assert json.loads(out)["finished"] is True
    for rank in ("2", "-1", "x", ""):
        monkeypatch.setenv("RANK", rank)
        code, _, err = command(*ask)
        assert code == 2
        assert f"RANK={rank}" in err


@pytest.mark.parametrize("at", [0, 2])
def test_a_killed_command_goes_on(command, trained, tmp_path, monkeypatch, at):
    asked = [f"u{n}" for n in range(40)]
    pl.DataFrame({"user_id": asked}).write_parquet(tmp_path / "users.parquet")
    ask = ["recommend", str(trained), "--users", str(tmp_path / "users.parquet"), "--rows-per-part", "9", "--json"]
    assert command(*ask, "-o", tmp_path / "alone")[0] == 0
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["rediffuse", *ask, "-o", str(out)])  # which new processes are given
    dies("lists", at, cli.main)
    code, printed, err = command(*ask, "-o", out)
    assert code == 0, err
    told = json.loads(printed)
    assert (told["skipped_parts"], told["written_parts"], told["finished"]) == (at, 5 - at, True)
    parts = sorted(path.name for path in out.glob("*.parquet"))
    assert parts == [f"part-0000{n}.parquet" for n in range(5)]
    assert all((out / name).read_bytes() == (tmp_path / "alone" / name).read_bytes() for name in parts)


def test_a_folder_of_parts_is_for_files_of_users(command, trained, tmp_path):
    (tmp_path / "lists.v2").mkdir()
    pl.DataFrame({"user_id": ["u1"]}).write_csv(tmp_path / "users.csv")
    code, _, err = command("recommend", trained, "--user", "u1", "-o", tmp_path / "lists.v2")
    assert code == 2
    assert "is for --users FILE" in " ".join(err.split())
    code, _, err = command("recommend", trained, "--users", tmp_path / "users.csv", "-o", tmp_path / "lists.v2")
    assert code == 0, err
    assert (tmp_path / "lists.v2/part-00000.parquet").exists()
    code, _, err = command("recommend", trained, "--users", tmp_path / "users.csv", "-o", tmp_path / "lists.v3")
    assert code == 2
    assert "neither .parquet nor .csv" in err


def test_a_file_may_bring_histories(command, trained, tmp_path):
    pl.DataFrame({"user_id": ["new", "newer"], "history": ["i1|i2|i3", "i7"]}).write_csv(tmp_path / "users.csv")
    code, _, err = command("recommend", trained, "--users", tmp_path / "users.csv", "-o", tmp_path / "lists.csv")
    assert code == 0, err
    found = pl.read_csv(tmp_path / "lists.csv")
    _, out, _ = command("recommend", trained, "--history", "i1|i2|i3", "--json")
    alone = [row["item_id"] for row in json.loads(out)["recommendations"]]
    assert found.filter(pl.col("user_id") == "new")["item_id"].to_list() == alone
