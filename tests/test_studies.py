"""Experiments on several data sets and splits, with tuning, energy and lists of other libraries."""

from __future__ import annotations

import json
import re
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

import rediffuse as rd
from rediffuse.comparison.evaluate_lists import evaluate_listed
from rediffuse.errors import ConfigError, DataError, MissingExtraError, RediffuseWarning, RunError
from rediffuse.experiment import energy, read_experiment, report_again, run_experiment, running
from rediffuse.experiment import lists as study_lists
from rediffuse.experiment.estimate import left
from rediffuse.experiment.list_files import read_list_file
from rediffuse.experiment.results import read_results
from rediffuse.testing import synthetic_interactions
from rediffuse.tuning.search import Search
from tests.test_cli import command, succeeds

pytestmark = pytest.mark.filterwarnings("ignore::rediffuse.errors.RediffuseWarning")
TINY = {"epochs": 1, "embedding_size": 8, "blocks": 1}
ITEMKNN = f"{rd.models.ItemKNN.__module__}:ItemKNN"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with two data sets."""
    where = tmp_path_factory.mktemp("studies")
    for name, seed in (("one", 0), ("two", 1)):
        synthetic_interactions(seed=seed).save(where / name)
    return where


def write(tmp_path: Path, folder: Path, **changes: object) -> Path:
    plain = {
        "data": {"folder": str(folder / "one")},
        "split": "leave-one-out",
        "models": ["popularity", "itemknn"],
        "out": str(tmp_path / "out"),
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(plain | changes, sort_keys=False))
    return path


# --- data and splits ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def several(folder, tmp_path_factory):
    """A study of two data sets and two splits, and its outcome."""
    tmp_path = tmp_path_factory.mktemp("several")
    (tmp_path / "recbole.inter").write_text(text_of(recommendations(folder), "recbole"))
    path = write(
        tmp_path,
        folder,
        data=[{"folder": str(folder / "one")}, {"folder": str(folder / "two"), "label": "second"}],
        split=["leave-one-out", {"name": "global-time", "label": "time", "quantile": 0.8}],
        models=["popularity", {"model": "sasrec", "options": TINY}],
        seeds=[0, 1],
        metric="ndcg@10/unseen",
        lists=[{"label": "recbole", "file": str(tmp_path / "recbole.inter"), "data": "one", "split": "leave-one-out"}],
    )
    experiment = read_experiment(path)
    return experiment, run_experiment(experiment)


def test_every_data_set_and_split_has_its_runs_and_comparison(several):
    experiment, outcome = several
    out = experiment.file.out
    assert not outcome.failed
    settings = [(data, split) for data in ("one", "second") for split in ("leave-one-out", "time")]
    assert list(outcome.comparisons) == settings
    for data, split in settings:
        rows = [row for row in outcome.rows if (row["data"], row["split"]) == (data, split)]
        more = ["recbole"] if (data, split) == settings[0] else []
        assert [row["label"] for row in rows] == ["popularity", "sasrec", "sasrec", *more]
        assert (out / "runs" / data / split / "sasrec/seed-1/test.json").is_file()
        assert (out / "report" / data / split / "report.html").is_file()
        name = "global-time" if split == "time" else split
        assert outcome.comparisons[data, split].facts["split"]["name"] == name
    page = experiment.page.read_text()
    assert "lists of recbole: 3 of 60 test users have no list" in page
    assert all(f"<h2>{data}, {split}</h2>" in page for data, split in settings)
    assert "http" not in re.sub(r"https?://www\.w3\.org", "", page)


def test_the_table_holds_every_user_and_gives_the_tables_of_the_reports(several):
    experiment, outcome = several
    results = read_results(experiment.results)
    table = results.table
    for name in ("data", "split", "label", "policy", "user"):
        assert table[name].dtype == pl.Categorical
    assert {table[name].dtype for name in table.columns if "@" in name} == {pl.Float32}
    for row in outcome.rows:
        of_run = table.filter(pl.col(name) == row[name] for name in ("data", "split", "label", "seed"))
        stored = pl.read_parquet(Path(row["run"]) / "per_user_test.parquet")
        for policy, suffix in (("all", ""), ("unseen", "/unseen")):
            rows = of_run.filter(policy=policy)
            assert rows["user"].cast(pl.String).to_list() == stored["user_id"].to_list()
            assert rows["ndcg@10"].to_numpy() == pytest.approx(stored[f"ndcg@10{suffix}"].to_numpy(), abs=1e-6)
    for setting in results.facts["settings"]:
        expected = outcome.comparisons[setting["data"], setting["split"]]
        again = results.comparison(setting)
        for ours, theirs in ((again.summary, expected.summary), (again.pairs, expected.pairs)):
            assert len(ours) > 1
            assert ours.columns == theirs.columns
            keys = [name for name in ("policy", "variant", "metric", "first", "second") if name in ours.columns]
            for first, second in zip(ours.sort(keys).to_dicts(), theirs.sort(keys).to_dicts(), strict=True):
                assert first == {
                    name: pytest.approx(value, rel=1e-3, abs=1e-6) if isinstance(value, float) else value
                    for name, value in second.items()
                }


def test_finished_work_is_not_repeated_and_the_page_is_made_from_the_table_alone(several, monkeypatch, tmp_path):
    experiment, _ = several
    with monkeypatch.context() as patched:
        for module, name in ((running, "train"), (running, "evaluate"), (study_lists, "evaluate_listed")):
            patched.setattr(module, name, lambda *a, **k: pytest.fail("was done before"))
        said: list[str] = []
        outcome = run_experiment(experiment, say=said.append)
        assert {row["state"] for row in outcome.rows} == {"skipped"}
        assert "Nothing is left to train." in said
    page = experiment.page.read_text()
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(experiment.results, alone)
    path = tmp_path / "study.yaml"
    value = yaml.safe_load(experiment.path.read_text())
    path.write_text(yaml.safe_dump(value | {"out": str(alone)}))
    assert json.loads(succeeds("run", path, "--report-only", "--json")) == {"page": str(alone / "index.html")}
    assert (alone / "index.html").read_text() == page
    (alone / "results.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunError, match="damaged"):
        report_again(read_experiment(path))
    assert command("run", path, "--report-only", "--dry-run")[0] != 0


# --- what is left ------------------------------------------------------------------------------------------------


def test_what_is_left_rests_on_limits_and_finished_runs(folder, tmp_path):
    models = ["popularity", {"model": "sasrec", "max_minutes": 3}, "bprmf"]
    experiment = read_experiment(write(tmp_path, folder, models=models, seeds=[0, 1, 2], tune={"minutes": 4}))

    def finish(label: str, seed: int, minutes: float) -> None:
        run = next(run for run in experiment.runs if (run.label, run.seed) == (label, seed))
        run.folder.mkdir(parents=True)
        (run.folder / "manifest.json").write_text("{}")
        training = {"minutes": minutes, "finished": True}
        (run.folder / "config.json").write_text(json.dumps({"training": training}))

    found = left(experiment)
    assert (found.runs, found.searches, found.most, found.expected) == (7, 2, None, None)
    assert "At most 17.0 minutes for 3 runs and 2 searches of options, by max_minutes and tune.minutes." in found.text
    assert "Unknown for popularity: closed form" in found.text
    assert "Unknown for bprmf: no max_minutes." in found.text
    finish("popularity", 0, 0.1)
    finish("bprmf", 0, 5.0)
    finish("sasrec", 0, 1.0)
    finish("sasrec", 1, 2.0)
    found = left(experiment)
    assert found.runs == 3
    assert "About 11.5 minutes for 3 runs, by finished runs of the same entry." in found.text
    bprmf = [run.folder for run in experiment.runs if run.label == "bprmf"]
    found = left(experiment, bprmf)
    assert (found.runs, found.searches, found.most) == (1, 1, 7.0)


# --- tuning ------------------------------------------------------------------------------------------------------


def test_every_model_is_tuned_once_with_the_same_budget(folder, tmp_path, monkeypatch):
    models = ["popularity", "itemknn", {"model": "sasrec", "options": TINY | {"dropout": 0.2}}]
    path = write(tmp_path, folder, models=models, seeds=[0, 1], tune={"trials": 2})
    assert "not tuned: popularity" in " ".join(read_experiment(path).notes)
    read = []
    real = running.evaluate
    monkeypatch.setattr(running, "evaluate", lambda run, *a, **k: read.append(run) or real(run, *a, **k))
    outcome = run_experiment(read_experiment(path))
    assert not outcome.failed
    assert read == [Path(row["run"]) for row in outcome.rows]  # the test subset: once for each final run
    tuned = {row["label"]: row["tuning"] for row in outcome.rows}
    assert tuned["popularity"] is None
    assert [tuned[name]["trials"] for name in ("itemknn", "sasrec")] == [2, 2]
    for row in outcome.rows[1:]:
        chosen = yaml.safe_load((tmp_path / "out/tuning" / row["label"] / "best.yaml").read_text())
        config = json.loads((Path(row["run"]) / "config.json").read_text())["config"]
        assert {name: config[name] for name in chosen} == chosen
    assert config["dropout"] == 0.2  # the file fixes it
    monkeypatch.setattr(Search, "run_trial", lambda *a, **k: pytest.fail("was searched before"))
    again = run_experiment(read_experiment(path))
    assert {row["state"] for row in again.rows} == {"skipped"}
    page = (tmp_path / "out/index.html").read_text()
    assert "tuning, trials" in page
    assert "Not tuned, because there is nothing to search: popularity." in page
    found = left(read_experiment(write(tmp_path, folder, models=models, seeds=[0, 1], tune={"trials": 3})))
    assert (found.runs, found.searches) == (0, 2)  # a larger budget continues the searches
    assert found.text.startswith("2 searches of options are left.")


def test_what_a_search_chooses_again_or_differently_is_refused_with_a_remedy(folder, tmp_path, monkeypatch):
    models = ["itemknn", {"model": "itemknn", "label": "again", "options": {"neighbours": 5}}]
    experiment = read_experiment(write(tmp_path, folder, models=models, tune={"trials": 1}))
    chosen = {"neighbours": 7}
    monkeypatch.setattr(running, "search", lambda planned, *a, **k: planned.kind.Config.build(None, dict(chosen)))
    outcome = run_experiment(experiment)
    assert [row["state"] for row in outcome.rows] == ["trained", "failed"]
    assert "itemknn and again are the same training. Leave one of them out" in outcome.problems[0]["problem"]
    assert read_results(experiment.results).table["label"].unique().to_list() == ["itemknn"]
    chosen["neighbours"] = 8
    problem = run_experiment(experiment).problems[0]["problem"]
    assert "neighbours was 7, is 8" in problem
    assert "Remove the folder to train it again" in problem
    shutil.rmtree(experiment.runs[0].folder)
    assert run_experiment(experiment).rows[0]["state"] == "trained"


def test_a_comparison_that_fails_does_not_stop_the_others(folder, tmp_path, monkeypatch):
    path = write(tmp_path, folder, split=["leave-one-out", "ratio"], models=["popularity"])
    real = running.compare

    def compare(runs, out, **options):
        if out.name == "leave-one-out":
            raise RunError("No.", "Try again.")
        return real(runs, out, **options)

    monkeypatch.setattr(running, "compare", compare)
    code, out, err = command("run", path, "--json")
    assert code == 2
    assert "comparison of one, leave-one-out failed: No." in err
    assert json.loads(out)["uncompared"] == ["No. Try again."]
    page = (tmp_path / "out/index.html").read_text()
    assert "comparison of one, leave-one-out failed: No. Try again." in page
    assert "<h2>one, ratio</h2>" in page


# --- energy ------------------------------------------------------------------------------------------------------


class FakeTracker:
    """As codecarbon's, for a machine of 6 W; it takes the emissions of an unknown country from the world."""

    def __init__(self, country_iso_code: str, output_methods: list, log_level: str, allow_multiple_runs: bool) -> None:
        assert output_methods == []
        self.country = country_iso_code

    def start(self) -> None:
        self.running = True

    def stop(self) -> float:
        assert self.running
        name = {"DEU": "Germany"}.get(self.country)
        self.final_emissions_data = types.SimpleNamespace(energy_consumed=0.25, emissions=0.1, country_name=name)
        return 0.1


