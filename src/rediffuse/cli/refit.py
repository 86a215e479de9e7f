"""The command that trains a chosen model on all interactions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rediffuse.cli.app import AsJson, TrainingDevice, app
from rediffuse.cli.interrupts import says_how_to_resume
from rediffuse.cli.output import emit, print_rich, rank


@app.command()
def refit(
    run: Annotated[Path, typer.Argument(help="The run that was chosen.")],
    dataset: Annotated[Path, typer.Argument(help="Folder of the dataset that it was trained on, or of a later one.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The new run folder.")],
    keep_test: Annotated[
        bool, typer.Option("--keep-test", help="Learn from training and validation alone, so that it can be evaluated.")
    ] = False,
    max_minutes: Annotated[float | None, typer.Option(help="Time limit of the training.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint.")] = False,
    device: TrainingDevice = "auto",
    as_json: AsJson = False,
) -> None:
    """Train the model of a run again on all interactions, for use in production."""
    from rediffuse.runs.card import duration
    from rediffuse.training import refit as run_refit

    with says_how_to_resume(out):
        options = {"keep_test": keep_test, "resume": resume, "max_minutes": max_minutes, "device": device}
        made = run_refit(run, dataset, out, **options, progress=True)
    data, epochs = made.config["data"], made.config["training"]["epochs"]
    result = {"run": str(made.path), "refit_of": str(run), "minutes": made.minutes, "epochs": epochs}
    result |= {name: data[name] for name in ("users", "items", "interactions", "histories_end")}

    def print_summary() -> None:
        trained = ", ".join(
            f"{count} epochs" + (f" of {phase}" if len(epochs) > 1 else "") for phase, count in epochs.items()
        )
        count = data["subsets"]["train"]["interactions"] if keep_test else data["interactions"]
        what = f"{count:,} interactions of training and validation" if keep_test else f"all {count:,} interactions"
        following = (
            f"Next: rediffuse evaluate {out} {dataset}"
            if keep_test
            else f"It has no test figures of its own: those of {run} are an estimate. "
            f"Next: rediffuse recommend {out} --user ID"
        )
        print_rich(
            f"{made.config['model']} learned from {what} in {duration(made.minutes)}"
            + (f" ({trained})" if trained else "")
            + f". {following}"
        )

    if rank() == 0:
        emit(result, as_json, print_summary)
