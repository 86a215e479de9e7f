"""Tensors in a safetensors file, replaced atomically, with a checksum of the content. Nothing is pickled."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from rediffuse.errors import RunError
from rediffuse.files import atomic_write_bytes


def save_tensors(path: Path, tensors: dict[str, Tensor], note: dict[str, Any]) -> None:
    """Write tensors and a JSON-able note to ``path``, replacing it atomically.

    Raises:
        StorageError: the file cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(note)
    atomic_write_bytes(path, save(plain, metadata={"note": text, "sha256": _digest(plain, text)}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the note that `save_tensors` wrote.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        text = metadata.get("note", "{}")
        # The weights of a run have no checksum in the file: the manifest has it. Earlier checkpoints had none either.
        matches = "sha256" not in metadata or metadata["sha256"] == _digest(tensors, text)
        if metadata.keys() - {"note", "sha256"} or not matches:
            raise ValueError("its checksum differs")
        return tensors, json.loads(text)
    except FileNotFoundError:
        raise RunError(f"{path} is missing.", "Train again, or restore the file from a copy.") from None
    except (SafetensorError, ValueError) as error:
        raise RunError(f"{path} is damaged ({error}).", "Train again, or restore it from a copy.") from None


def _digest(tensors: dict[str, Tensor], note: str) -> str:
    """sha256 over the note, and the name, type, shape and content of each tensor."""
    digest = hashlib.sha256(note.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_weights(path: Path, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load a complete set of weights into a model; ``path`` is only named in the error.

    Raises:
        RunError: names or shapes are not those of the model.
    """
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise RunError(
            f"{path} does not fit the model: {error}",
            "Restore it and config.json from a copy: they belong to different models.",
        ) from None
