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

from rediffuse.display import Displayed
from rediffuse.errors import RunError
from rediffuse.files import atomic_write_text, writing
from rediffuse.runs.identity import refuse_another
from rediffuse.runs.lock import is_free

if TYPE_CHECKING:
    import optuna

FORMAT = 1


@dataclass(frozen=True, repr=False)
class Study(Displayed):
    """What a search found, on validation data alone.

    Attributes:
        path: the study's folder.
        model: name of the model.
        metric: the validation metric that was maximised.
        best_config: the options of the best trial that differ from the model's default.
        best_value: its metric.
        default_rank: place of the default among all trials, 1 is best; None if it reached no validation.
        trials: one row per trial: number, state, default (whether it is), value, epochs, minutes, and every
            option that was searched. States: complete; pruned (below the median of the others); failed (its training
            raised an error); interrupted (by the end of the time or of the process); repeated (interrupted, and
            run again as a later trial).
        minutes: spent on all trials, over all sessions.
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
        """The trials with a value, best first; those that were run again count once."""
        return ranking_of(self.trials)

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


def ranking_of(table: pl.DataFrame) -> pl.DataFrame:
    """The trials with a value, best first; of equals the earlier."""
    counted = table.filter(pl.col("value").is_not_null() & (pl.col("state") != "repeated"))
    return counted.sort("value", descending=True, maintain_order=True)


def check_folder(folder: Path, identity: dict[str, Any]) -> None:
    """Raises:
    RunError: the folder holds another study, or something else.
    """
    if (folder / "study.json").exists():
        remedy = "Use the options it began with (trials and minutes may change), or choose another folder."
        refuse_another(folder, read_study(folder), identity, remedy)
    elif not is_free(folder):
        raise RunError(f"{folder} is not empty and holds no study.", "Choose another folder.")


def begin_study(folder: Path, identity: dict[str, Any]) -> None:
    """Begin a study in a folder that is held, unless it is there already.

    Raises:
        RunError: as `check_folder`, for what another process may have done meanwhile.
    """
    check_folder(folder, identity)
    if not (folder / "study.json").exists():
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        facts = {"format": FORMAT, "created": created, **identity}
        atomic_write_text(folder / "study.json", json.dumps(facts, indent=2) + "\n")


def read_study(folder: Path) -> dict[str, Any]:
    path = folder / "study.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        version = facts["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error}).", "Restore it from a copy, or choose another folder.") from None
    if version != FORMAT:
        raise RunError(f"{path} has format {version}; this version reads {FORMAT}.", "Use the version that wrote it.")
    return facts


def open_journal(path: Path) -> optuna.storages.JournalStorage:
    """The journal of a study whose folder is held, mended if the last process died while it wrote.

    Raises:
        RunError: it is damaged elsewhere than at its end.
        StorageError: it cannot be written; now, or when it is used.
    """
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage

    class Backend(JournalFileBackend):
        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            with writing(path):
                super().append_logs(logs)

    with writing(path):
        with path.open("ab") as file:
            file.truncate(path.read_bytes().rfind(b"\n") + 1)
        # Locks of a process that is no more.
        for stale in path.parent.glob(f"{path.name}.*"):
            stale.unlink()
    try:
        return JournalStorage(Backend(str(path), lock_obj=JournalFileOpenLock(str(path))))
    except (ValueError, LookupError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error!r}).", "Restore it, or choose another folder.") from None


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Without Optuna's log, and without its warnings that the journal and others are experimental."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            yield
        finally:
            optuna.logging.set_verbosity(before)
