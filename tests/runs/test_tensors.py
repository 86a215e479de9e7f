"""Files of tensors: the official library reads them, damage is found, and writing and reading take little memory."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.common import anonymous_growth
from rediffuse.errors import RunError, StorageError
from rediffuse.files import DigestedFile, is_leftover, sha256_file, staged_files
from rediffuse.runs import tensors as module
from rediffuse.runs.tensors import load_tensors, save_tensors, write_tensors
from rediffuse.training.averaging import Averaging
from rediffuse.training.checkpoint import load_training, restore_optimizer, save_training
from rediffuse.training.optimizer import Optimizer

NOTE = {"epoch": 3, "text": 'quoted "sha256":"x" and ü'}


@pytest.fixture
def kinds():
    """Tensors of every dtype and of every kind of layout."""
    torch.manual_seed(0)
    base = torch.randn(7, 11)
    dtypes = {f"dtype.{dtype}": (base * 9).to(dtype) for dtype in module._DTYPES}
    layouts = {
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 4),
        "transposed": base.T,
        "strided": base[::2, 1:9:3],
        "expanded": torch.tensor([[1.0], [2.0]]).expand(2, 5),
        "reversed rows": base.flip(0)[1:],
        "parameter": nn.Parameter(base),
        "sha256": torch.arange(3),
    }
    return dtypes | layouts


@pytest.mark.parametrize("block", [16, 1 << 20])
def test_the_official_library_reads_what_is_written(tmp_path, kinds, monkeypatch, block):
    monkeypatch.setattr(module, "_BLOCK", block)
    path = tmp_path / "t.safetensors"
    save_tensors(path, kinds, NOTE)
    theirs, (ours, note) = load_file(path), load_tensors(path)
    assert note == NOTE
    assert theirs.keys() == ours.keys() == kinds.keys()
    for name, tensor in kinds.items():
        for found in (theirs[name], ours[name]):
            assert found.dtype == tensor.dtype, name
            assert torch.equal(found, tensor), name
    assert [p.name for p in tmp_path.iterdir()] == ["t.safetensors"]


def test_tensors_lie_where_they_can_be_mapped(tmp_path, kinds):
    save_tensors(tmp_path / "t", kinds, {})
    content = (tmp_path / "t").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    for name, entry in json.loads(content[8 : 8 + length]).items():
        if name != "__metadata__":
            assert (8 + length + entry["data_offsets"][0]) % kinds[name].dtype.itemsize == 0


def test_every_flipped_bit_and_every_cut_is_found(tmp_path):
    path = tmp_path / "t"
    save_tensors(path, {"a": torch.arange(5), "b": torch.ones(3)}, {"epoch": 1})
    content = path.read_bytes()
    for at in range(len(content)):
        for bit in (0, 3, 7):
            path.write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
            with pytest.raises(RunError, match="is damaged"):
                load_tensors(path)
        path.write_bytes(content[:at])
        with pytest.raises(RunError, match="is damaged"):
            load_tensors(path)
    path.write_bytes(content)
    load_tensors(path)


def test_a_file_without_a_checksum_of_its_own_is_read(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "t")
    assert load_tensors(tmp_path / "t")[0]["a"].tolist() == [1, 1]


def test_staged_streams_have_the_digest_of_their_file(tmp_path, kinds):
    def stream(file: DigestedFile) -> None:
        write_tensors(file, kinds, {"note": "{}"})

    with staged_files(tmp_path, {"weights": stream, "text": b"abc"}) as staged:
        assert not (tmp_path / "weights").exists()
        for name in staged.digests:
            staged.put(name)
    assert staged.digests == {name: sha256_file(tmp_path / name) for name in ("weights", "text")}
    with safe_open(tmp_path / "weights", framework="pt") as file:
        assert file.metadata() == {"note": "{}"}


def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path, monkeypatch):
    path, write = tmp_path / "t", DigestedFile.write
    save_tensors(path, {"a": torch.zeros(4)}, {})

    def full(file: DigestedFile, content: bytes) -> None:
        if len(content) == 16:
            raise OSError(28, "No space left on device")
        write(file, content)

    monkeypatch.setattr(DigestedFile, "write", full)
    with pytest.raises(StorageError, match="No space left"):
        save_tensors(path, {"a": torch.ones(4)}, {})
    assert load_tensors(path)[0]["a"].tolist() == [0, 0, 0, 0]
    assert not [p for p in tmp_path.iterdir() if is_leftover(p)]


class Table(nn.Module):
    """64 MiB of weights, contiguous and not, with 64 MiB of state and 32 MiB of average."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.ones(1 << 16, 128))
        self.columns = nn.Parameter(torch.ones(128, 1 << 16).T)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says how much memory is anonymous")
def test_writing_and_reading_take_a_tenth_of_the_state_at_most(tmp_path):
    path, model, again = tmp_path / "last", Table(), Table()
    optimizer, fresh = (Optimizer([{"params": [m.rows]}], 0.01, 0.0) for m in (model, again))
    model.rows.grad = torch.ones_like(model.rows)
    optimizer.step()
    averaging = Averaging(model, 0.9)
    averaging.update()
    save_tensors(path, {"small": torch.ones(1)}, {})  # what a first call loads
    load_tensors(path)
    written = anonymous_growth(lambda: save_training(path, model, optimizer, {}, averaging.state()))
    size = path.stat().st_size / 2**20
    assert size > 180
    assert written < 0.1 * size
    saved = []
    assert anonymous_growth(lambda: saved.append(load_training(path, again))) < 0.1 * size
    state = 2 * 32
    assert anonymous_growth(lambda: restore_optimizer(fresh, saved[0].optimizer)) < state + 0.1 * size
    for name, value in optimizer.state[model.rows].items():
        assert torch.equal(fresh.state[again.rows][name], value)
    assert torch.equal(again.rows, model.rows)


def test_the_average_changes_places_with_the_weights():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    averaging = Averaging(model, 0.5)
    averaging.update()
    first = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1)
    averaging.update()
    own = model.weight.detach().clone()
    with averaging.applied():
        assert torch.equal(model.weight, first.lerp(own, 0.5))
    assert torch.equal(model.weight, own)
    averaging.apply()
    assert torch.equal(model.weight, first.lerp(own, 0.5))
