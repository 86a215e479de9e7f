"""Recommendations for files of people of any length, as a folder of parts.

    out/
      request.json           what was asked for, and a checksum of that; written first
      part-00000.parquet     lists of the first people of the file, and so on
      done/part-00000.json   checksum and counts of that part; written after it
      manifest.json          all of these together; written once every part is there

Which people a part holds is settled by its number alone, and what their lists are by the request. So it does not matter
which process makes a part, when, or how often: processes share the parts out by their rank and need to know nothing of
each other, and whoever was killed is made up for by the same command again. A part counts only if its checksum is the
one in ``done``.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from rediffuse.errors import ConfigError, DataError, RediffuseWarning
from rediffuse.files import (
    atomic_create_bytes,
    atomic_write_bytes,
    parquet_bytes,
    sha256_file,
    sha256_json,
    storage_error,
)
from rediffuse.memory import keep_freed_memory
from rediffuse.recommender.id_map import as_text, cast_ids, require_integer
from rediffuse.recommender.recommender import Recommender, remarks
from rediffuse.recommender.user_files import UserFile

FORMAT, VERSION = "rediffuse-recommendations", 2
REQUEST, MANIFEST, DONE = "request.json", "manifest.json", "done"
ROWS_PER_PART = 50_000
_COUNTED = ("users", "rows", "unknown_users", "unknown_items", "empty_histories")


@dataclass(frozen=True)
class BatchResult:
    """What became of a folder of recommendations.

    Attributes:
        folder: where it is.
        parts, written, skipped: of the folder; made by this process; of this process's share, there already.
        missing: parts of other processes that are not there yet. None is: the folder is finished.
        finished_here: this process wrote the manifest. Of several processes that end together, one did.
        counts: people, rows, unknown_users, unknown_items and empty_histories of all parts that are there.
        seconds: that this call took.
    """

    folder: Path
    parts: int
    written: int
    skipped: int
    missing: int
    finished_here: bool
    counts: dict[str, int]
    seconds: float


def recommend_to_folder(
    recommender: Recommender,
    users: str | Path,
    folder: str | Path,
    *,
    k: int = 10,
    exclude: Iterable[Any] | None = None,
    seed: int = 0,
    samples: int = 1,
    filter_seen: bool = True,
    rows_per_part: int = ROWS_PER_PART,
    rank: int = 0,
    world_size: int = 1,
    told: Callable[[int, int], object] = lambda done, parts: None,
) -> BatchResult:
    """Recommend to all people of a file, of any length, and write their lists as numbered parts.

    Memory does not grow with the number of people. A call with the same arguments goes on where an earlier one was
    stopped, by whatever. The parts one after the other are what `Recommender.recommend` returns for all people at once
    (with the column title, where items have titles), but for the last digits of scores.

    Args:
        recommender: of the run that answers.
        users: CSV or Parquet file, folder or glob of such, see `UserFile`. It is read once to check its identity
            and, when the folder is new, once to count and check its rows, besides the reading of what is needed.
        folder: new, empty, or of the same request.
        k, exclude, seed, samples, filter_seen: as for `Recommender.recommend`.
        rows_per_part: people per part; what is held in memory, and lost at most when a process is killed.
        rank, world_size: this process makes the parts whose number leaves ``rank`` when divided by ``world_size``.
        told: called with how many parts of this process's share are there, and how many it has.

    Raises:
        ConfigError: numbers out of range, or another request than that of the folder.
        DataError: the file cannot be read; the folder holds something else, or its request is damaged.
        StorageError: the folder cannot be written.

    Warns:
        RediffuseWarning: unknown users and items, empty histories; with counts over all parts, when they are complete.
    """
    began = time.perf_counter()
    k, samples, rows_per_part = (
        require_integer("k", k),
        require_integer("samples", samples),
        require_integer("rows_per_part", rows_per_part),
    )
    world_size, rank = require_integer("world_size", world_size), require_integer("rank", rank, minimum=0)
    if rank >= world_size:
        raise ConfigError(f"rank is {rank} of {world_size} processes.", f"Give 0 to {world_size - 1}.")
    sampling = recommender.sampling(seed)
    ask, unknown = recommender.build_query(k, exclude, None, filter_seen)
    people = UserFile(users, recommender.is_known_user)
    options = {
        "k": k,
        "exclude": recommender.items["item_id"].gather(sorted(set(ask.excluded.tolist()))).to_list(),
        "seed": sampling.seed,
        "samples": samples,
        "filter_seen": filter_seen,
        "retrieval": "exact" if recommender.ranker.index is None else "index",
        "rows_per_part": rows_per_part,
    }
    run = {"model": recommender.config["model"], "sha256": recommender.fingerprint}
    request = {"run": run, "input": people.identity(), "options": options}
    try:
        parts = _Parts(Path(folder), request, people, recommender)
        mine = range(rank, parts.count, world_size)
        skipped = {part for part in mine if parts.is_whole(part)}
        written: set[int] = set()
        told(len(skipped), len(mine))

        def make(todo: set[int]) -> None:
            for part, frame in people.blocks(rows_per_part, todo.__contains__) if todo else ():
                ids, histories = frame["user_id"], frame["history"] if people.has_histories else None
                names, who, rows, counts = recommender.resolve_users(ids, histories)
                if names.dtype != parts.user_id:
                    names = as_text(ids)
                lists = recommender.titled(recommender.lists(names, who, rows, ask, sampling, samples))
                parts.write(part, lists, counts)
                written.add(part)
                told(len((skipped | written).intersection(mine)), len(mine))

        with keep_freed_memory():
            make(set(mine) - skipped)
            counts, missing, damaged, finished_here = parts.finish()
            if damaged:  # once: a disk that spoils what was just written is not to be written to for ever
                make(damaged)
                counts, missing, _, finished_here = parts.finish()
    except OSError as error:
        raise storage_error(f"{folder} cannot be written", error) from error
    if finished_here:
        for message in remarks(counts | unknown):
            warnings.warn(message, RediffuseWarning, stacklevel=2)
    seconds = time.perf_counter() - began
    return BatchResult(parts.folder, parts.count, len(written), len(skipped), missing, finished_here, counts, seconds)


class _Parts:
    """The folder: checked against the request, or begun with it.

    Attributes:
        count: how many parts there are to be.
        user_id: type of that column in all of them: the run's, or text if any user cannot be of that type.
    """

    def __init__(self, folder: Path, request: dict[str, Any], people: UserFile, recommender: Recommender) -> None:
        self.folder = folder
        if folder.exists() and not folder.is_dir():
            raise DataError(f"{folder} is a file.", "Name a folder, or a new file that ends in .parquet or .csv.")
        if not (folder / REQUEST).exists():
            self._refuse_foreign(set())
            kind = recommender.user_ids.dtype
            rows, fits = 0, True
            for _, frame in people.blocks(ids_only=True):
                rows += len(frame)
                fits = fits and not cast_ids(frame["user_id"], kind).null_count()
            about = {"format": FORMAT, "version": VERSION, **request}
            about |= {"rows": rows, "user_id": str(kind if fits else pl.String)}
            atomic_create_bytes(folder / REQUEST, _json(about | {"sha256": sha256_json(about)}))
        asked = self._read_request()
        named = {"run": "the run is another one", "input": f"{people.name} is not the file of users that it was"}
        differ = [told for name, told in named.items() if asked[name]["sha256"] != request[name]["sha256"]]
        before, now = asked["options"], request["options"]
        differ += [f"{name} was {before[name]}, is {now[name]}" for name in now if before[name] != now[name]]
        if differ:
            raise ConfigError(
                f"{folder} was begun with another request: {'; '.join(differ)}.",
                "RankingQuery for the same as before, or write into a new folder.",
            )
        self.count = -(-asked["rows"] // request["options"]["rows_per_part"])
        self.user_id = pl.String() if asked["user_id"] == "String" else recommender.user_ids.dtype
        self._refuse_foreign({REQUEST, MANIFEST, DONE, *(self.path(part).name for part in range(self.count))})

    def path(self, part: int) -> Path:
        return self.folder / f"part-{part:0{max(5, len(str(self.count - 1)))}}.parquet"

    def is_whole(self, part: int) -> bool:
        """Whether the part is there and is what was written. If not, nothing says so any more."""
        path, record = self.path(part), self._record(part)
        if record and path.is_file() and sha256_file(path) == record["sha256"]:
            return True
        # Nobody is to take the part for a good one, or the folder for a finished one, while it is made again.
        self._done(part).unlink(missing_ok=True)
        (self.folder / MANIFEST).unlink(missing_ok=True)
        return False

    def write(self, part: int, lists: pl.DataFrame, counts: dict[str, int]) -> None:
        content = parquet_bytes(lists)
        atomic_write_bytes(self.path(part), content)
        record = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        record |= {name: counts[name] for name in _COUNTED if name in counts} | {"rows": len(lists)}
        atomic_write_bytes(self._done(part), _json(record))

    def finish(self) -> tuple[dict[str, int], int, set[int], bool]:
        """Counts over the parts that are there, how many are not, which of these were made and are damaged, and
        whether the manifest is this process's."""
        records = {part: record for part in range(self.count) if (record := self._record(part))}
        damaged: set[int] = set()
        if len(records) == self.count and not self._is_finished(records):
            # The manifest vouches for parts of all processes, so they are looked at once more.
            damaged = {part for part in records if not self.is_whole(part)}
        records = {part: record for part, record in records.items() if part not in damaged}
        counts, missing = _counts(records), self.count - len(records)
        if missing or self._is_finished(records):
            return counts, missing, damaged, False
        path = self.folder / MANIFEST
        path.unlink(missing_ok=True)
        finished_here = atomic_create_bytes(path, self._manifest(records))
        if finished_here:  # nobody writes parts any more; what looks like it, processes left that were killed
            for left in self.folder.rglob(".part-*.tmp-*"):
                left.unlink(missing_ok=True)
        return counts, missing, damaged, finished_here

    def _manifest(self, records: dict[int, dict[str, Any]]) -> bytes:
        parts = {self.path(part).name: record for part, record in records.items()}
        return _json({"format": FORMAT, "version": VERSION, **_counts(records), "parts": parts})

    def _is_finished(self, records: dict[int, dict[str, Any]]) -> bool:
        """Whether the manifest is there and speaks of these parts, and they are there by their size."""
        path = self.folder / MANIFEST
        return (
            path.is_file()
            and path.read_bytes() == self._manifest(records)
            and all(_size(self.path(part)) == record["bytes"] for part, record in records.items())
        )

    def _done(self, part: int) -> Path:
        return self.folder / DONE / self.path(part).with_suffix(".json").name

    def _record(self, part: int) -> dict[str, Any] | None:
        """What `write` recorded of a part; None if there is nothing of it, or a damaged one."""
        try:
            record = json.loads(self._done(part).read_bytes())
            numbers = [record[name] for name in ("bytes", *_COUNTED)]
            return record if record["sha256"] and all(isinstance(number, int) for number in numbers) else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def _read_request(self) -> dict[str, Any]:
        path = self.folder / REQUEST
        remedy = "Remove the folder, or write into a new one."
        try:
            asked = json.loads(path.read_bytes())
        except ValueError:
            raise DataError(f"{path} is damaged: it is not JSON.", remedy) from None
        if not isinstance(asked, dict) or asked.get("format") != FORMAT:
            raise DataError(f"{path} is not a request for recommendations.", remedy)
        if asked.get("version") != VERSION:
            problem = f"{path} has version {asked.get('version')}; this version of Rediffuse reads version {VERSION}."
            raise DataError(problem, "Use the version that wrote it, or write into a new folder.")
        if asked.pop("sha256", None) != sha256_json(asked):
            raise DataError(f"{path} was changed after it was written.", remedy)
        return asked

    def _refuse_foreign(self, own: set[str]) -> None:
        """Raise if the folder holds something that is not of these names; hidden files are nobody's business."""
        names = [path.name for path in self.folder.iterdir()] if self.folder.exists() else []
        foreign = sorted(name for name in names if name not in own and not name.startswith("."))
        # In a folder that looked new, they may be of another process that wrote the request first.
        if foreign and (own or not (self.folder / REQUEST).exists()):
            raise DataError(
                f"{self.folder} holds {foreign[0]!r}, which is no part of these recommendations.",
                "Name a new or empty folder, or the one that was begun with the same request.",
            )


def _counts(records: dict[int, dict[str, Any]]) -> dict[str, int]:
    return {name: sum(record[name] for record in records.values()) for name in _COUNTED}


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode() + b"\n"
