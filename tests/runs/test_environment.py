"""What a run says of the memory it took."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# In a process of its own: one that has freed memory before may serve the block from what it kept.
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


def test_peak_memory_is_of_the_block_and_not_of_the_past():
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    before, during, after = json.loads(done.stdout)
    if before is None:
        pytest.skip("this system does not tell")
    assert during >= before + 60
    assert after <= before + 10
