"""Item and user features: which columns of the tables models may learn from, and as what.

They are declared once, with the dataset. `rediffuse.features` encodes them as numbers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import polars as pl

from rediffuse.arguments import wrong_type
from rediffuse.data.checks import require
from rediffuse.data.feature_columns import is_vector, missing_in, numbers_in, texts_in, values_in, vectors_in, where
from rediffuse.errors import ConfigError, DataError, RediffuseWarning, did_you_mean

Kind = Literal["category", "number", "text", "vector"]
KINDS: tuple[str, ...] = get_args(Kind)
# Text with at least this many different values, most of which one row has alone, is hardly a category.
_MANY = 20
_WORDS = (pl.String, pl.Categorical, pl.Enum)
_EXAMPLE = 'For example: "category,price,title:text,image:vector".'


@dataclass(frozen=True)
class Feature:
    """A column of the item or user table that models may learn from.

    Attributes:
        column: name of the column.
        kind: "category" (one value or several per row), "number", "text", or "vector" (a list of numbers per row).
    """

    column: str
    kind: Kind

    def __str__(self) -> str:
        return f"{self.column}:{self.kind}"


def parse_features(
    spec: str | Sequence[str],
    table: pl.DataFrame,
    what: Literal["item", "user"],
    note: Callable[[str], Any] = lambda sentence: None,
) -> tuple[Feature, ...]:
    """Read a declaration of features, and check that the columns hold what it says.

    Args:
        spec: columns, each with its kind or without: ``"category,brand,price,title:text,image:vector"``, or a list of
            such parts. A kind that is not given is guessed from what the column holds.
        table: row i describes item or user i; one column is ``item_id`` or ``user_id``.
        what: whose features they are.
        note: is called with a sentence about every guess.

    Raises:
        ConfigError: a column is unknown, repeated or the id; a kind is unknown.
        DataError: a column is empty, or does not hold what its kind says.

    Warns:
        RediffuseWarning: text was guessed to be a category, and most of its values occur once.
    """
    option = f"{what}_features"
    parts = spec.split(",") if isinstance(spec, str) else spec
    if not isinstance(parts, Sequence) or not all(isinstance(part, str) for part in parts):
        raise wrong_type(option, spec, "text such as 'brand,title:text', or a list of such parts", _EXAMPLE)
    features: dict[str, Feature] = {}
    for part in (part.strip() for part in parts):
        column, kind = _column_and_kind(part, table)
        if not column:
            raise ConfigError(f"{option}={spec!r} has a part without a column.", _EXAMPLE)
        if column in (table.columns[0], f"{what}_id"):
            raise ConfigError(f"{option}: {column!r} is the column of ids, which is no feature.", "Leave it out.")
        if column not in table.columns:
            known = [name for name in table.columns[1:] if name != f"{what}_id"]
            raise ConfigError(f"{option}: the {what} table has no column {column!r}.", did_you_mean(column, known))
        if column in features:
            raise ConfigError(f"{option} names {column!r} twice.", "Name each column once.")
        if kind is not None and kind not in KINDS:
            raise ConfigError(f"{option}: there is no kind {kind!r}, of {column!r}.", did_you_mean(kind, KINDS))
        missing = int(missing_in(table[column]).sum())
        if missing == len(table):
            raise DataError(f"{where(table, column)} is empty for all {missing:,} rows.", "Leave it out.")
        guessed = kind is None
        kind = _guess(table, column) if kind is None else kind
        feature = Feature(column, kind)  # pyright: ignore[reportArgumentType]
        check_type(table, feature)
        if kind == "number":
            numbers_in(table, column)
        elif kind == "vector":
            vectors_in(table, column)
        if guessed:
            _tell(table, feature, option, note)
        if missing:
            note(f"{option}: {column!r} is missing in {missing:,} of {len(table):,} rows.")
        features[column] = feature
    return tuple(features.values())


def _column_and_kind(part: str, table: pl.DataFrame) -> tuple[str, str | None]:
    """``title:text`` is a column and its kind, unless the table has a column of this very name."""
    column, colon, kind = part.rpartition(":")
    if not colon or part in table.columns:
        return part, None
    return column.strip(), kind.strip()


def _guess(table: pl.DataFrame, name: str) -> Kind:
    kind = table[name].dtype
    if is_vector(kind):
        return "vector"
    if kind.is_numeric() or (kind == pl.String and _holds_numbers(table[name])):
        return "number"
    return "category"


def _holds_numbers(column: pl.Series) -> bool:
    """Whether all text is of numbers, as in a column of a CSV file; codes such as 007 are none."""
    texts = texts_in(column).drop_nulls().str.strip_chars()
    return bool(texts.str.contains(r"^[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?$").all())


def check_type(table: pl.DataFrame, feature: Feature) -> None:
    """Check that a column is of a type that can hold what its kind says; a column of nulls can.

    Raises:
        DataError: it is not.
    """
    kind = table[feature.column].dtype
    inner = kind.inner if isinstance(kind, pl.List | pl.Array) else None  # pyright: ignore
    words, lists = isinstance(kind, _WORDS), isinstance(inner, _WORDS)
    fits = {
        "category": words or lists or kind.is_numeric() or kind == pl.Boolean or (inner and inner.is_integer()),
        "number": kind.is_numeric() or kind == pl.String,
        "text": words or lists,
        "vector": is_vector(kind),
    }
    if fits[feature.kind] or kind == pl.Null:
        return
    others = " or ".join(f"{feature.column}:{name}" for name in KINDS if fits[name])
    remedy = (
        f"It can be {others}." if others else "Make text, numbers or lists of numbers of it, such as years of dates."
    )
    raise DataError(f"{where(table, feature.column)} holds values of type {kind}, so it is no {feature.kind}.", remedy)


def _tell(table: pl.DataFrame, feature: Feature, option: str, note: Callable[[str], Any]) -> None:
    """Say what was guessed, with an example."""
    name = feature.column
    if feature.kind == "category":
        values = values_in(table[name])
        counts = values["value"].value_counts(sort=True)
        rows = values["row"].n_unique()
        several = f", up to {values['row'].value_counts()['count'].max()} per row" if len(values) > rows else ""
        example = f"{len(counts):,} values{several}, the most common is {counts['value'][0]!r}"
        sentence = f"{option}: {name!r} was taken as a category ({example})."
        once = int((counts["count"] == 1).sum())
        if table[name].dtype == pl.String and len(counts) >= _MANY and 2 * once > len(counts):
            sentence += f" {once:,} of its values occur once; if it is free text, declare {name}:text."
            note(sentence)
            warnings.warn(sentence, RediffuseWarning, stacklevel=4)
            return
    elif feature.kind == "number":
        numbers = numbers_in(table, name)
        low, high = np.nanmin(numbers), np.nanmax(numbers)
        sentence = (
            f"{option}: {name!r} was taken as a number (from {low:g} to {high:g}); "
            f"if these are codes, declare {name}:category."
        )
    else:
        sentence = (
            f"{option}: {name!r} was taken as a vector ({vectors_in(table, name)[1].shape[1]:,} numbers per row)."
        )
    note(sentence)


def content_of(table: pl.DataFrame, features: Sequence[Feature]) -> list[Any]:
    """What declared columns hold, as text, arrays and series, for a fingerprint."""
    parts: list[Any] = []
    for feature in features:
        name = feature.column
        parts += [name, feature.kind]
        if feature.kind == "category":
            values = values_in(table[name])
            parts += [values["row"].to_numpy(), values["value"]]
        elif feature.kind == "number":
            parts.append(numbers_in(table, name))
        elif feature.kind == "text":
            texts = texts_in(table[name])
            parts += [texts.is_null().to_numpy(), texts.fill_null("")]
        else:
            parts += vectors_in(table, name)
    return parts


def features_from(entries: Any, table: pl.DataFrame | None, what: str) -> tuple[Feature, ...]:
    """Features from the manifest of a dataset, ``[[column, kind], ...]``; None, of older datasets: none.

    Raises:
        ValueError: they are no features, or not of the table.
    """
    entries = [] if entries is None else entries
    pairs = isinstance(entries, list) and all(isinstance(e, list) and list(map(type, e)) == [str, str] for e in entries)
    require(pairs, f"{what} is no list of columns and kinds")
    for column, kind in entries:
        require(kind in KINDS, f"{what} has the kind {kind!r}")
        require(
            table is not None and column in table.columns, f"{what} names the column {column!r}, which is not there"
        )
    return tuple(Feature(column, kind) for column, kind in entries)
