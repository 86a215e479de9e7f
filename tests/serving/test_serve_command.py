"""`rediffuse serve` as a process: what it refuses, and how it stops."""

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


def refused(*options, run="x", env=None):
    return CliRunner().invoke(app, ["serve", run, *options], env=env).exception


def test_public_addresses_need_a_token_or_a_plain_word(tmp_path):
    clean = {"REDIFFUSE_TOKEN": None}
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        error = refused("--host", host, env=clean)
        assert isinstance(error, ConfigError)
        assert f"{host} can be reached from other machines" in error.problem
    # Past that, the folder is what is wrong.
    token = tmp_path / "token"
    token.write_text("0123456789abcdef\n")
    for options in (["--host", "127.0.0.1"], ["--host", "::1"], ["--host", "localhost"], ["--allow-public"]):
        assert "is not a run folder" in str(refused(*options, run=str(tmp_path), env=clean))
    listening = ["--host", "0.0.0.0"]
    assert "is not a run folder" in str(refused(*listening, "--token-file", str(token), run=str(tmp_path), env=clean))
    assert "is not a run folder" in str(refused(*listening, run=str(tmp_path), env={"REDIFFUSE_TOKEN": "0" * 16}))


def test_bad_tokens_and_options_are_refused(tmp_path):
    short = tmp_path / "token"
    short.write_text("abc")
    assert "fewer than 16 characters" in str(refused("--token-file", str(short)))
    assert "REDIFFUSE_TOKEN has fewer" in str(refused(env={"REDIFFUSE_TOKEN": "x"}))
    short.write_text("é" * 20)
    assert "other than ASCII" in str(refused("--token-file", str(short)))
    assert "cannot be read" in str(refused("--token-file", str(tmp_path / "none")))
    assert "--retrieval is 'best'" in str(refused("--retrieval", "best"))


def test_a_port_that_is_taken_is_said(folders):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        error = refused("--port", str(taken.getsockname()[1]), run=str(folders[0]))
    assert isinstance(error, ConfigError)
    assert "Nothing can listen at 127.0.0.1" in error.problem


def test_a_missing_extra_is_named(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "uvicorn" else real(name, *rest)
    )
    error = refused()
    assert isinstance(error, MissingExtraError)
    assert "rediffuse[serve]" in str(error)


def test_a_service_finishes_what_it_began_and_stops(folders):
    command = [sys.executable, "-m", "rediffuse", "serve", str(folders[0]), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 60
        address = re.search(r"http://\S+", process.stdout.readline()).group()
        while True:
            try:
                urllib.request.urlopen(f"{address}/ready")
                break
            except OSError:
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < until
                time.sleep(0.05)
        statuses = []

        def ask():
            content = json.dumps({"users": [f"u{n}" for n in range(60)], "samples": 64, "sampling_steps": 2}).encode()
            request = urllib.request.Request(f"{address}/v1/recommend", content, {"content-type": "application/json"})
            statuses.append(urllib.request.urlopen(request).status)

        asking = threading.Thread(target=ask)
        asking.start()
        while (
            'rediffuse_batch_people_count{run="diffurec"} 0'
            in urllib.request.urlopen(f"{address}/metrics").read().decode()
        ):
            assert time.monotonic() < until  # until the request has reached the model
        process.send_signal(signal.SIGTERM)
        asking.join(30)
        assert statuses == [200]
        process.wait(30)
    finally:
        process.kill()
    assert "Traceback" not in process.stderr.read()
