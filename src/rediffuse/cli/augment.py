"""Commands that write what a diffusion model adds to data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rediffuse.cli.app import AsJson, app
from rediffuse.cli.output import answer, show

augment = typer.Typer(help="Write what a diffusion model adds to data, for training elsewhere.", no_args_is_help=True)
app.add_typer(augment, name="augment")


@augment.command()
def pdrec(
    run: Annotated[Path, typer.Argument(help="A run folder of pdrec.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="A .parquet file.")],
    as_json: AsJson = False,
) -> None:
    """Weights of training events and further positives, one row per person.

    Columns: user_id; items, the training history, oldest first; weights of the loss at each of them (none for the
    first, which is nobody's target); positives, unseen items to be taken as liked, best first.
    """
    import polars as pl

    from rediffuse.data.files import atomic_write_parquet
    from rediffuse.errors import ConfigError, RunError
    from rediffuse.training import read_config

    if out.suffix != ".parquet":
        raise ConfigError(f"{out} is not a .parquet file.", "Lists need Parquet: -o signals.parquet")
    config = read_config(run)
    if config["model"] != "pdrec" or not (run / "signals.parquet").exists():
        raise RunError(
            f"{run} is a run of {config['model']} and has no signals.",
            "Train one: rediffuse train pdrec DATASET -o RUN, with one of hbr, dpa and nns.",
        )
    table = pl.read_parquet(run / "signals.parquet").drop("safe_negatives")
    atomic_write_parquet(out, table)
    facts = {
        "out": str(out),
        "people": len(table),
        "events": int(table["items"].list.len().sum()),
        "positives": int(table["positives"].list.len().sum()),
    }

    def for_people() -> None:
        show(
            f"{facts['people']:,} people with {facts['events']:,} weighted events and {facts['positives']:,} "
            f"positives written to {out}."
        )

    answer(facts, as_json, for_people)
