"""Columns of the interactions that no argument names, and that hold what decides: times, feedback, lists of items."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rediffuse.readers import time_formats
from rediffuse.readers.columns import ISO_FORMS, parse_numbers
from rediffuse.readers.item_lists import is_bracketed
from rediffuse.readers.report import ReadReport
from rediffuse.readers.tables import Table, read_table
from rediffuse.readers.text_files import DATE

if TYPE_CHECKING:
    from rediffuse.readers.rows import Columns

# Rows that are looked at.
_SAMPLE = 100_000
# In order of preference: what names of time columns hold, in lower case.
_TIMES = (
    r"time_?stamp",
    r"^(unix)?_?(review|event|rating)?_?time$",
    r"time|date|created|epoch",
    r"^ts$|_ts$|_at$|^when$|^day$|t_dat",
)
_NO_TIMES = r"spent|runtime|duration|birth|update_count|times$|timezone|time_zone"
_FEEDBACK = re.compile(
    r"(?i)^(label|labels|click|clicks|clicked|is_?click(ed)?|like|likes|liked|is_?liked?|dislike|feedback|target|"
    r"is_?positive|positive|rating|vote|thumbs?(_?up)?|reaction|long_?view|recommend(ed)?|purchased?|is_?purchased?|bought|conver(ted|sion)|interacted|relevance|y)$"
)
# What such columns hold, in lower case.
_ZEROS = ("0", "0.0", "-0.0")
_YES = ("true", "t", "yes", "y", "like", "liked", "positive", "pos", "up", "upvote", "good")
_NO = ("false", "f", "no", "n", "dislike", "disliked", "negative", "neg", "down", "downvote", "bad")
_LISTS = re.compile(r"(?i)hist|_list$|_seq$|sequence")
# Names of numbers that are no times, though they may be as large.
_NO_NUMBERS = re.compile(r"(?i)id$|^id|key$|code|phone|isbn|ean$|price|amount|hash|views?$|count")
# Numbers of seconds from 1990 to 2100; and from 1995 to 2040, where no name says that they are times.
_SECONDS = (6.3e8, 4.2e9)
_RECENT = (7.9e8, 2.21e9)


def note_unused(table: Table, columns: Columns, filtered: bool, report: ReadReport) -> None:
    """Warn about columns that look like a time, like feedback of which some is negative, or like lists of items.

    Args:
        table: the interactions as they were opened.
        columns: those that are used.
        filtered: a threshold for ratings was given.
        report: the sentences are entered here.
    """
    used = set(columns.by_role().values())
    schema = dict(table.frame.collect_schema())
    table = _first_file(table, columns.user)
    unused = [name for name in table.columns if name not in used and name in schema]
    if columns.time is None and columns.order is None:
        _note_time(table, columns.user, {name: schema[name] for name in unused}, report)
    for name in unused:
        if _FEEDBACK.match(name) and not schema[name].is_nested():
            _note_feedback(table, name, report)
        elif isinstance(schema[name], (pl.List, pl.Array)) or _LISTS.search(name):
            _note_list(table, name, report)
    if columns.rating is not None and not filtered and _FEEDBACK.match(columns.rating):
        _note_feedback(table, columns.rating, report, rating=True)


def _first_file(table: Table, user: str) -> Table:
    """The table, or the first of its Parquet files: the others need not have columns that are not used."""
    if table.is_text or len(table.files) < 2:
        return table
    return read_table(str(table.paths[0]), "interactions", wanted=(user,))


def _may_be_time(name: str, dtype: Any) -> bool:
    if dtype in (pl.Date, pl.Datetime):
        return True
    low = _snake(name)
    named = any(re.search(pattern, low) for pattern in _TIMES) and not re.search(_NO_TIMES, low)
    return named and (dtype == pl.String or dtype.is_integer() or dtype.is_float())


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().replace(" ", "_")


def _rank(name: str) -> int:
    low = _snake(name)
    return next((place for place, pattern in enumerate(_TIMES) if re.search(pattern, low)), len(_TIMES))


def _note_time(table: Table, user: str, unused: dict[str, Any], report: ReadReport) -> None:
    named = sorted((name for name, dtype in unused.items() if _may_be_time(name, dtype)), key=_rank)
    sample = table.read(table.frame.select(user, *named).head(_SAMPLE))
    keys = {name: key for name in named if (key := _time_key(sample[name], _rank(name) < 2)) is not None}
    if not keys:  # a column that no name tells, such as one of a table without header
        others = [
            name
            for name, dtype in unused.items()
            if name not in named and (dtype == pl.String or dtype.is_integer() or dtype.is_float())
        ]
        sample = table.read(table.frame.select(user, *others).head(_SAMPLE))
        keys = {name: key for name in others if (key := _evident_key(name, sample[name])) is not None}
    if not keys:
        return
    name, key = next(iter(keys.items()))
    up, down = _steps(sample[user], key)
    if down > 4 * up:  # not just in no order
        order = "That column says newest first, so histories are read backwards. "
    elif down:
        order = "That is another order. "
    else:
        order = "That is the same order. " if up else ""
    also = f" (so do {', '.join(map(repr, list(keys)[1:]))})" if len(keys) > 1 else ""
    report.values["unused_time_column"] = name
    report.warn(
        f"Column {name!r} looks like a time{also}, and no time or order column was named: the order of rows counts as "
        f"the order in time. {order}Name it: time={name!r} (--time {name!r})."
    )


def _time_key(values: pl.Series, surely: bool) -> NDArray[Any] | None:
    """(rows,) numbers to sort by, NaN where there are none; None if the values are no times."""
    if values.dtype in (pl.Date, pl.Datetime):
        return values.to_physical().cast(pl.Float64).fill_null(float("nan")).to_numpy()
    numbers = parse_numbers(values) if values.dtype == pl.String else values
    if 2 * numbers.null_count() <= len(numbers):
        key = numbers.cast(pl.Float64).fill_null(float("nan")).to_numpy()
        known = key[np.isfinite(key)]
        if not len(known):
            return None
        scale = 1000.0 ** max(0, round((np.log10(max(abs(known).max(), 1)) - 9) / 3))
        dates = (known >= 1900_01_01) & (known <= 2100_12_31) & (known % 100 <= 31) & (known // 100 % 100 <= 12)
        likely = ((known / scale >= _SECONDS[0]) & (known / scale <= _SECONDS[1])) | dates
        return key if surely or 2 * likely.sum() > len(known) else None
    text = values.cast(pl.String)
    sample = text.drop_nulls().head(1000)
    for form in ISO_FORMS:
        if 2 * sample.str.to_datetime(form, strict=False).null_count() < len(sample):
            return _as_floats(text.str.to_datetime(form, strict=False))
    for form in time_formats.fitting(sample):
        return _as_floats(time_formats.parsed(text, form))
    return None


def _evident_key(name: str, values: pl.Series) -> NDArray[Any] | None:
    """As `_time_key`, of a column whose name does not say that it holds times: all values have to look like times."""
    if re.search(_NO_TIMES, _snake(name)):
        return None
    known = values.drop_nulls()
    if len(known) < 2:
        return None
    if values.dtype == pl.String and known.str.contains(DATE).all():
        return _time_key(values, surely=False)
    numbers = parse_numbers(known) if values.dtype == pl.String else known
    if numbers.null_count() or _NO_NUMBERS.search(name):
        return None
    size = numbers.cast(pl.Float64)
    for per_second in (1.0, 1e3, 1e6, 1e9):
        if (size / per_second).is_between(*_RECENT).all():
            return _time_key(values, surely=True)
    return None


def _as_floats(times: pl.Series) -> NDArray[Any]:
    return times.to_physical().cast(pl.Float64).fill_null(float("nan")).to_numpy()


def _steps(users: pl.Series, key: NDArray[Any]) -> tuple[int, int]:
    """How often the next row of a user is later, and how often earlier."""
    frame = pl.DataFrame({"user": users, "key": key}).filter(pl.col("key").is_not_nan())
    step = frame.select(pl.col("key").diff().over("user"))["key"].drop_nulls()
    return int((step > 0).sum()), int((step < 0).sum())


def _kind(text: str) -> int | None:
    """1 for positive feedback, 0 for negative, None if it is neither."""
    text = text.lower()
    if text in ("-1", "-1.0", *_ZEROS) or text in _NO:
        return 0
    return 1 if text in ("1", "1.0") or text in _YES else None


def _note_feedback(table: Table, name: str, report: ReadReport, rating: bool = False) -> None:
    counts = table.read(table.frame.select(pl.col(name).cast(pl.String)).group_by(name).len())
    of: dict[str, int] = dict(counts.drop_nulls().rows())
    kinds = {text: _kind(text) for text in of}
    no = [text for text, kind in kinds.items() if kind == 0]
    if not no or len(no) == len(of) or None in kinds.values():
        return
    rows, total = sum(of[text] for text in no), sum(of.values())
    report.values["negative_feedback"] = rows
    if all(text in _ZEROS for text in no) and all(text in ("1", "1.0", *_ZEROS) for text in of):
        how = (
            "min_rating=1 (--min-rating 1)"
            if rating
            else (f'rating="{name}", min_rating=1 (--rating {name} --min-rating 1)')
        )
    else:
        weights = {text: kinds[text] for text in sorted(of)}
        flags = ",".join(f"{text}={weight}" for text, weight in weights.items())
        how = f'event_type="{name}", weights={weights} (--event-type {name} --weights "{flags}")'
    state = "which is the rating" if rating else "which is not used"
    named = " or ".join(sorted(text.removesuffix(".0") for text in no))
    report.warn(
        f"{rows:,} of {total:,} rows have {named} in column {name!r}, {state}: they look like negative feedback, and "
        f"were read as interactions like the others. To leave them out, pass {how}."
    )


def _note_list(table: Table, name: str, report: ReadReport) -> None:
    values = table.read(table.frame.select(name).head(1000))[name].drop_nulls()
    if not len(values) or not (
        isinstance(values.dtype, (pl.List, pl.Array))
        or table.types.get(name) == "token_seq"
        or (values.dtype == pl.String and 2 * int(is_bracketed(values).sum()) > len(values))
        or (values.dtype == pl.String and 2 * int(values.str.contains(r"\S[ ,;|]+\S").sum()) > len(values))
    ):
        return
    report.warn(
        f"Column {name!r} holds lists, and is not used. If these are the items of a user, pass item={name!r} "
        f"(--item {name})."
    )
