"""An approximate index of item vectors, for catalogues so large that scoring all items takes too long.

Two kinds, both of faiss and both by inner product:

- ``hnsw``: a graph of neighbours that a search walks through (Malkov & Yashunin, TPAMI 2018). Slow to build.
- ``ivf``: items in clusters, of which a search reads the nearest; in large catalogues by codes of 4 bits a number
  (product quantisation, Jégou et al., TPAMI 2011; André et al., VLDB 2015), the best of which are scored exactly.

Among a million random vectors of 64 numbers, ivf finds .99 of the best hundred in a quarter of the time of exact search
and is built in seconds; hnsw finds .948 in two thirds of it, and is built in minutes (benchmarks/ann.py). Build one
with `rediffuse.recommender.index_building.build_index`.
"""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rediffuse.errors import MissingExtraError, RunError
from rediffuse.runs.run_folder import MANIFEST

Kind = Literal["hnsw", "ivf"]

VECTORS_FILE, FACTS_FILE = "index.faiss", "index.json"

# A search for fewer items than this looks as far as one for so many: recall measured here holds for shorter lists too.
DEPTH = 100

# Links per item, and how many candidates are looked at to choose them. More of either makes a better graph and a
# longer build.
_LINKS, _BUILD_EFFORT = 32, 80

# Below this many items, codes save nothing that could be felt, and there are too few items to learn them from.
_CODED_FROM = 10_000

# Items scored exactly per item wanted. Codes of 4 bits a number rank a million random vectors such that 2 catch .94 of
# the best hundred and 4 catch .99; what training makes is less even, and 8 cost a tenth of a millisecond more.
_SHORTLIST = 8


