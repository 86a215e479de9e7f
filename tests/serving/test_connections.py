"""What clients send before a request is complete, and how long they may take: raw sockets against a real server."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import threading
import time
import urllib.request

import psutil
import pytest

from rediffuse.errors import ConfigError
from rediffuse.serving import connections
from rediffuse.serving.app import create_app
from rediffuse.serving.connections import Server, allowed_connections
from rediffuse.serving.explorer import static_digest
from rediffuse.serving.settings import Settings

TOKEN = "0123456789abcdef"


@contextlib.contextmanager
def served(folders, **settings):
    """The address of a server in a thread; it is stopped at the end."""
    chosen = Settings(token=TOKEN, **settings)
    server = Server(create_app([folders[3]], chosen), chosen)
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        end = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < end
            time.sleep(0.01)
        try:
            yield listener.getsockname(), server
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def healthy(address, within=2.0):
    began = time.monotonic()
    with urllib.request.urlopen(f"http://127.0.0.1:{address[1]}/health", timeout=within) as response:
        assert json.load(response) == {"status": "alive"}
    return time.monotonic() - began


def connect(address):
    made = socket.create_connection(address[:2])
    made.settimeout(15)
    return made


def answer(connection):
    """Everything that the server sends until it closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65536):
            received += piece
    return received


def status(connection):
    received = answer(connection)
    return int(received.split()[1]) if received else None


def flood(connection, first, piece, count):
    """Send a piece many times; return how many bytes the server took before it closed the connection."""
    sent = 0
    with contextlib.suppress(ConnectionError, TimeoutError):
        connection.sendall(first)
        for _ in range(count):
            connection.sendall(piece)
            sent += len(piece)
    return sent


HEAD = b"POST /v1/recommend HTTP/1.1\r\nHost: localhost\r\n"
SHORT = b"".join(b"x%d: 1\r\n" % n for n in range(8000))


@pytest.mark.parametrize(
    ("first", "piece"),
    [
        (HEAD, SHORT),
        (HEAD + b"X-Long: ", b"a" * 65536),
        (b"GET /", b"a" * 65536),
        (b"GET / HTTP/1.1\r\n", b"a" * 65536),  # a name of a header
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", SHORT),  # trailers
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX-Long: ", b"a" * 65536),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;", b"a" * 65536),  # extensions of a chunk
        (b"", b"GET /health HTTP/1.1\r\n\r\n" * 3000),  # requests that do not wait for responses
    ],
)
def test_headers_have_a_limit(folders, first, piece):
    with served(folders) as (address, _):
        process = psutil.Process()
        healthy(address)
        before = process.memory_info().rss
        with connect(address) as connection:
            sending = threading.Thread(target=flood, args=(connection, first, piece, 2**26 // len(piece)))
            sending.start()
            slowest = max(healthy(address) for _ in range(10))
            received = answer(connection)
            sending.join(20)
        assert not sending.is_alive()
        assert slowest < 1.5
        assert process.memory_info().rss - before < 30 * 2**20
        last = received.rpartition(b"HTTP/1.1 ")[2]
        # Requests that were complete are answered first; with the last of them, the connection ends.
        assert not received or last[:3] in (b"431", b"400", b"401", b"200")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (b"X: " + b"a" * 60_000, 401),
        (b"X: " + b"a" * 70_000, 431),
        (b"\r\n".join(b"X%d: 1" % n for n in range(150)), 401),
        (b"\r\n".join(b"X%d: 1" % n for n in range(250)), 431),
    ],
)
def test_the_limit_is_near_64_kib_and_answers_431(folders, headers, expected):
    with served(folders) as (address, _), connect(address) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nConnection: close\r\n" + headers + b"\r\n\r\n")
        received = answer(connection)
        assert int(received.split()[1]) == expected
        head, _, body = received.partition(b"\r\n\r\n")
        assert b"application/problem+json" in head
        assert json.loads(body)["status"] == expected


