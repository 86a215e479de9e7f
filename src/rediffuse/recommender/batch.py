"""Batch inference: recommendations for a user file of any length, as a folder of part files.

    out/
      request.json           the request, with a checksum of itself; written first
      part-00000.parquet     the lists of the first users of the file, and so on
      done/part-00000.json   the completion record of that part file: checksum and counts; written after it
      manifest.json          all completion records together; written when every part file is complete

The number of a part file determines its users, and the request determines their lists. So it does not matter which
process writes a part file, when, or how often: after a kill the same command continues, and an engine may spread a
`PartWork` over processes and machines. A part file counts only if its checksum is the one in its completion record.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rediffuse.arguments import require_flag, require_integer
from rediffuse.errors import ConfigError, DataError, RediffuseWarning, RunError
from rediffuse.files import (
    atomic_create_bytes,
    atomic_write_bytes,
    parquet_bytes,
    sha256_file,
    sha256_json,
    storage_error,
)
from rediffuse.memory import keep_freed_memory
from rediffuse.models.sampling import Sampling
from rediffuse.objects.folders import output
from rediffuse.readers.text_files import TextOptions
from rediffuse.recommender.id_map import as_text, cast_ids
from rediffuse.recommender.item_filters import filter_text
from rediffuse.recommender.ranker import RankingQuery
from rediffuse.recommender.recommender import Recommender
from rediffuse.recommender.remarks import remarks
from rediffuse.recommender.user_files import UserFile
from rediffuse.reranking import SlateName

FORMAT, VERSION = "rediffuse-recommendations", 5
REQUEST, MANIFEST, DONE = "request.json", "manifest.json", "done"
ROWS_PER_PART = 50_000
_COUNTS = ("users", "rows", "unknown_users", "unknown_items", "empty_histories", "uncalibrated")


@dataclass(frozen=True)
class BatchResult:
    """The state of a folder of part files after a call of `recommend_to_folder`.

    Attributes:
        folder: its path.
        parts: number of part files of the complete folder.
        written: part files that this call wrote.
        skipped: part files that were complete before.
        missing: part files that were damaged again after they had been written twice. If 0, the folder is finished.
        finished_here: whether this call wrote the manifest; False if the folder was finished before.
        counts: users, rows, unknown_users, unknown_items, empty_histories and uncalibrated (histories that lists could
            not be calibrated to) over all complete part files.
        seconds: duration of the call.
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
    explain: bool = False,
    candidates: Iterable[Any] | None = None,
    sampling_steps: int | None = None,
    noise: float = 1.0,
    filter: Any = None,
    max_per: Mapping[str, int] | None = None,
    diversity: float | None = None,
    diversity_by: str | None = None,
    slate: SlateName | None = None,
    new_items: float = 0.0,
    temperature: float | None = None,
    guidance_scale: float | None = None,
    text: TextOptions | None = None,
    rows_per_part: int = ROWS_PER_PART,
    on_progress: Callable[[int, int], object] = lambda done, total: None,
    engine: Callable[[PartWork, set[int]], Iterable[int]] | None = None,
) -> BatchResult:
    """Recommend to all users of a user file of any length, and write their lists as numbered part files.

    Memory does not grow with the number of users. A call with the same arguments continues an interrupted one. The
    part files in order hold what `Recommender.recommend` returns for all users at once (with the column title if items
    have titles), except that scores may differ in their last digits.

    Args:
        recommender: the recommender of the run.
        users: a CSV or Parquet file, a folder of such files, or a glob; see `UserFile`. It is read once for its
            checksum and, if the folder is new, once to count and check its rows, before the lists are made.
        folder: new, empty, or started with the same request. It may be in a bucket: "s3://bucket/lists".
        k, exclude, seed, samples, filter_seen, explain, candidates, sampling_steps, noise, filter, max_per, diversity,
            diversity_by, slate, new_items, temperature, guidance_scale: as for `Recommender.recommend`.
        text: how a user file of text is read.
        rows_per_part: users per part file: what is held in memory, and the most work that a kill loses.
        on_progress: called with the number of complete part files and the number of all.
        engine: writes part files of these numbers elsewhere, and yields the number of each that is complete. None: this
            process writes them.

    Raises:
        ConfigError: an argument is out of range, the scores of the model cannot be explained, neither the user file nor
            the run has histories, or the folder was started with another request.
        DataError: the user file cannot be read; the folder holds something else, or its request is damaged.
        StorageError: the folder cannot be written.

    Warns:
        RediffuseWarning: unknown users, unknown items, empty histories and histories that lists cannot be calibrated
            to, with their counts over all part files, once the folder is finished.
    """
    start = time.perf_counter()
    place = output("folder", folder)
    k, samples = require_integer("k", k), require_integer("samples", samples)
    rows_per_part = require_integer("rows_per_part", rows_per_part)
    if explain := require_flag("explain", explain):
        recommender.require_explained_scores()
    sampling = recommender.sampling(seed, sampling_steps, noise, temperature, guidance_scale)
    reranking = recommender.reranking(max_per, diversity, diversity_by, slate)
    query, unknown = recommender.build_query(k, exclude, candidates, filter_seen, filter, reranking, new_items)
    user_file = UserFile(users, recommender.is_known_user, recommender.titles.ids_in_text, text)
    if not user_file.has_histories:
        recommender.require_users()
    options = {
        "k": k,
        "exclude": recommender.items["item_id"].gather(sorted(set(query.excluded.tolist()))).to_list(),
        "seed": sampling.seed,
        "samples": samples,
        "filter_seen": filter_seen,
        "explain": explain,
        "retrieval": "exact" if recommender.ranker.index is None else "index",
        "filter": filter_text(filter),
        "allowed items": None if query.candidates is None else _identity_of(query.candidates),
        "sampling_steps": sampling.sampling_steps,
        "noise": sampling.noise,
        "max_per": dict(max_per) if max_per else None,
        "diversity": float(diversity or 0),
        "diversity_by": diversity_by,
        "slate": slate,
        "new_items": float(new_items),
        "temperature": sampling.temperature,
        "guidance_scale": sampling.guidance_scale,
        "rows_per_part": rows_per_part,
        "text": None if text is None else asdict(text),
    }
    run = {"model": recommender.config["model"], "sha256": recommender.fingerprint}
    request = {"run": run, "input": user_file.identity(), "options": options}
    if place.address is not None and engine is not None:
        raise ConfigError("The workers of an engine cannot write part files to an address.", "Give a shared folder.")
    place.join(REQUEST)
    try:
        parts = PartFiles.start(place.folder, request, user_file, recommender)
        work = PartWork(
            parts, run, Path(users), request["input"], text, rows_per_part, query, sampling, samples, explain
        )
        skipped = {part for part in range(parts.count) if parts.verify(part)}
        written: set[int] = set()
        on_progress(len(skipped), parts.count)

        def write_parts(wanted: set[int]) -> None:
            if not wanted:
                return
            own = work.write(recommender, user_file, wanted.__contains__) if engine is None else engine(work, wanted)
            for part in own:
                place.upload((REQUEST, *parts.files_of(part)))
                written.add(part)
                on_progress(len(skipped | written), parts.count)

        with keep_freed_memory():
            write_parts(set(range(parts.count)) - skipped)
            counts, missing, damaged, finished_here = parts.finish()
            if damaged:  # only once: do not write forever to a disk that damages what was just written
                write_parts(damaged)
                counts, missing, _, finished_here = parts.finish()
    except OSError as error:
        raise storage_error(f"{place.path} cannot be written", error) from error
    if not missing:
        place.publish()
    if finished_here:
        for message in remarks(counts | unknown):
            warnings.warn(message, RediffuseWarning, stacklevel=2)
    seconds = time.perf_counter() - start
    return BatchResult(place.path, parts.count, len(written), len(skipped), missing, finished_here, counts, seconds)


