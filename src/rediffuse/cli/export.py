"""The command ``rediffuse export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rediffuse.cli.app import AsJson, app
from rediffuse.cli.output import emit, print_rich, table


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run folder of a next-item model.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="A new folder, or an earlier export, which is replaced.")],
    format: Annotated[str, typer.Option(help="onnx, or torch-export for torch.export.load.")] = "onnx",
    as_json: AsJson = False,
) -> None:
    """Export a model as files that run without Rediffuse."""
    from rediffuse.exporting import export as export_run

    result = export_run(run, out, format)  # type: ignore[arg-type] (`export_run` checks the format)

    def show_files() -> None:
        files = table(f"{result['model']} of {run} as {format} in {out}", "file", "bytes")
        for name, size in result["files"].items():
            files.add_row(name, f"{size:,}")
        print_rich(files, f"Inference code: {out / 'README.md'}")

    emit(result, as_json, show_files)
