"""What `make demo` does: real data in, three recommenders compared, named films out. A few minutes on two cores."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from rich.console import Console
from rich.table import Table

import rediffuse as rd
from rediffuse.data.zoo import fetch
from rediffuse.evaluation import evaluate_task
from rediffuse.training import read_run

RUNS = Path("runs/demo")
# The twin is the same network, trained the same way, without diffusion.
COMPARED = {"popularity": ("popularity", {}), "twin": ("diffurec", {"diffusion": False}), "diffurec": ("diffurec", {})}
SHOWN = ("hr@10", "ndcg@10", "recall@20", "coverage@10")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="of training, per model")
    parser.add_argument("--svg", type=Path, help="also save what is printed as a picture")
    arguments = parser.parse_args()
    console = Console(record=arguments.svg is not None, width=100, highlight=False)

    console.print("[bold]1. Data[/]  MovieLens-100K: who watched what and when.")
    dataset = fetch("ml-100k", "data/ml-100k")
    split = rd.split.leave_one_out(dataset)
    console.print(f"   {dataset.num_users:,} people, {dataset.num_items:,} films, {dataset.num_events:,} events.")
    console.print("   Each person's last film is tested, the one before validates, the rest trains.")
    console.print(f"   [dim]{split.leak}[/]")

    console.print(f"\n[bold]2. Training[/]  up to {arguments.minutes:g} min each, selected on validation only.")
    listing = Table(*("", "policy", *SHOWN, "epoch", "minutes"))
    for name, (model, options) in COMPARED.items():
        folder = RUNS / name
        shutil.rmtree(folder, ignore_errors=True)
        run = rd.train(model, split, folder, config=options, max_minutes=arguments.minutes, progress=True)
        trained = read_run(folder).model
        result = evaluate_task(
            lambda histories, _start, trained=trained: trained.score(histories, seed=0),
            split.task("test"),
            num_items=dataset.num_items,
        )
        for policy, label in (("all", "seen kept"), ("unseen", "seen filtered")):
            values = (f"{result.metrics[policy][metric]:.4f}" for metric in SHOWN)
            ends = (str(run.config["training"]["best_epoch"]), f"{run.minutes:.1f}") if policy == "all" else ("", "")
            listing.add_row(name if policy == "all" else "", label, *values, *ends)

    console.print("\n[bold]3. Test[/]  the whole catalogue is ranked for each person; ties count against the model.")
    console.print(listing)
    console.print("   twin: the same network without diffusion. popularity: everyone gets the same films.")

    recommender = rd.Recommender.load(RUNS / "diffurec")
    person = dataset.user_ids[0]
    films = recommender.items["title"]
    watched = dataset.interactions.row(0)[:-1][-5:]
    console.print(f"\n[bold]4. Ten films for user {person}[/], who last watched")
    console.print("   " + ", ".join(films[int(item)] for item in watched))
    top = recommender.recommend(users=[person], k=10).join(recommender.items, on="item_id", maintain_order="left")
    for rank, title, score in top.select("rank", "title", "score").iter_rows():
        console.print(f"   {rank:>2}. {title:<60} {score:.3f}")

    console.print("\nThe run is in runs/demo/diffurec. Ask it for anyone, by titles:")
    console.print('   .venv/bin/rediffuse recommend runs/demo/diffurec --history "Toy Story (1995)|Fargo (1996)"')
    if arguments.svg:
        arguments.svg.parent.mkdir(parents=True, exist_ok=True)
        console.save_svg(str(arguments.svg), title="make demo")


if __name__ == "__main__":
    main()
