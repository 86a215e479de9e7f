"""Parquet and CSV files opened by their literal names.

Polars reads ``*``, ``?``, ``[`` and ``{`` in a path as a pattern, ``~`` as the home folder, ``name:/`` as an address
and a folder as all the files in it. Here a path names one file, whatever its characters are. Nothing else in the
package calls the readers of polars; ``.ci/repository.py`` checks that. All raise a RunError in a process that was
forked after use; see `forks`.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import polars as pl

from rediffuse import forks


def read_parquet(path: str | PathLike[str], columns: Sequence[str] | None = None) -> pl.DataFrame:
    """A Parquet file, or some columns of it.

    Raises:
        FileNotFoundError, IsADirectoryError: there is no such file.
        polars.exceptions.PolarsError: it is damaged.
    """
    forks.enter()
    return pl.read_parquet(_literal(path), columns=_listed(columns), glob=False, hive_partitioning=False)


def read_parquet_metadata(path: str | PathLike[str]) -> dict[str, str]:
    """The texts in the footer of a Parquet file, by name. Raises as `read_parquet`."""
    forks.enter()
    with Path(path).open("rb") as file:
        return pl.read_parquet_metadata(file)


def scan_parquet(paths: Sequence[str | PathLike[str]], *, hive_partitioning: bool = False) -> pl.LazyFrame:
    """Parquet files of one schema as one lazy frame.

    Args:
        paths: the files, in the order of rows.
        hive_partitioning: whether folders named ``column=value`` stand for columns.

    Raises:
        FileNotFoundError, IsADirectoryError: a file does not exist.
    """
    forks.enter()
    return pl.scan_parquet([_literal(path) for path in paths], glob=False, hive_partitioning=hive_partitioning)


def scan_objects(addresses: Sequence[str], *, hive_partitioning: bool = False, **options: Any) -> pl.LazyFrame:
    """As `scan_parquet`, of objects in a store; ``options`` are those of `polars.scan_parquet` that reach it."""
    forks.enter()
    return pl.scan_parquet(list(addresses), glob=False, hive_partitioning=hive_partitioning, **options)


def read_csv(source: str | PathLike[str] | bytes, **options: Any) -> pl.DataFrame:
    """A text file, or the content of one; ``options`` are those of `polars.read_csv`.

    Raises:
        FileNotFoundError, IsADirectoryError: there is no such file.
        polars.exceptions.PolarsError: it cannot be parsed.
    """
    forks.enter()
    return pl.read_csv(source if isinstance(source, bytes) else _literal(source), glob=False, **options)


def scan_csv(source: str | PathLike[str] | bytes, **options: Any) -> pl.LazyFrame:
    """As `read_csv`, as a lazy frame."""
    forks.enter()
    return pl.scan_csv(source if isinstance(source, bytes) else _literal(source), glob=False, **options)


def read_arrow(path: str | PathLike[str], *, stream: bool = False) -> pl.DataFrame:
    """An Arrow IPC file (Feather), or a file of an Arrow ``stream``. Raises as `read_parquet`."""
    forks.enter()
    with Path(path).open("rb") as file:
        return pl.read_ipc_stream(file) if stream else pl.read_ipc(file)


def json_lines(content: bytes) -> pl.DataFrame:
    """A row per line of JSON; the types are those of all lines.

    Raises:
        polars.exceptions.PolarsError: it cannot be parsed.
    """
    forks.enter()
    return pl.read_ndjson(content, infer_schema_length=None)


def _literal(path: str | PathLike[str]) -> str:
    # Only a relative path can begin with ~ or be taken for an address.
    absolute = Path(path).absolute()
    if absolute.is_dir():
        raise IsADirectoryError(errno.EISDIR, "It is a folder", str(path))
    return str(absolute)


def _listed(columns: Sequence[str] | None) -> list[str] | None:
    return None if columns is None else list(columns)
