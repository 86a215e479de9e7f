"""Experiment files: checked as a whole, run, resumed and compared."""

from __future__ import annotations

import json
import re
from pathlib import Path

import polars as pl
import pytest
import yaml

import rediffuse as rd
from rediffuse.errors import ConfigError, RunError
from rediffuse.experiment import read_experiment, run_experiment, running
from rediffuse.testing import synthetic_interactions
from tests.test_cli import command, flat, succeeds

EXAMPLE = Path(__file__).parents[1] / "examples/experiment.yaml"
pytestmark = pytest.mark.filterwarnings("ignore::rediffuse.errors.RediffuseWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a dataset, and the same as a table."""
    where = tmp_path_factory.mktemp("experiment")
    data = synthetic_interactions()
    data.save(where / "data")
    rows = data.interactions
    columns = {"user": data.user_ids.gather(rows.owners), "item": data.item_ids.gather(rows.items), "time": rows.times}
    pl.DataFrame(columns).write_csv(where / "table.csv")
    return where


def content(folder: Path, out: Path, **changes: object) -> dict:
    tiny = {"epochs": 2, "embedding_size": 8, "blocks": 1}
    plain = {
        "data": {"folder": str(folder / "data")},
        "split": "leave-one-out",
        "models": ["popularity", {"model": "sasrec", "label": "small", "options": tiny}],
        "seeds": [0, 1],
        "out": str(out),
    }
    return plain | changes


def write(path: Path, value: object) -> Path:
    path.write_text(value if isinstance(value, str) else yaml.safe_dump(value, sort_keys=False))
    return path


def weights(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("model.safetensors")}


def test_it_trains_evaluates_compares_and_skips_what_is_finished(folder, tmp_path):
    out = tmp_path / "out"
    file = write(tmp_path / "e.yaml", content(folder, out, evaluate={"metrics": ["ndcg@7"]}))
    assert not out.exists()
    planned = json.loads(succeeds("run", file, "--dry-run", "--json"))
    assert [(run["label"], run["seed"]) for run in planned["runs"]] == [("popularity", 0), ("small", 0), ("small", 1)]
    assert "in closed form" in planned["notes"][0]
    assert not out.exists()
    code, said, err = command("run", file, "--json")
    assert code == 0, err
    result = json.loads(said)
    assert [row["state"] for row in result["runs"]] == ["trained"] * 3
    for row in result["runs"]:
        test = json.loads((Path(row["run"]) / "test.json").read_text())
        assert test["metrics"] == row["metrics"]
        assert "ndcg@7" in row["metrics"]["all"]
    report = json.loads((out / "report/report.json").read_text())
    assert {row["variant"] for row in report["costs"]} == {"popularity", "sasrec"}
    # The same by hand.
    split, options = rd.split.leave_one_out(folder / "data"), planned["runs"][2]["options"]
    by_hand = rd.train("sasrec", split, tmp_path / "hand", seed=1, config=options)
    assert (by_hand.path / "model.safetensors").read_bytes() == weights(out)["runs/small/seed-1/model.safetensors"]

    before = weights(out)
    code, said, _ = command("run", file)
    assert code == 0
    assert flat(said).count("skipped") == 3
    assert weights(out) == before


def test_features_of_a_public_data_set_are_declared(tmp_path, monkeypatch):
    where = tmp_path / "sets/shop"
    where.mkdir(parents=True)
    data = synthetic_interactions()
    rows = data.interactions
    columns = {"user_id": data.user_ids.gather(rows.owners), "item_id": data.item_ids.gather(rows.items)}
    pl.DataFrame(columns).write_parquet(where / "interactions.parquet")
    kinds = pl.Series("kind", [("red", "blue")[item % 2] for item in range(data.num_items)])
    pl.DataFrame([data.item_ids, kinds]).write_parquet(where / "items.parquet")
    monkeypatch.setenv("REDIFFUSE_DATA", str(tmp_path / "sets"))
    source = {"public": "shop", "item_features": "kind:category"}
    file = write(
        tmp_path / "e.yaml", content(tmp_path, tmp_path / "out", data=source, models=["popularity"], seeds=[0])
    )
    assert not run_experiment(read_experiment(file)).failed
    kept = rd.load_dataset(tmp_path / "out/data")
    assert [str(feature) for feature in kept.item_features] == ["kind:category"]
    # The same file again changes nothing, and another declaration is of other data.
    assert not run_experiment(read_experiment(file)).failed
    changed = content(tmp_path, tmp_path / "out", data={"public": "shop"}, models=["popularity"], seeds=[0])
    with pytest.raises(RunError, match="on other data"):
        run_experiment(read_experiment(write(tmp_path / "e.yaml", changed)))
    folder = {"folder": str(tmp_path / "out/data"), "item_features": "kind"}
    with pytest.raises(ConfigError, match="is an option of tables"):
        read_experiment(write(tmp_path / "e.yaml", content(tmp_path, tmp_path / "out", data=folder)))


def test_what_is_left_is_done_and_what_was_interrupted_is_resumed(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    experiment = read_experiment(write(tmp_path / "e.yaml", content(folder, out)))

    class Stopped(Exception):
        pass

    real = running.train

    def interrupted(*arguments: object, **options: object) -> object:
        if options["seed"] == 1:
            raise Stopped
        return real(*arguments, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(running, "train", interrupted)
    with pytest.raises(Stopped):
        run_experiment(experiment)
    monkeypatch.setattr(running, "train", real)
    # As an interrupted training leaves it: checkpoints and no manifest.
    finished = out / "runs/small/seed-0"
    (finished / "manifest.json").unlink()
    outcome = run_experiment(experiment)
    assert [row["state"] for row in outcome.rows] == ["skipped", "resumed", "trained"]
    assert list(outcome.comparisons) == [("data", "leave-one-out")]


def test_other_options_for_a_finished_run_are_refused_and_the_others_go_on(folder, tmp_path):
    out = tmp_path / "out"
    file = write(tmp_path / "e.yaml", content(folder, out, models=["popularity", "itemknn"], seeds=[0]))
    assert not run_experiment(read_experiment(file)).failed
    changed = {"model": "itemknn", "options": {"neighbours": 3}}
    file = write(tmp_path / "e.yaml", content(folder, out, models=[changed, "popularity"], seeds=[0]))
    code, said, err = command("run", file)
    assert code == 2
    assert "itemknn, seed 0, failed" in flat(said)
    assert "neighbours was" in err
    assert "skipped" in said


def test_tables_are_read_and_kept(folder, tmp_path):
    out = tmp_path / "out"
    table = {"table": str(folder / "table.csv"), "user": "user", "item": "item", "time": "time", "k_core": 2}
    value = content(folder, out, data=table, models=["popularity"], split={"name": "ratio", "train": 0.7})
    outcome = run_experiment(read_experiment(write(tmp_path / "e.yaml", value)))
    assert not outcome.failed
    config = json.loads((Path(outcome.rows[0]["run"]) / "config.json").read_text())
    assert config["split"]["params"] == {"train": 0.7, "valid": 0.1, "seed": 0}
    assert config["data"]["fingerprint"] == rd.load_dataset(out / "data").fingerprint
    value["data"] = table | {"k_core": 3, "duplicates": "first"}
    with pytest.raises(RunError, match="experiment on other data"):
        run_experiment(read_experiment(write(tmp_path / "e.yaml", value)))


def test_a_folder_of_something_else_is_left_alone(folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/letter.txt").write_text("mine")
    with pytest.raises(RunError, match="no folder of an experiment"):
        run_experiment(read_experiment(write(tmp_path / "e.yaml", content(folder, tmp_path / "out"))))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": []}, r"line \d+: model: there is no such key.*Did you mean 'models'"),
        ({"models": []}, r"line 4: models: "),
        ({"models": ["sasrecc"]}, r"line 5: models\[0\].model: There is no model 'sasrecc'.*Did you mean 'sasrec'"),
        ({"models": [{"model": "ease", "option": {}}]}, r"line 6: models\[0\].option: there is no such.*'options'"),
        ({"models": [{"model": "sasrec", "options": {"epoch": 1}}]}, r"models\[0\].options: Unknown option 'epoch'"),
        ({"models": [{"model": "sasrec", "preset": "papr"}]}, "Unknown preset 'papr'"),
        ({"models": ["ease", "ease"]}, r"models\[0\] is called 'ease' too"),
        ({"models": [{"model": "ease", "label": "../x"}]}, "cannot be the name of a folder"),
        ({"models": [{"label": "x"}]}, r"models\[0\].model: is missing"),
        ({"seeds": [1, 1]}, "repeats a seed"),
        ({"seeds": "many"}, "seeds: 'many' cannot be used"),
        ({"max_minutes": 0}, "max_minutes: 0 cannot be used"),
        ({"split": "leave-one-ou"}, "Did you mean 'leave-one-out'"),
        ({"split": {"name": "global-time", "quantil": 0.8}}, "split.quantil: .*Did you mean 'quantile'"),
        ({"split": {"name": "leave-one-out", "quantile": 0.8}}, "leave-one-out has no options"),
        ({"split": "none"}, "nothing to evaluate"),
        ({"data": {}}, "needs one of folder, public and table, and has none"),
        ({"data": {"folder": "nowhere"}}, "nowhere holds no dataset"),
        ({"data": {"table": "nowhere.csv"}}, "nowhere.csv does not exist"),
        ({"data": {"public": "ml-100"}}, "Did you mean 'ml-100k'"),
        ({"data": {"public": "ml-100k", "k_core": 5}}, "is an option of tables"),
        ({"data": {"table": "x.csv", "usr": "u"}}, "data.usr: .*Did you mean 'user'"),
        ({"evaluate": {"metrics": ["ndgc@10"]}}, "evaluate.metrics: Unknown metric 'ndgc@10'"),
        ({"evaluate": {"protocol": "papr:diffrec"}}, "Did you mean 'paper:diffrec'"),
        ({"metric": "ndcg@33"}, "Add it to evaluate.metrics"),
        ({"metric": "ndcg@10/unsee"}, "Did you mean 'unseen'"),
    ],
)
def test_wrong_files_are_refused_before_anything_starts(folder, tmp_path, changes, says):
    file = write(tmp_path / "e.yaml", content(folder, tmp_path / "out", **changes))
    with pytest.raises(ConfigError) as caught:
        read_experiment(file)
    assert re.search(says, flat(str(caught.value))), caught.value
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not a mapping"),
        ("- a", "is not a mapping"),
        ("a: [", "is not valid YAML"),
        ("seeds: [0]\nseeds: [1]", "line 2: seeds is given in line 1 already"),
    ],
)
def test_wrong_yaml(tmp_path, text, says):
    with pytest.raises(ConfigError, match=says):
        read_experiment(write(tmp_path / "e.yaml", text))


def test_the_example_runs_on_tiny_data(folder, tmp_path, monkeypatch):
    planned = read_experiment(EXAMPLE)  # as it is
    assert planned.file.data.public == "ml-100k"
    monkeypatch.chdir(tmp_path)
    value = yaml.safe_load(EXAMPLE.read_text())
    value["data"] = {"folder": str(folder / "data")}
    value["seeds"] = [0]
    for entry in value["models"]:
        if isinstance(entry, dict):
            entry["options"] |= {"epochs": 1, "embedding_size": 8}
    facts = json.loads(succeeds("run", write(tmp_path / "e.yaml", value), "--json"))
    assert [row["label"] for row in facts["runs"]] == ["popularity", "ease", "sasrec", "diffurec-small"]
    assert (tmp_path / "runs/experiment/report/report.html").exists()
