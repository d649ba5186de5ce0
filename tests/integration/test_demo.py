"""`spendstream demo`: a project of its own, filled once."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from server.cli.demo_traffic import month
from tests.support.browser import read
from tests.support.server import Server, server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose default project has no event."""
    with server(tmp_path_factory.mktemp("demo") / "data") as made:
        yield made


def test_it_fills_a_project_of_its_own_once(started: Server) -> None:
    done = started.cli("demo", "--traces", "30")
    assert done.returncode == 0, done.stderr
    key = done.stdout.split()[-1]
    total = read(started, "/v1/users?limit=1", key)["total"]
    calls = [event for event in month(30, datetime.now(UTC)) if event.get("kind") != "span"]
    assert int(total["requests"]) == pytest.approx(len(calls), abs=3)  # those of the last minutes depend on now
    assert read(started, "/v1/users?limit=1")["total"]["requests"] == "0"
    again = started.cli("demo")
    assert again.returncode != 0
    assert "has events already" in again.stderr
    assert read(started, "/v1/users?limit=1", key)["total"] == total


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    with server(tmp_path / "data") as gone:
        done = gone.cli("demo", "--url", "http://127.0.0.1:1")
        keys = json.loads(gone.cli("keys", "list", "--json").stdout)
    assert done.returncode != 0
    assert "no answer from http://127.0.0.1:1" in done.stderr
    assert [key["state"] for key in keys if key["project"] == "demo"] == ["revoked"]


def test_the_traffic_follows_from_its_seed_and_lies_in_the_last_month() -> None:
    now = datetime(2026, 11, 28, 12, tzinfo=UTC)
    events = list(month(200, now))
    assert events == list(month(200, now))
    assert len({event["event_id"] for event in events}) == len(events)
    times = [datetime.fromisoformat(event["timestamp"]) for event in events]
    assert now - timedelta(days=31) < min(times) <= max(times) <= now
    spans = {event["span_id"] for event in events}
    assert all(event["parent_span_id"] in spans for event in events if "parent_span_id" in event)
