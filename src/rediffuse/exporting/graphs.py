"""The graphs of an exported model: networks without random numbers and loops, and how they are written to files."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
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

# Sizes that graphs are traced with. No other dimension has them, so tracing takes no dynamic axis for a constant.
_TRACED = {"B": 3, "L": 7}

# One file of ONNX holds at most 2 GiB; torch writes weights of more than 1.5 GiB beside it in any case.
MAX_IN_GRAPH = 2**30
EXTERNAL = ".data"  # what torch appends to the name of a graph for the file of its weights

Shape = tuple[str | int, ...]  # "B": users; "L": items of the longest history; both are dynamic, from 1


@dataclass(frozen=True)
class Graph:
    """A network, and its inputs and outputs in order: name -> (shape, type)."""

    network: nn.Module
    inputs: dict[str, tuple[Shape, torch.dtype]]
    outputs: dict[str, tuple[Shape, torch.dtype]]

    def examples(self) -> tuple[Tensor, ...]:
        """Make inputs to trace with: lengths are 1, all else is 0."""
        inputs = []
        for name, (shape, dtype) in self.inputs.items():
            sizes = [_TRACED[axis] if isinstance(axis, str) else axis for axis in shape]
            inputs.append(torch.full(sizes, int(name == "lengths"), dtype=dtype))
        return tuple(inputs)

    def signature(self) -> dict[str, Any]:
        """Describe the names, shapes and types of inputs and outputs for JSON."""
        return {
            side: {
                name: {"shape": shape, "dtype": str(dtype).removeprefix("torch.")}
                for name, (shape, dtype) in tensors.items()
            }
            for side, tensors in (("inputs", self.inputs), ("outputs", self.outputs))
        }


class _Query(nn.Module):
    """A model without denoising, up to the query vector."""

    def __init__(self, model: SequenceModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, items: Tensor, lengths: Tensor) -> Tensor:
        if isinstance(self.model, GRU4Rec):
            # Tracing unrolls a recurrent network, so its length must be fixed.
            missing = self.model.config.max_length - items.shape[1]
            items = nn.functional.pad(items, (0, missing), value=self.model.pad)
        return self.model.metric_space(self.model.represent(items, lengths, Sampling()))


class _PrefixHistory(nn.Module):
    def __init__(self, model: DiffuRec) -> None:
        super().__init__()
        self.model = model

    def forward(self, items: Tensor, lengths: Tensor) -> Tensor:
        return self.model.history(items)


class _Step(nn.Module):
    """One step of the chain: x0_hat, with what self-conditioning and guidance read as further inputs."""

    def __init__(self, model: DiffuRec) -> None:
        super().__init__()
        self.model = model

    def further_inputs(self) -> list[str]:
        config = self.model.config
        return ["estimate"] * config.self_conditioning + ["noise_alone"] * (config.guidance > 0)

    def finish(
        self,
        network: Callable[[Tensor | None], Tensor],
        x_t: Tensor,
        t: Tensor,
        further: tuple[Tensor | None, Tensor | None],
    ) -> Tensor:
        given = dict(zip(self.further_inputs(), further, strict=False))
        estimate, alone = given.get("estimate"), given.get("noise_alone")
        return self.model.guided(network(estimate), x_t, t, lambda _: alone[:, None])  # type: ignore[index]


class _PrefixStep(_Step):
    def forward(
        self,
        z: Tensor,
        lengths: Tensor,
        x_t: Tensor,
        t: Tensor,
        noise: Tensor,
        first: Tensor | None = None,
        second: Tensor | None = None,
    ) -> Tensor:
        def network(estimate: Tensor | None) -> Tensor:
            return self.model.approximator(z, lengths, x_t, t, lambda _: noise, estimate)

        return self.finish(network, x_t, t, (first, second))


class _CausalHistory(nn.Module):
    def __init__(self, model: DiffuRec) -> None:
        super().__init__()
        self.model = model

    def forward(self, items: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        last, cache = self.model.earlier_tokens(items, self.model.history(items), lengths)
        return last, torch.stack([torch.stack(keys_and_values) for keys_and_values in cache])


class _CausalStep(_Step):
    def forward(
        self,
        z: Tensor,
        cache: Tensor,
        lengths: Tensor,
        x_t: Tensor,
        t: Tensor,
        noise: Tensor,
        first: Tensor | None = None,
        second: Tensor | None = None,
    ) -> Tensor:
        # `advance` writes the last token's keys and values into the cache, and a graph must not change its inputs.
        copy = [(block[0].clone(), block[1].clone()) for block in cache.unbind()]

        def network(estimate: Tensor | None) -> Tensor:
            return self.model.approximator.advance(z, lengths, copy, x_t, t, lambda _: noise[:, None], estimate)

        return self.finish(network, x_t, t, (first, second))


def graphs_of(model: SequenceModel) -> dict[str, Graph]:
    """Return the graph of the history encoder and, for a model that denoises, of one step."""
    integer, real, size = torch.int64, torch.float32, model.config.embedding_size
    vector: tuple[Shape, torch.dtype] = (("B", size), real)
    history: dict[str, tuple[Shape, torch.dtype]] = {"items": (("B", "L"), integer), "lengths": (("B",), integer)}
    if not isinstance(model, DiffuRec) or not model.config.diffusion:
        return {"history": Graph(_Query(model), history, {"query": vector})}
    if model.causal:
        heads, blocks = model.config.heads, model.config.blocks
        keys_and_values: Shape = (blocks, 2, "B", heads, "L", size // heads)
        encoded = {"z": vector, "cache": (keys_and_values, real)}
        encoder, step = _CausalHistory(model), _CausalStep(model)
    else:
        # If padding is attended to, its amount matters, so windows always have the full length.
        length = model.config.max_length if model.config.fidelity == "released" else "L"
        encoded = {"z": (("B", length, size), real)}
        encoder, step = _PrefixHistory(model), _PrefixStep(model)
    inputs = encoded | {"lengths": history["lengths"], "x_t": vector, "t": (("B",), integer), "noise": encoded["z"]}
    inputs |= dict.fromkeys(step.further_inputs(), vector)
    return {"history": Graph(encoder, history, encoded), "step": Graph(step, inputs, {"x0_hat": vector})}


def write_graph(graph: Graph, path: Path) -> None:
    """Trace a graph with dynamic numbers of users and items, and write it as .onnx or .pt2.

    Large weights of an .onnx are in a file of their own beside it, with the suffix `EXTERNAL`.
    """
    with torch.no_grad(), _quiet():
        _write(graph, path)


def _write(graph: Graph, path: Path) -> None:
    axes = {axis: torch.export.Dim(axis) for axis in _TRACED}
    dynamic = tuple(
        {position: axes[axis] for position, axis in enumerate(shape) if isinstance(axis, str)}
        for shape, _ in graph.inputs.values()
    )
    program = torch.export.export(graph.network.eval(), graph.examples(), dynamic_shapes=dynamic)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # contains paths of this machine
    if path.suffix == ".onnx":
        exported = torch.onnx.export(
            program,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=dynamic,  # names the axes
            verbose=False,
            dynamo=True,
        )
        assert exported is not None
        weights = (value.const_value for value in exported.model.graph.initializers.values())
        size = sum(weight.nbytes for weight in weights if weight is not None)
        exported.save(path, external_data=size > MAX_IN_GRAPH)
    else:
        # Without example inputs, nothing in the file is pickled.
        program.example_inputs = None
        torch.export.save(program, path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch, which logs and warns about its own internals while it exports."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
