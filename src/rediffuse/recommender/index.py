"""An approximate index of item vectors, for catalogues so large that scoring all items takes too long.

There are two kinds, both from faiss and both by inner product:

- ``hnsw``: a graph of neighbours, searched from node to node (Malkov & Yashunin, TPAMI 2018). Slow to build.
- ``ivf``: items in clusters, of which a search reads the nearest. In large catalogues it reads codes of 4 bits per
  number (product quantisation, Jégou et al., TPAMI 2011; André et al., VLDB 2015) and scores the best of them exactly.

Among a million random vectors of size 64, ivf finds 0.99 of the best hundred in a quarter of the time of exact search
and is built in seconds; hnsw finds 0.948 in two thirds of the time and is built in minutes
(`benchmarks/measure/ann.py`). `rediffuse.recommender.index_building.build_index` builds the index of a run.
"""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rediffuse.arguments import require_path
from rediffuse.errors import MissingExtraError, RunError
from rediffuse.runs.run_folder import read_manifest

Kind = Literal["hnsw", "ivf"]

VECTORS_FILE, METADATA_FILE = "index.faiss", "index.json"

# A search for fewer items looks as far as one for this many: a recall measured at this depth holds for shorter lists.
DEPTH = 100

# Links per item (M), and candidates examined to choose them (efConstruction). More of either gives a better graph and
# takes longer to build.
_LINKS, _BUILD_EFFORT = 32, 80

# With fewer items, codes save no noticeable time, and there are too few items to learn the codes from.
_MIN_CODED_ITEMS = 10_000

# Items scored exactly per item wanted. Among a million random vectors, 2 suffice to find 0.94 of the best hundred with
# codes of 4 bits per number, and 4 to find 0.99. Trained vectors are less even, and 8 take only 0.1 ms more.
_SHORTLIST = 8


class ItemIndex:
    """Finds the items with the largest inner products. Create it with `build` or `from_bytes`.

    A search does not change the index, so threads may share it as long as none of them sets `effort`.

    Attributes:
        kind: ``hnsw`` or ``ivf``.
        num_items: number of items.
        size: size of a vector.
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
        """Build an index of ``vectors`` (items, d), with the lowest effort.

        Args:
            vectors: row i is item number i; finite.
            kind: ``hnsw`` or ``ivf``.
            threads: used for building; None: as many as faiss uses. With more than one, each build of a graph may
                differ.

        Raises:
            MissingExtraError: faiss is not installed.
        """
        faiss = load_faiss()
        items, size = vectors.shape
        table = np.ascontiguousarray(vectors, dtype=np.float32)
        before = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(threads or before)
        try:
            index = faiss.index_factory(size, _factory_string(kind, items, size), faiss.METRIC_INNER_PRODUCT)
            built = cls(index)
            if kind == "hnsw":
                built._inner.hnsw.efConstruction = _BUILD_EFFORT
            elif built._refined:
                index.k_factor = _SHORTLIST
            index.train(table)
            index.add(table)
        finally:
            faiss.omp_set_num_threads(before)
        built.num_items = items
        built.effort = built.efforts[0]
        return built

    @property
    def effort(self) -> int:
        """How far a search looks; stored with the index.

        It is faiss's efSearch (candidates that a search of a graph keeps) or nprobe (clusters that a search reads).
        """
        return int(self._inner.hnsw.efSearch if self.kind == "hnsw" else self._inner.nprobe)

    @effort.setter
    def effort(self, effort: int) -> None:
        if self.kind == "hnsw":
            self._inner.hnsw.efSearch = effort
        else:
            self._inner.nprobe = effort

    @property
    def efforts(self) -> list[int]:
        """Efforts worth trying, ascending by a third to a half each; the last one examines most or all items."""
        highest = 64 * DEPTH if self.kind == "hnsw" else int(self._inner.nlist)
        highest = min(highest, max(self.num_items, 1))
        lowest = min(DEPTH, highest) if self.kind == "hnsw" else 1
        doublings = int(math.log2(highest / lowest)) + 1
        efforts = {round(lowest * 2**power * factor) for power in range(doublings) for factor in (1, 1.5)}
        return sorted({effort for effort in efforts if effort < highest} | {highest})

    def search(self, queries: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """Item numbers (B, k) by inner product with ``queries`` (B, d), best first; -1 where too few were found."""
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        return self._search(queries, max(k, min(DEPTH, self.num_items)))[1][:, :k]

    def matches(self, vectors: NDArray[np.float32]) -> bool:
        """Whether the index was built from ``vectors`` (items, d), up to rounding; checks a few searches."""
        if vectors.shape != (self.num_items, self.size):
            return False
        queries = np.ascontiguousarray(vectors[:: max(1, self.num_items // 16)][:16], dtype=np.float32)
        products, items = self._search(queries, min(DEPTH, self.num_items))
        lengths = np.linalg.norm(queries, axis=1, keepdims=True) * np.linalg.norm(vectors[items], axis=2)
        wrong = np.abs(np.einsum("bd,bkd->bk", queries, vectors[items]) - products) > 1e-4 * lengths + 1e-12
        return not (wrong & (items >= 0)).any()

    def to_bytes(self) -> bytes:
        """The index as faiss serialises it, with its effort."""
        return self._faiss.serialize_index(self._index).tobytes()

    @classmethod
    def from_bytes(cls, content: bytes) -> ItemIndex:
        """Restore an index from the content that `to_bytes` returned.

        Raises:
            MissingExtraError: faiss is not installed.
            ValueError: the content is not such an index.
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
        # By itself faiss keeps max(efSearch, k) candidates, too few for a long list.
        effort = math.ceil(self.effort * max(1.0, k / DEPTH))
        return self._index.search(queries, k, params=self._faiss.SearchParametersHNSW(efSearch=effort))


