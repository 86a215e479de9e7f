"""Columns of ids are read as lists of the same ids are."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rediffuse.recommender.id_map import IdMap, as_text, cast_id, cast_ids, flatten_histories, user_labels

RUN_IDS = {pl.Int64: pl.Series([50, -3, 0, 7, 2**63 - 1]), pl.String: pl.Series(["50", "-3", "a", "", "007", "é"])}
texts = st.sampled_from(
    [
        *("50", "-3", "-0", "0", "7", "007", "+7", " 7", "7\n", "7.0", "a", "", "é", "٧"),
        *("9223372036854775807", "9223372036854775808", "9999999999999999999"),
    ]
)
whole_numbers = st.one_of(st.sampled_from([50, -3, 0, 7, 2**63 - 1, -(2**63)]), st.integers(-(2**63), 2**63 - 1))


@pytest.mark.parametrize("kind", [pl.Int64, pl.String])
@pytest.mark.parametrize("column", [pl.Int64, pl.String, pl.Float64, pl.Boolean, pl.UInt64])
@given(data=st.data())
def test_columns_are_read_as_lists_are(kind, column, data):
    values = {
        pl.Int64: whole_numbers,
        pl.String: texts,
        pl.Float64: st.sampled_from([50.0, -3.0, 7.5, float("nan"), 1e300]),
        pl.Boolean: st.booleans(),
        pl.UInt64: st.sampled_from([0, 7, 50, 2**63, 2**64 - 1]),
    }[column]
    given = data.draw(st.lists(st.one_of(st.none(), values), max_size=6))
    series, ids = pl.Series(given, dtype=column), RUN_IDS[kind]
    one_by_one = [cast_id(value, ids.dtype) for value in given]
    fitting = [None if isinstance(one, int) and not -(2**63) <= one < 2**63 else one for one in one_by_one]
    assert cast_ids(series, ids.dtype).to_list() == cast_ids(given, ids.dtype).to_list() == fitting
    id_map = IdMap(ids)
    numbers = [ids.to_list().index(one) if one is not None and one in ids.to_list() else -1 for one in one_by_one]
    assert id_map.find(series).tolist() == id_map.find(given).tolist() == numbers
    assert user_labels(series, ids.dtype).equals(user_labels(given, ids.dtype))
    if column != pl.Float64 and column != pl.Boolean:
        assert as_text(series).to_list() == [None if one is None else str(one) for one in given]


@pytest.mark.parametrize("kind", [pl.Int64, pl.String])
def test_columns_of_histories_are_read_as_lists_are(kind):
    rows = [[1, 2], [], [3], [None, 4], []]
    lengths, items = flatten_histories(pl.Series([*rows, None], dtype=pl.List(kind), strict=False))
    assert lengths.tolist() == [2, 0, 1, 2, 0, 0]
    assert items.cast(pl.Int64).to_list() == [1, 2, 3, None, 4]
    lengths, items = flatten_histories(rows)
    assert (lengths.tolist(), items) == ([2, 0, 1, 2, 0], [1, 2, 3, None, 4])
    lengths, items = flatten_histories(pl.Series([[], []], dtype=pl.List(kind)))
    assert (lengths.tolist(), len(items), items.dtype) == ([0, 0], 0, kind)
