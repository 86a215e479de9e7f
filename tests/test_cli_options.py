"""Split options, the table of models, and evaluations of several runs."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rediffuse as rd
from rediffuse import models
from rediffuse.cli.model_table import _ENTRIES, entry
from rediffuse.errors import RediffuseError
from rediffuse.testing import synthetic_interactions
from tests.test_cli import command, flat, succeeds


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return synthetic_interactions().save(tmp_path_factory.mktemp("options") / "data")


@pytest.fixture(scope="module")
def runs(dataset) -> list[Path]:
    made = []
    for name in ("popularity", "itemknn"):
        made.append(dataset.parent / name)
        succeeds("train", name, dataset, "-o", made[-1], "--split", "global-time", "--quantile", 0.7)
    return made


# --- splits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "make"),
    [
        (
            ["--split", "global-time", "--quantile", 0.7, "--valid-quantile", 0.8],
            lambda data: rd.split.global_time(data, quantile=0.7, valid_quantile=0.8),
        ),
        (["--split", "ratio", "--ratio", "0.6,0.2"], lambda data: rd.split.ratio(data, train=0.6, valid=0.2)),
        (
            ["--split", "cold-items", "--fraction", 0.2, "--split-seed", 3],
            lambda data: rd.split.cold_items(data, fraction=0.2, seed=3),
        ),
    ],
)
def test_split_options_are_those_of_python(dataset, tmp_path, options, make):
    succeeds("train", "popularity", dataset, "-o", tmp_path / "run", *options)
    recorded = json.loads((tmp_path / "run/config.json").read_text())["split"]
    split = make(rd.load_dataset(dataset))
    assert (recorded["params"], recorded["fingerprint"]) == (split.params, split.fingerprint)
    facts = json.loads(succeeds("tune", "ease", dataset, "-o", tmp_path / "study", "--trials", 1, *options, "--json"))
    assert " ".join(map(str, options)) in facts["next"]
    succeeds("augment", "random", dataset, "-o", tmp_path / "augmented", "--n", 1, *options)
    augmented = rd.load_dataset(tmp_path / "augmented").report["augmentation"]
    assert augmented["split_fingerprint"] == split.fingerprint


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--quantile", 0.7], "--quantile does not go with --split default: .*Add --split global-time"),
        (
            ["--split", "leave-one-out", "--valid-quantile", 0.7],
            "--valid-quantile does not go .* always tests the last",
        ),
        (["--split", "global-time", "--ratio", "0.8,0.1"], "--ratio does not go .* cut at a point in time"),
        (["--split", "none", "--ratio", "0.8,0.1"], "holds nothing out"),
        (["--split", "ratio", "--fraction", 0.2], "--fraction does not go .* Add --split cold-items"),
        (["--split", "leave-one-out", "--split-seed", 1], "--split-seed does not go .* Add --split ratio"),
        (["--split", "cold-items", "--quantile", 0.7], "--quantile does not go .* drawn at random"),
        (["--split", "cold-items", "--fraction", 1], "fraction was given 1.0. It must lie between 0 and 1"),
        (["--split", "ratio", "--ratio", "0.8"], "Give two shares"),
        (["--split", "ratio", "--ratio", "0.8,0.3"], "leave -0.1 for the test"),
        (["--split", "global-time", "--quantile", 1.5], "quantile was given 1.5"),
    ],
)
def test_split_options_of_other_splits_are_refused(dataset, tmp_path, options, says):
    for first in (["train", "ease"], ["tune", "ease"], ["augment", "random"]):
        code, _, err = command(*first, dataset, "-o", tmp_path / "x", *options)
        assert code == 2
        assert re.search(says, flat(err)), err
        assert not (tmp_path / "x").exists()


# --- models ------------------------------------------------------------------------------------------------


def test_every_model_is_in_the_table():
    assert _ENTRIES.keys() == {*models.names(installed=False), "blend"}
    out = flat(succeeds("models"))
    for name in models.names(installed=False):
        kind = models.model_class(name)
        assert name in out
        assert ("closed form" in entry(kind).kind) == (not kind.trained_by_gradient)
        if "diffusion" in kind.Config.model_fields or "diffusion_steps" in kind.Config.model_fields:
            assert entry(kind).kind.startswith("diffusion")
    assert "batch_size" not in out
    one = flat(succeeds("models", "diffurec"))
    assert "batch_size" in one
    assert "presets: default, paper, released" in one
    everything = json.loads(succeeds("models", "--json"))
    assert everything["friends"]["needs"] == ["social graph"]
    assert everything["diffurec"]["ablation"] == "diffusion=false"
    assert "batch_size" in everything["sasrec"]["options"]


@pytest.mark.filterwarnings("ignore::rediffuse.errors.RediffuseWarning")
def test_models_need_what_the_table_says(tmp_path):
    """Without it they refuse to train; models in closed form that need nothing accept data that have nothing."""
    data = synthetic_interactions()
    bare = dataclasses.replace(
        data,
        interactions=dataclasses.replace(data.interactions, times=None, ratings=None),
        has_timestamps=False,
        social=None,
        kg=None,
        items=None,
        title=None,
        users=None,
    )
    split = rd.split.leave_one_out(bare)
    for name in models.names(installed=False):
        kind = models.model_class(name)
        needs = entry(kind).needs
        if not needs and kind.trained_by_gradient:
            continue  # their trainings take long, and the contract tests have them on such data
        options = {"epochs": 1} if kind.trained_by_gradient else None
        if not needs:
            rd.train(kind, split, tmp_path / name, config=options)
            continue
        words = {"timestamps": "times", "social graph": "social", "knowledge graph": "knowledge"}
        words |= {"item categories": "item table", "item features": "item features"}
        with pytest.raises(RediffuseError, match="|".join(words[need] for need in needs)):
            rd.train(kind, split, tmp_path / name, config=options)


def test_completion_is_on():
    done = subprocess.run(
        [sys.executable, "-m", "rediffuse", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"COLUMNS": "200"},
    )
    assert "--install-completion" in done.stdout


# --- evaluate ----------------------------------------------------------------------------------------------


def test_evaluate_takes_several_runs(dataset, runs):
    alone = [json.loads(succeeds("evaluate", run, dataset, "--json")) for run in runs]
    together = json.loads(succeeds("evaluate", *runs, dataset, "--json"))["evaluations"]
    assert [result["metrics"] for result in together] == [result["metrics"] for result in alone]
    out = succeeds("evaluate", *runs, dataset)
    for result in alone:
        for policy in result["metrics"].values():
            assert f"{policy['ndcg@10']:.4f}" in out
    assert "% of the true items are in the user's history" in out


def test_evaluate_shows_the_metrics_and_cut_offs_that_are_asked_for(dataset, runs):
    out = succeeds("evaluate", runs[0], dataset, "--metrics", "ndcg,recall@3,coverage@4", "--k", "2,7")
    shown = [line.split()[1] for line in out.splitlines() if "@" in line and line.split()[1:2]]
    assert [name for name in shown if "@" in name] == ["ndcg@2", "ndcg@7", "recall@3", "coverage@4"]
    stored = json.loads((runs[0] / "test.json").read_text())["metrics"]["all"]
    assert {"ndcg@2", "ndcg@7", "recall@3", "coverage@4", "ndcg@10"} <= stored.keys()
    for options, says in (
        (["--metrics", "ndcgg@10"], "Did you mean 'ndcg'"),
        (["--metrics", "ndcg"], "no valid cut-off"),
        (["--metrics", "ndcg@10", "--k", "5"], "--k 5 has no effect"),
        (["--k", "0"], "no valid cut-off"),
    ):
        code, _, err = command("evaluate", *runs, dataset, *options)
        assert code == 2
        assert says in flat(err)


def test_a_wrong_run_is_refused_before_the_work(dataset, runs, tmp_path):
    succeeds("train", "popularity", dataset, "-o", tmp_path / "run", "--split", "leave-one-out")
    code, _, err = command("evaluate", tmp_path / "run", tmp_path / "nothing", dataset)
    assert code == 2
    assert "nothing" in err
    assert not (tmp_path / "run/test.json").exists()


# --- overwrite ---------------------------------------------------------------------------------------------


def test_overwrite_replaces_a_run_and_nothing_else(dataset, tmp_path):
    out = tmp_path / "run"
    split = ("--split", "leave-one-out")
    succeeds("train", "popularity", dataset, "-o", out, *split)
    succeeds("evaluate", out, dataset)
    assert command("train", "itemknn", dataset, "-o", out, *split)[0] == 2
    code, said, err = command("train", "itemknn", dataset, "-o", out, *split, "--overwrite", "--json")
    assert code == 0, err
    assert json.loads(said)["run"] == str(out)
    assert json.loads((out / "config.json").read_text())["model"] == "itemknn"
    assert not (out / "test.json").exists()
    succeeds("evaluate", out, dataset)
    assert {path.name for path in tmp_path.iterdir()} == {"run"}

    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    for options, says in (
        (["--overwrite", "--resume"], "were both given"),
        (["--overwrite", "--set", "neighbour=3"], "Did you mean 'neighbours'"),
    ):
        code, _, err = command("train", "itemknn", dataset, "-o", out, *split, *options)
        assert code == 2
        assert says in flat(err)
    (out / "letter.txt").write_text("mine")
    code, _, err = command("train", "itemknn", dataset, "-o", out, *split, "--overwrite")
    assert code == 2
    assert "letter.txt" in err
    (out / "letter.txt").unlink()
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.name != ".lock"} == {
        name: time for name, time in before.items() if name != ".lock"
    }
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    code, _, err = command("train", "itemknn", dataset, "-o", dataset, *split, "--overwrite")
    assert code == 2
    assert "is a dataset" in flat(err)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/one.txt").write_text("mine")
    code, _, err = command("train", "itemknn", dataset, "-o", tmp_path / "letters", *split, "--overwrite")
    assert code == 2
    assert "is not a run folder" in flat(err)
    assert (tmp_path / "letters/one.txt").exists()
    succeeds("train", "popularity", dataset, "-o", tmp_path / "new", *split, "--overwrite")
