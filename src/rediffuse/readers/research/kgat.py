"""Data of KGAT and LightGCN, in text, and of DiffKG, whose interactions are pickled SciPy matrices."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from rediffuse.data.dataset import Dataset
from rediffuse.errors import DataError
from rediffuse.readers.adjacency import read_adjacency
from rediffuse.readers.interactions import read_interactions
from rediffuse.readers.research.files import find, integers, labelled, need, overlap, with_notes, without_repeats
from rediffuse.readers.research.pickles import SparseMatrix, read_pickle

_NO_VALID = (
    "There is no validation subset: the released program selects its epoch on the test subset. A split given without "
    "one takes validation interactions from train."
)


def read_lightgcn(folder: Path) -> Dataset:
    """``train.txt`` and ``test.txt`` (and ``valid.txt``), rows of ``user item item ...``; all are numbered from 0.

    Raises:
        DataError: a file is missing, or holds something else.
    """
    return _dataset(_adjacent(folder), items=_listed(folder, "item_list.txt", "item_id"))


def read_kgat(folder: Path) -> Dataset:
    """As `read_lightgcn`, with ``kg_final.txt``, rows of head, relation and tail; the first entities are the items.

    Names come from ``item_list.txt`` and ``relation_list.txt``, if they are there.

    Raises:
        DataError: a file is missing, or holds something else.
    """
    pairs, items = _adjacent(folder), _listed(folder, "item_list.txt", "item_id")
    numbers = pl.concat([pairs["item_id"], *([] if items is None else [items["item_id"]])]).to_numpy()
    triples = _triples(need(folder, "kg_final.txt", purpose="triples of the knowledge graph"))
    relations = _listed(folder, "relation_list.txt", "relation")
    if relations is not None:
        names = pl.col("relation").replace_strict(
            relations["relation"], relations["original_relation"], default=pl.col("relation").cast(pl.String)
        )
        triples = triples.with_columns(names)
    return _dataset(pairs, items=items, kg=triples, item_entity=_first_entities(int(numbers.max()) + 1))


def read_diffkg(folder: Path) -> Dataset:
    """``trnMat.pkl`` and ``tstMat.pkl``, matrices of users and items, and ``kg.txt``, rows of head, relation and tail.

    Raises:
        DataError: a file is missing, or holds something else.
    """
    names = {"train": "trnMat.pkl", "test": "tstMat.pkl"}
    matrices = {subset: _matrix(need(folder, name, purpose="pairs")) for subset, name in names.items()}
    shapes = {matrix.shape for matrix in matrices.values()}
    if len(shapes) > 1:
        raise DataError(f"The matrices in {folder} have different shapes: {sorted(shapes)}.", "Get both files again.")
    pairs = labelled(
        # An entry may be zero.
        (subset, pl.DataFrame({"user_id": matrix.rows, "item_id": matrix.columns}).filter(matrix.values != 0))
        for subset, matrix in matrices.items()
    )
    triples = _triples(need(folder, "kg.txt", purpose="triples of the knowledge graph"))
    return _dataset(pairs, kg=triples, item_entity=_first_entities(matrices["train"].shape[1]))


def _dataset(
    pairs: pl.DataFrame,
    *,
    items: pl.DataFrame | None = None,
    kg: pl.DataFrame | None = None,
    item_entity: pl.DataFrame | None = None,
) -> Dataset:
    pairs, note = without_repeats(pairs)
    dataset = read_interactions(pairs.drop("split"), splits=pairs, items=items, kg=kg, item_entity=item_entity)
    has_valid = (pairs["split"] == "valid").any()
    return with_notes(dataset, note, overlap(pairs), None if has_valid else _NO_VALID)


def _adjacent(folder: Path) -> pl.DataFrame:
    """Pairs of all subsets."""
    paths = {subset: need(folder, f"{subset}.txt", purpose=f"items of {subset}") for subset in ("train", "test")}
    if (valid := paths["train"].with_name("valid.txt")).is_file():
        paths = {"train": paths["train"], "valid": valid, "test": paths["test"]}
    return labelled((subset, _numbered(path)) for subset, path in paths.items())


def _numbered(path: Path) -> pl.DataFrame:
    pairs = read_adjacency(path)
    numbers = pairs.with_columns(pl.col("user_id", "item_id").cast(pl.Int64, strict=False))
    wrong = numbers.filter(pl.col("user_id").is_null() | pl.col("item_id").is_null())
    if len(wrong):
        raise DataError(
            f"{path}, line {wrong['line'][0]}, holds an id that is no integer.",
            "A line is a user and the user's items, all numbers.",
        )
    return numbers.drop("line")


def _matrix(path: Path) -> SparseMatrix:
    content = read_pickle(path)
    if not isinstance(content, SparseMatrix):
        raise DataError(f"{path} holds a {type(content).__name__}, not a SciPy matrix.", "Get the file again.")
    return content


def _triples(path: Path) -> pl.DataFrame:
    return integers(path, "head", "relation", "tail")


def _first_entities(items: int) -> pl.DataFrame:
    """Links of items to entities, where these have the same numbers."""
    return pl.select(item_id=pl.int_range(items), entity_id=pl.int_range(items))


def _listed(folder: Path, name: str, column: str) -> pl.DataFrame | None:
    """Original ids by number, from rows of ``org_id remap_id`` (and ``freebase_id``) below a header; None: no file."""
    path = find(folder, name)
    if path is None:
        return None
    lines = [line.split() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    rows = lines[1:] if lines and "remap_id" in lines[0] else lines
    if not rows or any(len(row) < 2 or not row[1].isdecimal() for row in rows):
        raise DataError(f"{path} does not hold rows of org_id and remap_id.", "Get the file again, or remove it.")
    table = pl.DataFrame({column: [int(row[1]) for row in rows], f"original_{column}": [row[0] for row in rows]})
    if all(len(row) > 2 for row in rows):
        table = table.with_columns(pl.Series("freebase_id", [row[2] for row in rows]))
    return table
