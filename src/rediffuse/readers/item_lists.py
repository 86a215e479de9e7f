"""Lists of items in one field: lists of Parquet and frames, and text such as "[1, 2, 3]", "1 2 3" or "a|b"."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import polars as pl

from rediffuse.errors import ConfigError, DataError
from rediffuse.readers.derived import ROW, derived
from rediffuse.readers.report import ReadReport
from rediffuse.readers.tables import Table

# RecBole separates the tokens of a sequence by spaces.
_SEQUENCES = {"token_seq": " ", "float_seq": " "}
# Pairs of brackets: JSON and Python, tuples, arrays of PostgreSQL.
_BRACKETED = r"^\s*(?:(?:np\.)?array\(|tensor\()?\s*(?:\[[\s\S]*\]|\([\s\S]*\)|\{[^:]*\})[^\]\)\}]*\)?\s*$"
_WRAPPED = re.compile(r"^(?:np\.)?(?:array|tensor)\(([\[(].*[\])])(?:,\s*dtype=[^)\]]*)?\)$", re.DOTALL)
_SCALAR = re.compile(r"np\.\w+\(([^()]*)\)")
_TOKEN = re.compile(r"""'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)"|([^\s,'"]+)""")
_WHOLE = re.compile(r"^-?\d+\.0*$")
_INTEGER = re.compile(r"^-?(?:0|[1-9]\d*)$")
# Whole numbers, several of them, with one kind of separator between them.
_NUMBERS = {
    separator: rf"^\d+(?:{pattern}\d+)*$"
    for separator, pattern in (("|", r"\s*\|\s*"), (",", r"\s*,\s*"), (";", r"\s*;\s*"), (" ", r"\s+"))
}
# Integers with another sign between them, of which no two are the same in all rows.
_UNUSUAL = r"^\d+(?:\s*(?:->|=>|[-_:/>\t])\s*\d+)*$"
_THOUSANDS = r"^\d{1,3}(,\d{3})*$"
_NAMES = re.compile(r"(?i)(hist|_list$|_seq$|sequence|basket|^items$|item_ids|itemids|clicks|playlist)")
# Rows that decide what a column holds.
_SAMPLE = 10_000
NO_LISTS = "none"


class NoListError(ValueError):
    """Text in brackets that is not a list of items."""


def split_brackets(text: str) -> list[str | int]:
    """The elements of a list in brackets, as JSON, Python, numpy, pandas or PostgreSQL write it.

    Whole numbers without quotes become integers; ``3.`` and ``3.0`` are what numpy and pandas make of 3.

    Raises:
        NoListError: it is no list, a list of lists, or was shortened with dots.
    """
    text = text.strip()
    if wrapped := _WRAPPED.match(text):
        text = wrapped.group(1)
    try:
        return [_element(value) for value in json.loads(text)] if text[:1] == "[" else _from_tokens(text)
    except json.JSONDecodeError:
        return _from_tokens(text)


def _element(value: Any) -> str | int:
    if isinstance(value, str):
        return value
    if isinstance(value, bool | list | dict) or value is None:
        raise NoListError(f"an element is {json.dumps(value)}")
    if isinstance(value, float):
        if not value.is_integer():
            raise NoListError(f"an element is {value}")
        return int(value)
    return value


def _from_tokens(text: str) -> list[str | int]:
    closing = {"[": "]", "(": ")", "{": "}"}.get(text[:1])
    if closing is None or text[-1:] != closing or len(text) < 2:
        raise NoListError("it has no brackets around it")
    inner = _SCALAR.sub(r"\1", text[1:-1]).strip()
    if re.search(r"[\[\](){}]", re.sub(r"""'[^']*'|"[^"]*\"""", "", inner)):
        raise NoListError("it holds lists of its own")
    quoted = "'" in inner or '"' in inner
    if "," in inner and not quoted:
        parts = [part.strip() for part in inner.split(",")]
        found = [_bare(part) for part in (parts[:-1] if not parts[-1] else parts)]
    else:
        found = [_bare(bare) if bare else one or two for one, two, bare in _TOKEN.findall(inner)]
    if any(value in ("...", "…", "") for value in found):
        raise NoListError("a program has shortened it" if "" not in found else "an element is empty")
    return found


def _bare(token: str) -> str | int:
    token = token.rstrip("0").rstrip(".") if _WHOLE.match(token) and "." in token else token
    return int(token) if _INTEGER.match(token) else token


