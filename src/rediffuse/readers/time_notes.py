"""What is said about times: as what they were read, and why that may be wrong."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rediffuse.readers.columns import Times
from rediffuse.readers.report import ReadReport

# Outside these years a unit is probably wrong, or the times are relative.
_USUAL = (1990, 2100)
# Digits of a date without separators -> its format.
_COMPACT = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
_UNITS = 'time_unit="milliseconds" or the like (--time-unit)'


def note_times(times: Times, column: str, guessed: bool, report: ReadReport) -> None:
    """Say as what a column was read and which dates result; warn if these cannot be right.

    Args:
        times: the parsed column.
        column: its name.
        guessed: neither format nor unit was given.
        report: the sentences are entered here.
    """
    first, last = float(times.seconds.min()), float(times.seconds.max())
    numbers = times.unit in ("seconds", "milliseconds", "microseconds", "nanoseconds", "minutes", "hours", "days")
    since = " since 1970" if numbers else ""
    sentence = f"Times in column {column!r} were read as {times.unit}{since}: {_date(first)} to {_date(last)}"
    if not guessed or not numbers:
        report.note(f"{sentence}.")
        return
    form = compact_form(times.key)
    if form is not None:
        report.warn(
            f"{sentence}, but all look like dates such as {int(times.key[0])}. If they are, pass "
            f'time_format="{form}" (--time-format "{form}").'
        )
    elif _year(last) >= _USUAL[1] or _year(first) < 1900:
        report.warn(f"{sentence}. If these are not the right dates, pass {_UNITS}, or order={column!r}.")
    elif _year(first) < _USUAL[0]:
        report.note(
            f"{sentence}. If these are not the right dates, pass {_UNITS}; if the times are relative, order={column!r}."
        )
    else:
        report.note(f"{sentence}.")


def compact_form(key: NDArray[Any]) -> str | None:
    """The format if all numbers could be dates of 1900 to 2100 without separators, such as 20240301; else None."""
    if key.dtype.kind != "i" or key.min() <= 0:
        return None
    digits = len(str(int(key.min())))
    form = _COMPACT.get(digits)
    if form is None or len(str(int(key.max()))) != digits:
        return None
    day = key // 10 ** (digits - 8)
    fits = (day >= 1900_01_01) & (day <= 2100_12_31)
    fits &= (day // 100 % 100 >= 1) & (day // 100 % 100 <= 12) & (day % 100 >= 1) & (day % 100 <= 31)
    clock = key % 10 ** (digits - 8)
    for place, limit in zip(range(digits - 10, -1, -2), (24, 60, 60), strict=False):
        fits &= clock // 10**place % 100 < limit
    return form if bool(np.all(fits)) else None


def _year(seconds: float) -> float:
    return 1970 + seconds / (365.2425 * 86_400)


def _date(seconds: float) -> str:
    try:
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d")
    except (OverflowError, ValueError, OSError):
        return f"the year {_year(seconds):.0f}"
