"""The pages: the explorer at ``/``, the training curves at ``/training``, and the API's description at ``/docs``.

The pages and their files hold no data and need no token. They request data from ``/v1``.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any, TypeVar

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from rediffuse import __version__

# Only our own files are loaded, and only our own scripts run. Plotly sets styles on elements and creates images as data
# URLs. Its WebGL traces would need 'unsafe-eval', so the map is drawn as SVG.
POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
FOLDER = resources.files("rediffuse.serving") / "pages"
MEDIA_TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
# Swagger UI is stored compressed, beside its licence. Plotly is in its own package.
COMPRESSED = {name: FOLDER / "swagger" / f"{name}.gz" for name in ("swagger-ui-bundle.js", "swagger-ui.css")}
# The static files by name.
NAMES = frozenset(
    {"plotly.js", *COMPRESSED} | {file.name for file in FOLDER.iterdir() if file.name.endswith((".css", ".js"))}
)


Result = TypeVar("Result")


@dataclass(frozen=True)
class StaticFile:
    """The content of a static file, plain and compressed."""

    plain: bytes
    gzipped: bytes


_reading = threading.RLock()


def _once(function: Callable[..., Result]) -> Callable[..., Result]:
    """Call a function once per arguments; requests at the same time wait for the first instead of doing its work."""
    cached = functools.cache(function)

    @functools.wraps(function)
    def locked(*arguments: Any) -> Result:
        with _reading:
            return cached(*arguments)

    return locked


@_once
def static_file(name: str) -> StaticFile:
    """Read one of the files of `NAMES`, once."""
    if name in COMPRESSED:
        gzipped = COMPRESSED[name].read_bytes()
        return StaticFile(gzip.decompress(gzipped), gzipped)
    plain = get_plotlyjs().encode() if name == "plotly.js" else (FOLDER / name).read_bytes()
    return StaticFile(plain, gzip.compress(plain, mtime=0))


@_once
def static_digest() -> str:
    """Compute the digest of all static files.

    It is part of their addresses, so browsers may cache them for good. Modules import each other by relative addresses,
    which lead to the same digest.
    """
    digest = hashlib.sha256()
    for name in sorted(NAMES):
        digest.update(hashlib.sha256(static_file(name).plain).digest())
    return digest.hexdigest()[:16]


@_once
def page(name: str) -> str:
    """Render a page."""
    loader = PackageLoader("rediffuse.serving", "pages")
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    static = f"static/{static_digest()}"
    return pages.get_template(f"{name}.html.j2").render(page=name, static=static, version=__version__)


def router() -> APIRouter:
    """Create the routes of the pages and their files."""
    routes = APIRouter(include_in_schema=False)

    # These functions are not async, so they run in a thread: the first call reads, compresses and renders.
    @routes.get("/")
    def explorer() -> Response:
        return HTMLResponse(page("explorer"), headers=HEADERS | {"Cache-Control": "no-cache"})

    @routes.get("/training")
    def training() -> Response:
        return HTMLResponse(page("training"), headers=HEADERS | {"Cache-Control": "no-cache"})

    @routes.get("/docs")
    def docs() -> Response:
        return HTMLResponse(page("docs"), headers=HEADERS | {"Cache-Control": "no-cache"})

    @routes.get("/static/{digest}/{name}")
    def static(request: Request, digest: str, name: str) -> Response:
        # Only names of known files are served; no part of a request becomes a path on the disk.
        if name not in NAMES:
            raise HTTPException(404)
        file, etag, media_type = static_file(name), f'"{static_digest()}"', MEDIA_TYPES[name.rpartition(".")[2]]
        caching = "public, max-age=31536000, immutable" if digest == static_digest() else "no-cache"
        headers = HEADERS | {"ETag": etag, "Cache-Control": caching, "Vary": "Accept-Encoding"}
        # Proxies that compress responses mark the tag as weak; the content is the same.
        if request.headers.get("if-none-match", "").removeprefix("W/") == etag:
            return Response(status_code=304, headers=headers)
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(file.gzipped, 200, headers | {"Content-Encoding": "gzip"}, media_type)
        return Response(file.plain, 200, headers, media_type)

    return routes
