"""The public API: what the entry points accept, first mistakes, short descriptions, and what an import loads."""

from __future__ import annotations

import inspect
import json
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import polars as pl
import pytest
from typer.main import get_command
from typer.testing import CliRunner

import rediffuse as rd
from rediffuse.cli import app
from rediffuse.errors import ConfigError, DataError, MissingExtraError, RediffuseError, RediffuseWarning, RunError
from rediffuse.evaluation import evaluate_task, model_scores
from rediffuse.runs import read_run
from rediffuse.tuning import Study


def table(users: int = 20) -> pl.DataFrame:
    rows = [(f"u{user}", f"i{(user + step) % 15}", 10**9 + step) for user in range(users) for step in range(6)]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "when"], orient="row")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> SimpleNamespace:
    """A dataset, its folder, a split, a run and its recommender."""
    root = tmp_path_factory.mktemp("api")
    data = rd.read_interactions(table(), time="when")
    split = rd.split.leave_one_out(data)
    run = rd.train("ease", split, root / "run")
    frame = data.user_ids.to_frame().to_pandas()
    (root / "ratings.csv").write_text("user_id,item_id\n1,2\n3,4\n")
    return SimpleNamespace(
        root=root,
        data=data,
        folder=data.save(root / "data"),
        split=split,
        run=run,
        frame=frame,
        csv=str(root / "ratings.csv"),
        recommender=rd.Recommender.load(run),
        model=read_run(run.path).model,
        new=str(root / "new"),
    )


# --- first mistakes -----------------------------------------------------------------------------------------

