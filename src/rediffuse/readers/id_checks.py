"""What a column of ids may hide: words for a missing value, digits that a spreadsheet lost, ids that look alike."""

from __future__ import annotations

from typing import Any, Literal, get_args

import polars as pl

from rediffuse.errors import ConfigError, DataError, did_you_mean
from rediffuse.readers.derived import ROW, derived
from rediffuse.readers.report import ReadReport
from rediffuse.readers.tables import Table
from rediffuse.readers.text_files import DATE

MissingIds = Literal["refuse", "drop", "keep"]

# What programs write for a missing value, in lower case; ``NA`` counts in capitals only.
_WORDS = (
    *("null", "nan", "none", "nil", "undefined", "n/a", "#n/a", "#na", "<na>", "\\n", "nat", "-nan"),
    *("(null)", "<null>", "[null]", "<none>", "(none)", "<nan>"),
)
_WORD = "NA"
# Hexadecimal digits have neither a sign nor a point in them, so 12e7 may be an id of its own.
_SCIENTIFIC = r"^[+-]?(\d+[eE]\+\d+|\d*\.\d+[eE][+-]?\d+)$"
# Characters that are not shown: marks of byte order, joiners, spaces without width, control characters.
_INVISIBLE = r"[\p{Cf}\p{Cc}]"
_INTEGER = r"^-?(0|[1-9]\d{0,18})$"
_NUMBER = r"^\+?0*(\d+)(?:\.0*)?$"
# A whole number beyond this is not exact as a float of 64 bits.
_EXACT = 2**53

KEEP_REMEDY = (
    'Fill in the ids; or pass missing_ids="drop" (--missing-ids drop) to read_interactions to leave out such rows, or '
    '"keep" if the word is an id.'
)


def check_missing_ids(missing_ids: Any) -> None:
    """Raise unless it is one of `MissingIds`.

    Raises:
        ConfigError: it is not.
    """
    if missing_ids not in get_args(MissingIds):
        raise ConfigError(f"missing_ids was given {missing_ids!r}.", did_you_mean(missing_ids, get_args(MissingIds)))


def stand_for_nothing(column: str | pl.Expr) -> pl.Expr:
    """Whether text is a word for a missing value, such as NULL; null where there is no text."""
    text = pl.col(column) if isinstance(column, str) else column
    return text.str.to_lowercase().is_in(_WORDS) | (text == _WORD)


def words_for_nothing(values: pl.Series) -> pl.Series:
    """Whether each text is a word for a missing value."""
    return pl.select(stand_for_nothing(pl.lit(values))).to_series().fill_null(False)


def scientific(values: pl.Series) -> pl.Series:
    """Whether each text is a number in scientific notation, as spreadsheets shorten long ids."""
    return values.str.contains(_SCIENTIFIC)


def without_missing(table: Table, columns: list[str], what: str, report: ReadReport) -> Table:
    """The table without rows in which one of the columns is empty, blank or a word for a missing value.

    Columns of whole numbers that were floats because of missing values become integers.

    Args:
        table: from `Table.in_pieces`.
        columns: the id columns.
        what: what a row is, for the report: "interactions".

    Raises:
        DataError: no row is left.
    """
    schema = table.frame.collect_schema()
    missing = pl.any_horizontal(*(_is_missing(name, schema[name]) for name in columns))
    numbered = table.frame.with_row_index(ROW)
    dropped = table.read(numbered.filter(missing).select(ROW))[ROW]
    report.values[f"{what}_with_missing_ids"] = len(dropped)
    if not len(dropped):
        return table
    if len(dropped) == table.rows:
        raise DataError(
            f"{table.name}: every row lacks an id in {' or '.join(map(repr, columns))}.", "Name other columns."
        )
    named = what.replace("_", " ")
    report.note(
        f"{len(dropped):,} {named} lack an id and were dropped (missing_ids='drop'); the first is "
        f"{table.place(dropped[0])}."
    )
    frame = numbered.filter(~missing)
    floats = [name for name in columns if schema[name].is_float() and _are_whole(table, frame, name)]
    return derived(table, frame.with_columns(pl.col(name).cast(pl.Int64) for name in floats))


