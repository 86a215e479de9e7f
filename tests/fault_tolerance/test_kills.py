"""The benchmark that kills training at random times, with few kills."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["diffurec", "pdrec", "diffkg"])
def test_random_kills_do_not_change_the_weights(model):
    command = [sys.executable, "-m", "benchmarks.faults.kills", "--model", model, "--kills", "4", "--seed", "1"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
