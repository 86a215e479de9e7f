"""Text as a few numbers: TF-IDF of words and pairs of words, reduced by a truncated SVD (latent semantic analysis)."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.sparse.linalg import norm

from rediffuse.data.checks import require
from rediffuse.data.feature_columns import texts_in
from rediffuse.features.column import ColumnEncoder

WIDTH = 64
# Terms that are kept: those in at least two texts, the most common first. A term in a single text relates no items.
MOST_TERMS = 2**16
# Texts to learn from, drawn at random from more: 64 directions need no more, and take seconds.
MOST_TEXTS = 100_000
# Terms are known by their hash below this number. Only those that are kept take space.
_HASHES = 2**20
# Texts whose terms are in memory at a time.
_BLOCK = 10_000
# Singular values below this share of the largest are rounding.
_RANK = 1e-4
# The projection of a vector of norm 1 that is shorter is rounding, and would be blown up to norm 1.
_ROUNDING = 1e-5
# As scikit-learn, words have at least two letters or digits. Digits alone are no word: with the years at the end of
# MovieLens titles, the title nearest to a title was of the same year for 88 % of them, without for 15 %.
_WORD = r"\b(?!\d+\b)\w\w+\b"


class TextEncoder(ColumnEncoder):
    """Rows of norm 1: the projection of a text's TF-IDF vector to the leading singular vectors of the fitted texts.

    Terms are known by the hashes of scikit-learn's HashingVectorizer, so that no text is stored.

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
        frequency = np.bincount(counts.indices, minlength=_HASHES)
        most = np.argsort(-frequency, kind="stable")[:MOST_TERMS]
        terms = np.sort(most[frequency[most] >= 2])
        idf = (np.log((1 + len(texts)) / (1 + frequency[terms])) + 1).astype(np.float32)
        components = _components(_tf_idf(counts, terms, idf), seed)
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
        require(((terms >= 0) & (terms < _HASHES)).all(), f"terms are not below {_HASHES}")
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
            counts = _counts(texts[start : start + _BLOCK])
            vectors[start : start + _BLOCK] = _tf_idf(counts, self.terms, self.idf) @ self.components
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


def _counts(texts: pl.Series) -> Any:
    """(texts, hashes) CSR, float32: how often each term is in each text."""
    # Takes half a second to import, and runs without text need none of it.
    from sklearn.feature_extraction.text import HashingVectorizer

    vectorizer = HashingVectorizer(
        token_pattern=_WORD,
        ngram_range=(1, 2),
        n_features=_HASHES,
        alternate_sign=False,
        norm=None,  # pyright: ignore[reportArgumentType]
        dtype=np.float32,  # pyright: ignore[reportArgumentType]
    )
    # It refuses to transform no text.
    return vectorizer.transform(texts.fill_null("").to_list() or [""])


def _tf_idf(counts: Any, terms: NDArray[np.int64], idf: NDArray[np.float32]) -> Any:
    """(texts, terms) CSR, rows of norm 1; terms that are not known count for nothing."""
    known = counts[:, terms]
    known.data *= idf[known.indices]
    known.data /= np.repeat(norm(known, axis=1), np.diff(known.indptr))
    return known


def _components(vectors: Any, seed: int) -> NDArray[np.float32]:
    """(terms, up to `WIDTH`) right singular vectors by falling singular value; fewer where the rank is lower."""
    from sklearn.utils.extmath import randomized_svd

    width = min(WIDTH, *vectors.shape)
    if not width:
        return np.zeros((vectors.shape[1], 0), dtype=np.float32)
    # Singular values of text fall slowly: of MovieLens titles, a sketch with the usual 10 directions more misses 5 % of
    # the space, with as many again 0.1 %.
    _, sizes, transposed = randomized_svd(vectors, width, n_oversamples=WIDTH, random_state=seed)
    return np.ascontiguousarray(transposed[sizes > _RANK * sizes[0]].T, dtype=np.float32)
