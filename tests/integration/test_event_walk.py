"""A walk over the events of a real server sees a frozen set, whatever arrives, is killed or restarted meanwhile."""

import contextlib
import json
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from tests.support.events import make_event, to_ndjson
from tests.support.patience import PROCESS_PATIENCE
from tests.support.server import KEY, Server, server, wait_until

BATCH = 100


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("walk") / "data", event_store="on", partitions=2) as found:
        yield found


def get(found: Server, path: str, **params: Any) -> Any:
    """The answer; None: the server is away, or cannot say now."""
    query = urllib.parse.urlencode({name: value for name, value in params.items() if value is not None})
    request = urllib.request.Request(f"http://{found.http}{path}?{query}", headers={"x-api-key": KEY})
    try:
        with urllib.request.urlopen(request, timeout=PROCESS_PATIENCE) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code in {503, 504}:
            return None
        raise AssertionError(error.read()) from error
    except (OSError, ValueError):
        return None


def ingest(found: Server, events: list[dict[str, Any]]) -> str:
    """Send a batch, and return its position."""
    headers = {"x-api-key": KEY, "Content-Type": "application/x-ndjson"}
    request = urllib.request.Request(f"http://{found.http}/v1/ingest", data=to_ndjson(events), headers=headers)
    with urllib.request.urlopen(request, timeout=PROCESS_PATIENCE) as answer:
        return str(answer.headers["x-ingest-position"])


def batch(user: str, number: int) -> list[dict[str, Any]]:
    """Events of few times: most of them share theirs with hundreds."""
    second = (0, 0, 0, 7)[number % 4]
    return [make_event(user_id=user, timestamp=f"2026-04-20T10:00:{second:02d}Z") for _ in range(BATCH)]


class Noise:
    """Further events of the same user, sent from `start` until the block ends."""

    def __init__(self, found: Server, user: str) -> None:
        self._found = found
        self._user = user
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Noise":
        return self

    def start(self) -> None:
        """Begin, if that has not been done."""
        if not self._thread.is_alive():
            self._thread.start()

    def __exit__(self, *raised: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._done.wait(0.05):
            with contextlib.suppress(OSError):  # while the server is away
                ingest(self._found, batch(self._user, number))
            number += 1


def walk(found: Server, user: str, order: str, amid: Callable[[int], None]) -> list[Any]:
    """All events of the set that the first page sees; `amid` is called before each further page."""
    events: list[Any] = []
    cursor = total = None
    while True:
        params = {"user_id": user, "start": "2026-04-20", "end": "2026-04-21", "order": order, "limit": 170}
        page: Any = None

        def asked() -> bool:
            nonlocal page
            page = get(found, "/v1/events", **params, cursor=cursor)  # noqa: B023 - called at once
            return page is not None

        wait_until(asked)
        events += page["events"]
        total = page["total"] if total is None else total
        assert page["total"] == total
        assert "expired" not in page
        cursor = page["nextCursor"]
        if cursor is None:
            assert len(events) == total
            return events
        amid(len(events))


@pytest.mark.slow
@pytest.mark.parametrize("order", ["desc", "asc"])
def test_each_event_of_the_set_is_seen_once(started: Server, order: str) -> None:
    user = f"walker-{order}"
    sent = [batch(user, number) for number in range(12)]
    positions = [ingest(started, events) for events in sent]
    for position in positions[-2:]:
        wait_until(partial(get, started, "/v1/events", user_id=user, after=position))
    disturbed: list[str] = []

    def disturb(seen: int) -> None:
        noise.start()
        if seen > 300 and not disturbed:
            disturbed.append("query")
            started.kill("query")
        elif seen > 600 and len(disturbed) == 1:
            disturbed.append("all")
            started.stop()
            started.start()

    ids = {event["event_id"] for events in sent for event in events}
    with Noise(started, user) as noise:
        found = walk(started, user, order, disturb)
    assert len(disturbed) == 2
    seen = [event["event_id"] for event in found]
    assert len(seen) == len(set(seen)) == len(ids)
    assert set(seen) == ids
    times = [event["timestamp"] for event in found]
    assert times == sorted(times, reverse=order == "desc")
