"""What is told of served runs: their facts, items, people, maps and training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl

from rediffuse.comparison.compare import groups_of_equal_size
from rediffuse.comparison.runs import BY_USER
from rediffuse.serving.hosted import HostedRun
from rediffuse.serving.problems import Problem


def facts(run: HostedRun) -> dict[str, Any]:
    """The content of RunFacts."""
    loaded = run.loaded
    recommender, config = loaded.recommender, loaded.recommender.config
    metric = config["config"].get("metric", "")
    return {
        "name": run.name,
        "model": config["model"],
        "version": loaded.version,
        "created": config["created"],
        "loaded": loaded.loaded_at.isoformat(timespec="seconds"),
        "users": config["data"]["users"],
        "items": config["data"]["items"],
        "interactions": config["data"]["interactions"],
        "stochastic": recommender.model.stochastic,
        "retrieval": run.retrieval,
        "max_sampling_steps": recommender.model.max_sampling_steps,
        "calibrated_steps": config["resolved"].get("sampling_steps"),
        "has_titles": loaded.titles is not None,
        "has_vectors": recommender.item_vectors is not None,
        "has_paths": recommender.has_paths,
        "metric": metric,
        "validation": (config["validation"] or {}).get(metric),
    }


def items(run: HostedRun, text: str, limit: int) -> dict[str, Any]:
    """Items whose titles contain ``text``: the content of ItemsResponse."""
    return _named(run, run.loaded.recommender.titles.search(text, limit))


def users(run: HostedRun, text: str, limit: int) -> dict[str, Any]:
    """People whose ids begin with ``text``: the content of UsersResponse."""
    ids = run.loaded.recommender.user_ids
    return {"users": ids.filter(ids.cast(pl.String).str.starts_with(text.strip())).head(limit).to_list()}


def history(run: HostedRun, user: str) -> dict[str, Any]:
    """What a person did, oldest first: the content of ItemsResponse."""
    recommender = run.loaded.recommender
    _, _, rows, counts = recommender.resolve_users([user], None)
    if counts["unknown_users"]:
        raise Problem(404, "unknown-user", "The run knows nobody of that id.", "See /v1/models/{name}/users.")
    return _named(run, rows.without_synthetic().items.tolist())


def item_map(run: HostedRun, limit: int) -> dict[str, Any]:
    """The content of MapResponse."""
    loaded = run.loaded
    recommender = loaded.recommender
    most = recommender.items["train_count"].arg_sort(descending=True).head(limit).to_list()
    points = recommender.map.points[most].tolist()
    listed = [
        item | {"x": round(x, 4), "y": round(y, 4)}
        for item, (x, y) in zip(_named(run, most)["items"], points, strict=True)
    ]
    return {"explained": recommender.map.explained, "total": len(recommender.items), "items": listed}


def training(run: HostedRun) -> dict[str, Any]:
    """The content of TrainingResponse."""
    folder, config = run.folder, run.loaded.recommender.config
    epochs = [_parsed(line) for line in _text(folder / "metrics.jsonl").splitlines()]
    metric = config["config"].get("metric", "")
    test = _parsed(_text(folder / "test.json")) or {}
    return {
        "card": _text(folder / "README.md"),
        "epochs": [epoch for epoch in epochs if epoch is not None],
        "best_epoch": config["training"]["best_epoch"],
        "metric": metric,
        "metric_by_steps": config["resolved"].get("metric_by_steps"),
        "validation": config["validation"],
        "test": test.get("metrics"),
        "slices": _slices(folder / "per_user_test.parquet"),
    }


def _named(run: HostedRun, numbers: list[int]) -> dict[str, Any]:
    return {"items": [run.loaded.item(number) for number in numbers]}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _parsed(text: str) -> dict[str, Any] | None:
    """None of what is no JSON: while training goes on in a folder, its last line may be half written."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def _slices(path: Path) -> list[dict[str, Any]]:
    """Means of the test metrics by length of history, as comparisons slice them."""
    if not path.is_file():
        return []
    try:
        people = pl.read_parquet(path)
    except pl.exceptions.PolarsError:
        return []  # being written
    slice_of, names = groups_of_equal_size(people[BY_USER["history length"]].to_numpy())
    metrics = [name for name in people.columns if "@" in name]
    means = people.group_by(pl.Series("slice", slice_of)).agg(pl.len().alias("users"), pl.col(metrics).mean())
    return [row | {"slice": names[row["slice"]]} for row in means.sort("slice").to_dicts()]
