"""The command ``rediffuse serve``."""

from __future__ import annotations

import gc
import importlib.util
import ipaddress
import logging
import os
import socket
from pathlib import Path
from typing import Annotated, Literal, cast, get_args

import typer

from rediffuse.cli.app import Device, app
from rediffuse.cli.output import print_rich

log = logging.getLogger("rediffuse.serving")
TOKEN = "REDIFFUSE_TOKEN"
MAX_THREADS, MAX_TIMEOUT = 256, 3600


@app.command()
def serve(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; the first is the default model.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free port.")] = 8000,
    retrieval: Annotated[str, typer.Option(help="exact, or index: see rediffuse index.")] = "exact",
    token_file: Annotated[
        Path | None, typer.Option(help=f"File with the token that clients must send; or set {TOKEN}.")
    ] = None,
    allow_public: Annotated[bool, typer.Option("--allow-public", help="Serve every client without a token.")] = False,
    max_batch: Annotated[int, typer.Option(min=1, help="The most users in a batch; 1: no dynamic batching.")] = 64,
    timeout: Annotated[
        float, typer.Option(help="The most seconds that a request may take to arrive, or to answer.")
    ] = 10.0,
    device: Device = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="Threads that torch uses to score.")] = 1,
    access_log: Annotated[bool, typer.Option("--access-log", help="Log every request.")] = False,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
    log_format: Annotated[str, typer.Option(help="text, or json: one object per line. Logs go to stderr.")] = "text",
) -> None:
    """Serve runs over HTTP, with pages to explore them in a browser."""
    from rediffuse.errors import ConfigError, MissingExtraError
    from rediffuse.serving.logs import LogFormat, LogLevel, configure_logging

    for package in ("fastapi", "uvicorn", "jinja2", "plotly", "prometheus_client"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "serve")
    if retrieval not in ("exact", "index"):
        raise ConfigError(f"--retrieval is {retrieval!r}.", "Give exact or index.")
    for option, value, known in (("log-level", log_level, LogLevel), ("log-format", log_format, LogFormat)):
        if value not in get_args(known):
            raise ConfigError(f"--{option} is {value!r}.", f"Give {' or '.join(get_args(known))}.")
    token = _token(token_file)
    if token is None and not allow_public and not _is_local(host):
        raise ConfigError(
            f"{host} can be reached from other machines, and no token is set.",
            f"Set {TOKEN} or give --token-file, or serve every client with --allow-public.",
        )
    _check_numbers(threads, timeout)
    import torch

    from rediffuse import devices
    from rediffuse.serving.app import create_app
    from rediffuse.serving.connections import Server, allowed_connections
    from rediffuse.serving.settings import Settings

    configure_logging(cast(LogLevel, log_level), cast(LogFormat, log_format))
    torch.set_num_threads(threads)
    listener = _listen(host, port)
    # Without a token, requests must name this machine. Other host names may be an attack by DNS rebinding.
    hosts = frozenset({"localhost", "127.0.0.1", "::1", host}) if token is None and not allow_public else None
    connections = allowed_connections(Settings.max_connections)
    settings = Settings(max_batch, timeout, connections, token=token, hosts=hosts, access_log=access_log)
    kind: Literal["exact", "index"] = "index" if retrieval == "index" else "exact"
    application = create_app(runs, settings, kind, device)
    address = f"[{host}]" if ":" in host else host
    names = ", ".join(application.state.service.runs)
    where = "" if device == "cpu" else f" on {devices.description(devices.resolve(device))}"
    print_rich(f"Serving {names}{where} at http://{address}:{listener.getsockname()[1]} (stop with Ctrl+C)")
    for run in application.state.service.runs.values():
        if remark := run.snapshot.recommender.held_out_remark:
            log.warning("%s: %s", run.name, remark)
    # Exclude the loaded objects from garbage collection: they stay, and going through them takes 0.2 seconds each time.
    gc.collect()
    gc.freeze()
    Server(application, settings).run([listener])


def _check_numbers(threads: int, timeout: float) -> None:
    """Refuse numbers that torch or the event loop cannot work with.

    Raises:
        ConfigError: names the option.
    """
    from rediffuse.errors import ConfigError

    if threads > MAX_THREADS:
        remedy = f"Give 1 to {MAX_THREADS}; this machine has {os.cpu_count()} processors."
        raise ConfigError(f"--threads is {threads}.", remedy)
    if not 0.1 <= timeout <= MAX_TIMEOUT:  # also refuses nan
        raise ConfigError(f"--timeout is {timeout:g}.", f"Give seconds from 0.1 to {MAX_TIMEOUT:,}.")


def _listen(host: str, port: int) -> socket.socket:
    """Create a listening socket.

    Raises:
        ConfigError: the port is in use, or the address does not belong to this machine.
    """
    from rediffuse.errors import ConfigError

    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(f"Cannot listen on {host}, port {port}: {error}", "Choose another --port.") from None


def _token(path: Path | None) -> str | None:
    """Read the token from a file or from the environment.

    Raises:
        ConfigError: the file cannot be read, or the token is too short or not ASCII.
    """
    from rediffuse.errors import ConfigError

    if path is None:
        token, source = os.environ.get(TOKEN, "").strip() or None, TOKEN
    else:
        try:
            token, source = path.read_text(encoding="utf-8").strip(), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read: {error}", "Give a text file that contains the token.") from None
    if token is not None and not token.isascii():
        raise ConfigError(f"The token in {source} has characters that are not ASCII.", "Make one: openssl rand -hex 32")
    if token is not None and len(token) < 16:
        raise ConfigError(f"The token in {source} has fewer than 16 characters.", "Make one: openssl rand -hex 32")
    return token


def _is_local(host: str) -> bool:
    """Return whether only this machine can reach an address. Names other than localhost may resolve to any address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
