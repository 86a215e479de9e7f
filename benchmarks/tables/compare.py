"""The benchmark: every model under one budget, several seeds, one report.

    export REDIFFUSE_DATA=...
    OMP_NUM_THREADS=1 python -m benchmarks.tables.compare --data amazon-beauty --split given --minutes 3
    python -m benchmarks.tables.compare --data amazon-beauty --split given --report

The first line trains what is not trained yet (killed, it goes on where it was); it may run twice at once with
``--part 0/2`` and ``--part 1/2``. The second evaluates on the test part and writes the report. Every gradient-trained
model gets the same minutes of one thread, its default options, and selection by the same validation metric.
"""

from __future__ import annotations

import argparse
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rediffuse as rd
from benchmarks.common import RESULTS, rerun, write_result
from benchmarks.tables import augmented
from rediffuse.comparison import Comparison
from rediffuse.comparison.markdown import SHOWN
from rediffuse.comparison.runs import BY_PERSON, evaluation_file
from rediffuse.data.split import Split
from rediffuse.data.zoo import fetch
from rediffuse.models.diffkg import DiffKGConfig
from rediffuse.models.diffnet import DiffNetConfig
from rediffuse.models.diffnetpp import DiffNetPPConfig
from rediffuse.models.diffrec import TDiffRecConfig
from rediffuse.training import read_config
from rediffuse.training.environment import PeakMemory


@dataclass(frozen=True)
class Variant:
    """What is compared: a model, its options beyond the default, the variants that its phases are taken from, and which
    of the longer data sets of `augmented.py` it is trained on."""

    model: str
    options: dict[str, Any] = field(default_factory=dict)
    phases: dict[str, str] = field(default_factory=dict)
    on: str = ""


VARIANTS = {
    "popularity": Variant("popularity"),
    "itemknn": Variant("itemknn"),
    "ease": Variant("ease"),
    "diffurec": Variant("diffurec"),
    "twin": Variant("diffurec", {"diffusion": False}),
    "sasrec": Variant("sasrec"),
    "gru4rec": Variant("gru4rec"),
    "bert4rec": Variant("bert4rec"),
    "lightgcn": Variant("lightgcn"),
    "bprmf": Variant("bprmf"),
}
# To be asked for by name.
MORE = {
    "diffurec-norepeat": Variant("diffurec", {"repeat_bias": False}),
    "twin-norepeat": Variant("diffurec", {"repeat_bias": False, "diffusion": False}),
    "sasrec-sampled": Variant("sasrec", {"loss": "sampled_softmax"}),
    "sasrec-bce": Variant("sasrec", {"loss": "bce"}),
    "sasrec-gbce": Variant("sasrec", {"loss": "gbce"}),
    "diffrec": Variant("diffrec"),
    "diffrec-twin": Variant("diffrec", {"diffusion": False}),
    "tdiffrec": Variant("tdiffrec"),
    "tdiffrec-twin": Variant("tdiffrec", {"diffusion": False}),
    "ldiffrec": Variant("ldiffrec"),
    "ldiffrec-twin": Variant("ldiffrec", {"diffusion": False}),
}
# Social graphs: with friends, without, and as released.
MORE |= {
    "friends": Variant("friends"),
    "diffnet": Variant("diffnet"),
    "diffnet-alone": Variant("diffnet", {"hops": 0}),
    "diffnet-reference": Variant("diffnet", DiffNetConfig.presets["reference"]),
    "diffnetpp": Variant("diffnetpp", {"hops": 2}),
    "diffnetpp-one": Variant("diffnetpp"),
    "diffnetpp-mean": Variant("diffnetpp", {"attention": "mean"}),
    "bprmf-tuned": Variant("bprmf", {"reg": 0.03}),  # the best of a few on Yelp's validation part
    "lightgcn-tuned": Variant("lightgcn", {"reg": 0.03}),
    "diffnetpp-reference": Variant("diffnetpp", DiffNetPPConfig.presets["reference"]),
}
# A knowledge graph, pruned by diffusion, at random, or not at all.
for pruning in ("diffusion", "random", "none"):
    MORE[f"diffkg-{pruning}"] = Variant("diffkg", {"pruning": pruning})
