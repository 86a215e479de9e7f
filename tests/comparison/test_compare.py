"""Comparisons: which runs are refused, how runs are grouped, and that every figure is that of the runs."""

from __future__ import annotations

import json
import shutil

import numpy as np
import polars as pl
import pytest
from scipy import stats
from tests.comparison.folders import made_up_run
from typer.testing import CliRunner

import rediffuse as rd
from rediffuse.cli import app
from rediffuse.comparison.slices import groups_of_equal_size
from rediffuse.errors import ConfigError, RediffuseWarning, RunError
from rediffuse.files import parquet_bytes
from rediffuse.runs.run_folder import add_files, forget_files
from rediffuse.testing import synthetic_interactions


@pytest.fixture(scope="module")
def comparison(evaluated):
    return rd.compare(evaluated.values(), metric="ndcg@10/unseen")


def edited(run, to, **changes):
    """A copy of a run with changes to the protocol in test.json."""
    shutil.copytree(run, to)
    facts = json.loads((to / "test.json").read_text())
    facts["protocol"] |= changes
    add_files(to, {"test.json": json.dumps(facts).encode()})
    return to


def test_variants_are_runs_that_differ_only_in_their_seed(comparison):
    seeds = dict(comparison.summary.select("variant", "seeds").iter_rows())
    assert seeds == {"popularity": 1, "itemknn": 1, "diffurec": 2, "diffurec (no diffusion)": 2}


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
    assert row["users_low"] < row["mean"] < row["users_high"]


def test_pairs_are_paired_by_user(comparison, evaluated):
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
    assert row["p_holm"] >= row["p_fdr"] >= row["p"]
    assert row["p_seeds"] is None  # one seed each
    assert len(comparison.pairs) == 2 * 6


def test_p_is_corrected_over_the_pairs_of_a_policy(comparison):
    for policy in ("all", "unseen"):
        rows = comparison.pairs.filter(policy=policy)
        assert rows["p_fdr"].to_list() == pytest.approx(stats.false_discovery_control(rows["p"].to_numpy()))


def test_p_over_seeds_is_of_the_values_of_the_runs(tmp_path):
    """For pairs and for ablations; null where a variant has one seed."""
    variants = {
        "diffurec": ("diffurec", {}, (0, 1, 2)),
        "diffurec (no diffusion)": ("diffurec", {"diffusion": False}, (0, 1)),
        "sasrec": ("sasrec", {}, (0,)),
    }
    runs = {
        label: [
            made_up_run(tmp_path / f"{label}-{seed}", model, options, seed=seed, skill=0.3 + 0.1 * len(seeds))
            for seed in seeds
        ]
        for label, (model, options, seeds) in variants.items()
    }
    found = rd.compare([run for of in runs.values() for run in of], metric="mrr@10")

    def values(label: str, policy: str, metric: str) -> list[float]:
        return [json.loads((run / "test.json").read_text())["metrics"][policy][metric] for run in runs[label]]

    assert found.pairs["p_seeds"].is_null().to_list() == [False, True, True] * 2
    tested = found.pairs.drop_nulls("p_seeds").rows(named=True)
    assert {row["policy"] for row in tested} == {"all", "unseen"}
    for row, metric in [
        *((row, "mrr@10") for row in tested),
        *((r, r["metric"]) for r in found.ablations.rows(named=True)),
    ]:
        first, second = (values(label, row["policy"], metric) for label in list(variants)[:2])
        expected = stats.ttest_ind(first, second, equal_var=False)[1]
        assert row["p_seeds"] == pytest.approx(expected)
    assert len(found.ablations) == 2 * 4
    assert found.to_dict()["pairs"][1]["p_seeds"] is None


def test_p_over_seeds_is_a_number_where_no_pair_has_it(tmp_path):
    """Tables of several comparisons can be put together."""
    found = rd.compare([made_up_run(tmp_path / "a", "sasrec"), made_up_run(tmp_path / "b", "ease")])
    assert found.pairs.schema["p_seeds"] == pl.Float64


def test_slices_add_up(comparison):
    # One true item each: recall is hr, and gain is ndcg.
    for by, sliced, metric in (
        ("history length", "ndcg@10", "ndcg@10"),
        ("history length", "mrr@5", "mrr@5"),
        ("item popularity", "recall@10", "hr@10"),
        ("item popularity", "gain@10", "ndcg@10"),
    ):
        rows = comparison.slices.filter(by=by, metric=sliced, policy="unseen", variant="itemknn")
        total = comparison.summary.filter(policy="unseen", variant="itemknn", metric=metric)["mean"][0]
        assert (rows["size"] * rows["mean"]).sum() / rows["size"].sum() == pytest.approx(total)


