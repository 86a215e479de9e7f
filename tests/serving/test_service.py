"""The HTTP interface: the results of `Recommender`, alone and in batches, limits, errors and reloads."""

from __future__ import annotations

import datetime
import re
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from starlette.testclient import TestClient

import rediffuse as rd
from rediffuse.data.histories import Histories
from rediffuse.errors import ConfigError, RunError
from rediffuse.models.sampling import Sampling
from rediffuse.recommender.ranker import RankedItems, RankingQuery
from rediffuse.runs.run_folder import forget_files
from rediffuse.serving import metadata
from rediffuse.serving.app import create_app
from rediffuse.serving.batcher import DynamicBatcher, ScoringJob
from rediffuse.serving.schemas import RecommendResponse, SpreadResponse
from rediffuse.serving.settings import Settings

HISTORY = ["i3", "i4", "i5"]


@pytest.fixture(scope="module")
def client(folders):
    with TestClient(create_app(folders), raise_server_exceptions=False) as made:
        yield made


@pytest.fixture(scope="module")
def recommenders(folders):
    return {path.name: rd.Recommender.load(path) for path in folders}


def post(client, path="/v1/recommend", **content):
    response = client.post(path, json=content)
    assert response.status_code == 200, response.text
    return response.json()


def problem(response, status, kind):
    """The problem details of a response, which must have this status and type."""
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    details = response.json()
    assert (details["status"], details["type"]) == (status, f"urn:rediffuse:{kind}")
    return details


# --- results ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["diffurec", "sasrec", "diffkg", "itemknn"])
@pytest.mark.parametrize(
    "request_body",
    [
        {"users": ["u1", "u2", "u3"], "k": 7},
        {"histories": [HISTORY, ["i9"]], "exclude": ["i6"], "seed": 5},
        {"histories": [HISTORY], "candidates": ["i8", "i6", "i30"], "filter_seen": False},
        {"users": ["a", 2], "histories": [HISTORY, []], "k": 3, "samples": 3},
    ],
)
@pytest.mark.filterwarnings("ignore:1 of 2 histories are empty")
def test_results_are_those_of_the_recommender(client, recommenders, model, request_body):
    found = post(client, model=model, **request_body)
    expected = recommenders[model].recommend(**request_body)
    flat = [(str(r["user"]), i["item_id"], i["score"], i["uncertainty"]) for r in found["results"] for i in r["items"]]
    assert [row[1] for row in flat] == expected["item_id"].to_list()
    assert [row[0] for row in flat] == [str(user) for user in expected["user_id"]]
    np.testing.assert_allclose([row[2] for row in flat], expected["score"], rtol=1e-5)
    if "samples" in request_body:
        np.testing.assert_allclose([row[3] for row in flat], expected["uncertainty"], atol=1e-5)
    else:
        assert all(row[3] is None for row in flat)


def test_titles_notes_and_the_default_model(client):
    found = post(client, users=["u1", "unknown"], histories=None, k=2, exclude=["x"])
    assert found["model"] == "diffurec"
    assert all(item["title"] == f"Film {item['item_id']}" for item in found["results"][0]["items"])
    assert any("1 of 2 users are unknown" in note for note in found["notes"])
    assert any("1 items to exclude" in note for note in found["notes"])
    assert post(client, users=[])["results"] == []


def test_explanations_are_near_items_of_the_history_and_paths(client, recommenders):
    items = post(client, model="diffkg", histories=[HISTORY], explain=True, k=5)["results"][0]["items"]
    paths = recommenders["diffkg"].explain([item["item_id"] for item in items], history=HISTORY, top=2)
    assert sum(len(item["explanation"]["paths"]) for item in items) == len(paths) > 0
    first = next(item for item in items if item["explanation"]["paths"])
    assert first["explanation"]["paths"][0]["history_item"]["title"].startswith("Film")
    directions = recommenders["diffkg"].inspector.directions
    number = recommenders["diffkg"].items["item_id"].to_list().index
    for item in items:
        near = item["explanation"]["nearest"]
        assert sorted(one["item_id"] for one in near) == HISTORY
        cosine = float(directions[number(item["item_id"])] @ directions[number(near[0]["item_id"])])
        assert near[0]["cosine"] == pytest.approx(cosine, abs=1e-3)
    without_vectors = post(client, model="itemknn", histories=[HISTORY], explain=True)["results"][0]["items"]
    assert without_vectors[0]["explanation"] == {"contributions": [], "nearest": [], "paths": []}


