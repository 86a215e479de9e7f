"""Train and evaluate what docs/reproductions.md compares with the figures of the papers, and store the results.

    export REDIFFUSE_DATA=...
    OMP_NUM_THREADS=1 python -m benchmarks.reproduce.train diffrec-ml1m --seeds 0 1 2
    python -m benchmarks.reproduce.train --report            # of all rows, from what is trained
    python -m benchmarks.tables.page                         # writes the tables of docs/reproductions.md

Presets of papers train to their own early stopping; defaults to that of the tables. Training resumes what was
interrupted and skips what is there, so the command may be stopped at any time and started again, on another day too.
``--minutes`` ends each training after a time, over all sessions; a later call with more continues it. Runs are in the
folders of `benchmarks.tables.table`, which shares the defaults and the floors.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, rerun, write_result
from benchmarks.reproduce.rows import ROWS, Row
from benchmarks.tables import compare, labels, users
from benchmarks.tables.variants import VARIANTS
from rediffuse.comparison.runs import EvaluatedRun, is_evaluated, read_runs
from rediffuse.files import atomic_write_parquet
from rediffuse.readers.public_datasets import public_dataset

BY_NAME = {row.name: row for row in ROWS}
# What is evaluated beside the protocol of the paper: the whole catalogue, after the validation interactions.
HONEST = "given"
# Points of a validation curve that are stored.
POINTS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(BY_NAME)}; default: all")
    parser.add_argument("--seeds", nargs="+", default=["0", "1", "2"])
    parser.add_argument("--models", nargs="+", metavar="VARIANT", help="only these of each row")
    parser.add_argument("--minutes", default="10_000", help="of each training at most; default: until it ends itself")
    parser.add_argument("--runs", type=Path, default=Path("runs/tables"))
    parser.add_argument("--report", action="store_true", help="train nothing; evaluate and store what is trained")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the result files are written")
    arguments = parser.parse_args()
    for name in arguments.rows or BY_NAME:
        row = BY_NAME[name]
        if arguments.report:
            report(row, arguments.runs / f"{row.data}-given", arguments.results)
            continue
        variants = arguments.models or row.variants
        if not variants:
            print(f"{row.name}: the data that the paper used are missing")
            continue
        words = ["--data", row.data, "--split", "given", "--seeds", *arguments.seeds, "--runs", str(arguments.runs)]
        if methods := [VARIANTS[variant].on for variant in variants if VARIANTS[variant].on]:
            rerun(*words, "--methods", *methods, module="benchmarks.tables.augmented")
        words += ["--metric", row.selected_by, "--minutes", arguments.minutes, "--models", *variants]
        rerun(*words, module="benchmarks.tables.compare")


def report(row: Row, folder: Path, results: Path) -> None:
    """Evaluate the runs of a row under both protocols where they are not yet, and store the results."""
    runs = [
        (variant, run)
        for variant in row.variants
        for run in sorted(folder.glob(f"{variant}-[0-9]"))
        if (run / "manifest.json").exists()
    ]
    if not runs:
        print(f"{row.name}: nothing is trained")
        return
    data = public_dataset(row.data)
    labelled: list[tuple[str, EvaluatedRun]] = []
    for protocol in dict.fromkeys((row.protocol, HONEST)):
        named = None if protocol == HONEST else protocol
        for _, run in runs:
            if not is_evaluated(run, named):
                compare.evaluate(run, data, named)
        evaluated = read_runs([run for _, run in runs], named)
        labelled += zip((variant for variant, _ in runs), evaluated, strict=True)
    counts = labelled[0][1].test["counts"]
    content = {"row": row.name, "users": counts.get("targets", counts["users"])}
    content |= {"variants": [_described(*pair) for pair in labelled if _is_honest(pair[1])]}
    precision = ", ".join(sorted({run.config["training"]["precision"] for _, run in labelled}))
    write_result(results / f"reproduce-{row.name}.json", content, precision=precision)
    atomic_write_parquet(results / f"reproduce-{row.name}.parquet", users.stored(labelled))
    print(f"{row.name}: {len(runs)} runs")


def _is_honest(run: EvaluatedRun) -> bool:
    return run.protocol is None


def _described(variant: str, run: EvaluatedRun) -> dict[str, Any]:
    """How a run was trained, and its validation curve."""
    training = run.config["training"]
    selected = run.config["config"].get("metric")
    curve = [
        (line["epoch"], line["validation"][selected])
        for line in run.epochs
        if selected in (line.get("validation") or {})
    ]
    return {
        "variant": variant,
        "label": labels.label(VARIANTS[variant]),
        "seed": run.seed,
        "minutes": training["minutes"],
        "best_epoch": training["best_epoch"],
        "stopped": training.get("stopped"),
        "finished": training.get("finished", True),
        "selected_by": selected,
        "curve": list(_thinned(curve)),
    }


def _thinned(curve: list[tuple[int, float]]) -> Iterable[tuple[int, float]]:
    """At most `POINTS` of a curve, the last among them, at equal distances."""
    step = -(-len(curve) // POINTS)
    return curve[:: -step or None][::-1]


if __name__ == "__main__":
    main()
