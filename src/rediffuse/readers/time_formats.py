"""Times written otherwise than in ISO form: the format to pass as ``time_format``, found in a whole column."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import polars as pl

from rediffuse.errors import ConfigError

_DATES = (
    *(f"%d{mark}%m{mark}%Y" for mark in "/.-"),
    *(f"%m{mark}%d{mark}%Y" for mark in "/.-"),
    *("%Y/%m/%d", "%Y.%m.%d", "%Y-%m-%d", "%Y%m%d"),
    *("%d/%m/%y", "%d.%m.%y", "%m/%d/%y"),
    *("%d %b %Y", "%d %B %Y", "%d-%b-%Y", "%b %d, %Y", "%B %d, %Y", "%b %d %Y", "%m %d, %Y"),
)
_CLOCKS = (
    *("", " %H:%M", " %H:%M:%S", " %H:%M:%S%.f", "T%H:%M", "T%H:%M:%S", "T%H:%M:%S%.f"),
    *(" %I:%M %p", " %I:%M:%S %p", ", %H:%M", ", %H:%M:%S", " %H:%M:%S%z", "T%H:%M:%S%z"),
)
# Of Goodreads and Twitter; of mail and HTTP; of C.
_WHOLE = ("%a %b %d %H:%M:%S %z %Y", "%a, %d %b %Y %H:%M:%S %z", "%a %b %d %H:%M:%S %Y")
_SAMPLE = 1000


def parsed(text: pl.Series, form: str) -> pl.Series:
    """Datetimes in microseconds, null where the text is not of the form.

    Raises:
        ConfigError: ``form`` is not a format of dates.
    """
    try:
        if "%Y" in form and not form.startswith("%Y-"):  # polars would take 24 as the year 24
            text = pl.select(pl.when(text.str.contains(r"\d{4}")).then(text)).to_series()
        return text.str.to_datetime(form, time_unit="us", strict=False)
    except pl.exceptions.PolarsError as error:
        raise ConfigError(
            f"time_format={form!r} is not a format of dates: {str(error).splitlines()[0]}.",
            'For example: "%d/%m/%Y", or "%d/%m/%Y %H:%M" (%Y year, %m month, %d day, %H:%M:%S clock).',
        ) from None


def remedy(pieces: Iterable[pl.Series]) -> str | None:
    """What to pass as ``time_format`` for a column of text; None if no known format fits most values.

    Args:
        pieces: the values, which are read once.
    """
    counts: dict[str, int] = {}
    forms: list[str] | None = None
    total = 0
    for piece in pieces:
        text = piece.cast(pl.String).drop_nulls()
        if forms is None:
            forms = fitting(text.head(_SAMPLE))
        for form in forms:
            counts[form] = counts.get(form, 0) + _fitting(text, form)
        total += len(text)
    if not counts:
        return None
    best = max(counts.values())
    best_forms = [form for form, count in counts.items() if count == best]
    how = " or ".join(f"time_format={form!r}" for form in best_forms)
    flag = f'--time-format "{best_forms[0]}"'
    if best < total:
        return f"Pass {how} ({flag}), which fits {best:,} of {total:,} values, and fix or remove the other rows."
    if len(best_forms) > 1:
        return (
            f"All {total:,} values can be read in {len(best_forms)} ways, as the order of day and month is ambiguous: "
            f"pass {how} ({flag}), whichever is right."
        )
    return f"Pass {how} ({flag}), which fits all {total:,} values."


def fitting(sample: pl.Series) -> list[str]:
    """The known formats that fit most values of some text."""
    known = [*(date + clock for date, clock in product(_DATES, _CLOCKS)), *_WHOLE]
    fits = {form: _fitting(sample, form) for form in known}
    forms = [form for form, fit in fits.items() if 2 * fit > len(sample)]
    # Fractions that are never there need not be in the format.
    return [form for form in forms if not (form.endswith("%.f") and fits[form[:-3]] == fits[form])]


def _fitting(text: pl.Series, form: str) -> int:
    return len(text) - parsed(text, form).null_count()