@pytest.mark.parametrize("asked", [{"users": ["u1"]}, {"histories": [HISTORY]}, {"histories": [[]]}])
@pytest.mark.filterwarnings("ignore::rediffuse.errors.RediffuseWarning")
def test_contributions_add_up_to_the_scores(client, recommenders, asked):
    content = post(client, model="hops", **asked, explain=True, k=6)
    items = RecommendResponse.model_validate(content, strict=True).model_dump()["results"][0]["items"]
    expected = recommenders["hops"].recommend(**asked, explain=True, k=6)
    for item, because in zip(items, expected["because"].to_list(), strict=True):
        found = item["explanation"]["contributions"]
        assert sum(one["contribution"] for one in found) == pytest.approx(item["score"], rel=1e-5)
        assert sum(one["share"] for one in found) == pytest.approx(1)
        assert [one["part"] for one in found] == [one["part"] for one in because]
        ids = [one["history_item"] and one["history_item"]["item_id"] for one in found]
        assert ids == [one["history_item"] for one in because]


def test_mass_spreads_hop_by_hop(client, recommenders):
    found = post(client, "/v1/spread", model="hops", history=HISTORY, k=4)
    steps = SpreadResponse.model_validate(found, strict=True).model_dump()["steps"]
    expected = recommenders["hops"].spread(history=HISTORY, k=4)
    flat = [(step["hop"], item["item_id"]) for step in steps for item in step["items"]]
    assert flat == list(zip(expected["hop"], expected["item_id"], strict=True))
    assert steps[0]["reached"] == 3
    assert steps[0]["total"] == pytest.approx(1)
    details = problem(client.post("/v1/spread", json={"model": "sasrec", "user": "u1"}), 422, "invalid-request")
    assert details["remedy"] == "Use a run of heat, transition or theat."
    problem(client.post("/v1/spread", json={"model": "hops"}), 422, "invalid-request")
    nothing = post(client, "/v1/spread", model="hops", history=[])
    assert nothing["steps"] == []
    assert any("no mass to spread" in note for note in nothing["notes"])
    assert len(post(client, "/v1/similar", model="hops", items=["i7"], k=4)["results"][0]["items"]) == 4
    assert len(client.get("/v1/models/hops/map").json()["items"]) == 40


def test_similar_items_and_the_denoising_trajectory(client, recommenders):
    found = post(client, "/v1/similar", items=["i7", "none"], k=4)
    expected = recommenders["diffurec"].similar(["i7"], k=4)
    assert [item["item_id"] for item in found["results"][0]["items"]] == expected["similar_id"].to_list()
    assert found["notes"] == ["1 items are not in the catalogue."]
    steps = post(client, "/v1/denoise", history=HISTORY, sampling_steps=4, k=3)["steps"]
    expected = recommenders["diffurec"].denoise(history=HISTORY, sampling_steps=4, k=3)
    assert [item["item_id"] for step in steps for item in step["items"]] == expected["item_id"].to_list()
    assert [step["t"] for step in steps] == expected.filter(expected["rank"] == 1)["t"].to_list()
    assert all(len(step["state"]) == len(step["x0_hat"]) == 2 for step in steps)
    assert post(client, "/v1/denoise", model="sasrec", history=HISTORY)["steps"] == []
    details = problem(client.post("/v1/denoise", json={"model": "itemknn", "history": ["i7"]}), 422, "invalid-request")
    assert re.match(r"itemknn has no (item )?vectors", details["detail"])


def test_similar_items_of_an_item_item_matrix_have_weights(client, recommenders):
    found = post(client, "/v1/similar", model="itemknn", items=["i7"], k=4)["results"][0]["items"]
    expected = recommenders["itemknn"].similar(["i7"], k=4)
    assert [item["item_id"] for item in found] == expected["similar_id"].to_list()
    assert [item["weight"] for item in found] == pytest.approx(expected["weight"].to_list())
    assert all(item["cosine"] is None for item in found)


