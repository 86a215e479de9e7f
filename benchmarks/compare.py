"""The benchmark: every model under one budget, several seeds, one report.

    REDIFFUSE_DATA=... OMP_NUM_THREADS=1 python benchmarks/compare.py --data amazon-beauty --split given --minutes 3
    REDIFFUSE_DATA=... python benchmarks/compare.py --data amazon-beauty --split given --report

The first line trains what is not trained yet (killed, it goes on where it was); it may run twice at once with
``--part 0/2`` and ``--part 1/2``. The second evaluates on the test part and writes the report. Every gradient-trained
model gets the same minutes of one thread, its default options, and selection by the same validation metric.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import rediffuse as rd
from rediffuse.comparison import Comparison
from rediffuse.comparison.markdown import SHOWN
from rediffuse.data.split import Split
from rediffuse.data.zoo import fetch
from rediffuse.training import read_config
from rediffuse.training.environment import PeakMemory

# What is compared: a name, the model, its options beyond the default.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "popularity": ("popularity", {}),
    "itemknn": ("itemknn", {}),
    "ease": ("ease", {}),
    "diffurec": ("diffurec", {}),
    "twin": ("diffurec", {"diffusion": False}),
    "sasrec": ("sasrec", {}),
    "gru4rec": ("gru4rec", {}),
    "bert4rec": ("bert4rec", {}),
    "lightgcn": ("lightgcn", {}),
    "bprmf": ("bprmf", {}),
}
# To be asked for by name.
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "diffurec-norepeat": ("diffurec", {"repeat_bias": False}),
    "twin-norepeat": ("diffurec", {"repeat_bias": False, "diffusion": False}),
    "sasrec-sampled": ("sasrec", {"loss": "sampled_softmax"}),
    "sasrec-bce": ("sasrec", {"loss": "bce"}),
    "sasrec-gbce": ("sasrec", {"loss": "gbce"}),
}
METRIC = "ndcg@10/unseen"
# Figures of papers on the same data family; not run here. Names without /unseen: seen items kept.
PUBLISHED = {
    "amazon-beauty-given": {
        "DiffuRec (paper)": {"source": "arXiv 2304.00686", "hr@10": 0.0791, "ndcg@10": 0.0475, "hr@5": 0.0558},
        "SASRec, full CE, tuned": {"source": "a later study", "hr@10/unseen": 0.0974, "ndcg@10/unseen": 0.0588},
    },
    "amazon-toys-given": {
        "DiffuRec (paper)": {"source": "arXiv 2304.00686", "hr@10": 0.0746, "ndcg@10": 0.0477, "hr@5": 0.0557},
        "SASRec, sampled softmax, tuned": {"source": "a later study", "hr@10/unseen": 0.097, "ndcg@10/unseen": 0.058},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", required=True)
    parser.add_argument("--models", nargs="+", default=list(VARIANTS), choices=VARIANTS | MORE)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=3.0, help="of training, per run")
    parser.add_argument("--part", default="0/1", help="train only every n-th run, from i: i/n")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--report", action="store_true", help="evaluate and compare what is trained")
    arguments = parser.parse_args()
    data = fetch(arguments.data)
    split = rd.split.by_name(arguments.split, data)
    folder = arguments.runs / f"{arguments.data}-{split.name}"
    if arguments.report:
        report(folder, data)
        return
    part, parts = map(int, arguments.part.split("/"))
    wanted = [(variant, seed) for seed in arguments.seeds for variant in arguments.models]
    if len(wanted) == 1:
        variant, seed = wanted[0]
        train(variant, split, folder / f"{variant}-{seed}", seed, arguments.minutes)
        return
    for variant, seed in wanted[part::parts]:
        if (folder / f"{variant}-{seed}" / "manifest.json").exists():
            continue
        # A process for each, so that the peak of memory is the run's own.
        again = ["--data", arguments.data, "--split", arguments.split, "--minutes", str(arguments.minutes)]
        again += ["--runs", str(arguments.runs), "--models", variant, "--seeds", str(seed)]
        subprocess.run([sys.executable, __file__, *again], check=True)


def train(variant: str, split: Split, folder: Path, seed: int, minutes: float) -> None:
    """One run, unless it is there."""
    model, own = (VARIANTS | MORE)[variant]
    if (folder / "manifest.json").exists():
        return
    if not rd.models.model_class(model).trained_by_gradient and seed:
        return  # the seed changes nothing
    options = own | {"metric": METRIC, "epochs": 1000, "patience": 8}
    started = (folder / "checkpoints" / "claim.safetensors").exists()
    if folder.exists() and not started:
        shutil.rmtree(folder)
    run = rd.train(model, split, folder, config=options, seed=seed, max_minutes=minutes, resume=started)
    value = 100 * (run.validation or {})[METRIC]
    print(f"{folder.parent.name} {variant} seed {seed}: {run.minutes:.1f} min, {METRIC} {value:.2f}", flush=True)


def report(folder: Path, data: rd.Dataset) -> None:
    """Evaluate what is trained and not evaluated yet, then compare all of it."""
    runs = sorted(path.parent for path in folder.glob("*/manifest.json"))
    for run in runs:
        if not (run / "test.json").exists():
            rd.evaluate_run(run, data, seeds=range(3))
            print(f"{run} ({read_config(run)['training']['minutes']:.1f} min) evaluated", flush=True)
    memory, began = PeakMemory(), time.perf_counter()
    out, published = folder.parent / f"report-{folder.name}", PUBLISHED.get(folder.name)
    found = rd.compare(runs, out, metric=METRIC, published=published)
    print(f"Compared in {time.perf_counter() - began:.1f} s, {memory.mib()} MiB at most.\n")
    print(table(found))
    everything = found.to_dict()
    kept = {name: everything[name] for name in ("facts", "summary", "pairs", "twins", "steps", "costs")}
    kept["summary"] = [row for row in kept["summary"] if row["metric"] in SHOWN]
    results = Path(__file__).parent / "results" / f"compare-{folder.name}.json"
    results.write_text(json.dumps(kept, default=str) + "\n", encoding="utf-8")


def table(found: Comparison) -> str:
    """The table of docs/benchmarks.md, in per cent, best first; ± is half the 95 % interval over seeds."""
    values = {(row["variant"], row["policy"], row["metric"]): row for row in found.summary.iter_rows(named=True)}

    def cell(label: str, policy: str, metric: str) -> str:
        row = values.get((label, policy, metric))
        if row is None:
            return ""
        spread = "" if row["low"] is None else f" ±{50 * (row['high'] - row['low']):.2f}"
        return f"{100 * row['mean']:.2f}{spread}"

    columns = [(policy, metric) for policy in ("all", "unseen") for metric in ("hr@10", "ndcg@10")]
    columns.append(("unseen", "coverage@10"))
    costs = {row["variant"]: row for row in found.costs.iter_rows(named=True)}
    order = sorted(costs, key=lambda label: -values[label, "unseen", "ndcg@10"]["mean"])
    lines = [
        "| | seeds | HR@10 kept | NDCG@10 kept | HR@10 filtered | NDCG@10 filtered | coverage@10 | min | best epoch |",
        "|---|" + "--:|" * 8,
    ]
    for label in order:
        cells = [cell(label, *column) for column in columns]
        cost, seeds = costs[label], values[label, "unseen", "ndcg@10"]["seeds"]
        spent = (f"{cost['train_minutes']:.1f}", f"{cost['best_epoch']:.0f}") if cost["best_epoch"] else ("", "")
        lines.append(f"| {' | '.join([label, str(seeds), *cells, *spent])} |")
    for label, figures in found.published.items():
        names = [metric if policy == "all" else f"{metric}/{policy}" for policy, metric in columns]
        cells = [f"{100 * figures[name]:.2f}" if name in figures else "" for name in names]
        name = f"*{label}, published, not run here ({figures['source']})*"
        lines.append(f"| {' | '.join([name, '', *cells, '', ''])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
