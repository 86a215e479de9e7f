"""A study: its result, its folder and its journal."""

from __future__ import annotations

import contextlib
import datetime
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from filelock import FileLock

from rediffuse.display import Displayed
from rediffuse.errors import RunError
from rediffuse.files import atomic_write_text, writing
from rediffuse.runs.identity import refuse_other_identity
from rediffuse.runs.lock import is_unused

if TYPE_CHECKING:
    import optuna

FORMAT = 1


@dataclass(frozen=True, repr=False)
class Study(Displayed):
    """The result of a search on validation data.

    Attributes:
        path: the study's folder.
        model: name of the model.
        metric: the validation metric that was maximised.
        best_config: the options of the best trial that differ from the model's default.
        best_value: value of the metric in the best trial.
        default_rank: rank of the default among all trials, from 1; None if it was not validated.
        trials: one row per trial: number, state, default (whether it is the default), value, epochs, minutes, and every
            searched option. States: complete; pruned (below the median of the others); failed (its training raised an
            error); interrupted (by the time limit or the end of the process); repeated (interrupted, and run again as
            a later trial).
        minutes: time of all trials over all sessions.
    """

    path: Path
    model: str
    metric: str
    best_config: dict[str, Any]
    best_value: float
    default_rank: int | None
    trials: pl.DataFrame
    minutes: float

    @property
    def ranking(self) -> pl.DataFrame:
        """The trials with a value, best first; repeated trials count once."""
        return rank_trials(self.trials)

    def _display(self) -> tuple[str, dict[str, Any]]:
        states = self.trials.group_by("state").len().sort("state").iter_rows()
        return f"Study {self.path}", {
            "model": self.model,
            f"best {self.metric}": self.best_value,
            "best config": self.best_config or "the default",
            "default": None if self.default_rank is None else f"rank {self.default_rank} of {len(self.ranking)}",
            "trials": ", ".join(f"{count} {state}" for state, count in states),
            "minutes": round(self.minutes, 2),
        }


def rank_trials(trials: pl.DataFrame) -> pl.DataFrame:
    """The trials with a value, best first; of equal ones, the earlier first."""
    counted = trials.filter(pl.col("value").is_not_null() & (pl.col("state") != "repeated"))
    return counted.sort("value", descending=True, maintain_order=True)


def refuse_other_folder(folder: Path, identity: dict[str, Any]) -> None:
    """Check that a folder is new or holds the study with this identity.

    Raises:
        RunError: the folder holds another study, or something else.
    """
    if (folder / "study.json").exists():
        recorded = read_study(folder)
        if recorded.get("storage", "journal") != identity.get("storage", "journal"):
            there = "in a database" if "storage" in recorded else "in its journal"
            remedy = "Name it: --storage URL." if "storage" in recorded else "Leave out --storage."
            raise RunError(f"The trials of {folder} are {there}.", remedy)
        refuse_other_study(folder, recorded, identity)
    elif not is_unused(folder):
        raise RunError(f"{folder} is not empty and holds no study.", "Choose another folder.")


def refuse_other_study(place: Path | str, recorded: dict[str, Any], identity: dict[str, Any]) -> None:
    """Check that the study recorded at a place has this identity.

    Raises:
        RunError: it has another one.
    """
    remedy = "Use the options it was started with (trials and minutes may change), or choose another folder."
    refuse_other_identity(place, recorded, identity, remedy)


def start_study(folder: Path, identity: dict[str, Any]) -> None:
    """Write study.json into a folder that the caller has locked, unless the study was started before.

    Raises:
        RunError: as `refuse_other_folder`, if another process has used the folder in the meantime.
    """
    refuse_other_folder(folder, identity)
    if not (folder / "study.json").exists():
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        content = {"format": FORMAT, "created": created, **identity}
        atomic_write_text(folder / "study.json", json.dumps(content, indent=2) + "\n")


def read_study(folder: Path) -> dict[str, Any]:
    """Read study.json.

    Raises:
        RunError: the file is damaged, or of another version.
    """
    path = folder / "study.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error}).", "Restore it from a copy, or choose another folder.") from None
    if version != FORMAT:
        raise RunError(f"{path} has format {version}; this version reads {FORMAT}.", "Use the version that wrote it.")
    return content


def open_journal(path: Path, *, shared: bool = False) -> optuna.storages.JournalStorage:
    """Open the journal of a study. An incomplete last line, left by a kill, is dropped.

    Args:
        path: of the journal, in a folder that the caller has locked.
        shared: other processes will write to it, while the folder is not locked.

    Raises:
        RunError: the journal is damaged before its last line.
        StorageError: the journal cannot be written, now or later.
    """
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage

    class Backend(JournalFileBackend):
        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            with writing(path):
                super().append_logs(logs)

    def complete() -> None:
        with path.open("ab") as file:
            file.truncate(path.read_bytes().rfind(b"\n") + 1)

    class SharedLock(JournalFileOpenLock):
        """A lock that the system releases when its process is killed; Optuna's would be waited for, then broken."""

        def __init__(self) -> None:
            self._lock = FileLock(f"{path}.lock")

        def acquire(self) -> bool:
            self._lock.acquire()
            complete()
            return True

        def release(self) -> None:
            self._lock.release()

    with writing(path):
        if not shared:
            complete()
            # Locks left by a killed process.
            for stale in path.parent.glob(f"{path.name}.*"):
                stale.unlink()
    lock = SharedLock() if shared else JournalFileOpenLock(str(path))
    try:
        return JournalStorage(Backend(str(path), lock_obj=lock))
    except (ValueError, LookupError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error!r}).", "Restore it from a copy, or choose another folder.") from None


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Silence Optuna's log and its warnings that the journal and other features are experimental."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            yield
        finally:
            optuna.logging.set_verbosity(before)
