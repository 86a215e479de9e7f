"""Public data sets: where they come from, how they are checked, and how they become a `Dataset`.

Nothing is redistributed here. A data set comes from the folder that REDIFFUSE_DATA names, from its publisher, or
(ml-100k) from the RecBole wheel through pip. The publishers' terms of use apply; docs/data.md names them.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from rediffuse.addresses import refuse_address
from rediffuse.arguments import wrong_type
from rediffuse.data.dataset import Dataset
from rediffuse.errors import ConfigError, DataError, did_you_mean
from rediffuse.objects.folders import output
from rediffuse.readers.interactions import read_interactions
from rediffuse.readers.research import FORMS, SETS, read_released
from rediffuse.table_files import read_csv, read_parquet, scan_parquet

# Seconds without an answer after which the next source is tried.
TIMEOUT = 10
# Seconds and bytes that a download may take; the largest archive has 6 million bytes.
DEADLINE, MOST_BYTES = 300.0, 256 << 20
_MOVIELENS = "https://files.grouplens.org/datasets/movielens/"


@dataclass(frozen=True)
class Archive:
    """A publisher's zip file, and the number of interactions that it must yield."""

    url: str
    sha256: str
    build: Callable[[zipfile.ZipFile], Dataset]
    interactions: int


def public_dataset_names(root: str | os.PathLike[str] | None = None) -> list[str]:
    """Names that `public_dataset` accepts: data sets with a public address, and those in the data folder."""
    folder = data_root(root)
    prepared = [] if folder is None else [path.parent.name for path in folder.glob("*/interactions.parquet")]
    return sorted({*_archives(), *prepared})


def public_dataset(
    name: str,
    out: str | os.PathLike[str] | None = None,
    root: str | os.PathLike[str] | None = None,
    from_folder: str | os.PathLike[str] | None = None,
) -> Dataset:
    """A public data set by name.

    Sources are tried in this order: the data folder, the publisher, and for ml-100k the RecBole wheel. With
    ``from_folder``, the files that the authors of a paper released are read instead (docs/research_data.md).

    Args:
        name: one of `public_dataset_names()`; with ``from_folder``, a data set or form of files of
            `rediffuse.readers.research`.
        out: folder to save the dataset to as well.
        root: the data folder, if it is not the one that REDIFFUSE_DATA names.
        from_folder: a folder of released files.

    Raises:
        ConfigError: unknown name.
        DataError: no source could be reached, or what it sent is not the data set; the error lists what was
            tried.
    """
    if out is not None:
        output("out", out)  # before the work
    if from_folder is not None:
        dataset = read_released(name, from_folder)
        if out is not None:
            dataset.save(out)
        return dataset
    if not isinstance(name, str):
        raise wrong_type("name", name, "the name of a data set", did_you_mean("", public_dataset_names(root)))
    known, folder = public_dataset_names(root), data_root(root)
    if name not in known:
        more = "" if folder else " More are found in the folder that REDIFFUSE_DATA names."
        if name in (*SETS, *FORMS):
            more += f" Released files of {name} are read from a folder: rediffuse data {name} --from FOLDER -o OUT"
        raise ConfigError(f"There is no data set {name!r}.", did_you_mean(name, known) + more)
    if folder is not None and (folder / name / "interactions.parquet").is_file():
        dataset = load_prepared(folder / name)
    else:
        dataset = _fetch_remote(name)
    if out is not None:
        dataset.save(out)
    return dataset


def data_root(root: str | os.PathLike[str] | None = None) -> Path | None:
    """The folder of prepared data sets: ``root``, else the one that REDIFFUSE_DATA names; None if neither is given.

    Raises:
        DataError: the folder does not exist.
    """
    place = root if root is not None else os.environ.get("REDIFFUSE_DATA")
    if not place:
        return None
    refuse_address("The data folder", place)
    if not Path(place).is_dir():
        raise DataError(f"The data folder {place} does not exist.", "Set REDIFFUSE_DATA to a folder of data sets.")
    return Path(place)


def load_prepared(folder: Path) -> Dataset:
    """A data set of the data folder: Parquet files under fixed names, of which only ``interactions`` is required.

    Columns are recognised by name: ``timestamp``, ``position`` (order), ``rating`` or ``weight``, ``title``.

    Raises:
        DataError: a file is missing or cannot be used.
    """
    columns = scan_parquet([folder / "interactions.parquet"]).collect_schema().names()

    def column(*candidates: str) -> str | None:
        return next((name for name in candidates if name in columns), None)

    def table(name: str) -> Path | None:
        path = folder / f"{name}.parquet"
        return path if path.is_file() else None

    return read_interactions(
        folder / "interactions.parquet",
        time=column("timestamp"),
        order=column("position"),
        rating=column("rating", "weight"),
        items=_described_items(folder),
        users=table("users"),
        social=table("social"),
        kg=_named_triples(folder),
        item_entity=table("item_entity"),
        splits=table("splits"),
    )


