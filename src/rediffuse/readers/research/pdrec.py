"""PDRec's data: ``NAME_log_file_final.pkl``, the items of each user, and ``NAME_log_timestep_final.pkl``, the times."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from rediffuse.data.dataset import Dataset
from rediffuse.errors import DataError
from rediffuse.readers.interactions import read_interactions
from rediffuse.readers.research.files import array, find, need, pickled_sequences, with_notes, with_positions


def read(folder: Path) -> Dataset:
    """Users and items are numbered from 1; the last interaction is test, the last but one validation.

    ``mix_log_...``, the log of both domains, is left out: cut at the last interaction of the target domain and without
    the other domain, it is the log that is read.

    Raises:
        DataError: a file is missing, holds something else, or the two do not agree.
    """
    # Of toy, book and so on; glob has no negation, and mix is the only other name.
    log = need(folder, "[!m]*_log_file_final.pkl", "m[!i]*_log_file_final.pkl", purpose="items of each user")
    name = log.name.removesuffix("_log_file_final.pkl")
    times = need(log.parent, f"{name}_log_timestep_final.pkl", purpose="times of each user")
    pairs, of_time = pickled_sequences(log), pickled_sequences(times)
    if not pairs["user_id"].equals(of_time["user_id"]):
        raise DataError(f"{log} and {times} do not hold as many entries for each user.", "Get both files again.")
    pairs = with_positions(pairs.with_columns(timestamp=of_time["item_id"]))
    left = pl.len().over("user_id") - pl.col("position")  # 1 for the last
    split = pl.when(left == 1).then(pl.lit("test")).when(left == 2).then(pl.lit("valid")).otherwise(pl.lit("train"))
    dataset = read_interactions(
        pairs,
        time="timestamp",
        order="position",
        splits=pairs.drop("timestamp").with_columns(split=split),
        items=_original_ids(log.parent, name),
    )
    return with_notes(dataset, "The other domain (mix_log_...) was not read.")


def _original_ids(folder: Path, name: str) -> pl.DataFrame | None:
    """The ids of the publisher: row i is about item i + 1."""
    path = find(folder, f"item_index_{name}.npy")
    if path is None:
        return None
    ids = array(path, "iuU", 0)
    return pl.DataFrame({"item_id": range(1, len(ids) + 1), "original_item_id": ids.astype(str)})
