"""Interaction types, target events, and times of other forms."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import rediffuse as rd
from rediffuse.data.split import TEST, TRAIN, VALID
from rediffuse.data.synthetic import with_synthetic
from rediffuse.errors import ConfigError, DataError, RediffuseWarning
from rediffuse.readers.time_formats import remedy


def shop(users: int = 30, seed: int = 0) -> pl.DataFrame:
    """Views, carts and purchases, at distinct times."""
    rng = random.Random(seed)
    rows = []
    for user in range(users):
        for _ in range(rng.randint(1, 12)):
            event = rng.choices(["view", "cart", "purchase"], [6, 2, 2])[0]
            rows.append((f"u{user}", f"i{rng.randint(0, 8)}", 1_700_000_000 + len(rows) * 60, event))
    rng.shuffle(rows)
    return pl.DataFrame(rows, schema=["user_id", "item_id", "time", "event"], orient="row")


WEIGHTS = {"view": 1, "cart": 3, "purchase": 5}


def read(table: object = None, **options: object) -> rd.Dataset:
    chosen: dict = {"time": "time", "event_type": "event", **options}
    return rd.read_interactions(shop() if table is None else table, **chosen)


def test_weights_are_ratings_and_targets_are_marked() -> None:
    data = read(weights=WEIGHTS, target_events="purchase")
    ordered = shop().sort("time")
    for number, user in enumerate(data.user_ids):
        own = ordered.filter(user_id=user)
        rows = slice(*data.interactions.offsets[number : number + 2])
        assert data.interactions.ratings[rows].tolist() == [WEIGHTS[event] for event in own["event"]]
        assert data.interactions.target[rows].tolist() == (own["event"] == "purchase").to_list()
    counts = dict(shop()["event"].value_counts().iter_rows())
    assert data.report["events"] == counts
    assert data.num_targets == counts["purchase"]


def test_weight_zero_drops_and_says_so() -> None:
    data = read(weights={**WEIGHTS, "cart": 0})
    dropped = shop().filter(event="cart").height
    assert data.num_interactions == shop().height - dropped
    assert any(f"{dropped:,} interactions with the weight 0 were dropped" in note for note in data.report["notes"])
    assert 3.0 not in data.interactions.ratings


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"weights": {"view": 1, "cart": 1}}, r"holds 'purchase', without a weight. All values: 'view' \(\d+\)"),
        ({"target_events": "purchases"}, "Did you mean 'purchase'"),
        ({"target_events": "cart", "weights": {**WEIGHTS, "cart": 0}}, "has the weight 0"),
        ({}, "not what the types mean"),
        ({"event_type": None, "weights": WEIGHTS}, "without a column of interaction types"),
        ({"rating": "time", "weights": WEIGHTS}, "Both a rating column"),
        ({"weights": {"view": -1}}, "weight of 'view' is -1"),
        ({"weights": {"view": True}}, "weight of 'view' is True"),
        ({"weights": "view=1"}, "a dict of numbers"),
        ({"target_events": []}, "is empty"),
    ],
)
def test_refusals(options: dict, says: str) -> None:
    with pytest.raises((ConfigError, DataError), match=says):
        read(**options)


def test_a_missing_type_is_named_by_row() -> None:
    table = shop().with_columns(event=pl.when(pl.col("time") != 1_700_000_060).then("event"))
    with pytest.raises(DataError, match=r"row \d+: column 'event' \(event_type\) is empty"):
        read(table, weights=WEIGHTS)


def test_targets_are_saved_and_fingerprinted(tmp_path: Path) -> None:
    data, plain = read(target_events="purchase"), read(target_events=["view", "cart", "purchase"])
    loaded = rd.load_dataset(data.save(tmp_path / "data"))
    assert loaded.interactions.target.tolist() == data.interactions.target.tolist()
    again = read(target_events="purchase")
    assert loaded.fingerprint == data.fingerprint == again.fingerprint != plain.fingerprint


def test_leave_one_out_against_the_definition() -> None:
    data = read(target_events="purchase")
    split = rd.split.leave_one_out(data)
    valid, test = split.task("valid"), split.task("test")
    found: dict[str, dict[int, tuple[list[int], list[int]]]] = {"valid": {}, "test": {}}
    for task in (valid, test):
        for row, user in enumerate(task.users):
            found[task.name][int(user)] = (task.histories.row(row).tolist(), task.truth.row(row).tolist())
    expected: dict[str, dict[int, tuple[list[int], list[int]]]] = {"valid": {}, "test": {}}
    for user in range(data.num_users):
        items = data.interactions.row(user).tolist()
        start = data.interactions.offsets[user]
        bought = [place for place in range(len(items)) if data.interactions.target[start + place]]
        if bought and bought[-1] >= 2:
            expected["test"][user] = (items[: bought[-1]], [items[bought[-1]]])
            if len(bought) > 1 and bought[-2] >= 1:
                expected["valid"][user] = (items[: bought[-2]], [items[bought[-2]]])
    assert found == expected
    assert expected["valid"]
    assert len(expected["test"]) > len(expected["valid"])


def test_targets_everywhere_change_nothing() -> None:
    table = shop()
    plain = rd.read_interactions(table.drop("event"), time="time")
    data = read(table, target_events=["view", "cart", "purchase"])
    for make in (rd.split.leave_one_out, rd.split.global_time, rd.split.ratio):
        assert make(data).subset.tolist() == make(plain).subset.tolist()


@pytest.mark.parametrize("make", [rd.split.global_time, rd.split.ratio])
def test_other_splits_filter_the_truth(make) -> None:
    data = read(target_events="purchase")
    split = make(data)
    for name, number in (("valid", VALID), ("test", TEST)):
        mask = (split.subset == number) & data.interactions.target
        task = split.task(name)
        assert sorted(task.truth.items.tolist()) == sorted(data.interactions.items[mask].tolist())
        assert (task.truth.lengths > 0).all()
    assert (split.training_view().train.lengths.sum()) == (split.subset == TRAIN).sum()


def test_given_splits_validate_on_targets() -> None:
    table = shop()
    splits = table.select("user_id", "item_id", "time", split=pl.lit("train")).with_columns(
        split=pl.when(pl.col("time") > pl.col("time").quantile(0.8)).then(pl.lit("test")).otherwise("split")
    )
    data = read(table, target_events="purchase", splits=splits)
    split = rd.split.given(data)
    validated = split.dataset.interactions.where(split.subset == VALID)
    for user in np.flatnonzero(validated.lengths):
        rows = slice(*validated.offsets[user : user + 2])
        assert validated.target[rows].tolist() == [True] + [False] * (rows.stop - rows.start - 1)


def test_seen_truth_is_counted_by_reader_and_split() -> None:
    rows = [("a", 1, "view"), ("a", 2, "view"), ("a", 3, "view"), ("a", 1, "purchase")]
    rows += [("b", 1, "view"), ("b", 2, "view"), ("b", 3, "purchase")]
    table = pl.DataFrame(
        [(*row, time) for time, row in enumerate(rows)], schema=["user_id", "item_id", "event", "time"], orient="row"
    )
    data = read(table, target_events="purchase")
    assert data.report["target_interactions_seen"] == 1
    assert "1 of them (50%)" in data.report["notes"][-1]
    note = rd.split.leave_one_out(data).note
    assert "1 of the 2 (50%) are about an item that the user's history has already" in note
    assert "nothing can be chosen on validation data" in note


def test_a_split_without_target_in_the_test_is_refused() -> None:
    first = pl.col("time") == pl.col("time").min()
    table = shop().with_columns(event=pl.when(first).then(pl.lit("buy")).otherwise("event"))
    with pytest.raises(DataError, match="no target interaction in the test subset"):
        rd.split.global_time(read(table, target_events="buy"))


def test_filters_report_lost_targets() -> None:
    data = read(weights=WEIGHTS, target_events="purchase", duplicates="first")
    lost = shop().filter(event="purchase").height - data.num_targets
    assert lost > 0
    assert any(note.startswith(f"{lost} of ") for note in data.report["notes"])


def test_synthetic_interactions_are_no_targets() -> None:
    data = read(target_events="purchase")
    split = rd.split.leave_one_out(data)
    made = with_synthetic(split, np.zeros((data.num_users, 2), dtype=np.int64), "test", {})
    histories = made.interactions
    assert not histories.target[histories.synthetic].any()
    assert made.without_synthetic().fingerprint == data.fingerprint
    assert rd.split.leave_one_out(made).fingerprint == split.fingerprint


def test_joined_histories() -> None:
    data = read(target_events="purchase").interactions
    plain = rd.read_interactions(shop().drop("event"), time="time").interactions
    both = type(data).joined([data, plain])
    assert both.target.tolist() == [*data.target.tolist(), *[True] * len(plain.items)]


# --- times -------------------------------------------------------------------------------------------------


def dated(times: list[str], folder: Path) -> Path:
    pl.DataFrame({"user_id": 1, "item_id": range(len(times)), "when": times}).write_csv(folder / "dated.csv")
    return folder / "dated.csv"


def test_day_first(tmp_path: Path) -> None:
    path = dated(["03/04/2024 10:00", "25/12/2023 09:30"], tmp_path)
    data = rd.read_interactions(path, time="when", time_format="%d/%m/%Y %H:%M")
    assert data.interactions.times.tolist() == [1703496600, 1712138400]
    assert data.interactions.items.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("times", "says"),
    [
        (["03/04/2024 10:00", "25/12/2023 09:30"], "'%d/%m/%Y %H:%M' .*which fits all 2 values"),
        (["03/04/2024", "12/25/2023"], "'%m/%d/%Y' .*which fits all 2 values"),
        (["03/04/2024", "05/06/2024"], "2 ways, as the order of day and month is ambiguous"),
        (["03.14.2024", "14.03.2024", "15.03.2024"], "fits 2 of 3 values"),
        (["yesterday", "today"], "or ISO text"),
    ],
)
def test_the_remedy_fits_the_column(tmp_path: Path, times: list[str], says: str) -> None:
    with pytest.raises(DataError, match=r"line 2: column 'when' \(time\) is ") as caught:
        rd.read_interactions(dated(times, tmp_path), time="when")
    assert repr(times[0]) in caught.value.problem
    assert re.search(says, caught.value.remedy), caught.value.remedy


def test_every_suggestion_reads_the_column(tmp_path: Path) -> None:
    """The format in the error, passed back, is accepted."""
    columns = (
        ["1/31/2024 5:07 PM", "2/1/2024 11:00 AM"],
        ["31 Jan 2024", "1 Feb 2024"],
        ["2024/01/31T10:00:01", "2024/02/01T10:00:00"],
    )
    for times in columns:
        found = re.search(r"time_format='([^']+)'", remedy([pl.Series(times)]) or "")
        assert found, times
        data = rd.read_interactions(dated(times, tmp_path), time="when", time_format=found[1])
        assert data.interactions.items.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"time": "when", "time_format": "%m/%d/%Y"}, "is '25/12/2023'"),
        ({"time": "when", "time_format": "%Q"}, "is not a format of dates|not of the form"),
        ({"time_format": "%d/%m/%Y"}, "without a time column"),
    ],
)
def test_formats_that_do_not_fit(tmp_path: Path, options: dict, says: str) -> None:
    with pytest.raises((DataError, ConfigError), match=says):
        rd.read_interactions(dated(["03/04/2024", "25/12/2023"], tmp_path), **options)


def test_a_format_for_dates_is_refused() -> None:
    table = pl.DataFrame({"user_id": [1, 1], "item_id": [1, 2], "when": ["2024-01-01", "2024-01-02"]})
    table = table.with_columns(pl.col("when").str.to_date())
    with pytest.raises(ConfigError, match="holds Date values"):
        rd.read_interactions(table, time="when", time_format="%d/%m/%Y")


def test_dates_without_separators_are_noticed(tmp_path: Path) -> None:
    path = dated(["20240301", "20231225"], tmp_path)
    with pytest.warns(RediffuseWarning, match="all look like dates such as 20240301"):
        rd.read_interactions(path, time="when")
    data = rd.read_interactions(path, time="when", time_format="%Y%m%d")
    assert data.interactions.times.tolist() == [1703462400, 1709251200]
    as_integers = pl.read_csv(path)
    assert as_integers["when"].dtype.is_integer()
    assert rd.read_interactions(as_integers, time="when", time_format="%Y%m%d").fingerprint == data.fingerprint
