"""The pages for people: an explorer at ``/`` and the training curves at ``/training``.

Pages and their files hold no data and need no token; what they show they ask of ``/v1``.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
from dataclasses import dataclass
from importlib import resources

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from rediffuse import __version__

# Nothing is loaded from elsewhere, and no script but our files runs. Plotly styles its elements in place and makes
# pictures as data; its WebGL traces would need 'unsafe-eval', which is why the map is drawn as SVG.
POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
KINDS = {
    "style.css": "text/css; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "plotly.js": "text/javascript; charset=utf-8",
}


@dataclass(frozen=True)
class File:
    """A static file, as it is and compressed, and the digest it is known by."""

    plain: bytes
    packed: bytes
    digest: str


@functools.cache
def static(name: str) -> File:
    """One of `KINDS`, read once."""
    if name == "plotly.js":
        plain = get_plotlyjs().encode()
    else:
        plain = (resources.files("rediffuse.serving") / "pages" / name).read_bytes()
    return File(plain, gzip.compress(plain, mtime=0), hashlib.sha256(plain).hexdigest()[:16])


@functools.cache
def page(name: str) -> str:
    """A page; it names its files with their digests, so that browsers may keep them for good."""
    loader = PackageLoader("rediffuse.serving", "pages")
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    digests = {file: static(file).digest for file in KINDS}
    return pages.get_template(f"{name}.html.j2").render(page=name, digests=digests, version=__version__)


def router() -> APIRouter:
    """Routes of the pages and their files."""
    routes = APIRouter(include_in_schema=False)

    # Plain functions: compressing and rendering, done once each, are for a thread.
    @routes.get("/")
    def explorer() -> Response:
        return HTMLResponse(page("explorer"), headers=HEADERS | {"Cache-Control": "no-cache"})

    @routes.get("/training")
    def training() -> Response:
        return HTMLResponse(page("training"), headers=HEADERS | {"Cache-Control": "no-cache"})

    def serve(name: str, request: Request, v: str) -> Response:
        file = static(name)
        lasting = "public, max-age=31536000, immutable" if v == file.digest else "no-cache"
        headers = HEADERS | {"ETag": f'"{file.digest}"', "Cache-Control": lasting, "Vary": "Accept-Encoding"}
        # Proxies that compress mark the tag as weak; the bytes are the same.
        if request.headers.get("if-none-match", "").removeprefix("W/") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        packed = "gzip" in request.headers.get("accept-encoding", "")
        content = file.packed if packed else file.plain
        return Response(content, 200, headers | ({"Content-Encoding": "gzip"} if packed else {}), KINDS[name])

    # One route per file, so that no name out of a request ever meets a folder.
    @routes.get("/static/style.css")
    def style(request: Request, v: str = "") -> Response:
        return serve("style.css", request, v)

    @routes.get("/static/app.js")
    def script(request: Request, v: str = "") -> Response:
        return serve("app.js", request, v)

    @routes.get("/static/plotly.js")
    def plotly(request: Request, v: str = "") -> Response:
        return serve("plotly.js", request, v)

    return routes
