"""Splits whose targets are predicted one after the other, against plain loops."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rediffuse.data import split
from rediffuse.data.cold_users import without_history
from rediffuse.data.dataset import Dataset
from rediffuse.data.split import TEST, TRAIN, VALID, Split
from rediffuse.data.synthetic import with_synthetic
from rediffuse.errors import ConfigError, DataError
from rediffuse.readers.interactions import read_interactions

SETTLED = settings(derandomize=True, deadline=None, max_examples=60)
# (user, item, time); times repeat, so some interactions are tied.
tables = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 6), st.integers(0, 40)), min_size=6, max_size=50).filter(
    lambda rows: len({item for _, item, _ in rows}) > 1
)


def build(rows: list[tuple], **options: Any) -> Dataset:
    columns = ["user_id", "item_id", "time", "kind"][: len(rows[0])]
    return read_interactions(pl.DataFrame(rows, columns, orient="row"), time="time", **options)


def of_users(data: Dataset, values: np.ndarray) -> list[list]:
    offsets = data.interactions.offsets
    return [values[offsets[u] : offsets[u + 1]].tolist() for u in range(data.num_users)]


def expected(made: Split, name: str, targets: str) -> list[tuple[int, list[int], list[int]]]:
    """(user, history, truth) of every row, by a loop over the interactions of each user."""
    data, wanted = made.dataset, {"valid": VALID, "test": TEST}[name]
    earlier = {"valid": {TRAIN}, "test": {TRAIN, VALID}}[name]
    target = data.interactions.target
    target = np.ones(data.num_interactions, dtype=bool) if target is None else target
    found = []
    for user, (items, subsets, wished) in enumerate(
        zip(
            of_users(data, data.interactions.items),
            of_users(data, made.subset),
            of_users(data, target),
            strict=True,
        )
    ):
        rows = []
        for n, item in enumerate(items):
            if subsets[n] != wanted or not wished[n] or (targets == "later" and n == 0):
                continue
            history = [items[m] for m in range(n) if subsets[m] in earlier | {wanted}]
            rows.append((user, history, [item]))
        if targets == "all" and rows:
            history = [item for item, subset in zip(items, subsets, strict=True) if subset in earlier]
            rows = [(user, history, [item for *_, (item,) in rows])]
        found += rows[:1] if targets == "next" else rows
    return found


def rows_of(made: Split, name: Any) -> list[tuple[int, list[int], list[int]]]:
    task = made.task(name)
    return [
        (int(user), task.histories.row(n).tolist(), task.truth.row(n).tolist()) for n, user in enumerate(task.users)
    ]


def made_or_none(make: Any) -> Split:
    try:
        return make()
    except DataError:
        assume(False)
        raise


@pytest.mark.parametrize("targets", ["all", "next", "successive"])
@SETTLED
@given(rows=tables, quantiles=st.tuples(st.floats(0.3, 0.9), st.floats(0.3, 0.9)))
def test_global_time_by_a_loop(targets, rows, quantiles):
    data = build(rows)
    made = made_or_none(lambda: split.global_time(data, *quantiles, targets=targets))
    plain = split.global_time(data, *quantiles)
    assert made.subset.tolist() == plain.subset.tolist()
    for name in ("valid", "test"):
        assert rows_of(made, name) == expected(made, name, targets)
        found = expected(made, name, targets)
        assert without_history(made, name) == (sum(not history for _, history, _ in found), len(found))
        task = made.task(name)
        assert task.popularity.tolist() == plain.task(name).popularity.tolist()
        for ours, theirs in ((task.histories, task.truth), (task.truth, task.histories)):
            assert ours.times is not None
            assert len(ours.times) == len(ours.items)
            assert not np.shares_memory(ours.items, theirs.items)
    view = made.training_view()
    assert view.train.items.tolist() == plain.training_view().train.items.tolist()
    assert [view.valid.truth.row(n).tolist() for n in range(len(view.valid.users))] == [
        truth for _, _, truth in expected(made, "valid", targets)
    ]


@SETTLED
@given(rows=tables, quantile=st.sampled_from([0.5, 0.75]))
def test_next_is_the_first_of_all_and_of_successive(rows, quantile):
    data = build(rows)
    following, together, one_by_one = (
        made_or_none(lambda t=t: split.global_time(data, quantile, 0.6, targets=t))
        for t in ("next", "all", "successive")
    )
    for name in ("valid", "test"):
        users = [user for user, *_ in rows_of(together, name)]
        assert rows_of(following, name) == [(u, history, truth[:1]) for u, history, truth in rows_of(together, name)]
        first = {user: row for user, *row in reversed(rows_of(one_by_one, name))}
        assert rows_of(following, name) == [(user, *first[user]) for user in users]
        assert sum(len(truth) for *_, truth in rows_of(together, name)) == len(rows_of(one_by_one, name))
    assert len({made.fingerprint for made in (following, together, one_by_one)}) == 3


@SETTLED
@given(rows=tables, quantiles=st.tuples(st.floats(0.2, 0.9), st.floats(0.2, 0.9)))
def test_sessions_by_a_loop(rows, quantiles):
    data = build(rows)
    made = made_or_none(lambda: split.sessions(data, *quantiles))
    assert data.interactions.times is not None
    ends = [max(times) for times in of_users(data, data.interactions.times)]

    def cut(values: list[int], share: float) -> int:
        return next(v for n, v in enumerate(sorted(values)) if n >= share * (len(values) - 1) - 1e-9)

    tested = cut(ends, quantiles[0])
    before = [end for end in ends if end < tested]
    validated = cut(before, quantiles[1])
    for end, subsets in zip(ends, of_users(data, made.subset), strict=True):
        assert set(subsets) == {TEST if end >= tested else VALID if end >= validated else TRAIN}
    for name in ("valid", "test"):
        assert rows_of(made, name) == expected(made, name, "later")
        assert all(history for _, history, _ in rows_of(made, name))
        assert without_history(made, name)[0] == 0
    trained = [time for time, subset in zip(data.interactions.times, made.subset, strict=True) if subset == TRAIN]
    assert max(trained) < tested


def test_params_make_the_same_split_again():
    rng = np.random.default_rng(0)
    data = build([(int(rng.integers(12)), int(rng.integers(9)), n) for n in range(200)])
    for made in (
        split.global_time(data, targets="next"),
        split.global_time(data, 0.7, targets="successive"),
        split.sessions(data, 0.5, 0.6),
    ):
        again = split.by_name(made.name, data, **made.params)
        assert again.fingerprint == made.fingerprint
        assert again.targets == made.targets
    # The usual split is what it was: neither its options nor its fingerprint know of targets.
    usual = split.global_time(data)
    assert usual.params == {"quantile": 0.9, "valid_quantile": 0.9}
    assert usual.fingerprint == dataclasses.replace(usual, targets="all").fingerprint
    assert "successive" in repr(split.global_time(data, targets="successive"))


def test_target_events_alone_are_predicted_and_all_others_are_history():
    rows = [(u, (u + n) % 7, 10 * n + u, "buy" if n % 2 else "view") for u in range(8) for n in range(10)]
    data = build(rows, event_type="kind", weights={"view": 1, "buy": 1}, target_events="buy")
    for targets in ("all", "next", "successive"):
        made = split.global_time(data, 0.6, 0.7, targets=targets)
        for name in ("valid", "test"):
            assert rows_of(made, name) == expected(made, name, targets)
    made = split.sessions(data, 0.6, 0.7)
    assert rows_of(made, "test") == expected(made, "test", "later")


def test_synthetic_interactions_come_first_and_are_not_seen():
    rows = [(u, (u + n) % 7, 10 * n + u) for u in range(8) for n in range(10)]
    made = split.global_time(build(rows), 0.6, 0.7, targets="successive")
    synthetic = np.full((8, 2), 3)
    data = with_synthetic(made, synthetic, "random", {})
    again = split.global_time(data, 0.6, 0.7, targets="successive")
    assert again.fingerprint == made.fingerprint
    for name in ("valid", "test"):
        task, plain = again.task(name), made.task(name)
        assert task.seen is not None
        assert [task.seen.row(n).tolist() for n in range(len(task.users))] == [h for _, h, _ in rows_of(made, name)]
        assert [task.histories.row(n).tolist() for n in range(len(task.users))] == [
            [3, 3, *history] for _, history, _ in rows_of(made, name)
        ]
        assert task.popularity.tolist() == plain.popularity.tolist()


def test_the_first_own_interaction_of_a_held_out_session_is_no_target():
    rows = [(s, (s + n) % 9, 100 * s + n) for s in range(20) for n in range(4)]
    made = split.sessions(build(rows), 0.7, 0.7)
    again = split.sessions(with_synthetic(made, np.full((20, 2), 3), "random", {}), 0.7, 0.7)
    for name in ("valid", "test"):
        assert rows_of(again, name) == [(user, [3, 3, *history], truth) for user, history, truth in rows_of(made, name)]
        assert again.task(name).has_history.all()
        assert without_history(again, name) == without_history(made, name)


def test_what_the_sessions_split_says():
    rows = [(s, (s + n) % 9, 100 * s + n) for s in range(20) for n in range(1 if s in (17, 19) else 3)]
    made = split.sessions(build(rows), 0.8, 0.75)
    assert made.leak is None
    assert "0 validation and 2 test sessions have a single interaction" in (made.note or "")
    late = [*rows, (50, 1, 5), (50, 3, 6), (50, 2, 10_000)]  # a session that began before nearly all others
    assert "some that are tested began before" in (split.sessions(build(late), 0.8, 0.75).leak or "")


def test_what_cannot_be_split_is_refused():
    rows = [(u, u % 3, 5) for u in range(6)]
    data = build([*rows, (1, 2, 9)])
    with pytest.raises(ConfigError, match="Did you mean 'successive'"):
        split.global_time(data, targets="succesive")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="targets was given 7"):
        split.global_time(data, targets=7)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="quantile was given 2"):
        split.sessions(data, 2)
    with pytest.raises(DataError, match="sessions split leaves the train subset empty"):
        split.sessions(build(rows))
    alone = build([(u, u % 3, u) for u in range(9)])
    with pytest.raises(DataError, match=r"(?s)sessions split leaves nothing to predict.*two interactions"):
        split.sessions(alone)
    with pytest.raises(DataError, match="A sessions split needs timestamps"):
        split.sessions(read_interactions(pl.DataFrame(rows, ["user_id", "item_id", "n"], orient="row")))
