"""The HTTP interface: the answers of `Recommender`, alone or in company, and problems in words."""

from __future__ import annotations

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from starlette.testclient import TestClient

import rediffuse as rd
from rediffuse.data.histories import Histories
from rediffuse.errors import ConfigError, RunError
from rediffuse.models.sampling import Sampling
from rediffuse.recommender.ranker import RankedItems, RankingQuery
from rediffuse.runs.run_folder import forget_files
from rediffuse.serving.app import create_app
from rediffuse.serving.batcher import Batcher, Job
from rediffuse.serving.settings import Settings

HISTORY = ["i3", "i4", "i5"]


@pytest.fixture(scope="module")
def client(folders):
    with TestClient(create_app(folders), raise_server_exceptions=False) as made:
        yield made


@pytest.fixture(scope="module")
def recommenders(folders):
    return {path.name: rd.Recommender.load(path) for path in folders}


def ask(client, path="/v1/recommend", **content):
    answer = client.post(path, json=content)
    assert answer.status_code == 200, answer.text
    return answer.json()


def problem(answer, status, kind):
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    told = answer.json()
    assert (told["status"], told["type"]) == (status, f"urn:rediffuse:{kind}")
    return told


# --- answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["diffurec", "sasrec", "diffkg", "itemknn"])
@pytest.mark.parametrize(
    "asked",
    [
        {"users": ["u1", "u2", "u3"], "k": 7},
        {"histories": [HISTORY, ["i9"]], "exclude": ["i6"], "seed": 5},
        {"histories": [HISTORY], "candidates": ["i8", "i6", "i30"], "filter_seen": False},
        {"users": ["a", 2], "histories": [HISTORY, []], "k": 3, "samples": 3},
    ],
)
@pytest.mark.filterwarnings("ignore:1 of 2 histories are empty")
def test_answers_are_those_of_the_recommender(client, recommenders, model, asked):
    found = ask(client, model=model, **asked)
    wanted = recommenders[model].recommend(**asked)
    flat = [(str(r["user"]), i["item_id"], i["score"], i["uncertainty"]) for r in found["results"] for i in r["items"]]
    assert [row[1] for row in flat] == wanted["item_id"].to_list()
    assert [row[0] for row in flat] == [str(user) for user in wanted["user_id"]]
    np.testing.assert_allclose([row[2] for row in flat], wanted["score"], rtol=1e-5)
    if "samples" in asked:
        np.testing.assert_allclose([row[3] for row in flat], wanted["uncertainty"], atol=1e-5)
    else:
        assert all(row[3] is None for row in flat)


def test_titles_notes_and_the_default_run(client):
    found = ask(client, users=["u1", "nobody"], histories=None, k=2, exclude=["x"])
    assert found["model"] == "diffurec"
    assert all(item["title"] == f"Film {item['item_id']}" for item in found["results"][0]["items"])
    assert any("1 of 2 users are unknown" in note for note in found["notes"])
    assert any("1 items to exclude" in note for note in found["notes"])
    assert ask(client, users=[])["results"] == []


def test_reasons_are_near_items_of_the_history_and_paths(client, recommenders):
    items = ask(client, model="diffkg", histories=[HISTORY], explain=True, k=5)["results"][0]["items"]
    paths = recommenders["diffkg"].explain([item["item_id"] for item in items], history=HISTORY, paths=2)
    assert sum(len(item["why"]["paths"]) for item in items) == len(paths) > 0
    first = next(item for item in items if item["why"]["paths"])
    assert first["why"]["paths"][0]["touched_item"]["title"].startswith("Film")
    directions = recommenders["diffkg"].directions
    place = recommenders["diffkg"].items["item_id"].to_list().index
    for item in items:
        near = item["why"]["nearest"]
        assert sorted(one["item_id"] for one in near) == HISTORY
        cosine = float(directions[place(item["item_id"])] @ directions[place(near[0]["item_id"])])
        assert near[0]["cosine"] == pytest.approx(cosine, abs=1e-3)
    nothing = ask(client, model="itemknn", histories=[HISTORY], explain=True)["results"][0]["items"]
    assert nothing[0]["why"] == {"nearest": [], "paths": []}


