"""The command that runs an experiment file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rediffuse.cli.app import AsJson, app
from rediffuse.cli.output import emit, print_rich, say, table

if TYPE_CHECKING:
    from rediffuse.experiment import Experiment, Outcome

SHOWN = ("hr@10", "ndcg@10", "recall@20", "mrr@10")


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="A YAML file: data, split, models, seeds, budgets, report.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the file and print what would be done.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train, evaluate and compare the models of an experiment file; started again, only what is left."""
    from rediffuse.experiment import read_experiment, run_experiment

    experiment = read_experiment(file)
    if dry_run:
        emit(_plan(experiment), as_json, lambda: _print_plan(experiment))
        return

    for note in experiment.notes:
        say(f"Note: {note}")
    outcome = run_experiment(experiment, progress=sys.stderr.isatty(), say=say)
    result: dict[str, Any] = {"report": str(experiment.report) if outcome.comparison else None, "runs": outcome.rows}
    emit(result, as_json, lambda: _print_outcome(experiment, outcome))
    if outcome.failed:
        raise typer.Exit(2)


def _plan(experiment: Experiment) -> dict[str, Any]:
    runs = [
        {
            "label": planned.label,
            "model": planned.kind.name,
            "preset": planned.preset,
            "seed": planned.seed,
            "max_minutes": planned.max_minutes,
            "run": str(planned.folder),
            "exists": planned.folder.exists(),
            "options": planned.options.model_dump(mode="json"),
        }
        for planned in experiment.runs
    ]
    content = experiment.file.model_dump(mode="json", exclude={"models"})
    return {"experiment": content, "runs": runs, "notes": list(experiment.notes), "report": str(experiment.report)}


def _print_plan(experiment: Experiment) -> None:
    file = experiment.file
    source = file.data.folder or file.data.public or file.data.table
    listing = table(f"Plan of {experiment.path}", "model", "preset", "seed", "minutes", "run")
    for planned in experiment.runs:
        minutes = "" if planned.max_minutes is None else f"{planned.max_minutes:g}"
        found = " (exists)" if planned.folder.exists() else ""
        listing.add_row(planned.label, planned.preset or "", str(planned.seed), minutes, f"{planned.folder}{found}")
    print_rich(listing)
    params = "".join(f", {name}={value}" for name, value in file.split.params.items())
    print_rich(f"Data: {source}; split: {file.split.name}{params}; report: {experiment.report}.")
    limits = [planned.max_minutes for planned in experiment.runs]
    known = [limit for limit in limits if limit is not None]
    if len(known) == len(limits):
        print_rich(f"{len(limits)} trainings take at most {sum(known):g} minutes together.")
    else:
        print_rich(f"{len(limits)} trainings, {len(limits) - len(known)} of them without a time limit (max_minutes).")
    print_rich(*experiment.notes)


def _print_outcome(experiment: Experiment, outcome: Outcome) -> None:
    listing = table(f"Experiment {experiment.path}", "model", "seed", "state", "minutes", *SHOWN)
    listing.columns[0].overflow = "fold"
    for row in outcome.rows:
        # The policy that seen items are filtered by is in the report.
        metrics = next(iter((row["metrics"] or {}).values()), {})
        minutes = "" if row["minutes"] is None else f"{row['minutes']:.1f}"
        values = (f"{metrics[name]:.4f}" if name in metrics else "" for name in SHOWN)
        listing.add_row(row["label"], str(row["seed"]), row["state"], minutes, *values)
    print_rich(listing)
    for row in outcome.failed:
        print_rich(f"{row['label']}, seed {row['seed']}, failed: {row['problem']}")
    if outcome.comparison is not None:
        print_rich(f"Report: {experiment.report / 'report.html'}")
