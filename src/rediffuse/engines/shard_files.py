"""Tensors whose rows are divided among processes, in a folder: `torch.distributed.checkpoint`, as safetensors files.

Each process writes a file of its own rows, block by block. The sha256 of all files is written last. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor
from torch.futures import Future

from rediffuse import distributed
from rediffuse.errors import RunError
from rediffuse.files import DigestedFile, atomic_write_text, sha256_file, writing
from rediffuse.runs.tensors import write_tensors

_SUMS = "sha256.json"
_BLOCK = 1 << 24  # bytes that are joined at once


def save_shards(folder: Path, tensors: Mapping[str, DTensor], group: Any) -> None:
    """Write tensors into a new folder, which all processes share. Collective.

    Raises:
        StorageError: it cannot be written.
    """
    distributed.main_process_first(lambda: shutil.rmtree(folder, ignore_errors=True))
    writer = _Writer(str(folder), save_distributed=True)
    with writing(folder):
        try:
            save(dict(tensors), storage_writer=writer, process_group=group)
        except CheckpointException as error:
            raise next(iter(error.failures.values()))[0] from error
    own = torch.frombuffer(bytearray.fromhex(writer.sha256), dtype=torch.uint8)
    sums = {_name(rank): bytes(found.tolist()).hex() for rank, found in enumerate(distributed.all_gather(own))}
    distributed.main_process_first(lambda: atomic_write_text(folder / _SUMS, json.dumps(sums)))


def load_shards(folder: Path, tensors: Mapping[str, DTensor], group: Any) -> None:
    """Read what `save_shards` wrote into tensors, by any number of processes. Collective.

    Raises:
        RunError: a file is missing or damaged.
    """
    sums = json.loads((folder / _SUMS).read_text(encoding="utf-8")) if (folder / _SUMS).exists() else {}
    mine = list(sums.items())[dist.get_rank() :: dist.get_world_size()]
    intact = all((folder / name).is_file() and sha256_file(folder / name) == digest for name, digest in mine)
    if distributed.any_rank(not (sums and intact)):
        raise RunError(f"A file in {folder} is missing or damaged.", "Train again, or restore it from a copy.")
    load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)), process_group=group)


def joined(folder: Path, name: str, path: Path) -> Tensor:
    """A float32 matrix of a folder that `save_shards` wrote, mapped from the file ``path``, which is removed.

    It is copied in blocks, and the system may drop mapped pages: the tensor need not fit into memory.
    """
    count, width = 0, 1
    with writing(path):
        with path.open("wb") as file:
            for part in sorted(folder.glob("*.safetensors")):
                with safe_open(part, framework="np") as tensors:
                    rows = tensors.get_slice(name)
                    length, width = rows.get_shape()
                    step = max(1, _BLOCK // (4 * width))
                    for start in range(0, length, step):
                        file.write(rows[start : min(start + step, length)].data)
                    count += length
        mapped = torch.from_file(str(path), shared=False, size=count * width, dtype=torch.float32)
        path.unlink()
    return mapped.view(count, width)


def _name(rank: int) -> str:
    return f"part-{rank:05}.safetensors"


class _Writer(HuggingFaceStorageWriter):
    """Writes block by block, where its base holds a second copy of all tensors; the format is the same."""

    sha256: str

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        name, items = _name(dist.get_rank()), plan.items
        tensors: dict[str, Any] = {item.index.fqn: planner.resolve_data(item) for item in items}
        where = {item.index.fqn: {"saved_offsets": _offsets(item)} for item in items}
        with (Path(self.path) / name).open("wb") as file:
            digested = DigestedFile(file)
            write_tensors(digested, tensors, {"DCP_SHARDING_INFO": json.dumps(where)})
            file.flush()
            os.fsync(file.fileno())
        self.sha256 = digested.sha256
        done: Future[list[WriteResult]] = Future()
        done.set_result([WriteResult(item.index, tensors[item.index.fqn].nbytes, name) for item in items])
        return done


def _offsets(item: WriteItem) -> list[int]:
    assert item.tensor_data is not None
    return list(item.tensor_data.chunk.offsets)