MORE["diffkg-plain"] = Variant("diffkg", {"pruning": "none", "contrast": 0.0})
MORE["diffkg-reference"] = Variant("diffkg", DiffKGConfig.presets["reference"])
# PDRec: TI-DiffRec alone, and each signal alone and together, on two backbones, with the paper's loss and with ours.
SIGNALS = ("hbr", "dpa", "nns")
DIFFUSION = TDiffRecConfig.presets["douban-book"] | {"learning_rate": 5e-4, "validate_every": 2}
LOOP = {"batch_size": 4096, "validate_every": 4}
MORE["tidiffrec"] = Variant("tdiffrec", DIFFUSION)
for backbone, rate in (("gru4rec", 3e-3), ("sasrec", 1e-3)):
    for loss in ("bce", "softmax"):
        known = [signal for signal in SIGNALS if loss == "bce" or signal != "nns"]
        chosen = {"plain": [], "all": known} | {signal: [signal] for signal in known}
        for name, on in chosen.items():
            options = LOOP | {"backbone": backbone, "learning_rate": rate, "loss": loss, "diffusion": DIFFUSION}
            options |= {signal: signal in on for signal in SIGNALS}
            options["backbone_options"] = {"embedding_size": 64, "dropout": 0.2, "temperature": 0.1}
            MORE[f"{backbone}-{loss}-{name}"] = Variant("pdrec", options, {"diffusion": "tidiffrec"} if on else {})
# Augmentation: each backbone on the data as they are, and on what each way to augment wrote.
SMALL = {"embedding_size": 64, "dropout": 0.2, "learning_rate": 2e-3, "validate_every": 2}
BACKBONES = {
    "sasrec": SMALL | {"epochs": 6},
    "bert4rec": SMALL | {"epochs": 8},
    "s3rec": SMALL | {"epochs": 6, "pretrain_epochs": 2},
    "gru4rec": SMALL | {"epochs": 4},
}
for backbone, options in BACKBONES.items():
    for on in ("", *augmented.METHODS):
        MORE[f"{backbone}-on-{on or 'own'}"] = Variant(backbone, options, on=on)
