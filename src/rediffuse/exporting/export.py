"""Export a trained next-item model as files that run without Rediffuse: graphs, item vectors, and a README.

The graphs draw no random numbers and contain no loop. Noise is an input, and export.json holds the numbers of the
denoising loop. The README (`rediffuse.exporting.readme`) contains the complete inference code.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from pathlib import Path
from typing import Any, Literal, get_args

import polars as pl

from rediffuse.diffusion.respace import respace
from rediffuse.errors import ConfigError, MissingExtraError, RunError, did_you_mean
from rediffuse.exporting.graphs import EXTERNAL, Graph, graphs_of, write_graph
from rediffuse.exporting.readme import readme
from rediffuse.files import DigestedFile, atomic_folder, parquet_bytes, sha256_file
from rediffuse.models.base import Model
from rediffuse.models.composite import Composite
from rediffuse.models.diffrec import DiffRec
from rediffuse.models.diffurec import DiffuRec
from rediffuse.models.factors import FactorModel
from rediffuse.models.sampling import Sampling
from rediffuse.models.sequence import REPEAT_RATE, SequenceModel
from rediffuse.objects.folders import output
from rediffuse.runs.run_folder import RunContents, read_run, run_path
from rediffuse.runs.tensors import write_tensors

Format = Literal["onnx", "torch-export"]
VERSION = 1
DESCRIPTION = "export.json"
_SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}
_FILES = {DESCRIPTION, "README.md", "items.safetensors", "items.parquet"} | {
    graph + suffix for graph in ("history", "step") for suffix in (*_SUFFIXES.values(), _SUFFIXES["onnx"] + EXTERNAL)
}


def export(run: str | Path, out: str | Path, format: Format = "onnx") -> dict[str, Any]:
    """Write a run's graphs, item vectors and inference code to a folder.

    Args:
        run: a finished run of a next-item model.
        out: a folder. It must be new, empty, or hold an earlier export, which is replaced as a whole.
        format: ``onnx``, or ``torch-export`` for `torch.export.load`.

    Returns:
        run, out, model, format, and the size of each file in bytes.

    Raises:
        ConfigError: the format is unknown, or the model or its solver cannot be exported.
        MissingExtraError: a package that writes ONNX is not installed.
        RunError: ``run`` is not a finished run, or ``out`` holds other files or cannot be written.
    """
    run, place = run_path("run", run), output("out", out)
    if format not in get_args(Format):
        known = (*get_args(Format), "vectors", "run")  # the command writes the last two elsewhere
        raise ConfigError(f"There is no format {format!r}.", did_you_mean(str(format), known))
    for package in ("onnx", "onnxscript") if format == "onnx" else ():
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "export")
    place.start(replaces=lambda description: _FILES, last=DESCRIPTION)
    out = place.folder
    _refuse_other_files(out)
    contents = read_run(run)
    model = _next_item_model(contents)
    graphs = graphs_of(model)
    description = _describe(contents, model, format, graphs)
    try:
        with atomic_folder(out) as new:
            for name, graph in graphs.items():
                _write(model, graph, new / (name + _SUFFIXES[format]))
            vectors = {"vectors": model.index_vectors().detach(), "popularity": contents.model.fallback}
            with (new / "items.safetensors").open("wb") as file:
                write_tensors(DigestedFile(file), vectors)
            columns = [name for name in ("item_id", "title") if name in contents.items.columns]
            items = contents.items.select(columns).with_row_index("item").with_columns(pl.col("item").cast(pl.Int64))
            (new / "items.parquet").write_bytes(parquet_bytes(items))
            description["files"] = {path.name: sha256_file(path) for path in sorted(new.iterdir())}
            (new / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
            (new / "README.md").write_text(readme(description), encoding="utf-8")
    except OSError as error:
        remedy = "Check the permissions and the free disk space. An earlier export is unchanged."
        raise RunError(f"{out} cannot be written: {error.strerror or error}.", remedy) from error
    sizes = {path.name: path.stat().st_size for path in sorted(out.iterdir())}
    place.publish(DESCRIPTION)
    return {"run": str(run), "out": str(place.path), "model": description["model"], "format": format, "files": sizes}


def _refuse_other_files(folder: Path) -> None:
    """Raise unless the folder is new, empty or an export: it is replaced as a whole."""
    if not folder.exists():
        return
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    if names - _FILES or (names and DESCRIPTION not in names) or not folder.is_dir():
        raise RunError(f"{folder} exists and is not an export.", "Choose another folder, or remove this one.")


def _next_item_model(contents: RunContents) -> SequenceModel:
    """Return the next-item model of a run.

    Raises:
        ConfigError: the model or its solver cannot be exported.
    """
    name, model = contents.config["model"], contents.model
    if not model.ranks_by_vectors:
        raise ConfigError(
            f"{name} cannot be exported from this run: a prior from the item graph is added to its scores.",
            "Train with prior=none.",
        )
    if isinstance(model, Composite):
        model = model.active_model
    if not isinstance(model, SequenceModel):
        raise ConfigError(
            f"{name} cannot be exported: {_reason(model)}.",
            "These can: bert4rec, diffuasr, diffurec, gru4rec, pdrec, s3rec and sasrec.",
        )
    if isinstance(model, DiffuRec) and model.network_passes(Sampling()) > 1 and model.config.solver != "ancestral":
        raise ConfigError(
            f"The solver {model.config.solver} is not exported.",
            "Train with --set solver=ancestral or --set solver=one_step.",
        )
    model.item_embedding.bake()
    return model


def _write(model: SequenceModel, graph: Graph, path: Path) -> None:
    """As `write_graph`.

    Raises:
        ConfigError: torch cannot trace the network of a class from another package.
    """
    try:
        write_graph(graph, path)
    except Exception as error:
        if isinstance(error, OSError) or type(model).__module__.startswith("rediffuse."):
            raise
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConfigError(
            f"{model.name} cannot be exported: {reason}",
            "torch.export must be able to trace its `represent` for any number of users and items.",
        ) from error


def _reason(model: Model) -> str:
    """Say why a model cannot be exported."""
    if isinstance(model, FactorModel):
        return "it ranks from a table of the users it was trained on, not from a history"
    if model.index_vectors() is None:
        return "it does not rank by a vector per item"
    if isinstance(model, DiffRec):
        return "it denoises rows over the whole catalogue, not sequences of items"
    return "its class does not derive from SequenceModel"


def _describe(contents: RunContents, model: SequenceModel, format: Format, graphs: dict[str, Graph]) -> dict[str, Any]:
    """Return the content of export.json."""
    temperature = model.config.temperature
    return {
        "version": VERSION,
        "rediffuse": importlib.metadata.version("rediffuse"),
        "model": contents.config["model"],
        "format": format,
        "config": contents.config["config"],
        "num_items": model.num_items,
        "pad": model.pad,
        "max_length": model.config.max_length,
        "embedding_size": model.config.embedding_size,
        "metric": {"space": "inner product" if temperature is None else "cosine", "temperature": temperature},
        "repeat_bias": None if model.repeat is None else REPEAT_RATE * model.repeat.item(),
        "graphs": {name: {"file": name + _SUFFIXES[format], **graph.signature()} for name, graph in graphs.items()},
        "denoising": _denoising(model) if isinstance(model, DiffuRec) and model.config.diffusion else None,
    }


def _denoising(model: DiffuRec) -> dict[str, Any]:
    """Return the denoising loop as numbers.

    A step holds its timestep ``t``, and the coefficients of x0_hat, of x_t and of a fresh noise draw, whose sum is the
    state of the next step.
    """
    num_steps, diffusion_steps = model.network_passes(Sampling()), model.config.diffusion_steps
    last = {"x0_hat": 1.0, "x_t": 0.0, "noise": 0.0}
    if num_steps == 1:
        steps = [{"t": diffusion_steps - 1, **last}]
        return {"solver": "one_step", "diffusion_steps": diffusion_steps, "steps": steps}
    schedule, timesteps = respace(model.schedule, model.visited_timesteps(num_steps))
    columns = (
        timesteps.tolist(),
        schedule.posterior_mean_coef1.tolist(),
        schedule.posterior_mean_coef2.tolist(),
        (schedule.log_variance(model.config.variance) / 2).exp().tolist(),
    )
    steps = [{"t": t, "x0_hat": c1, "x_t": c2, "noise": sd} for t, c1, c2, sd in zip(*columns, strict=True)]
    steps[0].update(last)  # the solver uses these exactly, without rounding errors
    return {"solver": "ancestral", "diffusion_steps": diffusion_steps, "steps": steps[::-1]}
