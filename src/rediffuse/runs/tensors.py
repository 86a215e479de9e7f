"""Tensors in one safetensors file, replaced atomically, with a digest of its content; nothing is pickled."""

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
    """Replace ``path`` by these tensors and a JSON-able note."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(note)
    atomic_write_bytes(path, save(plain, metadata={"note": text, "sha256": _digest(plain, text)}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_tensors` wrote.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        text = facts.get("note", "{}")
        # The weights of a run have no digest in here, its manifest has it; nor had earlier checkpoints any.
        if facts.keys() - {"note", "sha256"} or ("sha256" in facts and facts["sha256"] != _digest(tensors, text)):
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
    """Load a complete set of weights.

    Raises:
        RunError: names or shapes are not those of the model.
    """
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise RunError(f"{path} does not fit the model: {error}", "Its config.json belongs to another model.") from None
