"""Every id that a response holds is accepted, exactly: integers that JavaScript rounds, and ids with any character."""

from __future__ import annotations

import json

import polars as pl
import pytest
from starlette.testclient import TestClient

import rediffuse as rd
from rediffuse.serving.app import create_app

LARGE = 9_007_199_254_741_000  # beyond 2**53
STRANGE = [
    "Books|SciFi|4",
    "https://example.org/a/b?c=d&e=50%25#f",
    "100% wool",
    "a b",
    "ä/ö",
    "../..",
    "x" * 270,
    "y" * 70_000,
    "<b>",
    "+1",
]


def client_of(ids, users, folder):
    """A client of a service with a run of itemknn; each user interacts with all items but one."""
    rows = [
        {"user_id": user, "item_id": item, "timestamp": n * 100 + place}
        for n, user in enumerate(users)
        for place, item in enumerate(ids[: n % len(ids)] + ids[n % len(ids) + 1 :])
    ]
    table = pl.DataFrame(
        {"item_id": ids, "title": [f"Title {n}" for n in range(len(ids))], "seller": [LARGE + 1] * len(ids)}
    )
    data = rd.read_interactions(pl.DataFrame(rows), time="timestamp", items=table, title="title")
    run = rd.train("itemknn", rd.split.leave_one_out(data), folder).path
    return TestClient(create_app([run])), run.name


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    ids = [LARGE + n for n in range(8)]
    return client_of(ids, [LARGE + 100 + n for n in range(8)], tmp_path_factory.mktemp("large") / "run")


@pytest.fixture(scope="module")
def strange(tmp_path_factory):
    return client_of(STRANGE, [f"user {one}" for one in STRANGE], tmp_path_factory.mktemp("strange") / "run")


def as_javascript(response):
    """The content as a browser reads it: every number is a double."""
    assert response.status_code == 200, response.text[:500]
    return json.loads(response.text, parse_int=lambda digits: int(float(digits)))


@pytest.mark.parametrize("kind", ["large", "strange"])
def test_every_id_comes_back_and_is_accepted(kind, request):
    client, name = request.getfixturevalue(kind)
    with client:
        models = f"/v1/models/{name}"
        items = as_javascript(client.get(f"{models}/items?limit=50"))["items"]
        users = as_javascript(client.get(f"{models}/users?limit=50"))["users"]
        expected = STRANGE if kind == "strange" else [str(LARGE + n) for n in range(8)]
        assert sorted(item["item_id"] for item in items) == sorted(expected)
        assert len(users) == len(expected)
        for item in items:
            one = item["item_id"]
            found = as_javascript(client.post("/v1/recommend", json={"histories": [[one]], "k": 50}))
            assert found["ignored_items"] == []
            assert found["notes"] == []
            listed = {row["item_id"] for row in found["results"][0]["items"]}
            assert one not in listed
            assert listed <= set(expected)
            alone = {"histories": [[]], "candidates": [one], "k": 1, "filter_seen": False}
            returned = as_javascript(client.post("/v1/recommend", json=alone))["results"][0]["items"]
            assert [(row["item_id"], row["title"]) for row in returned] == [(one, item["title"])]
            similar = as_javascript(client.post("/v1/similar", json={"items": [one], "k": 3}))["results"][0]
            assert similar["item_id"] == one
            columns = as_javascript(client.post(f"{models}/columns", json={"items": [one]}))["items"]
            assert columns == [{"item_id": one, "columns": {"title": item["title"], "seller": str(LARGE + 1)}}]
            if len(one) < 60_000:
                assert as_javascript(client.get(f"{models}/columns", params={"item": one}))["items"] == columns
        for user in users:
            history = as_javascript(client.post(f"{models}/history", json={"user": user}))["items"]
            assert len(history) == len(expected) - 1
            if len(user) < 60_000:
                assert as_javascript(client.get(f"{models}/history", params={"user": user}))["items"] == history
                assert user in as_javascript(client.get(f"{models}/users", params={"q": user[:9_000]}))["users"]
            found = as_javascript(client.post("/v1/recommend", json={"users": [user], "k": 1}))
            assert [row["user"] for row in found["results"]] == [user]
            assert not [note for note in found["notes"] if "unknown" in note]


def test_integers_are_still_accepted_and_are_exact(large):
    client, name = large
    with client:
        for one in (LARGE + 3, str(LARGE + 3)):
            body = {"histories": [[]], "candidates": [one], "k": 1, "filter_seen": False}
            rows = client.post("/v1/recommend", json=body).json()["results"][0]["items"]
            assert [row["item_id"] for row in rows] == [str(LARGE + 3)]
        assert client.post(f"/v1/models/{name}/history", json={"user": LARGE + 101}).status_code == 200
        # Without users, the position of a history is an integer.
        results = client.post("/v1/recommend", json={"histories": [[LARGE], []], "k": 1}).json()["results"]
        assert [row["user"] for row in results] == [0, 1]
        unknown = client.post("/v1/recommend", json={"histories": [[LARGE + 50, str(LARGE + 51)]], "k": 1}).json()
        assert unknown["ignored_items"] == [LARGE + 50, str(LARGE + 51)]