@dataclass(frozen=True)
class PartWork:
    """What makes part files: the request, in item numbers. Any process with the run and the user file can write them.

    Attributes:
        parts: the folder.
        run: name of the model, and the fingerprint of the recommender.
        users, input: the user file, and its identity.
        text: how it is read, if it is text.
        rows_per_part: users per part file.
        query, sampling, samples, explain: as `Recommender.lists` takes them.
    """

    parts: PartFiles
    run: dict[str, str]
    users: Path
    input: dict[str, Any]
    text: TextOptions | None
    rows_per_part: int
    query: RankingQuery
    sampling: Sampling
    samples: int
    explain: bool

    def open_users(self, recommender: Recommender) -> UserFile:
        """The user file, opened by another process than the one that started the folder.

        Raises:
            DataError: it cannot be read, or is not the one of the request.
            RunError: ``recommender`` is not of the run of the request.
        """
        with warnings.catch_warnings(action="ignore", category=RediffuseWarning):  # said when the folder was started
            user_file = UserFile(self.users, recommender.is_known_user, recommender.titles.ids_in_text, self.text)
        if recommender.fingerprint != self.run["sha256"]:
            remedy = "Put the run where all processes find the same files."
            raise RunError("Processes of one request loaded different runs from the same path.", remedy)
        if user_file.identity() != self.input:
            raise DataError(f"{self.users} differs between processes.", "Put it where all find the same file.")
        return user_file

    def write(self, recommender: Recommender, user_file: UserFile, wanted: Callable[[int], bool]) -> Iterator[int]:
        """Write the wanted part files in the order of their numbers, and yield each number when it is complete.

        Raises:
            DataError, StorageError: as `recommend_to_folder`.
        """
        for part, frame in user_file.blocks(self.rows_per_part, wanted):
            ids, histories = frame["user_id"], frame["history"] if user_file.has_histories else None
            labels, user_numbers, rows, counts = recommender.resolve_users(ids, histories)
            reranking = self.query.reranking
            counts["uncalibrated"] = 0 if reranking is None else reranking.uncalibrated(rows)
            if labels.dtype != self.parts.user_id_type:
                labels = as_text(ids)
            request = self.query, self.sampling, self.samples
            self.parts.write(
                part, recommender.lists(labels, user_numbers, rows, *request, explain=self.explain), counts
            )
            yield part


