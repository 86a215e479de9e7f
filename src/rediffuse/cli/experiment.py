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
    file: Annotated[Path, typer.Argument(help="A YAML file: data, splits, models, seeds, budgets, report.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the file and print what would be done.")] = False,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Only make the page again, from the stored results of users.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train, evaluate and compare the models of an experiment file; started again, only what is left."""
    from rediffuse.errors import ConfigError
    from rediffuse.experiment import read_experiment, report_again, run_experiment

    if dry_run and report_only:
        raise ConfigError("--dry-run and --report-only exclude each other.", "Leave out one of them.")
    experiment = read_experiment(file)
    if dry_run:
        emit(_plan(experiment), as_json, lambda: _print_plan(experiment))
        return
    if report_only:
        page = report_again(experiment)
        emit({"page": str(page)}, as_json, lambda: print_rich(f"Page: {page}"))
        return

    for note in experiment.notes:
        say(f"Note: {note}")
    outcome = run_experiment(experiment, progress=sys.stderr.isatty(), say=say)
    reports = [setting.report for setting in experiment.settings if setting.labels in outcome.comparisons]
    result: dict[str, Any] = {
        "page": str(experiment.page) if reports else None,
        "results": str(experiment.results) if reports else None,
        "energy": outcome.energy,
        "reports": [str(report) for report in reports],
        "uncompared": list(outcome.uncompared.values()),
        "runs": outcome.rows,
    }
    emit(result, as_json, lambda: _print_outcome(experiment, outcome))
    if outcome.problems:
        raise typer.Exit(2)


def _plan(experiment: Experiment) -> dict[str, Any]:
    from rediffuse.experiment.estimate import left

    runs = [
        {
            "data": planned.setting.data_label,
            "split": planned.setting.split_label,
            "label": planned.label,
            "model": planned.kind.name,
            "preset": planned.preset,
            "seed": planned.seed,
            "max_minutes": planned.max_minutes,
            "run": str(planned.folder),
            "exists": planned.folder.exists(),
            "tuned": planned.study is not None,
            "options": planned.options.model_dump(mode="json"),
        }
        for planned in experiment.runs
    ]
    content = experiment.file.model_dump(mode="json", exclude={"models"})
    return {
        "experiment": content,
        "runs": runs,
        "notes": list(experiment.notes),
        "left": vars(left(experiment)),
        "page": str(experiment.page),
    }


def _print_plan(experiment: Experiment) -> None:
    from rediffuse.experiment.estimate import left

    for setting in experiment.settings:
        source = setting.data.folder or setting.data.public or setting.data.table
        params = "".join(f", {name}={value}" for name, value in setting.split.params.items())
        title = f"Plan of {experiment.path}{f': {setting.name}' * bool(setting.name)}"
        listing = table(title, "model", "preset", "seed", "minutes", "run")
        for planned in (run for run in experiment.runs if run.setting is setting):
            minutes = "" if planned.max_minutes is None else f"{planned.max_minutes:g}"
            found = " (exists)" if planned.folder.exists() else ""
            listing.add_row(planned.label, planned.preset or "", str(planned.seed), minutes, f"{planned.folder}{found}")
        for lists in (lists for lists in experiment.lists if lists.setting is setting):
            listing.add_row(lists.label, "", str(lists.seed), "", f"lists of {lists.file}")
        print_rich(listing, f"Data: {source}; split: {setting.split.name}{params}; report: {setting.report}.")
    if (tune := experiment.file.tune) is not None:
        minutes = "" if tune.minutes is None else f", or {tune.minutes:g} minutes"
        print_rich(f"Options of each model are searched before: {tune.trials} trials{minutes}.")
    print_rich(left(experiment).text, *experiment.notes)


def _print_outcome(experiment: Experiment, outcome: Outcome) -> None:
    from rediffuse.experiment.energy import ESTIMATE

    for setting in experiment.settings:
        rows = [row for row in outcome.rows if (row["data"], row["split"]) == setting.labels]
        title = f"Experiment {experiment.path}{f': {setting.name}' * bool(setting.name)}"
        tuning = ("trials", "tuning") if experiment.file.tune is not None else ()
        listing = table(title, "model", "seed", "state", "minutes", *tuning, *SHOWN)
        listing.columns[0].overflow = "fold"
        for row in rows:
            # The policy that seen items are filtered by is in the report.
            metrics = next(iter((row["metrics"] or {}).values()), {})
            values = (f"{metrics[name]:.4f}" if name in metrics else "" for name in SHOWN)
            minutes = "" if row["minutes"] is None else f"{row['minutes']:.1f}"
            spent = row["tuning"] or {}
            searched = [f"{spent['trials']}", f"{spent['minutes']:.1f}"] if spent else [""] * 2
            listing.add_row(row["label"], str(row["seed"]), row["state"], minutes, *searched[: len(tuning)], *values)
        print_rich(listing)
    for failed in outcome.problems:
        print_rich(f"{failed['name']}, failed: {failed['problem']}")
    if (total := outcome.energy) is not None:
        print_rich(
            f"Energy: {total['kwh']:.3g} kWh, {total['co2_kg']:.3g} kg CO2eq in {total['minutes']:.1f} minutes, which "
            f"were measured, searches included. {ESTIMATE}"
        )
    for setting in experiment.settings:
        if setting.labels in outcome.comparisons:
            print_rich(f"Report: {setting.report / 'report.html'}")
    if outcome.comparisons:
        print_rich(f"All results: {experiment.page}, and of each user {experiment.results}")
