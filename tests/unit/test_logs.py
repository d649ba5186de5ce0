"""Log lines say what came from outside as text, in every form and encoding."""

import json
import os
import pty
import subprocess
import sys

import pytest

from processor.core.visible import HIDDEN
from tests.support.terminal import plain

SCRIPT = r"""
import logging, structlog
from processor import logs
from processor.settings import Settings
logs.configure(Settings(log_format=%r), "test")
evil = "\x1b]52;c;eA==\x07[/]\x9b2J\u202e\nnext\ttab\x00\x7f\ud800 zo\xeb \u65e5"
class Loud:
    def __repr__(self): return evil
log = structlog.get_logger().bind(bound=evil)
log.info("a.b", user=evil, short="\x9b2J", nested={evil: [evil]}, loud=Loud(), **{"\x1b[1m": 1})
log.warning(evil)
logging.getLogger("other").error("from %%s", evil)
try:
    raise ValueError(evil)
except ValueError:
    log.exception("failed")
    logging.getLogger("other").exception("too: %%s", evil)
if %r:
    raise SystemError(evil)
"""
LINES = 5


def run(form: str, *, terminal: bool = False, crash: bool = False, **variables: str) -> str:
    """Standard error of a process that logs hostile values, and may end with an exception then."""
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT % (form, crash)],
            env={**os.environ, **variables},
            stderr=theirs if terminal else subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            check=not crash,
        )
        raw = os.read(ours, 1 << 16) if terminal else done.stderr
    finally:
        os.close(ours)
        os.close(theirs)
    return raw.decode("latin-1" if "PYTHONIOENCODING" in variables else "utf-8")


@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
def test_lines_for_people(terminal: bool) -> None:
    shown = plain(run("console", terminal=terminal))
    assert HIDDEN.findall(shown.replace("\n", "").replace("\r", "")) == []
    assert "short=\\x9b2J" in shown
    assert "ValueError: \\x1b]52;c;eA==\\x07[/]\\x9b2J\\u202e" in shown
    assert shown.count("Traceback") == 2
    assert "Logging error" not in shown


def test_an_exception_that_nobody_catches() -> None:
    shown = run("json", crash=True)
    assert HIDDEN.findall(shown.replace("\n", "")) == []
    assert "SystemError: \\x1b]52;c;eA==\\x07[/]\\x9b2J\\u202e\nnext" in shown


def test_lines_of_json() -> None:
    shown = run("json")
    assert HIDDEN.findall(shown.replace("\n", "")) == []
    entries = [json.loads(line) for line in shown.splitlines()]
    assert len(entries) == LINES
    assert entries[0]["user"] == "\x1b]52;c;eA==\x07[/]\x9b2J\u202e\nnext\ttab\x00\x7f\ud800 zo\xeb \u65e5"


@pytest.mark.interpreter
@pytest.mark.slow
@pytest.mark.parametrize("form", ["console", "json"])
@pytest.mark.parametrize("encoding", ["latin-1:strict", "ascii:strict"])
def test_no_encoding_stops_a_line(form: str, encoding: str) -> None:
    shown = run(form, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PYTHONIOENCODING=encoding)
    assert "Logging error" not in shown
    assert "u65e5" in shown
    assert "too: " in shown


def test_a_logger_that_was_used_before_follows_what_is_set_up_later() -> None:
    """A process that logs and forks another one: the other has its own role."""
    script = """
import structlog
from processor import logs
from processor.settings import Settings
log = structlog.get_logger()
for role in ("serve", "api"):
    logs.configure(Settings(log_format="json"), role)
    log.info("a")
with structlog.testing.capture_logs() as captured:
    log.info("b")
assert [each["event"] for each in captured] == ["b"], captured
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, [json.loads(line)["role"] for line in done.stderr.splitlines()]) == (0, ["serve", "api"])
