"""Data reports and near-duplicates, against plain loops over users and pairs of users."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from tests.test_cli import command, flat, succeeds

import rediffuse as rd
from rediffuse.comparison.markdown import markdown
from rediffuse.data import near_duplicates as module
from rediffuse.data.near_duplicates import near_duplicates
from rediffuse.data.split import TEST, TRAIN
from rediffuse.errors import ConfigError, DataError, RediffuseWarning

DAY = 86_400


def closest(rows: list[list[int]], similarity: float, least: int) -> list[float]:
    """The largest Jaccard similarity of each row and another, by a loop over all pairs."""
    sets, best = [set(row) for row in rows], [0.0] * len(rows)
    for one in range(len(rows)):
        for other in range(len(rows)):
            if one != other and min(len(sets[one]), len(sets[other])) >= least:
                jaccard = len(sets[one] & sets[other]) / len(sets[one] | sets[other])
                best[one] = max(best[one], jaccard if jaccard >= similarity else 0.0)
    return best


@pytest.mark.parametrize("work", [1, 1 << 23], ids=["in small blocks", "at once"])
@pytest.mark.parametrize("similarity", [0.3, 0.5, 0.6, 0.8, 1.0])
def test_near_duplicates_by_a_double_loop(monkeypatch, work, similarity):
    monkeypatch.setattr(module, "_WORK", work)
    rng, found = np.random.default_rng(int(10 * similarity)), 0
    for least in (1, 2, 3, 4) * 3:
        items = int(rng.integers(2, 25))
        chances = 1 / np.arange(1, items + 1)
        rows = [
            rng.choice(items, size=rng.integers(0, 12), p=chances / chances.sum()).tolist()
            for _ in range(rng.integers(1, 40))
        ]
        wanted = closest(rows, similarity, least)
        np.testing.assert_allclose(near_duplicates(rd.data.Histories.from_lists(rows), similarity, least), wanted)
        found += np.count_nonzero(wanted)
    assert found


def build() -> rd.Dataset:
    """Thirty users, some of whom copy others, with repeats and ties, and a given split."""
    rng, rows = np.random.default_rng(4), []
    for user in range(30):
        items = rng.choice(20, size=rng.integers(1, 9)).tolist()
        if user % 5 == 4:
            items = [item for _, item, _ in rows if _ == user - 1] + [20]
        if user % 10 == 3:
            items = [row[1] for row in rows if row[0] == user - 1]
        days = np.sort(rng.integers(0, 40, len(items)))
        rows += [(user, item, int(day) * DAY) for item, day in zip(items, days, strict=True)]
    frame = pl.DataFrame(rows, ["user_id", "item_id", "time"], orient="row")
    subset = ["test" if rng.random() < 0.2 else "train" for _ in rows]
    given = frame.with_columns(split=pl.Series(subset))
    return rd.read_interactions(frame, time="time", splits=given)


@pytest.fixture(scope="module")
def data() -> rd.Dataset:
    return build()


@pytest.fixture(scope="module")
def report(data):
    return rd.data_report(data)


def test_histories_duplicates_and_repeats(data, report):
    rows = [data.interactions.row(user).tolist() for user in range(data.num_users)]
    assert (report.users, report.interactions) == (30, sum(map(len, rows)))
    assert report.histories["median"] == np.median([len(row) for row in rows])
    assert report.histories["users_with_fewer_than_3"] == sum(len(row) < 3 for row in rows)
    copies = Counter(tuple(row) for row in rows if len(row) >= 3)
    assert report.duplicates["identical"] == sum(count for count in copies.values() if count > 1) > 0
    similar = closest(rows, 0.5, 3)
    assert report.duplicates["near"] == np.count_nonzero(similar) > report.duplicates["identical"]
    assert report.duplicates["near_at_least_0.8"] == sum(value >= 0.8 for value in similar)
    repeats = {user: len(row) - len(set(row)) for user, row in enumerate(rows)}
    assert report.repeats == {"interactions": sum(repeats.values()), "users": sum(n > 0 for n in repeats.values())}
    assert report.repeats["interactions"] > 0


def test_popularity_and_times(data, report):
    counts = sorted(Counter(data.interactions.items.tolist()).values(), reverse=True)
    assert report.popularity["share_of_top_10_percent"] == sum(counts[:3]) / sum(counts)  # of 21 items
    assert report.popularity["items_once"] == counts.count(1)
    spread = sum(abs(one - other) for one in counts for other in counts)
    assert report.popularity["gini"] == pytest.approx(spread / (2 * len(counts) * sum(counts)))
    head = next(n for n in range(1, 22) if sum(counts[:n]) >= 0.8 * sum(counts))
    assert report.popularity["long_tail"] == 21 - head
    inter = data.interactions
    ends = [inter.times[inter.offsets[u] : inter.offsets[u + 1]].tolist() for u in range(30)]
    assert report.times["users_with_tied_end"] == sum(len(t) > 1 and t[-1] == t[-2] for t in ends) > 0
    assert report.times["ties"] == sum(a == b for t in ends for a, b in pairwise(t))
    assert report.times["whole_days"]
    assert report.times["last"].startswith("1970-02-")


def test_what_splits_leave_out_and_leak(data, report):
    inter, owners = data.interactions, data.interactions.owners
    assert [split["name"] for split in report.splits] == ["given", "leave-one-out", "global-time", "ratio"]
    for facts in report.splits:
        split = rd.split.by_name(facts["name"], data)
        train, test = np.flatnonzero(split.subset == TRAIN), np.flatnonzero(split.subset == TEST)
        known = set(inter.items[train].tolist())
        assert facts["test"]["never_trained"] == sum(int(inter.items[place]) not in known for place in test)
        last, leak = inter.times[train].max(), facts["leak"]
        ahead = [int(last - inter.times[place]) for place in test if inter.times[place] < last]
        assert leak["earlier"] == len(ahead)
        assert leak["median_seconds"] == (float(np.median(ahead)) if ahead else None)
        assert leak["longest_seconds"] == (max(ahead) if ahead else None)
        own = sum(any(owners[other] == owners[place] and other > place for other in train) for place in test)
        assert leak["own_later"] == own
        later = [np.mean([inter.times[other] > inter.times[place] for other in train]) for place in test]
        assert leak["later_training"] == pytest.approx(np.mean(later))
    by_name = {split["name"]: split["leak"] for split in report.splits}
    assert by_name["global-time"]["earlier"] == by_name["leave-one-out"]["own_later"] == 0
    assert by_name["ratio"]["own_later"] > 0


def test_the_report_in_words(data, report):
    text = str(report)
    assert "are near-duplicates of another user" in text
    assert "--near-duplicates DATA" in text
    assert "With seen items filtered" in text
    assert "The last two interactions of" in text
    assert "Training knows what happened after the tests" in text
    assert "Tested before a training interaction of the same user: given" in text
    assert json.loads(json.dumps(report.to_dict()))["users"] == 30
    assert "near-duplicate users" in repr(report)
    assert "<table>" in report._repr_html_()


def test_named_splits_and_what_data_do_not_allow(data):
    cut = rd.split.global_time(data, 0.5)
    found = rd.data_report(data, ["sessions", cut])
    assert [split["name"] for split in found.splits] == ["sessions", "global-time"]
    assert found.splits[1]["sizes"] == cut.sizes()
    with pytest.raises(ConfigError, match="There is no split"):
        rd.data_report(data, "leave_two_out")
    with pytest.raises(ConfigError, match="splits"):
        rd.data_report(data, [rd.split.leave_one_out(rd.testing.synthetic_interactions())])
    without = rd.read_interactions(pl.DataFrame({"user_id": [1] * 6 + [2] * 6, "item_id": [1, 2, 3, 4, 5, 6] * 2}))
    found = rd.data_report(without)
    assert found.times is None
    assert [split["name"] for split in found.splits] == ["leave-one-out", "ratio"]
    assert "Not reported: global-time. A global time split needs timestamps" in str(found)
    assert "a leak of the future cannot be measured" in str(found)
    with pytest.raises(DataError, match="timestamps"):
        rd.data_report(without, "global-time")


def test_the_command(data, report, tmp_path):
    folder = data.save(tmp_path / "data")
    assert json.loads(succeeds("data", "report", folder, "--json"))["splits"] == report.to_dict()["splits"]
    shown = flat(succeeds("data", "report", folder, "--split", "leave-one-out"))
    assert "near-duplicates (Jaccard 0.5 or more)" in shown
    assert "global-time │" not in shown
    assert f"--near-duplicates {folder}" in shown
    assert "ml-100k" in succeeds("data")
    code, _, err = command("data", "report", tmp_path / "nothing")
    assert code == 2
    assert "nothing" in err


def test_a_comparison_shows_users_with_a_near_duplicate_apart(data, tmp_path):
    split = rd.split.leave_one_out(data)
    run = rd.train("itemknn", split, tmp_path / "run")
    rd.evaluate(run, data)
    before = split.before_test()
    similar = closest([before.row(user).tolist() for user in range(30)], 0.5, 3)
    per_user = pl.read_parquet(tmp_path / "run" / "per_user_test.parquet")
    found = rd.compare(run, near_duplicates=data)
    rows = found.slices.filter(by="near-duplicates", metric="ndcg@10", policy="all")
    assert rows["slice"].to_list() == ["no near-duplicate", "a near-duplicate"]
    for row, has in zip(rows.iter_rows(named=True), (False, True), strict=True):
        values = [v for u, v in per_user.select("user_id", "ndcg@10").iter_rows() if (similar[u] > 0) is has]
        assert (row["size"], row["mean"]) == (len(values), pytest.approx(np.mean(values)))
    assert "## ndcg@10 by near-duplicates" in markdown(found)
    shown = flat(succeeds("compare", tmp_path / "run", "--near-duplicates", data.save(tmp_path / "data")))
    assert f"a near-duplicate (n = {rows['size'][1]})" in shown
    with pytest.raises(rd.errors.RunError, match="other data"):
        rd.compare(run, near_duplicates=rd.testing.synthetic_interactions())


def test_a_comparison_says_that_no_user_has_a_near_duplicate(tmp_path):
    data = rd.read_interactions(
        pl.DataFrame({"user_id": np.repeat(np.arange(8), 4), "item_id": np.arange(32), "time": np.arange(32)}),
        time="time",
    )
    run = rd.train("popularity", rd.split.leave_one_out(data), tmp_path / "run")
    rd.evaluate(run, data)
    with pytest.warns(RediffuseWarning, match="No test user has a near-duplicate"):
        found = rd.compare(run, near_duplicates=data)
    assert not len(found.slices.filter(by="near-duplicates"))
