"""Dynamic batching: users of requests that arrive while the model is busy are scored together.

One thread scores. It never waits for more requests: it takes those that arrived while it scored the last batch. So a
single client gets its response at once, and batches grow with the load.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rediffuse import forks
from rediffuse.data.histories import Histories
from rediffuse.models.sampling import Sampling
from rediffuse.recommender.ranker import RankedItems, Ranker, RankingQuery

# Scores in memory at once: 256 MiB of float32.
MAX_SCORES = 1 << 26
# Users x samples x sampling steps of one batch, so that small requests do not wait long for large ones.
MAX_WORK = 1024
# Queued jobs to search for those that fit into a batch, so that a long queue takes less time to search than to score.
MAX_SEARCHED = 256


@dataclass
class ScoringJob:
    """The users of one request, and how to score them.

    A job whose future is cancelled is dropped, even if some of its users were scored.

    Args:
        ranker: scores the users.
        histories: one per user.
        user_numbers: (n,) numbers of the users in training, or -1.
        queries: one per user.
        sampling: how answers are drawn.
        samples: draws to average.
        future: will hold one `RankedItems` per user.
    """

    ranker: Ranker
    histories: Histories
    user_numbers: NDArray[np.int64]
    queries: Sequence[RankingQuery]
    sampling: Sampling
    samples: int
    future: Future[list[RankedItems]] = field(default_factory=Future)
    results: list[RankedItems] = field(default_factory=list)
    taken: int = 0  # users that are being scored or were scored

    @property
    def batch_key(self) -> tuple[int, Sampling, int, bool, bool]:
        """Jobs with equal keys can share a batch. Histories with and without times cannot be joined."""
        histories = self.histories
        return id(self.ranker), self.sampling, self.samples, histories.times is None, histories.synthetic is None

    @property
    def waiting(self) -> int:
        """Count the users that were not taken yet."""
        return len(self.histories) - self.taken

    def take(self, limit: int) -> JobSlice:
        """Take up to ``limit`` of the waiting users."""
        start, self.taken = self.taken, min(self.taken + limit, len(self.histories))
        return JobSlice(self, start, self.taken)

    def batch_limit(self, max_batch: int) -> int:
        """Return the most users of such jobs in one batch."""
        work = self.samples * self.ranker.model.network_passes(self.sampling)
        return max(1, min(max_batch, MAX_SCORES // self.ranker.model.num_items, MAX_WORK // work))


@dataclass(frozen=True)
class JobSlice:
    """The users of a job from position ``start`` to ``stop``."""

    job: ScoringJob
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def positions(self) -> NDArray[np.int64]:
        return np.arange(self.start, self.stop)


class DynamicBatcher:
    """A queue of jobs and the thread that scores them.

    Args:
        max_batch: the most users in a batch.
        on_batch: called with the number of users of each batch.
    """

    def __init__(self, max_batch: int, on_batch: Callable[[int], None] = lambda users: None) -> None:
        self.max_batch, self.on_batch = max_batch, on_batch
        self.queue: deque[ScoringJob] = deque()
        self.users_waiting = 0
        self.closed = True
        self.changed = threading.Condition()
        self.thread: threading.Thread | None = None

    def start(self) -> DynamicBatcher:
        """Start the thread; also possible after `close`."""
        forks.enter()
        self.closed = False
        self.thread = threading.Thread(target=self._run, name="rediffuse-scoring", daemon=True)
        self.thread.start()
        return self

    def submit(self, job: ScoringJob) -> Future[list[RankedItems]]:
        """Queue a job and return its future, which may be cancelled at any time."""
        with self.changed:
            if self.closed:
                raise RuntimeError("The batcher is closed.")
            self.queue.append(job)
            self.users_waiting += job.waiting
            self.changed.notify()
        job.future.add_done_callback(lambda _: self._drop_waiting(job))
        return job.future

    def _drop_waiting(self, job: ScoringJob) -> None:
        """Drop the waiting users of a job that failed or was cancelled."""
        with self.changed:
            self.users_waiting -= len(job.take(job.waiting))

    def close(self) -> None:
        """Score the queued jobs, then stop the thread."""
        with self.changed:
            self.closed = True
            self.changed.notify()
        if self.thread is not None:
            self.thread.join()

    def _next_batch(self) -> list[JobSlice]:
        """Wait for jobs, and take users of the first job and of others with its key. Empty: the batcher is closed.

        A job with waiting users goes to the end of the queue, so that other jobs get their turn.
        """
        with self.changed:
            while True:
                while not self.queue and not self.closed:
                    self.changed.wait()
                if not self.queue:
                    return []
                first = self.queue.popleft()
                if first.waiting:
                    break
            free, key, others = first.batch_limit(self.max_batch), first.batch_key, []
            slices = [first.take(free)]
            free -= len(slices[0])
            for _ in range(min(MAX_SEARCHED, len(self.queue))):
                if not free:
                    break
                job = self.queue.popleft()
                if job.batch_key == key:
                    slices.append(job.take(free))
                    free -= len(slices[-1])
                else:
                    others.append(job)
            self.queue.extendleft(reversed(others))
            self.queue.extend(taken.job for taken in slices if taken.job.waiting)
            self.users_waiting -= sum(map(len, slices))
            return slices

    def _run(self) -> None:
        while batch := self._next_batch():
            try:
                self._score(batch)
            except Exception:
                for taken in batch:  # one by one, so that only the job that fails gets the error
                    try:
                        self._score([taken])
                    except Exception as error:
                        _resolve(taken.job, error)
            # A reference to the jobs would keep an old model in memory after a reload.
            del batch

    def _score(self, batch: Sequence[JobSlice]) -> None:
        histories = Histories.joined([taken.job.histories.take(taken.positions) for taken in batch])
        user_numbers = np.concatenate([taken.job.user_numbers[taken.positions] for taken in batch])
        queries = [query for taken in batch for query in taken.job.queries[taken.start : taken.stop]]
        first = batch[0].job
        results = iter(first.ranker.rank(histories, user_numbers, queries, first.sampling, first.samples))
        self.on_batch(len(histories))
        for taken in batch:
            taken.job.results += itertools.islice(results, len(taken))
            if len(taken.job.results) == len(taken.job.histories):
                _resolve(taken.job, None)


def _resolve(job: ScoringJob, error: Exception | None) -> None:
    """Complete a job's future with its results or an error."""
    with contextlib.suppress(InvalidStateError):  # cancelled
        if error is None:
            job.future.set_result(job.results)
        else:
            job.future.set_exception(error)
