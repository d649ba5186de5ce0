"""`/openapi.json`, and `/docs`: Swagger UI over it, served without any other host."""

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import msgspec
from aiohttp import web

from server.http_api import static_files
from server.http_api.openapi import document
from server.http_api.static_files import Asset

CARRIER: Final = "swagger_ui"
"""The package of the distribution swagger-ui-py, which brings Swagger UI. None of its code is imported; record 19."""
FILES: Final = {"swagger-ui.js": "static/swagger-ui-bundle.js", "swagger-ui.css": "static/swagger-ui.css"}
"""The name under which a file is served -> the file in the package."""
FOLDER: Final = Path(__file__).parent / "docs"
ROOT: Final = "/docs/"

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Swagger UI sets styles from its script and has its icons in its style sheet; scripts come from this server only."""


def load() -> dict[str, Asset]:
    """Return the files of the page by their names."""
    files = {path.name: path for path in FOLDER.iterdir() if path.suffix in static_files.TYPES}
    spec = find_spec(CARRIER)
    for folder in (spec and spec.submodule_search_locations) or ():
        files |= {name: path for name, inside in FILES.items() if (path := Path(folder) / inside).is_file()}
    return {name: Asset.read(path) for name, path in sorted(files.items())}


def add_routes(app: web.Application) -> None:
    """Serve the document and its page."""
    body = msgspec.json.encode(document(version("spendstream")))

    async def openapi(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type="application/json")

    app.router.add_get("/openapi.json", openapi)
    for name, asset in load().items():
        path = "/docs" if name == static_files.INDEX else ROOT + name
        app.router.add_get(path, static_files.handler(asset, POLICY))
