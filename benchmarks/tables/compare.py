"""Train every model under one budget with several seeds, evaluate all of them, and write one report.

    export REDIFFUSE_DATA=...
    OMP_NUM_THREADS=1 python -m benchmarks.tables.compare --data amazon-beauty --split given --minutes 3
    python -m benchmarks.tables.compare --data amazon-beauty --split given --report

The first command trains what is not trained yet, and resumes what was interrupted. To run it twice at once, add
``--shard 0/2`` to one and ``--shard 1/2`` to the other. The second command evaluates the runs on the test subset,
prints a table and writes the report. Every model that is trained by gradient gets the same minutes of one thread, its
default options, and selection by the same validation metric. What is compared is in `variants.py`.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import rediffuse as rd
from benchmarks.common import RESULTS, rerun, write_result
from benchmarks.tables import augmented, labels, users
from benchmarks.tables.published import PUBLISHED
from benchmarks.tables.variants import TEN_MODELS, VARIANTS
from rediffuse.comparison import Comparison
from rediffuse.comparison.markdown import SHOWN
from rediffuse.comparison.runs import BY_USER, evaluation_file, is_evaluated, read_runs
from rediffuse.data.split import Split
from rediffuse.files import atomic_write_parquet
from rediffuse.memory import PeakMemory
from rediffuse.readers.public_datasets import public_dataset
from rediffuse.runs.run_folder import read_config
from rediffuse.training.phases import NETWORK


def main() -> None:
    parser = parser_of(__doc__, VARIANTS, "runs/benchmark")
    parser.set_defaults(models=list(TEN_MODELS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=3.0, help="of training, per run")
    parser.add_argument("--epochs", type=int, default=1000, help="at most; with many --minutes, what is equal")
    parser.add_argument("--shard", default="0/1", help="i/n: train only every n-th run, starting with run i")
    parser.add_argument("--report", action="store_true", help="evaluate and compare what is trained")
    arguments = parser.parse_args()
    data = public_dataset(arguments.data)
    split = rd.split.by_name(arguments.split, data)
    folder = arguments.runs / f"{arguments.data}-{split.name}"
    if arguments.report:
        stored = report(folder, data, arguments.metric, arguments.protocol, arguments.results)
        print(table(stored, arguments.metric.partition("/")[0]))
        return
    wanted = [(variant, seed) for seed in arguments.seeds for variant in arguments.models]
    if len(wanted) == 1:
        variant, seed = wanted[0]
        train(variant, split, folder, seed, arguments.minutes, arguments.epochs, arguments.metric)
        return
    shard, shards = map(int, arguments.shard.split("/"))
    for variant, seed in wanted[shard::shards]:
        if not is_due(variant, folder, seed, arguments.minutes):
            continue
        # A process for each run, so that the peak of memory is its own.
        words = ["--data", arguments.data, "--split", arguments.split, "--minutes", str(arguments.minutes)]
        words += ["--runs", str(arguments.runs), "--models", variant, "--seeds", str(seed)]
        words += ["--metric", arguments.metric, "--epochs", str(arguments.epochs)]
        rerun(*words)


def parser_of(description: str | None, variants: Iterable[str], runs: str) -> argparse.ArgumentParser:
    """The options that the commands for tables share.

    Args:
        description: of the command.
        variants: names that ``--models`` may have.
        runs: the default of ``--runs``.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", required=True)
    parser.add_argument("--models", nargs="+", choices=variants, metavar="VARIANT", help="default: all of the table")
    parser.add_argument("--runs", type=Path, default=Path(runs))
    parser.add_argument("--metric", default="ndcg@10/unseen", help="selects epochs and options; tested on pairs")
    parser.add_argument("--protocol", help="of the report; default: that of the split")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the result file is written")
    return parser