MISTAKES: dict[str, tuple[Any, type[Exception], str]] = {
    # train
    "train: no out": (lambda m: rd.train("ease", m.split), ConfigError, r"out is None, not a path\.\n.*out="),
    "train: frame": (
        lambda m: rd.train("ease", m.frame, m.new),
        ConfigError,
        r"data is a pandas DataFrame, not a Split, a Dataset or a dataset folder\.\n.*read_interactions",
    ),
    "train: file": (lambda m: rd.train("ease", m.csv, m.new), DataError, r"ratings\.csv is a file.*\n.*read_inter"),
    "train: no such folder": (lambda m: rd.train("ease", m.new, m.new), DataError, "new holds no dataset"),
    "train: run": (lambda m: rd.train("ease", m.run.path, m.new), DataError, "is not the manifest of a dataset"),
    "train: swapped": (
        lambda m: rd.train(m.data, "ease", m.new),
        ConfigError,
        r"The model is of type Dataset\.\n.*Give a name",
    ),
    "train: object": (
        lambda m: rd.train(m.model, m.split, m.new),
        ConfigError,
        r"The model is an instance of EASE\.\n.*Give the class",
    ),
    "train: capitals": (lambda m: rd.train("EASE!", m.split, m.new), ConfigError, r"Did you mean 'ease'\?"),
    "train: hyphen": (lambda m: rd.train("light-gcn_", m.split, m.new), ConfigError, r"Did you mean 'lightgcn'\?"),
    "train: config text": (
        lambda m: rd.train("ease", m.split, m.new, config="epochs=3"),
        ConfigError,
        r"config is 'epochs=3', not a dict of options or an EASEConfig\.\n.*config=\{",
    ),
    "train: another config": (
        lambda m: rd.train("ease", m.split, m.new, config=rd.models.model_class("sasrec").Config()),
        ConfigError,
        "config is a SASRecConfig, not a dict of options or an EASEConfig",
    ),
    "train: option": (lambda m: rd.train("ease", m.split, m.new, config={"regularisation": 1}), ConfigError, "Did you"),
    "train: preset": (lambda m: rd.train("ease", m.split, m.new, preset=["paper"]), ConfigError, "preset is a list"),
    "train: seed": (lambda m: rd.train("ease", m.split, m.new, seed="1"), ConfigError, "seed is '1'.*\n.*integer"),
    "train: minutes": (lambda m: rd.train("ease", m.split, m.new, max_minutes="5"), ConfigError, "max_minutes is '5'"),
    "train: out": (lambda m: rd.train("ease", m.split, 5), ConfigError, "out is 5, not a path"),
    "train: out empty": (lambda m: rd.train("ease", m.split, ""), ConfigError, "out is empty text"),
    "train: phases": (
        lambda m: rd.train("pdrec", m.split, m.new, phases_from="runs/tdiffrec"),
        ConfigError,
        r"phases_from is 'runs/tdiffrec', not a dict of options\.\n.*diffusion",
    ),
    # tune and augment
    "tune: no out": (lambda m: rd.tune("sasrec", m.split), ConfigError, "out is None, not a path"),
    "tune: frame": (lambda m: rd.tune("sasrec", m.frame, m.new), ConfigError, "data is a pandas DataFrame"),
    "tune: model": (lambda m: rd.tune(None, m.split, m.new), ConfigError, "The model is of type NoneType"),
    "tune: trials": (lambda m: rd.tune("sasrec", m.split, m.new, trials="3"), ConfigError, "trials is '3'"),
    "tune: config": (lambda m: rd.tune("sasrec", m.split, m.new, config=[1]), ConfigError, "config is a list"),
    "augment: frame": (lambda m: rd.augment(m.frame, "random"), ConfigError, "data is a pandas DataFrame"),
    "augment: method": (lambda m: rd.augment(m.split, "Random_Seq"), ConfigError, "Did you mean 'random-seq'"),
    "augment: n": (lambda m: rd.augment(m.split, "random", n="3"), ConfigError, "n is '3'"),
    "augment: run": (lambda m: rd.augment(m.split, run=5), ConfigError, "run is 5, not a path"),
    # evaluate, compare, load
    "evaluate: swapped": (lambda m: rd.evaluate(m.data, m.run), ConfigError, "run is a Dataset, not a path"),
    "evaluate: split": (
        lambda m: rd.evaluate(m.run, m.split),
        ConfigError,
        r"data is a Split, not a Dataset or a dataset folder\.\n.*data\.dataset",
    ),
    "evaluate: frame": (lambda m: rd.evaluate(m.run, m.frame), ConfigError, "data is a pandas DataFrame"),
    "evaluate: no run": (lambda m: rd.evaluate(m.new, m.data), RunError, "new is not a run folder"),
    "evaluate: protocol": (lambda m: rd.evaluate(m.run, m.data, protocol=5), ConfigError, "protocol is 5, not text"),
    "evaluate: seeds": (lambda m: rd.evaluate(m.run, m.data, seeds="0"), ConfigError, "seeds is '0'"),
    "compare: not evaluated": (lambda m: rd.compare(str(m.run.path)), RunError, "Not evaluated"),
    "compare: number": (lambda m: rd.compare(5), ConfigError, "runs is 5, not a list of runs"),
    "compare: dict": (lambda m: rd.compare({"a": m.run}), ConfigError, "runs is a dict, not a list of runs"),
    "compare: data": (lambda m: rd.compare([m.data]), ConfigError, "runs is a Dataset, not a path"),
    "compare: metric": (lambda m: rd.compare(m.run, metric=["hr@10"]), ConfigError, "metric is a list"),
    "compare: published": (lambda m: rd.compare(m.run, published=[1]), ConfigError, "published is a list"),
    "load: data": (lambda m: rd.Recommender.load(m.data), ConfigError, "run is a Dataset, not a path"),
    "load: retrieval": (lambda m: rd.Recommender.load(m.run, "Exact!"), ConfigError, "Did you mean 'exact'"),
    "Recommender: path": (lambda m: rd.Recommender(m.run.path), ConfigError, r"Recommender\.load"),
    # recommend
    "recommend: text": (lambda m: m.recommender.recommend("u1"), ConfigError, "users is 'u1', not a list"),
    "recommend: number": (lambda m: m.recommender.recommend(1), ConfigError, "users is 1, not a list"),
    "recommend: nothing": (lambda m: m.recommender.recommend(), ConfigError, "Neither users nor histories"),
    "recommend: flat": (lambda m: m.recommender.recommend(histories=["i1"]), ConfigError, "A history is 'i1', not a"),
    "recommend: k": (lambda m: m.recommender.recommend(["u1"], k="5"), ConfigError, "k is '5'"),
    "recommend: exclude": (lambda m: m.recommender.recommend(["u1"], exclude="i1"), ConfigError, "exclude is 'i1'"),
    "similar: text": (lambda m: m.recommender.similar("i1"), ConfigError, "items is 'i1', not a list"),
    "denoise: both": (lambda m: m.recommender.denoise(user="u1", history=["i1"]), ConfigError, "either a user or a"),
    # data
    "read: dataset": (lambda m: rd.read_interactions(m.data), ConfigError, "source is a Dataset, not a table"),
    "read: folder": (lambda m: rd.read_interactions(m.folder), DataError, "is a dataset already.*\n.*load_dataset"),
    "read: None": (lambda m: rd.read_interactions(None), ConfigError, "source is None, not a table"),
    "read: dict": (lambda m: rd.read_interactions({"user_id": [1]}), ConfigError, "source is a dict, not a table"),
    "read: column": (lambda m: rd.read_interactions(table(), user=0), ConfigError, "user is 0, not the name of a col"),
    "read: user None": (lambda m: rd.read_interactions(table(), user=None), ConfigError, "user is None, not the name"),
    "read: wrong name": (lambda m: rd.read_interactions(table(), user="UserId"), DataError, "Did you mean 'user_id'"),
    "read: rating": (
        lambda m: rd.read_interactions(table(), rating="when", min_rating="3"),
        ConfigError,
        "min_rating is '3'",
    ),
    "read: k_core": (lambda m: rd.read_interactions(table(), k_core="5"), ConfigError, "k_core is '5'"),
    "read: separator": (lambda m: rd.read_interactions(m.csv, separator=5), ConfigError, "separator is 5, not text"),
    "read_atomic: frame": (lambda m: rd.read_atomic(m.frame), ConfigError, "path is a pandas DataFrame, not a path"),
    "read_atomic: option": (lambda m: rd.read_atomic(m.root, kcore=5), ConfigError, "Did you mean 'k_core'"),
    "load_dataset: dataset": (lambda m: rd.load_dataset(m.data), ConfigError, "folder is a Dataset, not a path"),
    "load_dataset: file": (lambda m: rd.load_dataset(m.csv), DataError, "is a file, not the folder of a dataset"),
    "save: None": (lambda m: m.data.save(None), ConfigError, "folder is None, not a path"),
    "public_dataset: None": (lambda m: rd.public_dataset(None), ConfigError, "name is None, not the name"),
    "split: frame": (lambda m: rd.split.leave_one_out(m.frame), ConfigError, "dataset is a pandas DataFrame"),
    "split: split": (lambda m: rd.split.ratio(m.split), ConfigError, r"dataset is a Split.*\n.*dataset\.dataset"),
    "split: share": (lambda m: rd.split.ratio(m.data, train="0.8"), ConfigError, "train is '0.8'"),
    "split: quantile": (lambda m: rd.split.global_time(m.data, "0.9"), ConfigError, "quantile is '0.9'"),
    "split: seed": (lambda m: rd.split.ratio(m.data, seed=None), ConfigError, "seed is None"),
    "split: name": (lambda m: rd.split.by_name(None, m.data), ConfigError, "name is None, not the name of a split"),
    # evaluate_lists
    "lists: metric": (lambda m: rd.evaluate_lists({1: [2]}, {1: [2]}, "NDGC@10"), ConfigError, "Did you mean 'ndcg'"),
    "lists: lists": (
        lambda m: rd.evaluate_lists([[1, 2]], {1: [2]}),
        DataError,
        "recommendations is a list, not a table",
    ),
    "load: dataset folder": (
        lambda m: rd.Recommender.load(m.folder),
        RunError,
        r"is a dataset, not a run folder\.\n.*training wrote",
    ),
    "lists: no truth": (lambda m: rd.evaluate_lists({1: [1]}, None), DataError, "truth is None, not a table"),
    "lists: metrics": (
        lambda m: rd.evaluate_lists({1: [1]}, {1: [2]}, metrics=3),
        ConfigError,
        "metrics is 3, not a list",
    ),
    "train: option that is no text": (
        lambda m: rd.train("ease", m.split, m.new, config={3: 4}),
        ConfigError,
        r"An option in config is 3, not text\.\n.*config=\{",
    ),
    "tune: no minutes": (lambda m: rd.tune("ease", m.split, m.new, max_minutes=0), ConfigError, "max_minutes is 0"),
    "recommend: filter_seen": (
        lambda m: m.recommender.recommend(users=["u1"], filter_seen="no"),
        ConfigError,
        r"filter_seen is 'no', not True or False\.\n.*filter_seen=False",
    ),
}


