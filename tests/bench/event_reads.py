"""Row `event-reads`: questions about the events of a store that is there already, asked of a lone API process.

A question that is refused, or takes longer than `Bench.question_seconds`, is given up, and the figures say after how
long. Of what takes seconds fewer answers are waited for. "24 hours" and "a month" end with the newest event.
"""

import http.client
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

from server.explore.engine import AGAIN
from tests.bench import machine
from tests.bench.context import Bench, port_of, quantiles
from tests.bench.programs import Failed, Program
from tests.bench.results import Figures
from tests.support.server import KEY
from tools import make_segments

REPEATED: Final = 20
LEAST: Final = 3
"""Answers of a question that takes long."""
PATIENCE: Final = 30.0
"""Seconds for the answers of a question, from which on there are no more than `LEAST`."""
DAYS: Final = 30
MOST_REFUSED: Final = 5
"""Times that a question is asked again which is refused and goes on."""
COLD: Final = 3
"""Starts with nothing of the store in memory."""
USERS: Final = 5
"""Of each frequency."""

Ask = Callable[[], Any]


def event_reads(bench: Bench) -> Figures:
    """Medians and 99th percentiles of up to `REPEATED` answers each, warm; the first ones apart; CPU of the query
    process an answer, and its memory after the answers."""
    directory = bench.event_store or bench.directory / "events"
    if not directory.exists():
        make_segments.make_store(directory, 1_000_000, key=KEY)
    figures: Figures = {}
    with _reader(bench, directory) as (reader, program, started):
        figures["start to first answer, s"] = started
        span = _Span(reader)
        events = reader.ask("/v1/metrics", measures="requests", **span.month)["total"]["requests"]
        figures["million events"] = events / 1e6
        traces = span.spread()
        for name, asks in _questions(reader, span, traces).items():
            bench.say(name)
            figures |= _measured(name, asks, program)
    cold = []
    for event in traces[:COLD]:
        bench.say("one trace, cold")
        _forget(directory / make_segments.FOLDER)
        with _reader(bench, directory) as (reader, _, _):
            cold.append(_timed(lambda: reader.ask(_path("/v1/traces", event["trace_id"]))))  # noqa: B023 - asked here
    figures["one trace, cold, ms"] = 1e3 * max(cold)
    return figures


def _measured(name: str, asks: Sequence[Ask], program: Program) -> Figures:
    """Ask once each, then again and again."""
    before, began = _spent(program), time.monotonic()
    seconds: list[float] = []
    figures: Figures = {}
    try:
        first = []
        for ask in asks:
            refused, asked = _ask_on(ask)
            first.append(asked)
            if refused:
                figures[f"{name}, refused before the first answer"] = refused
        for ask in islice(cycle(asks), REPEATED):
            if len(seconds) >= LEAST and time.monotonic() - began > PATIENCE:
                break
            seconds.append(_timed(ask))
    except GivenUp as reason:
        return {f"{name}, given up ({reason}) after, s": time.monotonic() - began}
    figures |= {f"{name}, first, ms": 1e3 * max(first), **quantiles(name, seconds)}
    after = _spent(program)
    if before is not None and after is not None:
        figures[f"{name}, CPU an answer, ms"] = 1e3 * (after[0] - before[0]) / (len(first) + len(seconds))
        figures[f"{name}, memory of the query process, MiB"] = after[1]
    return figures


def _spent(program: Program) -> tuple[float, float] | None:
    """Return CPU seconds and MiB of memory of the query process; None: the system does not say."""
    pid = program.roles().get("query")
    cpu, memory = (None, None) if pid is None else (machine.cpu_seconds(pid), machine.memory(pid))
    return None if cpu is None or memory is None else (cpu, memory.anon)


@contextmanager
def _reader(bench: Bench, directory: Path) -> Iterator[tuple["_Reader", Program, float]]:
    """What asks a server over a store, that server, and the seconds until its first answer."""
    began, bound = time.monotonic(), bench.question_seconds
    settings = {"data_dir": directory, "event_store": "on", "bootstrap_key": KEY, "query_timeout": bound}
    with bench.server("api", settings=settings) as (program, said):
        reader = _Reader(port_of(said, "json"), bound)
        reader.wait_until_it_answers()
        yield reader, program, time.monotonic() - began


def _forget(folder: Path) -> None:
    """Have the system drop the pages of the store's files, where it can."""
    for path in folder.iterdir() if hasattr(os, "posix_fadvise") else ():
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


