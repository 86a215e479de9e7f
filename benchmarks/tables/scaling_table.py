"""Print the tables of docs/scaling.md, from results of `catalogues.py`, `growth.py` and `ingest.py`.

python -m benchmarks.tables.scaling_table
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from typing import Any

from benchmarks.common import RESULTS

# Names in lines that are older than the present ones.
RENAMED = {
    "people": "users",
    "edges (events)": "edges (interactions)",
    "milliseconds_a_person": "milliseconds_per_user",
    "steps_an_epoch": "steps_per_epoch",
}


def lines(name: str) -> list[dict[str, Any]]:
    path = RESULTS / name
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def stamp(line: dict[str, Any]) -> dict[str, Any]:
    """Return the stamp of a line; lines older than stamps have its fields beside their figures."""
    return line.get("stamp", line)


def on_gpu(line: dict[str, Any]) -> bool:
    return stamp(line).get("device", "gpu" if "gpu" in line else "cpu") != "cpu"


def table(head: list[str], rows: Iterable[list[Any]]) -> None:
    for row in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join("" if cell is None else str(cell) for cell in row) + " |")
    print()


def catalogues() -> None:
    found = lines("catalogues.jsonl")
    steps = {(x["items"], x["loss"], x["item_optimizer"], on_gpu(x)): x for x in found if x["what"] == "steps"}
    best: dict[tuple[int, str, str], dict[str, Any]] = {}
    for x in (x for x in found if x["what"] == "quality"):
        key = x["items"], x["loss"], x["item_optimizer"]
        if key not in best or x["valid_ndcg@10/unseen"] > best[key]["valid_ndcg@10/unseen"]:
            best[key] = x  # the learning rate is chosen on validation
    cases = list(dict.fromkeys((x["loss"], x["item_optimizer"]) for x in found if x["what"] == "steps"))
    sizes = sorted({x["items"] for x in found if x["what"] == "steps"})
    for name, field, gpu in (
        ("Seconds of a step, CPU", "seconds", False),
        ("GiB, CPU", "peak_gib", False),
        ("Milliseconds of a step, GPU", "seconds", True),
        ("GiB, GPU", "peak_gib", True),
    ):
        print(name)
        scale = 1000 if name.startswith("Milli") else 1
        cells = {key: f"{x[field] * scale:.3g}" for key, x in steps.items() if key[3] == gpu}
        table(["loss", "item_optimizer", *sizes], [[*c, *(cells.get((n, *c, gpu)) for n in sizes)] for c in cases])
    print("NDCG@10, unseen, per cent")
    sizes = sorted({key[0] for key in best})
    worth = {key: f"{100 * x['test_ndcg@10/unseen']:.2f} ({x['learning_rate']})" for key, x in best.items()}
    table(["loss", "item_optimizer", *sizes], [[*c, *(worth.get((n, *c)) for n in sizes)] for c in cases])


def growth() -> None:
    found = [{RENAMED.get(name, name): x[name] for name in x} for x in lines("growth.jsonl")]
    for x in found:
        x["axis"] = RENAMED.get(x["axis"], x["axis"])
    for axis in dict.fromkeys(x["axis"] for x in found):
        rows = list({(x["model"], x["size"]): x for x in found if x["axis"] == axis}.values())  # the newest of each
        fields = [name for name in rows[-1] if name not in ("stamp", "date", "environment", "axis")]
        print(axis)
        table(fields, [[row.get(name) for name in fields] for row in rows])


def ingest() -> None:
    found = [x for x in lines("ingest.jsonl") if "stages" in x]
    rows = []
    for x in found:
        stages = x["stages"]
        peak = max(stage["peak_gib"] for stage in stages.values())
        rows.append(
            [x["rows"], x["ids"], stages["ingest"]["seconds"], stages["ingest"]["peak_gib"], stamp(x)["date"], peak]
        )
    table(["rows", "ids", "seconds", "GiB", "date", "GiB, up to all batches"], rows)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    catalogues()
    growth()
    ingest()


if __name__ == "__main__":
    main()
