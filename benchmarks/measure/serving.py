"""Measure the latency and throughput of the service, and send it hostile requests.

    python -m benchmarks.measure.serving RUN [RUN ...]             latency and throughput, dynamic batching on and off
    python -m benchmarks.measure.serving RUN --hostile 10000       malformed requests: statuses, leaks, memory

The service runs in one process and the clients in another, over loopback. Each client requests ten items for the
history of one user of the run, waits for the response, and sends the next request.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil

from benchmarks.common import RESULTS, measured_alone, write_result

PORT = 8377
LEAKS = re.compile(rb"Traceback|File \"|\.py\b|site-packages|/(home|root|tmp|usr|var|srv|opt)/")


class Server:
    """`rediffuse serve` as a process of its own."""

    def __init__(self, runs: list[Path], *options: str) -> None:
        self.runs, self.options = runs, options

    def __enter__(self) -> Server:
        command = [sys.executable, "-m", "rediffuse", "serve", *map(str, self.runs), "--port", str(PORT), *self.options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}/ready")
                return self
            except OSError:
                if self.process.poll() is not None:
                    raise SystemExit("The service did not start.") from None
                time.sleep(0.1)
        raise SystemExit("The service was not ready within a minute.")

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(30)

    def memory(self) -> float:
        """Return its resident memory in MiB."""
        return psutil.Process(self.process.pid).memory_info().rss / 2**20


def histories(run: Path, count: int) -> list[list[int | str]]:
    """Draw histories of the users of a run, as item ids."""
    ids = pl.read_parquet(run / "items.parquet")["item_id"]
    rows = pl.read_parquet(run / "users.parquet").filter(pl.col("history").list.len() > 0)["history"]
    return [ids.gather(row).to_list()[-50:] for row in rows.sample(count, seed=0, with_replacement=True)]


def request(body: bytes, path: str = "/v1/recommend", method: str = "POST", kind: str = "application/json") -> bytes:
    """Build the bytes of an HTTP request."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode("latin-1") + body