class ItemIndex:
    """Finds the items with the largest inner products. Make one with `build` or `from_bytes`.

    Searches change nothing, so threads may share an index as long as nobody sets `effort` meanwhile.

    Attributes:
        kind: ``hnsw`` or ``ivf``.
        num_items: items in it.
        size: numbers per vector.
    """

    def __init__(self, index: Any) -> None:
        faiss = load_faiss()
        self._faiss, self._index = faiss, index
        inner = faiss.downcast_index(index)
        self._refined = isinstance(inner, faiss.IndexRefine)
        self._inner = faiss.downcast_index(inner.base_index) if self._refined else inner
        self.kind: Kind = "hnsw" if isinstance(self._inner, faiss.IndexHNSW) else "ivf"
        self.num_items, self.size = int(index.ntotal), int(index.d)

    @classmethod
    def build(cls, vectors: NDArray[np.float32], kind: Kind = "ivf", threads: int | None = None) -> ItemIndex:
        """An index of ``vectors`` (items, d), at the lowest effort.

        Args:
            vectors: row i is item number i; finite.
            kind: ``hnsw`` or ``ivf``.
            threads: to build with; None: as many as faiss uses. More than one may make another graph every time.

        Raises:
            MissingExtraError: faiss is not installed.
        """
        faiss = load_faiss()
        items, size = vectors.shape
        table = np.ascontiguousarray(vectors, dtype=np.float32)
        before = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(threads or before)
        try:
            index = faiss.index_factory(size, _recipe(kind, items, size), faiss.METRIC_INNER_PRODUCT)
            made = cls(index)
            if kind == "hnsw":
                made._inner.hnsw.efConstruction = _BUILD_EFFORT
            elif made._refined:
                index.k_factor = _SHORTLIST
            index.train(table)
            index.add(table)
        finally:
            faiss.omp_set_num_threads(before)
        made.num_items = items
        made.effort = made.efforts[0]
        return made

    @property
    def effort(self) -> int:
        """How far a search looks: candidates kept on the way through the graph, or clusters read. It is stored too."""
        return int(self._inner.hnsw.efSearch if self.kind == "hnsw" else self._inner.nprobe)

    @effort.setter
    def effort(self, effort: int) -> None:
        if self.kind == "hnsw":
            self._inner.hnsw.efSearch = effort
        else:
            self._inner.nprobe = effort

    @property
    def efforts(self) -> list[int]:
        """Efforts worth trying, ascending, about half as much again each time; the last looks at most or all items."""
        most = 64 * DEPTH if self.kind == "hnsw" else int(self._inner.nlist)
        most = min(most, max(self.num_items, 1))
        first = min(DEPTH, most) if self.kind == "hnsw" else 1
        steps = int(math.log2(most / first)) + 1
        tried = {round(first * 2**step * half) for step in range(steps) for half in (1, 1.5)}
        return sorted({effort for effort in tried if effort < most} | {most})

    def search(self, queries: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """Item numbers (B, k) by inner product with ``queries`` (B, d), best first; -1 where no more were found."""
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        return self._search(queries, max(k, min(DEPTH, self.num_items)))[1][:, :k]

    def holds(self, vectors: NDArray[np.float32]) -> bool:
        """Whether the index is of ``vectors`` (items, d), but for rounding; looks at what some searches find."""
        if vectors.shape != (self.num_items, self.size):
            return False
        queries = np.ascontiguousarray(vectors[:: max(1, self.num_items // 16)][:16], dtype=np.float32)
        products, items = self._search(queries, min(DEPTH, self.num_items))
        lengths = np.linalg.norm(queries, axis=1, keepdims=True) * np.linalg.norm(vectors[items], axis=2)
        wrong = np.abs(np.einsum("bd,bkd->bk", queries, vectors[items]) - products) > 1e-4 * lengths + 1e-12
        return not (wrong & (items >= 0)).any()

    def to_bytes(self) -> bytes:
        """The index as faiss writes it, effort included."""
        return self._faiss.serialize_index(self._index).tobytes()

    @classmethod
    def from_bytes(cls, content: bytes) -> ItemIndex:
        """What `to_bytes` gave.

        Raises:
            MissingExtraError: faiss is not installed.
            ValueError: the content is no index of this kind.
        """
        faiss = load_faiss()
        try:
            return cls(faiss.deserialize_index(np.frombuffer(content, dtype=np.uint8)))
        except (RuntimeError, AttributeError) as error:  # faiss's own errors are RuntimeErrors
            raise ValueError(f"not an index that faiss can read: {str(error).splitlines()[0]}") from None

    def _search(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Inner products (B, k) and item numbers (B, k)."""
        if self.kind == "ivf":
            return self._index.search(queries, k)
        # faiss would keep max(efSearch, k) candidates, which is little for a long list.
        effort = math.ceil(self.effort * max(1.0, k / DEPTH))
        return self._index.search(queries, k, params=self._faiss.SearchParametersHNSW(efSearch=effort))


def _recipe(kind: Kind, items: int, size: int) -> str:
    """The index in faiss's language."""
    if kind == "hnsw":
        return f"HNSW{_LINKS},Flat"
    # faiss wants 39 items or more per cluster to learn from. Many clusters cost much where all must be read, as among
    # random vectors.
    clusters = max(1, min(round(math.sqrt(items) / 2), items // 39))
    return f"IVF{clusters},PQ{size}x4fs,RFlat" if items >= _CODED_FROM else f"IVF{clusters},Flat"


def load_faiss() -> Any:
    """The module faiss.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module("faiss")
    except ImportError:
        raise MissingExtraError("faiss", "ann") from None


def digests(folder: Path) -> dict[str, str]:
    """File name -> sha256, as a verified run's manifest has it.

    That of the weights says what an index was made of, since item vectors follow from them. The vectors' own would not
    do: some models normalise, and another processor rounds otherwise.
    """
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]


def read_index(folder: str | Path, item_vectors: NDArray[np.float32] | None) -> ItemIndex:
    """The index of a run that `rediffuse.runs.run_folder.read_run` has verified.

    Args:
        folder: of the run.
        item_vectors: (num_items, d) of its model, or None where it has none.

    Raises:
        RunError: the run has no index, or one that is damaged or of other weights.
        MissingExtraError: faiss is not installed.
    """
    folder = Path(folder)
    remedy = f"Build it: rediffuse index {folder}"
    if item_vectors is None:
        raise RunError(f"The model of {folder} has no item vectors to index.", "Use retrieval='exact'.")
    listed = digests(folder)
    if FACTS_FILE not in listed or VECTORS_FILE not in listed:
        raise RunError(f"{folder} has no index.", remedy)
    try:
        facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
        weights = facts["weights"]
        index = ItemIndex.from_bytes((folder / VECTORS_FILE).read_bytes())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"The index of {folder} is damaged ({error}).", remedy) from None
    if weights != listed["model.safetensors"] or not index.holds(item_vectors):
        raise RunError(f"The index of {folder} is not of the run's present weights.", remedy)
    return index
