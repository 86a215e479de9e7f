"""Files of item ids, for example of candidates or of items that must not be recommended."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl

from rediffuse.errors import DataError
from rediffuse.readers.columns import Column, plain_ids
from rediffuse.readers.tables import read_table
from rediffuse.readers.text_files import is_number, listed


def read_item_ids(source: str | Path, is_known_item: Callable[[str], bool]) -> pl.Series:
    """The column ``item_id`` of a text file, CSV or Parquet file; a table of one column may call it anything.

    Args:
        source: the file, a folder of such files, or a glob.
        is_known_item: whether the run knows an item id. A file whose first line is a known id has no header.

    Raises:
        DataError: the file cannot be read, has no such column or no header, or a row has no id.
    """
    table = read_table(source, "items", wanted=("item_id",))
    columns = table.columns
    if "item_id" not in columns and len(columns) != 1:
        raise DataError(
            f"{table.name} has no column item_id; its columns are {listed(columns)}.",
            "Give a file with a column item_id, one id per line; the first line of a text file names the column.",
        )
    name = "item_id" if "item_id" in columns else columns[0]
    if name != "item_id" and table.is_text and (is_number(name) or is_known_item(name)):
        raise DataError(
            f"The first line of {table.name} is {name!r}, which is not a header.", "Let the file begin with item_id."
        )
    ids = Column(table.collect([name])[name], table, "item")
    ids.refuse_first(ids.values.is_null(), "is empty", "Fill in the id or remove the row.")
    return plain_ids(ids)
