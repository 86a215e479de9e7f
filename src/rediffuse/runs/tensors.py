"""Tensors in a safetensors file, replaced atomically, with a checksum of the file. Nothing is pickled.

The format: https://huggingface.co/docs/safetensors. Files are written tensor by tensor and block by block, and tensors
that are read are mapped, not held, so neither takes memory that grows with the tensors.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from rediffuse.errors import RunError
from rediffuse.files import DigestedFile, atomic_write_stream

_BLOCK = 1 << 20  # bytes that are fetched, hashed and written at a time
_LENGTH = struct.Struct("<Q")  # of the header, before it
# A file of `save_tensors` begins so. Its checksum follows, which is that of the file with zeros in the place of it.
_SEALED = b'{"__metadata__":{"sha256":"'
_NO_CHECKSUM = "0" * 64
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def save_tensors(path: Path, tensors: Mapping[str, Tensor], note: dict[str, Any]) -> None:
    """Write tensors and a JSON-able note to ``path``, replacing it atomically.

    Raises:
        StorageError: the file cannot be written.
    """

    def write(file: BinaryIO) -> None:
        digested = DigestedFile(file)
        write_tensors(digested, tensors, {"sha256": _NO_CHECKSUM, "note": json.dumps(note)})
        file.seek(_LENGTH.size + len(_SEALED))
        file.write(digested.sha256.encode())

    atomic_write_stream(path, write)


def write_tensors(file: DigestedFile, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors on any device in the safetensors format, without a copy of any.

    Raises:
        KeyError: the format has no such dtype.
    """
    # Wide dtypes first, so that each tensor lies where it can be mapped; the format allows no holes.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name in names:
        tensor, start = tensors[name], end
        end += tensor.numel() * tensor.dtype.itemsize
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(_LENGTH.pack(len(text)) + text)
    for name in names:
        for block in _blocks(tensors[name].detach()):
            file.write(block)


def _blocks(tensor: Tensor) -> Iterator[memoryview]:
    """The content of a tensor. What is not contiguous is copied a few rows at a time."""
    if tensor.is_contiguous():
        for block in tensor.reshape(-1).view(torch.uint8).split(_BLOCK):
            yield block.cpu().numpy().data
    else:
        for rows in tensor.split(max(1, _BLOCK * len(tensor) // (tensor.numel() * tensor.dtype.itemsize))):
            yield from _blocks(rows.contiguous())


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the note that `save_tensors` wrote, and verify the checksum.

    The tensors are mapped: they take no memory until they are changed, so copy what is to stay.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        # The weights of a run have no checksum in the file: the manifest has it.
        matches = "sha256" not in metadata or metadata["sha256"] == _sha256(path)
        if metadata.keys() - {"note", "sha256"} or not matches:
            raise ValueError("its checksum differs")
        return tensors, json.loads(metadata.get("note", "{}"))
    except FileNotFoundError:
        raise RunError(f"{path} is missing.", "Train again, or restore the file from a copy.") from None
    except (SafetensorError, ValueError) as error:
        raise RunError(f"{path} is damaged ({error}).", "Train again, or restore it from a copy.") from None


def _sha256(path: Path) -> str:
    """The checksum of a file, as `save_tensors` defines it."""
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(_LENGTH.size + len(_SEALED)))
        file.read(len(_NO_CHECKSUM))
        digest.update(_NO_CHECKSUM.encode())
        block = memoryview(bytearray(_BLOCK))
        while size := file.readinto(block):
            digest.update(block[:size])
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
