"""The command `rediffuse serve`: options that it refuses, and a clean shutdown."""

from __future__ import annotations

import importlib.util
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

from typer.testing import CliRunner

from rediffuse.cli import app
from rediffuse.errors import ConfigError, MissingExtraError


def error_of(*options, run="x", env=None):
    return CliRunner().invoke(app, ["serve", run, *options], env=env).exception


def test_public_addresses_need_a_token_or_allow_public(tmp_path):
    clean = {"REDIFFUSE_TOKEN": None}
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        error = error_of("--host", host, env=clean)
        assert isinstance(error, ConfigError)
        assert f"{host} can be reached from other machines" in error.problem
    # After this check, the folder is refused.
    token = tmp_path / "token"
    token.write_text("0123456789abcdef\n")
    for options in (["--host", "127.0.0.1"], ["--host", "::1"], ["--host", "localhost"], ["--allow-public"]):
        assert "is not a run folder" in str(error_of(*options, run=str(tmp_path), env=clean))
    public = ["--host", "0.0.0.0"]
    assert "is not a run folder" in str(error_of(*public, "--token-file", str(token), run=str(tmp_path), env=clean))
    assert "is not a run folder" in str(error_of(*public, run=str(tmp_path), env={"REDIFFUSE_TOKEN": "0" * 16}))


def test_bad_tokens_and_options_are_refused(tmp_path):
    short = tmp_path / "token"
    short.write_text("abc")
    assert "fewer than 16 characters" in str(error_of("--token-file", str(short)))
    assert "REDIFFUSE_TOKEN has fewer" in str(error_of(env={"REDIFFUSE_TOKEN": "x"}))
    short.write_text("é" * 20)
    assert "not ASCII" in str(error_of("--token-file", str(short)))
    assert "cannot be read" in str(error_of("--token-file", str(tmp_path / "none")))
    assert "--retrieval is 'best'" in str(error_of("--retrieval", "best"))
    assert "Give debug or info or warning or error." in str(error_of("--log-level", "loud"))
    assert "--log-format is 'xml'" in str(error_of("--log-format", "xml"))


def test_numbers_beyond_reason_are_refused():
    for value in ("inf", "nan", "0", "-1", "1e9"):
        error = error_of(f"--timeout={value}")
        assert isinstance(error, ConfigError)
        assert error.problem.startswith("--timeout is")
    error = error_of("--threads", "1000000")
    assert isinstance(error, ConfigError)
    assert "--threads is 1000000" in error.problem


def test_a_port_in_use_is_refused(folders):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        error = error_of("--port", str(taken.getsockname()[1]), run=str(folders[0]))
    assert isinstance(error, ConfigError)
    assert "Cannot listen on 127.0.0.1" in error.problem


def test_a_missing_extra_is_named(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "uvicorn" else real(name, *rest)
    )
    error = error_of()
    assert isinstance(error, MissingExtraError)
    assert "rediffuse[serve]" in str(error)


def test_a_shutdown_finishes_requests_in_progress(folders, tmp_path):
    command = [sys.executable, "-m", "rediffuse", "serve", str(folders[0]), "--port", "0", "--timeout", "60"]
    command += ["--access-log", "--log-format", "json"]
    log = tmp_path / "log"
    # The log goes to a file: a pipe that is not read would fill, and the service would wait for it.
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
    try:
        until = time.monotonic() + 60
        address = re.search(r"http://\S+", process.stdout.readline()).group()
        while True:
            try:
                urllib.request.urlopen(f"{address}/ready")
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < until
                time.sleep(0.05)
        statuses = []

        def send():
            content = json.dumps({"users": [f"u{n}" for n in range(60)], "samples": 64, "sampling_steps": 2}).encode()
            request = urllib.request.Request(f"{address}/v1/recommend", content, {"content-type": "application/json"})
            statuses.append(urllib.request.urlopen(request).status)

        sending = threading.Thread(target=send)
        sending.start()
        while (
            'rediffuse_batch_size_count{model="diffurec"} 0'
            in urllib.request.urlopen(f"{address}/metrics").read().decode()
        ):
            assert time.monotonic() < until  # wait until the model scores the request
        process.send_signal(signal.SIGTERM)
        sending.join(30)
        assert statuses == [200]
        process.wait(30)
    finally:
        process.kill()
    logged = log.read_text()
    assert "Traceback" not in logged
    entries = [json.loads(line) for line in logged.splitlines()]
    # What the split held out is said once, at the start; then there is one line for each request.
    assert [n for n, one in enumerate(entries) if "held out 60 of 450 interactions" in one["message"]] == [0]
    assert {one["status"] for one in entries if one.get("route") == "/v1/recommend"} == {200}
