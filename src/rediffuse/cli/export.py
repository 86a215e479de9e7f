"""The command that makes a run answer without Rediffuse."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rediffuse.cli.app import AsJson, app
from rediffuse.cli.output import answer, show, table


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run folder of a next-item model.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="A new folder, or an earlier export, which is replaced.")],
    format: Annotated[str, typer.Option(help="onnx, or torch-export for torch.export.load.")] = "onnx",
    as_json: AsJson = False,
) -> None:
    """Write networks, item vectors and instructions, to answer without Rediffuse."""
    from rediffuse.exporting import export as run_export

    facts = run_export(run, out, format)  # type: ignore[arg-type] (what it may be is checked there)

    def for_people() -> None:
        listing = table(f"{facts['model']} of {run} as {format} in {out}", "file", "bytes")
        for name, size in facts["files"].items():
            listing.add_row(name, f"{size:,}")
        show(listing, f"How to answer with them: {out / 'README.md'}")

    answer(facts, as_json, for_people)
