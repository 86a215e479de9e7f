"""The command that searches a model's options."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rediffuse.cli.app import MODEL_HELP, AsJson, app
from rediffuse.cli.output import answer, show, table
from rediffuse.cli.splits import read_split

SHOWN_TRIALS = 5


@app.command()
def tune(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    dataset: Annotated[Path, typer.Argument(help="Folder made by prepare or data.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The study's folder; a study in it goes on.")],
    trials: Annotated[int, typer.Option(help="Finished trials in all, earlier sessions included.")] = 30,
    minutes: Annotated[float | None, typer.Option(help="Time for all trials, earlier sessions included.")] = None,
    preset: Annotated[str | None, typer.Option(help="Named options to start from.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="option=value that is fixed, not searched; may be repeated.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Upper bound of every trial; as --set epochs=N.")] = None,
    metric: Annotated[str | None, typer.Option(help="What is maximised on validation; as --set metric=NAME.")] = None,
    split: Annotated[str, typer.Option(help="default, global-time, leave-one-out, given or ratio.")] = "default",
    seed: Annotated[int, typer.Option(help="Of the search and of every training.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Search a model's options on validation data; the test subset is not touched."""
    from rediffuse.config import parse_settings
    from rediffuse.tuning import tune as search

    fixed = parse_settings(settings or [])
    fixed |= {name: value for name, value in (("epochs", epochs), ("metric", metric)) if value is not None}
    parts = read_split(split, dataset)
    study = search(
        model,
        parts,
        out,
        trials=trials,
        max_minutes=minutes,
        config=fixed,
        preset=preset,
        seed=seed,
        progress=sys.stderr.isatty(),
    )
    ranking, states = study.ranking, study.trials["state"].to_list()
    command = ["rediffuse", "train", model, str(dataset), "--config", str(out / "best.yaml"), "-o", f"{out}-best"]
    command += ["--split", split] if split != "default" else []
    command += ["--seed", str(seed)] if seed else []
    best = ranking.head(SHOWN_TRIALS)
    facts = {
        "study": str(out),
        "metric": study.metric,
        "best_value": study.best_value,
        "best_config": study.best_config,
        "default_rank": study.default_rank,
        "minutes": study.minutes,
        "states": {state: states.count(state) for state in sorted(set(states))},
        "best_trials": best.to_dicts(),
        "next": shlex.join(command),
    }

    def for_people() -> None:
        columns = ("number", "value", "epochs", "minutes")
        options = best.columns[best.columns.index("minutes") + 1 :]
        listing = table(f"Best trials of {out}", "trial", study.metric, "epochs", "minutes", "options")
        listing.columns[-1].justify = "left"
        for row in best.iter_rows(named=True):
            number, value, trained, took = (row[name] for name in columns)
            chosen = " ".join(f"{option}={_short(row[option])}" for option in options)
            name = f"{number} (default)" if row["default"] else str(number)
            listing.add_row(name, f"{value:.4f}", str(trained), f"{took:.1f}", chosen)
        show(listing)
        rank = study.default_rank
        show(
            "The default reached no validation."
            if rank is None
            else f"The default is number {rank} of {len(ranking)}" + (": it was not beaten." if rank == 1 else ".")
        )
        spent = f"{study.minutes:.1f}" + (f" of {minutes:g}" if minutes else "")
        counts = ", ".join(f"{count} {state}" for state, count in facts["states"].items())
        show(f"Spent: {spent} minutes; trials: {counts}. Next: {facts['next']}")

    answer(facts, as_json, for_people)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
