"""Descriptions of served runs: properties, items, users, item maps and training results."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any, BinaryIO

import polars as pl

from rediffuse import devices
from rediffuse.comparison.runs import BY_USER
from rediffuse.comparison.slices import groups_of_equal_size
from rediffuse.recommender import Recommender
from rediffuse.runs.card import without_front_matter
from rediffuse.serving.hosted import HostedRun
from rediffuse.serving.problems import Problem
from rediffuse.table_files import scan_parquet

# What `training` reads, and its limits: bytes of text and of a line, and epochs.
TRAINING_FILES = ("metrics.jsonl", "test.json", "README.md", "per_user_test.parquet")
MAX_TEXT, MAX_LINE, MAX_EPOCHS = 1 << 22, 1 << 18, 4000
# The largest integer that JavaScript does not round.
MAX_EXACT = 2**53 - 1


def describe(run: HostedRun) -> dict[str, Any]:
    """Return the content of `ModelInfo`."""
    snapshot = run.snapshot
    recommender, config = snapshot.recommender, snapshot.recommender.config
    metric = config["config"].get("metric", "")
    return {
        "model": run.name,
        "architecture": config["model"],
        "version": snapshot.version,
        "created_at": config["created"],
        "loaded_at": snapshot.loaded_at.isoformat(timespec="seconds"),
        "users": config["data"]["users"],
        "items": config["data"]["items"],
        "interactions": config["data"]["interactions"],
        "stochastic": recommender.model.stochastic,
        "has_guidance": recommender.model.has_guidance,
        "retrieval": run.retrieval,
        "device": devices.description(recommender.device),
        "max_sampling_steps": recommender.model.max_sampling_steps,
        "calibrated_sampling_steps": config["resolved"].get("sampling_steps"),
        "fingerprint": recommender.fingerprint,
        "split": config["split"]["name"],
        "held_out": recommender.held_out_remark,
        "histories_end": config["data"].get("histories_end"),
        "refit_of": _refit_of(config),
        "item_columns": _item_columns(recommender),
        "has_titles": snapshot.titles is not None,
        "has_similar": recommender.inspector.has_similar,
        "has_vectors": recommender.inspector.has_vectors,
        "explains_scores": recommender.model.explains_scores,
        "has_paths": recommender.has_paths,
        "metric": metric,
        "validation": (config["validation"] or {}).get(metric),
    }


def _refit_of(config: dict[str, Any]) -> dict[str, Any] | None:
    """What a run was refitted from, with the name of the folder only: its path is of another machine."""
    source = config.get("refit_of")
    return None if source is None else source | {"run": PurePath(source["run"]).name}


def _item_columns(recommender: Recommender) -> list[dict[str, str]]:
    """Names and types of the columns of the item table, without the id; types as filters read them."""
    if recommender.item_table is None:
        return []
    return [
        {"name": name, "type": "number" if recommender.filters.holds_numbers(name) else _type(kind)}
        for name, kind in recommender.item_table.schema.items()
        if name != "item_id"
    ]


def _type(kind: pl.DataType) -> str:
    if kind.is_temporal():
        return "time"
    if kind == pl.Boolean:
        return "boolean"
    if kind == pl.String or isinstance(kind, pl.Categorical | pl.Enum):
        return "text"
    return "list" if kind.is_nested() else "other"


def items(run: HostedRun, query: str, limit: int) -> dict[str, Any]:
    """Return items whose titles contain ``query``: the content of `ItemsResponse`."""
    return _listed(run, run.snapshot.recommender.titles.search(query, limit))


def users(run: HostedRun, query: str, limit: int, random: bool) -> dict[str, Any]:
    """Return the first or random users whose ids begin with ``query``: the content of `UsersResponse`."""
    ids = run.snapshot.recommender.user_ids
    texts = ids.cast(pl.String)
    found = texts.filter(texts.str.starts_with(query.strip()))
    return {"users": (found.sample(min(limit, len(found))) if random else found.head(limit)).to_list()}


def columns(run: HostedRun, items: Sequence[int | str]) -> dict[str, Any]:
    """Return the content of `ColumnsResponse`."""
    recommender = run.snapshot.recommender
    if (table := recommender.item_table) is None:
        return {"items": []}
    numbers = recommender.item_index(items)
    numbers = numbers[numbers >= 0]
    rows = table.drop("item_id", strict=False)[numbers].to_dicts()
    return {
        "items": [
            {"item_id": run.snapshot.item_texts[number], "columns": _exact(row)}
            for number, row in zip(numbers.tolist(), rows, strict=True)
        ]
    }


def _exact(value: Any) -> Any:
    """The value with integers that JavaScript would round as text."""
    if isinstance(value, dict):
        return {name: _exact(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_exact(one) for one in value]
    return str(value) if isinstance(value, int) and abs(value) > MAX_EXACT else value


def history(run: HostedRun, user: int | str) -> dict[str, Any]:
    """Return the items of a user's interactions, oldest first: the content of `ItemsResponse`."""
    _, _, histories, counts = run.snapshot.recommender.resolve_users([user], None)
    if counts["unknown_users"]:
        raise Problem(404, "unknown-user", "The model has no user with this id.", "See /v1/models/{name}/users.")
    return _listed(run, histories.without_synthetic().items.tolist())


