"""Exported files give the lists of the library, without the library."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.numpy import load_file
from typer.testing import CliRunner

import rediffuse as rd
from rediffuse.diffusion.noise import RowNoise, row_keys
from rediffuse.errors import ConfigError, MissingExtraError, RunError
from rediffuse.exporting import export, graphs
from rediffuse.files import sha256_file
from rediffuse.testing import synthetic_interactions

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime, of the extra export, is not installed")
pytestmark = pytest.mark.skipif(
    tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 13), reason="the extra export needs torch 2.13"
)

TINY = {"embedding_size": 16, "batch_size": 64, "epochs": 3, "max_length": 8}
NOISY = TINY | {"blocks": 2, "diffusion_steps": 8, "sampling_steps": 4, "lambda_uncertainty": 0.3}
GUIDED = {"history_dropout": 0.2, "guidance": 1.0}
RUNS = {
    "causal": ("diffurec", NOISY),
    "prefix": (
        "diffurec",
        NOISY
        | {"form": "prefix", "temperature": None, "repeat_bias": False, "variance": "fixed_large"}
        | {"self_conditioning": True},
    ),
    "guided": ("diffurec", NOISY | GUIDED | {"form": "prefix", "normalize": False, "embedding_std": 1.0}),
    "both": ("diffurec", NOISY | GUIDED | {"self_conditioning": True, "block": "ligr"}),
    "ablation": ("diffurec", TINY | {"diffusion": False, "blocks": 1}),
    "sasrec": ("sasrec", TINY | {"blocks": 1}),
    "gru4rec": ("gru4rec", TINY),
}


def slow(kind: str) -> Any:
    return pytest.param(kind, marks=pytest.mark.slow)


# One item, a few, with repetitions, and more than the window holds. No size is one that graphs are traced with.
HISTORIES = [[3], [1, 2], [7, 7, 8, 7], [30], list(range(20, 32)), [5, 9, 11, 2, 4]]


@pytest.fixture(scope="module")
def split():
    return rd.split.leave_one_out(synthetic_interactions())


@pytest.fixture(scope="module")
def runs(split, tmp_path_factory):
    """A function of a kind that returns its run folder; each is trained once."""
    folder, made = tmp_path_factory.mktemp("runs"), {}

    def run(kind: str) -> Path:
        if kind not in made:
            model, options = RUNS[kind]
            made[kind] = rd.train(model, split, folder / kind, config=options, seed=5).path
        return made[kind]

    return run


@pytest.fixture(scope="module")
def exported(runs, tmp_path_factory):
    """A function of a kind that returns the folder of its ONNX export; each is exported once."""
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
    names = json.loads((folder / "export.json").read_text())["graphs"][name]["inputs"]

    def run(**inputs):
        with torch.no_grad():
            outputs = network(*(torch.from_numpy(inputs[each]) for each in names))
        return [each.numpy() for each in (outputs if isinstance(outputs, tuple) else (outputs,))]

    return run


def library_draws(windows, lengths, seed):
    """The noise that the library draws, one array per call."""
    noise = RowNoise(row_keys(torch.from_numpy(windows), torch.from_numpy(lengths)), seed)
    return lambda shape: noise(torch.empty(*shape)).numpy()


def scores(folder, histories, seed=0, graph=onnx_graph):
    """Scores (B, num_items), computed from the exported files in NumPy."""
    description = json.loads((folder / "export.json").read_text())
    recent = [history[-description["max_length"] :] for history in histories]
    lengths = np.asarray([len(row) for row in recent])
    windows = np.full((len(recent), lengths.max()), description["pad"])
    for window, row in zip(windows, recent, strict=True):
        window[: len(row)] = row
    outputs = graph(folder, "history")(items=windows, lengths=lengths)
    encoded = dict(zip(description["graphs"]["history"]["outputs"], outputs, strict=True))
    if description["denoising"] is None:
        query = encoded["query"]
    else:
        draw, denoise = library_draws(windows, lengths, seed), graph(folder, "step")
        read = description["graphs"]["step"]["inputs"]
        x = draw((len(recent), description["embedding_size"]))
        x0_hat = np.zeros_like(x)
        for step in description["denoising"]["steps"]:
            t, further = np.full(len(recent), step["t"]), {"noise": draw(encoded["z"].shape)}
            further |= {"estimate": x0_hat} if "estimate" in read else {}
            further |= {"noise_alone": draw(x.shape)} if "noise_alone" in read else {}
            (x0_hat,) = denoise(**encoded, lengths=lengths, x_t=x, t=t, **further)
            x = step["x0_hat"] * x0_hat + step["x_t"] * x
            if step["noise"]:
                x = x + step["noise"] * draw(x.shape)
        query = x
        if description["metric"]["space"] == "cosine":
            query = x / np.linalg.norm(x, axis=1, keepdims=True) * description["metric"]["temperature"] ** -0.5
    found = query @ load_file(folder / "items.safetensors")["vectors"].T
    for row, window in zip(found, recent, strict=True):
        row[sorted(set(window))] += description["repeat_bias"] or 0.0
    return found


def check_lists(run, folder, found, histories, seed=0):
    """Check that scores (B, num_items) rank as the library does, with seen items kept and filtered."""
    ids = pl.read_parquet(folder / "items.parquet")["item_id"]
    recommender = rd.Recommender.load(run)
    by_id = [ids.gather(history).to_list() for history in histories]
    for filter_seen in (False, True):
        lists = recommender.recommend(histories=by_id, k=10, seed=seed, filter_seen=filter_seen)
        ranked = found.copy()
        for row, history in zip(ranked, histories, strict=True):
            row[history] = -np.inf if filter_seen else row[history]
        best = np.argsort(-ranked, axis=1, kind="stable")[:, :10]
        for user, (row, items) in enumerate(zip(ranked, best, strict=True)):
            expected = lists.filter(pl.col("user_id") == user)
            assert ids.gather(items).to_list() == expected["item_id"].to_list()
            np.testing.assert_allclose(row[items], expected["score"], atol=2e-4)


@pytest.mark.parametrize("kind", ["causal", slow("prefix"), slow("guided"), slow("both"), "ablation", "sasrec"])
def test_onnx_runtime_gives_the_lists_of_the_library(kind, runs, exported):
    folder = exported(kind)
    for seed, histories in ((0, HISTORIES), (4, HISTORIES[1:3]), (0, HISTORIES[:1])):
        check_lists(runs(kind), folder, scores(folder, histories, seed), histories, seed)


def test_content_is_part_of_the_exported_vectors(tmp_path):
    events = pl.DataFrame(
        [(user, (user * 3 + day) % 30, day) for user in range(40) for day in range(8)],
        schema=["user_id", "item_id", "time"],
        orient="row",
    )
    items = pl.DataFrame({"item_id": range(30), "kind": ["shoes", "hats", "socks"] * 10, "price": range(30)})
    data = rd.read_interactions(events, time="time", items=items, item_features="kind,price:number")
    run = rd.train("sasrec", rd.split.leave_one_out(data), tmp_path / "run", config=TINY | {"blocks": 1})
    new = pl.DataFrame({"item_id": [100, 101], "kind": ["hats", "socks"], "price": [3, 29]})
    grown, _ = rd.add_items(run, new, tmp_path / "grown")
    export(grown.path, tmp_path / "out", "torch-export")
    found = scores(tmp_path / "out", HISTORIES[:-2], graph=torch_graph)
    assert found.shape[1] == 32
    assert np.linalg.norm(load_file(tmp_path / "out" / "items.safetensors")["vectors"][-2:], axis=1).all()
    check_lists(grown.path, tmp_path / "out", found, HISTORIES[:-2])


@pytest.mark.parametrize("kind", [slow("causal"), slow("both"), "gru4rec"])
def test_torch_export_gives_the_lists_of_the_library(kind, runs, tmp_path):
    export(runs(kind), tmp_path, "torch-export")
    for seed, histories in ((0, HISTORIES), (0, HISTORIES[:1])):
        check_lists(runs(kind), tmp_path, scores(tmp_path, histories, seed, torch_graph), histories, seed)
    for file in tmp_path.glob("*.pt2"):
        inside = zipfile.ZipFile(file)
        assert not any(b".pkl" in inside.read(name) for name in inside.namelist()), "nothing is pickled"
    run_readme(runs(kind), tmp_path)


@pytest.mark.parametrize("kind", ["causal", slow("prefix"), slow("guided"), slow("both"), "ablation"])
def test_the_code_of_the_readme_gives_the_lists_of_the_library(kind, runs, exported):
    run_readme(runs(kind), exported(kind))


def run_readme(run, folder):
    """Run the code of an exported README with the noise of the library, and compare the lists."""
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
    by_id = [ids.gather(history).to_list() for history in names["histories"]]
    lists = rd.Recommender.load(run).recommend(histories=by_id, k=10)
    expected = [lists.filter(pl.col("user_id") == user)["item_id"].to_list() for user in range(len(by_id))]
    assert printed.getvalue().strip() == str(expected)


def test_files_are_described_and_name_no_machine(exported):
    folder = exported("causal")
    description = json.loads((folder / "export.json").read_text())
    assert {path.name for path in folder.iterdir()} == {
        *("export.json", "README.md", "history.onnx", "step.onnx", "items.parquet", "items.safetensors")
    }
    assert description["files"] == {
        path.name: sha256_file(path) for path in folder.iterdir() if path.name not in ("export.json", "README.md")
    }
    session = onnxruntime.InferenceSession(folder / "step.onnx")
    step = description["graphs"]["step"]
    for side, tensors in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
        assert [tensor.name for tensor in tensors] == list(step[side])
        for tensor in tensors:
            assert tensor.shape == step[side][tensor.name]["shape"]
    assert description["denoising"]["diffusion_steps"] == 8
    assert [step["t"] for step in description["denoising"]["steps"]] == [7, 5, 2, 0]
    assert pl.read_parquet(folder / "items.parquet").columns == ["item", "item_id", "title"]
    checkout = str(Path(__file__).parents[1]).encode()
    assert not any(checkout in path.read_bytes() for path in folder.iterdir())


def test_large_weights_are_in_a_file_of_their_own(runs, exported, tmp_path, monkeypatch):
    """As those of more than 1 GiB are; the scores are those of one file."""
    monkeypatch.setattr(graphs, "MAX_IN_GRAPH", 1000)
    for _ in range(2):  # an earlier export is replaced
        result = export(runs("ablation"), tmp_path / "out")
    names = {"history.onnx", "history.onnx.data"}
    assert names < result["files"].keys()
    items = rd.Recommender.load(runs("ablation")).items
    assert result["files"]["history.onnx.data"] > 4 * 16 * len(items), "the item embeddings are in it"
    assert result["files"]["history.onnx"] < (exported("ablation") / "history.onnx").stat().st_size
    description = json.loads((tmp_path / "out" / "export.json").read_text())
    for name in names:
        assert description["files"][name] == sha256_file(tmp_path / "out" / name)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "weights are in `history.onnx.data`" in text
    assert "onnx.data" not in (exported("ablation") / "README.md").read_text()
    moved = (tmp_path / "out").rename(tmp_path / "elsewhere")
    np.testing.assert_array_equal(scores(moved, HISTORIES), scores(exported("ablation"), HISTORIES))
    run_readme(runs("ablation"), moved)


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
        ("bprmf", {"epochs": 1}, "bprmf cannot be exported: it ranks from a table of the users"),
        ("ease", {}, "ease cannot be exported: it does not rank by a vector per item"),
        ("diffrec", {"epochs": 1}, "diffrec cannot be exported: it denoises rows"),
        ("diffurec", TINY | {"epochs": 1, "solver": "ddim", "sampling_steps": 2}, "solver ddim"),
    ],
)
def test_models_that_cannot_be_exported_are_refused_with_the_reason(model, options, reason, split, tmp_path):
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
    result = json.loads(done.stdout)
    assert result["format"] == "onnx"
    assert result["files"]["history.onnx"] == (out / "history.onnx").stat().st_size
    check_lists(run, out, scores(out, HISTORIES), HISTORIES)