def test_ignored_items_are_named(client):
    histories = [["i3", "x", "y"], ["x", "i4"], []]
    found = post(client, histories=histories, k=2)
    assert found["ignored_items"] == ["x", "y"]
    assert any("3 items in the histories" in note for note in found["notes"])
    assert post(client, users=["u1"])["ignored_items"] == []
    assert post(client, "/v1/similar", items=["i7", "z"])["ignored_items"] == ["z"]
    assert post(client, "/v1/denoise", history=["i3", "x"])["ignored_items"] == ["x"]
    assert post(client, "/v1/spread", model="hops", history=["i3", 7])["ignored_items"] == [7]
    many = post(client, histories=[[f"x{n}" for n in range(300)]], k=1)["ignored_items"]
    assert many == [f"x{n}" for n in range(100)]


@pytest.mark.parametrize(
    ("path", "content", "meant"),
    [
        ("recommend", {"user": ["u1"]}, "users"),
        ("recommend", {"users": ["u1"], "filterSeen": False}, "filter_seen"),
        ("similar", {"item": ["i1"]}, "items"),
        ("denoise", {"users": "u1"}, "user"),
    ],
)
def test_misspelt_fields_get_the_closest_one(client, path, content, meant):
    details = problem(client.post(f"/v1/{path}", json=content), 422, "invalid-request")
    messages = [error["message"] for error in details["errors"]]
    assert any(f"Did you mean {meant!r}?" in message for message in messages), messages


def test_models_say_where_their_histories_end_and_what_they_come_from(split, folders, tmp_path, recommenders):
    live = rd.refit(folders[3], split.dataset, tmp_path / "live").path
    with TestClient(create_app([folders[3], live])) as client:
        held, refitted = client.get("/v1/models").json()["models"]
        metrics = client.get("/metrics").text
    assert (held["split"], held["refit_of"]) == ("leave-one-out", None)
    assert held["held_out"] == recommenders["itemknn"].held_out_remark
    assert held["fingerprint"] == recommenders["itemknn"].fingerprint
    assert (refitted["split"], refitted["held_out"]) == ("none", None)
    assert refitted["refit_of"]["run"] == "itemknn"
    times = split.dataset.interactions.times
    end = datetime.datetime.fromisoformat(refitted["histories_end"]).replace(tzinfo=datetime.UTC).timestamp()
    assert end == times.max()
    assert f'rediffuse_histories_end_seconds{{model="live"}} {end:.0f}'[:45] in metrics
    line = f'fingerprint="{held["fingerprint"]}",model="itemknn",version="{held["version"]}"}} 1.0'
    assert f'rediffuse_model_info{{architecture="itemknn",{line}' in metrics


def test_requests_have_ids(folders, monkeypatch, caplog):
    with TestClient(create_app(folders[3:4]), raise_server_exceptions=False) as client:
        assert client.get("/health", headers={"X-Request-ID": "abc-1"}).headers["x-request-id"] == "abc-1"
        made = {client.get("/health").headers["x-request-id"] for _ in range(3)}
        assert len(made) == 3
        for bad in ("a b", "x" * 129, "é".encode(), "a\tb"):
            assert re.fullmatch(
                r"[0-9a-f]{16}", client.get("/health", headers={"X-Request-ID": bad}).headers["x-request-id"]
            )
        refused = client.post("/v1/recommend", json={}, headers={"X-Request-ID": "abc-2"})
        assert refused.json()["request_id"] == refused.headers["x-request-id"] == "abc-2"
        monkeypatch.setattr("rediffuse.serving.metadata.describe", lambda run: 1 / 0)
        failed = client.get("/v1/models", headers={"X-Request-ID": "abc-3"})
        assert failed.status_code == 500
        assert failed.headers.get_list("x-request-id") == ["abc-3"]
        assert failed.json()["request_id"] == "abc-3"


