"""The part of ``recommend`` that writes a folder, alone or as one of several processes."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

from rediffuse.cli.output import answer, print_note, show


def recommend_to_part_files(
    run: Path, users: Path, out: Path, exclude: str | None, options: dict[str, Any], as_json: bool
) -> None:
    """Write recommendations for a file of users, and say what came of it.

    Processes that a launcher started share one terminal, so only one of them speaks: the one that ended last, as it
    alone knows that all is there.
    """
    from rich.console import Console
    from rich.progress import Progress

    from rediffuse.recommender import Recommender
    from rediffuse.recommender.batch import recommend_to_folder

    rank, world_size = place()
    local_rank = os.environ.get("LOCAL_RANK")
    shown = sys.stderr.isatty() and local_rank in (None, "0")
    recommender = Recommender.load(run)
    bar = Progress(console=Console(stderr=True), disable=not shown, transient=True)
    with warnings.catch_warnings(), bar:
        warnings.showwarning = print_note  # only the process that ended last has any, whichever it is
        task = bar.add_task("Parts", total=None)
        result = recommend_to_folder(
            recommender,
            users,
            out,
            exclude=recommender.find_items(exclude.split("|")) if exclude else None,
            rank=rank,
            world_size=world_size,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
            **options,
        )
    idle = not result.written and not result.missing and not result.finished_here
    if local_rank is not None and not result.finished_here and not (idle and local_rank == "0"):
        return
    facts = {
        "out": str(out),
        **result.counts,
        "parts": result.parts,
        "written_parts": result.written,
        "skipped_parts": result.skipped,
        "missing_parts": result.missing,
        "finished": not result.missing,
        "process": rank,
        "processes": world_size,
        "seconds": round(result.seconds, 3),
    }

    def for_people() -> None:
        counts = result.counts
        there = f"{counts['rows']:,} rows for {counts['users']:,} people in {result.parts - result.missing:,} parts"
        if idle:
            show(f"{out} was finished already: {there}.")
            return
        made = f"this process made {result.written:,} and found {result.skipped:,}, in {result.seconds:,.1f} s"
        show(f"{there} at {out}; {made}.")
        if result.missing:
            show(f"{result.missing:,} parts of other processes are missing yet. Who makes the last one will say so.")

    answer(facts, as_json, for_people)


def place() -> tuple[int, int]:
    """Which process this is, from 0, and of how many, as torchrun and accelerate launch tell it.

    Raises:
        ConfigError: only one of the two is there, or they are no such numbers.
    """
    from rediffuse.errors import ConfigError

    rank, world_size = (os.environ.get(name) for name in ("RANK", "WORLD_SIZE"))
    if rank is None and world_size is None:
        return 0, 1
    if not (rank and world_size and rank.isdecimal() and world_size.isdecimal() and int(rank) < int(world_size)):
        raise ConfigError(
            f"The environment says RANK={rank or ''} and WORLD_SIZE={world_size or ''}.",
            "Set both, RANK from 0 to WORLD_SIZE - 1, or none of them.",
        )
    return int(rank), int(world_size)
