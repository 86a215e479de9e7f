"""Options and YAML that no computation ends with are refused by name, before anything is allocated."""

from __future__ import annotations

import os
import sys

import pytest
import torch

import rediffuse as rd
from rediffuse import cli, memory, models
from rediffuse.config import parse_settings, read_settings
from rediffuse.errors import ConfigError, TrainingError
from rediffuse.experiment import read_experiment
from rediffuse.models.sizes import check_size
from rediffuse.testing import synthetic_interactions


@pytest.mark.parametrize(
    ("model", "options", "named"),
    [
        ("sasrec", {"max_length": 10**9}, "With max_length=1000000000, sasrec needs"),
        ("sasrec", {"embedding_size": 10**9}, "With embedding_size=1000000000"),
        ("gru4rec", {"embedding_size": 2**31 - 1}, "With embedding_size=2147483647"),
        ("bprmf", {"embedding_size": 10**9}, "With embedding_size=1000000000"),
        ("diffrec", {"hidden_sizes": [10**9]}, r"With hidden_sizes=\(1000000000,\)"),
        ("s3rec", {"attributes": 2 * 10**9}, "With attributes=2000000000"),
        ("itemknn", {"neighbours": 10**9}, "With neighbours=1000000000"),
        ("sasrec", {"loss": "sampled_softmax", "negatives": 2**31 - 1}, "With negatives=2147483647"),
        ("bprmf", {"negatives": 10**8}, "With negatives=100000000"),
        ("diffurec", {"diffusion_steps": 10**9}, "diffusion_steps|steps is 1,000,000,000"),
        ("sasrec", {"blocks": 10**9}, "'blocks' was given 1,000,000,000, and may be at most 1,000"),
        ("lightgcn", {"layers": 10**6}, "'layers' was given 1,000,000"),
        ("sasrec", {"max_length": 10**5000}, "'max_length' was given a larger number"),
        ("diffrec", {"hidden_sizes": [10] * 10**5}, "'hidden_sizes' lists 100,000 values"),
        ("sasrec", {"epochs": True}, "'epochs' was given true, not a number"),
        ("sasrec", {"dropout": False}, "'dropout' was given false"),
        ("diffrec", {"hidden_sizes": [True]}, "'hidden_sizes' was given true"),
        ("sasrec", {"learning_rate": float("inf")}, "'learning_rate' was given inf"),
        ("sasrec", {"learning_rate": "inf"}, "'learning_rate' was given 'inf'"),
    ],
)
def test_sizes_are_refused_by_name(model, options, named):
    kind = models.model_class(model)
    items = 50_000_000 if model == "itemknn" else 1000
    with pytest.raises(ConfigError, match=named) as caught:
        check_size(kind, kind.Config.build(None, options), items, 1000)
    assert caught.value.remedy


def test_training_refuses_a_size_before_it_writes(tmp_path):
    with pytest.raises(ConfigError, match=r"With max_length=1000000000, sasrec needs [\d,.]+ GiB"):
        rd.train("sasrec", synthetic_interactions(), tmp_path / "run", config={"max_length": 10**9})
    assert not (tmp_path / "run").exists()


def test_a_catalogue_that_does_not_fit_is_refused():
    kind = models.model_class("bprmf")
    with pytest.raises(ConfigError, match=r"bprmf needs [\d,.]+ GiB for 10,000,000,000 items"):
        check_size(kind, kind.Config.build(), 10**10, 10)


@pytest.mark.parametrize("request_memory", [lambda: torch.empty(2**55), lambda: bytearray(2**55)])
def test_a_refused_request_for_memory_is_an_error_of_ours(request_memory):
    wrapped = memory.out_of_memory("The training", memory.LESS_MEMORY)
    with pytest.raises(TrainingError, match="The training needs more memory than there is"), wrapped:
        request_memory()


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="another"), memory.out_of_memory("x", "y"):
        raise RuntimeError("another fault")


def test_free_memory_is_that_of_the_container(tmp_path, monkeypatch):
    files = {"memory.max": "1000", "memory.current": "700", "memory.stat": "anon 5\ninactive_file 200\n"}
    real = memory.Path

    def placed(path):
        return tmp_path if str(path) == "/sys/fs/cgroup" else real(path)

    monkeypatch.setattr(memory, "Path", placed)
    assert memory.free_memory() > 1000
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert memory.free_memory() == 500
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_memory() > 1000


