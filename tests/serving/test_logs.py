"""The logs of the service: the access log, JSON lines, request ids and reloads."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
from starlette.testclient import TestClient

from rediffuse.serving import logs
from rediffuse.serving.app import create_app
from rediffuse.serving.settings import Settings


@pytest.fixture
def stream(capsys):
    """A function that returns what was logged to stderr; the loggers are as before afterwards."""
    loggers = [logging.getLogger(name) for name in ("rediffuse", "uvicorn")]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    yield lambda: capsys.readouterr().err
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def entries(stream):
    return [json.loads(line) for line in stream().splitlines()]


def test_the_access_log_is_one_json_object_per_request(folders, stream):
    logs.configure_logging("info", "json")
    with TestClient(create_app(folders[3:4], Settings(access_log=True))) as client:
        client.post("/v1/recommend", json={"users": ["u1"]}, headers={"X-Request-ID": "r1"})
        client.post("/v1/similar", json={"items": ["i7"]}, headers={"X-Request-ID": "r2"})
        client.get("/v1/models/itemknn/history?user=secret", headers={"X-Request-ID": "r3"})
        client.get("/a%0Ab", headers={"X-Request-ID": "r4"})
    text = stream()
    found = {
        one["request_id"]: one for one in map(json.loads, text.splitlines()) if one["logger"] == "rediffuse.access"
    }
    assert {key: one["status"] for key, one in found.items()} == {"r1": 200, "r2": 200, "r3": 404, "r4": 404}
    assert {key: one["model"] for key, one in found.items()} == {
        **dict.fromkeys(("r1", "r2", "r3"), "itemknn"),
        "r4": None,
    }
    assert found["r3"]["route"] == "/v1/models/{name}/history"
    assert found["r1"]["milliseconds"] > 0
    assert "secret" not in text  # ids of users stay out of the log


def test_text_logs_have_one_line_per_request_whatever_the_path(folders, stream):
    logs.configure_logging("info", "text")
    with TestClient(create_app(folders[3:4], Settings(access_log=True))) as client:
        client.get("/a%0Ab", headers={"X-Request-ID": "r4"})
    (line,) = stream().splitlines()
    assert 'GET "/a\\nb" 404' in line
    assert line.endswith("r4")


@pytest.mark.parametrize("level", ["info", "warning"])
def test_the_level_and_the_access_log_are_choices(folders, stream, level):
    logs.configure_logging(level, "json")
    with TestClient(create_app(folders[3:4], Settings(access_log=level == "warning"))) as client:
        assert client.get("/health").status_code == 200
    assert stream() == ""


def test_a_reload_logs_one_line_from_the_old_to_the_new_fingerprint(train, stream, tmp_path):
    logs.configure_logging("info", "json")
    folder, other = train("itemknn", tmp_path / "run"), train("itemknn", tmp_path / "other", neighbours=3)
    run = create_app([folder]).state.service.runs["run"]
    old = run.snapshot
    shutil.copytree(other, folder, dirs_exist_ok=True)
    run.reload_if_changed()
    run.reload_if_changed()
    (entry,) = entries(stream)
    new = run.snapshot
    assert entry["version"] == [old.version, new.version]
    assert entry["fingerprint"] == [old.recommender.fingerprint[:12], new.recommender.fingerprint[:12]]
    assert f"{entry['fingerprint'][0]} -> {entry['fingerprint'][1]}" in entry["message"]
    assert entry["model"] == "run"


def test_errors_are_logged_with_the_request(folders, stream, monkeypatch):
    logs.configure_logging("info", "json")
    monkeypatch.setattr("rediffuse.serving.metadata.describe", lambda run: 1 / 0)
    with TestClient(create_app(folders[3:4]), raise_server_exceptions=False) as client:
        client.get("/v1/models", headers={"X-Request-ID": "r9"})
    (entry,) = entries(stream)
    assert (entry["level"], entry["request_id"]) == ("error", "r9")
    assert "ZeroDivisionError" in entry["exception"]
