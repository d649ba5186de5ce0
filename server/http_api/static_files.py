"""The page at `/`: its files and their headers. The page needs no other host.

A browser knows what a module imports once it has it, six deep for most views. So the page names the modules that all
views need, and its script `preload.js` those of the view in the address. Their addresses have a digest of all files:
what a browser has of them it need not ask for again. Under another digest, as that of a page which was opened before
the server was replaced by a newer one, and without one, the files are what they are now.
"""

import hashlib
import html
import json
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
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

ENTRY: Final = "main.js"
"""The module that is loaded first."""
VIEWS: Final = {
    "": "live_page.js",
    "users": "live_page.js",
    **{view: f"{view}_view.js" for view in ("explore", "events", "traces", "sessions", "prompts")},
}
"""View in the address -> the module that it is loaded by."""

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
IMMUTABLE: Final = "public, max-age=31536000, immutable"
"""`Cache-Control` of a file under its digest."""


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
        return cls.of(path.read_bytes(), TYPES[path.suffix])

    @classmethod
    def of(cls, plain: bytes, content_type: str) -> "Asset":
        """Make one of its content."""
        return cls(plain, content_type, hashlib.sha256(plain).hexdigest()[:32])


def load() -> dict[str, Asset]:
    """Return every file of the page by its name. Without `CARRIER` the charts are missing, and the page says so."""
    files = {path.name: path for path in FOLDER.iterdir() if path.suffix in TYPES} | dict(_chart_files())
    assets = {name: Asset.read(path) for name, path in sorted(files.items())}
    return {**assets, INDEX: _index(assets)}


def digest(assets: Mapping[str, Asset]) -> str:
    """Return the digest of all files but the page itself, which names it."""
    tags = "".join(assets[name].tag for name in sorted(assets) if name != INDEX)
    return hashlib.sha256(tags.encode()).hexdigest()[:16]


def imported(assets: Mapping[str, Asset], name: str) -> list[str]:
    """Return a module and all that it needs before it runs."""
    found = [name]
    for each in found:
        found += [other for other in _IMPORT.findall(assets[each].plain.decode()) if other not in found]
    return found


_IMPORT: Final = re.compile(r'^import (?:[^"]* from )?"\./([\w.]+)";$', re.MULTILINE)


def _index(assets: Mapping[str, Asset]) -> Asset:
    """Return the page with the addresses of its modules."""
    folder, first = f"{ROOT}{digest(assets)}/", imported(assets, ENTRY)
    views = {view: [each for each in imported(assets, name) if each not in first] for view, name in VIEWS.items()}
    links = "\n".join(f'<link rel="modulepreload" href="{folder}{name}">' for name in first)
    text = assets[INDEX].plain.decode().replace(f'"{ROOT}', f'"{folder}')
    text = text.replace("{modules of views}", html.escape(json.dumps(views))).replace("<!-- modules -->", links)
    return Asset.of(text.encode(), TYPES[".html"])


def _chart_files() -> Iterator[tuple[str, Path]]:
    spec = find_spec(CARRIER)
    for folder in (spec and spec.submodule_search_locations) or ():
        for name, inside in CHART_FILES.items():
            if (path := Path(folder) / inside).is_file():
                yield name, path


def add_routes(app: web.Application) -> None:
    """Serve the page and its files."""
    assets = load()
    for name, asset in assets.items():
        app.router.add_get("/" if name == INDEX else ROOT + name, handler(asset))
    ours = digest(assets)
    lasting = {name: handler(asset, cached=IMMUTABLE) for name, asset in assets.items() if name != INDEX}
    present = {name: handler(asset) for name, asset in assets.items() if name != INDEX}

    async def answer(request: web.Request) -> web.Response:
        found = (lasting if request.match_info["digest"] == ours else present).get(request.match_info["name"])
        if found is None:
            raise web.HTTPNotFound
        return await found(request)

    app.router.add_get(ROOT + "{digest:[0-9a-f]{16}}/{name}", answer)


def handler(
    asset: Asset, policy: str = POLICY, cached: str = HEADERS[hdrs.CACHE_CONTROL]
) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Return a handler that answers with a file; `policy` is its Content-Security-Policy, `cached` its
    Cache-Control."""
    headers = {**HEADERS, "Content-Security-Policy": policy, hdrs.CACHE_CONTROL: cached}

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
