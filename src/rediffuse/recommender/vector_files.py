"""Item and query vectors as Parquet files, for databases that search by inner products.

    out/
      items.parquet     item_id, vector, popularity and, if items have titles, title
      queries.parquet   user_id, vector
      vectors.json      metric, size and counts, the model, and the checksum of each file

A vector is a list of a fixed size of 32-bit floats.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import torch
from polars.io.plugins import register_io_source

from rediffuse.arguments import require_path
from rediffuse.errors import ConfigError, RediffuseWarning, RunError
from rediffuse.files import atomic_folder, parquet_bytes, sha256_file, storage_error
from rediffuse.readers.text_files import TextOptions
from rediffuse.recommender.id_map import as_text, cast_ids
from rediffuse.recommender.recommender import Recommender
from rediffuse.recommender.remarks import remarks
from rediffuse.recommender.user_files import UserFile

FORMAT, VERSION = "rediffuse-vectors", 1
ITEMS, QUERIES, DESCRIPTION = "items.parquet", "queries.parquet", "vectors.json"
# Users whose vectors are computed at once, and users that are read at once.
_BATCH, _ROWS = 512, 32_768
_COUNTS = ("users", "unknown_users", "unknown_items", "empty_histories")


def write_vectors(
    recommender: Recommender,
    out: str | Path,
    users: str | Path | None = None,
    *,
    text: TextOptions | None = None,
    rows: int = _ROWS,
) -> dict[str, Any]:
    """Write the vectors whose inner products are the scores of the items that a user has not seen.

    Memory does not grow with the number of users.

    Args:
        recommender: the recommender of the run.
        out: a folder. It must be new, empty, or hold earlier vectors, which are replaced as a whole.
        users: the users to write query vectors for: a user file, as for batch inference. None: all users of the run.
        text: how a user file of text is read.
        rows: users that are held in memory.

    Returns:
        The content of vectors.json, and ``out``.

    Raises:
        ConfigError: the model does not rank by inner products alone, or the run has no users and none are given.
        DataError: the user file cannot be read.
        RunError: ``out`` holds other files.
        StorageError: ``out`` cannot be written.

    Warns:
        RediffuseWarning: users without a vector, which are left out, and unknown items, with their counts.
    """
    out, config = require_path("out", out), recommender.config
    vectors = _item_vectors(recommender)
    _refuse_other_files(out)
    user_file, dtype = None, recommender.user_ids.dtype
    if users is not None:
        user_file = UserFile(users, recommender.is_known_user, recommender.titles.ids_in_text, text)
    if user_file is None or not user_file.has_histories:
        recommender.require_users()
    if user_file is not None:
        user_file.require_known()
        ids = (frame["user_id"] for _, frame in user_file.blocks(ids_only=True))
        dtype = pl.String() if any(cast_ids(each, dtype).null_count() for each in ids) else dtype
    vector = pl.Array(pl.Float32, vectors.shape[1])
    columns = [name for name in ("item_id", "title") if name in recommender.items.columns]
    items = recommender.items.select(columns).insert_column(1, pl.Series("vector", vectors.numpy(), dtype=vector))
    items.insert_column(2, pl.Series("popularity", recommender.model.fallback.cpu().numpy(), dtype=pl.Float32))
    counts: dict[str, int] = dict.fromkeys(_COUNTS, 0)
    written = 0

    def queries() -> Iterator[pl.DataFrame]:
        nonlocal written
        blocks = _blocks_of_run(recommender, rows) if user_file is None else _blocks_of_file(user_file, rows)
        for ids, histories in blocks:
            labels, found, block_counts = _query_vectors(recommender, ids, histories)
            for name in counts:
                counts[name] += block_counts[name]
            written += len(labels)
            labels = labels.cast(dtype) if labels.dtype == dtype else as_text(labels)
            yield pl.DataFrame({"user_id": labels, "vector": pl.Series(found.numpy(), dtype=vector)})

    try:
        with atomic_folder(out) as new:
            (new / ITEMS).write_bytes(parquet_bytes(items))
            _sink(queries, {"user_id": dtype, "vector": vector}, new / QUERIES)
            description = {
                "format": FORMAT,
                "version": VERSION,
                "model": config["model"],
                "run": recommender.fingerprint,
                "metric": "inner product",
                "size": vectors.shape[1],
                "items": len(items),
                "queries": written,
                "files": {name: sha256_file(new / name) for name in (ITEMS, QUERIES)},
            }
            (new / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise storage_error(f"{out} cannot be written", error) from error
    for message in remarks(counts, "they have no vector and are left out"):
        warnings.warn(message, RediffuseWarning, stacklevel=2)
    return description | {"out": str(out)}


def _item_vectors(recommender: Recommender) -> torch.Tensor:
    """(num_items, d) float32.

    Raises:
        ConfigError: their inner products with query vectors do not rank the items.
    """
    name = recommender.config["model"]
    if recommender.item_vectors is None:
        raise ConfigError(
            f"{name} has no vectors to export: its scores are not inner products of a user vector with item vectors.",
            "Export a model that ranks by inner products, such as sasrec, gru4rec, diffurec, bprmf or lightgcn.",
        )
    if not recommender.model.ranks_by_vectors:
        raise ConfigError(
            f"The vectors of {name} do not rank the items in this run: a prior is added to their inner products.",
            "Train with prior=none.",
        )
    return recommender.item_vectors.float().cpu().contiguous()


def _refuse_other_files(folder: Path) -> None:
    """Raise unless the folder is new, empty or of earlier vectors: it is replaced as a whole."""
    if not folder.exists():
        return
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    if not folder.is_dir() or names - {ITEMS, QUERIES, DESCRIPTION} or (names and DESCRIPTION not in names):
        raise RunError(f"{folder} exists and holds other files.", "Choose another folder, or remove this one.")


def _blocks_of_run(recommender: Recommender, rows: int) -> Iterator[tuple[pl.Series, None]]:
    for ids in recommender.user_ids.to_frame().iter_slices(rows):
        yield ids.to_series(), None


def _blocks_of_file(file: UserFile, rows: int) -> Iterator[tuple[pl.Series, pl.Series | None]]:
    for _, frame in file.blocks(rows):
        yield frame["user_id"], frame["history"] if file.has_histories else None


@torch.inference_mode()
def _query_vectors(
    recommender: Recommender, ids: pl.Series, histories: pl.Series | None
) -> tuple[pl.Series, torch.Tensor, dict[str, int]]:
    """The ids (n,) of the users who have a vector, the vectors (n, d), and counts for `remarks`."""
    labels, users, rows, counts = recommender.resolve_users(ids, histories)
    model, sampling = recommender.model, recommender.sampling()
    known = ((rows.lengths > 0) | model.has_user_state(users)).nonzero()[0]
    parts = [
        model.query_vectors(rows.take(known[at : at + _BATCH]), users[known[at : at + _BATCH]], sampling).float().cpu()
        for at in range(0, len(known), _BATCH)
    ]
    size = recommender.item_vectors.shape[1]  # type: ignore[union-attr] (a model without is refused)
    return labels.gather(known), torch.cat(parts) if parts else torch.empty(0, size), counts


def _sink(frames: Callable[[], Iterator[pl.DataFrame]], schema: dict[str, Any], path: Path) -> None:
    """Write frames to a Parquet file, one after another."""
    failure: list[Exception] = []

    def source(columns: Any, predicate: Any, n_rows: Any, batch_size: Any) -> Iterator[pl.DataFrame]:
        try:
            yield from frames()
        except Exception as error:  # polars would wrap it
            failure.append(error)
            raise

    try:
        register_io_source(source, schema=pl.Schema(schema)).sink_parquet(path, compression="zstd")
    except pl.exceptions.PolarsError:
        if failure:
            raise failure[0] from None
        raise
