"""Answer requests: check limits, score through the batcher, and build the content of responses."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import polars as pl
import torch

from rediffuse.models.base import Model
from rediffuse.models.sampling import Sampling
from rediffuse.recommender.ranker import RankedItems
from rediffuse.recommender.remarks import remarks
from rediffuse.serving.batcher import ScoringJob
from rediffuse.serving.explaining import explain
from rediffuse.serving.hosted import HostedRun, RunSnapshot
from rediffuse.serving.logs import current
from rediffuse.serving.problems import Problem
from rediffuse.serving.schemas import DenoiseRequest, RecommendRequest, SimilarRequest, SpreadRequest
from rediffuse.serving.settings import (
    MAX_EXPLAINED,
    MAX_IGNORED,
    MAX_INLINE_IDS,
    MAX_RECOMMENDED,
    MAX_RERANKED,
    Settings,
)

RETRY = {"Retry-After": "1"}
Result = TypeVar("Result")


class Service:
    """Answers requests within limits.

    Args:
        runs: by name; the first is the default model.
        settings: the limits.
    """

    def __init__(self, runs: dict[str, HostedRun], settings: Settings) -> None:
        self.runs, self.settings = runs, settings
        self.workers, self.worker_requests = ThreadPoolExecutor(2, "rediffuse-worker"), 0

    def run(self, name: str | None) -> HostedRun:
        """Return a run by name, or the first if ``name`` is None.

        Raises:
            Problem: no run has this name.
        """
        name = next(iter(self.runs)) if name is None else name
        if name not in self.runs:
            known = f"Served: {', '.join(self.runs)}."
            raise Problem(404, "unknown-model", "No model is served under this name.", known)
        if (request := current.get()) is not None:
            request.run = name  # for the log and the metrics
        return self.runs[name]

    async def recommend(self, request: RecommendRequest) -> dict[str, Any]:
        """Return the content of a `RecommendResponse`."""
        run = self.run(request.model)
        snapshot = run.snapshot
        recommender = snapshot.recommender
        sampling = recommender.sampling(
            request.seed, request.sampling_steps, request.noise, request.temperature, request.guidance_scale
        )
        self._check_limits(run, request, recommender.model, sampling)

        def resolve() -> tuple[Any, ...]:
            resolved = recommender.resolve_users(request.users, request.histories)
            reranking = recommender.reranking(request.max_per, request.diversity, request.diversity_by, request.slate)
            resolved[-1]["uncalibrated"] = 0 if reranking is None else reranking.uncalibrated(resolved[2])
            query = recommender.build_query(
                request.k,
                request.exclude,
                request.candidates,
                request.filter_seen,
                request.filter,
                reranking,
                request.new_items,
            )
            return *resolved, *query

        lists = (*(request.histories or ()), request.users or (), request.exclude, request.candidates or ())
        few = sum(map(len, lists)) <= MAX_INLINE_IDS and not (request.filter or request.max_per or request.diversity)
        labels, user_numbers, histories, counts, query, unknown = (
            resolve() if few else await self.run_in_worker(resolve)
        )
        ranked: list[RankedItems] = []
        if len(histories):
            queries = [query] * len(histories)
            job = ScoringJob(recommender.ranker, histories, user_numbers, queries, sampling, request.samples)
            ranked = await self._in_time(asyncio.wrap_future(run.batcher.submit(job)))
        # Ids are text. Without users, labels are the positions of the histories.
        users = labels.to_list() if request.users is None else labels.cast(pl.String).to_list()
        results = [{"user": user, "items": _items(snapshot, items)} for user, items in zip(users, ranked, strict=True)]
        if request.explain:
            explanations = await self.run_in_worker(explain, snapshot, histories, user_numbers, ranked)
            for result, explained in zip(results, explanations, strict=True):
                for item, explanation in zip(result["items"], explained, strict=True):
                    item["explanation"] = explanation
        ignored = _ignored(snapshot, counts, request.histories or ())
        notes = remarks(counts | unknown)
        return _identity(run, snapshot) | {"notes": notes, "ignored_items": ignored, "results": results}

    def similar(self, request: SimilarRequest) -> dict[str, Any]:
        """Return the content of a `SimilarResponse`."""
        run = self.run(request.model)
        snapshot = run.snapshot
        numbers = snapshot.recommender.item_index(request.items)
        known = numbers[numbers >= 0]
        inspector = snapshot.recommender.inspector
        values = {"cosine": None, "weight": None}
        results = [
            {
                "item_id": snapshot.item_texts[item],
                "items": [
                    snapshot.item(other) | values | {inspector.measure: value}
                    for other, value in zip(near.tolist(), similarities.tolist(), strict=True)
                ],
            }
            for item, (similarities, near) in zip(known.tolist(), inspector.similar(known, request.k), strict=True)
        ]
        counts = {"unknown_asked": len(numbers) - len(known)}
        ignored = _ignored(snapshot, {"unknown_items": counts["unknown_asked"]}, [request.items])
        return _identity(run, snapshot) | {"notes": remarks(counts), "ignored_items": ignored, "results": results}

    def denoise(self, request: DenoiseRequest) -> dict[str, Any]:
        """Return the content of a `DenoiseResponse`."""
        run = self.run(request.model)
        snapshot = run.snapshot
        recommender = snapshot.recommender
        sampling = recommender.sampling(request.seed, request.sampling_steps, request.noise)
        _, user_numbers, histories, counts = recommender.resolve_users(
            None if request.user is None else [request.user], None if request.history is None else [request.history]
        )
        inspector, steps = recommender.inspector, []
        item_map = inspector.map  # refuses models without item vectors
        for step in inspector.denoising_trajectory(histories, user_numbers, sampling):
            state = step.x0_hat if step.state is None else step.state
            x0_hat_point, state_point = item_map.place(torch.stack([step.x0_hat, state])).tolist()
            best = inspector.best(step.x0_hat, request.k)
            steps.append(
                {
                    "t": step.t,
                    "state": None if step.state is None else _rounded(state_point),
                    "x0_hat": _rounded(x0_hat_point),
                    "items": [snapshot.item(item) | {"score": score} for item, score in best],
                }
            )
        notes = remarks(counts, "there is nothing to denoise for them")
        ignored = _ignored(snapshot, counts, [request.history or ()])
        return _identity(run, snapshot) | {"notes": notes, "ignored_items": ignored, "steps": steps}

    def spread(self, request: SpreadRequest) -> dict[str, Any]:
        """Return the content of a `SpreadResponse`."""
        run = self.run(request.model)
        snapshot = run.snapshot
        _, user_numbers, histories, counts = snapshot.recommender.resolve_users(
            None if request.user is None else [request.user], None if request.history is None else [request.history]
        )
        inspector, steps = snapshot.recommender.inspector, []
        for hop, mass in inspector.spread(histories, user_numbers):
            best = zip(*inspector.most_mass(mass, request.k), strict=True)
            items = [snapshot.item(int(item)) | {"mass": float(value)} for item, value in best]
            total, reached = float(mass.cpu().double().sum()), int(torch.count_nonzero(mass))
            steps.append({"hop": hop, "total": total, "reached": reached, "items": items})
        notes = remarks(counts, "there is no mass to spread for them")
        ignored = _ignored(snapshot, counts, [request.history or ()])
        return _identity(run, snapshot) | {"notes": notes, "ignored_items": ignored, "steps": steps}

    def _check_limits(self, run: HostedRun, request: RecommendRequest, model: Model, sampling: Sampling) -> None:
        """Refuse a request that would take too long, or that would wait behind too many users."""
        users = len(request.histories if request.histories is not None else request.users or ())
        limit, explained = (MAX_EXPLAINED, " with explanations") if request.explain else (MAX_RECOMMENDED, "")
        if request.max_per or request.diversity:  # every item is chosen from a pool of ten times as many
            limit, explained = min(limit, MAX_RERANKED), " with max_per or diversity"
        remedy = "Send fewer users per request."
        if users * request.k > limit:
            detail = f"{users} users x k = {request.k} are more than {limit:,} items{explained}."
            raise Problem(422, "too-much-work", detail, remedy)
        samples, steps = request.samples if model.stochastic else 1, model.network_passes(sampling)
        if users * samples * steps > self.settings.max_work:
            limit = self.settings.max_work
            detail = f"{users} users x {samples} samples x {steps} sampling steps are more than {limit:,}."
            raise Problem(422, "too-much-work", detail, remedy)
        if run.batcher.users_waiting + users > self.settings.max_waiting:
            raise Problem(503, "overloaded", "Too many users are waiting.", "Try again in a second.", RETRY)

    async def run_in_worker(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Run a slow function in one of the worker threads, which run beside the scoring thread.

        Raises:
            Problem: too many requests wait for the workers, or the function takes longer than the timeout.
        """
        if self.worker_requests >= self.settings.max_worker_requests:
            raise Problem(503, "overloaded", "Too many requests are waiting.", "Try again in a second.", RETRY)
        self.worker_requests += 1
        future = self.workers.submit(contextvars.copy_context().run, function, *arguments)
        try:
            return await self._in_time(asyncio.wrap_future(future))
        finally:
            self.worker_requests -= 1

    async def _in_time(self, future: asyncio.Future[Result]) -> Result:
        try:
            return await asyncio.wait_for(future, self.settings.timeout)
        except TimeoutError:
            detail = f"The request took longer than {self.settings.timeout:g} seconds."
            raise Problem(503, "timeout", detail, "Try again, or send fewer users per request.", RETRY) from None