def test_a_connection_ends_after_a_body_that_arrives_after_the_response(folders):
    """The response is complete before the body is: the connection waits for a request again, and its time runs."""
    with served(folders, timeout=0.5) as (address, server), connect(address) as connection:
        connection.sendall(HEAD + b"Content-Length: 4\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 401")
        connection.sendall(b"late")
        began = time.monotonic()
        assert answer(connection) == b""
        assert time.monotonic() - began < 3
        assert not server.server_state.connections


def test_large_bodies_of_small_chunks_are_accepted(folders):
    content = json.dumps({"histories": [["i1"]] * 100, "k": 1}).encode()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in content) + b"0\r\n\r\n"
    with served(folders) as (address, _), connect(address) as connection:
        kind = b"Content-Type: application/json\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n"
        connection.sendall(HEAD + b"Authorization: Bearer " + TOKEN.encode() + b"\r\n" + kind + b"\r\n" + chunks)
        assert status(connection) == 200


def test_pipelined_requests_are_answered_in_order(folders):
    with served(folders) as (address, _), connect(address) as connection:
        requests = [b"GET /health HTTP/1.1\r\n\r\n"] * 12 + [b"GET /none HTTP/1.1\r\nConnection: close\r\n\r\n"]
        connection.sendall(b"".join(requests))
        received = answer(connection)
        assert received.count(b"HTTP/1.1 200") == 12
        assert received.count(b"HTTP/1.1 404") == 1


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"", None),
        (b"GET / HT", 408),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n", 408),
        (HEAD + b"Content-Length: 100\r\n\r\n{", 401),  # refused before the body is read
        (HEAD + b"Authorization: Bearer " + TOKEN.encode() + b"\r\nContent-Length: 100\r\n\r\n{", 408),
        (HEAD + b"Authorization: Bearer " + TOKEN.encode() + b"\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{", 408),
        (b"GET /health HTTP/1.1\r\n\r\nGET /he", 200),
    ],
)
def test_incomplete_requests_are_closed_after_the_time_out(folders, sent, expected):
    with served(folders, timeout=0.4) as (address, _), connect(address) as connection:
        began = time.monotonic()
        connection.sendall(sent)
        received = answer(connection)
        assert 0.3 < time.monotonic() - began < 4
        assert (int(received.split()[1]) if received else None) == expected
        if expected == 200:  # the second request was not complete
            assert b"HTTP/1.1 408" in received


@pytest.mark.parametrize("first", [b"GET /health HTTP/1.1\r\nX: ", b"", HEAD + b"Content-Length: 1000\r\n\r\n"])
def test_dripping_does_not_extend_the_time(folders, first):
    with served(folders, timeout=0.5) as (address, _), connect(address) as connection:
        began = time.monotonic()
        connection.sendall(first)
        closed = threading.Event()

        def drip():
            with contextlib.suppress(OSError):
                while not closed.wait(0.05):
                    connection.sendall(b"a" if first else b"\r\n")

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            answer(connection)
            until_closed = time.monotonic() - began
        finally:
            closed.set()
            dripping.join(5)
        assert until_closed < 4


def test_a_client_that_does_not_read_is_disconnected(folders):
    path = static_path()
    with served(folders, timeout=0.5) as (address, server), socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(address[:2])
        connection.sendall(f"GET {path} HTTP/1.1\r\n\r\n".encode() * 8)
        end = time.monotonic() + 10
        while not server.server_state.connections:
            assert time.monotonic() < end
        while server.server_state.connections:
            assert time.monotonic() < end, "The connection is still open."
            time.sleep(0.02)


def static_path():
    return f"/static/{static_digest()}/plotly.js"


def test_health_is_answered_at_the_limit_and_old_idle_connections_give_way(folders):
    with served(folders, max_connections=20, timeout=30) as (address, server), contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connect(address)) for _ in range(60)]
        for connection in idle:
            with contextlib.suppress(ConnectionError):
                connection.sendall(b"GET / HTTP/1.1\r\n")
        for _ in range(5):
            healthy(address)
        request = urllib.request.Request(
            f"http://127.0.0.1:{address[1]}/v1/models", headers={"Authorization": f"Bearer {TOKEN}"}
        )
        assert urllib.request.urlopen(request, timeout=5).status == 200
        assert len(server.server_state.connections) <= 21


