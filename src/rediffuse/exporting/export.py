"""A trained next-item model as files that answer without Rediffuse: graphs, item vectors, and what to do with them.

The graphs have no randomness and no loop: noise is an input, and the loop of denoising is a list of numbers in
export.json. The README.md that is written beside them (`rediffuse.exporting.readme`) says how to answer.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from pathlib import Path
from typing import Any, Literal, get_args

import polars as pl
from safetensors.torch import save

from rediffuse.diffusion import space_timesteps
from rediffuse.diffusion.respace import respace
from rediffuse.errors import ConfigError, MissingExtraError, RunError, did_you_mean
from rediffuse.exporting.graphs import Graph, graphs_of, write_graph
from rediffuse.exporting.readme import readme
from rediffuse.files import atomic_folder
from rediffuse.models.base import Model
from rediffuse.models.composite import Composite
from rediffuse.models.diffrec import DiffRec
from rediffuse.models.diffurec import DiffuRec
from rediffuse.models.factors import FactorModel
from rediffuse.models.sampling import Sampling
from rediffuse.models.sequence import REPEAT_RATE, SequenceModel
from rediffuse.runs.run_folder import RunContents, read_run

Format = Literal["onnx", "torch-export"]
VERSION = 1
ABOUT = "export.json"
_ENDINGS = {"onnx": ".onnx", "torch-export": ".pt2"}
_FILES = {ABOUT, "README.md", "items.safetensors", "items.parquet"} | {
    graph + ending for graph in ("history", "step") for ending in _ENDINGS.values()
}
# One ONNX file holds at most 2 GiB; the item table is nearly all of it.
_LARGEST_ONNX = 2**31 - 2**24


def export(run: str | Path, out: str | Path, format: Format = "onnx") -> dict[str, Any]:
    """Write a run's graphs, item vectors and instructions to a folder.

    Args:
        run: a finished run of a next-item model.
        out: a folder: new, empty, or with an earlier export, which is replaced as a whole.
        format: ``onnx``, or ``torch-export`` for `torch.export.load`.

    Returns:
        run, out, model, format, and the bytes of each file.

    Raises:
        ConfigError: an unknown format, a model that answers in another way, a solver that is not exported, or an item
            table too large for ONNX.
        MissingExtraError: what writes ONNX is not installed.
        RunError: ``run`` is no finished run, or ``out`` holds something else.
    """
    run, out = Path(run), Path(out)
    if format not in get_args(Format):
        raise ConfigError(f"There is no format {format!r}.", did_you_mean(str(format), get_args(Format)))
    for package in ("onnx", "onnxscript") if format == "onnx" else ():
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "export")
    _refuse_foreign(out)
    contents = read_run(run)
    model = _next_item_model(contents)
    if format == "onnx" and model.item_embedding.weight.nbytes > _LARGEST_ONNX:
        raise ConfigError("The item table does not fit into an ONNX file of 2 GiB.", "Take --format torch-export.")
    graphs = graphs_of(model)
    about = _about(contents, model, format, graphs)
    try:
        with atomic_folder(out) as new:
            for name, graph in graphs.items():
                _write(model, graph, new / (name + _ENDINGS[format]))
            vectors = {"vectors": model.index_vectors().detach(), "popularity": contents.model.popularity}
            # safetensors's own files can be read by their owner alone.
            content = save({name: tensor.contiguous().clone() for name, tensor in vectors.items()})
            (new / "items.safetensors").write_bytes(content)
            shown = [name for name in ("item_id", "title") if name in contents.items.columns]
            numbered = contents.items.select(shown).with_row_index("item").with_columns(pl.col("item").cast(pl.Int64))
            numbered.write_parquet(new / "items.parquet", compression="zstd")
            (new / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
            (new / "README.md").write_text(readme(about), encoding="utf-8")
    except OSError as error:
        remedy = "Check the permissions and the space on the disk. What was there before is untouched."
        raise RunError(f"{out} cannot be written: {error.strerror or error}.", remedy) from error
    sizes = {path.name: path.stat().st_size for path in sorted(out.iterdir())}
    return {"run": str(run), "out": str(out), "model": about["model"], "format": format, "files": sizes}


def _refuse_foreign(folder: Path) -> None:
    """The folder is replaced as a whole, so it must hold an export and nothing else."""
    if not folder.exists():
        return
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    if names - _FILES or (names and ABOUT not in names) or not folder.is_dir():
        raise RunError(f"{folder} exists and is not an export.", "Choose another folder, or remove it yourself.")


def _next_item_model(contents: RunContents) -> SequenceModel:
    """The network that answers.

    Raises:
        ConfigError: there is none that could be exported, or its solver could not.
    """
    name, model = contents.config["model"], contents.model
    if isinstance(model, Composite):
        model = model.active_model
    if not isinstance(model, SequenceModel):
        raise ConfigError(
            f"{name} cannot be exported: {_why_not(model)}.",
            "Those that can: bert4rec, diffuasr, diffurec, gru4rec, pdrec, s3rec and sasrec.",
        )
    if isinstance(model, DiffuRec) and model.network_passes(Sampling()) > 1 and model.config.solver != "ancestral":
        raise ConfigError(
            f"The solver {model.config.solver} is not exported.",
            "Train with --set solver=ancestral, or with solver=one_step.",
        )
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


def _why_not(model: Model) -> str:
    if isinstance(model, FactorModel):
        return "it answers from a table of the people it was trained on, and no network reads a history"
    if model.index_vectors() is None:
        return "it does not rank by a vector per item"
    if isinstance(model, DiffRec):
        return "it reads and denoises rows over the whole catalogue, and no sequence of items"
    return "its class does not derive from SequenceModel"


def _about(contents: RunContents, model: SequenceModel, format: Format, graphs: dict[str, Graph]) -> dict[str, Any]:
    """The content of export.json."""
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
        "graphs": {name: {"file": name + _ENDINGS[format], **graph.facts()} for name, graph in graphs.items()},
        "denoising": _denoising(model) if isinstance(model, DiffuRec) and model.config.diffusion else None,
    }


def _denoising(model: DiffuRec) -> dict[str, Any]:
    """The loop as numbers: after each step, x = x0 * x0_hat + x_t * x + noise * (a fresh draw)."""
    steps, config = model.network_passes(Sampling()), model.config
    end = {"x0": 1.0, "x_t": 0.0, "noise": 0.0}
    if steps == 1:
        return {
            "solver": "one_step",
            "timesteps": config.diffusion_steps,
            "steps": [{"t": config.diffusion_steps - 1, **end}],
        }
    short, numbers = respace(model.schedule, space_timesteps(config.diffusion_steps, str(steps)))
    columns = (
        numbers.tolist(),
        short.posterior_mean_coef1.tolist(),
        short.posterior_mean_coef2.tolist(),
        (short.log_variance(config.variance) / 2).exp().tolist(),
    )
    rows = [{"t": t, "x0": c1, "x_t": c2, "noise": deviation} for t, c1, c2, deviation in zip(*columns, strict=True)]
    rows[0].update(end)  # as the solver has it, without rounding
    return {"solver": "ancestral", "timesteps": config.diffusion_steps, "steps": rows[::-1]}