@pytest.mark.filterwarnings("error::rediffuse.errors.RediffuseWarning")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_first_mistakes_get_our_errors(made: SimpleNamespace, mistake: str) -> None:
    call, kind, message = MISTAKES[mistake]
    with pytest.raises(kind, match=message) as caught:
        call(made)
    assert caught.value.remedy  # pyright: ignore[reportAttributeAccessIssue]
    assert not Path(made.new).exists()


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("EASE", "ease"),
        ("DiffuRec", "diffurec"),
        ("light_gcn", "lightgcn"),
        ("SASRec", "sasrec"),
        ("BERT-4-Rec", "bert4rec"),
    ],
)
def test_names_as_papers_write_them_are_suggested(word: str, name: str) -> None:
    assert f"Did you mean {name!r}?" in rd.errors.did_you_mean(word, rd.models.names())


# --- what is accepted ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["dataset", "folder", "text"])
def test_a_dataset_trains_with_the_default_split_and_says_which(
    made: SimpleNamespace, tmp_path: Path, form: str
) -> None:
    data = {"dataset": made.data, "folder": made.folder, "text": str(made.folder)}[form]
    named = r"default split .* is used: global-time\(quantile=0\.9, valid_quantile=0\.9\)\..*rd\.split"
    with pytest.warns(RediffuseWarning, match=named) as caught:
        run = rd.train("ease", data, tmp_path / "run")
    assert {warning.filename for warning in caught} == {__file__}
    assert run.config["split"]["fingerprint"] == rd.split.global_time(made.data).fingerprint


