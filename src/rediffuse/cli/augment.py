"""Commands that write what a diffusion model adds to data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

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

    from rediffuse.errors import ConfigError, RunError
    from rediffuse.files import atomic_write_parquet
    from rediffuse.runs.run_folder import read_config

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
        "users": len(table),
        "interactions": int(table["items"].list.len().sum()),
        "positives": int(table["positives"].list.len().sum()),
    }

    def for_people() -> None:
        show(
            f"{facts['users']:,} people with {facts['interactions']:,} weighted events and {facts['positives']:,} "
            f"positives written to {out}."
        )

    answer(facts, as_json, for_people)


Data = Annotated[Path, typer.Argument(help="Folder made by prepare or data.")]
Out = Annotated[Path, typer.Option("-o", "--out", help="Folder for the longer dataset.")]
Number = Annotated[int, typer.Option("--n", help="Items written before each history.")]
Shorter = Annotated[int | None, typer.Option(help="Only before histories with fewer training events.")]
SplitName = Annotated[str, typer.Option("--split", help="Whose training subset is used; see: rediffuse train --help.")]
Seed = Annotated[int, typer.Option(help="Of the training and of what is written.")]
RunFolder = Annotated[
    Path | None, typer.Option(help="Of the generator: trained there, or taken from there. Default: OUT.run")
]
Minutes = Annotated[float | None, typer.Option(help="Stop after this much training.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="option=value of the training; may be repeated.")]


@augment.command()
def diffuasr(
    dataset: Data,
    out: Out,
    guidance: Annotated[str | None, typer.Option(help="none, cf (classifier-free) or cg (classifier-guided).")] = None,
    n: Number = 10,
    only_shorter_than: Shorter = None,
    split: SplitName = "default",
    run: RunFolder = None,
    preset: Annotated[str | None, typer.Option(help="Named options of diffuasr.")] = None,
    settings: Settings = None,
    seed: Seed = 0,
    max_minutes: Minutes = None,
    as_json: AsJson = False,
) -> None:
    """Items that a diffusion model finds could have come before each history."""
    from rediffuse.config import parse_settings

    options = parse_settings(settings or []) | ({"guidance": guidance} if guidance else {})
    _write(
        "diffuasr",
        dataset,
        out,
        split,
        as_json,
        n=n,
        only_shorter_than=only_shorter_than,
        run=run or out.with_name(out.name + ".run"),
        preset=preset,
        config=options,
        seed=seed,
        max_minutes=max_minutes,
    )


@augment.command()
def asrep(
    dataset: Data,
    out: Out,
    n: Number = 10,
    only_shorter_than: Shorter = None,
    split: SplitName = "default",
    run: RunFolder = None,
    settings: Settings = None,
    seed: Seed = 0,
    max_minutes: Minutes = None,
    as_json: AsJson = False,
) -> None:
    """Items that a SASRec, which reads from right to left, puts before each history."""
    from rediffuse.config import parse_settings

    _write(
        "asrep",
        dataset,
        out,
        split,
        as_json,
        n=n,
        only_shorter_than=only_shorter_than,
        run=run or out.with_name(out.name + ".run"),
        config=parse_settings(settings or []),
        seed=seed,
        max_minutes=max_minutes,
    )


@augment.command(name="random")
def random_items(
    dataset: Data,
    out: Out,
    n: Number = 10,
    only_shorter_than: Shorter = None,
    split: SplitName = "default",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Any items before each history: a control."""
    _write("random", dataset, out, split, as_json, n=n, only_shorter_than=only_shorter_than, seed=seed)


@augment.command(name="random-seq")
def random_seq(
    dataset: Data,
    out: Out,
    n: Number = 10,
    only_shorter_than: Shorter = None,
    split: SplitName = "default",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Items of the person's own history before it: a control."""
    _write("random-seq", dataset, out, split, as_json, n=n, only_shorter_than=only_shorter_than, seed=seed)


def _write(method: str, dataset: Path, out: Path, split: str, as_json: bool, **options: Any) -> None:
    from rediffuse.augmentation import augment as run_augmentation
    from rediffuse.cli.splits import read_split
    from rediffuse.data.store import refuse_foreign

    refuse_foreign(out)  # before the work
    parts = read_split(split, dataset)
    made = run_augmentation(parts, method, progress=sys.stderr.isatty(), **options)
    made.save(out)
    told = made.report["augmentation"]
    facts = {"out": str(out), **told}

    def for_people() -> None:
        show(
            f"{told['interactions']:,} events written before those of {told['users']:,} people; saved in {out}. "
            f"Next: rediffuse train sasrec {out} -o RUN --split {parts.name}"
        )

    answer(facts, as_json, for_people)
