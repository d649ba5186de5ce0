"""The query process of a real server crashes, hangs and comes back, and nothing else notices."""

import json
import shutil
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.explore.client import SILENCE
from tests.support.events import make_event, to_ndjson
from tests.support.patience import PROCESS_PATIENCE
from tests.support.server import KEY, Server, server, wait_until


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Server]:
    with server(tmp_path / "data", event_store="on") as found:
        (tmp_path / "data" / "events").mkdir(exist_ok=True)
        yield found


def read(found: Server, path: str = "/v1/events") -> tuple[int, Any, str | None]:
    """Status, body and Retry-After."""
    request = urllib.request.Request(f"http://{found.http}{path}", headers={"x-api-key": KEY})
    try:
        with urllib.request.urlopen(request, timeout=PROCESS_PATIENCE) as answer:
            return answer.status, json.load(answer), None
    except urllib.error.HTTPError as error:
        return error.code, json.load(error), error.headers["Retry-After"]


def ingest(found: Server) -> float:
    """Send an event, and return the seconds until it was acknowledged."""
    headers = {"x-api-key": KEY, "Content-Type": "application/x-ndjson"}
    request = urllib.request.Request(f"http://{found.http}/v1/ingest", data=to_ndjson([make_event()]), headers=headers)
    began = time.monotonic()
    with urllib.request.urlopen(request, timeout=PROCESS_PATIENCE) as answer:
        assert answer.status in {200, 202}
    return time.monotonic() - began


def answers(found: Server) -> bool:
    return read(found)[0] == 200


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_crash_is_unavailable_for_a_moment_and_no_more(started: Server, signum: int) -> None:
    wait_until(lambda: answers(started))
    api = started.pid("api")
    before = started.signal("query", signum)
    status, body, retry = read(started)
    assert (status, body.get("reason"), retry) in {(200, None, None), (503, "unavailable", "1")}
    ingest(started)
    wait_until(lambda: answers(started))
    wait_until(lambda: started.pid("query") != before)  # which the supervisor logs, when it comes to it
    assert started.pid("api") == api


def test_a_process_that_hangs_holds_up_nothing_else(started: Server) -> None:
    wait_until(lambda: answers(started))
    pid = started.signal("query", signal.SIGSTOP)
    taken = ingest(started)
    began = time.monotonic()
    status, body, _ = read(started)
    silence = time.monotonic() - began
    assert (status, body["reason"]) == (503, "unavailable")
    assert silence >= SILENCE
    assert taken < silence / 2
    assert started.signal("query", signal.SIGCONT) == pid
    wait_until(lambda: answers(started))
    code, _ = started.stop()
    assert code == 0, started.log()
    assert not started.entries("child.killed")


def test_a_server_that_is_stopped_leaves_a_data_directory_that_can_be_copied(started: Server, tmp_path: Path) -> None:
    """A socket is no file: `shutil.copytree` stops at one."""
    wait_until(lambda: answers(started))
    assert started.stop()[0] == 0
    shutil.copytree(started.data_dir, tmp_path / "copy")
    started.start()
    wait_until(lambda: answers(started))
    started.kill_all()
    assert (started.data_dir / "query.sock").exists()
    started.start()
    wait_until(lambda: answers(started))
    assert started.stop()[0] == 0
    shutil.copytree(started.data_dir, tmp_path / "another")


def test_a_stopped_query_process_does_not_hold_up_the_end(started: Server) -> None:
    wait_until(lambda: answers(started))
    started.signal("query", signal.SIGSTOP)
    code, _ = started.stop()
    assert code == 0, started.log()
    assert [entry["child"] for entry in started.entries("child.killed")] == ["query"]


def test_apis_alone_share_one_and_the_other_takes_over(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with server(data, "api", event_store="on") as first:
        (data / "events").mkdir(exist_ok=True)
        wait_until(lambda: answers(first))
        with server(data, "api", event_store="on") as second:
            wait_until(lambda: answers(second))
            assert first.stop()[0] == 0
            wait_until(lambda: answers(second))


def test_without_a_store_there_is_no_query_process(tmp_path: Path) -> None:
    with server(tmp_path / "data", event_store="off") as found:
        status, body, retry = read(found)
        assert (status, body["reason"], retry) == (501, "event_store_off", None)
        assert found.pid("query") is None
        assert not (tmp_path / "data" / "query.sock").exists()
