"""The encoder of text, against TF-IDF by hand and NumPy's dense decomposition."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import polars as pl
import pytest

from rediffuse.data.item_features import Feature
from rediffuse.features import FeatureEncoder, texts

TITLE = (Feature("title", "text"),)


def sentences(count: int, seed: int = 0) -> list[str]:
    """Titles of words of two topics, each with words that are rare, and a year that is no word."""
    rng = np.random.default_rng(seed)
    topics = [[f"{name}{place}" for place in range(30)] for name in ("film", "Shoe")]
    found = []
    for row in range(count):
        words = topics[row % 2]
        chosen = rng.choice(words, size=rng.integers(1, 7), p=np.arange(30, 0, -1) / 465)
        found.append(", ".join([*chosen, f"only{row} ({1950 + row % 9})"]))
    return found


def terms_of(text: str) -> list[str]:
    words = [word for word in re.findall(r"\w+", text.lower()) if len(word) > 1 and not word.isdecimal()]
    return words + [" ".join(pair) for pair in itertools.pairwise(words)]


def tf_idf(fitted: list[str], encoded: list[str]) -> np.ndarray:
    """What scikit-learn's TfidfVectorizer(ngram_range=(1, 2), min_df=2) gives, written out."""
    frequency = Counter(term for text in fitted for term in set(terms_of(text)))
    vocabulary = sorted(term for term, count in frequency.items() if count >= 2)
    rows = np.zeros((len(encoded), len(vocabulary)))
    for row, text in enumerate(encoded):
        for term, count in Counter(terms_of(text)).items():
            if term in vocabulary:
                idf = np.log((1 + len(fitted)) / (1 + frequency[term])) + 1
                rows[row, vocabulary.index(term)] = count * idf
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)


@pytest.mark.parametrize("count", [40, 120, 400])
def test_content_equals_tf_idf_and_a_dense_decomposition(count: int) -> None:
    titles, new = sentences(count), [*sentences(20, seed=1), "film1 FILM1 film2; film1", "shoe3-shoe3 1951", "x"]
    encoder = FeatureEncoder.fit(pl.DataFrame({"item_id": range(count), "title": titles}), TITLE)
    vectors = tf_idf(titles, titles)
    _, sizes, transposed = np.linalg.svd(vectors, full_matrices=False)
    width = min(64, int((sizes > 1e-4 * sizes[0]).sum()))
    wanted = tf_idf(titles, new) @ transposed[:width].T
    norms = np.linalg.norm(wanted, axis=1, keepdims=True)
    wanted = wanted / np.where(norms > 1e-5, norms, np.inf)
    found = encoder.encode(pl.DataFrame({"item_id": range(len(new)), "title": new})).dense
    assert found.shape == (len(new), width)
    # Each direction is known up to its sign; products of rows are not, and need no order among equal sizes.
    difference = np.abs(found @ found.T - wanted @ wanted.T)
    learned = encoder.arrays()["0.components"].astype(np.float64)
    assert learned.T @ learned == pytest.approx(np.eye(width), abs=1e-5)
    if count > 2 * 64:  # the sketch mixes a little of the next directions into the last ones
        assert difference.mean() < 1e-3
        return
    assert difference.max() < 1e-4
    distinct = np.flatnonzero(np.abs(np.diff(sizes[: width + 1])) > 1e-3 * sizes[0])[:10]
    same_up_to_sign = np.minimum(np.abs(found - wanted).max(axis=0), np.abs(found + wanted).max(axis=0))
    apart = [place for place in distinct if place == 0 or place - 1 in distinct]
    assert len(apart) >= 3
    assert same_up_to_sign[apart].max() < 1e-3


def test_numbers_are_no_words() -> None:
    titles = ["Star (1977)", "Heat (1977)", "Star 1999", "Heat 1999", "1977", "R2D2 1977", "r2d2"]
    table = pl.DataFrame({"item_id": range(7), "title": titles})
    encoder = FeatureEncoder.fit(table, TITLE)
    dense = encoder.encode(table).dense
    assert dense.shape[1] == 3
    groups = np.array([0, 1, 0, 1, -1, 2, 2])
    alike = (groups == groups[:, None]) & (groups >= 0)
    assert dense @ dense.T == pytest.approx(alike.astype(float), abs=1e-6)
    assert any("1 of 7 texts of 'title' share no word" in note and "'1977'" in note for note in encoder.notes(table))


