"""The command that searches a model's options."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from rediffuse.cli.app import MODEL_HELP, AsJson, app
from rediffuse.cli.output import emit, print_rich, table
from rediffuse.cli.splits import (
    Fraction,
    Quantile,
    Ratio,
    SplitName,
    SplitSeed,
    Targets,
    ValidQuantile,
    read_split,
    split_options,
)

SHOWN_TRIALS = 5


@app.command()
def tune(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    dataset: Annotated[Path, typer.Argument(help="Folder of a dataset, from prepare, data or augment.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The study's folder; a study in it is continued.")],
    trials: Annotated[int, typer.Option(help="Number of finished trials, over all sessions.")] = 30,
    minutes: Annotated[float | None, typer.Option(help="Time of all trials, over all sessions.")] = None,
    preset: Annotated[str | None, typer.Option(help="Named options of the first trial.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="option=value to fix and not to search; may be repeated.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Most epochs of a trial; the same as --set epochs=N.")] = None,
    metric: Annotated[
        str | None, typer.Option(help="Validation metric to maximise; the same as --set metric=NAME.")
    ] = None,
    split_name: SplitName = "default",
    quantile: Quantile = None,
    valid_quantile: ValidQuantile = None,
    ratio: Ratio = None,
    targets: Targets = None,
    fraction: Fraction = None,
    split_seed: SplitSeed = None,
    seed: Annotated[int, typer.Option(help="Seed of the search and of every training.")] = 0,
    worker: Annotated[
        bool, typer.Option("--worker", help="Share the study with other workers, on one file system.")
    ] = False,
    storage: Annotated[
        str | None,
        typer.Option(
            envvar="REDIFFUSE_STORAGE",
            show_envvar=True,
            help="URL of a database in which workers share the study.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Search a model's options on validation data. The test subset is not read."""
    from rediffuse.config import parse_settings
    from rediffuse.tuning import tune as search

    fixed = parse_settings(settings or [])
    fixed |= {name: value for name, value in (("epochs", epochs), ("metric", metric)) if value is not None}
    split = read_split(split_name, dataset, quantile, valid_quantile, ratio, targets, fraction, split_seed)
    study = search(
        model,
        split,
        out,
        trials=trials,
        max_minutes=minutes,
        config=fixed,
        preset=preset,
        seed=seed,
        progress=True,
        worker=worker,
        storage=storage,
    )
    ranking, states = study.ranking, study.trials["state"].to_list()
    command = ["rediffuse", "train", model, str(dataset), "--config", str(out / "best.yaml"), "-o", f"{out}-best"]
    command += split_options(split_name, quantile, valid_quantile, ratio, targets, fraction, split_seed)
    command += ["--seed", str(seed)] if seed else []
    best = ranking.head(SHOWN_TRIALS)
    result = {
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

    def print_summary() -> None:
        columns = ("number", "value", "epochs", "minutes")
        options = best.columns[best.columns.index("minutes") + 1 :]
        listing = table(f"Best trials of {out}", "trial", study.metric, "epochs", "minutes", "options")
        listing.columns[-1].justify = "left"
        for row in best.iter_rows(named=True):
            number, value, trained, took = (row[name] for name in columns)
            chosen = " ".join(f"{option}={_short(row[option])}" for option in options)
            name = f"{number} (default)" if row["default"] else str(number)
            listing.add_row(name, f"{value:.4f}", str(trained), f"{took:.1f}", chosen)
        print_rich(listing)
        rank = study.default_rank
        print_rich(
            "The default options reached no validation."
            if rank is None
            else f"The default is number {rank} of {len(ranking)}" + (": no trial was better." if rank == 1 else ".")
        )
        spent = f"{study.minutes:.1f}" + (f" of {minutes:g}" if minutes else "")
        counts = ", ".join(f"{count} {state}" for state, count in result["states"].items())
        print_rich(f"Spent: {spent} minutes; trials: {counts}. Next: {result['next']}")

    emit(result, as_json, print_summary)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