def _is_missing(name: str, dtype: pl.DataType) -> pl.Expr:
    column = pl.col(name)
    if dtype.is_float():
        return column.is_null() | column.is_nan()
    if dtype == pl.String or isinstance(dtype, (pl.Categorical, pl.Enum)):
        text = column.cast(pl.String).str.strip_chars()
        return text.is_null() | (text == "") | stand_for_nothing(text)
    return column.is_null()


def _are_whole(table: Table, frame: pl.LazyFrame, name: str) -> bool:
    column = pl.col(name)
    return bool(table.read(frame.select(((column == column.floor()) & (column.abs() < _EXACT)).all())).item())


def written_as_integers(ids: pl.Series) -> pl.Series:
    """Whether each text is how an integer is written: "007" and "+7" are not."""
    return ids.str.contains(_INTEGER)


def plain_name(text: str) -> str:
    """Text without quotes and spaces around it, in lower case."""
    return text.strip(" '\"").casefold()


def plain_names(ids: pl.Series) -> pl.Series:
    """`plain_name` of each."""
    return ids.str.strip_chars(" '\"").str.to_lowercase()


def written_oddly(ids: pl.Series, kind: str) -> str | None:
    """A sentence about distinct ids in text that are all numbers like 7.0, times, or in quotes; else None."""
    if ids.str.contains(r"^\d+\.0+$").all():
        return (
            f"All {kind} ids are whole numbers with a fraction, such as {ids[0]!r}: a program has made floats of "
            "integers. They were read as text. Write them as integers if other tables do."
        )
    if ids.str.contains(DATE).all():
        return f"All {kind} ids are dates or times, such as {ids[0]!r}. Check that they are in the right column."
    if ids.str.contains(r"""^(".*"|'.*')$""").all():
        return (
            f"All {kind} ids have quotes around them, such as {ids[0]}. They are a part of the ids; where they are not "
            "meant to be, write double quotes, and leave out quoting='none'."
        )
    return None


def note_alike(ids: pl.Series, kind: str, report: ReadReport) -> None:
    """Say which ids look like the same one.

    Args:
        ids: distinct ids, String.
        kind: "user" or "item".
        report: what is found is entered here.
    """
    hidden = ids.filter(ids.str.contains(f"^{_INVISIBLE}|{_INVISIBLE}$"))
    if len(hidden):
        report.warn(
            f"{len(hidden):,} {kind} ids begin or end with a character that is not shown, such as {hidden[0]!a}. "
            "It is a part of the id."
        )
    frame = pl.DataFrame({"id": ids})
    forms = {
        "the same number": pl.col("id").str.extract(_NUMBER),
        "the same text in another Unicode form, or with characters that are not shown": pl.col("id")
        .str.replace_all(_INVISIBLE, "")
        .str.normalize("NFKC"),
        "the same text in other case or spacing": pl.col("id").str.to_lowercase().str.replace_all(r"\s+", " "),
    }
    for sentence, form in forms.items():
        groups = (
            frame.select("id", form=form)
            .filter(pl.col("form").is_not_null())
            .group_by("form")
            .agg(pl.col("id").sort(), count=pl.len())
            .filter(pl.col("count") > 1)
            .sort("form")
        )
        if len(groups):
            count = int(groups["count"].sum())
            report.values[f"{kind}_ids_alike"] = report.values.get(f"{kind}_ids_alike", 0) + count
            example = " and ".join(ascii(one) for one in groups["id"][0][:2])
            say = report.note if sentence.endswith("spacing") else report.warn  # many kinds of ids have both cases
            say(f"{count:,} {kind} ids are {sentence}, such as {example}. They were read as different {kind}s.")
            # What was said under one heading is not said again under the next.
            frame = frame.join(groups.select("form"), left_on=form, right_on="form", how="anti")
