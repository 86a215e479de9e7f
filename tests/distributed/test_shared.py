"""The processes of a host hold one training view: made by the first, mapped by all, equal to a copy to the bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import rediffuse as rd
from rediffuse import distributed
from rediffuse.data import shared
from rediffuse.data.histories import Histories
from rediffuse.errors import ConfigError, StorageError
from rediffuse.testing import synthetic_interactions

HERE = Path(__file__).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
USERS, LENGTH, ITEMS = 100_000, 20, 5_000


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    """What two processes found that share the view of 2 million interactions; the folder of their work."""
    folder = tmp_path_factory.mktemp("shared")
    rng = np.random.default_rng(0)
    interactions = Histories(
        np.arange(USERS + 1) * LENGTH,
        rng.integers(0, ITEMS, USERS * LENGTH).astype(np.int32),
        np.sort(rng.integers(10**9, 10**9 + 10**7, (USERS, LENGTH)), axis=1).reshape(-1),
        rng.integers(1, 6, USERS * LENGTH).astype(np.float32),
    )
    ids = [pl.Series(name, range(count)) for name, count in (("user_id", USERS), ("item_id", ITEMS))]
    rd.Dataset(interactions, *ids, has_timestamps=True).save(folder / "data")
    (folder / "scratch").mkdir()
    paths = os.pathsep.join(filter(None, (str(HERE.parents[1]), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [*TORCHRUN, str(HERE / "share.py"), str(folder)],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "scratch")},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) | {"folder": str(folder)} for rank in (0, 1)]


@pytest.mark.slow
def test_one_process_makes_the_split(ranks):
    assert [rank["calls"] for rank in ranks] == [1, 0]
    split = rd.split.global_time(rd.load_dataset(Path(ranks[0]["folder"]) / "data"))
    assert [rank["split"] for rank in ranks] == [split.fingerprint] * 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Linux says whose memory it is")
def test_a_mapped_view_takes_no_memory_of_its_own(ranks):
    for rank in ranks:
        assert rank["copied"] > 15  # bytes per interaction, as before
        assert rank["mapped"] < 1


@pytest.mark.slow
def test_a_mapped_view_equals_a_copy(ranks):
    assert [rank["differing"] for rank in ranks] == [[], []]


@pytest.mark.slow
def test_weights_equal_those_of_copied_views(ranks):
    folder = Path(ranks[0]["folder"])
    mapped, copied = ((folder / name / "model.safetensors").read_bytes() for name in ("mapped", "copied"))
    assert mapped == copied
    configs = [json.loads((folder / name / "config.json").read_text()) for name in ("mapped", "copied")]
    assert configs[0]["data"] == configs[1]["data"]


@pytest.mark.slow
def test_nothing_is_left(ranks):
    assert not list((Path(ranks[0]["folder"]) / "scratch").glob("rediffuse-*"))


@pytest.mark.slow
def test_errors_end_both(ranks):
    assert all("error" in rank for rank in ranks)


def test_one_process_writes_nothing(monkeypatch):
    monkeypatch.setattr(shared, "_made_once", None)
    split = shared.shared_split(synthetic_interactions(), rd.split.leave_one_out)
    assert shared.shared_view(split).train.items.tolist() == split.training_view().train.items.tolist()
    assert shared.shared_json(lambda: {"a": 1}) == {"a": 1}


@pytest.fixture
def pretend_two(monkeypatch):
    """This process believes that it is the only one of two that is on its host."""
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 0)
    monkeypatch.setattr(distributed, "any_rank", lambda flag: flag)
    monkeypatch.setattr(distributed, "all_reduce_max", lambda *arrays: None)


def test_augmented_data_are_shared_whole(pretend_two):
    split = rd.split.leave_one_out(synthetic_interactions())
    split = rd.split.leave_one_out(rd.augment(split, "random", n=2))
    view, copied = shared.shared_view(split), split.training_view()
    assert view.valid.seen is not None
    assert copied.valid.seen is not None
    for name in ("items", "offsets", "times"):
        np.testing.assert_array_equal(getattr(view.valid.seen, name), getattr(copied.valid.seen, name))
    np.testing.assert_array_equal(view.train.synthetic, copied.train.synthetic)
    assert split.dataset.interactions.synthetic is not None


def test_what_the_first_process_raises_is_raised(pretend_two):
    with pytest.raises(ConfigError, match="quantile"):
        shared.shared_split(synthetic_interactions(), lambda data: rd.split.global_time(data, quantile=2))


def test_a_full_disk_is_an_error_that_names_the_folder(pretend_two, monkeypatch, tmp_path):
    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shared.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(np, "save", full)
    with pytest.raises(StorageError, match=r"rediffuse-.* cannot be written: No space"):
        shared.shared_view(rd.split.leave_one_out(synthetic_interactions()))
    assert not list(tmp_path.iterdir())
