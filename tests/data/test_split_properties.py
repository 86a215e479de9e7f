"""Splits against plain loops over each user's interactions, and what must not matter to them."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rediffuse.data import split
from rediffuse.data.dataset import Dataset
from rediffuse.data.split import TEST, TRAIN, VALID, Split
from rediffuse.errors import DataError
from rediffuse.readers.interactions import read_interactions

SETTLED = settings(derandomize=True, deadline=None, max_examples=50)
# (user, item, time): every interaction has its own time, which identifies it.
tables = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), min_size=4, max_size=30).flatmap(
    lambda pairs: st.permutations(range(len(pairs))).map(
        lambda order: [(*pair, 10**9 + n) for pair, n in zip(pairs, order, strict=True)]
    )
)


def build(rows: list[tuple], **tables: Any) -> Dataset | None:
    if len({row[1] for row in rows}) < 2:
        return None
    return read_interactions(pl.DataFrame(rows, ["user_id", "item_id", "time"], orient="row"), time="time", **tables)


def subsets(made: Split) -> dict[int, int]:
    """time -> subset."""
    times = made.dataset.interactions.times
    assert times is not None
    return dict(zip(times.tolist(), made.subset.tolist(), strict=True))


def global_time(rows: list[tuple], quantile: float, valid_quantile: float) -> dict[int, int]:
    def cut(times: list[int], share: float) -> int:
        """The smallest time at or above that share of the way from the first to the last."""
        return next(t for n, t in enumerate(sorted(times)) if n >= share * (len(times) - 1) - 1e-9)

    times = [row[2] for row in rows]
    tested = cut(times, quantile)
    before = [t for t in times if t < tested]
    validated = cut(before, valid_quantile) if before else tested
    return {t: TEST if t >= tested else VALID if t >= validated else TRAIN for t in times}


@SETTLED
@given(tables, st.sampled_from([0.5, 0.75, 0.9]), st.sampled_from([0.5, 0.8]))
def test_global_time_by_hand(rows: list[tuple], quantile: float, valid_quantile: float) -> None:
    data = build(rows)
    assume(data is not None)
    assert data is not None
    expected = global_time(rows, quantile, valid_quantile)
    if {TRAIN, TEST} - set(expected.values()):
        with pytest.raises(DataError):
            split.global_time(data, quantile, valid_quantile)
        return
    assert subsets(split.global_time(data, quantile, valid_quantile)) == expected


def half_up(count: int, share: Fraction) -> int:
    """The share of a count, halves up, without the rounding of floats."""
    return int(count * share + Fraction(1, 2))


@SETTLED
@given(tables, st.sampled_from([(0.8, 0.1), (0.5, 0.25), (0.6, 0.0), (0.1, 0.1)]), st.integers(0, 3))
def test_ratio_keeps_its_shares_and_leaves_no_user_untrained(rows: list[tuple], shares: tuple, seed: int) -> None:
    data = build(rows)
    assume(data is not None)
    assert data is not None
    train, valid = shares
    lengths = data.interactions.lengths.tolist()
    tested = [min(half_up(n, 1 - Fraction(str(train)) - Fraction(str(valid))), n - 1) for n in lengths]
    validated = [min(half_up(n, Fraction(str(valid))), n - 1 - t) for n, t in zip(lengths, tested, strict=True)]
    if not any(tested):
        with pytest.raises(DataError):
            split.ratio(data, train, valid, seed)
        return
    made = split.ratio(data, train, valid, seed)
    owners = data.interactions.owners
    count = {s: np.bincount(owners[made.subset == s], minlength=data.num_users).tolist() for s in (0, 1, 2)}
    assert count[TEST] == tested
    assert count[VALID] == validated
    assert min(count[TRAIN]) >= 1
    assert subsets(split.ratio(data, train, valid, seed)) == subsets(made)


MAKERS: dict[str, Any] = {
    "global-time": lambda data: split.global_time(data, 0.7, 0.7),
    "leave-one-out": split.leave_one_out,
    "ratio": lambda data: split.ratio(data, 0.5, 0.25),
    "given": split.given,
}


def made_by(name: str, rows: list[tuple], chosen: list[str]) -> Split | None:
    """The split, or None where there is none."""
    splits = pl.DataFrame(
        [(*row, word) for row, word in zip(rows, chosen, strict=True)],
        ["user_id", "item_id", "time", "split"],
        orient="row",
    )
    data = build(rows, splits=splits)
    try:
        return None if data is None else MAKERS[name](data)
    except DataError:
        return None


@pytest.mark.parametrize("name", ["global-time", "leave-one-out", "given"])
@SETTLED
@given(tables, st.permutations(range(5)), st.permutations(range(6)), st.randoms(use_true_random=False), st.data())
def test_names_of_ids_and_order_of_rows_do_not_matter(
    name: str, rows: list[tuple], users: list[int], items: list[int], random: Any, data: st.DataObject
) -> None:
    chosen = [data.draw(st.sampled_from(["train", "train", "valid", "test"])) for _ in rows]
    made = made_by(name, rows, chosen)
    order = list(range(len(rows)))
    random.shuffle(order)
    renamed = [(f"u{users[rows[n][0]]}", f"i{items[rows[n][1]]}", rows[n][2]) for n in order]
    other = made_by(name, renamed, [chosen[n] for n in order])
    assert (made is None) == (other is None)
    if made is not None and other is not None:
        assert subsets(made) == subsets(other)
        assert made.fingerprint != other.fingerprint  # these are other data all the same


@pytest.mark.parametrize("name", MAKERS)
@SETTLED
@given(tables, st.data())
def test_tasks_and_views_by_plain_loops(name: str, rows: list[tuple], data: st.DataObject) -> None:
    made = made_by(name, rows, [data.draw(st.sampled_from(["train", "train", "valid", "test"])) for _ in rows])
    assume(made is not None)
    assert made is not None
    found, whole = subsets(made), made.dataset
    assert made.subset.dtype == np.int8
    assert sum(made.sizes().values()) == len(rows) == len(made.subset)
    by_user = {
        u: sorted((row for row in rows if row[0] == u), key=lambda row: row[2]) for u in sorted({r[0] for r in rows})
    }
    numbers = {item: n for n, item in enumerate(whole.item_ids)}

    def of(user: int, *wanted: int) -> list[int]:
        return [numbers[item] for _, item, time in by_user[user] if found[time] in wanted]

    for task, known, subset in ((made.task("valid"), (TRAIN,), VALID), (made.task("test"), (TRAIN, VALID), TEST)):
        users = [user for user in by_user if of(user, subset)]
        assert [whole.user_ids[int(number)] for number in task.users] == users
        assert [task.truth.row(n).tolist() for n in range(len(users))] == [of(user, subset) for user in users]
        assert [task.histories.row(n).tolist() for n in range(len(users))] == [of(user, *known) for user in users]
        trained = [item for user in by_user for item in of(user, TRAIN)]
        assert task.popularity.tolist() == [trained.count(number) for number in range(whole.num_items)]
    view = made.training_view()
    assert [view.train.row(n).tolist() for n in range(view.num_users)] == [of(user, TRAIN) for user in by_user]
    # Nothing of the test subset is in reach: no array of the view is a window on the dataset's.
    for ours in (view.train, view.valid.histories, view.valid.truth):
        for theirs in (whole.interactions, made.task("test").truth):
            assert not np.shares_memory(ours.items, theirs.items)
            assert ours.times is not None
            assert theirs.times is not None
            assert not np.shares_memory(ours.times, theirs.times)


@SETTLED
@given(tables, st.data())
def test_the_fingerprint_changes_with_the_subsets_and_only_with_them(rows: list[tuple], data: st.DataObject) -> None:
    words = st.lists(st.sampled_from(["train", "valid", "test"]), min_size=len(rows), max_size=len(rows))
    one, other = (made_by("given", rows, data.draw(words)) for _ in range(2))
    assume(one is not None and other is not None)
    assert one is not None
    assert other is not None
    assert (one.fingerprint == other.fingerprint) == (one.subset.tolist() == other.subset.tolist())
    flipped = one.subset.copy()
    at = data.draw(st.integers(0, len(flipped) - 1))
    flipped[at] = (flipped[at] + 1) % 3
    changed = Split(one.dataset, one.name, one.params, flipped)
    assert changed.fingerprint != one.fingerprint
    assert (
        Split(one.dataset, one.name, one.params, one.subset.copy(), leak="another sentence").fingerprint
        == one.fingerprint
    )