def test_served_models_are_described(client, recommenders):
    models = client.get("/v1/models").json()["models"]
    assert [one["has_similar"] for one in models] == [True, True, True, True, True]
    assert [one["model"] for one in models] == list(recommenders)
    assert [one["max_sampling_steps"] for one in models] == [32, None, None, None, None]
    assert [one["has_paths"] for one in models] == [False, False, True, False, False]
    assert [one["has_vectors"] for one in models] == [True, True, True, False, True]
    assert [one["explains_scores"] for one in models] == [False, False, False, False, True]
    base = "/v1/models/diffurec"
    assert client.get(f"{base}/items?q=film i12").json() == {"items": [{"item_id": "i12", "title": "Film i12"}]}
    assert client.get(f"{base}/users?q=u1&limit=3").json() == {"users": ["u1", "u10", "u11"]}
    history = [item["item_id"] for item in client.get(f"{base}/history?user=u1").json()["items"]]
    numbers = recommenders["diffurec"].resolve_users(["u1"], None)[2].items
    assert history == recommenders["diffurec"].items["item_id"].gather(numbers).to_list()
    assert len(history) > 2
    problem(client.get(f"{base}/history?user=unknown"), 404, "unknown-user")
    item_map = client.get(f"{base}/map?limit=10").json()
    assert len(item_map["items"]) == 10
    assert item_map["total"] == 40
    training = client.get(f"{base}/training").json()
    assert [line["epoch"] for line in training["epochs"]] == [1, 2]
    assert sum(row["users"] for row in training["slices"]) == 60
    assert training["test"]["all"]["ndcg@10"] == pytest.approx(
        sum(row["users"] * row["ndcg@10"] for row in training["slices"]) / 60
    )
    assert client.get("/v1/models/sasrec/training").json()["test"] is None
    for resource in ("items", "users", "map", "training"):
        problem(client.get(f"/v1/models/none/{resource}"), 404, "unknown-model")


def test_the_served_name_is_the_folder_and_the_architecture_is_the_class(folders, tmp_path):
    folder = shutil.copytree(folders[1], tmp_path / "shop")
    with TestClient(create_app([folder])) as client:
        described = client.get("/v1/models").json()["models"][0]
        assert (described["model"], described["architecture"]) == ("shop", "sasrec")
        assert post(client, model="shop", users=["u1"])["model"] == "shop"
        problem(client.post("/v1/recommend", json={"model": "sasrec", "users": ["u1"]}), 404, "unknown-model")


# --- dynamic batching ------------------------------------------------------------------------------------------


def test_requests_at_the_same_time_get_the_results_that_they_get_alone(client):
    requests = [
        {"histories": [[f"i{n % 40}", f"i{(n + 1) % 40}"]], "k": 1 + n % 9, "seed": n % 2, "exclude": [f"i{n % 7}"]}
        for n in range(60)
    ]
    alone = [post(client, **one) for one in requests]
    with ThreadPoolExecutor(20) as pool:
        together = list(pool.map(lambda one: post(client, **one), requests))
    for one, other in zip(alone, together, strict=True):
        first, second = ([item["item_id"] for item in r["results"][0]["items"]] for r in (one, other))
        assert first == second


class BlockedRanker:
    """A ranker that waits for `release`, and records which histories were scored together."""

    def __init__(self, items=5):
        self.model = type("Model", (), {"num_items": items, "network_passes": lambda self, sampling: 1})()
        self.release, self.began, self.batches = threading.Event(), threading.Event(), []

    def rank(self, histories, user_numbers, queries, sampling, samples):
        self.began.set()
        assert self.release.wait(10)
        if 99 in histories.items:
            raise ValueError("item 99")
        rows = [histories.row(n) for n in range(len(histories))]
        self.batches.append([row.tolist() for row in rows])
        return [RankedItems(row.astype(np.int64), np.zeros(1, np.float32), None) for row in rows]


def job(ranker, *items, seed=0, times=False):
    """A job with one user per item, whose history is that item."""
    histories = Histories.from_lists([[item] for item in items])
    if times:
        histories = Histories(histories.offsets, histories.items, histories.items.astype(np.int64))
    queries = [RankingQuery(1, np.empty(0, np.int64))] * len(items)
    return ScoringJob(ranker, histories, np.full(len(items), -1), queries, Sampling(seed), 1)


