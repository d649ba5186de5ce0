"""Questions as heavy as the API allows, asked by many connections at a time without a pause.

`python -m tests.support.heavy_questions PORT KEY` asks them until its standard input ends, and prints how often each
status was answered. It takes only the CPU that nobody else wants: readers are on another machine.
"""

import http.client
import itertools
import json
import os
import sys
import threading
from collections import Counter
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlencode

RANGE: Final = "start=2026-01-01T00:00:00Z&end=2027-01-30T00:00:00Z"
"""Event times of all traffic, and nearly as long as a range may be."""
CONNECTIONS: Final = 64
TIMEOUT: Final = 60.0

_QUANTILES: Final = [f"{field}:{name}" for field in ("latency_ms", "ttft_ms") for name in ("p50", "p90", "p95", "p99")]
QUESTIONS: Final[tuple[str, ...]] = (
    f"/v1/metrics?{RANGE}&"
    + urlencode(
        {
            "group_by": ["user_id", "session_id", "model"],
            "measures": ["users", "traces", "sessions", "cost_usd:sd", *_QUANTILES],
            "limit": 1000,
        },
        doseq=True,
    ),
    f"/v1/metrics?{RANGE}&interval=day&tz=Asia/Kathmandu&limit=500&"
    + urlencode({"group_by": ["user_id", "tag:team", "tool"], "measures": _QUANTILES}, doseq=True),
    f"/v1/events?{RANGE}&limit=200&order=asc&min_cost_usd=0.000001",
    f"/v1/traces?{RANGE}&sort=cost_usd&limit=200",
    f"/v1/sessions?{RANGE}&sort=cost_usd&limit=200",
    f"/v1/prompts?{RANGE}&sort=cost_usd&limit=200",
    f"/v1/export?{RANGE}&format=csv",
    f"/v1/traces?{RANGE}&sort=duration_ms&min_latency_ms=1",
)


def ask(port: int, key: str, path: str) -> tuple[int, bytes]:
    """Status and body of a question on a connection of its own; 0 where it breaks or is silent for long."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    try:
        connection.request("GET", path, headers={"x-api-key": key})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (http.client.HTTPException, OSError):
        return 0, b""
    finally:
        connection.close()


class HeavyReaders:
    """Connections that ask `QUESTIONS`, one after the other, and do not care for Retry-After."""

    def __init__(self, port: int, key: str, connections: int = CONNECTIONS) -> None:
        self.statuses: Counter[int] = Counter()
        """How often each status was answered."""
        self._port = port
        self._key = key
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(connections)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        for path in itertools.islice(itertools.cycle(QUESTIONS), number, None):
            if self._ended.is_set():
                return
            status, _ = ask(self._port, self._key, path)
            self.statuses[status] += 1


def main() -> None:
    """See above."""
    port, key = sys.argv[1:]
    os.nice(19)
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with HeavyReaders(int(port), key) as readers:
        print(json.dumps({"ready": True}), flush=True)  # noqa: T201 - for the parent
        sys.stdin.read()
        before = dict(readers.statuses)
    print(json.dumps({str(status): many for status, many in before.items()}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
