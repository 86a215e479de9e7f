"""The encoder of item features in a run folder: how a later table of items becomes content."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from safetensors.numpy import save

from rediffuse.features import FeatureEncoder
from rediffuse.runs import checks
from rediffuse.runs.run_folder import RunContents
from rediffuse.runs.tensors import load_tensors

SETTINGS, ARRAYS = "item_features.json", "item_features.safetensors"


def encoder_files(encoder: FeatureEncoder) -> dict[str, bytes]:
    """The content of the files that `read_encoder` reads, by name."""
    arrays = {name: np.ascontiguousarray(array) for name, array in encoder.arrays().items()}
    return {SETTINGS: json.dumps(encoder.settings(), indent=2).encode(), ARRAYS: save(arrays)}


def read_encoder(run: RunContents) -> FeatureEncoder | None:
    """The encoder of a run; None for a run without item features.

    Raises:
        RunError: its files are damaged.
    """
    if SETTINGS not in run.digests:
        return None
    with checks.consistent(run.path / ARRAYS):
        arrays = {name: tensor.numpy() for name, tensor in load_tensors(run.path / ARRAYS)[0].items()}
    with checks.consistent(run.path / SETTINGS):
        settings: dict[str, Any] = json.loads((run.path / SETTINGS).read_text(encoding="utf-8"))
        return FeatureEncoder.load(settings, arrays)


def copied_encoder(run: RunContents) -> dict[str, bytes]:
    """The files of the encoder of a run, for a run that is made of it; none for a run without item features."""
    return {name: (run.path / name).read_bytes() for name in (SETTINGS, ARRAYS) if name in run.digests}