def test_jobs_that_arrive_while_the_ranker_is_busy_are_scored_together():
    ranker, sizes = BlockedRanker(), []
    batcher = DynamicBatcher(4, sizes.append).start()
    first = batcher.submit(job(ranker, 0))
    assert ranker.began.wait(10)
    jobs = [job(ranker, 1), job(ranker, 2, seed=7), job(ranker, 3, 4), job(ranker, 5), job(ranker, 6)]
    waiting = [batcher.submit(one) for one in [*jobs, job(ranker, 7, times=True), job(ranker, *range(10, 16))]]
    assert batcher.users_waiting == 13
    ranker.release.set()
    batcher.close()  # scores what waits
    # Jobs with another seed or with times have batches of their own. A large job is split, and others get their turn.
    batches = [[0], [1, 3, 4, 5], [2], [6, 10, 11, 12], [7], [13, 14, 15]]
    assert ranker.batches == [[[n] for n in batch] for batch in batches]
    assert sizes == [len(batch) for batch in batches]
    assert [ranked.items.tolist() for ranked in waiting[2].result()] == [[3], [4]]
    assert [ranked.items.tolist() for ranked in waiting[-1].result()] == [[n] for n in range(10, 16)]
    assert first.result()[0].items.tolist() == [0]
    assert batcher.users_waiting == 0
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(job(ranker, 1))


def test_a_closed_batcher_can_be_started_again():
    ranker = BlockedRanker()
    ranker.release.set()
    batcher = DynamicBatcher(4).start()
    with pytest.raises(ValueError, match="item 99"):
        batcher.submit(job(ranker, 99)).result(10)
    assert batcher.submit(job(ranker, 3)).result(10)[0].items.tolist() == [3]
    batcher.close()
    batcher.start()
    assert batcher.submit(job(ranker, 4)).result(10)[0].items.tolist() == [4]
    batcher.close()


def test_an_error_reaches_only_the_job_that_caused_it():
    ranker = BlockedRanker()
    batcher = DynamicBatcher(8).start()
    batcher.submit(job(ranker, 0))
    assert ranker.began.wait(10)
    good, bad, late = (batcher.submit(job(ranker, n)) for n in (1, 99, 2))
    ranker.release.set()
    assert [good.result(10)[0].items.tolist(), late.result(10)[0].items.tolist()] == [[1], [2]]
    with pytest.raises(ValueError, match="item 99"):
        bad.result(10)
    batcher.close()
    assert batcher.users_waiting == 0


def test_cancelled_jobs_are_dropped_even_when_half_of_their_users_are_scored():
    ranker = BlockedRanker()
    batcher = DynamicBatcher(4).start()
    large = batcher.submit(job(ranker, *range(20, 40)))
    assert ranker.began.wait(10)
    queued = batcher.submit(job(ranker, 1))
    assert batcher.users_waiting == 17
    assert queued.cancel()
    assert large.cancel()
    assert batcher.users_waiting == 0
    ranker.release.set()
    batcher.close()
    assert ranker.batches == [[[20], [21], [22], [23]]]


def test_batches_are_small_if_every_user_needs_much_work():
    ranker = BlockedRanker()
    ranker.model.network_passes = lambda sampling: sampling.sampling_steps
    some = job(ranker, *range(9))
    assert replace(some, sampling=Sampling(sampling_steps=128), samples=4).batch_limit(64) == 2
    assert replace(some, sampling=Sampling(sampling_steps=10_000)).batch_limit(64) == 1
    assert replace(some, sampling=Sampling(sampling_steps=1)).batch_limit(64) == 64