def item_map(run: HostedRun, limit: int) -> dict[str, Any]:
    """Return the content of `MapResponse`, with the ``limit`` items that have the most training interactions."""
    recommender = run.snapshot.recommender
    numbers = recommender.items["train_count"].arg_sort(descending=True).head(limit).to_list()
    points = recommender.inspector.map.points[numbers].tolist()
    placed = [
        item | {"x": round(x, 4), "y": round(y, 4)}
        for item, (x, y) in zip(_listed(run, numbers)["items"], points, strict=True)
    ]
    return {"explained": recommender.inspector.map.explained, "total": len(recommender.items), "items": placed}


def training(run: HostedRun) -> dict[str, Any]:
    """Return the content of `TrainingResponse`."""
    with run.training_lock:  # requests at the same time wait for the first, instead of reading the files as well
        key = run.snapshot.version, [_stamp(run.folder / name) for name in TRAINING_FILES]
        if run.training is None or run.training[0] != key:
            run.training = key, _read_training(run)
        return run.training[1]


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _read_training(run: HostedRun) -> dict[str, Any]:
    folder, config = run.folder, run.snapshot.recommender.config
    best, (lines, metrics, card, users) = config["training"]["best_epoch"], (folder / name for name in TRAINING_FILES)
    epochs, total = _epochs(lines, best)
    test = _parse(_read(metrics)) or {}
    return {
        "card": without_front_matter(_read(card)),
        "epochs": epochs,
        "epochs_total": total,
        "best_epoch": best,
        "metric": config["config"].get("metric", ""),
        "metric_by_steps": config["resolved"].get("metric_by_steps"),
        "validation": config["validation"],
        "test": test.get("metrics"),
        "slices": _slices(users),
    }


def _listed(run: HostedRun, numbers: list[int]) -> dict[str, Any]:
    return {"items": [run.snapshot.item(number) for number in numbers]}


def _read(path: Path) -> str:
    """The text of a file, without what is beyond `MAX_TEXT`."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_TEXT).decode("utf-8", "replace")
    except OSError:
        return ""


def _epochs(path: Path, best: int | None) -> tuple[list[dict[str, Any]], int]:
    """The lines of metrics.jsonl, at most about `MAX_EPOCHS` of them at even distances, and how many there are.

    The last line and that of the best epoch are always among them.
    """
    try:
        with path.open("rb") as file:
            total = sum(1 for _ in _lines(file))
            step = -(-total // MAX_EPOCHS) or 1
            file.seek(0)
            found = []
            for number, line in enumerate(_lines(file), start=1):
                wanted = number % step == 0 or number == total
                # Most lines are left out unread, unless they may be that of the best epoch.
                epoch = _parse(line) if wanted or (best is not None and b"%d" % best in line) else None
                if epoch is not None and (wanted or epoch.get("epoch") == best):
                    found.append(epoch)
    except OSError:
        return [], 0
    return found, total


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file; of one with more than `MAX_LINE` bytes, pieces that are no JSON."""
    while line := file.readline(MAX_LINE):
        yield line


def _parse(text: str | bytes) -> dict[str, Any] | None:
    """Parse JSON. None if it is invalid: while training continues in a folder, its last line may be incomplete."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def _slices(path: Path) -> list[dict[str, Any]]:
    """Average the test metrics by history length, in the groups that comparisons use. It holds one column in memory."""
    if not path.is_file():
        return []
    try:
        table = scan_parquet([path])
        column = BY_USER["history length"]
        groups, names = groups_of_equal_size(table.select(column).collect()[column].to_numpy())
        by_slice = pl.Series("slice", groups)
        means = pl.DataFrame(by_slice).group_by("slice").agg(pl.len().alias("users")).sort("slice")
        for name in table.collect_schema().names():
            if "@" in name:
                values = pl.DataFrame([by_slice, table.select(name).collect()[name]])
                means = means.join(values.group_by("slice").agg(pl.col(name).mean()), on="slice", maintain_order="left")
    except (pl.exceptions.PolarsError, OSError):
        return []  # being written
    return [row | {"slice": names[row["slice"]]} for row in means.to_dicts()]
