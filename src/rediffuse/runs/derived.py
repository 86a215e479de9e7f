"""A run that is made of another without training: its catalogue or its histories have grown."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from rediffuse.files import atomic_write_bytes
from rediffuse.runs.card import model_card
from rediffuse.runs.identity import open_run_folder
from rediffuse.runs.item_features import copied_encoder
from rediffuse.runs.run_folder import LOG, RunContents, artifacts_of, write_run


def write_derived(folder: Path, old: RunContents, contents: RunContents) -> None:
    """Write a run with the training log, artifacts and encoder of ``old``, and neither its test results nor its index.

    Args:
        folder: the new run folder.
        old: the run as it was read.
        contents: what the new run holds.

    Raises:
        RunError: ``folder`` is not empty.
        StorageError: ``folder`` cannot be written.
    """
    made_in = json.loads((old.path / "environment.json").read_text(encoding="utf-8"))
    with contextlib.ExitStack() as stack:
        open_run_folder(folder, contents.config, resume=False, stack=stack)
        if LOG in old.digests:
            atomic_write_bytes(folder / LOG, (old.path / LOG).read_bytes())
        write_run(
            folder,
            contents.config,
            made_in,
            contents.model,
            contents.items,
            contents.user_ids,
            contents.histories,
            model_card(type(contents.model), contents.config, made_in),
            artifacts_of(old),
            held_out=contents.held_out,
            item_table=contents.item_table,
            others=copied_encoder(old),
        )
