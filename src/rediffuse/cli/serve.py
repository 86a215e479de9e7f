"""The command that serves."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from rediffuse.cli.app import app
from rediffuse.cli.output import show

TOKEN = "REDIFFUSE_TOKEN"


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
    settings = Settings(max_batch=max_batch, timeout=timeout, token=token)
    kind: Literal["exact", "index"] = "index" if retrieval == "index" else "exact"
    served = create_app(runs, settings, kind)
    shown = f"[{host}]" if ":" in host else host
    show(f"Serving {', '.join(served.state.service.runs)} at http://{shown}:{port} (stop with Ctrl+C)")
    # Requests that have begun are finished, within this time, before the process ends.
    uvicorn.run(
        served,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(timeout) + 1,
    )


def _token(path: Path | None) -> str | None:
    """The token in a file or in the environment.

    Raises:
        ConfigError: the file cannot be read, or the token is empty.
    """
    from rediffuse.errors import ConfigError

    if path is None:
        token, named = os.environ.get(TOKEN), TOKEN
    else:
        try:
            token, named = path.read_text(encoding="utf-8").strip(), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read: {error}", "Give a text file that holds the token.") from None
    if token is not None and len(token) < 16:
        raise ConfigError(f"The token in {named} has fewer than 16 characters.", "Make one: openssl rand -hex 32")
    return token


def _is_local(host: str) -> bool:
    """Whether only this machine reaches an address. A name other than localhost may stand for anything."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
