"""Runs behind a service: who answers what, in plain objects."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch

from rediffuse.models.base import Model
from rediffuse.models.sampling import Sampling
from rediffuse.recommender.ranker import RankedItems
from rediffuse.recommender.recommender import remarks
from rediffuse.serving.batcher import Job
from rediffuse.serving.hosted import HostedRun, RunSnapshot
from rediffuse.serving.problems import Problem
from rediffuse.serving.schemas import DenoiseRequest, RecommendRequest, SimilarRequest
from rediffuse.serving.settings import FEW_IDS, MAX_EXPLAINED, MAX_LISTED, Settings

# Items of the history that a reason names.
REASONS = 3
RETRY = {"Retry-After": "1"}
Result = TypeVar("Result")


class Service:
    """Answers requests, within limits.

    Args:
        runs: by name; the first is the default.
        settings: the limits.
    """

    def __init__(self, runs: dict[str, HostedRun], settings: Settings) -> None:
        self.runs, self.settings = runs, settings
        self.threads, self.beside = ThreadPoolExecutor(2, "rediffuse-aside"), 0

    def run(self, name: str | None) -> HostedRun:
        """A run by name.

        Raises:
            Problem: there is none of that name.
        """
        if name is None:
            return next(iter(self.runs.values()))
        if name not in self.runs:
            raise Problem(404, "unknown-model", "No run of that name is served.", f"Known: {', '.join(self.runs)}.")
        return self.runs[name]

    async def recommend(self, request: RecommendRequest) -> dict[str, Any]:
        """The content of a RecommendResponse."""
        run = self.run(request.model)
        loaded = run.loaded
        recommender = loaded.recommender
        sampling = recommender.sampling(request.seed, request.sampling_steps, request.noise)
        self._admit(run, request, recommender.model, sampling)

        def look_up() -> tuple[Any, ...]:
            people = recommender.resolve_users(request.users, request.histories)
            return *people, *recommender.build_query(
                request.k, request.exclude, request.candidates, request.filter_seen
            )

        lists = (*(request.histories or ()), request.users or (), request.exclude, request.candidates or ())
        ids = sum(len(one) for one in lists)
        names, who, rows, counts, ask, unknown = look_up() if ids <= FEW_IDS else await self.run_in_worker(look_up)
        job = Job(recommender.ranker, rows, who, [ask] * len(rows), sampling, request.samples)
        answers = await self._in_time(asyncio.wrap_future(run.batcher.submit(job))) if len(rows) else []
        results = [
            {"user": name, "items": _items(loaded, answer)}
            for name, answer in zip(names.to_list(), answers, strict=True)
        ]
        if request.explain:
            own = rows.without_synthetic()
            histories = [np.unique(own.row(person)).astype(np.int64) for person in range(len(own))]
            await self.run_in_worker(_explain, loaded, histories, answers, results)
        return _about(run, loaded) | {"notes": remarks(counts | unknown), "results": results}

    def similar(self, request: SimilarRequest) -> dict[str, Any]:
        """The content of a SimilarResponse."""
        run = self.run(request.model)
        loaded = run.loaded
        asked = loaded.recommender.item_index(request.items)
        known = asked[asked >= 0]
        cosines, near = loaded.recommender.nearest(known, request.k)
        results = [
            {
                "item_id": loaded.item_ids[item],
                "items": [
                    loaded.item(other) | {"cosine": round(cosine, 4)}
                    for other, cosine in zip(near[row].tolist(), cosines[row].tolist(), strict=True)
                ],
            }
            for row, item in enumerate(known.tolist())
        ]
        notes = remarks({"unknown_asked": len(asked) - len(known)})
        return _about(run, loaded) | {"notes": notes, "results": results}

    def denoise(self, request: DenoiseRequest) -> dict[str, Any]:
        """The content of a DenoiseResponse."""
        run = self.run(request.model)
        loaded = run.loaded
        recommender = loaded.recommender
        sampling = recommender.sampling(request.seed, request.sampling_steps, request.noise)
        users = None if request.user is None else [request.user]
        _, who, rows, counts = recommender.resolve_users(users, None if request.history is None else [request.history])
        place, steps = recommender.map.place, []
        for step in recommender.denoising_trajectory(rows, who, sampling):
            frame = recommender.best(step.x0_hat, request.k)
            places = place(torch.stack([step.x0_hat, step.x0_hat if step.state is None else step.state]))
            x0_hat, state = places.tolist()
            steps.append(
                {
                    "t": step.t,
                    "state": None if step.state is None else _rounded(state),
                    "x0_hat": _rounded(x0_hat),
                    "items": [loaded.item(item) | {"score": score} for item, score in frame],
                }
            )
        return _about(run, loaded) | {"notes": remarks(counts, "there is nothing to denoise for them"), "steps": steps}

    def _admit(self, run: HostedRun, request: RecommendRequest, model: Model, sampling: Sampling) -> None:
        """Refuse what would take too long, or come too late."""
        people = len(request.histories if request.histories is not None else request.users or ())
        most = MAX_EXPLAINED if request.explain else MAX_LISTED
        if people * request.k > most:
            reasons = " with reasons" if request.explain else ""
            detail = f"{people} people x k of {request.k} are more than {most:,} items{reasons}."
            raise Problem(422, "too-much-work", detail, "RankingQuery for fewer at once.")
        samples, steps = request.samples if model.stochastic else 1, model.network_passes(sampling)
        if people * samples * steps > self.settings.max_work:
            detail = f"{people} people x {samples} samples x {steps} steps are more than {self.settings.max_work:,}."
            raise Problem(422, "too-much-work", detail, "RankingQuery for fewer at once.")
        if run.batcher.people_waiting + people > self.settings.max_waiting:
            raise Problem(503, "overloaded", "Too many people are waiting.", "Try again in a second.", RETRY)

    async def run_in_worker(self, work: Callable[..., Result], *given: Any) -> Result:
        """What takes a while beside scoring, in one of two threads.

        Raises:
            Problem: too many wait for them, or there is no answer in time.
        """
        if self.beside >= self.settings.max_aside:
            raise Problem(503, "overloaded", "Too many requests are waiting.", "Try again in a second.", RETRY)
        self.beside += 1
        future = self.threads.submit(work, *given)
        try:
            return await self._in_time(asyncio.wrap_future(future))
        finally:
            self.beside -= 1

    async def _in_time(self, future: asyncio.Future[Result]) -> Result:
        try:
            return await asyncio.wait_for(future, self.settings.timeout)
        except TimeoutError:
            detail = f"No answer within {self.settings.timeout:g} seconds."
            raise Problem(503, "timeout", detail, "Try again, or ask for fewer at once.", RETRY) from None


def _about(run: HostedRun, loaded: RunSnapshot) -> dict[str, Any]:
    return {"model": run.name, "version": loaded.version}


def _items(loaded: RunSnapshot, answer: RankedItems) -> list[dict[str, Any]]:
    listed = [
        loaded.item(number) | {"score": score, "uncertainty": None, "why": None}
        for number, score in zip(answer.items.tolist(), answer.scores.tolist(), strict=True)
    ]
    if answer.uncertainty is not None:
        for item, spread in zip(listed, answer.uncertainty.tolist(), strict=True):
            item["uncertainty"] = spread
    return listed


def _explain(
    loaded: RunSnapshot, histories: Sequence[np.ndarray], answers: Sequence[RankedItems], results: list[dict[str, Any]]
) -> None:
    """Enter into ``results`` why each item is there: the nearest items of the history, and knowledge paths."""
    recommender = loaded.recommender
    for history, answer, result in zip(histories, answers, results, strict=True):
        paths = _paths(loaded, history, answer) if recommender.has_paths and len(history) else {}
        near: list[list[dict[str, Any]]] = [[] for _ in answer.items]
        if recommender.item_vectors is not None and len(history):
            mine, theirs = (recommender.directions[torch.from_numpy(items)] for items in (answer.items, history))
            cosines, places = (mine @ theirs.T).topk(min(REASONS, len(history)))
            near = [
                [
                    loaded.item(int(history[place])) | {"cosine": round(cosine, 4)}
                    for cosine, place in zip(*row, strict=True)
                ]
                for row in zip(cosines.tolist(), places.tolist(), strict=True)
            ]
        for item, nearest in zip(result["items"], near, strict=True):
            item["why"] = {"nearest": nearest, "paths": paths.get(item["item_id"], [])}


def _paths(loaded: RunSnapshot, history: np.ndarray, answer: RankedItems) -> dict[Any, list[dict[str, Any]]]:
    recommender, found = loaded.recommender, {}
    ids = recommender.items["item_id"]
    for row in recommender.paths(ids.gather(answer.items), ids.gather(history), 2).iter_rows(named=True):
        touched = loaded.item(int(recommender.item_index([row["touched_item"]])[0]))
        way = {name: row[name] for name in ("relation", "entity", "relation_back", "strength", "kept")}
        found.setdefault(row["item_id"], []).append(way | {"touched_item": touched})
    return found


def _rounded(point: list[float]) -> list[float]:
    return [round(value, 4) for value in point]