def test_rows_have_norm_one_and_topics_are_near() -> None:
    titles = sentences(200)
    table = pl.DataFrame({"item_id": range(202), "title": [*titles, None, " "]})
    dense = FeatureEncoder.fit(table, TITLE).encode(table).dense
    norms = np.linalg.norm(dense, axis=1)
    assert norms[:200] == pytest.approx(1, abs=1e-5)
    assert not dense[200:].any()
    alike = dense[:200] @ dense[:200].T
    assert alike[::2, ::2].mean() > alike[::2, 1::2].mean() + 0.1


def test_words_of_any_script_count() -> None:
    table = pl.DataFrame({"item_id": range(4), "title": ["Zażółć gęślą", "zażółć", "книга мир", "КНИГА"]})
    encoder = FeatureEncoder.fit(table, TITLE)
    dense = encoder.encode(table).dense
    assert dense.shape[1] == 2
    assert dense @ dense.T == pytest.approx(np.kron(np.eye(2), np.ones((2, 2))), abs=1e-6)


def test_lists_of_text_are_one_text() -> None:
    rows = [["red shoe", "new"], ["red", "new"]]
    table = pl.DataFrame({"item_id": [1, 2], "title": rows})
    joined = pl.DataFrame({"item_id": [1, 2], "title": [" ".join(row) for row in rows]})
    encoder = FeatureEncoder.fit(table, TITLE)
    wanted = encoder.encode(joined).dense
    assert wanted.any(axis=1).all()
    for kind in (pl.List(pl.String), pl.Array(pl.String, 2)):
        assert (encoder.encode(table.cast({"title": kind})).dense == wanted).all()


def test_texts_without_a_common_word() -> None:
    table = pl.DataFrame({"item_id": range(3), "title": ["one two", "three", "a b c"]})
    encoder = FeatureEncoder.fit(table, TITLE)
    assert encoder.encode(table).dense.shape == (3, 0)
    assert encoder.names() == []
    assert any("3 of 3 texts of 'title' share no word" in note for note in encoder.notes(table))


def test_blocks_and_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    titles = sentences(300)
    table = pl.DataFrame({"item_id": range(300), "title": titles})
    encoder = FeatureEncoder.fit(table, TITLE)
    whole = encoder.encode(table).dense
    monkeypatch.setattr(texts, "_BLOCK", 7)
    assert (encoder.encode(table).dense == whole).all()
    monkeypatch.setattr(texts, "MOST_TEXTS", 100)
    drawn = FeatureEncoder.fit(table, TITLE, seed=1)
    assert "learned from 100 of 300 texts" in drawn.notes(table)[0]
    again = FeatureEncoder.fit(table, TITLE, seed=1)
    assert (again.encode(table).dense == drawn.encode(table).dense).all()
    other = FeatureEncoder.fit(table, TITLE, seed=2)
    assert set(other.arrays()["0.terms"]) != set(drawn.arrays()["0.terms"])


def test_the_most_common_terms_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "MOST_TERMS", 2)
    table = pl.DataFrame({"item_id": range(6), "title": ["aa", "aa", "aa", "bb", "bb", "cc cc"]})
    dense = FeatureEncoder.fit(table, TITLE).encode(table).dense
    assert (np.abs(dense[:5]).sum(axis=1) > 0).all()
    assert not dense[5].any()


def test_the_rank_limits_the_directions() -> None:
    for distinct, count in ((1, 1000), (3, 1000), (3, 6), (1, 2)):
        titles = [("red", "blue shoe", "hat")[row % distinct] for row in range(count)]
        table = pl.DataFrame({"item_id": range(count), "title": titles})
        dense = FeatureEncoder.fit(table, TITLE).encode(table).dense
        assert dense.shape == (count, distinct)
        assert np.abs(dense[:distinct] @ dense[:distinct].T) == pytest.approx(np.eye(distinct), abs=1e-5)
    # A thousand directions of one size, more than are kept.
    many = [f"word{row // 2}" for row in range(2000)]
    table = pl.DataFrame({"item_id": range(2000), "title": many})
    dense = FeatureEncoder.fit(table, TITLE).encode(table).dense
    assert dense.shape == (2000, 64)
    assert (dense[::2] == dense[1::2]).all()


def test_scikit_learn_is_imported_when_text_is_encoded() -> None:
    code = "import sys, rediffuse.features; print('sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
