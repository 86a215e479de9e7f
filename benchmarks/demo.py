"""`make demo`: load real data, compare six recommenders, recommend films and say why. A few minutes on two cores."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.table import Table

import rediffuse as rd
from rediffuse.errors import RediffuseWarning
from rediffuse.evaluation import TaskResult, evaluate_task, model_scores
from rediffuse.readers.public_datasets import public_dataset

DATA, RUNS = Path("data/ml-100k"), Path("runs/demo")
PRIOR = {"prior": "head", "metric": "ndcg@10/unseen"}
# Folder -> what it is called, its model, and its options. The networks add their logits to the scores of theat, with
# weights chosen on validation data.
COMPARED = {
    "popularity": ("popularity", "popularity", {"refit": True}),
    "recentpop": ("recent popularity", "recentpop", {}),
    "theat": ("theat", "theat", {}),
    "sasrec": ("SASRec + theat", "sasrec", PRIOR),
    "no-diffusion": ("no diffusion + theat", "diffurec", PRIOR | {"diffusion": False}),
    "diffurec": ("DiffuRec + theat", "diffurec", PRIOR),
}
SHOWN = ("hr@10", "ndcg@10", "coverage@10")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="of training, per network")
    parser.add_argument("--split", default="default", help="default (here: global-time), leave-one-out, ratio")
    parser.add_argument("--svg", type=Path, help="also save the output as a picture, and as text beside it")
    arguments = parser.parse_args()
    console = Console(record=arguments.svg is not None, width=120, highlight=False)

    console.print("[bold]1. Data[/]  MovieLens-100K: who rated which film, and when.")
    dataset = rd.load_dataset(DATA) if (DATA / "manifest.json").exists() else public_dataset("ml-100k", DATA)
    split = rd.split.by_name(arguments.split, dataset)
    task = split.task("test")
    console.print(
        f"   {dataset.num_users:,} users, {dataset.num_items:,} films, {dataset.num_interactions:,} interactions."
    )
    leak = split.leak or "All training interactions are older than the test: nothing leaks."
    console.print(f"   Split: {split.name}. {leak}")
    new = int((task.histories.lengths == 0).sum())
    console.print(
        f"   {len(task.users)} users are tested"
        + (f"; {new} of them are new and get recently popular films." if new else ".")
    )
    valid = split.task("valid")
    unknown = int((~valid.has_history).sum())
    if unknown:
        console.print(f"   {unknown} of {len(valid.users)} validation users are new: choices are made on the others.")
        # Said once above; every training would say it again.
        warnings.filterwarnings("ignore", ".* validation users .* have no history", RediffuseWarning)

    console.print(
        f"\n[bold]2. Training[/]  up to {arguments.minutes:g} min for each network, selected on validation only."
    )
    listing = Table("", "films seen before", *SHOWN, "best epoch", "training")
    for column in listing.columns[2:]:
        column.justify = "right"
    for name, (label, model, options) in COMPARED.items():
        shutil.rmtree(RUNS / name, ignore_errors=True)
        run = rd.train(
            model,
            split,
            RUNS / name,
            config=options,
            max_minutes=arguments.minutes,
            progress=sys.stderr.isatty(),
        )
        model_in_use = rd.Recommender.load(run.path).model
        result = evaluate_task(model_scores(model_in_use, task), task, num_items=dataset.num_items)
        neural = model_in_use.trained_by_gradient
        best = str(run.config["training"]["best_epoch"] or "none ended") if neural else ""
        spent = f"{run.minutes:.1f} min" if run.minutes > 0.5 else f"{60 * run.minutes:.1f} s"
        for policy, seen in (("all", "kept"), ("unseen", "filtered")):
            values = (f"{result.metrics[policy][metric]:.4f}" for metric in SHOWN)
            first = policy == "all"
            listing.add_row(label if first else "", seen, *values, *((best, spent) if first else ()))
        listing.add_section()
        console.print(f"   {label}: done.")

    console.print("\n[bold]3. Test[/]  All films are ranked for each user; ties count against the model.")
    console.print(listing)
    console.print("   theat: heat that spreads from the films of a user to others, times recent popularity.")
    console.print("   no diffusion: the ablation. The same network as DiffuRec, trained the same way, without noise.")
    console.print(
        "   The first three, and theat in the others, also learned from the validation part, after all choices."
    )
    error = standard_error(result)
    console.print(f"   The standard error of hr@10 is about {error:.3f}: smaller differences mean little.")

    recommender = rd.Recommender.load(RUNS / "theat")
    row = next(row for row in range(len(task.users)) if task.histories.lengths[row] >= 5)
    user = dataset.user_ids[int(task.users[row])]
    titles = recommender.items["title"]
    later = set(titles.gather(task.truth.row(row)).to_list())
    watched = titles.gather(task.histories.row(row)[-5:]).to_list()
    # The run also knows what the split held out; here the history ends before the test part.
    history = dataset.item_ids.gather(task.histories.row(row)).to_list()
    top = recommender.recommend(users=[user], histories=[history], k=10, explain=True)
    console.print(f"\n[bold]4. Ten films for user {user}[/]  What each score is made of adds up to 100 %.")
    side_by_side = Table("last five watched", "", "theat recommends", "most of all because of", "then watched")
    for place, (film, because) in enumerate(top.select("title", "because").iter_rows()):
        past = watched[place] if place < len(watched) else ""
        side_by_side.add_row(past, str(place + 1), film, reasons(because), "yes" if film in later else "")
    console.print(side_by_side)

    console.print(
        "\nThe run is in runs/demo/theat; its README.md says how it was made. Recommend for any history, by titles:"
    )
    console.print(
        '   .venv/bin/rediffuse recommend runs/demo/theat --history "Toy Story (1995)|Fargo (1996)" --explain'
    )
    if arguments.svg:
        arguments.svg.parent.mkdir(parents=True, exist_ok=True)
        arguments.svg.with_suffix(".txt").write_text(console.export_text(clear=False), encoding="utf-8")
        picture = console.export_svg(title="make demo")
        # The picture must not load fonts from the network.
        picture = re.sub(r"\s*@font-face \{.*?\}", "", picture, flags=re.DOTALL)
        arguments.svg.write_text(picture, encoding="utf-8")


def reasons(because: list[dict[str, Any]], most: int = 1) -> str:
    """The films that gave most of a score, with their shares; a film's parts are added up."""
    shares: dict[str, float] = {}
    for part in because:
        name = part["history_title"] or part["part"]
        shares[name] = shares.get(name, 0.0) + part["share"]
    shares.pop("other", None)
    best = sorted(shares, key=lambda name: -shares[name])[:most]
    return ", ".join(f"{name} {shares[name]:.0%}" for name in best)


def standard_error(result: TaskResult) -> float:
    """Return the standard error of the mean of hr@10, seen films filtered."""
    values = result.per_user.select(pl.col("hr@10/unseen"))
    return float(values.select(pl.all().std() / pl.len().sqrt()).item())


if __name__ == "__main__":
    main()
