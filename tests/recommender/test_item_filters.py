"""Filters over the item table, against a row-by-row evaluation, and what is refused."""

from __future__ import annotations

import datetime
import random

import narwhals as nw
import narwhals.stable.v1 as nw1
import numpy as np
import polars as pl
import pytest

from rediffuse.errors import ConfigError
from rediffuse.recommender.filter_text import parse_filter
from rediffuse.recommender.item_filters import MAX_DEPTH, MAX_NODES, MAX_VALUES, ItemFilters, filter_text

TABLE = pl.DataFrame(
    {
        "item_id": [f"i{n}" for n in range(8)],
        "category": ["shoes", "socks", None, "shoes", "hats", "socks", "shoes", None],
        "price": [10.0, 50.0, 20.0, None, float("nan"), 5.0, 49.99, 60.0],
        "stock": [0, 1, 2, 3, None, 5, 6, 7],
        "from_csv": ["10", "9", "100", None, "7.5", "8", "1", "2"],
        "mixed": ["10", "9", "n/a", None, "7.5", "8", "1", "2"],
        "tags": [["a"], ["a", "b"], [], None, ["c", None], ["b"], ["a", "c"], ["d"]],
        "said": ["true", "False", None, "TRUE", "false", "true", "true", "false"],
        "new": [True, False, None, True, False, True, True, False],
        "since": [datetime.date(2024, 1, day) for day in range(1, 8)] + [None],
        "release year": [1990 + n for n in range(8)],
    }
)
FILTERS = ItemFilters(TABLE)


def rows(condition):
    return np.flatnonzero(FILTERS.allowed(condition)).tolist()


def truth(condition, row):
    """Three-valued logic, one row at a time: True, False or None."""
    if "and" in condition or "or" in condition:
        name = "and" if "and" in condition else "or"
        found = [truth(part, row) for part in condition[name]]
        decisive = name == "or"
        return decisive if decisive in found else None if None in found else not decisive
    if "not" in condition:
        found = truth(condition["not"], row)
        return None if found is None else not found
    value = row[condition["column"]]
    if value is None or value != value:
        return None
    if "range" in condition:
        tests = {"gt": value.__gt__, "gte": value.__ge__, "lt": value.__lt__, "lte": value.__le__}
        return all(tests[name](bound) is True for name, bound in condition["range"].items())
    wanted = [condition["eq"]] if "eq" in condition else condition["in"]
    return any(one in wanted for one in value) if isinstance(value, list) else value in wanted


def leaf(rng):
    return rng.choice(
        [
            {"column": "category", "eq": rng.choice(["shoes", "socks", "none"])},
            {"column": "category", "in": ["hats", "socks"]},
            {"column": "price", "range": {"gte": float(rng.randrange(60))}},
            {"column": "price", "range": {"gt": 4.0, "lt": float(rng.randrange(60))}},
            {"column": "stock", "range": {"lte": rng.randrange(8)}},
            {"column": "stock", "in": [1, 3, 7]},
            {"column": "tags", "eq": rng.choice("abcd")},
            {"column": "tags", "in": ["b", "c"]},
            {"column": "new", "eq": rng.random() < 0.5},
        ]
    )


def tree(rng, depth):
    kind = rng.choice(["and", "or", "not", "leaf"]) if depth else "leaf"
    if kind == "leaf":
        return leaf(rng)
    if kind == "not":
        return {"not": tree(rng, depth - 1)}
    return {kind: [tree(rng, depth - 1) for _ in range(rng.randint(1, 3))]}


def test_random_filters_match_rows_as_three_valued_logic_does():
    rng = random.Random(0)
    for _ in range(400):
        condition = tree(rng, 3)
        wanted = [n for n, row in enumerate(TABLE.iter_rows(named=True)) if truth(condition, row) is True]
        assert rows(condition) == wanted, condition


@pytest.mark.parametrize(
    ("text", "mapping", "expected"),
    [
        (
            "category == 'shoes' and price < 50",
            {"and": [{"column": "category", "eq": "shoes"}, {"column": "price", "range": {"lt": 50}}]},
            [0, 6],
        ),
        ("10 <= price < 50", {"column": "price", "range": {"gte": 10, "lt": 50}}, [0, 2, 6]),
        ("category in ['socks', 'hats']", {"column": "category", "in": ["socks", "hats"]}, [1, 4, 5]),
        ("category not in ('socks',)", {"not": {"column": "category", "in": ["socks"]}}, [0, 3, 4, 6]),
        ("category != 'shoes'", {"not": {"column": "category", "eq": "shoes"}}, [1, 4, 5]),
        ("not new", {"not": {"column": "new", "eq": True}}, [1, 4, 7]),
        ("stock > -1 and (tags == 'a' or tags == 'd')", None, [0, 1, 6, 7]),
        ("col('release year') >= 1996", {"column": "release year", "range": {"gte": 1996}}, [6, 7]),
        ("7 == stock", {"column": "stock", "eq": 7}, [7]),
        ("from_csv < 9", {"column": "from_csv", "range": {"lt": 9}}, [4, 5, 6, 7]),  # numbers, though text
        ("from_csv == 10", {"column": "from_csv", "eq": 10}, [0]),
        ("from_csv == '10'", {"column": "from_csv", "eq": "10"}, [0]),
        ("since >= '2024-01-06'", {"column": "since", "range": {"gte": "2024-01-06"}}, [5, 6]),
        ("said", {"column": "said", "eq": True}, [0, 3, 5, 6]),  # truth values, though text
        ("not said", None, [1, 4, 7]),
        ("new == true", {"column": "new", "eq": True}, [0, 3, 5, 6]),
        ("1 < stock < 3 < price", None, None),
    ],
)
def test_text_stands_for_a_mapping(text, mapping, expected):
    parsed = parse_filter(text)
    if mapping is not None:
        assert parsed == mapping
    if expected is not None:
        assert rows(text) == rows(parsed) == expected


