"""Attack a served run with connections: headers without end, slow clients, idle clients, clients that do not read.

    python -m benchmarks.faults.connections RUN [--megabytes 200] [--idle 3000]

It starts ``rediffuse serve`` with a token that the attacks do not have. After each attack it prints the growth of the
server's memory, the longest time that /health took meanwhile, and what the attackers were answered. It fails if these
are large.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

HEAD = b"POST /v1/recommend HTTP/1.1\r\nHost: localhost\r\n"
MAX_GROWTH, MAX_HEALTH = 100, 5.0  # MiB and seconds; the clients share the processors with the server
Address = tuple[str, int]


@contextlib.contextmanager
def server(run: Path) -> Iterator[tuple[subprocess.Popen[str], Address]]:
    """`rediffuse serve` as a process of its own, with a time-out of 3 seconds."""
    command = [sys.executable, "-m", "rediffuse", "serve", str(run), "--port", "0", "--timeout", "3"]
    environment = os.environ | {"REDIFFUSE_TOKEN": "0123456789abcdef"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    found = re.search(r":(\d+) \(", process.stdout.readline())
    if found is None:
        raise SystemExit("The service did not start.")
    try:
        yield process, ("127.0.0.1", int(found[1]))
    finally:
        process.kill()
        process.wait()


def health(address: Address) -> float:
    """Seconds that /health takes."""
    began = time.monotonic()
    urllib.request.urlopen(f"http://127.0.0.1:{address[1]}/health", timeout=30).read()
    return time.monotonic() - began


def connected(address: Address, sent: bytes = b"") -> socket.socket:
    """A connection that has sent something."""
    made = socket.create_connection(address)
    made.settimeout(30)
    made.sendall(sent)
    return made


def answer(connection: socket.socket) -> str:
    """The status that a client is answered, or how the connection ended."""
    try:
        received = connection.recv(1 << 16)
        return received.split()[1].decode() if received else "closed"
    except OSError as error:
        return type(error).__name__


def stream(address: Address, first: bytes, piece: bytes, megabytes: int) -> str:
    """Send a piece again and again; return the answer."""
    with connected(address, first) as connection:
        with contextlib.suppress(OSError):
            for _ in range(megabytes * 2**20 // len(piece)):
                connection.sendall(piece)
        return answer(connection)


def drip(address: Address, first: bytes) -> str:
    """Send a byte every 50 ms, for 20 seconds at most; return the answer."""
    with connected(address, first) as connection:
        with contextlib.suppress(OSError):
            for _ in range(400):
                connection.sendall(b"a")
                time.sleep(0.05)
        return answer(connection)


def together(count: int, work: Callable[[], str]) -> Counter[str]:
    """The answers of ``count`` clients at the same time."""
    answers: Counter[str] = Counter()
    threads = [threading.Thread(target=lambda: answers.update([work()])) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def idle(address: Address, count: int, sent: bytes) -> Counter[str]:
    """The answers of clients that wait."""
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(count):
            with contextlib.suppress(OSError):
                clients.append(stack.enter_context(connected(address, sent)))
        return Counter(answer(client) for client in clients)


def unread(address: Address) -> str:
    """Ask for a large file many times, and read nothing for as long as the server allows."""
    page = urllib.request.urlopen(f"http://127.0.0.1:{address[1]}/training").read()
    found = re.search(rb"static/\w+/plotly\.js", page)
    path = found[0] if found else b""
    with connected(address, b"GET /%s HTTP/1.1\r\n\r\n" % path * 16) as connection:
        time.sleep(8)
        return answer(connection)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--idle", type=int, default=3000)
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, options.idle + 200)), hard))
    short = b"".join(b"x%d: 1\r\n" % n for n in range(8000))
    size, body = options.megabytes, HEAD + b"Content-Length: 1000000\r\n\r\n"
    with server(options.run) as (process, address):
        memory = psutil.Process(process.pid).memory_info
        pipelined = b"GET /health HTTP/1.1\r\n\r\n" * 3000
        failed: list[str] = []
        attacks: dict[str, Callable[[], Counter[str]]] = {
            "short headers": lambda: together(4, lambda: stream(address, HEAD, short, size)),
            "one header": lambda: together(4, lambda: stream(address, HEAD + b"X: ", b"a" * 65536, size)),
            "trailers": lambda: together(
                4, lambda: stream(address, HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", short, size)
            ),
            "pipelining": lambda: together(4, lambda: stream(address, b"", pipelined, size)),
            "slow headers": lambda: together(100, lambda: drip(address, HEAD + b"X: ")),
            "slow bodies": lambda: together(100, lambda: drip(address, body)),
            "idle": lambda: idle(address, options.idle, b""),
            "incomplete headers": lambda: idle(address, options.idle, HEAD),
            "incomplete bodies": lambda: idle(address, options.idle, body),
            "unread responses": lambda: together(50, lambda: unread(address)),
        }
        for name, attack in attacks.items():
            health(address)
            before, slowest, ended = memory().rss, 0.0, threading.Event()

            def watch(ended: threading.Event = ended) -> None:
                nonlocal slowest
                while not ended.is_set():
                    slowest = max(slowest, health(address))
                    time.sleep(0.05)

            watcher = threading.Thread(target=watch)
            watcher.start()
            answers = attack()
            ended.set()
            watcher.join()
            growth = (memory().rss - before) / 2**20
            failed += [name] if growth > MAX_GROWTH or slowest > MAX_HEALTH else []
            print(f"{name:20} {growth:+8.1f} MiB  /health {slowest:.2f} s  {dict(answers)}", flush=True)
        for _ in range(100):
            connected(address, HEAD)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait()
        print(f"stopped in {time.monotonic() - began:.1f} s with incomplete requests open")
    if failed:
        raise SystemExit(f"Beyond {MAX_GROWTH} MiB or {MAX_HEALTH} s: {', '.join(failed)}")


if __name__ == "__main__":
    main()