def test_energy_is_measured_and_added_up(folder, tmp_path, monkeypatch):
    fake = types.SimpleNamespace(OfflineEmissionsTracker=FakeTracker)
    monkeypatch.setitem(sys.modules, "codecarbon", fake)
    path = write(tmp_path, folder, tune={"trials": 1}, energy={"country": "DEU"})
    result = json.loads(succeeds("run", path, "--json"))
    rows = {row["label"]: row for row in result["runs"]}
    assert rows["itemknn"]["energy"]["kwh"] == 0.25
    assert rows["itemknn"]["tuning"]["energy"]["co2_kg"] == 0.1
    assert result["energy"]["kwh"] == 0.75  # two trainings and a search
    assert energy.ESTIMATE.replace("'", "&#39;") in (tmp_path / "out/index.html").read_text()
    assert (
        json.loads(succeeds("run", path, "--json"))["energy"] == result["energy"]
    )  # nothing was done, so nothing added

    meter, kept = energy.Meter("DEU"), tmp_path / "kept.json"
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), meter.measuring(kept):
            raise KeyboardInterrupt
    total = energy.energy_of(kept, tmp_path / "none.json")
    assert total is not None
    assert (total["kwh"], total["co2_kg"]) == (0.5, 0.2)
    with pytest.raises(ConfigError, match="does not know the country 'XXX'"):
        energy.Meter("XXX")
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    with pytest.raises(MissingExtraError, match=r"rediffuse\[energy\]"):
        run_experiment(read_experiment(path))


