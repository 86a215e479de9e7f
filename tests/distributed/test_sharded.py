"""A sharded item table trains what a whole one does, and its run is read by one process."""

from __future__ import annotations

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tests.distributed.test_distributed import HERE, TORCHRUN, log, output, run, weights
from tests.distributed.train_sharded import FITS, SHARDED, UNLIKE_ONE_PROCESS
from typer.testing import CliRunner

import rediffuse as rd
from benchmarks.measure.sharded import of_processes
from rediffuse import distributed
from rediffuse.cli import app
from rediffuse.engines import sharded
from rediffuse.errors import ConfigError, MissingExtraError, RunError
from rediffuse.testing import synthetic_interactions

# CI has no TorchRec: its packages are made for one version of torch.
missing = pytest.mark.skipif(
    find_spec("torchrec") is None or find_spec("fbgemm_gpu") is None, reason="needs the extra cluster (TorchRec)"
)


def needs_torchrec(test):
    return pytest.mark.slow(missing(test))


SCRIPT = str(HERE / "train_sharded.py")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    """The folders of the runs of one process, and of those of two with a sharded table."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    output(sys.executable, SCRIPT, str(one))
    output(*TORCHRUN, SCRIPT, str(two))
    return one, two


every_fit = pytest.mark.parametrize("name", [name for name in FITS if name not in UNLIKE_ONE_PROCESS])


@needs_torchrec
@every_fit
def test_the_losses_and_metrics_are_those_of_one_process(trained, name):
    of_one, of_two = (log(folder / name) for folder in trained)
    assert len(of_one) == len(of_two) == SHARDED["epochs"]
    np.testing.assert_allclose([x["loss"] for x in of_two], [x["loss"] for x in of_one], rtol=1e-5)
    for one, two in zip(of_one, of_two, strict=True):
        assert one["validation"] == pytest.approx(two["validation"], abs=1e-9)


@needs_torchrec
@every_fit
def test_saved_by_two_processes_and_loaded_by_one(trained, name):
    of_one, of_two = (load_file(folder / name / "model.safetensors") for folder in trained)
    assert {key: value.shape for key, value in of_one.items()} == {key: value.shape for key, value in of_two.items()}
    table = "item_embedding.weight"
    # The padding item, which no history sees, decays in other steps.
    np.testing.assert_allclose(of_two[table][:-1], of_one[table][:-1], atol=1e-5)
    users = synthetic_interactions().user_ids.to_list()
    lists = [rd.Recommender.load(folder / name).recommend(users, k=10) for folder in trained]
    assert lists[0]["item_id"].to_list() == lists[1]["item_id"].to_list()


@needs_torchrec
@pytest.mark.parametrize(("rows", "size"), [(41, 16), (7, 20), (33, 4), (3, 4)])
def test_pieces_of_a_table_are_drawn_as_the_whole(monkeypatch, rows, size):
    from rediffuse.engines import item_shards

    monkeypatch.setattr(item_shards, "_DRAWN", 32)
    torch.manual_seed(5)
    whole, following = torch.empty(rows, size).normal_(0.0, 0.02), torch.rand(3)
    half = -(-rows // 2)
    for held in (range(half), range(half, rows)):
        part = SimpleNamespace(
            rows=rows, size=size, held=held, shard=torch.zeros(len(held), size), device=torch.device("cpu")
        )
        torch.manual_seed(5)
        item_shards.ShardedItemTable.initialise(part, 0.02)  # pyright: ignore
        assert torch.equal(part.shard, whole[held.start : held.stop])
        assert torch.equal(torch.rand(3), following)


@needs_torchrec
def test_a_diffusion_model_trains_and_says_how_it_was_noised(trained):
    for folder in trained:
        config = json.loads((folder / "diffusion" / "config.json").read_text())
        assert config["noise"][0]["rms"] == pytest.approx(1.0, abs=1e-3)
        assert config["training"]["parameters"] > 0
    assert config["item_table"] == "sharded"


@needs_torchrec
def test_in_batch_negatives_train(trained):
    losses = [line["loss"] for line in log(trained[1] / "in_batch")]
    assert losses == sorted(losses, reverse=True)
    assert rd.Recommender.load(trained[1] / "in_batch").recommend(histories=[["i1"]], k=3).height == 3


@needs_torchrec
def test_ranks_and_lists_over_shards_are_those_of_one_process(trained):
    assert [json.loads((trained[1] / f"ranks{rank}.json").read_text()) for rank in (0, 1)] == [[], []]


@needs_torchrec
def test_a_killed_run_resumes_to_the_weights_of_an_undisturbed_one(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    output(*TORCHRUN, SCRIPT, str(whole), "--one-run")
    done = run(*TORCHRUN, SCRIPT, str(broken), "--one-run", "--kill", "1")
    assert "Another process of this job has ended." in done.stderr
    assert [line["epoch"] for line in log(broken)] == [1]
    damaged = tmp_path / "damaged"
    shutil.copytree(broken, damaged)
    part = next(damaged.glob("checkpoints/table-*/part-00001.safetensors"))
    part.write_bytes(part.read_bytes()[:-1] + b"\x01")
    refused = run(*TORCHRUN, SCRIPT, str(damaged), "--one-run", "--resume")
    assert "is missing or damaged" in refused.stderr
    output(*TORCHRUN, SCRIPT, str(broken), "--one-run", "--resume")
    assert weights(broken) == weights(whole)
    assert len(list(broken.glob("checkpoints/*table-*"))) == 2  # of the last checkpoint, and the best
    # Without a sharded table the run cannot be continued.
    options = json.loads((whole / "config.json").read_text())["config"]
    split = rd.split.leave_one_out(synthetic_interactions())
    with pytest.raises(RunError, match="item_table"):
        rd.train("sasrec", split, whole, config=options, seed=3, resume=True)


@needs_torchrec
def test_the_peak_of_memory_falls_at_4_million_items():
    copied, divided = (of_processes(way, 4_000_000, 1) for way in ("copied, sparse", "sharded"))
    table_mib = 4_000_000 * 64 * 4 / 2**20
    assert divided["peak_mib_steps"] < copied["peak_mib_steps"] - 0.4 * table_mib
    assert divided["ndcg@10"] == pytest.approx(copied["ndcg@10"], abs=1e-6)


@pytest.mark.parametrize(
    ("model", "changed", "said", "remedy"),
    [
        ("bprmf", None, "bprmf cannot be sharded", "sasrec, gru4rec"),
        ("bert4rec", None, "bert4rec cannot be sharded", "rediffuse.train"),
        ("sasrec", {"loss": "softmax", "item_optimizer": "adamw"}, "loss=softmax", "sampled_softmax"),
        ("sasrec", {"loss": "sce"}, "loss=sce", "sampled_softmax"),
        ("sasrec", {"item_optimizer": "adamw"}, "item_optimizer=adamw", "item_optimizer=rowwise_adagrad"),
        ("heatrec", {}, "prior=head", "prior=none"),
        ("sasrec", {"ema": 0.9}, "ema=0.9", "ema=null"),
        ("sasrec", {"accumulate": 2}, "accumulate=2", "accumulate=1"),
        ("sasrec", {"embedding_size": 18}, "embedding_size=18", "embedding_size=20"),
        ("sasrec", {}, "needs several processes", "torchrun"),
    ],
)
def test_what_needs_the_whole_table_is_refused_before_training(tmp_path, model, changed, said, remedy):
    split = rd.split.leave_one_out(synthetic_interactions())
    options: dict[str, Any] | None = None if changed is None else SHARDED | changed
    with pytest.raises(ConfigError, match=said) as caught:
        sharded.train(model, split, tmp_path / "run", config=options)
    assert remedy in str(caught.value.remedy)
    assert not (tmp_path / "run").exists()


def test_item_features_are_refused(tmp_path):
    split = rd.split.leave_one_out(synthetic_interactions(categories=True).with_features("genres"))
    with pytest.raises(ConfigError, match="item_features=true"):
        sharded.train("sasrec", split, tmp_path / "run", config=SHARDED)


@pytest.mark.parametrize(
    ("option", "said"),
    [("--dry-run", "--dry-run measures one process"), ("--engine=ray", "does not go with --engine ray")],
)
def test_options_of_the_command_that_do_not_fit(tmp_path, option, said):
    synthetic_interactions().save(tmp_path / "data")
    words = ["train", "sasrec", str(tmp_path / "data"), "-o", str(tmp_path / "run"), "--shard-items", option]
    assert said in str(CliRunner().invoke(app, words).exception)


def test_a_bucket_is_refused():
    with pytest.raises(ConfigError, match="a folder that all processes share"):
        sharded.train("sasrec", rd.split.leave_one_out(synthetic_interactions()), "s3://bucket/run", config=SHARDED)


def make_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int) -> None:
    """What `sharded.train` does first, as in one of several processes."""
    split, kind = rd.split.leave_one_out(synthetic_interactions()), rd.models.SASRec
    view, options = split.training_view(), kind.Config.build(None, SHARDED)
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    sharded.make_trainer(kind, options, view, tmp_path, seed=0, user_ids=split.dataset.user_ids)


def test_more_processes_than_items_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="cannot be divided among 39 processes"):
        make_trainer(tmp_path, monkeypatch, 39)


@pytest.mark.parametrize("package", ["torchrec", "fbgemm_gpu"])
def test_the_extra_is_named_where_a_package_is_missing(tmp_path, monkeypatch, package):
    monkeypatch.setattr(sharded, "find_spec", lambda name: None if name == package else find_spec("json"))
    with pytest.raises(MissingExtraError, match=rf"{package}[\s\S]*rediffuse\[cluster\]"):
        make_trainer(tmp_path, monkeypatch, 2)


def test_packages_that_do_not_belong_together_are_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(sharded, "find_spec", lambda name: find_spec("json"))
    monkeypatch.setitem(sys.modules, "rediffuse.engines.item_shards", None)
    with pytest.raises(ConfigError, match="cannot be loaded") as caught:
        make_trainer(tmp_path, monkeypatch, 2)
    assert "belong together" in str(caught.value.remedy)