def _described_items(folder: Path) -> Any:
    """The item table; with a list of attributes, if there is a table of these."""
    items, attributes = folder / "items.parquet", folder / "item_attributes.parquet"
    if not attributes.is_file():
        return items if items.is_file() else None
    of_items = (
        read_parquet(attributes)
        .group_by("item_id", maintain_order=True)
        .agg(pl.col("attribute_id").cast(pl.String).alias("attributes"))
    )
    return read_parquet(items).join(of_items, on="item_id", how="left") if items.is_file() else of_items


def _named_triples(folder: Path) -> Any:
    """The triples; with the names of relations, if those are numbers and a table names them."""
    if not (folder / "kg.parquet").is_file():
        return None
    if not (folder / "relations.parquet").is_file():
        return folder / "kg.parquet"
    relations = read_parquet(folder / "relations.parquet")
    names = pl.col("relation").replace_strict(relations["relation_id"], relations["name"])
    return read_parquet(folder / "kg.parquet").with_columns(names)


# --- publishers --------------------------------------------------------------------------------------------


def _archives() -> dict[str, Archive]:
    # Several independent projects pin these sha256 values for these addresses.
    return {
        "ml-100k": Archive(
            _MOVIELENS + "ml-100k.zip",
            "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
            _build_ml_100k,
            100_000,
        ),
        "ml-1m": Archive(
            _MOVIELENS + "ml-1m.zip",
            "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
            _build_ml_1m,
            1_000_209,
        ),
        "lastfm-hetrec": Archive(
            "https://files.grouplens.org/datasets/hetrec2011/hetrec2011-lastfm-2k.zip",
            "6738f48195667ff03caaab4d32ca9a3133d8cc026b7c3cdaf6ce1010e913c59c",
            _build_lastfm,
            92_834,
        ),
    }


def _fetch_remote(name: str) -> Dataset:
    archive = _archives()[name]
    sources: list[tuple[str, Callable[[], Dataset]]] = [(archive.url, lambda: _from_archive(archive))]
    if name == "ml-100k":
        sources.append((f"pip download {_WHEEL}", _from_recbole_wheel))
    tried = []
    for label, source in sources:
        try:
            dataset = source()
        except _UnreachableError as error:
            tried.append(f"{label}: {error}")
            continue
        dataset.report["source"] = label
        return dataset
    raise DataError(
        f"The data set {name!r} could not be fetched. Tried: " + "; ".join(tried) + ".",
        "Check the network or proxy, or set REDIFFUSE_DATA to a folder that holds the set.",
    )


class _UnreachableError(Exception):
    """A source did not answer; the next one may."""


def _from_archive(archive: Archive) -> Dataset:
    content = _download(archive.url)
    _check(archive.url, content, archive.sha256)
    with zipfile.ZipFile(io.BytesIO(content)) as unpacked:
        dataset = archive.build(unpacked)
    if dataset.num_interactions != archive.interactions:
        raise DataError(
            f"{archive.url} gave {dataset.num_interactions:,} interactions, not {archive.interactions:,}.",
            "Report this: the reader does not fit the file.",
        )
    return dataset


def _download(url: str) -> bytes:
    """The content at an address.

    Raises:
        _UnreachableError: there is no answer, it breaks off, it is larger than `MOST_BYTES`, or not complete after
            `DEADLINE` seconds, however slowly it comes.
    """
    found: list[bytes] = []
    problem: list[object] = [f"not complete after {DEADLINE:g} seconds"]
    end = time.monotonic() + DEADLINE

    def fetch() -> None:
        try:
            found.append(_read(url, end))
        except (OSError, http.client.HTTPException, ValueError, _UnreachableError) as error:
            problem[0] = getattr(error, "reason", None) or error

    # Name servers and headers that drip have no time limit of their own, so another thread waits for them.
    worker = threading.Thread(target=fetch, daemon=True)
    worker.start()
    worker.join(DEADLINE)
    if not found:
        raise _UnreachableError(problem[0])
    return found[0]


def _read(url: str, end: float) -> bytes:
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
        expected, content = response.length, bytearray()
        while piece := response.read1(1 << 16):
            content += piece
            if len(content) > MOST_BYTES:
                raise _UnreachableError(f"more than {MOST_BYTES:,} bytes")
            if time.monotonic() > end:
                raise _UnreachableError("the time is over")
    if expected is not None and len(content) < expected:
        raise _UnreachableError(f"broken off after {len(content):,} of {expected:,} bytes")
    return bytes(content)


