"""Files of recommendations that other libraries made: RecTools, RecBole, WarpRec, or any table of one row per item."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from rediffuse.errors import DataError, did_you_mean
from rediffuse.table_files import read_csv, read_parquet

# What a column is for, and the names by which it is found; RecBole's have a type, such as user_id:token.
LIST_COLUMNS = {
    "user": ("user_id", "user"),
    "item": ("item_id", "item"),
    "rank": ("rank",),
    "score": ("score", "rating", "prediction"),
}


def read_list_file(path: Path, columns: Mapping[str, str] | None = None) -> pl.DataFrame:
    """Read a table of one row per user and recommended item: CSV, TSV (both with a header) or Parquet.

    Args:
        path: the file; one that ends in .parquet is Parquet.
        columns: "user", "item", "rank" or "score" -> its column, where it has none of the names in `LIST_COLUMNS`.

    Returns:
        ``user_id`` and ``item_id`` as text, and ``key``, a float: lower is better. It is the rank, else the negative
        score.

    Raises:
        DataError: the file cannot be read; a column is missing, has no values somewhere or is not numeric.
    """
    table = _read(path)
    plain = {name.partition(":")[0]: name for name in reversed(table.columns)} | {name: name for name in table.columns}
    found: dict[str, str] = {}
    for what, known in LIST_COLUMNS.items():
        named = (columns or {}).get(what)
        if named is not None and named not in plain:
            raise DataError(f"{path} has no column {named!r}.", did_you_mean(named, table.columns))
        name = named or next((name for name in known if name in plain), None)
        if name is not None:
            found[what] = plain[name]
    if "rank" in found and "score" in (columns or {}) and "rank" not in (columns or {}):
        del found["rank"]
    order = found.get("rank") or found.get("score")
    if "user" not in found or "item" not in found or order is None:
        missing = [what for what in ("user", "item") if what not in found] + ["rank or score"] * (order is None)
        raise DataError(
            f"{path} has no column of {' and no column of '.join(missing)}; it has {', '.join(table.columns)}.",
            "Name it: columns: {user: ..., item: ..., score: ...}.",
        )
    ids = [pl.col(found[what]).cast(pl.String).alias(f"{what}_id") for what in ("user", "item")]
    key = pl.col(order).cast(pl.Float64, strict=False)
    lists = table.select(*ids, key=key if "rank" in found else -key)
    for name, column in zip(lists.columns, (found["user"], found["item"], order), strict=True):
        without = lists[name].is_null() | (lists[name].is_nan() if name == "key" else pl.Series([False]))
        if count := int(without.sum()):
            row = without.arg_max()
            kind = "number" if name == "key" else "value"
            raise DataError(
                f"{path}: {count:,} rows have no {kind} in {column}, the first is row {(row or 0) + 1}.",
                "Leave out the rows of items that were not recommended, or name another column.",
            )
    return lists


def _read(path: Path) -> pl.DataFrame:
    try:
        if path.suffix == ".parquet":
            return read_parquet(path)
        with path.open(encoding="utf-8") as file:
            head = file.readline()
        separator = max("\t,;", key=head.count)
        # Ids stay the text that they are in the file: 007 is not 7.
        return read_csv(path, separator=separator, infer_schema=False)
    except (OSError, UnicodeDecodeError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{path} cannot be read: {error}", "Give CSV or TSV with a header, or Parquet.") from None