def test_similar_and_denoise(client, recommenders):
    found = ask(client, "/v1/similar", items=["i7", "none"], k=4)
    wanted = recommenders["diffurec"].similar(["i7"], k=4)
    assert [item["item_id"] for item in found["results"][0]["items"]] == wanted["similar_id"].to_list()
    assert found["notes"] == ["1 items are not in the catalogue."]
    walked = ask(client, "/v1/denoise", history=HISTORY, sampling_steps=4, k=3)["steps"]
    frame = recommenders["diffurec"].denoise(history=HISTORY, sampling_steps=4, k=3)
    assert [item["item_id"] for step in walked for item in step["items"]] == frame["item_id"].to_list()
    assert all(len(step["state"]) == len(step["x0_hat"]) == 2 for step in walked)
    assert ask(client, "/v1/denoise", model="sasrec", history=HISTORY)["steps"] == []
    told = problem(client.post("/v1/similar", json={"model": "itemknn", "items": ["i7"]}), 422, "invalid-request")
    assert "itemknn has no vectors" in told["detail"]
    problem(client.post("/v1/denoise", json={"model": "itemknn", "history": ["i7"]}), 422, "invalid-request")


def test_what_is_told_of_runs(client, recommenders):
    listed = client.get("/v1/models").json()["models"]
    assert [run["name"] for run in listed] == list(recommenders)
    assert [run["max_sampling_steps"] for run in listed] == [32, None, None, None]
    assert [run["has_paths"] for run in listed] == [False, False, True, False]
    assert [run["has_vectors"] for run in listed] == [True, True, True, False]
    base = "/v1/models/diffurec"
    assert client.get(f"{base}/items?q=film i12").json() == {"items": [{"item_id": "i12", "title": "Film i12"}]}
    assert client.get(f"{base}/users?q=u1&limit=3").json() == {"users": ["u1", "u10", "u11"]}
    history = [item["item_id"] for item in client.get(f"{base}/history?user=u1").json()["items"]]
    mine = recommenders["diffurec"].resolve_users(["u1"], None)[2].items
    assert history == recommenders["diffurec"].items["item_id"].gather(mine).to_list()
    assert len(history) > 2
    problem(client.get(f"{base}/history?user=nobody"), 404, "unknown-user")
    shown = client.get(f"{base}/map?limit=10").json()
    assert len(shown["items"]) == 10
    assert shown["total"] == 40
    training = client.get(f"{base}/training").json()
    assert [line["epoch"] for line in training["epochs"]] == [1, 2]
    assert sum(part["users"] for part in training["slices"]) == 60
    assert training["test"]["all"]["ndcg@10"] == pytest.approx(
        sum(part["users"] * part["ndcg@10"] for part in training["slices"]) / 60
    )
    assert client.get("/v1/models/sasrec/training").json()["test"] is None
    for what in ("items", "users", "map", "training"):
        problem(client.get(f"/v1/models/none/{what}"), 404, "unknown-model")


# --- in company ------------------------------------------------------------------------------------------------


def test_requests_at_once_get_what_they_get_alone(client):
    asked = [
        {"histories": [[f"i{n % 40}", f"i{(n + 1) % 40}"]], "k": 1 + n % 9, "seed": n % 2, "exclude": [f"i{n % 7}"]}
        for n in range(60)
    ]
    alone = [ask(client, **one) for one in asked]
    with ThreadPoolExecutor(20) as pool:
        together = list(pool.map(lambda one: ask(client, **one), asked))
    for one, other in zip(alone, together, strict=True):
        first, second = ([item["item_id"] for item in r["results"][0]["items"]] for r in (one, other))
        assert first == second


class Slow:
    """An ranker that waits until it is let go, and notes whom it answered together."""

    def __init__(self, items=5):
        self.model = type("Model", (), {"num_items": items, "network_passes": lambda self, sampling: 1})()
        self.go, self.began, self.together = threading.Event(), threading.Event(), []

    def answer(self, rows, who, asks, sampling, samples):
        self.began.set()
        assert self.go.wait(10)
        if 99 in rows.items:
            raise ValueError("unlucky")
        self.together.append([rows.row(n).tolist() for n in range(len(rows))])
        return [RankedItems(rows.row(n).astype(np.int64), np.zeros(1, np.float32), None) for n in range(len(rows))]


