"""What can be read from a folder of released research data: forms of files, and data sets that are known by counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from rediffuse.arguments import require_path, wrong_type
from rediffuse.data.dataset import Dataset
from rediffuse.errors import ConfigError, DataError, did_you_mean
from rediffuse.readers.research import diffnet, diffrec, diffurec, kgat, pdrec

# Form of files -> its reader.
FORMS: dict[str, Callable[[Path], Dataset]] = {
    "diffkg": kgat.read_diffkg,
    "diffnet": diffnet.read,
    "diffrec": diffrec.read,
    "diffurec": diffurec.read,
    "kgat": kgat.read_kgat,
    "lightgcn": kgat.read_lightgcn,
    "pdrec": pdrec.read,
}


@dataclass(frozen=True)
class Released:
    """A data set: the form of its files, and the users and items with interactions, and interactions, that it has."""

    form: str
    users: int
    items: int
    interactions: int


SETS = {
    "amazon-beauty": Released("diffurec", 22_363, 12_101, 198_502),
    "amazon-toys": Released("diffurec", 19_412, 11_924, 167_597),
    "diffurec-ml-1m": Released("diffurec", 6_040, 3_706, 1_000_209),
    "diffrec-ml1m-clean": Released("diffrec", 5_949, 2_810, 571_531),
    "diffnet-yelp": Released("diffnet", 17_235, 37_378, 207_945),
    "pdrec-amazon-toy": Released("pdrec", 7_996, 37_868, 114_487),
    "pdrec-douban-book": Released("pdrec", 12_170, 33_697, 514_015),
}


def read_released(name: str, folder: str | PathLike[str]) -> Dataset:
    """Released files as a dataset, with the split that was released with them as the split "given".

    No code of the files is run: pickles are read as data alone (`rediffuse.readers.research.pickles`).

    Args:
        name: a key of `SETS`, whose counts are then checked, or of `FORMS`, for any data set in that form.
        folder: where the files lie, themselves or in a folder below.

    Raises:
        ConfigError: unknown name.
        DataError: a file is missing, holds something else, or the counts are not those of the data set.
    """
    if not isinstance(name, str):
        raise wrong_type("name", name, "the name of a data set", did_you_mean("", [*SETS, *FORMS]))
    if name not in SETS and name not in FORMS:
        raise ConfigError(f"There are no released files that are called {name!r}.", did_you_mean(name, [*SETS, *FORMS]))
    folder = require_path("from_folder", folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder.", "Name the folder that holds the released files.")
    known = SETS.get(name)
    dataset = FORMS[known.form if known else name](folder)
    if known is not None:
        users = dataset.num_users - dataset.report.get("users_without_interactions", 0)
        found = (users, dataset.num_items, dataset.num_interactions)
        wanted = (known.users, known.items, known.interactions)
        if found != wanted:
            raise DataError(
                f"{folder} does not hold {name}: it has {_counts(found)}, and {name} has {_counts(wanted)}.",
                f"Check the folder. What it holds is read by: rediffuse data {known.form} --from {folder} -o OUT",
            )
    dataset.report["source"] = f"files in the form of {known.form if known else name}, from {folder}"
    return dataset


def _counts(counts: tuple[int, int, int]) -> str:
    return f"{counts[0]:,} users, {counts[1]:,} items and {counts[2]:,} interactions"
