"""Comparisons: what is refused, how runs are grouped, and that every figure is the one of the runs."""

from __future__ import annotations

import json
import shutil

import numpy as np
import polars as pl
import pytest
from tests.synthetic import walks

import rediffuse as rd
from rediffuse.comparison.compare import _groups
from rediffuse.errors import ConfigError, RunError
from rediffuse.training import add_files


@pytest.fixture(scope="module")
def comparison(evaluated):
    return rd.compare(evaluated.values(), metric="ndcg@10/unseen")


def edited(run, to, **changes):
    """A copy of a run with other content of test.json."""
    shutil.copytree(run, to)
    facts = json.loads((to / "test.json").read_text())
    facts["protocol"] |= changes
    add_files(to, {"test.json": json.dumps(facts).encode()})
    return to


def test_variants_are_runs_that_differ_by_seed_alone(comparison):
    seeds = dict(comparison.summary.select("variant", "seeds").iter_rows())
    assert seeds == {"popularity": 1, "itemknn": 1, "diffurec": 2, "diffurec (diffusion=False)": 2}


def test_means_and_intervals_are_those_of_the_runs(comparison, evaluated):
    values = [
        json.loads((evaluated[f"diffurec-{seed}"] / "test.json").read_text())["metrics"]["unseen"]["mrr@10"]
        for seed in (0, 1)
    ]
    row = comparison.summary.row(
        by_predicate=(pl.col("variant") == "diffurec")
        & (pl.col("policy") == "unseen")
        & (pl.col("metric") == "mrr@10"),
        named=True,
    )
    assert row["mean"] == pytest.approx(np.mean(values))
    assert row["high"] - row["mean"] == pytest.approx(12.7062 * abs(values[0] - values[1]) / 2, rel=1e-4)
    assert row["sampling_seeds"] == 2
    assert row["sampling_std"] >= 0
    assert row["people_low"] < row["mean"] < row["people_high"]


def test_pairs_are_paired_by_person(comparison, evaluated):
    first, second = (
        pl.read_parquet(evaluated[name] / "per_user_test.parquet")["ndcg@10/unseen"].to_numpy()
        for name in ("popularity", "itemknn")
    )
    row = comparison.pairs.row(
        by_predicate=(pl.col("policy") == "unseen")
        & (pl.col("first") == "popularity")
        & (pl.col("second") == "itemknn"),
        named=True,
    )
    assert row["difference"] == pytest.approx((first - second).mean())
    assert row["p_holm"] >= row["p"]
    assert len(comparison.pairs) == 2 * 6


def test_slices_add_up(comparison):
    for by in ("history length", "item popularity"):
        rows = comparison.slices.filter(by=by, policy="unseen", variant="itemknn")
        metric = {"history length": "ndcg@10", "item popularity": "hr@10"}[by]  # one true item each: recall is hr
        total = comparison.summary.filter(policy="unseen", variant="itemknn", metric=metric)["mean"][0]
        assert (rows["size"] * rows["mean"]).sum() / rows["size"].sum() == pytest.approx(total)


def test_groups_of_numbers():
    numbers = np.array([0, 0, 3, 3, 3, 5, 8, 9, 40, 41])
    group, names = _groups(numbers)
    assert names[0] == "0"
    bounds = [tuple(map(int, name.split("-"))) if "-" in name else (int(name),) * 2 for name in names]
    for number, place in zip(numbers, group, strict=True):
        assert bounds[place][0] <= number <= bounds[place][1]
    assert _groups(np.array([4, 4, 4]))[1] == ["1-4"]


def test_the_twin_is_found(comparison):
    rows = comparison.twins.filter(policy="all", metric="hr@10")
    assert rows.select("variant", "twin").rows() == [("diffurec", "diffurec (diffusion=False)")]
    assert rows["difference_mean"][0] == pytest.approx(rows["with_diffusion"][0] - rows["without"][0])
    assert set(comparison.steps["variant"]) == {"diffurec"}
    assert set(comparison.curves["variant"]) == {"diffurec", "diffurec (diffusion=False)"}


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"candidates": "sampled-100"}, "candidate set: sampled-100 and all"),
        ({"seen": ["unseen"]}, "seen-item policy"),
        ({"validation_is_input": False}, "use of validation events as input"),
    ],
)
def test_other_protocols_are_refused(evaluated, tmp_path, changes, what):
    other = edited(evaluated["itemknn"], tmp_path / "other", **changes)
    with pytest.raises(RunError, match=what):
        rd.compare([evaluated["popularity"], other])


def test_other_splits_and_data_are_refused(evaluated, tmp_path):
    data = walks()
    rd.train("popularity", rd.split.ratio(data, 0.6, 0.2), tmp_path / "ratio")
    rd.evaluate_run(tmp_path / "ratio", data)
    with pytest.raises(RunError, match=r"differ in their split: ratio .* and leave-one-out"):
        rd.compare([evaluated["popularity"], tmp_path / "ratio"])
    rd.train("popularity", rd.split.leave_one_out(walks(seed=2)), tmp_path / "data")
    rd.evaluate_run(tmp_path / "data", walks(seed=2))
    with pytest.raises(RunError, match="differ in their data"):
        rd.compare([evaluated["popularity"], tmp_path / "data"])


def test_unevaluated_and_repeated_runs_are_refused(evaluated, tmp_path):
    run = rd.train("popularity", rd.split.leave_one_out(walks()), tmp_path / "run").path
    with pytest.raises(RunError, match=f"rediffuse evaluate {run} DATASET"):
        rd.compare([evaluated["itemknn"], run])
    copy = shutil.copytree(evaluated["itemknn"], tmp_path / "copy")
    with pytest.raises(RunError, match="same training with the same seed"):
        rd.compare([evaluated["itemknn"], copy])


def test_what_is_no_run_is_left_out(evaluated, tmp_path):
    (tmp_path / "notes").mkdir()
    assert len(rd.compare([evaluated["itemknn"], tmp_path / "notes"]).costs) == 1
    with pytest.raises(RunError, match="No runs in"):
        rd.compare([tmp_path / "notes"])


def test_an_unknown_metric_is_refused(evaluated):
    with pytest.raises(ConfigError, match=r"'ndgc@10' was not measured per person[\s\S]*Did you mean 'ndcg@10'"):
        rd.compare([evaluated["itemknn"]], metric="ndgc@10")