METRIC = "ndcg@10/unseen"
# Figures of papers on the same data family; not run here. Names without /unseen: seen items kept.
PUBLISHED = {
    "social-diffnet-yelp-given-paper-diffnet": {
        "DiffNet with features": {"source": "authors' repository", "capped_recall@10": 0.3437, "ndcg@10": 0.2095},
        "DiffNet++ without features, untuned": {
            **{"source": "issue 36 of the authors' repository", "capped_recall@10": 0.3104, "ndcg@10": 0.1877},
        },
        "matrix factorisation, tuned": {"source": "GRecX; a slightly easier protocol", "ndcg@10": 0.2064},
    },
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
    parser.add_argument("--epochs", type=int, default=1000, help="at most; with many --minutes, what is equal")
    parser.add_argument("--part", default="0/1", help="train only every n-th run, from i: i/n")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--metric", default=METRIC, help="that selects, and that pairs are tested on")
    parser.add_argument("--protocol", help="of the report; default: that of the split")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result file of the report")
    parser.add_argument("--report", action="store_true", help="evaluate and compare what is trained")
    arguments = parser.parse_args()
    data = fetch(arguments.data)
    split = rd.split.by_name(arguments.split, data)
    folder = arguments.runs / f"{arguments.data}-{split.name}"
    if arguments.report:
        report(folder, data, arguments.metric, arguments.protocol, arguments.results)
        return
    part, parts = map(int, arguments.part.split("/"))
    wanted = [(variant, seed) for seed in arguments.seeds for variant in arguments.models]
    if len(wanted) == 1:
        variant, seed = wanted[0]
        train(variant, split, folder, seed, arguments.minutes, arguments.epochs, arguments.metric)
        return
    for variant, seed in wanted[part::parts]:
        if (folder / f"{variant}-{seed}" / "manifest.json").exists():
            continue
        # A process for each, so that the peak of memory is the run's own.
        again = ["--data", arguments.data, "--split", arguments.split, "--minutes", str(arguments.minutes)]
        again += ["--runs", str(arguments.runs), "--models", variant, "--seeds", str(seed)]
        again += ["--metric", arguments.metric, "--epochs", str(arguments.epochs)]
        rerun(*again)


def train(variant: str, split: Split, runs: Path, seed: int, minutes: float, epochs: int, metric: str) -> None:
    """One run, unless it is there."""
    chosen, folder = (VARIANTS | MORE)[variant], runs / f"{variant}-{seed}"
    if (folder / "manifest.json").exists():
        return
    if not rd.models.model_class(chosen.model).trained_by_gradient and seed:
        return  # the seed changes nothing
    phases = {phase: runs / f"{other}-{seed}" for phase, other in chosen.phases.items()}
    options = {name: value for name, value in chosen.options.items() if name not in phases}
    options |= {"metric": metric, "epochs": min(epochs, options.get("epochs", epochs)), "patience": 8}
    if chosen.on:
        longer = rd.Dataset.load(augmented.where(runs, chosen.on, seed))
        split = rd.split.by_name(split.name, longer, **split.params)
    started = (folder / "checkpoints" / "claim.safetensors").exists()
    if folder.exists() and not started:
        shutil.rmtree(folder)
    run = rd.train(
        chosen.model,
        split,
        folder,
        config=options,
        seed=seed,
        max_minutes=minutes,
        resume=started,
        phases_from=phases,
    )
    value = 100 * (run.validation or {})[metric]
    print(f"{runs.name} {variant} seed {seed}: {run.minutes:.1f} min, {metric} {value:.2f}", flush=True)


def report(folder: Path, data: rd.Dataset, metric: str, protocol: str | None, results: Path) -> None:
    """Evaluate what is trained and not evaluated yet, then compare all of it."""
    runs = sorted(path.parent for path in folder.glob("*/manifest.json"))
    suffix = Path(evaluation_file("test.json", protocol)).stem.removeprefix("test")
    for run in runs:
        if not (run / f"test{suffix}.json").exists():
            variant, _, seed = run.name.rpartition("-")
            on = (VARIANTS | MORE)[variant].on
            read = rd.Dataset.load(augmented.where(folder, on, int(seed))) if on else data
            rd.evaluate_run(run, read, protocol=protocol, seeds=range(3))
            print(f"{run} ({read_config(run)['training']['minutes']:.1f} min) evaluated", flush=True)
    memory, began = PeakMemory(), time.perf_counter()
    name = folder.name if folder.parent.name == "benchmark" else f"{folder.parent.name}-{folder.name}"
    out, published = folder.parent / f"report-{folder.name}{suffix}", PUBLISHED.get(name + suffix)
    found = rd.compare(runs, out, metric=metric, published=published, protocol=protocol)
    print(f"Compared in {time.perf_counter() - began:.1f} s, {memory.mib()} MiB at most.\n")
    print(table(found, metric.partition("/")[0]))
    everything = found.to_dict()
    kept = {name: everything[name] for name in ("facts", "summary", "pairs", "twins", "steps", "costs")}
    named, _, policy = metric.partition("/")
    kept["summary"] = [row for row in kept["summary"] if row["metric"] in (*SHOWN, named)]
    kept["slices"] = [
        row
        for row in everything["slices"]
        if row["by"] in BY_PERSON and row["metric"] == named and row["policy"] == (policy or "all")
    ]
    precision = ", ".join(sorted({read_config(run)["training"]["precision"] for run in runs}))
    write_result(results / f"compare-{name}{suffix}.json", kept, precision=precision)


def table(found: Comparison, metric: str) -> str:
    """The table of docs/benchmarks.md, in per cent, best first; ± is half the 95 % interval over seeds."""
    values = {(row["variant"], row["policy"], row["metric"]): row for row in found.summary.iter_rows(named=True)}

    def cell(label: str, policy: str, metric: str) -> str:
        row = values.get((label, policy, metric))
        if row is None:
            return ""
        spread = "" if row["low"] is None else f" ±{50 * (row['high'] - row['low']):.2f}"
        return f"{100 * row['mean']:.2f}{spread}"

    policies = found.facts["protocol"]["seen"]
    shown = list(dict.fromkeys(("hr@10", "ndcg@10") if metric == "ndcg@10" else (metric, "ndcg@10")))
    columns = [(policy, name) for policy in policies for name in shown]
    columns.append((policies[-1], "coverage@10"))
    costs = {row["variant"]: row for row in found.costs.iter_rows(named=True)}
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
    for label, figures in found.published.items():
        names = [metric if policy == "all" else f"{metric}/{policy}" for policy, metric in columns]
        cells = [f"{100 * figures[name]:.2f}" if name in figures else "" for name in names]
        name = f"*{label}, published, not run here ({figures['source']})*"
        lines.append(f"| {' | '.join([name, '', *cells, '', ''])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
