"""Flame graphs and tables from py-spy's words: whose time it is, and nothing of the machine it was measured on."""

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Final

import pytest

from tools.flame import by_module, draw, module_of, read, table

ROOT: Final = Path("/home/somebody/project")
MAIN: Final = (
    "thread (12): MainThread;_run_module_as_main (<frozen runpy>:173);main (processor/__main__.py:33);"
    "Runner.run (asyncio/runners.py:86)"
)
LIBRARIES: Final = "/home/somebody/.venv/lib/python3.11/site-packages"
POOL: Final = "/usr/lib/python3.11/concurrent/futures/thread.py"
RAW: Final = f"""\
{MAIN};handle ({LIBRARIES}/aiohttp/web.py:5);accept (server/ingest/intake.py:10) 30
{MAIN};handle (aiohttp/web.py:5);accept (server/ingest/intake.py:20);decode ({ROOT}/processor/core/events/codec.py:7) 50
{MAIN} 5
thread (13): log-writer_0;_worker ({POOL}:69) 4
thread (14): log-writer_1;_worker (concurrent/futures/thread.py:69);f.<locals>.g (<x> & y) (/opt/odd/place.py:1) 10
thread (15);odd 1
"""


def test_stacks_lose_lines_directories_and_what_they_all_start_with() -> None:
    assert read(RAW, ROOT) == {
        (
            "thread MainThread",
            "event loop (asyncio)",
            "handle (aiohttp/web.py)",
            "accept (server/ingest/intake.py)",
        ): 30,
        (
            "thread MainThread",
            "event loop (asyncio)",
            "handle (aiohttp/web.py)",
            "accept (server/ingest/intake.py)",
            "decode (processor/core/events/codec.py)",
        ): 50,
        ("thread MainThread", "event loop (asyncio)"): 5,
        ("thread log-writer", "_worker (concurrent/futures/thread.py)"): 4,
        ("thread log-writer", "_worker (concurrent/futures/thread.py)", "f.<locals>.g (<x> & y) (place.py)"): 10,
        ("thread without a name", "odd"): 1,
    }


@pytest.mark.parametrize(
    ("frame", "module"),
    [
        ("decode (processor/core/events/codec.py)", "processor/core/events/codec.py"),
        ("accept (server/ingest/intake.py)", "server/ingest/intake.py"),
        ("handle (aiohttp/web.py)", "aiohttp"),
        ("wait (threading.py)", "threading"),
        ("event loop (asyncio)", "asyncio"),
        ("odd", "odd"),
    ],
)
def test_a_frame_is_of_a_file_of_ours_or_of_a_package(frame: str, module: str) -> None:
    assert module_of(frame) == module


def test_a_module_has_its_own_time_and_that_of_what_it_calls() -> None:
    stacks = read(RAW, ROOT)
    rows = {name: (own, whole) for name, own, whole in by_module(stacks)}
    assert rows["server/ingest/intake.py"] == (30, 80)
    assert rows["processor/core/events/codec.py"] == (50, 50)
    assert rows["aiohttp"] == (0, 80)
    assert rows["asyncio"] == (5, 85)
    assert sum(own for own, _ in rows.values()) == pytest.approx(100)
    assert table("api", stacks).splitlines()[2] == "| processor/core/events/codec.py | 50.0 | 50.0 |"


def test_the_picture_is_well_formed_and_names_no_machine_and_no_link() -> None:
    text = draw("worker <1>", read(RAW, ROOT))
    ET.fromstring(text)
    for word in ("somebody", "/usr", "/opt", "site-packages", "href", "script", "DOCTYPE"):
        assert word not in text
    assert text.count("://") == 1, "only the name of SVG's namespace"
    assert "accept (server/ingest/intake.py): 80.0 %" in text