class _Span:
    """The times of a store."""

    def __init__(self, reader: "_Reader") -> None:
        self._reader = reader
        (newest,) = reader.newest()
        self._end = datetime.fromisoformat(newest["timestamp"]) + timedelta(seconds=1)
        self.day = {"start": _text(self._end - timedelta(days=1)), "end": _text(self._end)}
        self.month = {"start": _text(self._end - timedelta(days=DAYS + 1)), "end": _text(self._end)}

    def spread(self) -> list[dict[str, Any]]:
        """Return events of different days."""
        found = []
        for number in range(REPEATED):
            end = self._end - timedelta(days=DAYS * number / REPEATED)
            found += self._reader.ask("/v1/events", limit=1, start=_text(end - timedelta(days=1)), end=_text(end))[
                "events"
            ]
        return found

    def users(self) -> dict[str, list[str]]:
        """Return some users by how many events they have."""
        page = self._reader.ask("/v1/events", limit=200, **self.day)["events"]
        totals = {}
        for user in {event["user_id"] for event in page if event.get("user_id")}:
            totals[user] = self._reader.ask("/v1/events", user_id=user, limit=1, **self.month)["total"] or 1 << 40
        ranked = sorted(totals, key=lambda user: totals[user])
        middle = max(len(ranked) // 2 - USERS // 2, 0)
        return {"rare": ranked[:USERS], "middle": ranked[middle : middle + USERS], "frequent": ranked[-USERS:]}


def _text(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"


def _path(path: str, name: str) -> str:
    return f"{path}/{quote(name, safe='')}"


def _questions(reader: "_Reader", span: _Span, events: list[dict[str, Any]]) -> dict[str, list[Ask]]:
    """Return what is asked: of each question one or several that are of one kind."""

    def asks(path: str, **params: Any) -> list[Ask]:
        return [lambda: reader.ask(path, **params)]

    def each(path: str, field: str) -> list[Ask]:
        return [ask for event in events for ask in asks(_path(path, event[field]))]

    by_model = {
        "group_by": ["model", "tag:team"],
        "measures": ["cost_usd", "requests", "latency_ms:p95"],
        "interval": "day",
    }
    return {
        "one event": each("/v1/events", "event_id"),
        "one trace": each("/v1/traces", "trace_id"),
        "page of 24 h": asks("/v1/events", **span.day),
        **{
            f"page of a {kind} user": [ask for user in users for ask in asks("/v1/events", user_id=user, **span.month)]
            for kind, users in span.users().items()
        },
        "traces of 24 h": asks("/v1/traces", **span.day),
        "traces of 24 h by cost": asks("/v1/traces", sort="cost_usd", **span.day),
        "sessions of 24 h": asks("/v1/sessions", **span.day),
        "sessions of 24 h by cost": asks("/v1/sessions", sort="cost_usd", **span.day),
        "metrics by model and tag, by day": asks("/v1/metrics", **by_model, **span.month),
        "metrics in all": asks("/v1/metrics", measures=["requests", "cost_usd"], **span.month),
    }


def _ask_on(question: Ask) -> tuple[int, float]:
    """Ask, and again where the answer goes on behind what a refused one has read: how often that was, and seconds in
    all."""
    began = time.perf_counter()
    for refused in range(MOST_REFUSED):
        try:
            question()
        except GivenUp as reason:
            if not reason.goes_on:
                raise
        else:
            return refused, time.perf_counter() - began
    raise GivenUp("again and again")


def _timed(question: Ask) -> float:
    began = time.perf_counter()
    question()
    return time.perf_counter() - began


class GivenUp(Failed):
    """A question was refused, or took too long; the text is the reason."""

    def __init__(self, reason: str, *, goes_on: bool = False) -> None:
        super().__init__(reason)
        self.goes_on = goes_on
        """Whether it goes on where it was when it is asked again."""


class _Reader:
    def __init__(self, port: int, seconds: float) -> None:
        """`seconds`: the bound of the server; beyond it a question is given up here."""
        self._port = port
        self._seconds = seconds
        self._connection = self._connect()

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=self._seconds + 15)

    def ask(self, path: str, **params: Any) -> Any:
        """Return the answer. Raises `GivenUp` if there is none."""
        try:
            status, body = self._get(path, params)
        except TimeoutError:
            self._connection.close()
            self._connection = self._connect()
            raise GivenUp("no answer") from None
        answer = json.loads(body)
        if status in {422, 503, 504}:
            raise GivenUp(answer["reason"], goes_on=AGAIN in answer["error"])
        if status != 200:
            raise Failed(f"{path} {params}: {status} {body[:500]!r}")
        return answer

    def _get(self, path: str, params: dict[str, Any]) -> tuple[int, bytes]:
        query = urlencode(params, doseq=True)
        self._connection.request("GET", f"{path}?{query}" if query else path, headers={"x-api-key": KEY})
        answer = self._connection.getresponse()
        return answer.status, answer.read()

    def newest(self) -> list[dict[str, Any]]:
        """Return the newest event."""
        for days in (1, DAYS, 12 * DAYS):  # the events of a store may be old, and it says no time beside them
            start = datetime.now(UTC) - timedelta(days=days)
            found: list[dict[str, Any]] = self.ask("/v1/events", limit=1, start=_text(start))["events"]
            if found:
                return found
        raise Failed("the store has no event of this year")

    def wait_until_it_answers(self) -> None:
        """Wait until the query process has read which segments there are."""
        deadline = time.monotonic() + 60
        while self._get("/v1/events", {"limit": 1})[0] != 200:
            if time.monotonic() > deadline:
                raise Failed("no question about events is answered")
            time.sleep(0.02)
