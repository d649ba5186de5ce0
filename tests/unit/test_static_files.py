"""The files of the page: what they may name, and how they are served."""

import base64
import gzip
import hashlib
import html
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from server.http_api import static_files

FILES = static_files.load()
DIGEST = static_files.digest(FILES)


@pytest.fixture
async def origin() -> AsyncIterator[str]:
    app = web.Application()
    static_files.add_routes(app)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def ask(url: str, **headers: str) -> tuple[Any, bytes]:
    async with (
        aiohttp.ClientSession(auto_decompress=False, skip_auto_headers=["Accept-Encoding"]) as session,
        session.get(url, headers={name.replace("_", "-"): value for name, value in headers.items()}) as response,
    ):
        return response, await response.read()


@pytest.mark.parametrize("path", ["", f"{DIGEST}/", "0123456789abcdef/"])
async def test_every_file_comes_with_its_type_and_the_policy(origin: str, path: str) -> None:
    """Under its digest it lasts; under that of another release and without one it is asked for again each time."""
    for name, asset in FILES.items():
        response, body = await ask(origin + ("/" if name == "index.html" else f"/page/{path}{name}"))
        assert (response.status, body) == (200, asset.plain), name
        assert response.content_type == asset.content_type
        policy = response.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in policy
        assert "*" not in policy
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Referrer-Policy"] == "no-referrer"
        lasts = DIGEST in path and name != "index.html"
        assert response.headers["Cache-Control"] == ("public, max-age=31536000, immutable" if lasts else "no-cache")


async def test_a_file_that_is_known_is_not_sent_again(origin: str) -> None:
    first, body = await ask(f"{origin}/page/main.js", Accept_Encoding="gzip")
    assert first.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(body) == FILES["main.js"].plain
    again, body = await ask(f"{origin}/page/main.js", Accept_Encoding="gzip", If_None_Match=first.headers["ETag"])
    assert (again.status, body) == (304, b"")
    assert again.headers["ETag"] == first.headers["ETag"]
    plain, body = await ask(f"{origin}/page/main.js", If_None_Match=first.headers["ETag"])
    assert (plain.status, body) == (200, FILES["main.js"].plain), (
        "the tag of the compressed form is not that of the plain one"
    )
    assert plain.headers["Vary"] == "Accept-Encoding"


async def test_nothing_else_is_served(origin: str) -> None:
    below = f"/page/{DIGEST}"
    others = (below, f"{below}/", f"{below}/index.html", f"{below}/main.py", f"{below}/..%2fmain.js", "/page/0/main.js")
    for path in ("/page/", "/page/index.html", "/page/..%2fassets.py", "/page/main.py", "/index.html", *others):
        response, _ = await ask(origin + path)
        assert response.status == 404, path


def test_the_page_names_only_files_that_are_there_and_no_other_host() -> None:
    page = FILES["index.html"].plain.decode()
    named = set(re.findall(r'(?:src|href)="(/[^"]+)"', page))
    imported = {name for asset in FILES.values() for name in re.findall(rb'from "\./([^"]+)"', asset.plain)}
    assert {name.removeprefix(f"/page/{DIGEST}/") for name in named} | {name.decode() for name in imported} <= set(
        FILES
    )
    for name, asset in FILES.items():
        if name not in static_files.CHART_FILES and name != "icon.svg":  # the names of a library and of a namespace
            assert b"://" not in asset.plain, name


def test_the_page_has_nothing_inline() -> None:
    page = FILES["index.html"].plain.decode()
    assert re.findall(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=|javascript:", page) == []
    for name, asset in FILES.items():
        if name.endswith(".js") and name not in static_files.CHART_FILES:
            found = re.findall(
                rb"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", asset.plain
            )
            assert found == [], name


@pytest.mark.parametrize("name", sorted(static_files.CHART_FILES))
def test_the_chart_library_is_the_one_that_the_page_accepts(name: str) -> None:
    digest = base64.b64encode(hashlib.sha384(FILES[name].plain).digest()).decode()
    assert f'"/page/{DIGEST}/{name}" integrity="sha384-{digest}"' in FILES["index.html"].plain.decode()


def test_without_the_carrier_only_the_charts_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static_files, "find_spec", lambda name: None)
    assert set(static_files.load()) == set(FILES) - set(static_files.CHART_FILES)


