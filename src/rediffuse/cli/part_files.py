"""Batch inference of ``recommend``: part files for a user file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rediffuse.cli.output import emit, print_rich
from rediffuse.errors import ConfigError

if TYPE_CHECKING:
    from rediffuse.recommender import Recommender


def recommend_to_part_files(
    run: Path,
    users: Path,
    out: Path,
    choose: Callable[[Recommender], dict[str, Any]],
    options: dict[str, Any],
    with_ray: bool,
    workers: int | None,
    as_json: bool,
    device: str,
) -> None:
    """Write recommendations for a user file as part files, and print a summary.

    Args:
        run, users, out: as given to the command.
        choose: the options that depend on the run: items to exclude, and candidates.
        options: the other options of `rediffuse.recommender.batch.recommend_to_folder`.
        with_ray, workers: whether actors of Ray write them, and how many.
        as_json: print one JSON object.
        device: as for `Recommender.load`.
    """
    from rich.console import Console
    from rich.progress import Progress

    from rediffuse.recommender import Recommender
    from rediffuse.recommender.batch import recommend_to_folder

    recommender = Recommender.load(run, device=device)
    options |= choose(recommender)
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task("Part files", total=None)
        options["on_progress"] = lambda done, total: bar.update(task, completed=done, total=total)
        if with_ray:
            if device != "cpu":
                raise ConfigError("Actors of --engine ray answer on CPUs.", "Leave out --device, or the engine.")
            from rediffuse.engines import ray

            result = ray.recommend(run, users, out, workers=workers, recommender=recommender, **options)
        else:
            result = recommend_to_folder(recommender, users, out, **options)
    summary = {
        "out": str(out),
        **result.counts,
        "parts": result.parts,
        "written_parts": result.written,
        "skipped_parts": result.skipped,
        "missing_parts": result.missing,
        "finished": not result.missing,
        "seconds": round(result.seconds, 3),
    }

    def print_summary() -> None:
        counts, complete = result.counts, result.parts - result.missing
        contents = f"{counts['rows']:,} rows for {counts['users']:,} users in {complete:,} part files"
        if not result.written and not result.missing and not result.finished_here:
            print_rich(f"{out} was finished already: {contents}.")
            return
        work = f"{result.written:,} written and {result.skipped:,} skipped, in {result.seconds:,.1f} s"
        print_rich(f"{out} has {contents}; {work}.")
        if result.missing:
            print_rich(f"{result.missing:,} part files were damaged again after they were written: check the disk.")

    emit(summary, as_json, print_summary)
