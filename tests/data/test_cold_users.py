"""What a split says about users without a history, against plain loops."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from rediffuse.data import split
from rediffuse.data.cold_users import remark, share, without_history
from rediffuse.data.histories import Histories
from rediffuse.data.split import TEST, TRAIN, VALID
from rediffuse.data.subsets import Task
from rediffuse.readers.interactions import read_interactions


def build(seed: int, users: int = 30):
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, 1000, users)
    rows = [
        (user, int(rng.integers(0, 12)), int(starts[user] + rng.integers(0, 400)))
        for user in range(users)
        for _ in range(rng.integers(1, 9))
    ]
    frame = pl.DataFrame(rows, ["user_id", "item_id", "time"], orient="row")
    return read_interactions(frame, time="time")


@pytest.mark.parametrize("seed", range(6))
def test_counts_by_hand(seed):
    made = split.global_time(build(seed))
    offsets = made.dataset.interactions.offsets
    for name, subset, earlier in (("valid", VALID, {TRAIN}), ("test", TEST, {TRAIN, VALID})):
        rows = [made.subset[offsets[u] : offsets[u + 1]].tolist() for u in range(made.dataset.num_users)]
        held_out = [row for row in rows if subset in row]
        without = [row for row in held_out if not earlier & set(row)]
        assert without_history(made, name) == (len(without), len(held_out))
        assert int((~made.task(name).has_history).sum()) == len(without)
    assert "Without a history" in (made.note or "")
    (count, total) = without_history(made, "test")
    assert f"{count:,} of {total:,} test users ({share(count, total)})" in (made.note or "")


def test_nothing_is_said_where_all_have_a_history():
    assert split.leave_one_out(build(0)).note is None
    assert remark(split.ratio(build(0))) is None


def test_sessions_split_by_time_are_named_with_the_splits_that_suit_them():
    rows = [(s, (s + i) % 9, 100 * s + i) for s in range(40) for i in range(4)]
    frame = pl.DataFrame(rows, ["user_id", "item_id", "time"], orient="row")
    made = split.global_time(read_interactions(frame, time="time"), 0.75, 0.8)
    note = made.note or ""
    assert "validation users (100 %)" in note
    assert "Nothing can be chosen" in note
    assert "--split sessions" in note


@pytest.mark.parametrize(
    ("count", "total", "text"),
    [
        (0, 0, "0 %"),
        (0, 9, "0 %"),
        (9, 9, "100 %"),
        (61, 100, "61 %"),
        (2, 3, "67 %"),
        (1, 1000, "0.1 %"),
        (1, 10**6, "0.1 %"),
        (999, 1000, "99.9 %"),
        (10**6 - 1, 10**6, "99.9 %"),
    ],
)
def test_shares_never_round_to_all_or_nothing(count, total, text):
    assert share(count, total) == text


def test_a_task_keeps_the_rows_with_a_history():
    rows = Histories.from_lists([[1], [], [2, 3]])
    task = Task(
        "valid", np.array([4, 5, 6]), rows, Histories.from_lists([[7], [8], [9]]), np.zeros(10, dtype=int), rows
    )
    kept = task.with_history()
    assert kept.users.tolist() == [4, 6]
    assert [kept.truth.row(i).tolist() for i in range(2)] == [[7], [9]]
    assert kept.seen is not None
    assert kept.seen.offsets.tolist() == kept.histories.offsets.tolist() == [0, 1, 3]
    assert kept.with_history() is kept
