"""Adjacency text: a user per line, followed by the items, as KGAT, NGCF and LightGCN publish their data."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import polars as pl

from rediffuse.addresses import address_of, refuse_address
from rediffuse.errors import ConfigError, DataError, did_you_mean
from rediffuse.readers.columns import as_integers
from rediffuse.readers.packing import open_unpacked

# Bytes from which the form of a file is recognised.
_SAMPLE = 1 << 16
_FORM = 'Adjacency text (format="adjacency") is UTF-8; a line is a user, a blank, and the items of the user.'


def expanded(source: Any, format: str, user: str, item: str) -> Any:
    """A source of interactions as a table: adjacency text becomes the columns ``user`` and ``item``.

    Args:
        source: as for `rediffuse.read_interactions`.
        format: "adjacency", or "table": ``source`` is returned.

    Raises:
        DataError: a table was expected and the file looks like adjacency text, or the file cannot be read.
        ConfigError: another format, or ``source`` is not the path of a file.
    """
    if format not in ("table", "adjacency"):
        raise ConfigError(f"There is no format {format!r}.", did_you_mean(format, ("table", "adjacency")))
    is_path = isinstance(source, str | PathLike)
    if format == "adjacency":
        refuse_address("source", source)
        if not is_path or not Path(source).is_file() or Path(source).suffix == ".inter":
            what = source if is_path else "a dataframe"
            raise ConfigError(f"format='adjacency' reads a text file, and {what} is none.", "Name a text file.")
        pairs = read_adjacency(source)
        _refuse_header(pairs, source)
        return pl.DataFrame([_integers(pairs["user_id"]).alias(user), _integers(pairs["item_id"]).alias(item)])
    if is_path and address_of(source) is None and _looks_like_adjacency(Path(source)):
        raise DataError(
            f"{source} has no header, and lines of different numbers of integers: it looks like adjacency text, "
            "a user and the user's items on each line.",
            'Pass format="adjacency" (--format adjacency), or give it a header if it is a table.',
        )
    return source


def _refuse_header(pairs: pl.DataFrame, source: Any) -> None:
    """Raise if the ids of the first line alone are no integers.

    Raises:
        DataError: they are not.
    """
    is_text = pairs["item_id"].cast(pl.Int64, strict=False).is_null()
    first = pairs["line"] == pairs["line"][0]
    if (first & is_text).any() and not (~first & is_text).any() and not first.all():
        line = pairs["line"][0]
        raise DataError(
            f"{source}, line {line}, holds items that are no integers, and all other items are integers.",
            "Adjacency text has no header: remove that line, or read the file as a table.",
        )


def _integers(ids: pl.Series) -> pl.Series:
    """The ids as integers, if all of them are what an integer is written as."""
    numbers = as_integers(ids)
    return ids if numbers.has_nulls() else numbers


def _looks_like_adjacency(path: Path) -> bool:
    """Whether the file begins with lines of integers, not all of one length, separated by blanks or tabs."""
    try:
        if not path.is_file():
            return False
        with open_unpacked(path) as file:
            sample = file.read(_SAMPLE)
    except (OSError, DataError):  # said by the reader, which opens it too
        return False
    lines = sample.split(b"\n")
    rows = [parts for line in (lines[:-1] if len(sample) == _SAMPLE else lines) if (parts := line.split())]
    return len({len(parts) for parts in rows}) > 1 and all(part.isdigit() for parts in rows for part in parts)


def line_parts(lines: list[str]) -> pl.DataFrame:
    """Each line's number (from 1), as the column line, and what stands between blanks or tabs, as the list parts."""
    parts = pl.Series("parts", lines, dtype=pl.String).str.extract_all(r"\S+")
    return pl.DataFrame({"line": pl.int_range(1, len(lines) + 1, eager=True), "parts": parts})


def read_adjacency(path: str | PathLike[str]) -> pl.DataFrame:
    """The pairs of ``user item item ...`` lines, in the order of the file; lines are separated by blanks or tabs.

    Lines without an item give no pair.

    Returns:
        The columns user_id, item_id (String) and line (from 1).

    Raises:
        DataError: the file cannot be read as UTF-8 text, or holds no pair.
    """
    path = Path(path)
    try:
        with open_unpacked(path) as file:
            lines = file.read().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start:,}).", _FORM) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", "Check the path and its permissions.") from None
    pairs = (
        line_parts(lines)
        .filter(pl.col("parts").list.len() > 1)
        .select(pl.col("parts").list.first().alias("user_id"), pl.col("parts").list.slice(1).alias("item_id"), "line")
        .explode("item_id")
    )
    if not len(pairs):
        raise DataError(f"{path} holds no pair of user and item.", _FORM)
    return pairs