def job(ranker, *rows, seed=0, times=False):
    histories = Histories.from_lists([[row] for row in rows])
    if times:
        histories = Histories(histories.offsets, histories.items, histories.items.astype(np.int64))
    asks = [RankingQuery(1, np.empty(0, np.int64))] * len(rows)
    return Job(ranker, histories, np.full(len(rows), -1), asks, Sampling(seed), 1)


def test_what_comes_during_work_is_scored_together():
    ranker, sizes = Slow(), []
    batcher = Batcher(4, sizes.append).start()
    first = batcher.submit(job(ranker, 0))
    assert ranker.began.wait(10)
    asked = [job(ranker, 1), job(ranker, 2, seed=7), job(ranker, 3, 4), job(ranker, 5), job(ranker, 6)]
    waiting = [batcher.submit(one) for one in [*asked, job(ranker, 7, times=True), job(ranker, *range(10, 16))]]
    assert batcher.people_waiting == 13
    ranker.go.set()
    batcher.close()  # finishes what waits
    # Other seeds, and people of whom times are known, are scored apart; a large request in parts, as its turn comes.
    parts = [[0], [1, 3, 4, 5], [2], [6, 10, 11, 12], [7], [13, 14, 15]]
    assert ranker.together == [[[n] for n in part] for part in parts]
    assert sizes == [len(part) for part in parts]
    assert [a.items.tolist() for a in waiting[2].result()] == [[3], [4]]
    assert [a.items.tolist() for a in waiting[-1].result()] == [[n] for n in range(10, 16)]
    assert first.result()[0].items.tolist() == [0]
    assert batcher.people_waiting == 0
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(job(ranker, 1))


def test_a_failure_is_the_callers_and_the_thread_goes_on():
    ranker = Slow()
    ranker.go.set()
    batcher = Batcher(4).start()
    with pytest.raises(ValueError, match="unlucky"):
        batcher.submit(job(ranker, 99)).result(10)
    assert batcher.submit(job(ranker, 3)).result(10)[0].items.tolist() == [3]
    batcher.close()
    batcher.start()  # as an application that is started again
    assert batcher.submit(job(ranker, 4)).result(10)[0].items.tolist() == [4]
    batcher.close()


def test_one_failure_in_a_batch_is_not_the_others():
    ranker = Slow()
    batcher = Batcher(8).start()
    batcher.submit(job(ranker, 0))
    assert ranker.began.wait(10)
    good, bad, late = (batcher.submit(job(ranker, n)) for n in (1, 99, 2))
    ranker.go.set()
    assert [good.result(10)[0].items.tolist(), late.result(10)[0].items.tolist()] == [[1], [2]]
    with pytest.raises(ValueError, match="unlucky"):
        bad.result(10)
    batcher.close()
    assert batcher.people_waiting == 0


def test_what_nobody_waits_for_is_dropped_also_half_done():
    ranker = Slow()
    batcher = Batcher(4).start()
    large = batcher.submit(job(ranker, *range(20, 40)))
    assert ranker.began.wait(10)
    gone = batcher.submit(job(ranker, 1))
    assert batcher.people_waiting == 17
    assert gone.cancel()
    assert large.cancel()
    assert batcher.people_waiting == 0
    ranker.go.set()
    batcher.close()
    assert ranker.together == [[[20], [21], [22], [23]]]


def test_much_work_is_done_in_small_batches():
    ranker = Slow()
    ranker.model.network_passes = lambda sampling: sampling.steps
    some = job(ranker, *range(9))
    assert Job(**{**vars(some), "sampling": Sampling(sampling_steps=128), "samples": 4}).most(64) == 2
    assert Job(**{**vars(some), "sampling": Sampling(sampling_steps=10_000)}).most(64) == 1
    assert Job(**{**vars(some), "sampling": Sampling(sampling_steps=1)}).most(64) == 64


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
def test_a_wrong_field_is_named(client, content, field):
    told = problem(client.post("/v1/recommend", json=content), 422, "invalid-request")
    assert any(error["field"].startswith(field) for error in told["errors"])