# --- problems --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ({}, "body"),
        ({"users": ["u1"], "k": 0}, "body.k"),
        ({"users": ["u1"], "k": 1001}, "body.k"),
        ({"users": ["u1"], "k": "5"}, "body.k"),
        ({"users": "u1"}, "body.users"),
        ({"users": [True]}, "body.users.0"),
        ({"users": ["u1"] * 257}, "body.users"),
        ({"histories": [["i1"] * 1001]}, "body.histories.0"),
        ({"users": ["u1"], "samples": 65}, "body.samples"),
        ({"users": ["u1"], "noise": -1}, "body.noise"),
        ({"users": ["u1"], "seed": 2**63}, "body.seed"),
        ({"users": ["u1"], "other": 1}, "body.other"),
        ({"users": ["u1"], "histories": []}, "body"),
    ],
)
def test_invalid_fields_are_named(client, content, field):
    details = problem(client.post("/v1/recommend", json=content), 422, "invalid-request")
    assert "Value error" not in str(details)
    assert any(error["field"].startswith(field) for error in details["errors"])


def test_every_other_error_is_a_problem_too(client):
    details = problem(client.post("/v1/recommend", json={"model": "x", "users": ["u1"]}), 404, "unknown-model")
    assert "diffurec, sasrec" in details["remedy"]
    body = {"users": ["u1"], "sampling_steps": 1000}
    details = problem(client.post("/v1/recommend", json=body), 422, "invalid-request")
    assert details["detail"] == "sampling_steps is 1000; this run was trained with 32."
    assert details["remedy"] == "Give 1 to 32."
    problem(client.get("/nowhere"), 404, "not-found")
    problem(client.get("/v1/recommend"), 405, "method-not-allowed")
    for body in (b"{", b"[" * 200_000, b"9" * 10_000, b"\xff", b'"\\ud800"', b""):
        response = client.post("/v1/recommend", content=body, headers={"content-type": "application/json"})
        assert response.status_code in (400, 422), body[:5]
        assert response.headers["content-type"] == "application/problem+json"


def test_limits(folders):
    settings = Settings(max_body=2000, max_work=100, max_waiting=2)
    with TestClient(create_app(folders[:1], settings), raise_server_exceptions=False) as client:
        details = problem(client.post("/v1/recommend", json={"users": ["u" * 250] * 10}), 413, "too-large")
        assert "2,000 bytes" in details["detail"]
        chunks = (b"x" * 500 for _ in range(10))
        assert client.post("/v1/recommend", content=chunks).status_code == 413
        body = {"users": ["u1"], "samples": 20, "sampling_steps": 6}
        details = problem(client.post("/v1/recommend", json=body), 422, "too-much-work")
        assert "20 samples x 6 sampling steps" in details["detail"]
        model = client.app.state.service.runs["diffurec"].snapshot.recommender.model
        model.sampling_steps = 8  # as if calibrated
        problem(client.post("/v1/recommend", json={"users": ["u1"], "samples": 20}), 422, "too-much-work")
        model.sampling_steps = 1
        for k, explain in ((300, False), (20, True)):
            body = {"histories": [["i1"]] * 70, "k": k, "explain": explain}
            details = problem(client.post("/v1/recommend", json=body), 422, "too-much-work")
            assert f"70 users x k = {k}" in details["detail"]
        response = client.post("/v1/recommend", json={"users": ["u1", "u2", "u3"]})
        problem(response, 503, "overloaded")
        assert response.headers["retry-after"] == "1"


def test_requests_that_wait_too_long_time_out(folders, monkeypatch):
    app = create_app(folders[:1], Settings(timeout=0.2))
    ranker = app.state.service.runs["diffurec"].snapshot.recommender.ranker
    release = threading.Event()
    rank = ranker.rank
    monkeypatch.setattr(ranker, "rank", lambda *arguments: release.wait(10) and rank(*arguments))
    with TestClient(app, raise_server_exceptions=False) as client:
        problem(client.post("/v1/recommend", json={"users": ["u1"]}), 503, "timeout")
        release.set()
        assert client.post("/v1/recommend", json={"users": ["u1"]}).status_code == 200


