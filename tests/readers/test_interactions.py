"""From a table to a dataset: numbering, order, duplicates, filters, and what goes with the interactions."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rediffuse.data.dataset import Dataset
from rediffuse.errors import ConfigError, DataError
from rediffuse.readers.interactions import read_interactions


def frame(rows: list[tuple], *columns: str) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=list(columns), orient="row")


def build(rows: list[tuple], *columns: str, **options: Any) -> Dataset:
    return read_interactions(frame(rows, *(columns or ("user_id", "item_id", "time"))), **options)


PLAIN = [("b", "y", 1), ("a", "x", 5), ("b", "x", 2), ("a", "y", 4)]


# --- numbering and order ------------------------------------------------------------------------------------


def test_numbers_and_order() -> None:
    data = build(PLAIN, time="time")
    assert data.user_ids.to_list() == ["a", "b"]
    assert data.item_ids.to_list() == ["x", "y"]
    assert data.user_ids.name == "user_id"
    assert data.interactions.row(0).tolist() == [1, 0]
    assert data.interactions.row(1).tolist() == [1, 0]
    assert data.interactions.times is not None
    assert data.interactions.times.tolist() == [4, 5, 1, 2]
    assert (data.interactions.items.dtype, data.interactions.offsets.dtype) == (np.int32, np.int64)
    assert data.report["rows"] == data.report["interactions"] == 4


def test_without_time_rows_keep_their_order() -> None:
    data = build(PLAIN)
    assert not data.has_timestamps
    assert data.interactions.times is None
    assert data.interactions.row(0).tolist() == [0, 1]


def test_order_column_is_not_a_time() -> None:
    data = build(PLAIN, order="time")
    assert not data.has_timestamps
    assert data.interactions.row(0).tolist() == [1, 0]
    assert data.interactions.times is not None
    assert data.interactions.times.tolist() == [4, 5, 1, 2]


def test_order_breaks_ties_of_time() -> None:
    rows = [(1, 10, 7, 2), (1, 20, 7, 1), (1, 30, 6, 3)]
    data = build(rows, "user_id", "item_id", "time", "place", time="time", order="place")
    assert data.has_timestamps
    assert data.item_ids.gather(data.interactions.row(0)).to_list() == [30, 20, 10]
    assert data.interactions.times is not None
    assert data.interactions.times.tolist() == [6, 7, 7]


triples = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9), st.integers(0, 4)), min_size=2, max_size=60)


@given(triples)
@settings(deadline=None, max_examples=60)
def test_ties_keep_file_order(rows: list[tuple[int, int, int]]) -> None:
    assume(len({item for _, item, _ in rows}) > 1)
    data = build(rows, time="time")
    for number, user in enumerate(data.user_ids):
        expected = [item for _, item, _ in sorted((r for r in rows if r[0] == user), key=lambda row: row[2])]
        assert data.item_ids.gather(data.interactions.row(number)).to_list() == expected


@given(triples, st.randoms())
@settings(deadline=None, max_examples=30)
def test_numbering_does_not_depend_on_the_order_of_rows(rows: list[tuple], random: Any) -> None:
    rows = [(u, i, t) for t, (u, i, _) in enumerate(rows)]
    assume(len({item for _, item, _ in rows}) > 1)
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert build(rows, time="time").fingerprint == build(shuffled, time="time").fingerprint


# --- policies -----------------------------------------------------------------------------------------------

REPEATS = [(1, 10, 1), (1, 20, 2), (1, 10, 3), (2, 10, 4), (1, 10, 5)]


@pytest.mark.parametrize(("policy", "times"), [("keep", [1, 2, 3, 5, 4]), ("first", [1, 2, 4]), ("last", [2, 5, 4])])
def test_duplicates(policy: Any, times: list[int]) -> None:
    data = build(REPEATS, time="time", duplicates=policy)
    assert data.interactions.times is not None
    assert data.interactions.times.tolist() == times
    assert data.report["repeated_interactions"] == 2
    assert data.report.get("dropped_duplicates", 0) == (0 if policy == "keep" else 2)
    assert any("2 " in note for note in data.report["notes"])


def test_first_is_the_earliest_not_the_topmost() -> None:
    data = build([(1, 10, 9), (1, 10, 3), (1, 20, 5)], time="time", duplicates="first")
    assert data.interactions.times is not None
    assert data.interactions.times.tolist() == [3, 5]


def test_min_rating() -> None:
    rows = [(1, 10, 4.0), (1, 20, 3.9), (2, 30, 5.0)]
    data = build(rows, "user_id", "item_id", "rating", rating="rating", min_rating=4)
    assert data.item_ids.to_list() == [10, 30]
    assert data.report["dropped_below_min_rating"] == 1
    with pytest.raises(DataError, match=r"(?s)No interactions are left after min_rating=6.*highest rating is 5"):
        _ = build(rows, "user_id", "item_id", "rating", rating="rating", min_rating=6)


def test_filters_run_in_the_documented_order() -> None:
    """Threshold, then duplicates, then k-core: repeats that fall to the policy do not count for the core."""
    rows = [(1, 10, 1, 5), (1, 10, 2, 5), (1, 20, 3, 5), (2, 10, 4, 5), (2, 20, 5, 1), (2, 20, 6, 5)]
    columns = ("user_id", "item_id", "time", "rating")
    data = build(rows, *columns, time="time", rating="rating", min_rating=2, duplicates="first", k_core=2)
    assert data.interactions.times is not None
    assert data.interactions.times.tolist() == [1, 3, 4, 6]


def test_k_core_renumbers() -> None:
    rows = [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y"), ("c", "x"), ("b", "z")]
    data = build(rows, "user_id", "item_id", k_core=2)
    assert (data.user_ids.to_list(), data.item_ids.to_list()) == (["a", "b"], ["x", "y"])
    assert data.report["dropped_by_k_core"] == 2
    with pytest.raises(DataError, match="No interactions are left after k_core=5"):
        build(rows, "user_id", "item_id", k_core=5)


def test_one_user_is_allowed_and_said() -> None:
    data = build([(1, 10), (1, 20)], "user_id", "item_id")
    assert data.num_users == 1
    assert "There is a single user." in data.report["notes"]


def test_one_item_is_refused() -> None:
    with pytest.raises(DataError, match=r"(?s)single item, 10.*at least two items"):
        build([(1, 10), (2, 10)], "user_id", "item_id")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"duplicates": "frist"}, "Did you mean 'first'"),
        ({"k_core": 0}, "k_core is 0"),
        ({"min_rating": 3}, "without a rating column"),
        ({"title": "name"}, "without a table of items"),
        ({"kg": pl.DataFrame()}, "item_entity"),
        ({"item": "user_id"}, "both column 'user_id'"),
    ],
)
def test_options(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(PLAIN, **options)


# --- tables of items and users ------------------------------------------------------------------------------


def test_items_table() -> None:
    items = frame([("y", "Ypsilon ", 3), ("q", "Q", 4), ("y", "again", 5)], "item_id", "title", "year")
    data = build([*PLAIN, ("a", "z", 9)], items=items)
    assert data.items is not None
    assert data.title == "title"
    assert data.items.columns == ["item_id", "title", "year"]
    assert data.items.rows() == [("x", None, None), ("y", "Ypsilon", 3), ("z", None, None)]
    assert data.report["items_table_unknown"] == 1
    assert data.report["items_table_repeated"] == 1
    assert data.report["items_undescribed"] == 2


def test_items_table_under_the_callers_name() -> None:
    rows = [(1, 10), (1, 20)]
    items = frame([(20, "B"), (10, "A")], "movieId", "name")
    data = build(rows, "userId", "movieId", user="userId", item="movieId", items=items, title="name")
    assert data.items is not None
    assert data.items.rows() == [(10, "A"), (20, "B")]
    with pytest.raises(DataError, match=r"no column 'nome' \(title\)"):
        build(rows, "userId", "movieId", user="userId", item="movieId", items=items, title="nome")


def test_text_and_integer_ids_meet_only_if_written_the_same(tmp_path: Any) -> None:
    path = tmp_path / "items.csv"
    path.write_text("item_id,title\n10,ten\n020,twenty\n")
    data = build([(1, 10), (1, 20)], "user_id", "item_id", items=path)
    assert data.items is not None
    assert data.items["title"].to_list() == ["ten", None]


def test_users_table() -> None:
    data = build(PLAIN, users=frame([("b", 30)], "user_id", "age"))
    assert data.users is not None
    assert data.users.rows() == [("a", None), ("b", 30)]


def test_table_without_id_column() -> None:
    with pytest.raises(DataError, match=r"the items dataframe has no column 'item_id' \(item\)"):
        build(PLAIN, items=frame([(1,)], "id"))
    with pytest.raises(DataError, match=r"no column 'source'; its(.*\n).*Rename the column of the source to source\."):
        build(PLAIN, social=frame([("a", "b")], "a", "b"))
    with pytest.raises(DataError, match=r"the interactions dataframe has no columns\.\n.*the user"):
        read_interactions(pl.DataFrame())


# --- social graph -------------------------------------------------------------------------------------------


def test_social_graph() -> None:
    links = frame([("a", "b"), ("b", "a"), ("a", "b"), ("c", "c"), ("a", "d")], "source", "target")
    data = build(PLAIN, social=links)
    assert data.social is not None
    assert data.user_ids.to_list() == ["a", "b", "c", "d"]
    assert list(zip(data.social.source, data.social.target, strict=True)) == [(0, 1), (1, 0), (0, 3)]
    assert len(data.interactions) == 4
    assert data.interactions.lengths.tolist() == [2, 2, 0, 0]
    assert data.report["social_self_links"] == 1
    assert data.report["social_repeated"] == 1
    assert data.report["users_without_interactions"] == 2
    assert data.social.source.dtype == np.int32


def test_social_ids_of_another_type() -> None:
    rows = [(1, 10), (2, 20)]
    data = build(rows, "user_id", "item_id", social=frame([("1", "2")], "source", "target"))
    assert data.social is not None
    assert len(data.social) == 1
    with pytest.raises(DataError, match=r"row 1: column 'target' .* is 'x', and the users .* are integers"):
        build(rows, "user_id", "item_id", social=frame([("1", "x")], "source", "target"))


# --- knowledge graph ----------------------------------------------------------------------------------------


def test_knowledge_graph() -> None:
    kg = frame(
        [("e1", "r", "e2"), ("e1", "r", "e2"), ("e2", "s", "e2"), ("e3", "s", "e1")],
        "head",
        "relation",
        "tail",
    )
    link = frame([("x", "e1"), ("x", "e1"), ("q", "e2"), ("y", "e9")], "item_id", "entity_id")
    data = build(PLAIN, kg=kg, item_entity=link)
    graph = data.kg
    assert graph is not None
    assert graph.entity_ids.to_list() == ["e1", "e2", "e3", "e9"]
    assert graph.relation_ids.to_list() == ["r", "s"]
    assert list(zip(graph.head, graph.relation, graph.tail, strict=True)) == [(0, 0, 1), (2, 1, 0)]
    assert graph.item_entity.tolist() == [[0, 0], [1, 3]]
    assert graph.item_entity.dtype == np.int32
    report = data.report
    assert (report["kg_repeated"], report["kg_self_links"]) == (1, 1)
    assert (report["item_entity_unknown"], report["item_entity_repeated"], report["kg_linked_items"]) == (
        1,
        1,
        1,
    )
    assert report["kg_items_linked_nowhere"] == 1


def test_entities_of_different_types_are_text() -> None:
    kg = frame([(1, 5, "n1")], "head_id", "relation_id", "tail_id")
    data = build(PLAIN, kg=kg, item_entity=frame([("x", 1)], "item_id", "entity_id"))
    assert data.kg is not None
    assert data.kg.entity_ids.to_list() == ["1", "n1"]
    assert data.kg.relation_ids.to_list() == [5]


def test_missing_entity() -> None:
    kg = frame([("a", "r", None)], "head", "relation", "tail")
    with pytest.raises(DataError, match="the kg dataframe, row 1: column 'tail'"):
        build(PLAIN, kg=kg, item_entity=frame([("x", "a")], "item_id", "entity_id"))


# --- given splits -------------------------------------------------------------------------------------------


def subsets(data: Dataset, scheme: str = "given") -> list[int]:
    return data.given[scheme].tolist()


def test_given_split() -> None:
    splits = frame(
        [("a", "x", "test"), ("a", "y", "train"), ("b", "y", "Validation"), ("b", "q", "train")],
        "user_id",
        "item_id",
        "split",
    )
    data = build(PLAIN, time="time", splits=splits)
    assert subsets(data) == [0, 2, 1, -1]
    assert data.report["split_given_unmatched"] == 1
    assert data.report["split_given_unused"] == 1


def test_schemes() -> None:
    rows = [(u, i, "test" if i == "x" else "train", s) for s in ("one", "two") for u, i, _ in PLAIN]
    data = build(PLAIN, time="time", splits=frame(rows, "user_id", "item_id", "split", "scheme"))
    assert list(data.given) == ["one", "two"]
    assert subsets(data, "one") == [0, 2, 0, 2]


@pytest.mark.parametrize("column", ["time", "position", None])
def test_repeated_pairs_meet_in_order(column: str | None) -> None:
    """The n-th row of a pair is about its n-th interaction, in order of the time column, else of rows."""
    interactions = [(1, 10, 30), (1, 10, 10), (1, 20, 20)]
    rows = [(1, 10, 30, "test"), (1, 10, 10, "train"), (1, 20, 20, "valid")]
    if column is None:
        rows = [rows[1], rows[0], rows[2]]
    splits = frame(rows, "user_id", "item_id", column or "else", "split")
    assert subsets(build(interactions, time="time", splits=splits)) == [0, 1, 2]


def test_splits_follow_their_events_through_filters() -> None:
    interactions = [(1, 10, 1), (1, 10, 2), (1, 20, 3)]
    splits = frame(
        [(1, 10, 1, "train"), (1, 10, 2, "test"), (1, 20, 3, "valid")], "user_id", "item_id", "time", "split"
    )
    assert subsets(build(interactions, time="time", splits=splits, duplicates="last")) == [2, 1]


def test_bad_splits() -> None:
    with pytest.raises(DataError, match=r"(?s)row 2: column 'split' \(subset\) is 'exam'.*train, valid and test"):
        build(PLAIN, splits=frame([("a", "x", "test"), ("b", "x", "exam")], "user_id", "item_id", "split"))
    with pytest.raises(DataError, match="no row of the split 'given' matches"):
        build(PLAIN, splits=frame([("q", "x", "test")], "user_id", "item_id", "split"))