async def read_response(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Read the status and the body of the next response."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head.lower())
    return int(head[9:12]), await reader.readexactly(int(length.group(1)) if length else 0)


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def client(
    link: Connection, requests: list[bytes], until: float, seconds: list[float], statuses: Counter[int], first: int
) -> None:
    reader, writer = link
    for n in range(first, 10**9):
        began = time.perf_counter()
        if began > until:
            break
        writer.write(requests[n % len(requests)])
        status, _ = await read_response(reader)
        seconds.append(time.perf_counter() - began)
        statuses[status] += 1


async def load(requests: list[bytes], clients: int, duration: float) -> dict[str, float | int]:
    """Measure what ``clients`` see at once during ``duration`` seconds, after a fifth of that to warm up."""
    links = [await asyncio.open_connection("127.0.0.1", PORT) for _ in range(clients)]
    for warm in (True, False):
        seconds: list[float] = []
        statuses: Counter[int] = Counter()
        began = time.perf_counter()
        until = began + duration * (0.2 if warm else 1.0)
        await asyncio.gather(*(client(link, requests, until, seconds, statuses, 7 * n) for n, link in enumerate(links)))
    elapsed = time.perf_counter() - began
    for _, writer in links:
        writer.close()
    return {
        "clients": clients,
        "requests_per_second": len(seconds) / elapsed,
        "p50_ms": 1000 * float(np.quantile(seconds, 0.5)),
        "p99_ms": 1000 * float(np.quantile(seconds, 0.99)),
        "errors": sum(count for status, count in statuses.items() if status != 200),
        "requests": len(seconds),
    }


def load_in_new_process(requests: list[bytes], clients: int, duration: float) -> dict[str, float | int]:
    """Run `load` in a new interpreter, so that clients and measurement share nothing."""
    content = json.dumps(
        {"requests": [one.decode("latin-1") for one in requests], "clients": clients, "duration": duration}
    )
    return measured_alone("--load-from-stdin", "x", stdin=content)


# --- hostile requests ------------------------------------------------------------------------------------------


def hostile(rng: random.Random, ids: list[int | str]) -> bytes:
    """Build a request that the service may refuse or serve, but that must break nothing."""
    odd = [None, True, -1, 0, 2**63, 10**400, 1e308, "", "\0", "'; DROP TABLE x; --", "../../etc/passwd", "💥" * 50]
    odd += [[], {}, [[]], [None], ["x"] * 500, {"a": {"b": []}}, "\ud800", "%s%n", "<script>alert(1)</script>", ids[0]]
    fields = ["users", "histories", "k", "exclude", "candidates", "samples", "sampling_steps", "seed", "noise", "model"]
    fields += ["filter_seen", "explain", "items", "user", "history", "__class__", "extra"]
    paths = ["/v1/recommend", "/v1/similar", "/v1/denoise"]
    way = rng.randrange(9)
    path = rng.choice(paths)
    if way <= 3:  # odd values in known fields, sometimes nearly right
        content = {name: rng.choice(odd) for name in rng.sample(fields, rng.randrange(1, 6))}
        if rng.random() < 0.7:  # right but for one field
            content = {name: content[name] for name in list(content)[: rng.randrange(2)]}
            some = [rng.choice([*ids[:50], "unknown", 10**9]) for _ in range(rng.randrange(30))]
            content |= {"histories": [some] * rng.choice([1, 2, 9]), "k": rng.randrange(1, 30)}
            content |= {"samples": rng.randrange(1, 9), "explain": rng.random() < 0.3} if rng.random() < 0.5 else {}
        return request(json.dumps(content).encode("utf-8", "surrogatepass"), path)
    if way == 4:  # broken bytes
        body = bytearray(json.dumps({"histories": [ids[:5]], "k": 5}).encode())
        for _ in range(rng.randrange(1, 8)):
            body[rng.randrange(len(body))] = rng.randrange(256)
        return request(bytes(body), path)
    if way == 5:  # deep or large
        deep = rng.choice([10, 1000, 100_000])
        return request(rng.choice([b"[" * deep + b"]" * deep, b'{"a":' * deep, b"9" * deep, b" " * deep]), path)
    if way == 6:  # other paths and methods
        name = rng.choice(["x", "..%2f..%2fetc%2fpasswd", "%00", "%ff%fe", "a" * 3000, "models", "%2e%2e"])
        where = rng.choice([f"/v1/models/{name}/items?q=%ff&limit=-1", f"/{name}", f"/static/{name}", f"/v1/{name}"])
        return request(b"", where, rng.choice(["GET", "PUT", "DELETE", "OPTIONS", "POST", "PATCH"]))
    if way == 7:  # queries
        name = rng.choice(["q", "limit", "user", "x"])
        value = rng.choice(["%00", "1e9", "-5", "99999999999999999999", "a" * 5000, "%F0%9F%92%A5", "[", "(?"])
        where = rng.choice(["items", "users", "history", "map", "training"])
        return request(b"", f"/v1/models/{rng.choice(['RUN', 'none'])}/{where}?{name}={value}", "GET")
    kinds = ["text/plain", "application/xml", "multipart/form-data; boundary=x", "application/json; charset=x"]
    return request(b'{"users": ["1"]}', path, kind=rng.choice(kinds))


async def attack(count: int, name: str, ids: list[int | str], memory: list[float], server: Server) -> Counter[str]:
    """Send ``count`` hostile requests one after the other; memory is measured after every tenth of them."""
    rng, seen = random.Random(0), Counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
    for n in range(count):
        writer.write(hostile(rng, ids).replace(b"/RUN/", f"/{name}/".encode()))
        try:
            status, body = await asyncio.wait_for(read_response(reader), 30)
        except (asyncio.IncompleteReadError, ConnectionError):
            seen["closed"] += 1
            reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
            continue
        seen[f"{status // 100}xx"] += 1
        if status >= 400 and LEAKS.search(body):
            seen["leaks"] += 1
            print(body[:300], file=sys.stderr)
        if status >= 500:
            print(status, body[:300], file=sys.stderr)
        if n % (count // 10) == 0:
            memory.append(server.memory())
    memory.append(server.memory())
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0, help="per measurement")
    parser.add_argument("--repeats", type=int, default=3, help="of each measurement; the median counts")
    parser.add_argument("--hostile", type=int, metavar="N", help="send N hostile requests instead")
    parser.add_argument("--out", type=Path, help="default: results/serving.json, with --hostile serving_hostile.json")
    parser.add_argument("--load-from-stdin", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load_from_stdin:
        given = json.load(sys.stdin)
        requests = [one.encode("latin-1") for one in given["requests"]]
        print(json.dumps(asyncio.run(load(requests, given["clients"], given["duration"]))))
        return
    rows = []

    def record(row: dict[str, Any]) -> None:
        rows.append(row)
        print(json.dumps(row), flush=True)

    for run in arguments.runs:
        if arguments.hostile:
            memory: list[float] = []
            ids = pl.read_parquet(run / "items.parquet")["item_id"].to_list()
            with Server([run]) as server:
                # The first round fills caches; growth after it counts.
                asyncio.run(attack(arguments.hostile // 5, run.resolve().name, ids, [], server))
                seen = asyncio.run(attack(arguments.hostile, run.resolve().name, ids, memory, server))
            grown = memory[-1] / memory[0] - 1
            record({"run": run.name, "seen": seen, "memory_mib": [round(m) for m in memory], "grown": grown})
            continue
        requests = [request(json.dumps({"histories": [row], "k": 10}).encode()) for row in histories(run, 500)]
        for label, options in (("dynamic batching", []), ("no dynamic batching", ["--max-batch", "1"])):
            with Server([run], *options):
                for clients in (1, 32):
                    rounds = [
                        load_in_new_process(requests, clients, arguments.seconds) for _ in range(arguments.repeats)
                    ]
                    rounds.sort(key=lambda one: one["requests_per_second"])
                    found = rounds[len(rounds) // 2] | {"errors": sum(one["errors"] for one in rounds)}
                    record({"run": run.name, "service": label} | found)
    name = "hostile" if arguments.hostile else "load"
    out = arguments.out or RESULTS / ("serving_hostile.json" if arguments.hostile else "serving.json")
    write_result(out, {name: rows}, precision="fp32", packages=["fastapi", "uvicorn"])


if __name__ == "__main__":
    main()