def test_tune_and_augment_take_a_dataset(made: SimpleNamespace, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    with pytest.warns(RediffuseWarning, match="default split"):
        longer = rd.augment(made.folder, "random", n=2)
    assert longer.report["augmentation"]["split"] == "global-time"
    with pytest.warns(RediffuseWarning, match="default split") as caught:
        study = rd.tune("ease", made.data, tmp_path / "study", trials=1)
    assert {warning.filename for warning in caught} == {__file__}
    assert len(study.trials) == 1


def test_splits_take_a_dataset_folder(made: SimpleNamespace) -> None:
    for name in ("leave-one-out", "global-time", "ratio", "default"):
        wanted = rd.split.by_name(name, made.data).fingerprint
        assert rd.split.by_name(name, str(made.folder)).fingerprint == wanted


def test_a_config_object_counts_with_what_was_set(made: SimpleNamespace, tmp_path: Path) -> None:
    kind = rd.models.model_class("ease")
    run = rd.train("ease", made.split, tmp_path / "run", config=kind.Config(**{"regularization": 7.0}))
    assert run.config["config"]["regularization"] == 7.0


def test_runs_are_accepted_as_runs_and_as_paths(made: SimpleNamespace) -> None:
    tested = [
        rd.evaluate(run, data)["metrics"]
        for run, data in ((made.run, made.data), (str(made.run.path), made.folder), (made.run.path, str(made.folder)))
    ]
    assert tested[0] == tested[1] == tested[2]
    assert rd.evaluate(made.run, made.data, seeds=0)["metrics"] == tested[0]
    for runs in (made.run, str(made.run.path), made.run.path, [made.run], (str(made.run.path),)):
        assert rd.compare(runs).summary["variant"].unique().to_list() == ["ease"]
    asked = [rd.Recommender.load(run).recommend(["u1"]) for run in (made.run, made.run.path, str(made.run.path))]
    assert asked[0].equals(asked[1])
    assert asked[0].equals(asked[2])


@pytest.mark.parametrize("kind", [pl.DataFrame, pd.DataFrame])
def test_tables_of_lists_are_answered_in_their_library(made: SimpleNamespace, kind: type) -> None:
    lists = made.recommender.recommend(kind({"user_id": ["u1", "u2"]}), k=5)
    assert isinstance(lists, kind)
    result = rd.evaluate_lists(lists, {"u1": ["i7"], "u2": ["i8"]})
    assert isinstance(result.per_user, kind)
    assert list(result.per_user.columns) == ["user_id", "hr@10", "ndcg@10"]
    assert isinstance(rd.evaluate_lists({"u1": ["i1"]}, kind({"user_id": ["u1"], "item_id": ["i1"]})).per_user, kind)


# --- errors -------------------------------------------------------------------------------------------------


def test_errors_are_what_python_code_catches() -> None:
    assert issubclass(ConfigError, ValueError)
    assert issubclass(DataError, ValueError)
    assert issubclass(MissingExtraError, ImportError)
    assert not issubclass(RunError, ValueError)


@pytest.mark.parametrize(
    "error", [ConfigError("a", "b"), DataError("a"), MissingExtraError("plotly", "report"), RunError("a", "b")]
)
def test_errors_survive_pickling(error: RediffuseError) -> None:
    error.add_note("in process 1")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), again.problem, again.remedy) == (str(error), error.problem, error.remedy)
    assert again.__notes__ == ["in process 1"]


