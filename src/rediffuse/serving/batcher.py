"""Requests that come at the same time are scored together.

Nobody waits for company: a thread takes all requests that have come while it was at work on the last ones. So one
caller alone is answered at once, and the more there are the larger the batches become.
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

from rediffuse.data.histories import Histories
from rediffuse.models.sampling import Sampling
from rediffuse.recommender.ranker import RankedItems, Ranker, RankingQuery

# Scores held at once: 256 MiB of them.
MOST_SCORES = 1 << 26
# People x samples x steps in one batch, so that nobody waits long behind somebody who asks for much.
MOST_WORK = 1024
# Jobs that are looked at for company: a long queue must not take longer to search than to answer.
LOOK = 256


@dataclass
class Job:
    """People of one request, with the model that is to answer; arguments as of `Ranker.answer`.

    A job whose future is cancelled is dropped, also half done.
    """

    ranker: Ranker
    rows: Histories
    who: NDArray[np.int64]
    asks: Sequence[RankingQuery]
    sampling: Sampling
    samples: int
    answers: Future[list[RankedItems]] = field(default_factory=Future)
    done: list[RankedItems] = field(default_factory=list)
    taken: int = 0  # people who are being scored, or were

    @property
    def kind(self) -> tuple[int, Sampling, int, bool, bool]:
        """Jobs of one kind can be scored together. What people did is told with times, or it is not."""
        rows = self.rows
        return id(self.ranker), self.sampling, self.samples, rows.times is None, rows.synthetic is None

    @property
    def left(self) -> int:
        """People who wait."""
        return len(self.rows) - self.taken

    def take(self, most: int) -> Part:
        """Some of those who wait."""
        start, self.taken = self.taken, min(self.taken + most, len(self.rows))
        return Part(self, start, self.taken)

    def most(self, max_batch: int) -> int:
        """People of its kind in one batch."""
        work = self.samples * self.ranker.model.network_passes(self.sampling)
        return max(1, min(max_batch, MOST_SCORES // self.ranker.model.num_items, MOST_WORK // work))


@dataclass(frozen=True)
class Part:
    """Some people of a job: from ``start`` to ``stop``."""

    job: Job
    start: int
    stop: int

    @property
    def users(self) -> NDArray[np.int64]:
        return np.arange(self.start, self.stop)


class Batcher:
    """A thread that scores, once it is started.

    Args:
        max_batch: people scored together.
        observe: told the people of each batch.
    """

    def __init__(self, max_batch: int, observe: Callable[[int], None] = lambda people: None) -> None:
        self.max_batch, self.observe = max_batch, observe
        self.waiting: deque[Job] = deque()
        self.people_waiting = 0
        self.closed = True
        self.changed = threading.Condition()
        self.thread: threading.Thread | None = None

    def start(self) -> Batcher:
        """Begin to take jobs; also again, after `close`."""
        self.closed = False
        self.thread = threading.Thread(target=self._work, name="rediffuse-scoring", daemon=True)
        self.thread.start()
        return self

    def submit(self, job: Job) -> Future[list[RankedItems]]:
        """Queue a job; its answers come as a future, which may be cancelled at any time."""
        with self.changed:
            if self.closed:
                raise RuntimeError("The batcher is closed.")
            self.waiting.append(job)
            self.people_waiting += job.left
            self.changed.notify()
        job.answers.add_done_callback(lambda _: self._forget(job))
        return job.answers

    def _forget(self, job: Job) -> None:
        """Nobody waits any more for those of a job who wait, if any: it failed, or was cancelled."""
        with self.changed:
            self.people_waiting -= len(job.take(job.left).users)

    def close(self) -> None:
        """Finish what waits, then stop."""
        with self.changed:
            self.closed = True
            self.changed.notify()
        if self.thread is not None:
            self.thread.join()

    def _take(self) -> list[Part]:
        """The next people of the first job, and those of its kind that fit beside them. Empty: closed.

        A job of which people are left goes to the end of the queue: others have their turn first.
        """
        with self.changed:
            while True:
                while not self.waiting and not self.closed:
                    self.changed.wait()
                if not self.waiting:
                    return []
                first = self.waiting.popleft()
                if first.left:
                    break
            room, kind, others = first.most(self.max_batch), first.kind, []
            parts = [first.take(room)]
            room -= len(parts[0].users)
            for _ in range(min(LOOK, len(self.waiting))):
                if not room:
                    break
                job = self.waiting.popleft()
                if job.kind == kind:
                    parts.append(job.take(room))
                    room -= len(parts[-1].users)
                else:
                    others.append(job)
            self.waiting.extendleft(reversed(others))
            self.waiting.extend(part.job for part in parts if part.job.left)
            self.people_waiting -= sum(len(part.users) for part in parts)
            return parts

    def _work(self) -> None:
        while parts := self._take():
            try:
                self._score(parts)
            except Exception:
                for part in parts:  # whose fault it was, the next attempt shows
                    try:
                        self._score([part])
                    except Exception as error:
                        _settle(part.job, error)
            del parts  # and with them the model, should it be replaced meanwhile

    def _score(self, parts: Sequence[Part]) -> None:
        rows = Histories.joined([part.job.rows.take(part.users) for part in parts])
        who = np.concatenate([part.job.who[part.users] for part in parts])
        asks = [ask for part in parts for ask in part.job.asks[part.start : part.stop]]
        first = parts[0].job
        answers = iter(first.ranker.rank(rows, who, asks, first.sampling, first.samples))
        self.observe(len(rows))
        for part in parts:
            part.job.done += itertools.islice(answers, len(part.users))
            if len(part.job.done) == len(part.job.rows):
                _settle(part.job, None)


def _settle(job: Job, error: Exception | None) -> None:
    """Hand a job's answers, or what went wrong, to whoever still waits for them."""
    with contextlib.suppress(InvalidStateError):  # cancelled
        if error is None:
            job.answers.set_result(job.done)
        else:
            job.answers.set_exception(error)
