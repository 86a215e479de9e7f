"""Text as a few numbers: TF-IDF of words and pairs of words, reduced by a truncated SVD (latent semantic analysis)."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from rediffuse.data.checks import require
from rediffuse.data.feature_columns import texts_in
from rediffuse.features.column import ColumnEncoder
from rediffuse.features.svd import right_singular_vectors

WIDTH = 64
# Terms that are kept: those in at least two texts, the most common first. A term in a single text relates no items.
MOST_TERMS = 2**16
# Texts to learn from, drawn at random from more: 64 directions need no more, and take seconds.
MOST_TEXTS = 100_000
# Texts whose terms are in memory at a time.
_BLOCK = 10_000
# The projection of a vector of norm 1 that is shorter is rounding, and would be blown up to norm 1.
_ROUNDING = 1e-5
# As scikit-learn: words have at least two letters or digits.
_WORD = r"\b\w\w+\b"


class TextEncoder(ColumnEncoder):
    """Rows of norm 1: the projection of a text's TF-IDF vector to the leading singular vectors of the fitted texts.

    Terms are known by the CRC-32 of their UTF-8 bytes, so that no text is stored.

    Args:
        column: name of the column.
        terms: (terms,) int64 hashes, increasing.
        idf: (terms,) float32 ln((1 + texts) / (1 + texts with the term)) + 1, as scikit-learn's.
        components: (terms, width) float32 right singular vectors.
        learned_from: how many texts these come from, of how many.
    """

    is_sparse = False

    def __init__(
        self,
        column: str,
        terms: NDArray[np.int64],
        idf: NDArray[np.float32],
        components: NDArray[np.float32],
        learned_from: tuple[int, int],
    ) -> None:
        super().__init__(column)
        self.learned_from = learned_from
        self.terms, self.idf, self.components = terms, idf, components

    @classmethod
    def fit(cls, table: pl.DataFrame, column: str, fitted: NDArray[np.bool_], seed: int) -> TextEncoder:
        texts = texts_in(table[column]).filter(fitted).drop_nulls()
        given = len(texts)
        if given > MOST_TEXTS:
            texts = texts.gather(np.sort(np.random.default_rng(seed).choice(given, MOST_TEXTS, replace=False)))
        counts = _counts(texts)
        common = counts.group_by("term").len("texts").filter(pl.col("texts") >= 2)
        common = common.sort(["texts", "term"], descending=[True, False]).head(MOST_TERMS).sort("term")
        terms = common["term"].to_numpy()
        idf = (np.log((1 + len(texts)) / (1 + common["texts"].to_numpy())) + 1).astype(np.float32)
        vectors = _tf_idf(counts, len(texts), terms, idf)
        components = right_singular_vectors(vectors, WIDTH, seed).astype(np.float32)
        return cls(column, terms, idf, components, (len(texts), given))

    @classmethod
    def load(cls, column: str, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> TextEncoder:
        kinds = {"terms": (np.int64, 1), "idf": (np.float32, 1), "components": (np.float32, 2)}
        for name, (dtype, axes) in kinds.items():
            array = arrays.get(name)
            require(array is not None and array.dtype == dtype and array.ndim == axes, f"{name} are missing or odd")
        terms, idf, components = (arrays[name] for name in kinds)
        require(len(terms) == len(idf) == len(components), "terms, idf and components differ in their numbers")
        require((terms[1:] > terms[:-1]).all(), "terms do not increase")
        require(np.isfinite(idf).all() and np.isfinite(components).all(), "idf or components are not finite")
        counts = settings.get("learned_from")
        require(isinstance(counts, list) and list(map(type, counts)) == [int, int], "learned_from are not two counts")
        return cls(column, terms, idf, components, tuple(counts))  # pyright: ignore[reportArgumentType]

    def settings(self) -> dict[str, Any]:
        return {"learned_from": list(self.learned_from)}

    def encode(self, table: pl.DataFrame) -> NDArray[np.float32]:
        texts = texts_in(table[self.column])
        vectors = np.zeros((len(texts), self.components.shape[1]), dtype=np.float32)
        for start in range(0, len(texts), _BLOCK):
            block = texts[start : start + _BLOCK]
            vectors[start : start + _BLOCK] = (
                _tf_idf(_counts(block), len(block), self.terms, self.idf) @ self.components
            )
        norms = np.sqrt(np.square(vectors, dtype=np.float64).sum(axis=1, keepdims=True))
        return (vectors / np.where(norms > _ROUNDING, norms, np.inf)).astype(np.float32)

    def names(self) -> list[str]:
        return [f"{self.column} {place}" for place in range(self.components.shape[1])]

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"terms": self.terms, "idf": self.idf, "components": self.components}

    def notes(self, table: pl.DataFrame) -> list[str]:
        texts = texts_in(table[self.column])
        silent = ~texts.is_null().to_numpy() & ~self.encode(table).any(axis=1)
        notes = self.missing_note(table)
        if self.learned_from[0] < self.learned_from[1]:
            used, given = self.learned_from
            notes.append(
                f"The words of {self.column!r} were learned from {used:,} of {given:,} texts, drawn at random."
            )
        if silent.any():
            notes.append(
                f"{int(silent.sum()):,} of {len(table):,} texts of {self.column!r} share no word with those learned "
                f"and say nothing, such as {texts[int(silent.argmax())]!r}."
            )
        return notes


def _counts(texts: pl.Series) -> pl.DataFrame:
    """How often each term is in each text: the columns row, term (hash) and count."""
    starts = range(0, max(1, len(texts)), _BLOCK)
    return pl.concat([_block_counts(texts[start : start + _BLOCK], start) for start in starts])


def _block_counts(texts: pl.Series, first: int) -> pl.DataFrame:
    """As `_counts`, of texts whose rows begin at ``first``."""
    found = texts.str.to_lowercase().str.extract_all(_WORD)
    words = pl.DataFrame({"row": np.arange(first, first + len(texts)), "word": found}).explode("word").drop_nulls()
    together = pl.col("word") + " " + pl.col("word").shift(-1)
    pairs = words.with_columns(word=together).filter(words["row"] == words["row"].shift(-1))
    counts = pl.concat([words, pairs]).group_by("row", "word").len("count")
    distinct = counts["word"].unique()
    hashes = np.fromiter((zlib.crc32(word.encode()) for word in distinct), dtype=np.int64, count=len(distinct))
    hashed = pl.DataFrame({"word": distinct, "term": hashes})
    # Two words of one hash are one term.
    return counts.join(hashed, on="word").group_by("row", "term").agg(pl.col("count").sum())


def _tf_idf(counts: pl.DataFrame, rows: int, terms: NDArray[np.int64], idf: NDArray[np.float32]) -> sparse.csr_array:
    """(rows, terms) float32, rows of norm 1; terms that are not known count for nothing."""
    numbers = pl.DataFrame({"term": terms, "number": np.arange(len(terms))})
    known = counts.join(numbers, on="term").sort("row", "number")
    row, number = known["row"].to_numpy(), known["number"].to_numpy()
    values = known["count"].to_numpy() * idf[number].astype(np.float64)
    norms = np.sqrt(np.bincount(row, values**2, minlength=rows))
    values = (values / norms[row]).astype(np.float32)
    return sparse.csr_array((values, (row, number)), shape=(rows, len(terms)))
