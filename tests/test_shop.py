"""The road of a shop: prepare, train, evaluate, refit, update the histories, recommend by the rules of the shop.

No customer is recommended an item of their own history, the newest interactions included, or one that the rules forbid.
"""

from __future__ import annotations

import json
import warnings

import numpy as np
import polars as pl
import pytest

import rediffuse as rd
from tests.test_cli import succeeds
from tests.test_docs import ROOT, examples
from tests.test_docs import run as run_example

CUSTOMERS, ITEMS, PRODUCTS, DAY = 60, 80, 40, 86_400
OPTIONS = {"sasrec": {"epochs": 2, "embedding_size": 16, "blocks": 1}, "bprmf": {"epochs": 2, "embedding_size": 8}}
FILTER = "category in ['shoes', 'socks'] and price < 60"


def items() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "sku": [f"A{n:03}" for n in range(ITEMS)],
            "title": [f"Item {n}" for n in range(ITEMS)],
            "category": [("shoes", "socks", "hats", None)[n % 4] for n in range(ITEMS)],
            "price": [round(5 + 1.13 * n, 2) for n in range(ITEMS)],
        }
    )


def products() -> pl.DataFrame:
    """What arrives the next day."""
    return pl.DataFrame(
        {
            "sku": [f"B{n:03}" for n in range(PRODUCTS)],
            "title": [f"New item {n}" for n in range(PRODUCTS)],
            "category": [("shoes", "socks", "hats", None)[n % 4] for n in range(PRODUCTS)],
            "price": [round(7 + 1.31 * n, 2) for n in range(PRODUCTS)],
        }
    )