def _check(what: str, content: bytes, sha256: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise DataError(
            f"{what} is not the file it should be: its sha256 is {found}, expected {sha256}.",
            "Try again. If the error stays, the file was changed at its source or in transit: do not use it.",
        )


def _build_ml_100k(archive: zipfile.ZipFile) -> Dataset:
    ratings = ["user_id", "item_id", "rating", "timestamp"]
    films = _table(archive, "u.item", "|", ["item_id", "title", "release_date", "_", "imdb_url", *_GENRES])
    genres = pl.concat_str(
        [pl.when(pl.col(g) == "1").then(pl.lit(g)) for g in _GENRES], separator="|", ignore_nulls=True
    )
    films = films.select("item_id", "title", "release_date", "imdb_url", genres.alias("genres"))
    folds = []
    for scheme in ("u1", "u2", "u3", "u4", "u5", "ua", "ub"):
        for file, subset in (("base", "train"), ("test", "test")):
            rows = _table(archive, f"{scheme}.{file}", "\t", ratings).select("user_id", "item_id")
            folds.append(rows.with_columns(split=pl.lit(subset), scheme=pl.lit(scheme)))
    return read_interactions(
        _by_time(_table(archive, "u.data", "\t", ratings)),
        time="timestamp",
        rating="rating",
        items=films,
        users=_table(archive, "u.user", "|", ["user_id", "age", "gender", "occupation", "zip_code"]),
        splits=pl.concat(folds),
    )


def _build_ml_1m(archive: zipfile.ZipFile) -> Dataset:
    ratings = _table(archive, "ratings.dat", "::", ["user_id", "item_id", "rating", "timestamp"])
    return read_interactions(
        _by_time(ratings),
        time="timestamp",
        rating="rating",
        items=_table(archive, "movies.dat", "::", ["item_id", "title", "genres"]),
        users=_table(archive, "users.dat", "::", ["user_id", "gender", "age", "occupation", "zip"]),
    )


def _build_lastfm(archive: zipfile.ZipFile) -> Dataset:
    artists = _table(archive, "artists.dat", "\t", ["item_id", "title", "url", "_"], "utf-8", header=True)
    links = _table(archive, "user_friends.dat", "\t", ["source", "target"], "utf-8", header=True)
    return read_interactions(
        _table(archive, "user_artists.dat", "\t", ["user_id", "item_id", "weight"], "utf-8", header=True),
        rating="weight",
        items=artists.select("item_id", "title", "url"),
        social=links,
    )


_GENRES = ["unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary"]
_GENRES += ["Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller"]
_GENRES += ["War", "Western"]


def _table(
    archive: zipfile.ZipFile,
    name: str,
    separator: str,
    columns: list[str],
    encoding: str = "latin-1",
    header: bool = False,
) -> pl.DataFrame:
    """A member of an archive with these columns; ids become integers, all else stays text."""
    member = next((path for path in archive.namelist() if path.rsplit("/", 1)[-1] == name), None)
    if member is None:
        raise DataError(f"The archive holds no {name}.", "Its layout has changed; report this.")
    text = archive.read(member).decode(encoding).replace(separator, "\x1f").encode()
    frame = read_csv(
        text, separator="\x1f", quote_char=None, has_header=header, new_columns=columns, infer_schema=False
    )
    return frame.with_columns(pl.col("^(user_id|item_id|source|target)$").cast(pl.Int64))


def _by_time(ratings: pl.DataFrame) -> pl.DataFrame:
    # The publisher's file has no order. Ties are sorted by item id, so that every source gives the histories of the
    # prepared data set.
    numbers = ratings.with_columns(pl.col("rating").cast(pl.Float32), pl.col("timestamp").cast(pl.Int64))
    return numbers.sort("user_id", "timestamp", "item_id")


# --- RecBole's wheel ---------------------------------------------------------------------------------------

_WHEEL = "recbole==1.2.1"
_MEMBERS = {
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
    "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
}


def _from_recbole_wheel() -> Dataset:
    """ml-100k as RecBole ships it, without its knowledge graph, whose links describe the wrong films.

    (The links are MovieLens-1M film numbers; see RUCAIBox/RecSysDatasets issue 130.)
    """
    with tempfile.TemporaryDirectory() as temporary:
        _pip_download(Path(temporary))
        wheel = next(Path(temporary).glob("*.whl"), None)
        if wheel is None:
            raise _UnreachableError("pip brought no wheel")
        with zipfile.ZipFile(wheel) as archive:
            content = {name: archive.read(f"recbole/dataset_example/ml-100k/{name}") for name in _MEMBERS}
    for name, sha256 in _MEMBERS.items():
        _check(f"{name} in the wheel of {_WHEEL}", content[name], sha256)

    def frame(name: str) -> pl.DataFrame:
        raw = read_csv(content[name], separator="\t", quote_char=None, infer_schema=False)
        raw = raw.rename({column: column.partition(":")[0] for column in raw.columns})
        return raw.with_columns(pl.col("^(user_id|item_id)$").cast(pl.Int64))

    films = frame("ml-100k.item")
    known = pl.col("movie_title") != "unkonwn"  # sic
    title = pl.when(known).then(pl.format("{} ({})", "movie_title", "release_year")).otherwise(pl.lit("unknown"))
    return read_interactions(
        _by_time(frame("ml-100k.inter")),
        time="timestamp",
        rating="rating",
        items=films.select("item_id", title.alias("title"), pl.col("class").str.replace_all(" ", "|").alias("genres")),
        users=frame("ml-100k.user"),
    )


def _pip_download(folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += [
        "--disable-pip-version-check",
        "--retries",
        "1",
        "--timeout",
        str(TIMEOUT),
        "-d",
        str(folder),
        _WHEEL,
    ]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=20 * TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _UnreachableError(str(error)) from None
    if process.returncode:
        lines = [line for line in process.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise _UnreachableError(lines[-1] if lines else f"pip ended with {process.returncode}")
