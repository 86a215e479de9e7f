"""What times are read as is always said, and can be decided."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from rediffuse.data.dataset import Dataset
from rediffuse.errors import ConfigError, DataError, RediffuseWarning
from rediffuse.readers.interactions import read_interactions


def read(times: list[Any], **options: Any) -> Dataset:
    frame = pl.DataFrame({"user_id": [1] * len(times), "item_id": range(len(times)), "when": times})
    return read_interactions(frame, time="when", **options)


def seconds(data: Dataset) -> list[float]:
    assert data.interactions.times is not None
    return np.asarray(data.interactions.times).tolist()


@pytest.mark.parametrize(
    ("unit", "size"),
    [
        ("seconds", 1),
        ("milliseconds", 1e-3),
        ("microseconds", 1e-6),
        ("nanoseconds", 1e-9),
        ("days", 86_400),
        ("hours", 3600),
        ("minutes", 60),
    ],
)
@pytest.mark.parametrize("kind", [int, float, str])
def test_units(unit: str, size: float, kind: Any) -> None:
    """Around 1970 and before, where no size tells the unit."""
    values = [-2_000_000, 0, 7_000, 5_000_000]
    data = read([kind(value) for value in values], time_unit=unit)
    assert seconds(data) == pytest.approx([value * size for value in values])
    assert any(f"read as {unit} since 1970" in note for note in data.report["notes"])


def test_units_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'milliseconds'"):
        read([1, 2], time_unit="millisecond")
    with pytest.raises(ConfigError, match="only numbers have a unit"):
        read(["2020-01-01", "2020-01-02"], time_unit="seconds")
    with pytest.raises(ConfigError, match="leave out one"):
        read(["1", "2"], time_unit="seconds", time_format="%Y")
    with pytest.raises(DataError, match="beyond 64 bits"):
        read([1, 2**55], time_unit="days")
    frame = pl.DataFrame({"user_id": [1, 1], "item_id": [1, 2]})
    with pytest.raises(ConfigError, match="time_unit='days' was given without a time column"):
        read_interactions(frame, time_unit="days")


def test_the_guess_is_always_said() -> None:
    notes = read([1_600_000_000, 1_700_000_000]).report["notes"]
    assert "Times in column 'when' were read as seconds since 1970: 2020-09-13 to 2023-11-14." in notes
    (note, *_) = read([1, 2, 500]).report["notes"]
    assert "1970-01-01 to 1970-01-01. If these are not the right dates, pass time_unit" in note
    assert "if the times are relative, order='when'" in note


@pytest.mark.parametrize(
    ("times", "form"),
    [
        ([20201231, 20210101], "%Y%m%d"),
        ([202012312359, 202101010000], "%Y%m%d%H%M"),
        ([20201231235959, 20210101000000], "%Y%m%d%H%M%S"),
    ],
)
def test_dates_without_separators(times: list[int], form: str) -> None:
    with pytest.warns(RediffuseWarning, match=f'time_format="{form}"'):
        read(times)
    assert 86_400 >= np.diff(seconds(read(times, time_format=form)))[0] > 0
    with pytest.warns(RediffuseWarning, match=f'time_format="{form}"'):
        read(list(map(str, times)))


def test_dates_that_cannot_be_warn() -> None:
    with pytest.warns(RediffuseWarning, match=r"the year|[34]\d\d\d-.*time_unit"):
        read([40_000_000_000, 60_000_000_000])  # milliseconds of 1971
    with pytest.warns(RediffuseWarning, match="time_unit"):
        read([-60_000_000_000, 1])  # milliseconds of 1968
