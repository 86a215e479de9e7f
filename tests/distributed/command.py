"""The command line, with blocks so small that each of two processes scores several; says how many it scored."""

from __future__ import annotations

import sys
from typing import Any

from rediffuse import cli
from rediffuse.evaluation import rank
from rediffuse.models.base import Model

whole, scored = Model.score, 0


def score(*args: Any, **options: Any) -> Any:
    global scored
    scored += 1
    return whole(*args, **options)


if __name__ == "__main__":
    Model.score = score  # pyright: ignore
    rank._BLOCK_SCORES = 0
    try:
        cli.main()
    finally:
        sys.stderr.write(f"scored {scored} blocks\n")