def _factory_string(kind: Kind, items: int, size: int) -> str:
    """The description of an index that faiss's index_factory reads."""
    if kind == "hnsw":
        return f"HNSW{_LINKS},Flat"
    # faiss asks for at least 39 items per cluster. Many clusters cost time if all must be read, as with random vectors.
    clusters = max(1, min(round(math.sqrt(items) / 2), items // 39))
    return f"IVF{clusters},PQ{size}x4fs,RFlat" if items >= _MIN_CODED_ITEMS else f"IVF{clusters},Flat"


def load_faiss() -> Any:
    """Import the module faiss.

    Raises:
        MissingExtraError: faiss is not installed.
    """
    try:
        return importlib.import_module("faiss")
    except ImportError:
        raise MissingExtraError("faiss", "ann") from None


def read_index(folder: str | Path, item_vectors: NDArray[np.float32] | None) -> ItemIndex:
    """Read the index of a run whose files `rediffuse.runs.run_folder.read_run` has verified.

    Args:
        folder: folder of the run.
        item_vectors: (num_items, d) of its model, or None if it has none.

    Raises:
        RunError: the run has no index, or the index is damaged or was built from other weights.
        MissingExtraError: faiss is not installed.
    """
    folder = require_path("folder", folder)
    remedy = f"Build it: rediffuse index {folder}"
    if item_vectors is None:
        raise RunError(f"The model of {folder} has no item vectors to index.", "Use retrieval='exact'.")
    listed = read_manifest(folder)["files"]
    if METADATA_FILE not in listed or VECTORS_FILE not in listed:
        raise RunError(f"{folder} has no index.", remedy)
    try:
        weights = json.loads((folder / METADATA_FILE).read_text(encoding="utf-8"))["weights"]
        index = ItemIndex.from_bytes((folder / VECTORS_FILE).read_bytes())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"The index of {folder} is damaged ({error}).", remedy) from None
    # The weights determine the item vectors, so their checksum identifies the index. A checksum of the vectors would
    # depend on the processor, which may round differently.
    if weights != listed["model.safetensors"] or not index.matches(item_vectors):
        raise RunError(f"The index of {folder} was not built from the present weights of the run.", remedy)
    return index
