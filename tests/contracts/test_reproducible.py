"""The same seed in another process, with several threads and another order of sets: the same to the bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rediffuse import models

TRAIN_ALL = """
import sys
from pathlib import Path
import rediffuse as rd
from rediffuse import models
from tests.contracts.test_models import TINY
from rediffuse.testing import synthetic_interactions

out, precision = Path(sys.argv[1]), sys.argv[2]
data = synthetic_interactions(friends=3, knowledge=True, categories=True)
plain, described = (rd.split.leave_one_out(each) for each in (data, data.with_features("genres")))
for name in models.names():
    split = described if models.model_class(name).needs_content else plain
    known = models.model_class(name).Config.model_fields
    options = {key: value for key, value in (TINY | {"precision": precision}).items() if key in known}
    rd.train(name, split, out / name, config=options, seed=5)
    if name == "sasrec":
        for loss in ("softmax", "sampled_softmax", "in_batch", "uniform_softmax", "gbce", "sce"):
            rows = {} if loss == "softmax" else {"item_optimizer": "rowwise_adagrad"}
            own = options | rows | {"loss": loss, "negatives": 7}
            rd.train(name, split, out / f"{name}-{loss}", config=own, seed=5)
"""


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_model_is_the_same_in_two_processes_of_two_threads(tmp_path, precision):
    for order in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", TRAIN_ALL, str(tmp_path / order), precision],
            env=os.environ | {"PYTHONHASHSEED": order, "OMP_NUM_THREADS": "2"},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    folders = {folder.name for folder in (tmp_path / "1").iterdir()}
    assert folders > set(models.names())
    for name in folders:
        first, second = (tmp_path / order / name / "model.safetensors" for order in ("1", "2"))
        assert first.read_bytes() == second.read_bytes(), name