def test_worker_threads_have_limits(folders, monkeypatch):
    app = create_app(folders[:1], Settings(timeout=0.3, max_worker_requests=2))
    service = app.state.service
    release = threading.Event()
    denoise = service.denoise
    monkeypatch.setattr(service, "denoise", lambda request: release.wait(10) and denoise(request))
    with TestClient(app, raise_server_exceptions=False) as client, ThreadPoolExecutor(3) as pool:
        responses = [pool.submit(client.post, "/v1/denoise", json={"user": "u1"}) for _ in range(3)]
        kinds = sorted(one.result().json()["type"] for one in responses)
        assert kinds == ["urn:rediffuse:overloaded", "urn:rediffuse:timeout", "urn:rediffuse:timeout"]
        release.set()
        assert client.post("/v1/denoise", json={"user": "u1"}).status_code == 200


def test_unknown_host_names_are_refused(folders):
    app = create_app(folders[:1], Settings(hosts=frozenset({"localhost", "::1"})))
    for host, status in (("localhost:8000", 200), ("[::1]:8000", 200), ("[::1]", 200), ("evil.example:8000", 421)):
        with TestClient(app, base_url="http://localhost") as client:
            assert client.get("/v1/models", headers={"host": host}).status_code == status


def test_responses_with_data_of_users_are_not_cached(client):
    recommended = client.post("/v1/recommend", json={"users": ["u1"]})
    for response in (client.get("/v1/models"), recommended, client.get("/v1/x")):
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-content-type-options"] == "nosniff"


def test_an_incomplete_line_of_training_is_left_out(folders, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(folders[1], folder)
    forget_files(folder, ["metrics.jsonl"])  # as training does that continues in a folder
    with (folder / "metrics.jsonl").open("a") as lines:
        lines.write('{"epoch": 3, "loss": NaN}\n{"epoch": 4, "lo')
    with TestClient(create_app([folder])) as client:
        epochs = client.get("/v1/models/copy/training").json()["epochs"]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3]
    assert epochs[2]["loss"] is None