def test_other_problems_are_told(client):
    told = problem(client.post("/v1/recommend", json={"model": "x", "users": ["u1"]}), 404, "unknown-model")
    assert "diffurec, sasrec" in told["remedy"]
    told = problem(client.post("/v1/recommend", json={"users": ["u1"], "sampling_steps": 33}), 422, "invalid-request")
    assert told["remedy"] == "Give 1 to 32."
    problem(client.get("/nowhere"), 404, "not-found")
    problem(client.get("/v1/recommend"), 405, "method-not-allowed")
    for body in (b"{", b"[" * 200_000, b"9" * 10_000, b"\xff", b'"\\ud800"', b""):
        answer = client.post("/v1/recommend", content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 422), body[:5]
        assert answer.headers["content-type"] == "application/problem+json"


def test_limits(folders):
    settings = Settings(max_body=2000, max_work=100, max_waiting=2)
    with TestClient(create_app(folders[:1], settings), raise_server_exceptions=False) as client:
        told = problem(client.post("/v1/recommend", json={"users": ["u" * 250] * 10}), 413, "too-large")
        assert "2,000 bytes" in told["detail"]
        chunks = (b"x" * 500 for _ in range(10))
        assert client.post("/v1/recommend", content=chunks).status_code == 413
        busy = {"users": ["u1"], "samples": 20, "sampling_steps": 6}
        told = problem(client.post("/v1/recommend", json=busy), 422, "too-much-work")
        assert "20 samples x 6 steps" in told["detail"]
        model = client.app.state.service.runs["diffurec"].loaded.recommender.model
        model.sampling_steps = 8  # as calibrated
        problem(client.post("/v1/recommend", json={"users": ["u1"], "samples": 20}), 422, "too-much-work")
        model.sampling_steps = 1
        for k, explain in ((300, False), (20, True)):
            busy = {"histories": [["i1"]] * 70, "k": k, "explain": explain}
            told = problem(client.post("/v1/recommend", json=busy), 422, "too-much-work")
            assert "70 people x k" in told["detail"]
        answer = client.post("/v1/recommend", json={"users": ["u1", "u2", "u3"]})
        problem(answer, 503, "overloaded")
        assert answer.headers["retry-after"] == "1"


def test_who_waits_too_long_is_told(folders, monkeypatch):
    app = create_app(folders[:1], Settings(timeout=0.2))
    ranker = app.state.service.runs["diffurec"].loaded.recommender.ranker
    go = threading.Event()
    real = ranker.answer
    monkeypatch.setattr(ranker, "answer", lambda *given: go.wait(10) and real(*given))
    with TestClient(app, raise_server_exceptions=False) as client:
        problem(client.post("/v1/recommend", json={"users": ["u1"]}), 503, "timeout")
        go.set()
        assert client.post("/v1/recommend", json={"users": ["u1"]}).status_code == 200


def test_what_is_done_aside_has_its_limits(folders, monkeypatch):
    app = create_app(folders[:1], Settings(timeout=0.3, max_aside=2))
    service = app.state.service
    go = threading.Event()
    real = service.denoise
    monkeypatch.setattr(service, "denoise", lambda request: go.wait(10) and real(request))
    with TestClient(app, raise_server_exceptions=False) as client, ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(client.post, "/v1/denoise", json={"user": "u1"}) for _ in range(3)]
        kinds = sorted(one.result().json()["type"] for one in asked)
        assert kinds == ["urn:rediffuse:overloaded", "urn:rediffuse:timeout", "urn:rediffuse:timeout"]
        go.set()
        assert client.post("/v1/denoise", json={"user": "u1"}).status_code == 200


def test_other_names_for_this_machine_are_refused(folders):
    app = create_app(folders[:1], Settings(hosts=frozenset({"localhost", "::1"})))
    for host, status in (("localhost:8000", 200), ("[::1]:8000", 200), ("[::1]", 200), ("evil.example:8000", 421)):
        with TestClient(app, base_url="http://localhost") as client:
            assert client.get("/v1/models", headers={"host": host}).status_code == status


def test_answers_about_people_are_kept_nowhere(client):
    for answer in (client.get("/v1/models"), client.post("/v1/recommend", json={"users": ["u1"]}), client.get("/v1/x")):
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_half_written_line_of_training_is_left_out(folders, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(folders[1], folder)
    forget_files(folder, ["metrics.jsonl"])  # as training that goes on does
    with (folder / "metrics.jsonl").open("a") as lines:
        lines.write('{"epoch": 3, "loss": NaN}\n{"epoch": 4, "lo')
    with TestClient(create_app([folder])) as client:
        epochs = client.get("/v1/models/copy/training").json()["epochs"]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3]
    assert epochs[2]["loss"] is None


