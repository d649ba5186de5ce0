"""Row `event-reads`: questions about the events of a store that is there already, asked of a lone API process."""

import http.client
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import quote, urlencode

from tests.bench.context import Bench, port_of, quantiles
from tests.bench.programs import Failed
from tests.bench.results import Figures
from tests.support.server import KEY
from tools import make_segments

REPEATED: Final = 20
DAYS: Final = 30

Ask = Callable[..., Any]


def event_reads(bench: Bench) -> Figures:
    """Medians and 99th percentiles of `REPEATED` answers each, warm; the first of each kind apart."""
    directory = bench.event_store or bench.directory / "events"
    if not directory.exists():
        make_segments.make_store(directory, 1_000_000, key=KEY)
    began = time.monotonic()
    settings = {"data_dir": directory, "event_store": "on", "bootstrap_key": KEY, "query_timeout": 60}
    with bench.server("api", settings=settings) as (_, said):
        reader = _Reader(port_of(said, "json"))
        reader.wait_until_it_answers()
        figures = {"start to first answer, s": time.monotonic() - began}
        figures["million events"] = (
            reader.ask("/v1/metrics", measures="requests", **_month())["total"]["requests"] / 1e6
        )
        for name, question in _questions(reader).items():
            first, *seconds = [_timed(question) for _ in range(1 + REPEATED)]
            figures[f"{name}, first, ms"] = 1e3 * first
            figures |= quantiles(name, seconds)
        return figures


def _questions(reader: "_Reader") -> dict[str, Callable[[], Any]]:
    page = reader.ask("/v1/events", limit=200)["events"]
    some = iter(page * 10)

    def one(path: str, field: str) -> Callable[[], Any]:
        return lambda: reader.ask(f"{path}/{quote(next(some)[field], safe='')}")

    month = _month()
    return {
        "one event": one("/v1/events", "event_id"),
        "one trace": one("/v1/traces", "trace_id"),
        "page of 24 h": lambda: reader.ask("/v1/events"),
        "page of a user": lambda: reader.ask("/v1/events", user_id=next(some).get("user_id", ""), **month),
        "traces of 24 h": lambda: reader.ask("/v1/traces"),
        "traces of 24 h by cost": lambda: reader.ask("/v1/traces", sort="cost_usd"),
        "sessions of 24 h by cost": lambda: reader.ask("/v1/sessions", sort="cost_usd"),
        "metrics by model and tag, by day": lambda: reader.ask(
            "/v1/metrics",
            group_by=["model", "tag:team"],
            measures=["cost_usd", "requests", "latency_ms:p95"],
            interval="day",
            **month,
        ),
        "metrics in all": lambda: reader.ask("/v1/metrics", measures=["requests", "cost_usd"], **month),
    }


def _month() -> dict[str, str]:
    start = datetime.now(UTC) - timedelta(days=DAYS + 1)
    return {"start": f"{start:%Y-%m-%dT%H:%M:%SZ}"}


def _timed(question: Callable[[], Any]) -> float:
    began = time.perf_counter()
    question()
    return time.perf_counter() - began


class _Reader:
    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def ask(self, path: str, **params: Any) -> Any:
        status, body = self._get(path, params)
        if status != 200:
            raise Failed(f"{path} {params}: {status} {body[:500]!r}")
        return json.loads(body)

    def _get(self, path: str, params: dict[str, Any]) -> tuple[int, bytes]:
        query = urlencode(params, doseq=True)
        self._connection.request("GET", f"{path}?{query}" if query else path, headers={"x-api-key": KEY})
        answer = self._connection.getresponse()
        return answer.status, answer.read()

    def wait_until_it_answers(self) -> None:
        """Wait until the query process has read which segments there are."""
        deadline = time.monotonic() + 60
        while self._get("/v1/events", {"limit": 1})[0] != 200:
            if time.monotonic() > deadline:
                raise Failed("no question about events is answered")
            time.sleep(0.02)