def split_text(text: str, separator: str) -> list[str | int]:
    """The parts of text between separators, without spaces around them and without empty ones; or as in brackets."""
    if looks_bracketed(text):
        return split_brackets(text)
    parts = text.split() if separator == " " else (part.strip() for part in text.split(separator))
    return [_bare(part) for part in parts if part]


def one_row_per_item(
    table: Table, named: dict[str, str], separator: str | None, declared: dict[str, str], report: ReadReport
) -> Table:
    """The table with a row per item, if its item column holds lists; else the table.

    The items of a list are in order of time, oldest first. Other columns repeat their value, unless they hold lists of
    the same lengths.

    Args:
        table: from `Table.in_pieces`.
        named: role -> column; the roles are those of `rediffuse.readers.rows.Columns`.
        separator: what is between the items of a list in text; "none": text is an id as it is; None: found out.
        declared: RecBole type by column, for atomic files.
        report: what was read as a list is entered here.

    Raises:
        DataError: some values are lists and others are not; lists of one row have different lengths; or text looks
            like lists, and it is not certain.
    """
    item = named["item"]
    schema = table.frame.collect_schema()
    nested = {name for name in named.values() if isinstance(schema[name], (pl.List, pl.Array))}
    if item not in nested:
        if separator == NO_LISTS:
            return table
        if isinstance(schema[item], (pl.Categorical, pl.Enum)):
            plain = replace(table, frame=table.frame.with_columns(pl.col(item).cast(pl.String)))
            found = one_row_per_item(plain, named, separator, declared, report)
            return table if found is plain else found
        if separator is not None:
            _require_separator(table, item, schema[item], separator)
        if schema[item] != pl.String:
            return table
        how = separator or _SEQUENCES.get(declared.get(item, "")) or _found(table, named)
        if how is None:
            return table
    else:
        how = separator or ","
    frame = table.read(table.frame)
    lists: list[str] = []
    for name in dict.fromkeys((item, *named.values())):
        values = frame[name]
        if isinstance(values.dtype, pl.Array):
            values = values.cast(pl.List(values.dtype.inner))  # pyright: ignore[reportArgumentType]
        elif values.dtype == pl.String and (
            name == item or declared.get(name) in _SEQUENCES or _all_bracketed(values.head(_SAMPLE))
        ):
            values = _as_lists(values, how if name == item else ",", table, name)
        elif values.dtype == pl.String and name != named["user"] and how in _NUMBERS:
            values = _parallel(values, how, frame[item].list.len())
        if isinstance(values.dtype, pl.List):
            lists.append(name)
            frame = frame.with_columns(values)
    return _exploded(table, frame, item, lists, report)


def _parallel(values: pl.Series, separator: str, lengths: pl.Series) -> pl.Series:
    """Lists of numbers, if every text has as many numbers between separators as the item list has items."""
    number = r"[+-]?\d+(?:\.\d+)?"
    several = values.str.contains(rf"^{number}(?:\s*{re.escape(separator)}\s*{number})*$")
    if int(lengths.max() or 0) < 2 or not several.all():  # pyright: ignore[reportArgumentType]
        return values
    parts = values.str.split(separator).list.eval(pl.element().str.strip_chars())
    return parts if (parts.list.len() == lengths).all() else values


def _require_separator(table: Table, item: str, dtype: pl.DataType, separator: str) -> None:
    """Raise unless some text of the item column has the separator, or is in brackets."""
    holds = pl.col(item).str.contains(separator, literal=True) | pl.col(item).str.contains(_BRACKETED)
    if dtype != pl.String or not table.read(table.frame.select(holds.any())).item():
        raise ConfigError(
            f"item_separator={separator!r} was given, and column {item!r} of {table.name} has it nowhere.",
            "Leave it out, or name what is between the items of a list.",
        )


def _exploded(table: Table, frame: pl.DataFrame, item: str, lists: list[str], report: ReadReport) -> Table:
    lengths = frame[item].list.len()
    for name in lists:
        wrong = (frame[name].list.len() != lengths).fill_null(True) & lengths.is_not_null()
        if wrong.any():
            row = int(wrong.arg_max() or 0)
            raise DataError(
                f"{table.place(row)}: column {name!r} holds a list of {frame[name].list.len()[row]}, and {item!r} one "
                f"of {lengths[row]}.",
                "Lists of one row need the same length.",
            )
    longer = frame.with_row_index(ROW).filter((pl.col(item).list.len() > 0) | pl.col(item).is_null())
    empty = len(frame) - len(longer)
    if not len(longer):
        raise DataError(f"{table.name}: every list in column {item!r} is empty.", "Name another column.")
    exploded = longer.explode(lists)
    others = [name for name in lists if name != item]
    together = f", together with {', '.join(map(repr, others))}" if others else ""
    left = f" {empty:,} empty lists were left out." if empty else ""
    report.values["item_lists"] = len(longer)
    report.note(
        f"Column {item!r} holds lists of items: {len(longer):,} rows were read as {len(exploded):,} interactions, in "
        f"the order of each list{together}.{left}"
    )
    return derived(table, exploded.lazy())