@dataclass(frozen=True)
class PartFiles:
    """The folder of part files.

    Attributes:
        folder: its path.
        count: number of part files of the complete folder.
        user_id_type: type of the column user_id in all of them: that of the run's ids, or text if a user id of the
            file cannot be of that type.
    """

    folder: Path
    count: int
    user_id_type: pl.DataType

    @classmethod
    def start(cls, folder: Path, request: dict[str, Any], user_file: UserFile, recommender: Recommender) -> PartFiles:
        """Start the folder with the request, or check it against the one it was started with.

        Raises:
            ConfigError, DataError: as `recommend_to_folder`.
        """
        if folder.exists() and not folder.is_dir():
            raise DataError(f"{folder} is a file.", "Name a folder, or a new file that ends in .parquet or .csv.")
        run_id_type = recommender.user_ids.dtype
        if not (folder / REQUEST).exists():
            _refuse_other_files(folder, set())
            user_file.require_known()
            rows, fits = 0, True
            for _, frame in user_file.blocks(ids_only=True):
                rows += len(frame)
                fits = fits and not cast_ids(frame["user_id"], run_id_type).null_count()
            content = {"format": FORMAT, "version": VERSION, **request}
            content |= {"rows": rows, "user_id": str(run_id_type if fits else pl.String)}
            atomic_create_bytes(folder / REQUEST, _json(content | {"sha256": sha256_json(content)}))
        earlier = _read_request(folder / REQUEST)
        messages = {"run": "the run is another one", "input": f"the content of the user file {user_file.name} differs"}
        differences = [text for key, text in messages.items() if earlier[key]["sha256"] != request[key]["sha256"]]
        before, now = earlier["options"], request["options"]
        differences += [
            f"{name} was {before.get(name)}, is {now[name]}" for name in now if before.get(name) != now[name]
        ]
        if differences:
            raise ConfigError(
                f"{folder} was started with another request: {'; '.join(differences)}.",
                "Repeat the earlier request, or write into a new folder.",
            )
        count = -(-earlier["rows"] // request["options"]["rows_per_part"])
        parts = cls(folder, count, pl.String() if earlier["user_id"] == "String" else run_id_type)
        _refuse_other_files(folder, {REQUEST, MANIFEST, DONE, *(parts.path(part).name for part in range(count))})
        return parts

    def path(self, part: int) -> Path:
        return self.folder / f"part-{part:0{max(5, len(str(self.count - 1)))}}.parquet"

    def files_of(self, part: int) -> tuple[str, str]:
        """The names of a part file and its completion record."""
        return self.path(part).name, self._record_path(part).relative_to(self.folder).as_posix()

    def verify(self, part: int) -> bool:
        """Verify the checksum of a part file; if it fails, delete the completion record and the manifest."""
        path, record = self.path(part), self._record(part)
        if record and path.is_file() and sha256_file(path) == record["sha256"]:
            return True
        # While the part file is written again, it must not count as complete, nor the folder as finished.
        self._record_path(part).unlink(missing_ok=True)
        (self.folder / MANIFEST).unlink(missing_ok=True)
        return False

    def write(self, part: int, lists: pl.DataFrame, counts: dict[str, int]) -> None:
        """Write a part file, then its completion record."""
        content = parquet_bytes(lists)
        atomic_write_bytes(self.path(part), content)
        record = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        record |= {name: counts[name] for name in _COUNTS if name in counts} | {"rows": len(lists)}
        atomic_write_bytes(self._record_path(part), _json(record))

    def finish(self) -> tuple[dict[str, int], int, set[int], bool]:
        """Write the manifest if every part file is complete.

        Returns:
            Counts over the complete part files, the number of missing ones, the numbers of those that were complete
            and are damaged now, and whether this call wrote the manifest.
        """
        records = {part: record for part in range(self.count) if (record := self._record(part))}
        damaged: set[int] = set()
        if len(records) == self.count and not self._is_finished(records):
            # The manifest vouches for part files that any process may have written, so verify them once more.
            damaged = {part for part in records if not self.verify(part)}
        records = {part: record for part, record in records.items() if part not in damaged}
        counts, missing = _sums(records), self.count - len(records)
        if missing or self._is_finished(records):
            return counts, missing, damaged, False
        path = self.folder / MANIFEST
        path.unlink(missing_ok=True)
        finished_here = atomic_create_bytes(path, self._manifest(records))
        if finished_here:  # no process writes part files any more: temporary files are left from killed processes
            for leftover in self.folder.rglob(".part-*.tmp-*"):
                leftover.unlink(missing_ok=True)
        return counts, missing, damaged, finished_here

    def _manifest(self, records: dict[int, dict[str, Any]]) -> bytes:
        parts = {self.path(part).name: record for part, record in records.items()}
        return _json({"format": FORMAT, "version": VERSION, **_sums(records), "parts": parts})

    def _is_finished(self, records: dict[int, dict[str, Any]]) -> bool:
        """Whether the manifest lists exactly these records, and the part files have the recorded sizes."""
        path = self.folder / MANIFEST
        return (
            path.is_file()
            and path.read_bytes() == self._manifest(records)
            and all(_size(self.path(part)) == record["bytes"] for part, record in records.items())
        )

    def _record_path(self, part: int) -> Path:
        return self.folder / DONE / self.path(part).with_suffix(".json").name

    def _record(self, part: int) -> dict[str, Any] | None:
        """The completion record of a part file; None if there is none or it is damaged."""
        try:
            record = json.loads(self._record_path(part).read_bytes())
            numbers = [record[name] for name in ("bytes", *_COUNTS)]
            return record if record["sha256"] and all(isinstance(number, int) for number in numbers) else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None


def _read_request(path: Path) -> dict[str, Any]:
    remedy = "Remove the folder, or write into a new one."
    try:
        request = json.loads(path.read_bytes())
    except ValueError:
        raise DataError(f"{path} is damaged: it is not JSON.", remedy) from None
    if not isinstance(request, dict) or request.get("format") != FORMAT:
        raise DataError(f"{path} is not a request for recommendations.", remedy)
    if request.get("version") != VERSION:
        problem = f"{path} has version {request.get('version')}; this version of Rediffuse reads version {VERSION}."
        raise DataError(problem, "Use the version that wrote it, or write into a new folder.")
    if request.pop("sha256", None) != sha256_json(request):
        raise DataError(f"{path} was changed after it was written.", remedy)
    return request


def _refuse_other_files(folder: Path, expected: set[str]) -> None:
    """Refuse a folder that holds anything but files of these names; hidden files do not count."""
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    others = sorted(name for name in names if name not in expected and not name.startswith("."))
    # If the folder looked new, another process may have started it in the meantime, with the same request.
    if others and (expected or not (folder / REQUEST).exists()):
        raise DataError(
            f"{folder} holds {others[0]!r}, which does not belong to these recommendations.",
            "Name a new or empty folder, or the one that was started with the same request.",
        )


def _sums(records: dict[int, dict[str, Any]]) -> dict[str, int]:
    return {name: sum(record[name] for record in records.values()) for name in _COUNTS}


def _identity_of(items: NDArray[np.int64]) -> str:
    """How many items these are, and a checksum of their numbers."""
    digest = hashlib.sha256(np.ascontiguousarray(items, dtype=np.int64).tobytes()).hexdigest()
    return f"{len(items):,} items (sha256 {digest[:16]})"


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode() + b"\n"
