"""Feature vectors from tables: columns of vectors, sets as zeros and ones, and what is refused."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from rediffuse.data.features import MOST_VALUES, feature_vectors
from rediffuse.errors import DataError


def test_a_column_of_vectors():
    table = pl.DataFrame({"item_id": [1, 2, 3], "vector": [[1.0, 2.0], None, [3.0, -1.0]], "genres": ["a", "b", "c"]})
    assert feature_vectors(table).tolist() == [[1, 2], [0, 0], [3, -1]]
    array = table.with_columns(pl.Series("vector", [[1, 2], [0, 0], [3, -1]], dtype=pl.Array(pl.Int64, 2)))
    assert feature_vectors(array).tolist() == [[1, 2], [0, 0], [3, -1]]


def test_sets_are_zeros_and_ones():
    table = pl.DataFrame({"item_id": [1, 2, 3], "genres": ["b", "a|b", None]})
    assert feature_vectors(table).tolist() == [[1, 0], [1, 1], [0, 0]]  # the commonest value first


def test_no_more_than_the_commonest_values():
    many = [[f"v{value}" for value in range(row, MOST_VALUES + 50)] for row in range(3)]
    found = feature_vectors(pl.DataFrame({"tags": many}))
    assert found.shape == (3, MOST_VALUES)
    assert found[0].all()


@pytest.mark.parametrize("table", [None, pl.DataFrame({"title": ["a", "b"]}), pl.DataFrame({"genres": [None, None]})])
def test_nothing_to_tell(table):
    assert feature_vectors(table) is None


def test_vectors_that_are_none():
    with pytest.raises(DataError, match="vectors of 1, 2 values"):
        feature_vectors(pl.DataFrame({"vector": [[1.0], [1.0, 2.0]]}))
    with pytest.raises(DataError, match="row 1 holds values that are not finite"):
        feature_vectors(pl.DataFrame({"vector": [[1.0, 2.0], [np.nan, 2.0]]}))
    with pytest.raises(DataError, match="Column 'embedding' of the user table"):
        feature_vectors(pl.DataFrame({"user_id": [1, 2], "embedding": [[1.0], [1.0, 2.0]]}))


def test_columns_of_the_name_that_are_no_vectors_are_passed_over():
    table = pl.DataFrame({"features": ["a", "b"], "embedding": [[1.0], [2.0]]})
    assert feature_vectors(table).tolist() == [[1], [2]]
    table = pl.DataFrame({"features": [["a"], ["b", "c"]], "genres": ["x", "x|y"]})
    assert feature_vectors(table).tolist() == [[1, 0], [1, 1]]
    assert feature_vectors(pl.DataFrame({"vector": [[1.0], []]})).tolist() == [[1], [0]]
    assert feature_vectors(pl.DataFrame({"vector": pl.Series([None, None], dtype=pl.List(pl.Float64))})) is None
