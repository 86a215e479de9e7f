"""Commands that generate synthetic interactions, and that export PDRec's signals."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rediffuse.cli.app import Application, AsJson, app
from rediffuse.cli.output import emit, print_rich
from rediffuse.cli.splits import (
    Fraction,
    Quantile,
    Ratio,
    SplitName,
    SplitSeed,
    Targets,
    ValidQuantile,
    read_split,
    split_options,
)

augment = Application(help="Generate synthetic interactions, or export the signals of pdrec.", no_args_is_help=True)
app.add_typer(augment, name="augment")


@augment.command()
def pdrec(
    run: Annotated[Path, typer.Argument(help="A run folder of pdrec.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="A .parquet file.")],
    as_json: AsJson = False,
) -> None:
    """Export pdrec's weights of training interactions and additional positives, one row per user.

    Columns: user_id; items, the training history, oldest first; weights, of the loss at each item (null for the first,
    which is not a target); positives, items to be taken as liked, best first.
    """
    from rediffuse.addresses import refuse_address
    from rediffuse.errors import ConfigError, RunError
    from rediffuse.files import atomic_write_parquet
    from rediffuse.runs.run_folder import read_config, read_manifest, run_path
    from rediffuse.table_files import read_parquet

    refuse_address("--out", out)
    if out.suffix != ".parquet":
        raise ConfigError(f"{out} is not a .parquet file.", "Lists need Parquet: -o signals.parquet")
    run = run_path("RUN", run)
    config = read_config(run)
    if config["model"] != "pdrec" or "signals.parquet" not in read_manifest(run)["files"]:
        raise RunError(
            f"{run} is a run of {config['model']} and has no signals.",
            "Train one: rediffuse train pdrec DATASET -o RUN, with one of hbr, dpa and nns.",
        )
    table = read_parquet(run / "signals.parquet").drop("safe_negatives")
    atomic_write_parquet(out, table)
    report = {
        "out": str(out),
        "users": len(table),
        "interactions": int(table["items"].list.len().sum()),
        "positives": int(table["positives"].list.len().sum()),
    }

    def as_text() -> None:
        print_rich(
            f"Wrote {report['users']:,} users with {report['interactions']:,} weighted interactions and "
            f"{report['positives']:,} positives to {out}."
        )

    emit(report, as_json, as_text)


Data = Annotated[Path, typer.Argument(help="Folder made by prepare or data.")]
Out = Annotated[Path, typer.Option("-o", "--out", help="Folder for the augmented dataset.")]
Number = Annotated[int, typer.Option("--n", help="Synthetic interactions before each history.")]
Shorter = Annotated[int | None, typer.Option(help="Augment only histories with fewer training interactions.")]
Seed = Annotated[int, typer.Option(help="Seed of the training and of the generation.")]
RunFolder = Annotated[
    Path | None,
    typer.Option(help="Run folder of the generator, which is trained there unless it is finished. Default: OUT.run"),
]
Minutes = Annotated[float | None, typer.Option(help="Stop the training after this many minutes.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="option=value of the training; may be repeated.")]


@augment.command()
def diffuasr(
    dataset: Data,
    out: Out,
    guidance: Annotated[str | None, typer.Option(help="none, cf (classifier-free) or cg (classifier-guided).")] = None,
    n: Number = 10,
    only_shorter_than: Shorter = None,
    split: SplitName = "default",
    quantile: Quantile = None,
    valid_quantile: ValidQuantile = None,
    ratio: Ratio = None,
    targets: Targets = None,
    fraction: Fraction = None,
    split_seed: SplitSeed = None,
    run: RunFolder = None,
    preset: Annotated[str | None, typer.Option(help="Preset of diffuasr.")] = None,
    settings: Settings = None,
    seed: Seed = 0,
    max_minutes: Minutes = None,
    as_json: AsJson = False,
) -> None:
    """Generate items that could have come before each history, with a diffusion model."""
    from rediffuse.config import parse_settings

    options = parse_settings(settings or []) | ({"guidance": guidance} if guidance else {})
    _generate(
        "diffuasr",
        dataset,
        out,
        (split, quantile, valid_quantile, ratio, targets, fraction, split_seed),
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
    quantile: Quantile = None,
    valid_quantile: ValidQuantile = None,
    ratio: Ratio = None,
    targets: Targets = None,
    fraction: Fraction = None,
    split_seed: SplitSeed = None,
    run: RunFolder = None,
    settings: Settings = None,
    seed: Seed = 0,
    max_minutes: Minutes = None,
    as_json: AsJson = False,
) -> None:
    """Extend each history backwards, with a SASRec that reads from right to left."""
    from rediffuse.config import parse_settings

    _generate(
        "asrep",
        dataset,
        out,
        (split, quantile, valid_quantile, ratio, targets, fraction, split_seed),
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
    quantile: Quantile = None,
    valid_quantile: ValidQuantile = None,
    ratio: Ratio = None,
    targets: Targets = None,
    fraction: Fraction = None,
    split_seed: SplitSeed = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Put random items of the catalogue before each history: a control."""
    chosen = (split, quantile, valid_quantile, ratio, targets, fraction, split_seed)
    _generate("random", dataset, out, chosen, as_json, n=n, only_shorter_than=only_shorter_than, seed=seed)


@augment.command(name="random-seq")
def random_seq(
    dataset: Data,
    out: Out,
    n: Number = 10,
    only_shorter_than: Shorter = None,
    split: SplitName = "default",
    quantile: Quantile = None,
    valid_quantile: ValidQuantile = None,
    ratio: Ratio = None,
    targets: Targets = None,
    fraction: Fraction = None,
    split_seed: SplitSeed = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Put random items of the user's own history before it: a control."""
    chosen = (split, quantile, valid_quantile, ratio, targets, fraction, split_seed)
    _generate("random-seq", dataset, out, chosen, as_json, n=n, only_shorter_than=only_shorter_than, seed=seed)


def _generate(
    method: str,
    dataset: Path,
    out: Path,
    split: tuple[str, float | None, float | None, str | None, str | None, float | None, int | None],
    as_json: bool,
    **options: Any,
) -> None:
    from rediffuse.addresses import address_of
    from rediffuse.augmentation import augment as run_augmentation
    from rediffuse.data.store import refuse_foreign
    from rediffuse.errors import ConfigError

    refuse_foreign(out)  # before the work
    if "run" in options and address_of(options["run"]) is not None:
        raise ConfigError("The generator is trained in a local folder.", "Name one: --run runs/generator")
    chosen = read_split(split[0], dataset, *split[1:])
    augmented = run_augmentation(chosen, method, progress=sys.stderr.isatty(), **options)
    augmented.save(out)
    report = {"out": str(out), **augmented.report["augmentation"]}

    again = split_options(chosen.name, *split[1:])

    def as_text() -> None:
        print_rich(
            f"Generated {report['interactions']:,} interactions for {report['users']:,} users. Saved to {out}. "
            f"Next: rediffuse train sasrec {out} -o RUN {shlex.join(again)}"
        )

    emit(report, as_json, as_text)
