"""Run folders that look trained and evaluated but are made up: of any size, and with any flaw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from rediffuse.files import parquet_bytes
from rediffuse.models import model_class
from rediffuse.runs.run_folder import add_files

METRICS = [f"{kind}@{k}" for k in (5, 10, 20) for kind in ("hr", "ndcg", "recall", "precision", "map", "mrr")]


def made_up_run(
    folder: Path,
    model: str = "diffurec",
    options: dict[str, Any] | None = None,
    *,
    preset: str | None = None,
    seed: int = 0,
    users: int = 200,
    items: int = 100,
    skill: float = 0.5,
    prefix: str = "u",
    steps: dict[str, float] | None = None,
    protocol: dict[str, Any] | None = None,
    data: str = "data",
    split: str = "split",
) -> Path:
    """Write a run of ``model`` that ranks the one true item of each user higher, the higher ``skill`` (0 to 1) is.

    Users, true items and histories are the same in all runs of one size. A tenth of the users have no history, and so
    no popularity_lift. ``prefix`` begins every user id; ``data`` and ``split`` are fingerprints.
    """
    world, chance = np.random.default_rng(7), np.random.default_rng([seed, users, int(1000 * skill)])
    history = np.minimum(world.geometric(0.12, users), 60)
    history[world.random(users) < 0.1] = 0
    true = np.minimum((items * world.beta(0.6, 3, users)).astype(np.int64), items - 1)
    luck = world.random(users)
    table: dict[str, Any] = {
        "user_id": [f"{prefix}{user}" for user in range(users)],
        "history_length": history,
        "truth_items": np.ones(users, dtype=np.int64),
    }
    truth: dict[str, Any] = {
        "user_id": table["user_id"],
        "item_id": [f"i{item}" for item in true],
        "train_count": (items - true) // 4,
    }
    ids = {"item_id": [f"i{item}" for item in range(items)]}
    means: dict[str, dict[str, float]] = {}
    for policy, edge in (("all", 0.0), ("unseen", 0.1)):
        suffix = "" if policy == "all" else "/unseen"
        exponent = 1 + 6 * (skill + edge) * (0.4 + 0.6 * np.minimum(history, 20) / 20)
        draw = np.clip(0.7 * luck + 0.3 * chance.random(users), 0, 1 - 1e-9)
        rank = 1 + (items * draw**exponent).astype(np.int64)
        truth[f"rank{suffix}"] = table[f"rank{suffix}"] = pl.Series(rank).set(pl.Series(rank > 0.97 * items), None)
        for name in METRICS:
            kind, k = name.split("@")
            gain = {"ndcg": 1 / np.log2(rank + 1), "map": 1 / rank, "mrr": 1 / rank, "precision": 1 / int(k)}
            table[name + suffix] = np.where(rank <= int(k), gain.get(kind, 1.0), 0.0)
        table["novelty@10" + suffix] = 5 + 3 * chance.random(users)
        table["popularity_lift@10" + suffix] = pl.Series(chance.normal(0.2, 0.1, users)).set(
            pl.Series(history == 0), None
        )
        columns = [*METRICS, "novelty@10", "popularity_lift@10"]
        means[policy] = {name: float(pl.Series(table[name + suffix]).mean()) for name in columns}  # pyright: ignore
        means[policy] |= {"coverage@10": 0.2 + 0.5 * skill, "gini@10": 0.9 - 0.4 * skill}
    by_seed = [
        {policy: {name: value + step for name, value in values.items()} for policy, values in means.items()}
        for step in ((-0.001, 0.001) if model == "diffurec" else (0.0,))
    ]
    chosen = model_class(model).Config.build(preset, options or {}).model_dump()
    trained = chosen.get("epochs", 0) and model not in ("popularity", "itemknn", "ease")
    split_facts = {"name": "leave-one-out", "params": {}, "fingerprint": split, "leak": None}
    config = {
        "format": 1,
        "model": model,
        "preset": preset,
        "config": chosen,
        "defaults": model_class(model).Config.build(preset).model_dump(mode="json"),
        "seed": seed,
        "split": split_facts,
        "data": {"fingerprint": data, "users": users, "items": items, "interactions": int(history.sum()) + users},
        "resolved": {"sampling_steps": int(max(steps, key=steps.__getitem__)), "metric_by_steps": steps}
        if steps
        else {},
        "training": {"best_epoch": 8, "minutes": 0.1 + 30 * skill**2, "precision": "bf16", "parameters": items * 64},
        "validation": {chosen["metric"]: means["all"]["ndcg@10"]},
    }
    test = {
        "run": str(folder),
        "split": "leave-one-out",
        "leak": None,
        "protocol": {
            "name": "leave-one-out",
            "candidates": "all",
            "seen": ["all", "unseen"],
            "validation_is_input": True,
            "comparable": True,
            "note": None,
        }
        | (protocol or {}),
        "task_fingerprint": "task",
        "seed": 0,
        "sampling_seeds": list(range(len(by_seed))),
        "metrics": means,
        "metrics_by_seed": by_seed,
        "counts": {
            "users": users,
            "items": items,
            "truth_items": len(np.unique(true)),
            "cold_users": int((history == 0).sum()),
            "truth_in_history": 0,
            "truth_never_trained": 0,
            "truth_never_trained_share": float((truth["train_count"] == 0).mean()),
        },
        "users_per_second": 9000 * (1.1 - skill),
        "peak_memory_mib": 512,
        "date": "2026-11-24",
        "environment": {
            "processor": "a processor",
            "cores": 2,
            "cuda": None,
            "packages": {"rediffuse": "0", "torch": "2"},
        },
    }
    epochs = [
        {"phase": "fit", "epoch": epoch, "loss": 5 / epoch, "seconds": 180 * skill**2, "validation": {
            chosen["metric"]: means["all"]["ndcg@10"] * (1 - 0.8**epoch)}}
        for epoch in range(1, 11)
    ] if trained else []  # fmt: skip
    add_files(
        folder,
        {
            "config.json": json.dumps(config).encode(),
            "model.safetensors": b"",
            "items.parquet": parquet_bytes(pl.DataFrame(ids)),
            "users.parquet": parquet_bytes(pl.DataFrame({"user_id": table["user_id"]})),
            "metrics.jsonl": "".join(json.dumps(line) + "\n" for line in epochs).encode(),
            "test.json": json.dumps(test).encode(),
            "per_user_test.parquet": parquet_bytes(pl.DataFrame(table)),
            "truth_test.parquet": parquet_bytes(pl.DataFrame(truth)),
        },
    )
    return folder
