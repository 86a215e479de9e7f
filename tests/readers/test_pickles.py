"""Pickles are read as data: nothing that a file names is imported or called, and small files stay small."""

from __future__ import annotations

import collections
import copyreg
import os
import pickle
import pickletools
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from rediffuse.errors import DataError
from rediffuse.readers.research.pickles import SparseMatrix, read_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def written(folder: Path, content: bytes) -> Path:
    path = folder / "data.pkl"
    path.write_bytes(content)
    return path


SHARED = [1, 2]
VALUES: list[Any] = [
    {"train": {0: [1, 2, 3], 1: []}, "val": {0: [4]}, "smap": {5: 6}},
    [None, True, False, 0, -1, 255, 256, -(2**31), 2**63 - 1, 2**64 - 1, 0.5, float("inf"), "é", "", b"\x00\xff"],
    {"a": (1, (2, (3,)), (4, 5, 6, 7), ())},
    {1, 2, "three"},
    [SHARED, SHARED, {"again": SHARED}],
    collections.OrderedDict([("b", 1), ("a", [2])]),
    bytearray(b"abc"),
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_plain_values_come_back(tmp_path: Path, value: Any, protocol: int) -> None:
    assert read_pickle(written(tmp_path, pickle.dumps(value, protocol))) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numbers_of_numpy_and_default_dicts_are_plain(tmp_path: Path, protocol: int) -> None:
    default = collections.defaultdict(
        list, {np.int64(3): [np.int32(1), np.float32(0.5)], np.str_("x"): [np.bool_(True)]}
    )
    found = read_pickle(written(tmp_path, pickle.dumps(default, protocol)))
    assert found == {3: [1, 0.5], "x": [True]}
    assert [type(key) for key in found] == [int, str]
    assert [type(value) for value in found[3]] == [int, float]
    assert type(found) is dict


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "float32", ">f8", "bool", "S3", "U2"])
def test_arrays_come_back(tmp_path: Path, dtype: str, protocol: int) -> None:
    array = np.arange(12).reshape(3, 4).astype(dtype)
    by_columns = np.asfortranarray(array)
    found, other, empty = read_pickle(written(tmp_path, pickle.dumps([array, by_columns, array[:0]], protocol)))
    assert found.dtype == other.dtype == array.dtype
    assert (found == array).all()
    assert (other == array).all()
    assert empty.shape == (0, 4)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("form", ["coo_matrix", "csr_matrix", "csc_matrix", "coo_array", "csr_array", "csc_array"])
def test_sparse_matrices_come_back(tmp_path: Path, form: str, protocol: int) -> None:
    dense = np.array([[0, 2, 0], [0, 0, 0], [1, 0, 3], [0, 4, 0]], dtype=np.float32)
    found = read_pickle(written(tmp_path, pickle.dumps({"m": getattr(sparse, form)(dense)}, protocol)))["m"]
    assert isinstance(found, SparseMatrix)
    again = np.zeros(found.shape)
    again[found.rows, found.columns] = found.values
    assert (again == dense).all()


def test_matrices_of_older_scipy_come_back(tmp_path: Path) -> None:
    """A coo_matrix had the attributes row and col, and its class stood in a module of its own."""
    text = pickle.dumps({"_shape": (2, 3), "row": np.array([1]), "col": np.array([2]), "data": np.array([7.0])}, 2)
    content = b"\x80\x02cscipy.sparse.coo\ncoo_matrix\n)\x81" + text[2:-1] + b"b."
    found = read_pickle(written(tmp_path, content))
    assert (found.rows, found.columns, found.values, found.shape) == ([1], [2], [7.0], (2, 3))


def test_files_of_python_2_come_back(tmp_path: Path) -> None:
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I2\nt"
    array += b"cnumpy\ndtype\n(S'i2'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS'\\x01\\x00\\x02\\x00'\ntb."
    assert read_pickle(written(tmp_path, array)).tolist() == [1, 2]


# --- attacks -----------------------------------------------------------------------------------------------


class Attack:
    """Runs a command when it is unpickled."""

    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> Any:
        return self.reduced


