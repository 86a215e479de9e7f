"""Seeds derived from a position in training, instead of a generator that keeps state.

The randomness of step s of epoch e is a function of (seed, phase, e, s, rank). So a checkpoint needs no generator
state, and a resumed run draws exactly the numbers that it would have drawn without the interruption.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch


def derive(seed: int, *path: int | str) -> int:
    """A 63-bit seed for the position ``path`` (numbers or names) of a run seeded with ``seed``."""
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in path]
    return int(np.random.SeedSequence([seed % 2**64, *words]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def seed_torch(seed: int, *path: int | str) -> None:
    """Seed torch's global generators for the position ``path``."""
    torch.manual_seed(derive(seed, *path))
