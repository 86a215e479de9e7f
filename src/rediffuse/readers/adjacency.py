"""Adjacency text: a user per line, followed by the items, as KGAT, NGCF and LightGCN publish their data."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import polars as pl

from rediffuse.errors import DataError


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
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start:,}).", "Save it as UTF-8.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", "Check the path and its permissions.") from None
    parts = pl.Series("parts", lines, dtype=pl.String).str.extract_all(r"\S+")
    frame = pl.DataFrame({"line": pl.int_range(1, len(lines) + 1, eager=True), "parts": parts})
    pairs = (
        frame.filter(pl.col("parts").list.len() > 1)
        .select(pl.col("parts").list.first().alias("user_id"), pl.col("parts").list.slice(1).alias("item_id"), "line")
        .explode("item_id")
    )
    if not len(pairs):
        raise DataError(f"{path} holds no pair of user and item.", "A line is a user, a blank, and the user's items.")
    return pairs