def attacks(mark: Path) -> dict[str, bytes]:
    command = f"touch {mark}"
    system = f"c{os.name}\nsystem\n".encode()
    text = f"V{command}\n".encode()
    return {
        "REDUCE": pickle.dumps(Attack(os.system, (command,)), 0),
        "STACK_GLOBAL": pickle.dumps(Attack(os.system, (command,)), 4),
        "inside data": pickle.dumps({"train": {0: [1, Attack(os.system, (command,))]}}, 4),
        "as a key": pickle.dumps({"train": {0: [1]}, Attack(str, ("x",)): Attack(os.system, (command,))}, 2),
        "subprocess": pickle.dumps(Attack(subprocess.call, (["touch", str(mark)],)), 4),
        "eval": pickle.dumps(Attack(eval, (f"open({str(mark)!r}, 'w')",)), 2),
        "exec": pickle.dumps(Attack(exec, (f"open({str(mark)!r}, 'w')",)), 5),
        "getattr": b"cbuiltins\ngetattr\n(cos\nVsystem\ntR.",
        "import": b"cbuiltins\n__import__\n(Vos\ntR.",
        "a dotted name": b"\x80\x04\x8c\x05numpy\x8c\x14os.system.__call__xx\x93.",
        "dotted numpy": b"\x80\x04\x8c\x05numpy\x8c\x0ef2py.os.system\x93" + text + b"\x85R.",
        "scipy by another name": b"cscipy.sparse\nos.system\n(" + text + b"tR.",
        "INST": b"(" + text + b"ios\nsystem\n.",
        "OBJ": b"(" + system + text + b"o.",
        "NEWOBJ": b"\x80\x02" + system + text + b"\x85\x81.",
        "NEWOBJ_EX": b"\x80\x04" + system + text + b"\x85}\x92.",
        "EXT1": b"\x80\x02\x82\xf0(" + text + b"tR.",
        "EXT2": b"\x80\x02\x83\xf0\x00(" + text + b"tR.",
        "EXT4": b"\x80\x02\x84\xf0\x00\x00\x00(" + text + b"tR.",
        "PERSID": b"Psomething\n.",
        "BINPERSID": b"\x80\x02Vsomething\nQ.",
        "BUILD of a class": b"ccollections\nOrderedDict\n)R}(V__setstate__\n" + system + b"ub" + text + b"b.",
        "numpy's load": pickle.dumps(Attack(np.load, ("x.npy", None, True)), 4),
        "objects in an array": pickle.dumps(np.array([Attack(os.system, (command,))], dtype=object), 4),
        "a structured array": pickle.dumps(np.zeros(2, dtype=[("a", "i4"), ("b", "O")]), 4),
        "out-of-band buffers": b"\x80\x05\x97.",
        "copyreg": b"ccopyreg\n_reconstructor\n(cos\nsystem\ncbuiltins\nobject\nNtR.",
    }


@pytest.mark.parametrize("name", attacks(Path("mark")))
def test_nothing_in_a_pickle_is_run(tmp_path: Path, name: str) -> None:
    copyreg.add_extension("os", "system", 0xF0)
    mark, before = tmp_path / "mark", set(sys.modules)
    try:
        with pytest.raises(DataError) as caught:
            read_pickle(written(tmp_path, attacks(mark)[name]))
    finally:
        copyreg.remove_extension("os", "system", 0xF0)
    assert not mark.exists()
    assert {name for name in set(sys.modules) - before if not name.startswith("encodings.")} == set()
    assert str(tmp_path / "data.pkl") in caught.value.problem
    assert caught.value.remedy


def test_the_attacks_would_work(tmp_path: Path) -> None:
    """The same bytes do run a command when they are unpickled, so the test above can fail."""
    mark = tmp_path / "mark"
    for name in ("REDUCE", "STACK_GLOBAL", "inside data", "INST", "OBJ"):
        pickle.loads(attacks(mark)[name])
        assert mark.exists(), name
        mark.unlink()


def test_what_is_refused_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"names '(posix|nt)\.system', which is no data"):
        read_pickle(written(tmp_path, pickle.dumps(Attack(os.system, ("x",)), 4)))
    with pytest.raises(DataError, match="uses the instruction PERSID"):
        read_pickle(written(tmp_path, b"Pname\n."))


