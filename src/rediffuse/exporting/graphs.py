"""What is exported of a next-item model: networks without randomness and without loops, and how they are written."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rediffuse.models.baselines.gru4rec import GRU4Rec
from rediffuse.models.diffurec import DiffuRec
from rediffuse.models.sampling import Sampling
from rediffuse.models.sequence import SequenceModel

# What graphs are traced with: sizes that nothing else has, so that none is taken for a constant.
_TRACED = {"B": 3, "L": 7}

Shape = tuple[str | int, ...]  # "B" people, "L" items of the longest history; both may be any number from 1


@dataclass(frozen=True)
class Graph:
    """A network and its inputs and outputs by name, in order: name -> (shape, type)."""

    network: nn.Module
    inputs: dict[str, tuple[Shape, torch.dtype]]
    outputs: dict[str, tuple[Shape, torch.dtype]]

    def examples(self) -> tuple[Tensor, ...]:
        """Tensors to trace with; lengths are 1, all else is 0."""
        made = []
        for name, (shape, kind) in self.inputs.items():
            sizes = [_TRACED[axis] if isinstance(axis, str) else axis for axis in shape]
            made.append(torch.full(sizes, int(name == "lengths"), dtype=kind))
        return tuple(made)

    def facts(self) -> dict[str, Any]:
        """Names, shapes and types as JSON has them."""
        return {
            side: {
                name: {"shape": shape, "dtype": str(kind).removeprefix("torch.")} for name, (shape, kind) in of.items()
            }
            for side, of in (("inputs", self.inputs), ("outputs", self.outputs))
        }


class _Query(nn.Module):
    """A model without noise, up to the vector that items are compared with."""

    def __init__(self, model: SequenceModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, items: Tensor, lengths: Tensor) -> Tensor:
        if isinstance(self.model, GRU4Rec):
            # Exporting unrolls a recurrent network, so it must have a length of its own.
            rest = self.model.config.max_length - items.shape[1]
            items = nn.functional.pad(items, (0, rest), value=self.model.pad)
        return self.model.metric_space(self.model.represent(items, lengths, Sampling()))


class _PrefixHistory(nn.Module):
    def __init__(self, model: DiffuRec) -> None:
        super().__init__()
        self.model = model

    def forward(self, items: Tensor, lengths: Tensor) -> Tensor:
        return self.model.history(items)


class _PrefixStep(nn.Module):
    def __init__(self, model: DiffuRec) -> None:
        super().__init__()
        self.approximator = model.approximator

    def forward(self, z: Tensor, lengths: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return self.approximator(z, lengths, x_t, t, lambda _: noise)


class _CausalHistory(nn.Module):
    def __init__(self, model: DiffuRec) -> None:
        super().__init__()
        self.model = model

    def forward(self, items: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        last, cache = self.model.earlier_tokens(items, self.model.history(items), lengths)
        return last, torch.stack([torch.stack(keys_and_values) for keys_and_values in cache])


class _CausalStep(nn.Module):
    def __init__(self, model: DiffuRec) -> None:
        super().__init__()
        self.approximator = model.approximator

    def forward(self, z: Tensor, cache: Tensor, lengths: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        # The last token's keys and values are written into the cache, and inputs of a graph must stay as they are.
        mine = [(block[0].clone(), block[1].clone()) for block in cache.unbind()]
        return self.approximator.advance(z, lengths, mine, x_t, t, lambda _: noise[:, None])


def graphs_of(model: SequenceModel) -> dict[str, Graph]:
    """The history encoder and, of a model that denoises, one step."""
    whole, real, size = torch.int64, torch.float32, model.config.embedding_size
    vector: tuple[Shape, torch.dtype] = (("B", size), real)
    history: dict[str, tuple[Shape, torch.dtype]] = {"items": (("B", "L"), whole), "lengths": (("B",), whole)}
    if not isinstance(model, DiffuRec) or not model.config.diffusion:
        return {"history": Graph(_Query(model), history, {"query": vector})}
    if model.causal:
        heads, blocks = model.config.heads, model.config.blocks
        keys_and_values: Shape = (blocks, 2, "B", heads, "L", size // heads)
        known = {"z": vector, "cache": (keys_and_values, real)}
        encoder, step = _CausalHistory(model), _CausalStep(model)
    else:
        # Where padding is attended to there is always the same amount of it.
        length = model.config.max_length if model.config.fidelity == "released" else "L"
        known = {"z": (("B", length, size), real)}
        encoder, step = _PrefixHistory(model), _PrefixStep(model)
    asked = {"lengths": history["lengths"], "x_t": vector, "t": (("B",), whole), "noise": known["z"]}
    return {"history": Graph(encoder, history, known), "step": Graph(step, known | asked, {"x0_hat": vector})}


def write_graph(graph: Graph, path: Path) -> None:
    """Trace a network for any number of people and items, and write it as .onnx or .pt2."""
    with torch.no_grad(), _quiet():
        _write(graph, path)


def _write(graph: Graph, path: Path) -> None:
    axes = {axis: torch.export.Dim(axis) for axis in _TRACED}
    dynamic = tuple(
        {place: axes[axis] for place, axis in enumerate(shape) if isinstance(axis, str)}
        for shape, _ in graph.inputs.values()
    )
    program = torch.export.export(graph.network.eval(), graph.examples(), dynamic_shapes=dynamic)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    if path.suffix == ".onnx":
        torch.onnx.export(
            program,
            f=path,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=dynamic,  # for the names of axes
            external_data=False,
            verbose=False,
            dynamo=True,
        )
    else:
        # They would be the one thing in the file that is pickled.
        program.example_inputs = None
        torch.export.save(program, path)


@contextmanager
def _quiet() -> Iterator[None]:
    """torch remarks on its own internals while it exports."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
