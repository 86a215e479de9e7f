"""The command that serves."""

from __future__ import annotations

import gc
import importlib.util
import ipaddress
import os
import socket
from pathlib import Path
from typing import Annotated, Literal

import typer

from rediffuse.cli.app import app
from rediffuse.cli.output import show

TOKEN = "REDIFFUSE_TOKEN"
MOST_CONNECTIONS = 1024


@app.command()
def serve(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; the first answers requests that name none.")],
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    retrieval: Annotated[str, typer.Option(help="exact, or index: see rediffuse index.")] = "exact",
    token_file: Annotated[
        Path | None, typer.Option(help=f"File with the token that callers must bear; or set {TOKEN}.")
    ] = None,
    allow_public: Annotated[
        bool, typer.Option("--allow-public", help="Listen at a public address without a token.")
    ] = False,
    max_batch: Annotated[int, typer.Option(min=1, help="People scored together; 1: no batching.")] = 64,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that an answer may take.")] = 10.0,
    threads: Annotated[int, typer.Option(min=1, help="Of the scoring; the pages and requests have one more.")] = 1,
) -> None:
    """Serve runs over HTTP, with pages to explore them."""
    from rediffuse.errors import ConfigError, MissingExtraError

    for package in ("fastapi", "uvicorn", "jinja2", "plotly", "prometheus_client"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "serve")
    if retrieval not in ("exact", "index"):
        raise ConfigError(f"--retrieval is {retrieval!r}.", "Give exact or index.")
    token = _token(token_file)
    if token is None and not allow_public and not _is_local(host):
        raise ConfigError(
            f"{host} can be reached from other machines, and no token was set.",
            f"Set {TOKEN} or give --token-file; or say --allow-public if everyone may ask.",
        )
    import torch
    import uvicorn

    from rediffuse.serving.app import create_app
    from rediffuse.serving.settings import Settings

    torch.set_num_threads(threads)
    listening = _listen(host, port)
    # Without a token, only this machine may ask, and not a page of another by a name that leads here.
    hosts = frozenset({"localhost", "127.0.0.1", "::1", host}) if token is None and not allow_public else None
    settings = Settings(max_batch=max_batch, timeout=timeout, token=token, hosts=hosts)
    kind: Literal["exact", "index"] = "index" if retrieval == "index" else "exact"
    served = create_app(runs, settings, kind)
    shown = f"[{host}]" if ":" in host else host
    names = ", ".join(served.state.service.runs)
    show(f"Serving {names} at http://{shown}:{listening.getsockname()[1]} (stop with Ctrl+C)")
    config = uvicorn.Config(
        served,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=MOST_CONNECTIONS,
        # Requests that have begun are finished, within this time, before the process ends.
        timeout_graceful_shutdown=int(timeout) + 1,
    )
    # What was loaded stays; the collector need not look through all of it, which stops everything for 0.2 s.
    gc.collect()
    gc.freeze()
    uvicorn.Server(config).run([listening])


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
        ConfigError: another process does, or the address is none of this machine's.
    """
    from rediffuse.errors import ConfigError

    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(f"Nothing can listen at {host}, port {port}: {error}", "Choose another --port.") from None


def _token(path: Path | None) -> str | None:
    """The token in a file or in the environment.

    Raises:
        ConfigError: the file cannot be read, or the token is empty.
    """
    from rediffuse.errors import ConfigError

    if path is None:
        token, named = os.environ.get(TOKEN, "").strip() or None, TOKEN
    else:
        try:
            token, named = path.read_text(encoding="utf-8").strip(), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read: {error}", "Give a text file that holds the token.") from None
    if token is not None and not token.isascii():
        raise ConfigError(f"The token in {named} has other than ASCII characters.", "Make one: openssl rand -hex 32")
    if token is not None and len(token) < 16:
        raise ConfigError(f"The token in {named} has fewer than 16 characters.", "Make one: openssl rand -hex 32")
    return token


def _is_local(host: str) -> bool:
    """Whether only this machine reaches an address. A name other than localhost may stand for anything."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