def test_expressions_of_polars_and_narwhals():
    wanted = rows("category == 'shoes' and stock > 2")
    assert wanted == [3, 6]
    assert rows((pl.col("category") == "shoes") & (pl.col("stock") > 2)) == wanted
    for library in (nw, nw1):
        assert rows((library.col("category") == "shoes") & (library.col("stock") > 2)) == wanted


def nested(depth):
    condition = {"column": "new", "eq": True}
    for _ in range(depth):
        condition = {"not": condition}
    return condition


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ({"column": "categry", "eq": "shoes"}, "no column 'categry'.*\n.*'category'"),
        ("pirce < 3", "'price'"),
        ({"column": "category", "eq": 3}, "Column 'category' holds text, and the filter compares it with 3"),
        ({"column": "price", "eq": "cheap"}, "Column 'price' holds numbers, and the filter compares it with 'cheap'"),
        ({"column": "stock", "in": [1, True]}, "Column 'stock' holds integers.* with True"),
        ({"column": "new", "eq": "yes"}, "Column 'new' holds truth values"),
        ("category", "Column 'category' holds text, and the filter compares it with True"),
        ({"column": "tags", "range": {"gt": "a"}}, "'tags' holds lists, which have no order"),
        ({"column": "since", "eq": "soon"}, "'since' holds dates"),
        ("mixed < 9", "not all values are numbers, for example 'n/a'"),
        ("from_csv < '9'", "holds numbers, and its bounds are text"),
        ({"column": "price", "eq": None}, "None"),
        ({"column": "price", "eq": float("nan")}, "nan"),
        ({"column": "price", "eq": 10**400}, "64 bits"),
        ({"column": "price", "range": {"below": 3}}, "gt, gte, lt and lte"),
        ({"column": "price", "range": {}}, "gt, gte, lt and lte"),
        ({"column": "price"}, "A condition of the filter has 'column'"),
        ({"column": "price", "eq": 1, "in": [2]}, "A condition of the filter has"),
        ({"column": ["price"], "eq": 1}, "the name of a column"),
        ({}, "nothing"),
        ({"and": []}, "Give a list of conditions"),
        ({"or": {"column": "new", "eq": True}}, "Give a list of conditions"),
        ({"not": [1]}, "not a mapping"),
        ({"column": "price", "in": 3}, "Give a list of values"),
        (nested(MAX_DEPTH), "too large"),
        ({"or": [{"column": "new", "eq": True}] * MAX_NODES}, "too large"),
        ({"column": "stock", "in": list(range(MAX_VALUES + 1))}, "10,001 values"),
        (["shoes"], "filter is a list"),
        (pl.col("prize") < 3, "cannot be evaluated.*prize"),
        (pl.col("price"), "one truth value per item"),
        (pl.col("new").any(), "gives 1 rows"),
        ("category = 'shoes'", "cannot be read"),
        ("category == shoes", "Quote text: 'shoes'"),
        ("price < 3 if new else stock", "is no condition"),
        ("__import__('os').system('true')", "is no column"),
        ("open('x')", "is no column"),
        ("price.__class__ == 3", "is no column"),
        ("price < 1 + 1", "is no value"),
        ("category is 'shoes'", "is or is not"),
        ("category in 'shoes'", "is no list"),
        ("category == f'{price}'", "is no value"),
        ("not " * 5000 + "new", "."),
        ("(" * 5000, "."),
        ("new " * 5000, "20,000 characters"),
        ("", "cannot be read"),
    ],
)
def test_what_is_refused(condition, said):
    with pytest.raises(ConfigError, match=said):
        FILTERS.allowed(condition)


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
def test_every_mapping_of_text_is_evaluated_or_refused():
    """Random token soup never escapes as another error."""
    rng = random.Random(1)
    tokens = ["price", "category", "'shoes'", "3", "<", "==", "and", "or", "not", "(", ")", "in", "[", "]", ",", "-"]
    for _ in range(2000):
        text = " ".join(rng.choices(tokens, k=rng.randint(1, 8)))
        try:
            FILTERS.allowed(text)
        except ConfigError:
            continue


def test_without_an_item_table():
    with pytest.raises(ConfigError, match=r"no item table(.|\n)*prepare --items"):
        ItemFilters(None).allowed("price < 3")


def test_filters_as_text():
    assert filter_text(None) is None
    assert filter_text({"column": "a", "eq": 1}) == "{'column': 'a', 'eq': 1}"
    assert "price" in str(filter_text(pl.col("price") < 3))


def test_text_that_holds_numbers_alone_counts_as_numbers():
    filters = ItemFilters(
        pl.DataFrame({"item_id": ["a", "b"], "price": ["1", "2.5"], "size": ["1", "XL"], "stock": [3, None]})
    )
    assert [filters.holds_numbers(name) for name in ("price", "size", "stock")] == [True, False, True]
