"""Slices of new and known users and items, of items by age, and ceilings, against whole rankings in plain loops."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import polars as pl
import pytest
from tests.comparison.folders import made_up_run
from tests.test_cli import flat, succeeds

import rediffuse as rd
from rediffuse.comparison.statistics import mean_interval
from rediffuse.data.split import TRAIN, VALID
from rediffuse.evaluation import model_scores
from rediffuse.files import parquet_bytes
from rediffuse.runs.run_folder import add_files

METRICS = ("hr@10", "ndcg@10", "recall@20", "mrr@10")
DAY = 86_400
SPLITS = {
    "global-time": lambda data: rd.split.global_time(data, 0.7, 0.8),
    "successive": lambda data: rd.split.global_time(data, 0.7, 0.8, targets="successive"),
    "sessions": lambda data: rd.split.sessions(data, 0.6, 0.8),
    "cold-items": lambda data: rd.split.cold_items(data, 0.3, seed=1),
    "leave-one-out": rd.split.leave_one_out,
}


@pytest.fixture(scope="module")
def shop():
    """A shop of 500 days in which users and items appear, and users come back to items."""
    rng = np.random.default_rng(5)
    rows = []
    opened, joined = np.sort(rng.uniform(0, 480, 60)), np.sort(rng.uniform(0, 480, 50))
    opened[:20] = joined[:20] = 0
    for user, start in enumerate(joined):
        for day in rng.uniform(start, 500, rng.integers(3, 25)):
            there = np.flatnonzero(opened <= day)
            late = there[-1 - min(int(rng.geometric(0.12)) - 1, len(there) - 1)]
            item = late if rng.random() < 0.8 else rng.choice(there)
            rows.append((f"u{user}", f"i{item}", int(day * DAY)))
            if rng.random() < 0.2:
                rows.append((f"u{user}", f"i{item}", int((day + rng.choice([0.25, 3])) * DAY)))
    return rd.read_interactions(pl.DataFrame(rows, ["user_id", "item_id", "time"], orient="row"), time="time")


@pytest.fixture(scope="module", params=SPLITS)
def evaluated(request, shop, tmp_path_factory):
    """The split, the run and its evaluation."""
    split = SPLITS[request.param](shop)
    run = rd.train("transition", split, tmp_path_factory.mktemp("runs") / "run")
    return split, run, rd.evaluate(run, shop, metrics=["map@7"])


def values(ranks, number):
    """The metrics of one user with ``number`` true items, of which those with a rank have ``ranks``."""
    ranks = sorted(ranks)
    best = sum(1 / math.log2(place + 1) for place in range(1, min(number, 10) + 1))
    return {
        "hr@10": float(any(rank <= 10 for rank in ranks)),
        "ndcg@10": sum(1 / math.log2(rank + 1) for rank in ranks if rank <= 10) / best,
        "recall@20": sum(rank <= 20 for rank in ranks) / number,
        "mrr@10": next((1 / rank for rank in ranks if rank <= 10), 0.0),
        "map@7": sum(place / rank for place, rank in enumerate(ranks, 1) if rank <= 7) / number,
    }


def plain(split, run):
    """One dict per row of the task: the user, the true items with what slices need, and ranks under both policies."""
    data, task = split.dataset, split.task("test")
    inter = data.interactions
    trained = {"user": set(), "item": set()}
    appeared = {}
    for user in range(data.num_users):
        for place in range(inter.offsets[user], inter.offsets[user + 1]):
            item, when = int(inter.items[place]), inter.times[place]
            appeared[item] = min(when, appeared.get(item, when))
            if split.subset[place] == TRAIN:
                trained["user"].add(user)
                trained["item"].add(item)
    scores = model_scores(rd.Recommender.load(run).model, task)(task.histories, 0).numpy()
    rows = []
    for row, user in enumerate(task.users.tolist()):
        own = slice(*task.truth.offsets[row : row + 2])
        first: dict[int, float] = {}
        for item, when in zip(task.truth.items[own].tolist(), task.truth.times[own].tolist(), strict=True):
            first[item] = min(when, first.get(item, when))
        seen = task.histories if task.seen is None else task.seen
        hidden = {"all": set(), "unseen": set(seen.row(row).tolist())}
        ranks, kept = {}, {}
        for policy, left_out in hidden.items():
            candidates = [i for i in range(data.num_items) if i not in left_out and scores[row, i] > -np.inf]
            order = sorted(candidates, key=lambda item: (-scores[row, item], item in first, item))
            ranks[policy] = {item: order.index(item) + 1 for item in first if item in order}
            kept[policy] = [item for item in first if item not in left_out]
        rows.append(
            {
                "user": user,
                "new": user not in trained["user"],
                "ages": {item: (when - appeared[item]) / DAY for item, when in first.items()},
                "new_items": {item for item in first if item not in trained["item"]},
                "ranks": ranks,
                "kept": kept,
            }
        )
    return rows


def age_name(days):
    if days == 0:
        return "just appeared"
    for below, name in ((1, "under 1 day"), (7, "1 to 7 days"), (30, "7 to 30 days"), (365, "30 to 365 days")):
        if days < below:
            return name
    return "365 days and more"


def in_slices(row):
    """(by, slice) -> the true items of a row that are in it."""
    found = {("new and known users", "new users" if row["new"] else "known users"): set(row["ages"])}
    for item, days in row["ages"].items():
        names = {
            "new and known items": "new items" if item in row["new_items"] else "known items",
            "time since the item appeared": age_name(days),
        }
        for pair in names.items():
            found.setdefault(pair, set()).add(item)
    return found


def expected(rows, policy):
    """(by, slice) -> metric -> values, and the users they are of."""
    found: dict = {}
    for row in rows:
        for pair, items in in_slices(row).items():
            ranks = [rank for item, rank in row["ranks"][policy].items() if item in items]
            found.setdefault(pair, []).append((row["user"], values(ranks, len(items)), len(items)))
    return found


def test_slices_of_an_evaluation_by_hand(evaluated):
    split, run, facts = evaluated
    rows = plain(split, run)
    sizes = {(row["by"], row["slice"]): row for row in facts["slices"]}
    for policy in ("all", "unseen"):
        wanted = expected(rows, policy)
        assert sizes.keys() == wanted.keys()
        for pair, of_users in wanted.items():
            assert sizes[pair]["size"] == len(of_users)
            assert sizes[pair]["truth_items"] == sum(number for _, _, number in of_users)
            means = {name: np.mean([found[name] for _, found, _ in of_users]) for name in (*METRICS, "map@7")}
            assert sizes[pair]["metrics"][policy] == pytest.approx(means), pair
    assert json.loads((run.path / "test.json").read_text())["slices"] == facts["slices"]


def test_the_oracle_sees_something(shop, tmp_path):
    """Every kind of group is met, some with hits, so that the tests above can fail."""
    run = rd.train("transition", split := SPLITS["global-time"](shop), tmp_path / "run")
    found = expected(plain(split, run), "all")
    assert len(found) == 2 + 2 + 6
    hits = {pair: sum(value["hr@10"] for _, value, _ in of_users) for pair, of_users in found.items()}
    assert hits["new and known items", "known items"] > hits["new and known items", "new items"]
    different = [expected(plain(split, run), policy) for policy in ("all", "unseen")]
    assert different[0] != different[1]


def test_ceilings_by_hand(evaluated):
    split, run, facts = evaluated
    rows, inter = plain(split, run), split.dataset.interactions
    for name in ("all_items", "known_items"):
        for policy in ("all", "unseen"):
            best = []
            for row in rows:
                can = [i for i in row["kept"][policy] if name == "all_items" or i not in row["new_items"]]
                best.append(values(range(1, len(can) + 1), len(row["ages"])))
            means = {metric: np.mean([found[metric] for found in best]) for metric in (*METRICS, "map@7")}
            assert facts["ceiling"][name][policy] == pytest.approx(means)
            if name == "all_items":
                assert all(facts["metrics"][policy][metric] <= means[metric] + 1e-12 for metric in METRICS)
    validated = {int(item) for item, subset in zip(inter.items, split.subset, strict=True) if subset == VALID}
    both = sum(len(row["new_items"] & validated) for row in rows)
    assert facts["counts"]["truth_only_in_validation"] == both


def test_slices_of_a_comparison_by_hand(evaluated):
    split, run, _ = evaluated
    rows, found = plain(split, run), rd.compare([run])
    kinds = ("new and known users", "new and known items", "time since the item appeared")
    table = found.slices.filter(pl.col("by").is_in(kinds))
    for policy in ("all", "unseen"):
        wanted = expected(rows, policy)
        several = {pair: of_users for pair, of_users in wanted.items() if sum(by == pair[0] for by, _ in wanted) > 1}
        for pair, of_users in several.items():
            for metric in METRICS:
                row = table.row(
                    by_predicate=(pl.col("policy") == policy)
                    & (pl.col("by") == pair[0])
                    & (pl.col("slice") == pair[1])
                    & (pl.col("metric") == metric),
                    named=True,
                )
                numbers = np.array([value[metric] for _, value, _ in of_users])
                interval = mean_interval(numbers, np.array([user for user, _, _ in of_users]))
                assert row["size"] == len(of_users)
                assert (row["mean"], row["low"], row["high"]) == pytest.approx(
                    (interval.mean, interval.low, interval.high), nan_ok=True
                )
        assert {*table.filter(policy=policy).select("by", "slice").rows()} == several.keys()


def test_slices_are_averaged_over_draws_and_over_training_seeds(shop, tmp_path):
    split = SPLITS["global-time"](shop)
    options = {"epochs": 1, "embedding_size": 16, "blocks": 1, "lambda_uncertainty": 0.5, "sampling_steps": 2}
    runs = [rd.train("diffurec", split, tmp_path / str(seed), config=options, seed=seed) for seed in (0, 1)]
    both = rd.evaluate(runs[0], shop, seeds=[4, 5])["slices"]
    alone = [rd.evaluate(runs[0], shop, seeds=[seed])["slices"] for seed in (5, 4)]
    for first, second, mean in zip(*alone, both, strict=True):
        for policy in ("all", "unseen"):
            for metric in METRICS:
                values = [row["metrics"][policy][metric] for row in (first, second)]
                assert mean["metrics"][policy][metric] == pytest.approx(np.mean(values))
    assert alone[0] != alone[1]

    each = [alone[1], rd.evaluate(runs[1], shop, seeds=[4])["slices"]]
    table = rd.compare(runs).slices.filter(policy="all", metric="ndcg@10")
    for first, second in zip(*each, strict=True):
        row = table.filter(by=first["by"], slice=first["slice"])
        values = [slice_["metrics"]["all"]["ndcg@10"] for slice_ in (first, second)]
        assert row["mean"].to_list() == pytest.approx([np.mean(values)])


def test_times_that_are_an_order_have_no_ages(tmp_path):
    frame = pl.DataFrame({"user_id": [u for u in range(9) for _ in range(4)], "item_id": [n % 7 for n in range(36)]})
    data = rd.read_interactions(frame)
    run = rd.train("popularity", rd.split.leave_one_out(data), tmp_path / "run")
    assert "time since the item appeared" not in {row["by"] for row in rd.evaluate(run, data)["slices"]}
    assert "age" not in pl.read_parquet(run.path / "truth_test.parquet").columns


def test_evaluations_of_an_earlier_version_have_no_such_slices(tmp_path):
    runs = [made_up_run(tmp_path / name, name) for name in ("sasrec", "ease")]
    truth = pl.read_parquet(runs[0] / "truth_test.parquet").with_columns(age=pl.lit(5.0 * DAY))
    add_files(runs[0], {"truth_test.parquet": parquet_bytes(truth)})
    found = rd.compare(runs, tmp_path / "report")  # one of them has ages
    assert not {"time since the item appeared", "new and known users"} & set(found.slices["by"])
    assert found.facts["ceiling"] is None


def test_reports_show_the_slices_and_the_ceiling(shop, tmp_path):
    run = rd.train("transition", SPLITS["global-time"](shop), tmp_path / "run")
    facts = rd.evaluate(run, shop)
    rd.compare([run], tmp_path / "report")
    text = (tmp_path / "report/report.md").read_text()
    new = next(row for row in facts["slices"] if row["slice"] == "new items")
    assert f"new items (n = {new['size']:,})" in text
    known = facts["ceiling"]["known_items"]["all"]
    share = facts["counts"]["truth_never_trained_share"]
    sentence = f"{share:.1%} of the true items were never in training: a model that cannot recommend them reaches at"
    for name in ("report.md", "report.html"):
        page = (tmp_path / "report" / name).read_text()
        assert sentence in page
        assert f"ndcg@10 {known['ndcg@10']:.3f} (of " in page
    for heading in ("new and known users", "new and known items", "time since the item appeared"):
        assert f"## ndcg@10 by {heading}" in text


def test_the_command_prints_slices_of_one_run_and_the_ceiling_of_all(shop, tmp_path):
    data = shop.save(tmp_path / "data")
    runs = [rd.train(name, SPLITS["global-time"](shop), tmp_path / name).path for name in ("popularity", "itemknn")]
    facts = json.loads(succeeds("evaluate", runs[0], data, "--metrics", "recall@7", "--json"))
    alone = flat(succeeds("evaluate", runs[0], data, "--metrics", "recall@7"))
    assert alone.count("By users and true items, seen items") == 2
    for row in facts["slices"]:
        for policy in ("all", "unseen"):
            cells = [
                row["slice"],
                str(row["size"]),
                str(row["truth_items"]),
                f"{row['metrics'][policy]['recall@7']:.4f}",
            ]
            assert re.search(r"[\s│]+".join(map(re.escape, cells)), alone), cells
    sentence = "of the true items were never in training: a model that cannot recommend them reaches at most hr@10"
    several = flat(succeeds("evaluate", *runs, data))
    assert "By users and true items" not in several
    assert (alone.count(sentence), several.count(sentence)) == (1, 2)