def bombs() -> dict[str, bytes]:
    tuples = b"\x80\x02)q\x00"
    for level in range(1, 100):
        tuples += (b"h" + bytes([level - 1])) * 3 + b"\x87q" + bytes([level])
    big = pickle.dumps("x" * 200_000, 2)[:-1]  # BINUNICODE, BINPUT 0
    call = b"c_codecs\nencode\n" + b"h\x00V" + b"latin1\n\x86R"
    kind = b"cnumpy\ndtype\n(V<U250000\nI00\nI01\ntRq\x00"
    content = b"B" + (1_000_000).to_bytes(4, "little") + b"x\0\0\0" * 250_000 + b"q\x01"
    scalar = b"cnumpy.core.multiarray\nscalar\n"
    text_of_numpy = b"\x80\x03" + kind + content + (scalar + b"(h\x00h\x01tR0") * 2_000 + b"."
    members = b"\x80\x02](" + b"".join(b"J" + n.to_bytes(4, "little") for n in range(50_000)) + b"eq\x00"
    row = pickle.dumps(np.array([0, 2**60]), 2)[2:-1]
    one = pickle.dumps(np.array([0]), 2)[2:-1]
    state = b"}(V_shape\nK\x01K\x01\x86Vindptr\n" + row + b"Vindices\n" + one + b"Vdata\n" + one + b"u"
    return {
        "keys that are nested tuples": tuples + b"}h\x63Ns.",
        "sets of nested tuples": tuples + b"cbuiltins\nset\n(](h\x63etR.",
        "a deep tuple as a key": b"\x80\x02})" + b"\x85" * 200_000 + b"Ns.",
        "the same text encoded again and again": big + call * 2_000 + b".",
        "the same members again and again": members + (b"cbuiltins\nset\n(h\x00tR0") * 2_000 + b"N.",
        "the characters of the same text": big + (b"cbuiltins\nset\n(h\x00tR0") * 2_000 + b".",
        "the same text as a value of numpy": text_of_numpy,
        "a shape without content": pickle.dumps(np.zeros(4), 2).replace(b"K\x04\x85", b"J\xff\xff\xff\x7f\x85"),
        "row pointers beyond the entries": b"\x80\x02cscipy.sparse._csr\ncsr_matrix\n)\x81" + state + b"b.",
        "a length beyond the file": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
        "an integer of a million digits": b"\x80\x02\x8b\x40\x42\x0f\x00" + b"\x11" * 1_000_000 + b".",
        "digits": b"I" + b"9" * 1_000_000 + b"\n.",
        "a memo that was never made": b"\x80\x02h\x07.",
        "an empty stack": b"\x80\x02.",
        "two values": b"NN.",
        "an odd number of pairs": b"}(K\x01u.",
        "a mark without an end": b"(N.",
        "no end": b"\x80\x02]",
        "nothing": b"",
        "text": b"user_id,item_id\n1,2\n",
        "gzip": b"\x1f\x8b\x08\x00" + bytes(20),
    }


@pytest.mark.parametrize("name", bombs())
def test_bombs_and_rubbish_end_at_once(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, bombs()[name])
    start = time.process_time()
    with pytest.raises(DataError):
        read_pickle(path)
    assert time.process_time() - start < 5


def test_nested_references_cost_nothing(tmp_path: Path) -> None:
    content = b"\x80\x02]q\x00"
    for level in range(1, 100):  # a list of ten references to the one before
        content += b"](" + (b"h" + bytes([level - 1])) * 10 + b"eq" + bytes([level])
    found = read_pickle(written(tmp_path, content + b"0" * 100 + b"h\x63."))
    assert [len(part) for part in found] == [10] * 10  # and 10^99 entries below


def test_a_list_in_itself_ends(tmp_path: Path) -> None:
    found = read_pickle(written(tmp_path, b"]q\x00h\x00a."))
    assert found[0] is found


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    """Whatever the bytes are, the outcome is a value or our error."""
    rng = random.Random(0)
    matrix = sparse.random(5, 6, density=0.4, format="csr", random_state=0)
    originals = [
        pickle.dumps({"train": {0: [1, 2, 300]}, "m": matrix, "s": np.int64(3), "d": np.arange(5)}, protocol)
        for protocol in PROTOCOLS
    ]
    known = [code.code.encode("latin-1") for code in pickletools.opcodes]
    refused = 0
    for trial in range(1000):
        content = bytearray(originals[trial % len(originals)])
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(content))
            action = rng.randrange(4)
            if action == 0:
                content[at] = rng.randrange(256)
            elif action == 1:
                content[at : at + 1] = rng.choice(known)
            elif action == 2:
                del content[at : at + rng.randint(1, 8)]
            else:
                content[at:at] = content[rng.randrange(len(content)) :][: rng.randint(1, 30)]
        try:
            read_pickle(written(tmp_path, bytes(content)))
        except DataError:
            refused += 1
    assert refused > 300


def test_a_folder_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.pkl"):
        with pytest.raises(DataError, match="is not a file"):
            read_pickle(path)
