"""The command that blends runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rediffuse.cli.app import AsJson, app
from rediffuse.cli.output import emit, print_rich, table


@app.command()
def blend(
    runs: Annotated[list[Path], typer.Argument(help="Run folders of one split, at least two.")],
    data: Annotated[Path, typer.Option("--data", help="Folder of the dataset they were trained on.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The new run folder.")],
    metric: Annotated[
        str | None, typer.Option(help="Validation metric that the weights are chosen by; default: ndcg@10/unseen.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Blend finished runs into one, with weights chosen on the validation subset."""
    from rediffuse.training.blend import blend as blend_runs

    run = blend_runs(runs, data, out, metric=metric)
    weights = run.config["resolved"]["settings"]["weights"]
    result = {"run": str(run.path), "weights": {str(path): w for path, w in zip(runs, weights, strict=True)}}
    result |= {"validation": run.validation, "minutes": run.minutes}

    def print_summary() -> None:
        listing = table(f"Blend {out}", "run", "weight")
        for path, weight in result["weights"].items():
            listing.add_row(path, f"{weight:g}")
        print_rich(listing)
        print_rich(f"{run.minutes:.1f} minutes. Next: rediffuse evaluate {out} {data}")

    emit(result, as_json, print_summary)
