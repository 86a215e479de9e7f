"""Exported files answer as the library does, without it."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.numpy import load_file
from typer.testing import CliRunner

import rediffuse as rd
from rediffuse.diffusion.noise import RowNoise, row_keys
from rediffuse.errors import ConfigError, MissingExtraError, RunError
from rediffuse.exporting import export
from tests.synthetic import walks

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime, of the extra export, is not installed")
pytestmark = pytest.mark.skipif(
    tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 13), reason="the extra export needs torch 2.13"
)

TINY = {"embedding_size": 16, "batch_size": 64, "epochs": 3, "max_length": 8}
NOISY = TINY | {"blocks": 2, "diffusion_steps": 8, "sampling_steps": 4, "lambda_uncertainty": 0.3}
RUNS = {
    "causal": ("diffurec", NOISY),
    "prefix": (
        "diffurec",
        NOISY | {"form": "prefix", "temperature": None, "repeat_bias": False, "variance": "fixed_large"},
    ),
    "twin": ("diffurec", TINY | {"diffusion": False, "blocks": 1}),
    "sasrec": ("sasrec", TINY | {"blocks": 1}),
    "gru4rec": ("gru4rec", TINY),
}
# Of one item, of few, with repetitions, and longer than the window; none has a size that graphs were traced with.
HISTORIES = [[3], [1, 2], [7, 7, 8, 7], [30], list(range(20, 32)), [5, 9, 11, 2, 4]]


@pytest.fixture(scope="module")
def split():
    return rd.split.leave_one_out(walks())


@pytest.fixture(scope="module")
def runs(split, tmp_path_factory):
    """kind -> run folder, each trained once."""
    folder, made = tmp_path_factory.mktemp("runs"), {}

    def run(kind: str) -> Path:
        if kind not in made:
            model, options = RUNS[kind]
            made[kind] = rd.train(model, split, folder / kind, config=options, seed=5).path
        return made[kind]

    return run


@pytest.fixture(scope="module")
def exported(runs, tmp_path_factory):
    """kind -> folder of its export as ONNX."""
    folder, made = tmp_path_factory.mktemp("exports"), {}

    def of(kind: str) -> Path:
        if kind not in made:
            made[kind] = folder / kind
            export(runs(kind), made[kind])
        return made[kind]

    return of


def onnx_graph(folder, name):
    session = onnxruntime.InferenceSession(folder / f"{name}.onnx")
    return lambda **inputs: session.run(None, inputs)


def torch_graph(folder, name):
    network = torch.export.load(folder / f"{name}.pt2").module()
    order = json.loads((folder / "export.json").read_text())["graphs"][name]["inputs"]

    def call(**inputs):
        with torch.no_grad():
            made = network(*(torch.from_numpy(inputs[each]) for each in order))
        return [one.numpy() for one in (made if isinstance(made, tuple) else (made,))]

    return call


def library_draws(windows, lengths, seed):
    """The draws that the library makes, one after the other."""
    noise = RowNoise(row_keys(torch.from_numpy(windows), torch.from_numpy(lengths)), seed)
    return lambda shape: noise(torch.empty(*shape)).numpy()


def scores(folder, histories, seed=0, graph=onnx_graph):
    """(B, num_items) out of the files alone, in numpy."""
    about = json.loads((folder / "export.json").read_text())
    recent = [history[-about["max_length"] :] for history in histories]
    lengths = np.asarray([len(row) for row in recent])
    windows = np.full((len(recent), lengths.max()), about["pad"])
    for window, row in zip(windows, recent, strict=True):
        window[: len(row)] = row
    encoded = graph(folder, "history")(items=windows, lengths=lengths)
    known = dict(zip(about["graphs"]["history"]["outputs"], encoded, strict=True))
    if about["denoising"] is None:
        query = known["query"]
    else:
        draw, step = library_draws(windows, lengths, seed), graph(folder, "step")
        x = draw((len(recent), about["embedding_size"]))
        for now in about["denoising"]["steps"]:
            t = np.full(len(recent), now["t"])
            (x0_hat,) = step(**known, lengths=lengths, x_t=x, t=t, noise=draw(known["z"].shape))
            x = now["x0"] * x0_hat + now["x_t"] * x
            if now["noise"]:
                x = x + now["noise"] * draw(x.shape)
        query = x
        if about["metric"]["space"] == "cosine":
            query = x / np.linalg.norm(x, axis=1, keepdims=True) * about["metric"]["temperature"] ** -0.5
    found = query @ load_file(folder / "items.safetensors")["vectors"].T
    for row, window in zip(found, recent, strict=True):
        row[sorted(set(window))] += about["repeat_bias"] or 0.0
    return found


def check_lists(run, folder, found, histories, seed=0):
    """That ``found`` (B, num_items) ranks as the library does, with seen items kept and without."""
    ids = pl.read_parquet(folder / "items.parquet")["item_id"]
    recommender = rd.Recommender.load(run)
    asked = [ids.gather(history).to_list() for history in histories]
    for filter_seen in (False, True):
        lists = recommender.recommend(histories=asked, k=10, seed=seed, filter_seen=filter_seen)
        ranked = found.copy()
        for row, history in zip(ranked, histories, strict=True):
            row[history] = -np.inf if filter_seen else row[history]
        best = np.argsort(-ranked, axis=1, kind="stable")[:, :10]
        for person, (row, items) in enumerate(zip(ranked, best, strict=True)):
            theirs = lists.filter(pl.col("user_id") == person)
            assert ids.gather(items).to_list() == theirs["item_id"].to_list()
            np.testing.assert_allclose(row[items], theirs["score"], atol=2e-4)


@pytest.mark.parametrize("kind", ["causal", "prefix", "twin", "sasrec"])
def test_onnx_runtime_gives_the_lists_of_the_library(kind, runs, exported):
    folder = exported(kind)
    for seed, histories in ((0, HISTORIES), (4, HISTORIES[1:3]), (0, HISTORIES[:1])):
        check_lists(runs(kind), folder, scores(folder, histories, seed), histories, seed)


@pytest.mark.parametrize("kind", ["causal", "gru4rec"])
def test_torch_export_gives_the_lists_of_the_library(kind, runs, tmp_path):
    export(runs(kind), tmp_path, "torch-export")
    for seed, histories in ((0, HISTORIES), (0, HISTORIES[:1])):
        check_lists(runs(kind), tmp_path, scores(tmp_path, histories, seed, torch_graph), histories, seed)
    for file in tmp_path.glob("*.pt2"):
        inside = zipfile.ZipFile(file)
        assert not any(b".pkl" in inside.read(name) for name in inside.namelist()), "nothing is pickled"
    run_readme(runs(kind), tmp_path)


@pytest.mark.parametrize("kind", ["causal", "prefix", "twin"])
def test_the_readme_answers(kind, runs, exported):
    run_readme(runs(kind), exported(kind))


def run_readme(run, folder):
    """Its example, with the library's draws, gives the library's lists."""
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert len([line for line in code.splitlines() if line.strip()]) < 50
    names: dict = {}

    def draw(shape, dtype):
        if "draws" not in names:
            names["draws"] = library_draws(names["windows"], names["lengths"], 0)
        return names["draws"](shape)

    names["draw"] = draw
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code.replace("np.random.default_rng(0).standard_normal", "draw"), names)
    ids = pl.read_parquet(folder / "items.parquet")["item_id"]
    asked = [ids.gather(history).to_list() for history in names["histories"]]
    lists = rd.Recommender.load(run).recommend(histories=asked, k=10)
    expected = [lists.filter(pl.col("user_id") == person)["item_id"].to_list() for person in range(len(asked))]
    assert printed.getvalue().strip() == str(expected)


def test_files_say_what_they_are_and_name_no_machine(exported):
    folder = exported("causal")
    about = json.loads((folder / "export.json").read_text())
    assert {path.name for path in folder.iterdir()} == {
        *("export.json", "README.md", "history.onnx", "step.onnx", "items.parquet", "items.safetensors")
    }
    session = onnxruntime.InferenceSession(folder / "step.onnx")
    known = about["graphs"]["step"]
    for side, tensors in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
        assert [tensor.name for tensor in tensors] == list(known[side])
        for tensor in tensors:
            assert tensor.shape == known[side][tensor.name]["shape"]
    assert [step["t"] for step in about["denoising"]["steps"]] == [7, 5, 2, 0]
    assert pl.read_parquet(folder / "items.parquet").columns == ["item", "item_id", "title"]
    here = str(Path(__file__).parents[1]).encode()
    assert not any(here in path.read_bytes() for path in folder.iterdir())


def test_an_occupied_folder_is_left_alone(runs, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="is not an export"):
        export(runs("sasrec"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    out = tmp_path / "new"
    export(runs("sasrec"), out, "torch-export")
    export(runs("sasrec"), out, "torch-export")  # an earlier export is replaced
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="is not an export"):
        export(runs("sasrec"), out, "torch-export")


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        ("bprmf", {"epochs": 1}, "bprmf cannot be exported: it answers from a table of the people"),
        ("ease", {}, "ease cannot be exported: it does not rank by a vector per item"),
        ("diffrec", {"epochs": 1}, "diffrec cannot be exported: it reads and denoises rows"),
        ("diffurec", TINY | {"epochs": 1, "solver": "ddim", "sampling_steps": 2}, "solver ddim"),
    ],
)
def test_what_cannot_be_exported_is_refused_by_name(model, options, reason, split, tmp_path):
    run = rd.train(model, split, tmp_path / "run", config=options)
    with pytest.raises(ConfigError, match=reason):
        export(run.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unknown_formats_and_missing_packages_are_named(runs, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="no format 'onyx'"):
        export(runs("sasrec"), tmp_path, "onyx")  # type: ignore[arg-type]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"onnx is needed .*\n.*rediffuse\[export\]"):
        export(runs("sasrec"), tmp_path)


def test_the_command_exports_and_prints_nothing_else(runs, tmp_path, capfd):
    app = importlib.import_module("rediffuse.cli.export").app
    run, out = runs("gru4rec"), tmp_path / "out"
    done = CliRunner().invoke(app, ["export", str(run), "-o", str(out), "--json"])
    assert capfd.readouterr() == ("", "")
    facts = json.loads(done.stdout)
    assert facts["format"] == "onnx"
    assert facts["files"]["history.onnx"] == (out / "history.onnx").stat().st_size
    check_lists(run, out, scores(out, HISTORIES), HISTORIES)