def is_due(name: str, runs: Path, seed: int, minutes: float | None = None) -> bool:
    """Whether a run is to be trained, and its seed changes something.

    Args:
        minutes: a run that was stopped after fewer is trained further; None: one that is there is not.
    """
    folder = runs / f"{name}-{seed}"
    if not (folder / "manifest.json").exists():
        return not seed or rd.models.model_class(VARIANTS[name].model).trained_by_gradient
    training = read_config(folder)["training"]
    return minutes is not None and not training.get("finished", True) and training["minutes"] < minutes


def train(name: str, split: Split, runs: Path, seed: int, minutes: float, epochs: int, metric: str) -> None:
    """Train a variant with a seed, for ``minutes`` at most, unless that run is there."""
    variant, folder = VARIANTS[name], runs / f"{name}-{seed}"
    if not is_due(name, runs, seed, minutes):
        return
    if variant.refit_of:
        rd.refit(runs / f"{variant.refit_of}-{seed}", split.dataset, folder, keep_test=True, resume=_started(folder))
        return
    phases = {phase: runs / f"{other}-{seed}" for phase, other in variant.phases.items()}
    options = {name: value for name, value in variant.options.items() if name not in phases}
    if NETWORK in phases:
        options = {"prior": options["prior"]}  # the others are those of the network
    elif not variant.preset:
        options |= {"metric": metric, "epochs": min(epochs, options.get("epochs", epochs)), "patience": 8}
    if variant.on:
        longer = rd.load_dataset(augmented.where(runs, variant.on, seed))
        split = rd.split.by_name(split.name, longer, **split.params)
    started = _started(folder)
    run = rd.train(
        variant.model,
        split,
        folder,
        preset=variant.preset or None,
        config=options,
        seed=seed,
        max_minutes=minutes,
        resume=started,
        phases_from=phases,
    )
    value = (run.validation or {}).get(metric)  # a preset may not measure it
    shown = "" if value is None else f", {metric} {100 * value:.2f}"
    print(f"{runs.name} {name} seed {seed}: {run.minutes:.1f} min{shown}", flush=True)


def _started(folder: Path) -> bool:
    """Whether there is a training to resume; what is left of one that cannot be is removed."""
    started = (folder / "checkpoints" / "identity.safetensors").exists()
    if folder.exists() and not started:
        shutil.rmtree(folder)
    return started


def report(
    folder: Path,
    data: rd.Dataset,
    metric: str,
    protocol: str | None,
    results: Path,
    relabelled: Callable[[Comparison], Comparison] = lambda found: found,
    result: str | None = None,
) -> dict[str, Any]:
    """Evaluate what is trained and not evaluated yet, then compare all of it and write the result file.

    Args:
        folder: of the runs of a data set and a split; its name finds the published figures.
        result: begins the name of the result file; by default "compare", with the name of the folder around unless
            that is "benchmark". With "table", results per user are stored beside it, see `benchmarks.tables.users`.

    Returns:
        What is stored, see `condensed`.
    """
    runs = sorted(path.parent for path in folder.glob("*/manifest.json"))
    suffix = Path(evaluation_file("test.json", protocol)).stem.removeprefix("test")
    for run in runs:
        if not is_evaluated(run, protocol):
            evaluate(run, data, protocol)
    memory, began = PeakMemory(), time.perf_counter()
    begins = result or ("compare" if folder.parent.name == "benchmark" else f"compare-{folder.parent.name}")
    name = f"{begins}-{folder.name}{suffix}"
    published = PUBLISHED.get(name.removeprefix("compare-" if result is None else f"{result}-"))
    out = folder.parent / f"report-{folder.name}{suffix}"
    found = relabelled(rd.compare(runs, out, metric=metric, published=published, protocol=protocol))
    print(f"Compared in {time.perf_counter() - began:.1f} s, {memory.mib()} MiB at most.\n")
    precision = ", ".join(sorted({read_config(run)["training"]["precision"] for run in runs}))
    stored = condensed(found, metric)
    write_result(results / f"{name}.json", stored, precision=precision)
    if result == "table":
        labelled = (
            (labels.label(VARIANTS[run.path.name.rpartition("-")[0]]), run) for run in read_runs(runs, protocol)
        )
        atomic_write_parquet(results / f"{name}.parquet", users.stored(labelled))
    return stored


