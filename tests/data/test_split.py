"""Splits are partitions, respect time, and keep the test subset away from training."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st

from rediffuse.data import split
from rediffuse.data.dataset import Dataset
from rediffuse.data.histories import Histories
from rediffuse.data.split import TEST, TRAIN, UNUSED, VALID, Split
from rediffuse.errors import ConfigError, DataError
from rediffuse.readers.interactions import read_interactions


def build(rows: list[tuple[int, int, int]], time: str | None = "time", **options: Any) -> Dataset:
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "time"], orient="row")
    return read_interactions(frame, time=time, **options)


def with_subsets(rows: list[tuple[int, int, int]], subsets: list[str]) -> Dataset:
    """A dataset with a given split; ``subsets`` names the subset of each row."""
    columns = {name: [row[i] for row in rows] for i, name in enumerate(("user_id", "item_id"))}
    return build(rows, splits=pl.DataFrame({**columns, "split": subsets}))


def random_data(interactions: int = 500, seed: int = 0, **options: Any) -> Dataset:
    rng = np.random.default_rng(seed)
    rows = zip(*(rng.integers(0, high, interactions).tolist() for high in (40, 30, 200)), strict=True)
    return build(list(rows), **options)


triples = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9), st.integers(0, 30)), min_size=8, max_size=80).filter(
    lambda rows: len({item for _, item, _ in rows}) > 1
)


@given(rows=triples, quantile=st.floats(0.3, 0.95))
@settings(deadline=None, max_examples=60)
def test_global_time_trains_strictly_before_the_cut(rows: list[tuple[int, int, int]], quantile: float) -> None:
    data = build(rows)
    try:
        result = split.global_time(data, quantile, valid_quantile=0.8)
    except DataError:
        reject()
    times = data.interactions.times
    assert times is not None
    newest = {subset: times[result.subset == subset].max(initial=-1) for subset in (TRAIN, VALID)}
    oldest = {subset: times[result.subset == subset].min(initial=99) for subset in (VALID, TEST)}
    assert newest[TRAIN] < oldest[VALID]
    assert max(newest.values()) < oldest[TEST]
    assert (times >= oldest[TEST]).mean() >= 1 - quantile - 1 / len(rows)
    assert result.leak is None


@given(rows=triples)
@settings(deadline=None, max_examples=40)
def test_leave_one_out_takes_the_last_two(rows: list[tuple[int, int, int]]) -> None:
    data = build(rows)
    assume(data.interactions.lengths.max() >= 3)
    result = split.leave_one_out(data)
    for user in range(data.num_users):
        subset = result.subset[data.interactions.offsets[user] : data.interactions.offsets[user + 1]].tolist()
        assert subset == ([TRAIN] * (len(subset) - 2) + [VALID, TEST] if len(subset) >= 3 else [TRAIN] * len(subset))


def test_leave_one_out_says_what_it_leaks() -> None:
    rows = [(1, 1, 1), (1, 2, 2), (1, 3, 3), (2, 1, 7), (2, 2, 8), (2, 3, 9), (2, 4, 10)]
    assert "Leave-one-out leaks the future" in (split.leave_one_out(build(rows)).leak or "")
    # Training is at 1, 7, 8; tests at 3 (two later) and 10 (none later).
    assert "33% of the training interactions are later" in (split.leave_one_out(build(rows)).leak or "")
    assert "%" not in (split.leave_one_out(build(rows, time=None)).leak or "")


def test_ratio_depends_on_its_seed() -> None:
    data = random_data()
    result = split.ratio(data, 0.6, 0.2, seed=3)
    assert (split.ratio(data, 0.6, 0.2, seed=3).subset == result.subset).all()
    assert (split.ratio(data, 0.6, 0.2, seed=4).subset != result.subset).any()


def test_tasks() -> None:
    # User 1 is in all subsets; user 2 is new in the test subset; user 3 is only trained on.
    rows = [(1, 10, 1), (1, 20, 2), (1, 30, 3), (2, 20, 9), (3, 10, 1)]
    subsets = ["train", "valid", "test", "test", "train"]
    result = split.given(with_subsets(rows, subsets))
    valid, test = result.task("valid"), result.task("test")
    assert valid.users.tolist() == [0]
    assert valid.histories.row(0).tolist() == [0]
    assert valid.truth.row(0).tolist() == [1]
    assert test.users.tolist() == [0, 1]
    assert test.users.dtype == np.int64
    assert [test.histories.row(i).tolist() for i in range(2)] == [[0, 1], []]
    assert [test.truth.row(i).tolist() for i in range(2)] == [[2], [1]]
    assert valid.popularity.tolist() == test.popularity.tolist() == [2, 0, 0]
    with pytest.raises(ConfigError, match="There is no task 'train'"):
        result.task("train")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("shortest", [1, 3])
def test_validation_histories_are_not_copied_if_all_train_events_are_in_them(shortest: int) -> None:
    rows = [(user, item, item) for user in range(9) for item in range(shortest + user)]
    result = split.leave_one_out(build(rows))
    view, task = result.training_view(), result.task("valid")
    assert np.shares_memory(view.valid.histories.items, view.train.items) == (shortest == 3)
    for found, expected in ((view.valid.histories, task.histories), (view.valid.truth, task.truth)):
        assert found.items.tolist() == expected.items.tolist()
        assert found.offsets.tolist() == expected.offsets.tolist()
        assert found.times is not None
        assert expected.times is not None
        assert found.times.tolist() == expected.times.tolist()
    assert view.valid.users.tolist() == task.users.tolist()


def test_training_view_cannot_reach_the_test_subset() -> None:
    data = random_data()
    result = split.leave_one_out(data)
    view = result.training_view()
    forbidden = {id(x) for x in (data, result, result.subset, data.interactions, data.interactions.items)}
    seen: set[int] = set()
    todo: list[Any] = [view]
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, (type, type(gc))):
            continue
        seen.add(id(thing))
        assert id(thing) not in forbidden
        if isinstance(thing, np.ndarray):
            assert not np.shares_memory(thing, data.interactions.items)
            todo.append(thing.base)
        elif not callable(thing):
            todo += gc.get_referents(thing)
    test = result.subset == TEST
    assert len(view.train.items) + len(view.valid.truth.items) + int(test.sum()) == data.num_interactions


def test_training_does_not_depend_on_what_is_tested() -> None:
    """Changing the item of a test interaction changes nothing that training sees."""
    rows = [(u, (u * 7 + t) % 11, t) for u in range(6) for t in range(5)]
    changed = [(u, i if t < 4 else (i + 1) % 11, t) for u, i, t in rows]
    one, two = (split.leave_one_out(build(r)).training_view() for r in (rows, changed))
    assert one.train.items.tolist() == two.train.items.tolist()
    assert one.valid.truth.items.tolist() == two.valid.truth.items.tolist()
    assert one.valid.popularity.tolist() == two.valid.popularity.tolist()


def test_given_without_validation() -> None:
    rows = [(1, 1, 1), (1, 2, 2), (1, 3, 3), (2, 1, 1), (2, 2, 2)]
    subsets = ["train", "train", "test", "train", "test"]
    data = with_subsets(rows, subsets)
    result = split.given(data)
    assert result.subset.tolist() == [TRAIN, VALID, TEST, TRAIN, TEST]
    assert "has no validation subset" in (result.note or "")
    assert data.given["given"].tolist() == [TRAIN, TRAIN, TEST, TRAIN, TEST], "the dataset itself stays as it is"


def test_given_without_validation_and_order_draws_evenly() -> None:
    """Rows of users are often in the order of items, where the last one is the item with the largest number."""
    users, length = 2000, 5
    rows = Histories(np.arange(users + 1) * length, np.tile(np.arange(length, dtype=np.int32), users))
    subset = np.tile(np.array([TRAIN, TRAIN, TRAIN, TRAIN, TEST], dtype=np.int8), users)
    ids = (pl.Series(range(users)), pl.Series(range(length)))
    result = split.given(Dataset(rows, *ids, given={"given": subset}))
    assert "a random training interaction" in (result.note or "")
    chosen = rows.items[result.subset == VALID]
    assert len(chosen) == users
    assert (np.abs(np.bincount(chosen, minlength=5)[:4] - users / 4) < 4 * np.sqrt(users * 3 / 16)).all()
    assert (split.given(Dataset(rows, *ids, given={"given": subset})).subset == result.subset).all()


def test_given_schemes() -> None:
    data = random_data()
    subsets = {name: split.ratio(data, seed=i).subset for i, name in enumerate(("two", "one"))}
    several = Dataset(data.interactions, data.user_ids, data.item_ids, given=subsets)
    with pytest.raises(ConfigError, match="one, two"):
        split.given(several)
    with pytest.raises(ConfigError, match="Did you mean 'two'"):
        split.given(several, "tow")
    assert (split.given(several, "two").subset == subsets["two"]).all()
    assert split.default(several).params == {"scheme": "one"}


def test_default_follows_the_data() -> None:
    timed, untimed = random_data(), random_data(time=None)
    subset = {"given": split.ratio(untimed).subset}
    given_ = Dataset(untimed.interactions, untimed.user_ids, untimed.item_ids, given=subset)
    assert [split.default(d).name for d in (timed, given_, untimed)] == ["global-time", "given", "ratio"]


@pytest.mark.parametrize("options", [{"time": None}, {"time": None, "order": "time"}])
def test_global_time_needs_timestamps(options: dict) -> None:
    with pytest.raises(DataError, match=r"(?s)needs timestamps.*time=.*split\.leave_one_out"):
        split.global_time(random_data(**options))


def test_splits_that_leave_a_subset_empty() -> None:
    same = build([(u, i, 5) for u in range(4) for i in range(4)])
    with pytest.raises(DataError, match=r"(?s)global-time split leaves the train subset empty.*quantiles"):
        split.global_time(same)
    short = build([(u, i, i) for u in range(4) for i in range(2)])
    with pytest.raises(DataError, match=r"(?s)leave-one-out split leaves the test subset empty.*three interactions"):
        split.leave_one_out(short)
    with pytest.raises(DataError, match="ratio split leaves the test subset empty"):
        split.ratio(short)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: split.global_time(d, quantile=1.5), "quantile was given 1.5"),
        (lambda d: split.ratio(d, train=0.9, valid=0.1), "leave 0.0 for the test subset"),
        (lambda d: split.given(d), "came without a split"),
        (lambda d: split.by_name("leave-one", d), "Did you mean 'leave-one-out'"),
        (lambda d: split.by_name("global-time", d, quantil=0.5), "Did you mean 'quantile'"),
        (lambda d: split.by_name("leave-one-out", d, seed=1), "It has no parameters"),
    ],
)
def test_bad_options(call: Any, message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        call(random_data())


@pytest.mark.parametrize("name", ["leave-one-out", "leave_one_out", "global-time", "global_time", "ratio", "default"])
def test_by_name_and_params_give_the_same_split_again(name: str) -> None:
    data = random_data()
    result = split.by_name(name, data)
    again = split.by_name(result.name, data, **result.params)
    assert again.fingerprint == result.fingerprint


def test_fingerprint() -> None:
    data = random_data()
    base = split.ratio(data, seed=0)
    assert base.fingerprint == split.ratio(random_data(), seed=0).fingerprint
    assert base.fingerprint != split.ratio(data, seed=1).fingerprint
    assert base.fingerprint != split.ratio(random_data(seed=1), seed=0).fingerprint
    assert base.fingerprint != Split(data, "given", {}, base.subset).fingerprint


def test_unused_interactions_are_in_no_task() -> None:
    data = random_data()
    subset = split.leave_one_out(data).subset.copy()
    subset[subset == VALID] = UNUSED
    result = Split(data, "given", {}, subset)
    assert result.sizes()["unused"] == int((subset == UNUSED).sum())
    assert len(result.training_view().valid.users) == 0
    assert len(result.task("test").histories.items) == sum(
        int((subset[data.interactions.owners == user] == TRAIN).sum()) for user in result.task("test").users
    )