# --- lists of other libraries ------------------------------------------------------------------------------------


def recommendations(folder: Path) -> pl.DataFrame:
    """Ten random items for each user but three, some of them seen before, in a random order of rows."""
    data, chance = rd.load_dataset(folder / "one"), np.random.default_rng(0)
    rows = [
        (user, item, rank)
        for user in data.user_ids.to_list()[:-3]
        for rank, item in enumerate(chance.permutation(data.item_ids.to_list())[:10], start=1)
    ]
    table = pl.DataFrame(rows, schema=["user_id", "item_id", "rank"], orient="row")
    return table.with_columns(score=10.0 - pl.col("rank")).sample(fraction=1, shuffle=True, seed=0)


def text_of(lists: pl.DataFrame, library: str) -> str:
    """The lists as a file of a library."""
    if library == "rectools":
        return lists.select("user_id", "item_id", "score", "rank").write_csv()
    if library == "warprec":
        return lists.select("user_id", "item_id", rating="score").write_csv(separator="\t")
    names = {"user_id": "user_id:token", "item_id": "item_id:token", "score": "score:float"}
    return lists.select(list(names)).rename(names).write_csv(separator="\t")


@pytest.mark.parametrize("library", ["rectools", "recbole", "warprec", "parquet", "named"])
def test_lists_of_every_library_are_rated_as_by_hand(folder, tmp_path, library):
    lists, columns = recommendations(folder), {}
    unknown = pl.when(rank=2).then(pl.lit("nowhere"))  # a miss in its place
    lists = lists.with_columns(unknown.otherwise("item_id").alias("item_id"))
    path = tmp_path / f"lists.{'parquet' if library == 'parquet' else 'tsv'}"
    if library == "parquet":
        lists.write_parquet(path)
    elif library == "named":
        columns = {"user": "who", "item": "what", "score": "how"}
        named = lists.select(who="user_id", what="item_id", how="score")
        path.write_text(named.write_csv(separator=";"))
    else:
        path.write_text(text_of(lists, library))
    split = rd.split.leave_one_out(folder / "one")
    result = evaluate_listed(read_list_file(path, columns), split, tmp_path / "out", label=library)
    data, task = split.dataset, split.task("test")

    def ids(rows) -> pl.DataFrame:
        return pl.DataFrame(
            {"user_id": data.user_ids.gather(task.users[rows.owners]), "item_id": data.item_ids.gather(rows.items)}
        )

    for policy, shown in (
        ("all", lists),
        ("unseen", lists.join(ids(task.histories), on=["user_id", "item_id"], how="anti")),
    ):
        metrics = ["hr@10", "ndcg@10", "recall@5", "mrr@10"]
        expected = rd.evaluate_lists(shown.select("user_id", "item_id", "rank"), ids(task.truth), metrics)
        assert {name: result["metrics"][policy][name] for name in metrics} == pytest.approx(dict(expected))
    assert "hr@20" not in result["metrics"]["all"]


