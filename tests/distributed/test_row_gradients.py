"""Sparse gradients of item tables: two processes exchange rows and have the weights of one, and send less."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests.distributed.test_distributed import TORCHRUN, log, output
from tests.distributed.train_rows import CASES, ITEMS, SASREC, WIDTH

TRAIN_ROWS = str(Path(__file__).parent / "train_rows.py")

# The losses of two processes and of one are compared in test_distributed.py too, for one case.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    output(sys.executable, TRAIN_ROWS, str(folder))
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    output(*TORCHRUN, TRAIN_ROWS, str(folder))
    return folder


@pytest.mark.parametrize("accumulate", ["1", "3"])
def test_each_step_has_the_weights_of_one_process(two, accumulate):
    found = json.loads((two / "steps.json").read_text())[accumulate]
    assert found["worst"] < 1e-6
    assert found["rank"]  # the same to the bit in both


def test_only_rows_that_were_read_are_sent_and_ddp_sends_no_table(two):
    sent = {n: json.loads((two / "steps.json").read_text())[n]["sent"] for n in ("1", "3")}
    dense = 4 * (WIDTH * 3 + 3)
    row = 4 * WIDTH + 4
    for accumulate, of_step in sent.items():
        assert of_step["dense"] == dense
        assert 0 < of_step["rows"] <= int(accumulate) * (21 + 2) * row + 2 * 8
        assert of_step["rows"] < 0.2 * 2 * ITEMS * WIDTH * 4  # of both tables


@pytest.mark.parametrize("case", CASES)
def test_training_has_the_losses_and_weights_of_one_process(one, two, case):
    for first, second in zip(log(one / case), log(two / case), strict=True):
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-6)
    alone, together = (load_file(folder / case / "model.safetensors") for folder in (one, two))
    for name, tensor in alone.items():
        difference = (together[name].double() - tensor.double()).abs()
        if name.endswith("qkv.bias"):  # attention does not depend on the bias of the keys, whose gradient is rounding
            keys = SASREC["embedding_size"]
            difference[keys : 2 * keys] = 0
        assert float(difference.max()) <= 1e-6, name