def events(first_day: int, days: int, customers: range) -> pl.DataFrame:
    """A customer touches two items a day, mostly of one category."""
    rng = np.random.default_rng(first_day)
    rows = []
    for day in range(first_day, first_day + days):
        for customer in customers:
            for number in range(2):
                item = 4 * int(rng.integers(ITEMS // 4)) + (customer if rng.random() < 0.8 else day) % 4
                rows.append((f"c{customer}", f"A{item:03}", 1_700_000_000 + DAY * day + 10 * customer + number))
    return pl.DataFrame(rows, schema=["customer", "sku", "at"], orient="row")


BEFORE, AFTER = events(0, 10, range(CUSTOMERS)), events(10, 2, range(CUSTOMERS - 10, CUSTOMERS + 10))
CUSTOMER_IDS = [f"c{n}" for n in range(CUSTOMERS + 10)]


def check(recommended: pl.DataFrame) -> None:
    """Every list is full, allowed, and free of the customer's history."""
    history = pl.concat([BEFORE, AFTER]).rename({"customer": "user_id", "sku": "item_id"})
    recommended = recommended.with_columns(pl.col("user_id", "item_id").cast(pl.String))
    assert recommended.join(history, on=["user_id", "item_id"], how="semi").is_empty()
    described = recommended.join(items(), left_on="item_id", right_on="sku", how="left")
    assert described["category"].is_in(["shoes", "socks"]).all()
    assert (described["price"] < 60).all()
    assert recommended["user_id"].unique().sort().to_list() == sorted(CUSTOMER_IDS)
    assert (recommended.group_by("user_id").len()["len"] == 5).all()


@pytest.mark.parametrize("model", ["sasrec", "bprmf", "ease"])
def test_on_the_command_line(model, tmp_path):
    BEFORE.write_csv(tmp_path / "events.csv")
    AFTER.write_csv(tmp_path / "yesterday.csv")
    items().write_csv(tmp_path / "items.csv")
    pl.DataFrame({"user_id": CUSTOMER_IDS}).write_csv(tmp_path / "customers.csv")
    columns = ["--user", "customer", "--item", "sku", "--time", "at"]
    data, run, live, today = (tmp_path / name for name in ("data", "run", "live", "today"))
    succeeds("prepare", tmp_path / "events.csv", *columns, "--items", tmp_path / "items.csv", "-o", data)
    options = [f"--set={name}={value}" for name, value in OPTIONS.get(model, {}).items()]
    succeeds("train", model, data, "-o", run, *options)
    succeeds("evaluate", run, data)
    succeeds("refit", run, data, "-o", live)
    updated = json.loads(
        succeeds("update-histories", live, tmp_path / "yesterday.csv", *columns, "-o", today, "--json")
    )
    assert (updated["added"], updated["new_users"], updated["unknown_items"]) == (len(AFTER), 10, 0)
    assert updated["histories_end"].startswith("2023-11-2")
    out = tmp_path / "lists.parquet"
    succeeds("recommend", today, "--users", tmp_path / "customers.csv", "-o", out, "-k", 5, "--filter", FILTER)
    check(pl.read_parquet(out))
    succeeds(
        "recommend", today, "--users", tmp_path / "customers.csv", "-o", tmp_path / "lists", "-k", 5, "--filter", FILTER
    )
    check(pl.read_parquet(tmp_path / "lists" / "part-*.parquet"))


@pytest.mark.parametrize("model", ["sasrec", "bprmf", "ease"])
def test_in_python(model, tmp_path):
    data = rd.read_interactions(BEFORE, user="customer", item="sku", time="at", items=items())
    run = rd.train(model, data, tmp_path / "run", config=OPTIONS.get(model))
    rd.evaluate(run, data, max_per={"category": 3})
    live = rd.refit(run, data, tmp_path / "live")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # in production there is nothing to say
        recommender = rd.Recommender.load(live).with_histories(AFTER, user="customer", item="sku", time="at")
        expression = pl.col("category").is_in(["shoes", "socks"]) & (pl.col("price") < 60)
        for condition in (FILTER, expression):
            check(recommender.recommend(users=CUSTOMER_IDS, k=5, filter=condition))
        rules = {"max_per": {"category": 3}, "diversity": 0.2 if recommender.inspector.has_vectors else 0}
        check(recommender.recommend(users=CUSTOMER_IDS, k=5, filter=FILTER, **rules))


@pytest.mark.filterwarnings("ignore::rediffuse.errors.RediffuseWarning")
def test_new_products_are_served_the_same_day(tmp_path):
    """40 products arrive as a table; the service reloads, and recommends them to customers of their category."""
    testclient = pytest.importorskip("starlette.testclient")
    app_module = pytest.importorskip("rediffuse.serving.app")
    for name, table in {"events": BEFORE, "yesterday": AFTER, "items": items(), "products": products()}.items():
        table.write_csv(tmp_path / f"{name}.csv")
    columns = ["--user", "customer", "--item", "sku", "--time", "at"]
    data, run, live, today, tomorrow = (tmp_path / name for name in ("data", "run", "live", "today", "tomorrow"))
    features = ["--items", tmp_path / "items.csv", "--item-features", "category"]
    succeeds("prepare", tmp_path / "events.csv", *columns, *features, "-o", data)
    succeeds("train", "theat", data, "-o", run, "--set", "content_weight=0.3")
    succeeds("refit", run, data, "-o", live)
    succeeds("update-histories", live, tmp_path / "yesterday.csv", *columns, "-o", today)
    (current := tmp_path / "current").symlink_to(today)
    customers = [f"c{n}" for n in range(CUSTOMERS) if n % 4 < 3]  # those with a favourite category

    def answer(client, **more):
        response = client.post("/v1/recommend", json={"users": customers, "k": 10} | more)
        assert response.status_code == 200, response.text
        return response.json()

    app = app_module.create_app([current])
    with testclient.TestClient(app) as client:
        before = answer(client)
        assert not any(item["new"] for result in before["results"] for item in result["items"])
        added = json.loads(
            succeeds("add-items", today, tmp_path / "products.csv", "--item", "sku", "-o", tomorrow, "--json")
        )
        assert (added["added"], added["items"]) == (PRODUCTS, ITEMS + PRODUCTS)
        (tmp_path / "next").symlink_to(tomorrow)
        (tmp_path / "next").replace(current)
        app.state.service.runs["current"].reload_if_changed()
        after, shared = answer(client), answer(client, new_items=0.3)
        socks = answer(client, new_items=0.3, filter={"column": "category", "eq": "socks"})
    assert before["version"] != after["version"] == shared["version"]
    new = {sku: category for sku, _, category, _ in products().iter_rows()}
    right, lists = [], 0
    for result in after["results"]:
        for item in result["items"]:
            assert item["new"] == (item["item_id"] in new)
        # The first new product of a list is of the customer's category.
        found = [new[item["item_id"]] for item in result["items"] if item["new"]]
        lists += bool(found)
        right += [found[0] == ("shoes", "socks", "hats")[int(result["user"][1:]) % 4]] if found else []
    assert lists >= len(customers) / 4
    assert np.mean(right) > 0.9
    for result in shared["results"]:
        assert sum(item["new"] for item in result["items"]) >= 3
        assert len(result["items"]) == 10
    for result in socks["results"]:
        assert {new[item["item_id"]] for item in result["items"] if item["new"]} == {"socks"}


@pytest.mark.filterwarnings("ignore::rediffuse.errors.RediffuseWarning")
def test_the_page_about_production(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    BEFORE.write_csv("events.csv")
    AFTER.write_csv("yesterday.csv")
    items().write_csv("items.csv")
    products().write_csv("products.csv")
    names: dict[str, object] = {}
    page = ROOT / "docs/production.md"
    for example in examples(page):
        run_example(example.replace('"epochs": 20', '"epochs": 1'), page, names)
    some, same = (names[name] for name in ("some", "same"))
    assert some["item_id"].to_list() != []
    assert len(some) == len(same) == 5
    fresh = names["fresh"]
    assert isinstance(fresh, pl.DataFrame)
    assert fresh.filter("new")["item_id"].str.starts_with("B").all()
    assert fresh["new"].sum() >= 2
