"""The command that trains a chosen model on all interactions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rediffuse.cli.app import AsJson, app
from rediffuse.cli.interrupts import says_how_to_resume
from rediffuse.cli.output import emit, print_rich, rank


@app.command()
def refit(
    run: Annotated[Path, typer.Argument(help="The run that was chosen.")],
    dataset: Annotated[Path, typer.Argument(help="Folder of the dataset that it was trained on, or of a later one.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The new run folder.")],
    max_minutes: Annotated[float | None, typer.Option(help="Time limit of the training.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train the model of a run again on all interactions, for use in production."""
    from rediffuse.runs.card import duration
    from rediffuse.training import refit as run_refit

    with says_how_to_resume(out):
        made = run_refit(run, dataset, out, resume=resume, max_minutes=max_minutes, progress=True)
    data, epochs = made.config["data"], made.config["training"]["epochs"]
    result = {"run": str(made.path), "refit_of": str(run), "minutes": made.minutes, "epochs": epochs}
    result |= {name: data[name] for name in ("users", "items", "interactions", "histories_end")}

    def print_summary() -> None:
        trained = ", ".join(
            f"{count} epochs" + (f" of {phase}" if len(epochs) > 1 else "") for phase, count in epochs.items()
        )
        print_rich(
            f"{made.config['model']} learned from all {data['interactions']:,} interactions in {duration(made.minutes)}"
            + (f" ({trained})" if trained else "")
            + f". It has no test figures of its own: those of {run} are an estimate. "
            + f"Next: rediffuse recommend {out} --user ID"
        )

    if rank() == 0:
        emit(result, as_json, print_summary)