# --- how much of it is loaded ----------------------------------------------------------------------------------------

BUDGET = 160 * 1024
"""Bytes of modules that one view may need, as they are; of all modules, as they are sent."""
IMPORT = re.compile(r'^import (?:[^"]* from )?"\./([\w.]+)";$', re.MULTILINE)
ROUTES = {
    "overview, users": ["live_page.js"],
    **{view: [f"{view}_view.js"] for view in ("explore", "events", "traces", "sessions", "prompts")},
    "traces, one": ["traces_view.js", "trace_view.js"],
}
"""What a view is loaded by when it is opened."""


def loaded(*names: str) -> set[str]:
    """These modules and all that they import."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += IMPORT.findall(FILES[name].plain.decode())
    return found


@pytest.mark.parametrize("route", ROUTES)
def test_a_view_loads_no_more_than_it_needs(route: str) -> None:
    modules = loaded("theme.js", "preload.js", "main.js", *ROUTES[route])
    size = sum(len(FILES[name].plain) for name in modules)
    assert size <= BUDGET, f"{size:,} bytes of {len(modules)} modules"
    openers = {name for names in ROUTES.values() for name in names}
    assert modules & openers == set(ROUTES[route]), "the others are loaded when they are opened"


def test_the_page_names_the_modules_that_it_and_its_views_need() -> None:
    """So that a browser asks for all of them at once; and no other, of which it would complain."""
    page = FILES["index.html"].plain.decode()
    preloaded = re.findall(rf'<link rel="modulepreload" href="/page/{DIGEST}/([^"]+)">', page)
    assert sorted(preloaded) == sorted(loaded("main.js"))
    found = re.search(r'data-modules="([^"]+)"', page)
    assert found is not None
    views = json.loads(html.unescape(found[1]))
    main = loaded("main.js")
    for view, modules in views.items():
        route = "overview, users" if view in {"", "users"} else view
        assert sorted(modules) == sorted(loaded(*ROUTES[route]) - main), view
    assert {*views} == {"", "users", *ROUTES} - {"overview, users", "traces, one"}


def test_the_digest_is_of_every_file_but_the_page() -> None:
    for name, asset in FILES.items():
        changed = static_files.digest({**FILES, name: static_files.Asset.of(asset.plain + b" ", asset.content_type)})
        assert (changed == DIGEST) == (name == "index.html"), name


def test_all_modules_together_are_sent_in_few_bytes() -> None:
    sizes = {name: len(asset.packed) for name, asset in FILES.items() if name.endswith(".js") and name != "uplot.js"}
    assert sum(sizes.values()) <= BUDGET, sizes


def test_every_module_is_used() -> None:
    modules = {name for name in FILES if name.endswith(".js")} - {"uplot.js"}
    assert modules == loaded(
        "theme.js", "preload.js", "main.js", *(name for names in ROUTES.values() for name in names)
    )


NAMES = re.compile(r'^import \{([^}]*)\} from "\./([\w.]+)";$', re.MULTILINE)


def test_everything_that_a_module_imports_is_there_and_used() -> None:
    texts = {name: asset.plain.decode() for name, asset in FILES.items() if name.endswith(".js") and name != "uplot.js"}
    for module, text in texts.items():
        for names, other in NAMES.findall(text):
            for name in re.split(r",\s*", names.strip(" ,")):
                word = rf"(?<![\w$]){re.escape(name)}(?![\w$])"
                assert len(re.findall(word, text)) > 1, f"{module} does not use {name}"
                assert re.search(rf"^export .*?{word}", texts[other], re.MULTILINE), f"{other} has no {name}"