def test_training_results_are_read_once_per_version(folders, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(folders[0], folder)
    forget_files(folder, ["metrics.jsonl"])
    reads, real = [], metadata._read_training
    monkeypatch.setattr(metadata, "_read_training", lambda run: reads.append(run) or real(run))
    monkeypatch.setattr(metadata, "MAX_EPOCHS", 40)
    with TestClient(create_app([folder])) as client:
        with ThreadPoolExecutor(20) as pool:
            found = list(pool.map(lambda _: client.get("/v1/models/copy/training").json(), range(20)))
        assert len(reads) == 1
        assert all(one == found[0] for one in found)
        table = pl.read_parquet(folder / "per_user_test.parquet")
        metric = next(name for name in table.columns if "@" in name)
        slices = found[0]["slices"]
        assert sum(one["users"] for one in slices) == len(table)
        mean = sum(one["users"] * one[metric] for one in slices) / len(table)
        assert mean == pytest.approx(table[metric].mean())
        with (folder / "metrics.jsonl").open("a") as lines:
            lines.writelines(f'{{"epoch": {n}}}\n' for n in range(3, 1003))
            lines.write('{"epoch": "' + "x" * 2**20 + '"}\n{"epoch": 1003}\n')
        after = client.get("/v1/models/copy/training").json()
        assert len(reads) == 2
        numbers = [epoch["epoch"] for epoch in after["epochs"]]
        assert numbers[-1] == 1003
        assert after["best_epoch"] in numbers
        assert 35 <= len(numbers) <= 42
        assert after["epochs_total"] > 1000


def test_no_redirect_names_a_host(client):
    for path in ("/training/", "/docs/", "/v1/models/", "/static/"):
        response = client.get(path, headers={"host": "evil.example"}, follow_redirects=False)
        assert response.status_code == 404
        assert "location" not in response.headers


def test_internal_errors_reveal_nothing(folders, monkeypatch):
    app = create_app(folders[:1])
    ranker = app.state.service.runs["diffurec"].snapshot.recommender.ranker

    def fail(*arguments):
        raise RuntimeError("in /secret/path")

    monkeypatch.setattr(ranker, "rank", fail)
    with TestClient(app, raise_server_exceptions=False) as client:
        response = client.post("/v1/recommend", json={"users": ["u1"]})
        problem(response, 500, "internal-error")
        assert "secret" not in response.text


def test_the_token_is_required(folders):
    with TestClient(create_app(folders[:1], Settings(token="a" * 32))) as client:
        for path in ("/v1/models", "/metrics"):
            response = client.get(path)
            problem(response, 401, "unauthorized")
            assert response.headers["www-authenticate"] == "Bearer"
            assert client.get(path, headers={"Authorization": "Bearer " + "b" * 32}).status_code == 401
            assert client.get(path, headers={"Authorization": "Bearer é".encode()}).status_code == 401
            assert client.get(path, headers={"Authorization": "Bearer " + "a" * 32}).status_code == 200
        # Without the token, the body is not parsed.
        assert client.post("/v1/recommend", content=b"{").status_code == 401
        for path in ("/health", "/ready", "/openapi.json", "/"):
            assert client.get(path).status_code == 200


def test_health_and_metrics(folders):
    with TestClient(create_app(folders[:1])) as client:
        assert client.get("/health").json() == {"status": "alive"}
        assert client.get("/ready").json() == {"status": "ready"}
        post(client, users=["u1", "u2", "u3"])
        lines = client.get("/metrics").text.splitlines()
    for line in (
        'rediffuse_requests_total{method="POST",model="diffurec",route="/v1/recommend",status="200"} 1.0',
        'rediffuse_request_latency_seconds_count{model="diffurec",route="/v1/recommend"} 1.0',
        'rediffuse_batch_size_count{model="diffurec"} 1.0',
        'rediffuse_batch_size_sum{model="diffurec"} 3.0',
        'rediffuse_waiting_users{model="diffurec"} 0.0',
    ):
        assert line in lines


# --- run folders that change -----------------------------------------------------------------------------------


def test_a_run_folder_that_changes_is_reloaded_as_a_whole(train, tmp_path):
    folder = train("sasrec", tmp_path / "run", seed=1)
    other = train("sasrec", tmp_path / "other", seed=2)
    app = create_app([folder], Settings(reload_every=0.05))
    with TestClient(app) as client:
        first = post(client, users=["u1"])
        shutil.copytree(other, folder, dirs_exist_ok=True)
        until = time.monotonic() + 20
        while (second := post(client, users=["u1"]))["version"] == first["version"]:
            assert time.monotonic() < until
        expected = rd.Recommender.load(other).recommend(users=["u1"])
        assert [item["item_id"] for item in second["results"][0]["items"]] == expected["item_id"].to_list()
        assert second["model"] == "run"
        # A damaged folder changes only a metric.
        (folder / "items.parquet").write_bytes(b"x")
        (folder / "manifest.json").write_text((folder / "manifest.json").read_text() + " ")
        run = app.state.service.runs["run"]
        while run.failed_state is None:
            assert time.monotonic() < until
        assert post(client, users=["u1"])["version"] == second["version"]
        text = client.get("/metrics").text
        assert 'rediffuse_reloads_total{model="run",outcome="succeeded"} 1.0' in text
        assert 'rediffuse_reloads_total{model="run",outcome="failed"}' in text
        # If files arrive after their manifest, the reload is tried again, and so it is after any other error.
        third = train("sasrec", tmp_path / "third", seed=3)
        (folder / "manifest.json").write_bytes((third / "manifest.json").read_bytes())
        run.reload_if_changed()
        assert run.snapshot.version == second["version"]
        shutil.copytree(third, folder, dirs_exist_ok=True)
        run.reload_if_changed()
        assert run.snapshot.version != second["version"]
        second = post(client, users=["u1"])
        (folder / "manifest.json").write_text("[]")
        run.reload_if_changed()
        (folder / "manifest.json").unlink()  # as while a run is written
        run.reload_if_changed()
        assert post(client, users=["u1"])["version"] == second["version"]


def test_unusable_folders_are_refused(folders, tmp_path):
    with pytest.raises(ConfigError, match="No run"):
        create_app([])
    with pytest.raises(ConfigError, match="2 of the run folders are called 'diffurec'"):
        create_app([folders[0], folders[0]])
    with pytest.raises(RunError, match="is not a run folder"):
        create_app([tmp_path])
