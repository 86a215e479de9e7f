"""Folders whose checksums hold and whose content is wrong, as if a stranger had written them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

import rediffuse as rd
from benchmarks.faults import fuzz_folders
from rediffuse import models
from rediffuse.errors import DataError, RunError
from rediffuse.files import sha256_file, sha256_json
from rediffuse.runs.run_folder import manifest_text, read_run
from rediffuse.testing import synthetic_interactions, train_small

pytestmark = pytest.mark.filterwarnings("ignore::rediffuse.errors.RediffuseWarning")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    config = {"embedding_size": 8, "epochs": 1, "batch_size": 64}
    return train_small("gru4rec", tmp_path_factory.mktemp("runs"), config).run.path


@pytest.fixture(scope="module")
def kg_run(tmp_path_factory):
    config = {"embedding_size": 8, "epochs": 1, "batch_size": 256}
    return train_small("diffkg", tmp_path_factory.mktemp("runs"), config).run.path


def sign(folder, without=()):
    names = [name for name in json.loads((folder / "manifest.json").read_text())["files"] if name not in without]
    (folder / "manifest.json").write_text(manifest_text({name: sha256_file(folder / name) for name in names}))


@pytest.fixture
def folder(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "run")


def change_config(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    sign(folder)


def change_table(folder, name, change):
    change(pl.read_parquet(folder / name, glob=False)).write_parquet(folder / name)
    sign(folder)


def change_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    sign(folder)


def refused(folder, name, what):
    with pytest.raises(RunError, match=what) as caught:
        rd.Recommender.load(folder)
    assert name in caught.value.problem
    assert caught.value.remedy


def test_a_row_of_nan_in_the_item_table_is_refused(folder):
    def change(tensors):
        tensors["item_embedding.weight"][7] = float("nan")

    change_weights(folder, change)
    refused(folder, "model.safetensors", r"item_embedding\.weight holds values that are no numbers")


def test_shapes_are_compared_before_memory_is_taken(folder, monkeypatch):
    """A table of another size is refused by a model on the device "meta": none is filled on the processor."""
    devices, before = [], torch.nn.init.normal_

    def watched(tensor, *arguments, **options):
        if tensor.numel() > 10**6:
            devices.append(tensor.device.type)
        return before(tensor, *arguments, **options)

    monkeypatch.setattr(torch.nn.init, "normal_", watched)
    change_config(folder, lambda config: config["config"].update(embedding_size=10**6))
    refused(folder, "model.safetensors", r"item_embedding\.weight has the shape \(41, 8\), not \(41, 1000000\)")
    assert set(devices) == {"meta"}


def test_loading_an_ordinary_run_needs_no_model_without_memory(folder):
    """Torch takes a second to import what the device "meta" computes with."""
    code = (
        "import sys, rediffuse as rd; rd.Recommender.load(sys.argv[1]).recommend(histories=[[]]);"
        "assert 'torch._dynamo' not in sys.modules and 'sympy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(folder)], check=True)


@pytest.mark.parametrize(
    "name",
    [
        "class",
        "distribution",
        "created",
        "data.fingerprint",
        "split.leak",
        "training.best_epoch",
        "training.parameters",
    ],
)
def test_missing_entries_that_may_be_null_are_null(folder, name):
    *parents, last = name.split(".")

    def remove(config):
        for parent in parents:
            config = config[parent]
        del config[last]

    change_config(folder, remove)
    config = read_run(folder).config
    for part in name.split("."):
        config = config[part]
    assert config is None


def test_runs_without_entries_that_may_be_null_are_compared(folder):
    rd.evaluate(folder, synthetic_interactions(friends=3, knowledge=True))

    def remove(config):
        del config["split"]["leak"], config["training"]["best_epoch"], config["training"]["parameters"]
        config["defaults"] = None

    change_config(folder, remove)
    assert len(rd.compare([folder]).summary)


@pytest.mark.parametrize("name", list(models.names(installed=False)))
def test_every_model_can_be_built_without_memory(name):
    kind = models.model_class(name)
    with torch.device("meta"):
        state = kind(kind.Config.build(), 50, 60).state_dict()
    assert all(tensor.is_meta for tensor in state.values())


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda t: t.with_columns(item_id=pl.col("item_id").shift(1)), "item_id has 1 nulls"),
        (lambda t: t.with_columns(item_id=pl.col("item_id").first()), "item_id repeats 39 ids"),
        (lambda t: t.with_columns(item_id=pl.lit(1.5)), "item_id is Float64"),
        (lambda t: t.drop("train_count"), "train_count"),
        (lambda t: t.head(10), "there are 10 items, and 40 in config.json"),
        (lambda t: t.with_columns(title=pl.lit(7)), "titles are Int32, not text"),
    ],
)
def test_unsound_items_are_refused(folder, change, what):
    change_table(folder, "items.parquet", change)
    refused(folder, "items.parquet", what)


HISTORY = pl.col("history")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda t: t.with_columns(HISTORY.cast(pl.List(pl.Int64)).list.eval(pl.element() + 2**32)), "not 0 to 39"),
        (lambda t: t.with_columns(HISTORY.list.eval(pl.element() - 30)), "not 0 to 39"),
        (lambda t: t.with_columns(HISTORY.list.eval(pl.element().shift(1))), "nulls in its lists"),
        (lambda t: t.with_columns(HISTORY.list.tail(2)), "times and history differ in their lengths"),
        (lambda t: t.with_columns(user_id=pl.lit("u")), "user_id repeats"),
        (lambda t: t.drop("history"), "history"),
    ],
)
def test_unsound_histories_are_refused(folder, change, what):
    change_table(folder, "users.parquet", change)
    refused(folder, "users.parquet", what)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda config: config.pop("resolved"), "resolved is missing"),
        (lambda config: config.update(seed=True), "seed is True, not int"),
        (lambda config: config["data"].update(users=10**12), "and the model has 1,000,000,000,000"),
        (lambda config: config["data"].update(users="61"), "data.users is '61', not int"),
        (lambda config: config.update(split=[]), "split"),
    ],
)
def test_unsound_configs_are_refused(folder, change, what):
    change_config(folder, change)
    refused(folder, "", what)


def test_deep_json_is_refused(folder):
    (folder / "config.json").write_text("[" * 100_000 + "]" * 100_000)
    sign(folder)
    refused(folder, "config.json", "not sound")


def test_wrong_types_of_weights_are_refused(folder):
    change_weights(folder, lambda tensors: tensors.update(popularity=tensors["popularity"].to(torch.complex64)))
    refused(folder, "model.safetensors", "popularity is torch.complex64")


@pytest.mark.parametrize("odd", [-1, 40, 2**31 - 1])
@pytest.mark.parametrize(("model", "name"), [("itemknn", "near"), ("transition", "transitions.indices.value")])
def test_numbers_of_items_in_weights_are_in_range(tmp_path, model, name, odd):
    folder = train_small(model, tmp_path).run.path

    def change(tensors):
        tensors[name].view(-1)[-1] = odd  # an entry that a history of a few items may never read

    change_weights(folder, change)
    refused(folder, "model.safetensors", "0 to 39")


def test_a_file_that_the_manifest_does_not_list_is_not_read(kg_run, tmp_path):
    folder = shutil.copytree(kg_run, tmp_path / "run")
    assert rd.Recommender.load(folder).has_paths
    sign(folder, without=["knowledge.parquet"])
    assert not rd.Recommender.load(folder).has_paths
    sign(folder, without=["metrics.jsonl"])
    (folder / "metrics.jsonl").write_text("not JSON\n")
    rd.evaluate(folder, synthetic_interactions(friends=3, knowledge=True))
    assert rd.compare([folder]).curves.is_empty()


def test_an_unsound_knowledge_graph_is_refused(kg_run, tmp_path):
    folder = shutil.copytree(kg_run, tmp_path / "run")
    change_table(folder, "knowledge.parquet", lambda table: table.drop("weight"))
    refused(folder, "knowledge.parquet", "there is no column weight")


def test_a_manifest_lists_files_of_its_folder_alone(folder):
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    (folder / "manifest.json").write_text(manifest_text({**listed, "../x": "0" * 64}))
    refused(folder, "manifest.json", "'../x' is not the name of a file in the folder")


# --- datasets ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return synthetic_interactions(friends=3, knowledge=True).save(tmp_path_factory.mktemp("data") / "data")


@pytest.fixture
def dataset(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "data")


def sign_dataset(folder, **changes):
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, known in manifest["files"].items():
        known |= {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
    del manifest["sha256"]
    manifest |= changes
    (folder / "manifest.json").write_text(json.dumps(manifest | {"sha256": sha256_json(manifest)}))


@pytest.mark.parametrize(
    ("name", "change", "what"),
    [
        ("kg.parquet", lambda t: t.with_columns(tail=pl.lit(-1)), "tail has numbers from -1"),
        ("kg.parquet", lambda t: t.with_columns(tail=pl.lit(2**40)), "tail has numbers"),
        ("kg.parquet", lambda t: t.drop("head"), "head"),
        ("social.parquet", lambda t: t.with_columns(source=pl.lit(10**6)), "source has numbers"),
        ("item_entity.parquet", lambda t: t.with_columns(pl.all() - 5), "has numbers from -5"),
        ("items.parquet", lambda t: t.with_columns(item_id=pl.lit("i")), "item_id repeats"),
        ("users.parquet", lambda t: t.head(3), "offsets are not of 3 rows"),
    ],
)
def test_unsound_tables_are_refused(dataset, name, change, what):
    change(pl.read_parquet(dataset / name, glob=False)).write_parquet(dataset / name)
    sign_dataset(dataset)
    with pytest.raises(DataError, match=what):
        rd.load_dataset(dataset)


@pytest.mark.parametrize(
    ("name", "change", "what"),
    [
        ("items", lambda a: np.where(a == 3, -1, a).astype(np.int32), "item numbers has numbers from -1"),
        ("items", lambda a: a.astype(np.int64), "item numbers are not int32"),
        ("offsets", lambda a: a[::-1].copy(), "offsets end at 0"),
        ("offsets", lambda a: np.concatenate(([0, 9, 3], a[3:])), "offsets decrease"),
        ("times", lambda a: a[:-1], "times has the shape"),
        ("times", lambda a: np.full(len(a), np.nan), "times has NaN"),
    ],
)
def test_unsound_arrays_are_refused(dataset, name, change, what):
    path = dataset / f"interactions.{name}.npy"
    np.save(path, change(np.load(path)))
    sign_dataset(dataset)
    with pytest.raises(DataError, match=what):
        rd.load_dataset(dataset)


@pytest.mark.parametrize(
    "changes", [{"title": 7}, {"title": "no such column"}, {"schemes": [None]}, {"files": []}, {"report": "x"}]
)
def test_unsound_manifests_are_refused(dataset, changes):
    sign_dataset(dataset)
    manifest = json.loads((dataset / "manifest.json").read_text()) | changes
    del manifest["sha256"]
    (dataset / "manifest.json").write_text(json.dumps(manifest | {"sha256": sha256_json(manifest)}))
    with pytest.raises(DataError, match=r"damaged|no sound dataset"):
        rd.load_dataset(dataset)


# --- both, at random ---------------------------------------------------------------------------------------


def test_changed_folders_are_refused_or_give_full_answers():
    outcomes, failures = fuzz_folders.fuzz(60, seed=3, names=["gru4rec", "ease"])
    assert not failures
    assert outcomes[fuzz_folders.REFUSED] > 10
    assert outcomes[fuzz_folders.ACCEPTED] > 10
