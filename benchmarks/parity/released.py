"""What the comparisons with released programs share: importing a program, running it on a CPU, and differences."""

from __future__ import annotations

import argparse
import contextlib
import importlib.machinery
import importlib.util
import io
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

# Largest relative difference that counts as agreement in single precision.
TOLERANCE = 1e-4


def add_folder(doc: str | None, holds: str) -> Path:
    """The folder of ``--released``, from which modules can be imported afterwards; ``holds`` says what it holds."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--released", type=Path, required=True, help=f"folder with the released {holds}")
    folder = parser.parse_args().released.resolve()
    sys.path.insert(0, str(folder))
    sys.argv = sys.argv[:1]  # some programs parse the command line when they are imported
    return folder


def load(name: str, **absent: ModuleType) -> Any:
    """Import a released module. ``absent`` stands in for modules that it imports and that are not installed."""
    for other, stand_in in absent.items():
        if importlib.util.find_spec(other) is None:
            sys.modules[other] = stand_in
    return importlib.import_module(name)


def module(name: str, **content: Any) -> ModuleType:
    """A module with this content, to stand in for one that is not installed."""
    made = ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None)  # torch looks for it
    vars(made).update(content)
    return made


@contextmanager
def replaced(owner: Any, **attributes: Any) -> Iterator[None]:
    """Other attributes for a while: the same draws for two programs, say."""
    before = {name: getattr(owner, name) for name in attributes}
    try:
        for name, attribute in attributes.items():
            setattr(owner, name, attribute)
        yield
    finally:
        for name, attribute in before.items():
            setattr(owner, name, attribute)


@contextmanager
def quietly() -> Iterator[None]:
    """Without what a program prints and warns of."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def stay_on_cpu() -> None:
    """Let ``.cuda()`` return what it is called on."""
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    torch.nn.Module.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]


def copy(theirs: Tensor, ours: Tensor) -> None:
    """Give a released weight the values of ours."""
    with torch.no_grad():
        theirs.copy_(ours.reshape(theirs.shape))


def gap(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest number of the released result."""
    ours, theirs = ours.detach().double(), theirs.detach().double()
    if ours.shape != theirs.shape:
        raise SystemExit(f"Shapes differ: {tuple(ours.shape)} here, {tuple(theirs.shape)} in the released program.")
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-12))


def gradient_gap(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> float:
    """As `gap`, of the gradients of several weights. Gradients that are small beside the others are mostly rounding."""
    pairs = [(a.double().reshape(b.shape), b.double()) for a, b in zip(ours, theirs, strict=True)]
    least = 1e-2 * max(float(b.abs().max()) for _, b in pairs)
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(least)) for a, b in pairs)


def finish(found: Mapping[str, float]) -> None:
    """Print the differences; end with an error if one is above `TOLERANCE`."""
    for name, difference in found.items():
        print(f"{name:<48} {difference:.1e}")
    worst = max(found.values())
    if not worst <= TOLERANCE:
        raise SystemExit(f"The largest difference is {worst:.1e}, above {TOLERANCE:g}.")
