"""The command that trains."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rediffuse.cli.app import MODEL_HELP, AsJson, TrainingDevice, app
from rediffuse.cli.engines import Engine, Workers, uses_ray
from rediffuse.cli.estimates import print_estimates
from rediffuse.cli.interrupts import says_how_to_resume
from rediffuse.cli.output import emit, print_rich, rank, table
from rediffuse.cli.overwriting import Overwrite, overwriting
from rediffuse.cli.splits import Fraction, Quantile, Ratio, SplitName, SplitSeed, Targets, ValidQuantile, read_split

if TYPE_CHECKING:
    from rediffuse.runs.run_folder import Run


@app.command()
def train(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    dataset: Annotated[Path, typer.Argument(help="Folder of a dataset, from prepare, data or augment.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The run folder.")],
    preset: Annotated[
        str | None, typer.Option(help="Named options: default, paper, released; or paper:toys and the like.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of options.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="option=value; may be repeated.")] = None,
    split_name: SplitName = "default",
    quantile: Quantile = None,
    valid_quantile: ValidQuantile = None,
    ratio: Ratio = None,
    targets: Targets = None,
    fraction: Fraction = None,
    split_seed: SplitSeed = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, order of batches and noise.")] = 0,
    max_minutes: Annotated[float | None, typer.Option(help="Time limit of the training.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint.")] = False,
    overwrite: Overwrite = False,
    track: Annotated[str | None, typer.Option(help="Tracker: tensorboard, wandb or mlflow.")] = None,
    track_artifacts: Annotated[
        bool, typer.Option("--track-artifacts", help="Give the files of the run to the tracker.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say about how long it would take and how much memory.")
    ] = False,
    phases: Annotated[
        list[str] | None,
        typer.Option(
            "--phase", help="name=RUN: take a phase from a run instead of training it; fit=RUN: the whole network."
        ),
    ] = None,
    device: TrainingDevice = "auto",
    engine: Engine = None,
    workers: Workers = None,
    shard_items: Annotated[
        bool,
        typer.Option("--shard-items", help="Divide the item table among the processes of a launch (extra cluster)."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a model and write its run folder."""
    from rediffuse import distributed
    from rediffuse.config import parse_settings, read_settings
    from rediffuse.errors import ConfigError
    from rediffuse.runs.card import duration
    from rediffuse.training import estimate
    from rediffuse.training import train as run_training

    if uses_ray(engine, workers):
        from rediffuse.engines import ray

        run_training = partial(ray.train, workers=workers or 2)
    if shard_items:
        from rediffuse.engines.sharded import train as run_training

        if uses_ray(engine, workers):
            raise ConfigError("--shard-items does not go with --engine ray.", "Start the processes with torchrun.")
    options = (read_settings(config) if config else {}) | parse_settings(settings or [])
    if distributed.launched():
        distributed.init()  # before the split, which one process makes for all of its host
    split = read_split(split_name, dataset, quantile, valid_quantile, ratio, targets, fraction, split_seed)
    taken: dict[str, str | Path | Run] = {name: str(path) for name, path in parse_settings(phases or []).items()}
    chosen = {"preset": preset, "config": options, "seed": seed, "device": device}
    if dry_run:
        if shard_items:
            raise ConfigError("--dry-run measures one process, whose item table is whole.", "Leave out --shard-items.")
        print_estimates([estimate(model, split, max_minutes=max_minutes, phases_from=taken, **chosen)], as_json)
        return
    # An interrupted replacement is discarded, so there is nothing to resume.
    resumable = contextlib.nullcontext() if overwrite else says_how_to_resume(out)
    with resumable, overwriting(out, overwrite, resume) as folder:
        run = run_training(
            model,
            split,
            folder,
            **chosen,
            resume=resume,
            max_minutes=max_minutes,
            tracker=track,
            track_artifacts=track_artifacts,
            progress=True,
            phases_from=taken,
        )
    run = replace(run, path=out)
    result = {"run": str(run.path), "minutes": run.minutes, "split": split.name, "validation": run.validation}
    result |= {name: run.config["training"][name] for name in ("best_epoch", "stopped")}
    result |= {"resolved": run.config["resolved"], "noise": run.config["noise"]}

    def print_summary() -> None:
        if run.validation:
            listing = table(f"Validation of {out}", "metric", "seen items kept", "seen items filtered")
            for name in (n for n in run.validation if not n.endswith("/unseen")):
                listing.add_row(name, f"{run.validation[name]:.4f}", f"{run.validation[name + '/unseen']:.4f}")
            print_rich(listing)
        following = f"recommend {out} --user ID" if split.name == "none" else f"evaluate {out} {dataset}"
        # 0: the model is not trained in epochs, or was never validated.
        best = f", best epoch {result['best_epoch']}" if result["best_epoch"] else ""
        if settings := run.config["resolved"].get("settings"):
            print_rich("Chosen on validation data: " + ", ".join(f"{k} = {v}" for k, v in settings.items()) + ".")
        for levels in run.config["noise"]:
            ratios = " / ".join(f"{ratio:.2g}" for ratio in levels["snr"])
            print_rich(
                f"Noised: {levels['what']}, root mean square {levels['rms']:.2g}; signal-to-noise ratio {ratios} "
                "at the first, middle and last timestep."
            )
        if run.config["training"]["refitted"]:
            print_rich("Then fitted again, with the validation interactions.")
        print_rich(f"{duration(run.minutes)}{best}. Next: rediffuse {following}")

    if rank() == 0:
        emit(result, as_json, print_summary)