def test_an_error_inside_a_config_keeps_its_remedy() -> None:
    with pytest.raises(ConfigError, match=r"Unknown option 'epochz'\.\n  Did you mean 'epochs'"):
        rd.models.model_class("pdrec").Config.build(None, {"diffusion": {"epochz": 3}})


# --- short descriptions -------------------------------------------------------------------------------------


def test_objects_describe_themselves_in_at_most_ten_lines(made: SimpleNamespace) -> None:
    evaluation = rd.evaluate(made.run, made.data)
    assert evaluation == json.loads((made.run.path / "test.json").read_text())
    task = made.split.task("test")
    result = evaluate_task(model_scores(made.model, task), task, num_items=made.data.num_items)
    study = Study(
        Path("study"),
        "ease",
        "ndcg@10",
        {"l2": 5.0},
        0.5,
        2,
        pl.DataFrame({"state": ["complete"], "value": [0.5]}),
        1.5,
    )
    objects = [
        (made.data, ["Dataset", "users", "20", "15", "120"]),
        (made.split, ["Split leave-one-out", "80 interactions", "Leave-one-out leaks"]),
        (made.run, ["Run ", "ease", "leave-one-out", "ndcg@10="]),
        (made.data.interactions, ["Histories", "rows", "20", "first row"]),
        (evaluation, ["Evaluation of ", "leave-one-out", "seen items filtered", "ndcg@10="]),
        (result, ["TaskResult test, 20 users", "ndcg@10", "all 0.", "unseen 0."]),
        (rd.compare(made.run), ["Comparison ndcg@10, split leave-one-out", "ease"]),
        (study, ["Study study", "best ndcg@10  0.5000", "l2=5.0000", "rank 2 of", "1 complete"]),
        (rd.evaluate_lists({1: [2]}, {1: [2]}), ["EvaluationResult, 1 users", "hr@10", "1.0000"]),
        (made.recommender, ["Recommender ease", "users", "20", "retrieval"]),
    ]
    for each, words in objects:
        text, page = repr(each), each._repr_html_()
        assert len(text.splitlines()) <= 10
        assert max(map(len, text.splitlines())) < 140
        assert all(word in text for word in words), text
        assert page.startswith("<table>")
        assert page.count("<tr>") == len(text.splitlines()) - 1