def test_a_failure_of_ours_tells_no_secrets(folders, monkeypatch):
    app = create_app(folders[:1])
    ranker = app.state.service.runs["diffurec"].loaded.recommender.ranker

    def broken(*given):
        raise RuntimeError("in /secret/path")

    monkeypatch.setattr(ranker, "answer", broken)
    with TestClient(app, raise_server_exceptions=False) as client:
        answer = client.post("/v1/recommend", json={"users": ["u1"]})
        problem(answer, 500, "internal-error")
        assert "secret" not in answer.text


def test_a_token_is_asked_for(folders):
    with TestClient(create_app(folders[:1], Settings(token="a" * 32))) as client:
        for path in ("/v1/models", "/metrics"):
            answer = client.get(path)
            problem(answer, 401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
            assert client.get(path, headers={"Authorization": "Bearer " + "b" * 32}).status_code == 401
            assert client.get(path, headers={"Authorization": "Bearer é".encode()}).status_code == 401
            assert client.get(path, headers={"Authorization": "Bearer " + "a" * 32}).status_code == 200
        # Strangers have nothing parsed.
        assert client.post("/v1/recommend", content=b"{").status_code == 401
        for path in ("/health", "/ready", "/openapi.json", "/"):
            assert client.get(path).status_code == 200


def test_state_and_counts(client):
    assert client.get("/health").json() == {"status": "alive"}
    assert client.get("/ready").json() == {"status": "ready"}
    ask(client, users=["u1"])
    text = client.get("/metrics").text
    assert 'rediffuse_requests_total{method="POST",route="/v1/recommend",status="200"}' in text
    assert 'rediffuse_batch_people_count{run="diffurec"}' in text
    assert 'rediffuse_waiting_people{run="diffurec"} 0.0' in text


# --- run folders that change -----------------------------------------------------------------------------------


def test_a_run_folder_that_changes_is_read_again_whole(train, tmp_path):
    folder = train("sasrec", tmp_path / "run", seed=1)
    other = train("sasrec", tmp_path / "other", seed=2)
    app = create_app([folder], Settings(reload_every=0.05))
    with TestClient(app) as client:
        first = ask(client, users=["u1"])
        shutil.copytree(other, folder, dirs_exist_ok=True)
        until = time.monotonic() + 20
        while (second := ask(client, users=["u1"]))["version"] == first["version"]:
            assert time.monotonic() < until
        wanted = rd.Recommender.load(other).recommend(users=["u1"])
        assert [item["item_id"] for item in second["results"][0]["items"]] == wanted["item_id"].to_list()
        assert second["model"] == "run"
        # A damaged folder changes nothing but a count.
        (folder / "items.parquet").write_bytes(b"x")
        (folder / "manifest.json").write_text((folder / "manifest.json").read_text() + " ")
        run = app.state.service.runs["run"]
        while run.refused is None:
            assert time.monotonic() < until
        assert ask(client, users=["u1"])["version"] == second["version"]
        text = client.get("/metrics").text
        assert 'rediffuse_reloads_total{outcome="done",run="run"} 1.0' in text
        assert 'rediffuse_reloads_total{outcome="failed",run="run"}' in text
        # Files that come after their manifest are looked at again, and so are failures of any kind.
        third = train("sasrec", tmp_path / "third", seed=3)
        (folder / "manifest.json").write_bytes((third / "manifest.json").read_bytes())
        run.refresh()
        assert run.loaded.version == second["version"]
        shutil.copytree(third, folder, dirs_exist_ok=True)
        run.refresh()
        assert run.loaded.version != second["version"]
        second = ask(client, users=["u1"])
        (folder / "manifest.json").write_text("[]")
        run.refresh()
        (folder / "manifest.json").unlink()  # as while it is being written
        run.refresh()
        assert ask(client, users=["u1"])["version"] == second["version"]


def test_folders_are_refused_by_name(folders, tmp_path):
    with pytest.raises(ConfigError, match="No run"):
        create_app([])
    with pytest.raises(ConfigError, match="2 of the run folders are called 'diffurec'"):
        create_app([folders[0], folders[0]])
    with pytest.raises(RunError, match="is not a run folder"):
        create_app([tmp_path])