def evaluate(run: Path, data: rd.Dataset, protocol: str | None) -> None:
    """Evaluate a run on the test subset, with the histories that its variant was trained on."""
    name, _, seed = run.name.rpartition("-")
    on = VARIANTS[name].on
    read = rd.load_dataset(augmented.where(run.parent, on, int(seed))) if on else data
    rd.evaluate(run, read, protocol=protocol, seeds=range(3))
    print(f"{run} ({read_config(run)['training']['minutes']:.1f} min) evaluated", flush=True)


def condensed(found: Comparison, metric: str) -> dict[str, Any]:
    """What of a comparison is stored: the metrics that tables show, and slices of users by the chosen metric."""
    named, _, policy = metric.partition("/")
    everything = found.to_dict()
    kept = {
        name: everything[name] for name in ("facts", "summary", "pairs", "ablations", "steps", "costs", "published")
    }
    kept["facts"] = kept["facts"] | {"runs": [Path(run).name for run in kept["facts"]["runs"]]}  # not where they were
    kept["pairs"] = [row for row in kept["pairs"] if row["policy"] == (policy or "all")]
    kept["summary"] = [row for row in kept["summary"] if row["metric"] in (*SHOWN, named)]
    kept["slices"] = [
        row
        for row in everything["slices"]
        if row["by"] in BY_USER and row["metric"] == named and row["policy"] == (policy or "all")
    ]
    return kept


def table(stored: dict[str, Any], metric: str) -> str:
    """The table of docs/benchmarks.md, in per cent, best first; ± is half the 95 % interval over seeds.

    Args:
        stored: the content of a result file, see `condensed`.
        metric: without its policy; the order is that with seen items filtered, where they are.
    """
    values = {(row["variant"], row["policy"], row["metric"]): row for row in stored["summary"]}

    def cell(label: str, policy: str, metric: str) -> str:
        row = values.get((label, policy, metric))
        if row is None:
            return ""
        spread = "" if row["low"] is None else f" ±{50 * (row['high'] - row['low']):.2f}"
        return f"{100 * row['mean']:.2f}{spread}"

    policies = stored["facts"]["protocol"]["seen"]
    shown = list(dict.fromkeys(("hr@10", "ndcg@10") if metric == "ndcg@10" else (metric, "ndcg@10")))
    columns = [(policy, name) for policy in policies for name in shown]
    columns.append((policies[-1], "coverage@10"))
    costs = {row["variant"]: row for row in stored["costs"]}
    order = sorted(costs, key=lambda label: -values[label, policies[-1], metric]["mean"])
    words = {"all": "kept", "unseen": "filtered"}
    heads = [f"{name.replace('hr', 'HR').replace('ndcg', 'NDCG')} {words[policy]}" for policy, name in columns[:-1]]
    lines = [
        f"| | seeds | {' | '.join(heads)} | coverage@10 | min | best epoch |",
        "|---|" + "--:|" * (len(heads) + 4),
    ]
    for label in order:
        cells = [cell(label, *column) for column in columns]
        cost, seeds = costs[label], values[label, policies[-1], metric]["seeds"]
        spent = (f"{cost['train_minutes']:.1f}", f"{cost['best_epoch']:.0f}") if cost["best_epoch"] else ("", "")
        lines.append(f"| {' | '.join([label, str(seeds), *cells, *spent])} |")
    for label, figures in stored["published"].items():
        names = [metric if policy == "all" else f"{metric}/{policy}" for policy, metric in columns]
        cells = [f"{100 * figures[name]:.2f}" if name in figures else "" for name in names]
        name = f"*{label}, published, not run here ({figures['source']})*"
        lines.append(f"| {' | '.join([name, '', *cells, '', ''])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
