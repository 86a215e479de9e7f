"""Batch inference on Ray Data: actors that hold the run write the part files of `rediffuse.recommender.batch`.

Rows of the Ray dataset are numbers of part files, and each actor reads their users itself. So nothing but numbers moves
between processes, and no task needs a CPU beside the actors: with a reader of Ray (``read_parquet``), actors that take
all CPUs wait for ever for a read that gets none.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rediffuse.arguments import require_integer
from rediffuse.engines.ray.cluster import cluster, everywhere
from rediffuse.errors import RediffuseError, RunError
from rediffuse.recommender import Recommender
from rediffuse.recommender.batch import BatchResult, PartWork, recommend_to_folder
from rediffuse.runs.run_folder import Run

# Times that actors are started again. Ray itself would never stop, for example if memory is too small for a part file.
_RESTARTS = 10


def recommend(
    run: str | Path | Run,
    users: str | Path,
    folder: str | Path,
    *,
    workers: int | None = None,
    recommender: Recommender | None = None,
    **options: Any,
) -> BatchResult:
    """`recommend_to_folder`, by actors of Ray Data. The folder is the same, and either can finish what the other began.

    A killed actor is started again. If this process is killed, the same call continues.

    Args:
        run, users, folder: where every node finds them.
        workers: actors; each takes a CPU and holds the run. None: one per CPU of the cluster. If there are fewer CPUs,
            some actors wait for one, and the others do their work.
        recommender: of the run, if it is loaded already.
        options: as for `rediffuse.recommender.batch.recommend_to_folder`.

    Raises:
        MissingExtraError: Ray is not installed.
        RunError: actors died more often than Ray starts them again; or as `Recommender.load`.
        ConfigError, DataError, StorageError: as `recommend_to_folder`.

    Warns:
        RediffuseWarning: as `recommend_to_folder`, with counts over all actors.
    """
    workers = None if workers is None else require_integer("workers", workers)
    run, users, folder = everywhere(run), everywhere(users), everywhere(folder)
    recommender = recommender or Recommender.load(run)
    with cluster("Start the same command again: it continues with the part files that are missing."):
        return recommend_to_folder(recommender, users, folder, engine=partial(_on_actors, run, workers), **options)


def _on_actors(run: str, workers: int | None, work: PartWork, wanted: set[int]) -> Iterator[int]:
    """The numbers of the wanted part files, each when it is complete."""
    import ray
    import ray.data

    size = max(1, min(workers or int(ray.cluster_resources().get("CPU", 1)), len(wanted)))
    numbers = ray.data.from_items([{"part": part} for part in sorted(wanted)], override_num_blocks=len(wanted))
    board: Any = ray.remote(_Board).options(num_cpus=0).remote(size + _RESTARTS)  # pyright: ignore
    written = numbers.map_batches(
        _Actor,
        fn_constructor_args=(board, run, work),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=1),
        num_cpus=1,
    )
    for row in written.iter_rows():
        if row["failed"]:
            error: Any = ray.get(board.error.remote())
            raise error
        yield row["part"]


class _Writer:
    """Loads the run once, then writes part files one by one."""

    def __init__(self, run: str, work: PartWork) -> None:
        self.recommender, self.work = Recommender.load(run), work
        self.users = work.open_users(self.recommender)
        self.part, self.parts = -1, iter(())

    def write(self, part: int) -> None:
        """Write the part file of this number."""
        if part <= self.part:  # a part file of an actor that died
            self.part = -1
        if self.part < 0:
            # One pass over the file: it goes on from the last part, which matters for text.
            self.parts = self.work.write(self.recommender, self.users, lambda number: number == self.part)
        self.part = part
        next(self.parts)


class _Board:
    """An actor that counts the starts of the others, and keeps the first error of ours."""

    def __init__(self, most: int) -> None:
        self.left = most
        self.first: RediffuseError | None = None

    def allow(self) -> bool:
        self.left -= 1
        return self.left >= 0

    def fail(self, error: RediffuseError) -> None:
        self.first = self.first or error

    def error(self) -> RediffuseError | None:
        return self.first


class _Actor:
    """A `_Writer` in a process that Ray starts again if it dies, not for ever.

    Of what is raised in an actor, Ray passes on the text alone, so errors of ours go to the board.
    """

    def __init__(self, board: Any, run: str, work: PartWork) -> None:
        import ray

        self.board, self.failed = board, False
        try:
            if not ray.get(board.allow.remote()):
                raise RunError("Actors died too often.", "Give them more memory, or fewer --rows-per-part.")
            self.writer = _Writer(run, work)
        except RediffuseError as error:
            self.fail(error)

    def fail(self, error: RediffuseError) -> None:
        import ray

        ray.get(self.board.fail.remote(error))
        self.failed = True

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        (part,) = batch["part"].tolist()
        if not self.failed:
            try:
                self.writer.write(part)
            except RediffuseError as error:
                self.fail(error)
        return {"part": [part], "failed": [self.failed]}
