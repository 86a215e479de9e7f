"""Requests that come at the same time are scored together.

Nobody waits for company: a thread takes all requests that have come while it was at work on the last ones. So one
caller alone is answered at once, and the more there are the larger the batches become.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rediffuse.data.histories import Histories
from rediffuse.models.sampling import Sampling
from rediffuse.recommender.answering import Answer, Answerer, Ask

# Scores held at once: 256 MiB of them.
MOST_SCORES = 1 << 26


@dataclass
class Job:
    """People of one request, with the model that is to answer; arguments as of `Answerer.answer`."""

    answerer: Answerer
    rows: Histories
    who: NDArray[np.int64]
    asks: Sequence[Ask]
    sampling: Sampling
    samples: int
    answers: Future[list[Answer]] = field(default_factory=Future)

    @property
    def kind(self) -> tuple[int, Sampling, int, bool, bool]:
        """Jobs of one kind can be scored together. What people did is told with times, or it is not."""
        rows = self.rows
        return id(self.answerer), self.sampling, self.samples, rows.times is None, rows.pseudo is None


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

    def start(self) -> Batcher:
        """Begin to take jobs; also again, after `close`."""
        self.closed = False
        self.thread = threading.Thread(target=self._work, name="rediffuse-scoring", daemon=True)
        self.thread.start()
        return self

    def submit(self, job: Job) -> Future[list[Answer]]:
        """Queue a job; its answers come as a future, which may be cancelled while it waits."""
        with self.changed:
            if self.closed:
                raise RuntimeError("The batcher is closed.")
            self.waiting.append(job)
            self.people_waiting += len(job.rows)
            self.changed.notify()
        return job.answers

    def close(self) -> None:
        """Finish what waits, then stop."""
        with self.changed:
            self.closed = True
            self.changed.notify()
        self.thread.join()

    def _take(self) -> list[Job]:
        """The first job, and those of its kind that fit beside it; others keep their order. Empty: closed."""
        with self.changed:
            while not self.waiting and not self.closed:
                self.changed.wait()
            if not self.waiting:
                return []
            taken = [self.waiting.popleft()]
            people, others = len(taken[0].rows), []
            while self.waiting and people < self.max_batch:
                job = self.waiting.popleft()
                if job.kind == taken[0].kind and people + len(job.rows) <= self.max_batch:
                    taken.append(job)
                    people += len(job.rows)
                else:
                    others.append(job)
            self.waiting.extendleft(reversed(others))
            self.people_waiting -= people
            return taken

    def _work(self) -> None:
        while jobs := self._take():
            jobs = [job for job in jobs if job.answers.set_running_or_notify_cancel()]
            if not jobs:
                continue
            try:
                answers = self._score(jobs)
            except BaseException as error:  # the callers' to handle; the thread goes on
                for job in jobs:
                    job.answers.set_exception(error)
                continue
            start = 0
            for job in jobs:
                job.answers.set_result(answers[start : start + len(job.rows)])
                start += len(job.rows)

    def _score(self, jobs: Sequence[Job]) -> list[Answer]:
        rows = Histories.joined([job.rows for job in jobs])
        who = np.concatenate([job.who for job in jobs])
        asks = [ask for job in jobs for ask in job.asks]
        first, answers = jobs[0], []
        size = max(1, min(self.max_batch, MOST_SCORES // first.answerer.model.num_items))
        for start in range(0, len(rows), size):
            part = np.arange(start, min(start + size, len(rows)))
            self.observe(len(part))
            some = rows.take(part) if len(part) < len(rows) else rows
            asked = asks[start : start + size]
            answers += first.answerer.answer(some, who[part], asked, first.sampling, first.samples)
        return answers
