"""Flat histories against lists of lists."""

from __future__ import annotations

from unittest import mock

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rediffuse.data import histories as module
from rediffuse.data.histories import Histories

rows = st.lists(st.lists(st.integers(0, 99), max_size=6), min_size=1, max_size=8)


def lists(histories: Histories) -> list[list[int]]:
    return [histories.row(user).tolist() for user in range(len(histories))]


@given(rows, st.integers(0, 7), st.data())
def test_rows(content: list[list[int]], length: int, data: st.DataObject) -> None:
    histories = Histories.from_lists(content)
    assert lists(histories) == content
    assert histories.lengths.tolist() == [len(row) for row in content]
    assert histories.owners.tolist() == [user for user, row in enumerate(content) for _ in row]
    assert lists(histories.tail(length)) == [row[max(len(row) - length, 0) :] for row in content]
    users = data.draw(st.lists(st.integers(0, len(content) - 1), max_size=6))
    assert lists(histories.take(np.asarray(users, dtype=np.int64))) == [content[user] for user in users]
    assert lists(histories.where(histories.items % 2 == 0)) == [[i for i in row if i % 2 == 0] for row in content]


@given(rows, st.integers(1, 9))
def test_blocks(content: list[list[int]], size: int) -> None:
    histories = Histories.from_lists(content)
    with mock.patch.object(module, "BLOCK", size):
        found = list(histories.blocks())
    assert [first for first, _ in found] == np.cumsum([0, *(len(piece) for _, piece in found)])[:-1].tolist()
    assert [row for _, piece in found for row in lists(piece)] == content
    for _, piece in found:
        assert len(piece.items) <= size or len(piece) == 1
        assert not len(piece.items) or np.shares_memory(piece.items, histories.items)


def test_rows_are_shared_where_nothing_is_left_out() -> None:
    histories = Histories.from_lists([[1, 2], [], [3]])
    assert histories.take(np.array([0, 2])).items is histories.items
    assert lists(histories.take(np.array([0, 2]))) == [[1, 2], [3]]
    assert lists(histories.take(np.array([2, 0]))) == [[3], [1, 2]]
    assert lists(histories.take(np.array([0, 0, 2]))) == [[1, 2], [1, 2], [3]]
    assert lists(Histories.from_lists([[1], [2], [3]]).take(np.array([1, 1, 1]))) == [[2]] * 3


def test_times_and_ratings_travel_along() -> None:
    histories = Histories(
        np.array([0, 2, 3]),
        np.array([5, 6, 7], dtype=np.int32),
        np.array([10, 20, 30]),
        np.array([1, 2, 3], dtype=np.float32),
    )
    for piece in (histories.take(np.array([1, 0])), histories.where(np.array([False, True, True]))):
        assert piece.times is not None
        assert piece.ratings is not None
        assert (
            dict(zip(piece.items.tolist(), piece.times.tolist(), strict=True)).items() <= {5: 10, 6: 20, 7: 30}.items()
        )
        assert piece.ratings.tolist() == [(t // 10) for t in piece.times.tolist()]
