"""The peak of memory use."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import rediffuse as rd
from rediffuse.testing import synthetic_interactions

# In a process of its own: one that has freed memory before may reuse it for the block.
PROBE = """
import json
import numpy as np
from rediffuse.memory import PeakMemory
memory = PeakMemory()
before = memory.mib()
block = np.ones(64 * 2**20, dtype=np.uint8)
during = memory.mib()
del block
print(json.dumps([before, during, PeakMemory().mib()]))
"""


def test_peak_memory_starts_when_the_object_is_created():
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    before, during, after = json.loads(done.stdout)
    if before is None:
        pytest.skip("This system does not report the peak.")
    assert during >= before + 60
    assert after <= before + 10


def test_a_run_records_its_peak_memory(tmp_path):
    run = rd.train("popularity", rd.split.leave_one_out(synthetic_interactions()), tmp_path / "run")
    peak = json.loads((run.path / "config.json").read_text())["training"]["peak_memory_mib"]
    assert peak is None or 50 < peak < 100_000
