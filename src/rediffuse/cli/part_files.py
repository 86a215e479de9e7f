"""Batch inference of ``recommend``: part files for a user file, written by one or several processes."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rediffuse.cli.output import emit, print_note, print_rich

if TYPE_CHECKING:
    from rediffuse.recommender import Recommender


def recommend_to_part_files(
    run: Path,
    users: Path,
    out: Path,
    choose: Callable[[Recommender], dict[str, Any]],
    options: dict[str, Any],
    as_json: bool,
    device: str,
) -> None:
    """Write recommendations for a user file as part files, and print a summary.

    Processes of a launcher share one terminal, so only the one that finishes the folder prints.

    Args:
        run, users, out: as given to the command.
        choose: the options that depend on the run: items to exclude, and candidates.
        options: the other options of `rediffuse.recommender.batch.recommend_to_folder`.
        as_json: print one JSON object.
        device: as for `Recommender.load`.
    """
    from rich.console import Console
    from rich.progress import Progress

    from rediffuse.recommender import Recommender
    from rediffuse.recommender.batch import recommend_to_folder

    rank, world_size = rank_and_world_size()
    local_rank = os.environ.get("LOCAL_RANK")
    shown = sys.stderr.isatty() and local_rank in (None, "0")
    recommender = Recommender.load(run, device=device)
    bar = Progress(console=Console(stderr=True), disable=not shown, transient=True)
    with warnings.catch_warnings(), bar:
        warnings.showwarning = print_note  # only the process that finishes the folder warns, whatever its rank
        task = bar.add_task("Part files", total=None)
        result = recommend_to_folder(
            recommender,
            users,
            out,
            **choose(recommender),
            rank=rank,
            world_size=world_size,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
            **options,
        )
    idle = not result.written and not result.missing and not result.finished_here
    if local_rank is not None and not result.finished_here and not (idle and local_rank == "0"):
        return
    summary = {
        "out": str(out),
        **result.counts,
        "parts": result.parts,
        "written_parts": result.written,
        "skipped_parts": result.skipped,
        "missing_parts": result.missing,
        "finished": not result.missing,
        "rank": rank,
        "world_size": world_size,
        "seconds": round(result.seconds, 3),
    }

    def print_summary() -> None:
        counts, complete = result.counts, result.parts - result.missing
        contents = f"{counts['rows']:,} rows for {counts['users']:,} users in {complete:,} part files"
        if idle:
            print_rich(f"{out} was finished already: {contents}.")
            return
        work = f"this process wrote {result.written:,} and skipped {result.skipped:,}, in {result.seconds:,.1f} s"
        print_rich(f"{out} has {contents}; {work}.")
        if result.missing:
            print_rich(
                f"{result.missing:,} part files of other processes are still missing. The process that writes the "
                "last one will report it."
            )

    emit(summary, as_json, print_summary)


def rank_and_world_size() -> tuple[int, int]:
    """Rank of this process and number of processes, from the environment; (0, 1) if it has neither.

    Raises:
        ConfigError: only one of RANK and WORLD_SIZE is set, or they are not a rank and a world size.
    """
    from rediffuse.errors import ConfigError

    rank, world_size = (os.environ.get(name) for name in ("RANK", "WORLD_SIZE"))
    if rank is None and world_size is None:
        return 0, 1
    if not (rank and world_size and rank.isdecimal() and world_size.isdecimal() and int(rank) < int(world_size)):
        raise ConfigError(
            f"The environment has RANK={rank or ''} and WORLD_SIZE={world_size or ''}.",
            "Set both, with RANK from 0 to WORLD_SIZE - 1, or neither.",
        )
    return int(rank), int(world_size)
