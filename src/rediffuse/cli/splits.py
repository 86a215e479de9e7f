"""The split that a command trains on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rediffuse.data.split import Split


def read_split(name: str, dataset: Path) -> Split:
    """Split a saved dataset by the name of a split or protocol, and print what leaks on stderr.

    Raises:
        ConfigError, DataError: as `rediffuse.evaluation.protocols.split_for` and `load_dataset`.
    """
    from rediffuse.data.loading import load_dataset
    from rediffuse.evaluation.protocols import split_for

    split = split_for(name, load_dataset(dataset))
    for remark in (split.leak, split.note):
        if remark:
            print(f"Note: {remark}", file=sys.stderr)
    return split