def test_descriptions_hash_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    data = rd.read_interactions(table())
    split = rd.split.ratio(data)
    monkeypatch.setattr("hashlib.sha256", None)
    assert "interactions" in repr(data) + repr(split)
    assert "fingerprint" not in vars(data)


def test_descriptions_escape_html() -> None:
    items = pl.DataFrame({"item_id": ["i1"], "<b>&": ["x"]})
    page = rd.read_interactions(table(), items=items)._repr_html_()
    assert "&lt;b&gt;&amp;" in page
    assert "<b>" not in page


# --- one signature ------------------------------------------------------------------------------------------

# Options of the command that are not parameters of the function, and the reverse.
NOT_READING, NOT_OPTIONS = {"out", "as_json", "help", "no_header"}, {"source", "header"}


def test_prepare_has_the_parameters_of_read_interactions() -> None:
    known = inspect.signature(rd.read_interactions).parameters
    command = get_command(app).commands["prepare"]  # pyright: ignore[reportAttributeAccessIssue]
    options = {option.name: option for option in command.params if "--" in option.opts[-1]}
    assert known.keys() - NOT_OPTIONS == options.keys() - NOT_READING
    for name, option in options.items():
        assert name in NOT_READING or option.default == known[name].default, name


def prepare(*arguments: object) -> dict[str, Any]:
    """What the command prints, or the error that it raises."""
    result = CliRunner().invoke(app, ["prepare", *map(str, arguments), "--json"])
    if result.exception is not None:
        return {"error": str(result.exception)}
    return json.loads(result.stdout.splitlines()[-1])


def test_options_count_for_atomic_files_too(tmp_path: Path) -> None:
    shop, out = tmp_path / "shop.inter", tmp_path / "d"
    rows = ["buyer:token article:token stars:float time:float", "a 7 5 3", "a 8 2 2", "a 9 4 1", "b 7 1 5"]
    shop.write_text("\n".join(rows).replace(" ", "\t"))
    assert not prepare(shop, "-o", out)["timestamps"]
    assert prepare(shop, "--user", "buyer", "--item", "article", "--time", "time", "-o", out)["timestamps"]
    data = rd.load_dataset(out)
    assert data.item_ids.gather(data.interactions.row(0)).to_list() == [9, 8, 7]
    assert prepare(shop, "--rating", "stars", "--min-rating", "3", "-o", out)["interactions"] == 2
    assert prepare(shop, "--user", "article", "--item", "buyer", "-o", out)["users"] == 3
    assert "no column 'user_id'" in prepare(shop, "--user", "user_id", "-o", out)["error"]
    assert "no encoding 'klingon'" in prepare(shop, "--encoding", "klingon", "-o", out)["error"]
    assert "when separated by '#'" in prepare(shop, "--separator", "#", "-o", out)["error"]
    for option in ("--items", "--users", "--splits", "--social"):
        assert "missing.csv does not exist" in prepare(shop, option, tmp_path / "missing.csv", "-o", out)["error"]


# --- imports ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "absent"),
    [
        (
            "from rediffuse.recommender import Recommender",
            ["accelerate", "rediffuse.training", "rediffuse.evaluation", "rediffuse.readers", "scipy"],
        ),
        ("import rediffuse", ["torch", "polars", "numpy", "rediffuse.data"]),
    ],
)
def test_imports_load_no_more_than_they_need(line: str, absent: list[str]) -> None:
    code = f"import sys\n{line}\nprint([name for name in {absent} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
