"""The page at `/`: its files and their headers. The page needs no other host."""

import hashlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from aiohttp import hdrs, web
from isal import igzip

ROOT: Final = "/page/"
"""The path of the page's files; the page itself is at `/`."""

FOLDER: Final = Path(__file__).parent / "page"
INDEX: Final = "index.html"

CARRIER: Final = "youplot"
"""The distribution that brings uPlot, the chart library. None of its code is imported; decision record 16."""
CHART_FILES: Final = {"uplot.js": "vendor/uplot.iife.min.js", "uplot.css": "vendor/uplot.min.css"}
"""The name under which a file is served -> the file in the package. `index.html` has their hashes (`integrity`)."""

TYPES: Final = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

# The last two keep the page from turning any string into markup or code.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)

HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    hdrs.CACHE_CONTROL: "no-cache",  # revalidated each time (304), so that a new release is seen at once
    hdrs.VARY: hdrs.ACCEPT_ENCODING,
}


@dataclass(frozen=True)
class Asset:
    """One file, plain and compressed; `tag` is a digest of its content."""

    plain: bytes
    content_type: str
    tag: str

    @cached_property
    def packed(self) -> bytes:
        """It by gzip, made when it is asked for first: within 10 ms for the largest, Swagger UI."""
        return igzip.compress(self.plain, mtime=0)

    @classmethod
    def read(cls, path: Path) -> "Asset":
        """Read a file once: what is served does not change while the process runs. Raises `OSError`."""
        plain = path.read_bytes()
        return cls(plain, TYPES[path.suffix], hashlib.sha256(plain).hexdigest()[:32])


def load() -> dict[str, Asset]:
    """Return every file of the page by its name. Without `CARRIER` the charts are missing, and the page says so."""
    files = {path.name: path for path in FOLDER.iterdir() if path.suffix in TYPES} | dict(_chart_files())
    return {name: Asset.read(path) for name, path in sorted(files.items())}


def _chart_files() -> Iterator[tuple[str, Path]]:
    spec = find_spec(CARRIER)
    for folder in (spec and spec.submodule_search_locations) or ():
        for name, inside in CHART_FILES.items():
            if (path := Path(folder) / inside).is_file():
                yield name, path


def add_routes(app: web.Application) -> None:
    """Serve the page and its files."""
    for name, asset in load().items():
        app.router.add_get("/" if name == INDEX else ROOT + name, handler(asset))


def handler(asset: Asset, policy: str = POLICY) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Return a handler that answers with a file; `policy` is its Content-Security-Policy."""
    headers = {**HEADERS, "Content-Security-Policy": policy}

    async def answer(request: web.Request) -> web.Response:
        packed = "gzip" in request.headers.get(hdrs.ACCEPT_ENCODING, "").lower()
        tag = f"{asset.tag}-gzip" if packed else asset.tag
        known = request.if_none_match or ()
        if any(each.value in {tag, "*"} for each in known):
            response = web.Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
        else:
            body = asset.packed if packed else asset.plain
            response = web.Response(body=body, headers=headers, content_type=asset.content_type, charset="utf-8")
            if packed:
                response.headers[hdrs.CONTENT_ENCODING] = "gzip"
        response.etag = tag
        return response

    return answer
