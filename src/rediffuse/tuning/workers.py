"""The processes that run the trials of a study: one alone, workers on one file system, or workers on one database.

A worker claims a trial before it trains it. Claims are made in turns, and a trial belongs to its worker until it ends.
How the others learn that a worker was killed differs: the system releases the locks of a process on a file system; on
a database, a worker counts up while it lives.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rediffuse.errors import ConfigError, RunError, StorageError
from rediffuse.runs.lock import can_lock, folder_lock, is_locked
from rediffuse.tuning.database import Address, open_database
from rediffuse.tuning.study import open_journal, refuse_other_study

if TYPE_CHECKING:
    import optuna
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

JOURNAL = "study.journal"
# Seconds that a worker waits for its turn; a turn takes moments, and many workers may wait.
TURN = 60.0
# A worker on a database counts up every BEAT seconds; it counts as killed after GRACE seconds without.
BEAT, GRACE = 10.0, 60.0


def trial_folder(folder: Path, number: int) -> Path:
    """The folder of a trial."""
    return folder / "trials" / f"{number:04d}"


class Alone:
    """One process, which holds the lock of the folder: a trial that runs when it starts was killed."""

    several = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def joined(self) -> AbstractContextManager[None]:
        """Take part in the study."""
        return folder_lock(self.folder, "tuning")

    def turn(self) -> AbstractContextManager[None]:
        """Keep the others from claiming a trial and from writing the files of the study."""
        return contextlib.nullcontext()

    def storage(self) -> BaseStorage:
        """Where the trials are recorded."""
        return open_journal(self.folder / JOURNAL)

    def agree(self, study: optuna.Study, identity: dict[str, Any]) -> None:
        """Check that the others search the same; study.json has said so already."""

    def running(self, trial: optuna.Trial) -> AbstractContextManager[None]:
        """Let the others know that a trial is being run. It is entered within a turn."""
        return contextlib.nullcontext()

    def lost(self, running: list[FrozenTrial]) -> list[FrozenTrial]:
        """The trials among ``running`` whose process was killed. It is called within a turn.

        Raises:
            RunError: workers are running some of them.
        """
        if held := [str(trial.number) for trial in running if is_locked(trial_folder(self.folder, trial.number))]:
            raise RunError(
                f"Workers are running trials of {self.folder}: {', '.join(held)}.",
                "Join them with --worker (Python: worker=True), or wait until they end.",
            )
        return running

    def wait(self) -> None:
        """Wait for the trials of other workers."""


class OnFolder(Alone):
    """Workers that share a file system: each holds the lock of its trial's folder, which the system releases."""

    several = True

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """As `Alone.joined`.

        Raises:
            ConfigError: the file system cannot lock.
        """
        with self.turn():
            if not can_lock(self.folder):
                raise ConfigError(
                    f"{self.folder} is on a file system that cannot lock, so workers cannot share it.",
                    "Record the trials in a database: --storage URL.",
                )
        yield

    def turn(self) -> AbstractContextManager[None]:
        return folder_lock(self.folder, "choosing a trial", TURN)

    def storage(self) -> BaseStorage:
        return open_journal(self.folder / JOURNAL, shared=True)

    def running(self, trial: optuna.Trial) -> AbstractContextManager[None]:
        return folder_lock(trial_folder(self.folder, trial.number), "training")

    def lost(self, running: list[FrozenTrial]) -> list[FrozenTrial]:
        return [trial for trial in running if not is_locked(trial_folder(self.folder, trial.number))]

    def wait(self) -> None:
        time.sleep(1.0)


class OnDatabase(Alone):
    """Workers that share a database, on any machines; each has a folder of its own, or shares one."""

    several = True

    def __init__(self, folder: Path, address: Address) -> None:
        super().__init__(folder)
        self.address = address
        self._seen: dict[int, tuple[int, float]] = {}

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """As `Alone.joined`.

        Raises:
            StorageError: the database fails.
        """
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (StorageInternalError, SQLAlchemyError) as error:
            reason = self.address.without_password(str(error.__cause__ or error).partition("\n")[0])
            remedy = "Check that it can be reached, then run the same command again."
            # The chain of causes names the address with its password.
            raise StorageError(f"The database {self.address} cannot be used: {reason}", remedy) from None

    def turn(self) -> AbstractContextManager[None]:
        return folder_lock(self.folder, "choosing a trial", TURN)

    def storage(self) -> BaseStorage:
        self._storage = open_database(self.address)
        return self._storage

    def agree(self, study: optuna.Study, identity: dict[str, Any]) -> None:
        """As `Alone.agree`.

        Raises:
            RunError: the database holds a study of this name that searches something else.
        """
        if "identity" not in study.user_attrs:
            study.set_user_attr("identity", identity)
        refuse_other_study(f"Study {study.study_name} of {self.address}", study.user_attrs["identity"], identity)

    @contextlib.contextmanager
    def running(self, trial: optuna.Trial) -> Iterator[None]:
        from optuna.exceptions import OptunaError, UpdateFinishedTrialError

        ended = threading.Event()
        study = self._storage.get_study_id_from_name(trial.study.study_name)
        number = self._storage.get_trial_id_from_study_id_trial_number(study, trial.number)

        def count() -> None:
            beat = 0
            while not ended.wait(BEAT):
                beat += 1
                try:
                    self._storage.set_trial_user_attr(number, "beat", beat)
                except UpdateFinishedTrialError:
                    return
                except OptunaError:  # the database may be back in time for the next beat
                    continue

        thread = threading.Thread(target=count, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def lost(self, running: list[FrozenTrial]) -> list[FrozenTrial]:
        """As `Alone.lost`: those that have not counted up for a while, by the clock of this process alone."""
        now, lost = time.monotonic(), []
        for trial in running:
            beat = trial.user_attrs.get("beat", 0)
            seen, since = self._seen.get(trial.number, (None, now))
            if beat != seen:
                self._seen[trial.number] = (beat, now)
            elif now - since > GRACE:
                lost.append(trial)
        return lost

    def wait(self) -> None:
        time.sleep(min(5.0, BEAT))
