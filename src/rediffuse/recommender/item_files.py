"""Files of item ids, for example of candidates or of items that must not be recommended."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import polars as pl

from rediffuse.errors import DataError
from rediffuse.readers.columns import Column, plain_ids
from rediffuse.readers.tables import Table, read_table
from rediffuse.readers.text_faults import is_number
from rediffuse.readers.text_files import TextOptions, listed

# Words in the names of columns that hold ids.
_NAMES = re.compile(
    r"(?i)(^|[^a-z])(id|ids|uid|iid|name|names|user|users|customer|customers|client|clients|member|members|visitor|account|"
    r"session|reader|email|item|items|product|products|article|articles|asin|sku|isbn|film|films|movie|movies|"
    r"book|books|track|tracks|title|code|key|number|no)([^a-z]|$)|[a-z](Id|ID|Name|Key|Code)$|(?i:userid|itemid|movieid)"
)


def refuse_lost_row(table: Table, name: str, is_known: Callable[[str], bool], remedy: str) -> None:
    """Raise if the first line of a text file of one column looks like an id: it would be lost as a header.

    Raises:
        DataError: it is a number, a known id, or no usual name of a column.
    """
    if not table.is_text or not table.has_header:
        return
    if is_number(name) or is_known(name):
        raise DataError(f"The first line of {table.paths[0]} is {name!r}, which is not a header.", remedy)
    if not _NAMES.search(name):
        raise DataError(f"The first line of {table.paths[0]} is {name!r}, which may be an id or a header.", remedy)


def read_item_ids(
    source: str | Path, is_known_item: Callable[[str], bool], text: TextOptions | None = None
) -> pl.Series:
    """The column ``item_id`` of a text file, CSV or Parquet file; a table of one column may call it anything.

    Args:
        source: the file, a folder of such files, or a glob.
        is_known_item: whether the run knows an item id. A file whose first line is a known id has no header.
        text: how text files are read. Without header, ids are in the first column.

    Raises:
        DataError: the file cannot be read, has no such column or no header, or a row has no id.
    """
    table = read_table(source, "items", wanted=("item_id",), text=text)
    columns = table.columns
    if "item_id" not in columns and len(columns) != 1 and table.has_header:
        raise DataError(
            f"{table.name} has no column item_id; its columns are {listed(columns)}.",
            "Give a file with a column item_id, one id per line; the first line of a text file names the column.",
        )
    name = "item_id" if "item_id" in columns else columns[0]
    if name != "item_id":
        refuse_lost_row(
            table, name, is_known_item, "Let the file begin with item_id, or pass header=None (--no-header)."
        )
    # An item called NULL is known, or counted among the unknown ones.
    ids = Column(table.collect([name])[name], table, "item", keep_words=True)
    ids.refuse_first(ids.values.is_null(), "is empty", "Fill in the id or remove the row.")
    return plain_ids(ids)
