"""The encoder of features: every kind against a brute-force reading, the round trip, and tables of other forms."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rediffuse.data.item_features import Feature
from rediffuse.errors import DataError
from rediffuse.features import Content, FeatureEncoder, categories

TABLE = pl.DataFrame(
    {
        "item_id": list("abcdef"),
        "brand": ["Nike", "Puma|Nike", None, " Puma ; Fila", "Nike", ""],
        "tags": [["x", "y"], ["x"], [], None, ["z", "x", "y", "x"], ["w"]],
        "price": [1.0, 2.0, None, float("nan"), 5.0, 3.0],
        "title": ["red running shoe", "blue running shoe", None, "red hat", "blue hat", "unheard"],
        "image": [[1.0, 2.0], [3.0, 2.0], None, [0.0, 5.0], [], [4.0, 4.0]],
        "unused": [1, 2, 3, 4, 5, 6],
    }
)
FEATURES = (
    Feature("image", "vector"),
    Feature("brand", "category"),
    Feature("price", "number"),
    Feature("title", "text"),
    Feature("tags", "category"),
)
FITTED = np.array([True, True, True, True, True, False])


def dense(content: Content) -> np.ndarray:
    return np.concatenate([content.sparse.toarray(), content.dense], axis=1)


def of(encoder: FeatureEncoder, table: pl.DataFrame, *names: str) -> np.ndarray:
    """The columns of the content under some names."""
    return dense(encoder.encode(table))[:, [encoder.names().index(name) for name in names]]


def test_categories_are_ones_over_the_root_of_their_number() -> None:
    encoder = FeatureEncoder.fit(TABLE, FEATURES, FITTED)
    names = ["brand=Nike", "brand=Puma", "brand=Fila"]  # the most common first
    assert [name for name in encoder.names() if name.startswith("brand")] == names
    half = np.sqrt(0.5)
    wanted = [[1, 0, 0], [half, half, 0], [0, 0, 0], [0, half, half], [1, 0, 0], [0, 0, 0]]
    assert of(encoder, TABLE, *names) == pytest.approx(np.array(wanted))
    third = np.sqrt(1 / 3)
    tags = [[half, half, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0], [third, third, third], [0, 0, 0]]
    assert of(encoder, TABLE, "tags=x", "tags=y", "tags=z") == pytest.approx(np.array(tags))
    assert "tags=w" not in encoder.names()  # of an item without training interactions


def test_few_numbers_have_a_bin_each() -> None:
    encoder = FeatureEncoder.fit(TABLE, FEATURES, FITTED)
    names = ["price < 2", "price in [2, 5)", "price >= 5"]
    assert [name for name in encoder.names() if name.startswith("price")] == names
    wanted = [[1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 1], [0, 1, 0]]
    assert of(encoder, TABLE, *names).tolist() == wanted
    same = pl.DataFrame({"item_id": [1, 2, 3], "n": [4, 4, None]})
    constant = FeatureEncoder.fit(same, (Feature("n", "number"),))
    assert constant.names() == ["n is given"]
    assert constant.encode(same).sparse.toarray().tolist() == [[1], [1], [0]]


def test_bins_of_numbers_hold_a_tenth_each() -> None:
    values = np.random.default_rng(0).permutation(1000).astype(float)
    table = pl.DataFrame({"item_id": range(1000), "n": values})
    encoder = FeatureEncoder.fit(table, (Feature("n", "number"),))
    matrix = encoder.encode(table).sparse.toarray()
    assert matrix.shape == (1000, 10)
    assert (matrix.sum(axis=1) == 1).all()
    assert np.abs(matrix.sum(axis=0) - 100).max() <= 1
    bins = matrix.argmax(axis=1)
    order = np.argsort(values)
    assert (np.diff(bins[order]) >= 0).all()
    # A new item far outside is in an outer bin; text of a CSV file counts as its number.
    outside = pl.DataFrame({"item_id": [1, 2, 3], "n": ["-1e6", " 5000 ", ""]})
    assert encoder.encode(outside).sparse.toarray()[:, [0, 9]].tolist() == [[1, 0], [0, 1], [0, 0]]


def test_many_equal_numbers_leave_fewer_bins_and_none_empty() -> None:
    table = pl.DataFrame({"item_id": range(100), "n": [0.0] * 85 + list(range(1, 16))})
    encoder = FeatureEncoder.fit(table, (Feature("n", "number"),))
    matrix = encoder.encode(table).sparse.toarray()
    assert 2 <= matrix.shape[1] < 10
    assert (matrix.sum(axis=0) > 0).all()


def test_vectors_are_centred_and_of_root_mean_square_norm_one() -> None:
    encoder = FeatureEncoder.fit(TABLE, FEATURES, FITTED)
    given = np.array([[1.0, 2.0], [3.0, 2.0], [0.0, 5.0]])  # with training interactions and a vector
    mean = given.mean(axis=0)
    scale = np.sqrt(((given - mean) ** 2).sum(axis=1).mean())
    wanted = np.zeros((6, 2))
    wanted[[0, 1, 3, 5]] = (np.array([[1, 2], [3, 2], [0, 5], [4, 4]]) - mean) / scale
    found = of(encoder, TABLE, "image 0", "image 1")
    assert found == pytest.approx(wanted, abs=1e-6)
    assert (found[[0, 1, 3]] ** 2).sum(axis=1).mean() == pytest.approx(1)
    same = pl.DataFrame({"item_id": [1, 2], "v": [[3.0, 3.0], [3.0, 3.0]]})
    assert not FeatureEncoder.fit(same, (Feature("v", "vector"),)).encode(same).dense.any()


def test_only_fitted_rows_are_learned_from() -> None:
    other = TABLE.with_columns(
        brand=pl.when(pl.col("item_id") == "f").then(pl.lit("Reebok")).otherwise("brand"),
        price=pl.when(pl.col("item_id") == "f").then(1e9).otherwise("price"),
        title=pl.when(pl.col("item_id") == "f").then(pl.lit("red red hat shoe")).otherwise("title"),
        image=pl.when(pl.col("item_id") == "f").then(pl.lit([1e6, 1e6])).otherwise("image"),
    )
    one, two = (FeatureEncoder.fit(table, FEATURES, FITTED) for table in (TABLE, other))
    assert one.settings() == two.settings()
    for name, array in one.arrays().items():
        assert (two.arrays()[name] == array).all()


def test_the_round_trip_is_equal_to_the_bit() -> None:
    encoder = FeatureEncoder.fit(TABLE, FEATURES, FITTED, seed=3)
    again = FeatureEncoder.load(json.loads(json.dumps(encoder.settings())), encoder.arrays())
    assert again.features == FEATURES
    assert again.names() == encoder.names()
    assert again.settings() == encoder.settings()
    assert (dense(again.encode(TABLE)) == dense(encoder.encode(TABLE))).all()
    assert {array.dtype.name for array in encoder.arrays().values()} <= {"int64", "float32"}
    content = encoder.encode(TABLE)
    assert (content.sparse.dtype, content.dense.dtype) == (np.float32, np.float32)
    assert (encoder.num_sparse, encoder.num_dense) == (content.sparse.shape[1], content.dense.shape[1])
    assert len(encoder.names()) == encoder.num_sparse + encoder.num_dense


def test_rows_do_not_depend_on_the_rest_of_the_table() -> None:
    encoder = FeatureEncoder.fit(TABLE, FEATURES, FITTED)
    whole = encoder.encode(TABLE)
    shuffled = TABLE.select(reversed(TABLE.columns)).drop("unused")
    assert (dense(encoder.encode(shuffled)) == dense(whole)).all()
    for row in range(len(TABLE)):
        assert (dense(encoder.encode(TABLE[row : row + 1])) == dense(whole)[row]).all()
    taken = whole.take([4, 0, 4])
    assert (dense(taken) == dense(whole)[[4, 0, 4]]).all()
    assert len(taken) == 3
    assert (dense(whole.take(FITTED)) == dense(whole)[:5]).all()
    assert len(whole.take([])) == 0
    assert whole.known.tolist() == [True, True, False, True, True, True]
    assert len(encoder.encode(TABLE.clear())) == 0


def test_new_items_may_lack_values_and_bring_new_ones() -> None:
    encoder = FeatureEncoder.fit(TABLE, FEATURES, FITTED)
    new = pl.DataFrame(
        {
            "item_id": ["n1", "n2"],
            "brand": ["Acme|Nike", "Acme"],
            "tags": [None, None],  # a column of nulls has no type
            "price": [None, None],
            "title": [None, "completely novel"],
            "image": [None, None],
        }
    )
    content = encoder.encode(new)
    assert of(encoder, new, "brand=Nike").ravel().tolist() == [1, 0]
    assert dense(content).sum() == 1
    notes = encoder.notes(new)
    assert "1 values of 'brand', in 2 of 2 rows, are not among those learned and say nothing, such as 'Acme'." in notes
    assert "'price' is missing in 2 of 2 rows." in notes
    assert any("1 of 2 texts of 'title' share no word" in note and "'completely novel'" in note for note in notes)
    assert encoder.notes(TABLE[:1]) == []


def test_tables_that_do_not_fit() -> None:
    encoder = FeatureEncoder.fit(TABLE, FEATURES, FITTED)
    with pytest.raises(DataError, match="item table has no column 'brand', which is a declared feature"):
        encoder.encode(TABLE.drop("brand"))
    with pytest.raises(DataError, match="holds vectors of 3 values, and the model learned from vectors of 2"):
        encoder.encode(TABLE.with_columns(image=pl.lit([1.0, 2.0, 3.0])))
    with pytest.raises(DataError, match=r"row 1 \(item 'b'\) holds values that are not finite"):
        encoder.encode(TABLE.with_columns(image=pl.Series([[1.0, 2.0], [1.0, None], None, None, None, None])))
    with pytest.raises(DataError, match="values of type String, so it is no vector"):
        encoder.encode(TABLE.with_columns(image=pl.lit("1 2")))
    with pytest.raises(DataError, match=r"no finite numbers, such as 'cheap' in row 2 \(item 'c'\)"):
        encoder.encode(TABLE.with_columns(price=pl.Series(["1", "2", "cheap", None, "5", "6"])))
    with pytest.raises(DataError, match="no column 'brand'"):
        FeatureEncoder.fit(TABLE.drop("brand"), FEATURES)


def test_rare_values_are_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(categories, "MOST_VALUES", 2)
    table = pl.DataFrame({"item_id": range(7), "brand": ["c", "a", "b", "a", "b", "b", "d|a"]})
    encoder = FeatureEncoder.fit(table, (Feature("brand", "category"),))
    assert encoder.names() == ["brand=a", "brand=b"]
    assert encoder.encode(table).sparse.toarray()[[0, 6]].tolist() == [[0, 0], [1, 0]]
    assert encoder.notes(table)[0] == ("'brand' has 4 values; the 2 most common are used. The other 2 are in 2 rows.")


def test_nothing_to_learn_from() -> None:
    encoder = FeatureEncoder.fit(TABLE, FEATURES, np.array([False, False, True, False, False, False]))
    content = encoder.encode(TABLE)
    assert (content.sparse.shape, content.dense.shape) == ((6, 0), (6, 0))
    again = FeatureEncoder.load(json.loads(json.dumps(encoder.settings())), encoder.arrays())
    assert again.encode(TABLE).dense.shape == (6, 0)
    assert len(content.take([1, 2])) == 2
    none = FeatureEncoder.fit(TABLE, ())
    assert dense(none.encode(TABLE)).shape == (6, 0)


def test_integers_booleans_and_floats_as_categories_agree_across_tables() -> None:
    table = pl.DataFrame({"item_id": [1, 2, 3], "year": [1999, 2000, 1999], "new": [True, False, None]})
    encoder = FeatureEncoder.fit(table, (Feature("year", "category"), Feature("new", "category")))
    assert encoder.names() == ["year=1999", "year=2000", "new=false", "new=true"]
    # The same column with a gap, as pandas reads it; as text; and as a categorical.
    gap = table.with_columns(year=pl.Series([1999.0, 2000.0, float("nan")]))
    wanted = encoder.encode(table).sparse.toarray()
    assert encoder.encode(gap).sparse.toarray()[:2].tolist() == wanted[:2].tolist()
    for kind in (pl.String, pl.Categorical):
        other = table.with_columns(pl.col("year").cast(pl.String).cast(kind))
        assert encoder.encode(other).sparse.toarray().tolist() == wanted.tolist()


def test_settings_and_arrays_are_checked() -> None:
    encoder = FeatureEncoder.fit(TABLE, FEATURES, FITTED)
    text = json.dumps(encoder.settings())
    damages = [
        (lambda s: s["features"][0].update(scale=-1.0), "'image': the scale"),
        (lambda s: s["features"][0].update(scale=float("nan")), "'image': the scale"),
        (lambda s: s["features"][1].update(values=["a", "a"]), "'brand': a value is repeated"),
        (lambda s: s["features"][1].update(values=[1]), "'brand': values are no text"),
        (lambda s: s["features"][1].update(left_out=[1]), "'brand': left_out"),
        (lambda s: s["features"][2].update(edges=[2.0, 1.0]), "'price': edges do not increase"),
        (lambda s: s["features"][2].update(edges=["1"]), "'price': edges are no numbers"),
        (lambda s: s["features"][3].update(learned_from=None), "'title': learned_from"),
        (lambda s: s["features"][3].update(kind="prose"), "has the kind 'prose'"),
        (lambda s: s["features"].append(s["features"][1]), "a feature is repeated"),
        (lambda s: s["features"].insert(0, 3), "feature 0 is no mapping"),
        (lambda s: s.pop("features"), "features are no list"),
    ]
    for damage, match in damages:
        damaged = json.loads(text)
        damage(damaged)
        with pytest.raises(ValueError, match=match):
            FeatureEncoder.load(damaged, encoder.arrays())
    arrays = encoder.arrays()
    for name, wrong, match in (
        ("0.mean", None, "'image': the mean"),
        ("0.mean", np.array([np.nan, 1], dtype=np.float32), "'image': the mean is not finite"),
        ("3.idf", arrays["3.idf"][1:], "'title': terms, idf and components differ"),
        ("3.terms", arrays["3.terms"][::-1], "'title': terms do not increase"),
        ("3.terms", arrays["3.terms"] + 2**20, "'title': terms are not below 1048576"),
        ("3.terms", arrays["3.terms"] - 2**20, "'title': terms are not below 1048576"),
        ("3.components", arrays["3.components"] * np.inf, "'title': idf or components are not finite"),
        ("3.components", arrays["3.components"].astype(np.float64), "'title': components are missing or odd"),
    ):
        changed = {key: array for key, array in (arrays | {name: wrong}).items() if array is not None}
        with pytest.raises(ValueError, match=match):
            FeatureEncoder.load(json.loads(text), changed)


ODD = (None, True, -1, 1.5, float("inf"), "x", "category", [], [1, 2], [[]], {}, {"values": []})


def test_whatever_settings_hold_they_load_or_are_refused() -> None:
    encoder = FeatureEncoder.fit(TABLE, FEATURES, FITTED)
    text, arrays = json.dumps(encoder.settings()), encoder.arrays()
    places = [(n, name) for n, entry in enumerate(encoder.settings()["features"]) for name in entry]
    refused = 0
    for place, name in places:
        for value in ODD:
            changed = json.loads(text)
            changed["features"][place][name] = value
            try:
                loaded = FeatureEncoder.load(changed, arrays)
            except ValueError:
                refused += 1
            else:
                assert all(isinstance(column, str) for column in loaded.names())
    assert refused > 0.8 * len(places) * len(ODD)
    for value in ODD:
        with pytest.raises(ValueError):
            FeatureEncoder.load(value, arrays)  # pyright: ignore[reportArgumentType]
        for name in arrays:
            with pytest.raises(ValueError):
                FeatureEncoder.load(json.loads(text), arrays | {name: np.array([value], dtype=object)})


cells = st.one_of(st.none(), st.lists(st.sampled_from(["a", "b", "c", "dd", " e"]), max_size=4))


@settings(max_examples=60, deadline=None)
@given(st.lists(cells, min_size=1, max_size=12), st.data())
def test_categories_equal_brute_force(rows, data) -> None:
    fitted = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))))
    table = pl.DataFrame({"item_id": range(len(rows)), "c": pl.Series(rows, dtype=pl.List(pl.String))})
    as_text = table.with_columns(
        c=pl.Series([None if row is None else " | ".join(row) for row in rows], dtype=pl.String)
    )
    encoder = FeatureEncoder.fit(table, (Feature("c", "category"),), fitted)
    seen = {value.strip() for row, learned in zip(rows, fitted, strict=True) if learned for value in row or ()}
    assert {name.removeprefix("c=") for name in encoder.names()} == seen
    wanted = np.zeros((len(rows), len(seen)))
    for place, row in enumerate(rows):
        known = {value.strip() for value in row or ()} & seen
        for value in known:
            wanted[place, encoder.names().index(f"c={value}")] = 1 / np.sqrt(len(known))
    assert encoder.encode(table).sparse.toarray() == pytest.approx(wanted)
    assert encoder.encode(as_text).sparse.toarray() == pytest.approx(wanted)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6), st.integers(0, 3)), min_size=1, max_size=60))
def test_every_number_is_in_one_bin_and_bins_keep_the_order(values) -> None:
    table = pl.DataFrame({"item_id": range(len(values)), "n": pl.Series(values, dtype=pl.Float64, strict=False)})
    encoder = FeatureEncoder.fit(table, (Feature("n", "number"),))
    matrix = encoder.encode(table).sparse.toarray()
    known = np.array([value is not None for value in values])
    assert (matrix.sum(axis=1) == known).all()
    assert bool(known.any()) <= matrix.shape[1] <= 10
    assert (matrix.sum(axis=0) > 0).all()
    if not known.any():
        return
    bins = matrix.argmax(axis=1)[known]
    numbers = np.array([value for value in values if value is not None], dtype=float)
    assert (np.diff(bins[np.argsort(numbers, kind="stable")]) >= 0).all()
