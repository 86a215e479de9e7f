"""Print what augmentation changes, from runs of `compare.py` on the data sets of `augmented.py`.

    python -m benchmarks.tables.augmented_table runs/asr/amazon-beauty-given

Each method is compared with the same backbone on the data as they are. Differences are paired by user; the value of a
user is the mean over seeds; p is corrected by Holm over the methods of one backbone. A second table has the same by
length of the history, without synthetic interactions.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import RESULTS, write_result
from benchmarks.tables.augmented import METHODS
from benchmarks.tables.variants import BACKBONES
from rediffuse.comparison.runs import Variant, read_runs
from rediffuse.comparison.statistics import holm, mean_interval, paired_test

PROTOCOLS = (None, "sampled-100")
WAYS = ("own", *METHODS)
COLUMNS = ("hr@10/unseen", "ndcg@10/unseen")
EDGES = {"5 or fewer": (0, 5), "6-20": (6, 20), "more than 20": (21, 10**9)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--out", type=Path, help="default: results/augmentation-DATA-SPLIT.json")
    arguments = parser.parse_args()
    runs = arguments.runs
    rows = [row for backbone in BACKBONES for row in compared(runs, backbone)]
    precision = ", ".join(sorted({row["precision"] for row in rows}))
    write_result(arguments.out or RESULTS / f"augmentation-{runs.name}.json", {"rows": rows}, precision=precision)
    show(rows)


def compared(runs: Path, backbone: str) -> list[dict[str, Any]]:
    """Compare each method with the data as they are: one row per method and protocol."""
    rows = []
    for protocol in PROTOCOLS:
        found: dict[str, Variant] = {}
        for way in WAYS:
            folders = sorted(path.parent for path in runs.glob(f"{backbone}-on-{way}-[0-9]/manifest.json"))
            if folders:
                found[way] = Variant(way, tuple(read_runs(folders, protocol)))
        if "own" not in found:
            continue
        own = {column: found["own"].per_user(column) for column in COLUMNS}
        lengths = found["own"].runs[0].per_user["history_length"].to_numpy()
        here = []
        for way, variant in found.items():
            row: dict[str, Any] = {"backbone": backbone, "way": way, "protocol": protocol or "full"}
            row["seeds"] = len(variant.runs)
            row["minutes"] = float(np.mean([run.config["training"]["minutes"] for run in variant.runs]))
            row["precision"] = variant.runs[0].config["training"]["precision"]
            row["best_epoch"] = float(np.mean([run.config["training"]["best_epoch"] for run in variant.runs]))
            for column in COLUMNS:
                metric = column.partition("/")[0]
                row[metric] = mean_interval(np.array(variant.values(metric, "unseen"))).to_dict()
            test = paired_test(variant.per_user(COLUMNS[1]), own[COLUMNS[1]])
            row |= {"difference": test.difference.to_dict(), "p": test.p, "slices": {}}
            for name, (low, high) in EDGES.items():
                inside = (lengths >= low) & (lengths <= high)
                if inside.sum() > 1:
                    change = paired_test(variant.per_user(COLUMNS[1])[inside], own[COLUMNS[1]][inside])
                    before = float(own[COLUMNS[1]][inside].mean())
                    row["slices"][name] = {"users": int(inside.sum()), "own": before, **change.difference.to_dict()}
            here.append(row)
        for row, p in zip(here[1:], holm([row["p"] for row in here[1:]]), strict=True):
            row["p_holm"] = p
        rows += here
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print the tables of docs/benchmarks.md: values and differences in per cent, seen items filtered."""
    by = {(row["backbone"], row["way"], row["protocol"]): row for row in rows}
    print("| | synthetic | HR@10 | NDCG@10 | change | p | HR@10 of 101 | NDCG@10 of 101 | change | p | min |")
    print("|---|---|" + "--:|" * 9)
    for (backbone, way, protocol), row in by.items():
        if protocol == "full":
            other = by[backbone, way, "sampled-100"]
            line = [backbone, way, *cells(row), *cells(other), f"{row['minutes']:.1f}"]
            print(f"| {' | '.join(line)} |")
    names = list(rows[0]["slices"])
    heads = [f"{name} ({slice_['users']:,} users)" for name, slice_ in rows[0]["slices"].items()]
    print(f"\nChange of NDCG@10 by history length\n\n| | | {' | '.join(heads)} |\n|---|---|{'--:|' * len(names)}")
    for (backbone, way, protocol), row in by.items():
        if protocol == "full":
            shown = [row["slices"][name] for name in names]
            line = [f"{100 * s['own']:.2f}" if way == "own" else change(s) for s in shown]
            print(f"| {' | '.join([backbone, way, *line])} |")


def cells(row: dict[str, Any]) -> list[str]:
    values = [f"{100 * row[m]['mean']:.2f}" + spread(row[m]) for m in ("hr@10", "ndcg@10")]
    return [*values, change(row["difference"]) if "p_holm" in row else "", p(row.get("p_holm"))]


def spread(interval: dict[str, Any]) -> str:
    return "" if interval["low"] is None else f" ±{50 * (interval['high'] - interval['low']):.2f}"


def change(difference: dict[str, Any]) -> str:
    return f"{100 * difference['mean']:+.2f} ±{50 * (difference['high'] - difference['low']):.2f}"


def p(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if value >= 0.001 else "<.001"


if __name__ == "__main__":
    main()