def test_groups_of_numbers():
    numbers = np.array([0, 0, 3, 3, 3, 5, 8, 9, 40, 41])
    group, names = groups_of_equal_size(numbers)
    assert names[0] == "0"
    bounds = [tuple(map(int, name.split("-"))) if "-" in name else (int(name),) * 2 for name in names]
    for number, place in zip(numbers, group, strict=True):
        assert bounds[place][0] <= number <= bounds[place][1]
    assert groups_of_equal_size(np.array([4, 4, 4]))[1] == ["1-4"]


def test_each_diffusion_variant_is_compared_with_its_ablation(comparison):
    rows = comparison.ablations.filter(policy="all", metric="hr@10")
    assert rows.select("variant", "ablation").rows() == [("diffurec", "diffurec (no diffusion)")]
    assert rows["difference_mean"][0] == pytest.approx(rows["with_diffusion"][0] - rows["without"][0])
    assert set(comparison.steps["variant"]) == {"diffurec"}
    assert set(comparison.curves["variant"]) == {"diffurec", "diffurec (no diffusion)"}


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"candidates": "sampled-100"}, "candidate set: sampled-100 and all"),
        ({"seen": ["unseen"]}, "seen-item policy"),
        ({"validation_is_input": False}, "use of validation interactions as input"),
    ],
)
def test_other_protocols_are_refused(evaluated, tmp_path, changes, what):
    other = edited(evaluated["itemknn"], tmp_path / "other", **changes)
    with pytest.raises(RunError, match=what):
        rd.compare([evaluated["popularity"], other])


def test_other_splits_and_data_are_refused(evaluated, tmp_path):
    data = synthetic_interactions()
    rd.train("popularity", rd.split.ratio(data, 0.6, 0.2), tmp_path / "ratio")
    rd.evaluate(tmp_path / "ratio", data)
    with pytest.raises(RunError, match=r"differ in their split: ratio .* and leave-one-out"):
        rd.compare([evaluated["popularity"], tmp_path / "ratio"])
    rd.train("popularity", rd.split.leave_one_out(synthetic_interactions(seed=2)), tmp_path / "data")
    rd.evaluate(tmp_path / "data", synthetic_interactions(seed=2))
    with pytest.raises(RunError, match="differ in their data"):
        rd.compare([evaluated["popularity"], tmp_path / "data"])


def test_unevaluated_and_repeated_runs_are_refused(evaluated, tmp_path):
    run = rd.train("popularity", rd.split.leave_one_out(synthetic_interactions()), tmp_path / "run").path
    with pytest.raises(RunError, match=f"rediffuse evaluate {run} DATASET"):
        rd.compare([evaluated["itemknn"], run])
    (tmp_path / "link").symlink_to(evaluated["itemknn"])
    for again in (evaluated["itemknn"], tmp_path / "link"):
        with pytest.raises(RunError, match="given more than once"):
            rd.compare([evaluated["itemknn"], again])
    copy = shutil.copytree(evaluated["itemknn"], tmp_path / "copy")
    with pytest.raises(RunError, match="same training with the same seed"):
        rd.compare([evaluated["itemknn"], copy])