def _as_lists(values: pl.Series, separator: str, table: Table, name: str) -> pl.Series:
    """(rows,) lists of integers if all elements are, else of text."""
    rows: list[list[str | int] | None] = []
    for row, text in enumerate(values):
        try:
            rows.append(None if text is None else split_text(text, separator))
        except NoListError as error:
            raise DataError(
                f"{table.place(row)}: column {name!r} is {text!r}, which cannot be read as a list: {error}.",
                "Write each list in full, with ids alone in it.",
            ) from None
    return as_list_column(name, rows)


def as_list_column(name: str, rows: Iterable[list[Any] | None]) -> pl.Series:
    """A column of lists of integers if all elements are integers of 64 bits, else of text."""
    rows = list(rows)
    integers = all(isinstance(one, int) and -(2**63) <= one < 2**63 for row in rows if row for one in row)
    if not integers:
        rows = [None if row is None else [str(one) for one in row] for row in rows]
    return pl.Series(name, rows, dtype=pl.List(pl.Int64 if integers else pl.String))


def is_bracketed(values: pl.Series) -> pl.Series:
    """Whether each text has brackets around it."""
    return values.str.contains(_BRACKETED)


def looks_bracketed(text: str) -> bool:
    """Whether text has brackets around it."""
    return re.match(_BRACKETED, text) is not None


def _all_bracketed(values: pl.Series) -> bool:
    values = values.drop_nulls()
    return len(values) > 0 and bool(is_bracketed(values).all())


def _found(table: Table, named: dict[str, str]) -> str | None:
    """What separates the items of lists in the item column; None if it holds ids.

    Raises:
        DataError: only some values are lists, or it is not certain whether they are.
    """
    item = named["item"]
    sample = table.read(table.frame.select(named["user"], item).head(_SAMPLE))
    values = sample[item].drop_nulls()
    if not len(values):
        return None
    bracketed = is_bracketed(values)
    if bracketed.all():
        return ","
    if bracketed.any():
        one = values.filter(bracketed)[0]
        other = values.filter(~bracketed)[0]
        if 2 * int(bracketed.sum()) > len(values) or _is_json(one):
            raise DataError(
                f"{table.name}: column {item!r} (item) holds lists such as {one!r}, and values such as {other!r}.",
                'Write all rows in one form; or pass item_separator="none" (--item-separator none) if these are ids.',
            )
        return None
    for separator, pattern in _NUMBERS.items():
        if values.str.contains(pattern).all():
            parts = values.str.count_matches(r"\d+")
            if int(parts.max() or 0) > 1 and (parts.n_unique() > 1 or _NAMES.search(item)):  # pyright: ignore
                if separator == "," and values.str.contains(_THOUSANDS).all() and not _NAMES.search(item):
                    break
                return separator
    once = sample[named["user"]].n_unique() == len(sample) > 1
    if once and values.str.contains(_UNUSUAL).all() and values.str.count_matches(r"\d+").n_unique() > 2:
        one = values.filter(values.str.contains(r"\D"))[0]
        between = str(re.sub(r"^\d+\s*(\D+?)\s*\d.*$", r"\1", one))
        raise _unclear(table, item, one, between)
    for separator in ("|", ",", ";", " "):
        several = values.str.strip_chars().str.contains(separator, literal=True)
        if 2 * int(several.sum()) <= len(values):
            continue
        if once or _NAMES.search(item) or (separator == "," and values.str.contains(_THOUSANDS).all()):
            raise _unclear(table, item, values.filter(several)[0], separator)
    return None


def _unclear(table: Table, item: str, example: str, separator: str) -> DataError:
    return DataError(
        f"{table.name}: column {item!r} (item) looks like lists of items: {example!r}.",
        f'Pass item_separator="{separator}" (--item-separator "{separator}") to read them as such, or "none" '
        "if these are ids.",
    )


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), list)
    except ValueError:
        return False