def test_what_is_left_out_of_lists_is_counted(folder, tmp_path):
    lists = recommendations(folder).select("user_id", "item_id", key=pl.col("rank").cast(pl.Float64))
    split = rd.split.global_time(folder / "one", quantile=0.8)
    first = lists["user_id"].first()
    more = pl.DataFrame(
        {"user_id": ["nowhere", first], "item_id": ["i0", "unknown"], "key": [1.0, 11.0]}, schema=lists.schema
    )
    hidden = lists.filter(user_id="u0").head(4).with_columns(key=pl.lit(float("inf")))
    changed = pl.concat([lists.filter(pl.col("user_id") != "u0"), hidden, more])
    with pytest.warns(RediffuseWarning) as caught:
        evaluate_listed(changed, split, tmp_path / "changed", label="x")
    said = " ".join(str(warning.message) for warning in caught)
    for part in (
        "4 rows with an infinite score",
        "1 unknown users are left out, for example 'nowhere'",
        "1 unknown items are misses in their places, for example 'unknown'",
        "users are not in the test subset",
        "lists hold seen items, and are shorter where these are filtered",
        "test users have no list and count as zero, for example",
    ):
        assert part in said
    with pytest.raises(DataError, match=r"2 rows repeat a user and an item, for example user u\d+ and item"):
        evaluate_listed(pl.concat([lists, lists.head(1)]), split, tmp_path / "x", label="x")
    numbers = lists.with_columns(user_id=pl.col("user_id").str.slice(1))
    with pytest.raises(DataError, match="no row has a test user and a known item"):
        evaluate_listed(numbers, split, tmp_path / "x", label="x")
    with pytest.raises(ConfigError, match="ranks a sample"):
        evaluate_listed(lists, split, tmp_path / "x", label="x", protocol="sampled-10")
    short = lists.filter(pl.col("key") <= 7)
    (tmp_path / "short.csv").write_text(short.with_columns(rank="key").write_csv())
    path = write(tmp_path, folder, lists=[{"label": "short", "file": str(tmp_path / "short.csv")}])
    outcome = run_experiment(read_experiment(path))
    assert [row["label"] for row in outcome.failed] == ["short"]
    assert "too short for ndcg@10" in outcome.failed[0]["problem"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("user_id,item_id\na,b\n", "no column of rank or score; it has user_id, item_id"),
        ("item_id,score\nb,1\n", "no column of user"),
        ("user_id,item_id,score\na,b,much\n", "1 rows have no number in score, the first is row 1"),
        ("user_id,item_id,score\n,b,1\n", "1 rows have no value in user_id"),
        ("", "cannot be read"),
    ],
)
def test_files_that_are_no_lists_are_refused(tmp_path, text, says):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(DataError, match=says):
        read_list_file(tmp_path / "x.csv")
    with pytest.raises(DataError, match=r"no column 'usr'|cannot be read"):
        read_list_file(tmp_path / "x.csv", {"user": "usr"})


