"""``--overwrite``: a finished run folder is replaced once the new run is complete."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace the run in the folder once the new one is complete; if that fails, the old one stays.",
    ),
]


@contextmanager
def overwriting(out: Path, overwrite: bool, resume: bool) -> Iterator[Path]:
    """Yield the folder to write a run to: ``out``, or with ``overwrite`` a new one that replaces the run in it.

    Raises:
        ConfigError: both options were given.
        RunError: ``out`` is not a run of ours, holds files that are no part of it, or is in use.
    """
    from rediffuse import distributed
    from rediffuse.addresses import address_of
    from rediffuse.errors import ConfigError
    from rediffuse.files import atomic_folder
    from rediffuse.runs.lock import folder_lock, is_unused

    if overwrite and address_of(out) is not None:
        raise ConfigError(f"--overwrite replaces local runs, and --out is {out}.", "Remove that run first.")
    if not overwrite or is_unused(out):
        yield out
        return
    if resume:
        raise ConfigError(
            "--overwrite and --resume were both given.", "Resume continues what is there; overwrite replaces it."
        )
    if distributed.launched():
        raise ConfigError("--overwrite works in one process, and a launcher started several.", "Remove the run first.")
    _refuse_foreign(out)
    with folder_lock(out, "replacing"), atomic_folder(out) as new:
        yield new


def _refuse_foreign(out: Path) -> None:
    from rediffuse.errors import RunError
    from rediffuse.files import is_leftover
    from rediffuse.runs.identity import identity_path
    from rediffuse.runs.lock import HOLDER, LOCK
    from rediffuse.runs.run_folder import LOG, MANIFEST, read_manifest

    remedy = "Choose another folder, or remove it yourself."
    if not out.is_dir() or not (identity_path(out).exists() or (out / MANIFEST).exists()):
        raise RunError(f"{out} is not a run folder; it is left alone.", remedy)
    ours = {LOCK, HOLDER, LOG, MANIFEST, "checkpoints", "README.md"}
    if (out / MANIFEST).exists():
        ours |= {Path(name).parts[0] for name in read_manifest(out)["files"]}
    # Evaluations, also of earlier weights, which the manifest does not list.
    evaluations = ("test.json", "test-", "per_user_test", "truth_test", "lists_test")
    paths = [path for path in out.iterdir() if not path.name.startswith(evaluations) and not is_leftover(path)]
    if others := sorted({path.name for path in paths} - ours):
        raise RunError(f"{out} holds files that are no part of the run: {', '.join(others)}.", "Move them elsewhere.")
