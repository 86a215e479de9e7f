"""The command line with small blocks, so that each of two processes scores several; prints how many it scored."""

from __future__ import annotations

import sys
from typing import Any

from rediffuse import cli
from rediffuse.evaluation import rank
from rediffuse.models.base import Model

original, scored = Model.score, 0


def score(*args: Any, **options: Any) -> Any:
    global scored
    scored += 1
    return original(*args, **options)


if __name__ == "__main__":
    Model.score = score  # pyright: ignore
    rank._BLOCK_SCORES = 0
    try:
        cli.main()
    finally:
        sys.stderr.write(f"scored {scored} blocks\n")
