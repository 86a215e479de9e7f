"""Workers of one study in processes of their own, for the tests of tuning."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

# Seconds after which a worker on a database counts as killed. A loaded machine must not seem dead.
GRACE = 6.0


def work(model: str, data: Any, out: Path, together: int = 1, **options: Any) -> None:
    """Tune as `rediffuse.tune` does, and note in the folder of each trial which process ran it.

    No trial is trained before ``together`` processes have one.
    """
    import rediffuse as rd
    from rediffuse.tuning import search, workers

    workers.BEAT, workers.GRACE = 0.3, GRACE
    run_trial = search.Search.run_trial

    def noted(self: search.Search, trial: Any, max_minutes: float) -> None:
        folder = workers.trial_folder(out, trial.number)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "processes").open("a") as file:
            file.write(f"{os.getpid()}\n")
        while len({path.read_text() for path in out.glob("trials/*/processes")} - {""}) < together:
            time.sleep(0.05)
        run_trial(self, trial, max_minutes)

    search.Search.run_trial = noted
    rd.tune(model, data, out, **options)
