"""Tables beside the interactions that do not meet them are refused; that hardly meet them, said."""

from __future__ import annotations

import warnings
from typing import Any

import polars as pl
import pytest

from rediffuse.errors import DataError, RediffuseWarning
from rediffuse.readers.interactions import read_interactions

ROWS = pl.DataFrame({"user_id": [1, 1, 2, 3], "item_id": ["a", "b", "c", "d"]})
TRIPLES = pl.DataFrame({"head": ["m1", "m2"], "relation": ["r", "r"], "tail": ["m3", "m3"]})


@pytest.mark.parametrize(
    ("tables", "there", "here"),
    [
        ({"items": pl.DataFrame({"item_id": ["A", "B"]})}, "'A'", "'a'"),
        ({"users": pl.DataFrame({"user_id": [10, 20]})}, "10", "1"),
        ({"users": pl.DataFrame({"user_id": ["1.0", "2.0"]})}, "'1.0'", "1"),
        ({"social": pl.DataFrame({"source": [10, 20], "target": [20, 30]})}, "10", "1"),
        ({"kg": TRIPLES, "item_entity": pl.DataFrame({"item_id": ["A"], "entity_id": ["m1"]})}, "'A'", "'a'"),
        ({"kg": TRIPLES, "item_entity": pl.DataFrame({"item_id": ["a"], "entity_id": ["M1"]})}, "'M1'", "'m1'"),
    ],
)
def test_nothing_in_common_is_refused(tables: dict[str, Any], there: str, here: str) -> None:
    with pytest.raises(DataError, match=rf"(?s)none of the .*The first is {there}, and .* such as {here}\.\n") as error:
        read_interactions(ROWS, **tables)
    assert "Use the same ids in both tables" in str(error.value)


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"items": pl.DataFrame({"item_id": ["a", "X"]})}, r"only 1 of 4 items have a row in the item table \(25%\)"),
        ({"users": pl.DataFrame({"user_id": [1]})}, r"only 1 of 3 users have a row in the user table \(33%\)"),
        (
            {"social": pl.DataFrame({"source": [1, 20], "target": [30, 40]})},
            r"only 1 of 4 users of the social links have interactions \(25%\)",
        ),
        (
            {"kg": TRIPLES, "item_entity": pl.DataFrame({"item_id": ["a"], "entity_id": ["m1"]})},
            r"only 1 of 4 items have a link to an entity",
        ),
        (
            {"kg": TRIPLES, "item_entity": pl.DataFrame({"item_id": ["a", "b", "c"], "entity_id": ["m1", "x", "y"]})},
            r"only 1 of 3 linked items lead to an entity with a triple \(33%\)",
        ),
        (
            {
                "splits": pl.DataFrame(
                    {"user_id": [1, 7, 8], "item_id": ["a", "x", "y"], "split": ["train", "test", "test"]}
                )
            },
            "Fewer than half of the rows of the split 'given' match",
        ),
    ],
)
def test_less_than_half_is_a_warning(tables: dict[str, Any], says: str) -> None:
    with pytest.warns(RediffuseWarning, match=says):
        data = read_interactions(ROWS, **tables)
    assert any("nly" in note or "Fewer" in note for note in data.report["notes"])


def test_enough_in_common_is_no_warning() -> None:
    items = pl.DataFrame({"item_id": ["a", "b", *(f"x{n}" for n in range(50))]})  # a catalogue may be large
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_interactions(ROWS, items=items)


def test_links_that_lead_nowhere_do_not_count() -> None:
    link = pl.DataFrame({"item_id": ["a", "b", "c"], "entity_id": ["m1", "m2", "nowhere"]})
    report = read_interactions(ROWS, kg=TRIPLES, item_entity=link).report
    assert (report["kg_linked_items"], report["kg_items_linked_nowhere"]) == (2, 1)