def test_the_example_is_valid():
    planned = read_experiment(Path(__file__).parents[1] / "examples/study.yaml")
    assert len(planned.settings) == 2
    assert {run.label for run in planned.runs if run.study is None} == {"popularity"}


# --- the file ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"split": ["leave-one-out", "leave-one-out"]}, r"split\[1\]: split\[0\] is called 'leave-one-out' too"),
        ({"split": []}, "split: .*cannot be used"),
        ({"split": ["leave-one-out", {"name": "ratio", "trian": 0.8}]}, r"split\[1\].trian: .*Did you mean 'train'"),
        ({"data": [{"public": "ml-100"}]}, r"data\[0\].public: .*Did you mean 'ml-100k'"),
        ({"data": [{"public": "ml-100k", "label": "a/b"}]}, r"data\[0\].label: 'a/b' cannot be the name of a folder"),
        ({"data": {"public": "ml-100k", "label": ".."}, "split": ["ratio"]}, "data.label: '..' cannot be the name"),
        ({"tune": {"trial": 3}}, "tune.trial: .*Did you mean 'trials'"),
        ({"tune": {"trials": 0}}, "tune.trials: 0 cannot be used"),
        ({"energy": True}, r"energy: \{country: DEU\}"),
        ({"energy": {"country": "Germany"}}, "energy.country: 'Germany' cannot be used"),
        ({"lists": [{"label": "x", "file": "nowhere.csv"}]}, r"lists\[0\].file: nowhere.csv does not exist"),
        ({"lists": [{"label": "itemknn", "file": __file__}]}, "a model is called 'itemknn' too"),
        (
            {"models": [ITEMKNN], "lists": [{"label": "itemknn", "file": __file__}]},
            "a model is called 'itemknn' too",
        ),
        (
            {"models": ["itemknn", {"model": ITEMKNN, "label": "x", "max_minutes": 1}]},
            r"models\[1\]: it is the same training as models\[0\]",
        ),
        (
            {"evaluate": {"protocol": "paper:diffrec"}},
            "metric: paper:diffrec does not report ndcg@10. Write metric: ndcg@10/unseen",
        ),
        ({"lists": [{"label": "x", "file": __file__, "split": "time"}]}, "no split is called 'time'"),
        ({"lists": [{"label": "x", "file": __file__, "columns": {"usr": "a"}}]}, "Did you mean 'user'"),
        ({"lists": [{"label": "x", "file": __file__}] * 2}, "lists of 'x' with seed 0 are named before"),
        (
            {"split": ["leave-one-out", "ratio"], "lists": [{"label": "x", "file": __file__}]},
            "does not say which split the lists are for",
        ),
    ],
)
def test_wrong_keys_are_refused(folder, tmp_path, changes, says):
    with pytest.raises(ConfigError) as caught:
        read_experiment(write(tmp_path, folder, **changes))
    assert re.search(says, " ".join(str(caught.value).split())), caught.value