def test_paths_without_a_run_are_left_out(evaluated, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    with pytest.warns(RediffuseWarning, match=r"hold no run: .*notes, .*notes\.txt"):
        found = rd.compare([evaluated["itemknn"], tmp_path / "notes", tmp_path / "notes.txt"])
    assert found.costs["variant"].to_list() == ["itemknn"]
    with pytest.raises(RunError, match="No runs in"):
        rd.compare([tmp_path / "notes"])
    with pytest.raises(RunError, match="typo: no such folder"):
        rd.compare([evaluated["itemknn"], tmp_path / "typo"])


def test_an_unknown_metric_is_refused(evaluated):
    with pytest.raises(ConfigError, match=r"'ndgc@10' was not measured per user[\s\S]*Did you mean 'ndcg@10'"):
        rd.compare([evaluated["itemknn"]], metric="ndgc@10")


def test_an_evaluation_of_earlier_weights_does_not_count(tmp_path):
    run = made_up_run(tmp_path / "run")
    assert len(rd.compare([run]).costs) == 1
    forget_files(run, ["test.json"])  # as training again does
    with pytest.raises(RunError, match="Not evaluated"):
        rd.compare([run])


def test_other_users_and_other_true_items_are_refused(tmp_path):
    runs = [made_up_run(tmp_path / "a"), made_up_run(tmp_path / "b", "sasrec", prefix="v")]
    with pytest.raises(RunError, match=r"b and .*a were evaluated on different users"):
        rd.compare(runs)
    other = made_up_run(tmp_path / "c", "sasrec")
    truth = pl.read_parquet(other / "truth_test.parquet").with_columns(pl.col("item_id").reverse())
    add_files(other, {"truth_test.parquet": parquet_bytes(truth)})
    with pytest.raises(RunError, match="different true items"):
        rd.compare([runs[0], other])


def test_labels_name_the_options_that_distinguish_variants(tmp_path):
    wanted = {
        "diffurec": (None, {}),
        "diffurec (no diffusion)": (None, {"diffusion": False}),
        "diffurec (heads=4, no diffusion)": (None, {"diffusion": False, "heads": 4}),
        "diffurec (paper)": ("paper", {}),
    }
    runs = [
        made_up_run(tmp_path / str(place), "diffurec", options, preset=preset)
        for place, (preset, options) in enumerate(wanted.values())
    ]
    found = rd.compare([*runs, made_up_run(tmp_path / "sasrec", "sasrec", {"heads": 1})])
    assert set(found.costs["variant"]) == {*wanted, "sasrec"}  # the only variant of its model


def test_labels_are_unique(tmp_path):
    """One run is of an earlier version, without an option that the other has at its default."""
    runs = [made_up_run(tmp_path / name, "diffurec") for name in ("old", "new")]
    config = json.loads((runs[0] / "config.json").read_text())
    del config["config"]["solver"]
    add_files(runs[0], {"config.json": json.dumps(config).encode()})
    assert set(rd.compare(runs).costs["variant"]) == {"diffurec [old]", "diffurec [new]"}


def test_users_for_whom_a_metric_has_no_value_are_left_out(tmp_path):
    """popularity_lift has no value without a history."""
    runs = [made_up_run(tmp_path / "a", "sasrec"), made_up_run(tmp_path / "b", "ease", skill=0.2)]
    tables = [pl.read_parquet(run / "per_user_test.parquet") for run in runs]
    known = tables[0]["history_length"] > 0
    assert 0 < known.sum() < len(known)
    found = rd.compare(runs, tmp_path / "report", metric="popularity_lift@10")
    row = found.pairs.row(by_predicate=pl.col("policy") == "all", named=True)
    assert row["users"] == known.sum()
    first, second = (table["popularity_lift@10"].filter(known) for table in tables)
    assert row["difference"] == pytest.approx((first - second).mean())
    lift = found.slices.filter(by="history length", metric="popularity_lift@10", policy="all", variant="sasrec")
    assert "0" not in lift["slice"]
    assert lift["size"].sum() == known.sum()
    accuracy = found.slices.filter(by="history length", metric="ndcg@10", policy="all", variant="sasrec")
    assert accuracy["slice"][0] == "0"
    assert accuracy["size"][0] == (~known).sum()


def test_items_are_sliced_by_rank_over_all_seeds(tmp_path):
    runs = [made_up_run(tmp_path / str(seed), "sasrec", seed=seed) for seed in (0, 1)]
    rows = rd.compare(runs).slices.filter(by="item popularity", metric="gain@10", policy="all")
    gains = []
    for run in runs:
        truth = pl.read_parquet(run / "truth_test.parquet")
        low, high = (int(end) for end in rows["slice"][1].split("-"))
        ranks = truth.filter(pl.col("train_count").is_between(low, high))["rank"].to_list()
        gains.append(np.mean([1 / np.log2(rank + 1) if rank is not None and rank <= 10 else 0.0 for rank in ranks]))
    assert rows["mean"][1] == pytest.approx(np.mean(gains))


def test_intervals_of_items_are_clustered_by_user(tmp_path):
    run = made_up_run(tmp_path / "a", "sasrec")
    table = pl.read_parquet(run / "truth_test.parquet")
    truth = table.with_columns(user_id=pl.int_range(pl.len()) // 4)  # four true items each
    add_files(run, {"truth_test.parquet": parquet_bytes(truth)})
    row = rd.compare([run]).slices.filter(by="item popularity", metric="recall@10", policy="all").row(1, named=True)
    low, high = (int(end) for end in row["slice"].split("-"))
    chosen = truth.filter(pl.col("train_count").is_between(low, high))
    hits, users = (chosen["rank"].fill_null(99) <= 10).cast(float).to_numpy(), chosen["user_id"].to_numpy()
    assert len(set(users)) < len(users)
    sums = np.array([(hits - hits.mean())[users == user].sum() for user in set(users)])
    n = len(sums)
    half = stats.t.ppf(0.975, n - 1) * np.sqrt(n / (n - 1) * (sums**2).sum()) / len(hits)
    assert (row["low"], row["high"]) == pytest.approx((hits.mean() - half, hits.mean() + half))


def test_with_a_baseline_only_its_pairs_are_tested(tmp_path):
    skills = {"ease": 0.2, "sasrec": 0.5, "bprmf": 0.3}
    runs = [made_up_run(tmp_path / name, name, skill=skill) for name, skill in skills.items()]
    every, with_baseline = rd.compare(runs), rd.compare(runs, baseline="ease")
    pairs = with_baseline.pairs.filter(policy="all")
    assert pairs.select("first", "second").rows() == [("sasrec", "ease"), ("bprmf", "ease")]
    assert pairs["difference"][0] == pytest.approx(-every.pairs.filter(policy="all", second="sasrec")["difference"][0])
    assert max(pairs["p_holm"] / pairs["p"]) <= 2
    with pytest.raises(ConfigError, match=r"No variant is called 'eas'[\s\S]*Did you mean 'ease'"):
        rd.compare(runs, baseline="eas")


@pytest.mark.parametrize("figures", [3, {"ndcg@10": "high"}, {"ndcg@10": float("nan")}, {"source": 1}])
def test_published_figures_that_are_not_numbers_are_refused(tmp_path, figures):
    with pytest.raises(ConfigError, match="Published figures of 'x'"):
        rd.compare([made_up_run(tmp_path / "run")], published={"x": figures})


def test_one_seed_has_no_interval_over_seeds(tmp_path):
    row = rd.compare([made_up_run(tmp_path / "run")]).summary.row(0, named=True)
    assert (row["seeds"], row["low"], row["high"]) == (1, None, None)
    assert row["sampling_std"] == pytest.approx(np.std([-0.001, 0.001], ddof=1))
    assert row["users_low"] < row["mean"] < row["users_high"]


def test_the_command_prints_significant_differences_and_the_report(tmp_path):
    runs = [
        made_up_run(tmp_path / "runs" / "a", "sasrec", skill=0.9),
        made_up_run(tmp_path / "runs" / "b", "ease", skill=0.1),
    ]
    (tmp_path / "others.json").write_text(json.dumps({"A paper": {"source": "there", "ndcg@10": 0.4}}))
    command = ["compare", *map(str, runs), "-o", str(tmp_path / "out"), "--published", str(tmp_path / "others.json")]
    result = CliRunner().invoke(app, command, env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    assert "sasrec is better than ease" in result.output
    heads = [cell.strip() for cell in next(li for li in result.output.splitlines() if "p (FDR)" in li).split("┃")[1:-1]]
    line = next(line for line in result.output.splitlines() if "sasrec - ease" in line)
    cells = dict(zip(heads, (cell.strip() for cell in line.split("│")[1:-1]), strict=True))
    pair = pl.read_parquet(tmp_path / "out" / "pairs.parquet").row(by_predicate=pl.col("policy") == "all", named=True)
    assert cells["difference"] == f"{pair['difference']:+.4f}"
    assert [cells[head] for head in ("p (Holm)", "p (FDR)", "p (seeds)")] == ["p < 0.0001", "p < 0.0001", ""]
    assert str(tmp_path / "out" / "report.html") in result.output.replace("\n", "")
    mean = pl.read_parquet(tmp_path / "out" / "summary.parquet").filter(
        policy="all", metric="ndcg@10", variant="sasrec"
    )
    assert f"{mean['mean'][0]:.4f}" in result.output
    found = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert found["published"] == {"A paper": {"source": "there", "ndcg@10": 0.4}}


def test_nested_options_have_full_names_if_all_runs_have_them(tmp_path):
    runs = [
        made_up_run(tmp_path / "a", "pdrec", {"diffusion": {"diffusion_steps": 5, "epochs": 9}, "hbr": False}),
        made_up_run(tmp_path / "b", "pdrec", {"diffusion": {"diffusion_steps": 7}}),
        made_up_run(tmp_path / "c", "pdrec", {"diffusion": {"diffusion_steps": 5}}),
    ]
    labels = set(rd.compare(runs).summary["variant"])
    assert labels == {
        "pdrec (diffusion.diffusion_steps=5, hbr=False)",
        "pdrec (diffusion.diffusion_steps=7)",
        "pdrec (diffusion.diffusion_steps=5)",
    }