def test_health_is_answered_while_all_connections_have_requests(folders, monkeypatch):
    """Requests in progress are not closed. Further ones get 503, and /health its answer."""
    release = threading.Event()
    from rediffuse.serving import metadata

    monkeypatch.setattr(metadata, "describe", lambda run: release.wait(20) and {})
    asked = b"GET /v1/models HTTP/1.1\r\nConnection: close\r\nAuthorization: Bearer " + TOKEN.encode() + b"\r\n\r\n"
    with served(folders, max_connections=5, timeout=20) as (address, server), contextlib.ExitStack() as stack:
        busy = [stack.enter_context(connect(address)) for _ in range(5)]
        for connection in busy:
            connection.sendall(asked)
        end = time.monotonic() + 10
        while len(server.server_state.tasks) < 5:
            assert time.monotonic() < end
            time.sleep(0.01)
        healthy(address)
        with connect(address) as more:
            more.sendall(asked)
            received = answer(more)
            assert b"HTTP/1.1 503" in received
            assert b"retry-after" in received.lower()
        release.set()
        assert [status(connection) for connection in busy] == [200] * 5


def test_a_stop_does_not_wait_for_idle_or_incomplete_connections(folders):
    with contextlib.ExitStack() as stack:
        with served(folders, timeout=30) as (address, server):
            body = HEAD + b"Authorization: Bearer " + TOKEN.encode() + b"\r\nContent-Length: 100\r\n\r\n{"
            sent = [b"", b"GET / HTTP", b"GET /health HTTP/1.1\r\n\r\n", body]
            for content in sent:
                stack.enter_context(connect(address)).sendall(content)
            end = time.monotonic() + 10
            while len(server.server_state.connections) < len(sent):
                assert time.monotonic() < end
                time.sleep(0.01)
            healthy(address)
            began = time.monotonic()
        assert time.monotonic() - began < 6


def test_bodies_have_a_limit_together(folders):
    settings = {"max_bodies": 200_000, "timeout": 15}
    with served(folders, **settings) as (address, _), contextlib.ExitStack() as stack:
        head = HEAD + b"Authorization: Bearer " + TOKEN.encode() + b"\r\nContent-Length: 150000\r\n\r\n"
        first, second = (stack.enter_context(connect(address)) for _ in range(2))
        first.sendall(head + b" " * 120_000)
        second.sendall(head + b" " * 120_000)
        # One of them is refused; the other one can be completed.
        received = {}
        readers = [
            threading.Thread(target=lambda one=one: received.setdefault(one, one.recv(100)), daemon=True)
            for one in (first, second)
        ]
        for reader in readers:
            reader.start()
        end = time.monotonic() + 10
        while not received:
            assert time.monotonic() < end
            time.sleep(0.01)
        (refused,) = received
        assert received[refused].startswith(b"HTTP/1.1 503")
        other = second if refused is first else first
        other.sendall(b" " * 30_000)
        readers[0].join(10)
        readers[1].join(10)
        assert received[other].startswith(b"HTTP/1.1 422")


def test_the_limit_of_open_files_is_raised_or_said(monkeypatch, caplog):
    changed = []
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: changed.append(limits))
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 4096))
    needed = 1024 + connections.RESERVE + connections.FILES
    assert allowed_connections(1024) == 1024
    assert changed == [(needed, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 512))
    with caplog.at_level("WARNING", "rediffuse.serving"):
        assert allowed_connections(1024) == 512 - connections.RESERVE - connections.FILES
    assert "may open 512 files" in caplog.text
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (64, 64))
    with pytest.raises(ConfigError, match=r"may open 64 files(.|\n)*ulimit -n"):
        allowed_connections(1024)