def test_sparse_gradients_have_no_norm():
    build = models.model_class("sasrec").Config.build
    options = {"loss": "sampled_softmax", "item_optimizer": "rowwise_adagrad"}
    with pytest.raises(ConfigError, match="clip_norm=1 does not go with item_optimizer=rowwise_adagrad") as caught:
        build(None, options | {"clip_norm": 1.0})
    assert "clip_norm=null" in str(caught.value.remedy)
    build(None, options)


# --- YAML --------------------------------------------------------------------------------------------------

BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
TEXTS = {
    "epochs: [1": "not valid YAML",
    "epochs: 2024-99-99": "not valid YAML",
    "epochs: !!python/object:os.system x": "not valid YAML",
    "a: \0": "not valid YAML",
    "? [1, 2]\n: 3": "no text",
    "? !!str [1, 2]\n: 3": "no text",
    "1: 2": "'1' in line 1, which is no text",
    "true: 2": "no text",
    "a: {null: 2}": "no text",
    "a: " + "[" * 10_000 + "]" * 10_000: "nests more than 32 levels",
    "a: " + "{b: " * 10_000 + "1" + "}" * 10_000: "nests more than 32 levels",
    BOMB: "more than 10,000 entries",
    "a: [" + "1, " * 50_000 + "1]": "more than 10,000 entries",
    "".join(f"k{n}: 1\n" for n in range(20_000)): "more than 10,000 entries",
    "a: 1\nb: {c: 1, d: 2, c: 3}": "line 2: c is given in line 2 already",
    "a: &a [*a]": "alias of itself",
    "a: " + "9" * 5000: "not valid YAML",
    "#" * (1 << 21): "more than 262,144 bytes",
}


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:20])
def test_unusable_yaml_is_refused(tmp_path, text):
    path = tmp_path / "options.yaml"
    path.write_text(text)
    for read in (read_settings, read_experiment):
        with pytest.raises(ConfigError, match=TEXTS[text]) as caught:
            read(path)
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("value", ["[1", "{1: 2}", "[" * 500, "&a [*a]", "2024-99-99", "'", "@", "\0"])
def test_unusable_settings_are_refused(value):
    with pytest.raises(ConfigError, match=r"The value of setting .epochs="):
        parse_settings([f"epochs={value}"])


def test_deep_settings_and_flags_in_experiments_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="more than 32 levels deep"):
        parse_settings([".".join("a" * 10_000) + "=1"])
    data = synthetic_interactions().save(tmp_path / "data")
    start = f"data: {{folder: {data}}}\nmodels: [popularity]\nout: {tmp_path / 'out'}\n"
    path = tmp_path / "experiment.yaml"
    for line in ("seeds: [true]", "max_minutes: true", "evaluate: {sampling_seeds: true}"):
        path.write_text(start + line)
        with pytest.raises(ConfigError, match="is true or false, and takes a number"):
            read_experiment(path)


def test_aliases_are_read(tmp_path):
    path = tmp_path / "options.yaml"
    path.write_text("a: &a {b: 1}\nc: {<<: *a, d: 2}\n")
    assert read_settings(path) == {"a": {"b": 1}, "c": {"b": 1, "d": 2}}


def test_pipes_and_folders_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, kind in (("pipe", "a pipe or device"), (".", "a folder")):
        for read in (read_settings, read_experiment):
            with pytest.raises(ConfigError, match=kind):
                read(tmp_path / name)
    with pytest.raises(ConfigError, match="does not exist"):
        read_settings(tmp_path / "missing")


@pytest.mark.parametrize("setting", ["epochs=[1", "1=2", "epochs={[b]: 1}", "epochs=[/red]", "max_length=1000000000"])
def test_the_command_refuses_without_a_traceback(tmp_path, monkeypatch, capsys, setting):
    folder = synthetic_interactions().save(tmp_path / "data")
    words = ["rediffuse", "train", "sasrec", str(folder), "-o", str(tmp_path / "run"), "--set", setting]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stopped:  # any other error would be a traceback
        cli.main()
    assert stopped.value.code in (1, 2)
    assert setting.partition("=")[0] in capsys.readouterr().err
