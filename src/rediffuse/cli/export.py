"""The command ``rediffuse export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rediffuse.cli.app import AsJson, app
from rediffuse.cli.output import emit, print_rich, table


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="A new folder, or an earlier export, which is replaced.")],
    format: Annotated[
        str,
        typer.Option(
            help="onnx; torch-export for torch.export.load; vectors for databases; run: a run folder without its users."
        ),
    ] = "onnx",
    users: Annotated[
        Path | None,
        typer.Option(help="With --format vectors: a user file as for recommend; default: all users of the run."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Export a model for other runtimes and databases, or as a run for serving without its users."""
    from rediffuse.errors import ConfigError

    if users is not None and format != "vectors":
        raise ConfigError("--users is for --format vectors.", "Leave it out.")
    result: dict[str, Any]
    if format == "vectors":
        result, last = _vectors(run, out, users)
    elif format == "run":
        from rediffuse.runs.without_users import write_without_users

        result = write_without_users(run, out) | {"format": format}
        left_out = "".join(f", {name}" for name in result["left_out"])
        last = f"Left out: {result['users']:,} users{left_out}. It recommends for the histories of requests."
    else:
        from rediffuse.exporting import export as export_run

        result = export_run(run, out, format)  # type: ignore[arg-type] (`export_run` checks the format)
        last = f"Inference code: {out / 'README.md'}"

    def show_files() -> None:
        files = table(f"{result['model']} of {run} as {format} in {out}", "file", "bytes")
        for name, size in result["files"].items():
            files.add_row(name, f"{size:,}")
        print_rich(files, last)

    emit(result, as_json, show_files)


def _vectors(run: Path, out: Path, users: Path | None) -> tuple[dict[str, Any], str]:
    from rediffuse.recommender import Recommender
    from rediffuse.recommender.vector_files import write_vectors

    found = write_vectors(Recommender.load(run), out, users)
    sizes = {path.name: path.stat().st_size for path in sorted(out.iterdir())}
    last = f"{found['items']:,} items, {found['queries']:,} users, size {found['size']}; metric: {found['metric']}."
    return {"run": str(run), "format": "vectors"} | found | {"files": sizes, "sha256": found["files"]}, last