def _identity(run: HostedRun, snapshot: RunSnapshot) -> dict[str, Any]:
    return {"model": run.name, "version": snapshot.version}


def _ignored(snapshot: RunSnapshot, counts: dict[str, int], histories: Iterable[Sequence[Any]]) -> list[Any]:
    """The first distinct ids of histories that the catalogue does not have, at most `MAX_IGNORED`."""
    if not counts["unknown_items"]:
        return []
    ids = [item for history in histories for item in history]
    unknown = snapshot.recommender.item_index(ids) < 0
    return list(dict.fromkeys(itertools.compress(ids, unknown)))[:MAX_IGNORED]


def _items(snapshot: RunSnapshot, ranked: RankedItems) -> list[dict[str, Any]]:
    marks = snapshot.recommender.marks_of(ranked.items).get("new")
    new_items = [None] * len(ranked.items) if marks is None else marks.tolist()
    items = [
        snapshot.item(number) | {"score": score, "uncertainty": None, "new": new, "explanation": None}
        for number, score, new in zip(ranked.items.tolist(), ranked.scores.tolist(), new_items, strict=True)
    ]
    if ranked.uncertainty is not None:
        for item, uncertainty in zip(items, ranked.uncertainty.tolist(), strict=True):
            item["uncertainty"] = uncertainty
    return items


def _rounded(point: list[float]) -> list[float]:
    return [round(value, 4) for value in point]
