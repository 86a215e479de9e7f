"""Text "a|b|c" of ids and titles that may contain bars."""

from __future__ import annotations

import itertools
import random

import polars as pl
import pytest

import rediffuse as rd
from rediffuse.recommender.bars import BarSplitter
from rediffuse.recommender.user_files import UserFile


@pytest.mark.parametrize(
    ("names", "text", "expected"),
    [
        (["a", "b"], "a| b ||", ["a", "b"]),
        (["a|b", "a", "b"], "a|b", ["a|b"]),
        (["a|b", "a", "b"], "b|a", ["b", "a"]),
        (["a|b", "c"], "c|a|b|c", ["c", "a|b", "c"]),
        (["a|b", "a", "b|c"], "a|b|c", ["a", "b|c"]),  # the longest first would leave c over
        (["a||b"], "a||b|x", ["a||b", "x"]),
        (["|"], "|", ["|"]),
        (["a|b|c", "a|b"], "a|b|c|a|b", ["a|b|c", "a|b"]),
    ],
)
def test_known_names_are_not_split(names, text, expected):
    assert BarSplitter(names, set(names).__contains__).split(text) == expected


def test_the_split_is_the_best_of_all():
    draw = random.Random(0)
    for _ in range(300):
        names = {"|".join(draw.choices("ab", k=draw.randint(1, 3))) for _ in range(3)}
        pieces = draw.choices("abc", k=draw.randint(1, 6))
        found = BarSplitter(names, names.__contains__).split("|".join(pieces))
        costs = []
        for cuts in itertools.product([False, True], repeat=len(pieces) - 1):
            joined = [pieces[0]]
            for cut, piece in zip(cuts, pieces[1:], strict=True):
                joined = [*joined, piece] if cut else [*joined[:-1], f"{joined[-1]}|{piece}"]
            unknown = [name for name in joined if name not in names]
            if not any("|" in name for name in unknown):  # nothing unknown is joined
                costs.append((len(unknown), len(joined)))
        assert "|".join(found) == "|".join(pieces)
        assert (sum(name not in names for name in found), len(found)) == min(costs)


def test_long_text_is_split_in_little_time():
    names = {f"a{n}|b" for n in range(50)}
    text = "|".join(f"a{n % 50}|b" for n in range(50_000))
    assert len(BarSplitter(names, names.__contains__).split(text)) == 50_000


@pytest.fixture(scope="module")
def recommender(tmp_path_factory):
    ids = [f"Books|SciFi|{n}" for n in range(12)]
    rows = [
        {"user_id": f"u{user}", "item_id": ids[(user + step) % 12], "timestamp": 100 * user + step}
        for user in range(20)
        for step in range(5)
    ]
    titles = pl.DataFrame({"item_id": ids, "title": [f"AC|DC {n}" for n in range(12)]})
    data = rd.read_interactions(pl.DataFrame(rows), time="timestamp", items=titles, title="title")
    return rd.Recommender.load(
        rd.train("itemknn", rd.split.leave_one_out(data), tmp_path_factory.mktemp("bars") / "run")
    )


def test_ids_and_titles_with_bars_are_found(recommender):
    names = recommender.split_names("Books|SciFi|4|ac|dc 3| AC|DC 2 ")
    assert recommender.find_items(names) == ["Books|SciFi|4", "Books|SciFi|3", "Books|SciFi|2"]


def test_user_files_hold_ids_with_bars(recommender, tmp_path):
    pl.DataFrame(
        {"user_id": ["new", "newer", "newest"], "history": ["Books|SciFi|4", "Books|SciFi|1|Books|SciFi|2", ""]}
    ).write_csv(tmp_path / "users.csv")
    file = UserFile(tmp_path / "users.csv", recommender.is_known_user, recommender.titles.ids_in_text)
    assert file.read()[1].to_list() == [["Books|SciFi|4"], ["Books|SciFi|1", "Books|SciFi|2"], None]
