"""A small stand-in for the server: the page's files with the product's headers, and the reads of events from memory.

For fast tests of the page. It knows the contract's shapes, not its bounds; `Fake.asked` has every request, `Fake.fail`
makes a path answer with an error. What the product itself answers is tested with the product.
"""

import asyncio
import base64
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from functools import lru_cache
from itertools import groupby
from math import ceil
from statistics import stdev
from typing import Any, Final
from zoneinfo import ZoneInfo

import msgspec
from aiohttp import web

from server.explore.questions import TEXT_FILTERS
from server.http_api import static_files
from tests.support import fake_tables
from tests.support.loops import end_transports
from tests.support.patience import PATIENCE

Event = dict[str, Any]
"""An event as it is answered; costs are decimals."""

KEY: Final = "lqt_" + "a" * 64
TWELVE: Final = Decimal("1e-12")
COUNTS: Final = ("input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens")
DISTINCT: Final = {"users": "user_id", "traces": "trace_id", "sessions": "session_id"}
QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
BOUNDS: Final = {
    "min_cost_usd": "cost_usd",
    "max_cost_usd": "cost_usd",
    "min_latency_ms": "latency_ms",
    "max_latency_ms": "latency_ms",
}

_ENCODER: Final = msgspec.json.Encoder()


def _encode(body: object) -> bytes:
    return _ENCODER.encode(_plain(body))


def _plain(value: Any) -> Any:
    """The value with its decimals as the server writes numbers: all digits, no exponent, no trailing zeros."""
    if isinstance(value, Decimal):
        return msgspec.Raw(f"{value.normalize():f}".encode())
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


@dataclass
class Fake:
    """The events of one project, and what was asked about them."""

    events: list[Event]
    http: str = ""
    key: str = KEY
    asked: list[str] = field(default_factory=list)
    """Paths with their queries, of reads of events."""
    fail: dict[str, tuple[int, dict[str, Any], dict[str, str]]] = field(default_factory=dict)
    """Path -> status, body and headers of the error it answers with."""
    break_export_after: int | None = None
    """Events after which `/v1/export` breaks the connection, as the server does when it cannot go on."""
    live: list[bytes] = field(default_factory=list)
    """Frames that `/v1/stream/events` sends, in order; each once a connection."""

    def selected(self, query: "Query") -> list[Event]:
        """The events that a query's filters and times allow, in order of time."""
        return [event for event in self.events if query.matches(event)]


class Query:
    """The parameters of a request."""

    def __init__(self, request: web.Request, kinds: str) -> None:
        self.all = request.query
        self.kinds = request.query.get("kind", kinds)
        now = datetime.now(UTC)
        start, end = (request.query.get(name) for name in ("start", "end"))
        self.start = _time(start) if start else (_time(end) if end else now) - timedelta(days=1)
        self.end = _time(end) if end else None
        texts = [(name, self.all.getall(name, []), self.all.getall(f"{name}!", [])) for name in TEXT_FILTERS]
        self.texts = [each for each in texts if each[1] or each[2]]
        self.is_by_id = any(self.all.get(name) for name in ("trace_id", "session_id"))

    def matches(self, event: Event) -> bool:
        """Whether an event is meant."""
        at = _time(event["timestamp"])
        if not self.is_by_id and (at < self.start or (self.end is not None and at >= self.end)):
            return False
        if self.kinds != "all" and event["kind"] != self.kinds:
            return False
        for name, wanted, unwanted in self.texts:
            value = event.get(name) or ""
            if (wanted and value not in wanted) or value in unwanted:
                return False
        tags = {f"{key}:{value}" for key, value in event.get("tags", {}).items()}
        if any(tag not in tags for tag in self.all.getall("tag", [])):
            return False
        tools = self.all.getall("tool", [])
        if tools and not set(tools) & set(event.get("tools_used", [])):
            return False
        for name, of in BOUNDS.items():
            bound, found = self.all.get(name), event.get(of)
            if bound is None:
                continue
            if found is None or (found < Decimal(bound) if name.startswith("min") else found > Decimal(bound)):
                return False
        return True


@lru_cache(maxsize=1 << 17)
def _time(text: str) -> datetime:
    """Kept: every question reads the time of every event."""
    return datetime.fromisoformat(text)


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def stamp() -> dict[str, Any]:
    """What every answer has."""
    return {"asOf": _iso(datetime.now(UTC) - timedelta(seconds=0.4)), "lagSeconds": 0.4}


def page_of(rows: list[Any], request: web.Request) -> tuple[list[Any], str | None]:
    """A page of rows, and the cursor of the next one."""
    at = int(base64.urlsafe_b64decode(cursor)) if (cursor := request.query.get("cursor")) else 0
    end = at + int(request.query.get("limit", "50"))
    return rows[at:end], base64.urlsafe_b64encode(str(end).encode()).decode() if end < len(rows) else None


def without_extra(event: Event) -> Event:
    """The event as lists with `extra=none` have it."""
    return {name: value for name, value in event.items() if name != "extra"}


# --- sums ------------------------------------------------------------------------------------------------------------


def sums(events: list[Event]) -> dict[str, Any]:
    """Calls, errors, tokens and cost."""
    calls = [event for event in events if event["kind"] == "call"]
    return {
        "calls": len(calls),
        "errors": sum(event["status"] != "success" for event in events),
        **{name: sum(event.get(name, 0) for event in calls) for name in COUNTS[:3]},
        "cost_usd": sum((event["cost_usd"] or Decimal(0) for event in calls), Decimal(0)),
    }


def _ends(event: Event) -> datetime:
    return _time(event["timestamp"]) + timedelta(milliseconds=float(event["latency_ms"]))


def trace_summary(spans: list[Event]) -> dict[str, Any]:
    """The summary of a trace."""
    ordered = sorted(spans, key=lambda event: str(event["timestamp"]))
    first, last = _time(ordered[0]["timestamp"]), max(map(_ends, ordered))
    root = next((event for event in ordered if not event.get("parent_span_id")), ordered[0])
    total = sums(spans)
    return {
        "trace_id": root["trace_id"],
        "name": root.get("name"),
        "start": _iso(first),
        "end": _iso(last),
        "duration_ms": (last - first) / timedelta(milliseconds=1),
        "spans": len(spans),
        **total,
        "user_id": next((event["user_id"] for event in ordered if event.get("user_id")), None),
        "session_id": next((event["session_id"] for event in ordered if event.get("session_id")), None),
        "environment": root.get("environment"),
        "models": sorted({event["model"] for event in spans if event["kind"] == "call"}),
        "complete": any(not event.get("parent_span_id") for event in spans),
    }


def flat(spans: list[Event]) -> list[Event]:
    """The spans in depth-first order, each with `parent` and `depth`; orphans are roots, cycles are cut."""
    ordered = sorted(spans, key=lambda event: str(event["timestamp"]))
    owner: dict[str, int] = {}
    for at, event in enumerate(ordered):
        owner.setdefault(event["span_id"], at)
    children: dict[int, list[int]] = {}
    roots: list[tuple[int, dict[str, bool]]] = []
    for at, event in enumerate(ordered):
        wanted = event.get("parent_span_id")
        up = owner.get(wanted) if wanted else None
        if up is None:
            roots.append((at, {"orphan": True} if wanted else {}))
        else:
            children.setdefault(up, []).append(at)
    reached: set[int] = set()
    found: list[Event] = []

    def walk(root: int, marks: dict[str, bool]) -> None:
        waiting: list[tuple[int, int | None, int]] = [(root, None, 0)]
        while waiting:
            at, parent, depth = waiting.pop()
            if at in reached:
                continue
            reached.add(at)
            place = len(found)
            found.append({**ordered[at], "parent": parent, "depth": depth, **(marks if at == root else {})})
            waiting.extend((child, place, depth + 1) for child in reversed(children.get(at, ())))

    for root, marks in roots:
        walk(root, marks)
    for at in range(len(ordered)):
        if at not in reached:
            walk(at, {"cycle": True})
    return found


def session_summary(events: list[Event]) -> dict[str, Any]:
    """The summary of a session."""
    total = sums(events)
    return {
        "session_id": events[0]["session_id"],
        "user_id": next((event["user_id"] for event in events if event.get("user_id")), None),
        "start": min(event["timestamp"] for event in events),
        "end": _iso(max(map(_ends, events))),
        "traces": len({event["trace_id"] for event in events}),
        **total,
        "models": sorted({event["model"] for event in events if event["kind"] == "call"}),
    }


def measure(name: str, events: list[Event]) -> Any:
    """One measure of events, as the contract defines it."""
    if name == "requests":
        return len(events)
    calls = [event for event in events if event["kind"] == "call"]
    if name in COUNTS:
        return sum(event.get(name, 0) for event in calls)
    if name == "cost_usd":
        return sum((event["cost_usd"] or Decimal(0) for event in calls), Decimal(0))
    if name == "unpriced":
        return sum(event["cost_usd"] is None for event in calls)
    errors = sum(event["status"] != "success" for event in events)
    if name == "errors":
        return errors
    if name == "error_rate":
        return _round(Decimal(errors) / len(events)) if events else None
    if name in DISTINCT:
        return len({event[DISTINCT[name]] for event in events if event.get(DISTINCT[name])})
    if name in {"first_seen", "last_seen"}:
        times = [event["timestamp"] for event in events]
        return (min if name == "first_seen" else max)(times) if times else None
    if name == "tokens_per_second":
        seconds = sum(float(event["latency_ms"]) for event in calls) / 1000
        return _round(Decimal(sum(event["output_tokens"] for event in calls) / seconds)) if seconds else None
    of, _, word = name.rpartition(":")
    return _statistic(of, word, events)


def _statistic(of: str, word: str, events: list[Event]) -> Any:
    if of.startswith("score:"):
        values = [event["eval_scores"][of[6:]] for event in events if of[6:] in event.get("eval_scores", {})]
    else:
        values = [event[of] for event in events if event.get(of) not in {None, 0}]
    if word == "count":
        return len(values)
    numbers = sorted(float(value) for value in values)
    if not numbers or (word == "sd" and len(numbers) < 2):
        return None
    if word == "avg":
        return _round(sum((Decimal(str(value)) for value in values), Decimal(0)) / len(values))
    if word == "sd":
        return _round(Decimal(stdev(numbers)))
    return numbers[ceil(QUANTILES[word] * len(numbers)) - 1]


def _round(value: Decimal) -> Decimal:
    return value.quantize(TWELVE, ROUND_HALF_EVEN)


def group_values(event: Event, name: str) -> list[Any]:
    """The values of an event by what is grouped by: one, but for tools."""
    if name.startswith("tag:"):
        return [event.get("tags", {}).get(name[4:])]
    if name == "tool":
        return list(event.get("tools_used", [])) or [None]
    return [event.get(name)]


def floor(at: datetime, interval: str, zone: ZoneInfo) -> datetime:
    """The beginning of the interval of an instant, in a zone."""
    local = at.astimezone(zone).replace(second=0, microsecond=0)
    if interval == "minute":
        return local
    local = local.replace(minute=0)
    if interval == "hour":
        return local
    local = local.replace(hour=0, fold=0)
    if interval == "week":
        return local - timedelta(days=local.weekday())
    return local.replace(day=1) if interval == "month" else local


# --- answers ---------------------------------------------------------------------------------------------------------


class _Answers:
    def __init__(self, fake: Fake) -> None:
        self.fake = fake

    async def events(self, request: web.Request) -> Any:
        found = self.fake.selected(Query(request, "call"))
        if request.query.get("order", "desc") == "desc":
            found = found[::-1]
        rows, cursor = page_of(found, request)
        if request.query.get("extra") == "none":
            rows = [without_extra(event) for event in rows]
        return {"events": rows, "nextCursor": cursor, "total": len(found), **stamp()}

    async def event(self, request: web.Request) -> Any:
        wanted = request.match_info["id"]
        found = next((event for event in self.fake.events if event["event_id"] == wanted), None)
        return None if found is None else {**found, **stamp()}

    def _groups(self, found: list[Event], by: str) -> list[list[Event]]:
        ids = {event[by] for event in found if event.get(by)}
        whole = sorted((event for event in self.fake.events if event.get(by) in ids), key=lambda event: str(event[by]))
        return [list(group) for _, group in groupby(whole, key=lambda event: event[by])]

    async def traces(self, request: web.Request) -> Any:
        rows = [trace_summary(spans) for spans in self._groups(self.fake.selected(Query(request, "all")), "trace_id")]
        rows.sort(key=lambda row: row[request.query.get("sort", "start")], reverse=True)
        rows, cursor = page_of(rows, request)
        return {"traces": rows, "nextCursor": cursor, **stamp()}

    async def trace(self, request: web.Request) -> Any:
        wanted = request.match_info["id"]
        spans = [event for event in self.fake.events if event["trace_id"] == wanted]
        if not spans:
            return None
        listed = flat([without_extra(span) for span in spans])
        return {"trace": trace_summary(spans), "spans": listed, "truncated": False, "total": len(spans), **stamp()}

    async def sessions(self, request: web.Request) -> Any:
        groups = self._groups(self.fake.selected(Query(request, "all")), "session_id")
        rows = sorted(
            map(session_summary, groups), key=lambda row: row[request.query.get("sort", "start")], reverse=True
        )
        rows, cursor = page_of(rows, request)
        return {"sessions": rows, "nextCursor": cursor, **stamp()}

    async def session(self, request: web.Request) -> Any:
        wanted = request.match_info["id"]
        events = [event for event in self.fake.events if event.get("session_id") == wanted]
        if not events:
            return None
        traces = [trace_summary(spans) for spans in self._groups(events, "trace_id")]
        return {"session": session_summary(events), "traces": sorted(traces, key=lambda each: each["start"]), **stamp()}

    async def metrics(self, request: web.Request) -> Any:
        query = request.query
        found = self.fake.selected(Query(request, "call"))
        by, names = query.getall("group_by", []), query.getall("measures", ["requests", "cost_usd"])
        interval, zone = query.get("interval", "none"), ZoneInfo(query.get("tz", "UTC"))
        groups: dict[tuple[Any, ...], list[Event]] = {} if by else ({(): found} if found else {})
        for event in found if by else ():
            for key in _keys([group_values(event, name) for name in by]):
                groups.setdefault(key, []).append(event)

        def rank(item: tuple[tuple[Any, ...], list[Event]]) -> Any:
            value = measure(query.get("sort", names[0]), item[1])
            return (value is not None, value), tuple("" if part is None else part for part in item[0])

        ordered = sorted(groups.items(), key=lambda item: rank(item)[1])
        ordered.sort(key=lambda item: rank(item)[0], reverse=True)
        limit = int(query.get("limit", "100"))
        shown, rest = ordered[:limit], [event for _, events in ordered[limit:] for event in events]
        answers = []
        for key, events in shown:
            answer: dict[str, Any] = {"key": dict(zip(by, key, strict=True)), "values": _values(names, events)}
            if interval != "none":
                answer["series"] = _series(names, events, interval, zone)
            answers.append(answer)
        other = _values(names, rest) if rest else None
        multi = ["tool"] if "tool" in by else []
        total = _values(names, found)
        if interval != "none":
            total["series"] = _series(names, found, interval, zone)
        return {"groups": answers, "other": other, "total": total, "multi": multi, **stamp()}

    async def costs(self, request: web.Request) -> Any:
        return fake_tables.costs(self.fake.events, request.query.get("start"), request.query.get("end"))

    async def users(self, request: web.Request) -> Any:
        query = request.query
        start, end, sort = query.get("start"), query.get("end"), query.get("sort", "cost_usd")
        limit = int(query.get("limit", "100"))
        return fake_tables.users(self.fake.events, start, end, sort, limit, query.get("cursor"))

    async def user(self, request: web.Request) -> Any:
        wanted = request.match_info["id"]
        return fake_tables.user(self.fake.events, wanted, request.query.get("start"), request.query.get("end"))

    async def prompts(self, request: web.Request) -> Any:
        found = [event for event in self.fake.selected(Query(request, "call")) if event.get("prompt_hash")]
        found.sort(key=lambda event: str(event["prompt_hash"]))
        rows = [_prompt(key, list(group)) for key, group in groupby(found, key=lambda event: event["prompt_hash"])]
        rows.sort(key=lambda row: row[request.query.get("sort", "last_seen")], reverse=True)
        rows, cursor = page_of(rows, request)
        return {"prompts": rows, "nextCursor": cursor, **stamp()}


def _keys(values: list[list[Any]]) -> Iterator[tuple[Any, ...]]:
    if not values:
        yield ()
        return
    for value in values[0]:
        for rest in _keys(values[1:]):
            yield (value, *rest)


def _values(names: Iterable[str], events: list[Event]) -> dict[str, Any]:
    return {name: measure(name, events) for name in names}


def _series(names: list[str], events: list[Event], interval: str, zone: ZoneInfo) -> list[dict[str, Any]]:
    parts: dict[datetime, list[Event]] = {}
    for event in events:
        parts.setdefault(floor(_time(event["timestamp"]), interval, zone).astimezone(UTC), []).append(event)
    return [{"start": _iso(start), **_values(names, inside)} for start, inside in sorted(parts.items())]


def _prompt(key: str, events: list[Event]) -> dict[str, Any]:
    names = sorted({name for event in events for name in event.get("eval_scores", {})})
    words = ("p50", "p90", "p95", "p99")
    return {
        "prompt_hash": key,
        "first_seen": min(event["timestamp"] for event in events),
        "last_seen": max(event["timestamp"] for event in events),
        **_values(("requests", "errors", "error_rate", "cost_usd", "unpriced"), events),
        "cost": _spread("cost_usd", events),
        **{
            of: {**_spread(of, events), **{word: _statistic(of, word, events) for word in words}}
            for of in ("latency_ms", "ttft_ms")
        },
        "scores": {name: _spread(f"score:{name}", events) for name in names},
    }


def _spread(of: str, events: list[Event]) -> dict[str, Any]:
    return {word: _statistic(of, word, events) for word in ("avg", "sd", "count")}


# --- the server ------------------------------------------------------------------------------------------------------


def _app(fake: Fake) -> web.Application:
    app = web.Application()
    static_files.add_routes(app)
    answers = _Answers(fake)

    def serve(path: str, answer: Callable[[web.Request], Any]) -> None:
        async def handle(request: web.Request) -> web.Response:
            if request.headers.get("Authorization") != f"Bearer {fake.key}":
                return _json({"error": "unknown key", "reason": "unauthenticated"}, 401)
            fake.asked.append(request.path_qs)
            if request.path in fake.fail:
                status, body, headers = fake.fail[request.path]
                return _json(body, status, headers)
            found = await answer(request)
            if found is None:
                return _json({"error": "there is none of this id", "reason": "not_found"}, 404)
            return _json(found)

        app.router.add_get(path, handle)

    for name in ("events", "traces", "sessions"):
        serve(f"/v1/{name}", getattr(answers, name))
        serve(rf"/v1/{name}/{{id:[\s\S]+}}", getattr(answers, name[:-1]))
    serve("/v1/metrics", answers.metrics)
    serve("/v1/prompts", answers.prompts)
    serve("/v1/costs", answers.costs)
    serve("/v1/users", answers.users)
    serve(r"/v1/users/{id:[\s\S]+}", answers.user)
    for path, body in _overview().items():
        serve(path, _constant(body))

    async def stream(request: web.Request) -> web.StreamResponse:
        fake.asked.append(request.path_qs)
        if request.path in fake.fail:
            status, body, headers = fake.fail[request.path]
            return _json(body, status, headers)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        sent = 0
        while True:
            for frame in fake.live[sent:]:
                await response.write(frame)
                sent += 1
            await asyncio.sleep(0.02)

    async def export(request: web.Request) -> web.StreamResponse:
        fake.asked.append(request.path_qs)
        if request.headers.get("Authorization") != f"Bearer {fake.key}":
            return _json({"error": "unknown key", "reason": "unauthenticated"}, 401)
        found = fake.selected(Query(request, "call"))
        response = web.StreamResponse(headers={"x-rows-expected": str(len(found))})
        await response.prepare(request)
        for at, event in enumerate(found):
            if at == fake.break_export_after and request.transport is not None:
                request.transport.abort()
            await response.write(_encode(event) + b"\n")
        return response

    async def silence(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await asyncio.sleep(3600)
        return response

    app.router.add_get("/v1/stream/events", stream)
    app.router.add_get("/v1/export", export)
    app.router.add_get("/v1/stream/users", silence)
    return app


def _constant(body: Any) -> Callable[[web.Request], Any]:
    async def answer(request: web.Request) -> Any:
        return body

    return answer


def _json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=_encode(body), status=status, headers=headers, content_type="application/json")


def _overview() -> dict[str, Any]:
    """What the overview reads beside the tables: no limit, no budget."""
    now = datetime.now(UTC)
    windows = {name: {"start": _iso(now), "used": 0} for name in ("day", "month")}
    quota = {"organization": "default", "period": f"{now:%Y-%m}", "limit": None, "used": 0, "remaining": None}
    return {
        "/v1/quota": {**quota, "resetsAt": _iso(now), "windows": windows},
        "/v1/budgets": {"budgets": []},
    }


def live_frame(number: int, events: list[Event], skipped: int = 0) -> bytes:
    """A frame of `/v1/stream/events`."""
    data = {"events": events, "skipped": skipped, **stamp()}
    return b"id: %d\nevent: events\ndata: %b\n\n" % (number, _encode(data))


async def _end(runner: web.AppRunner) -> None:
    """Close the server, and end what still streams, or waits for a client that does not read."""
    await runner.cleanup()
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await end_transports()


@contextmanager
def fake_api(events: list[Event]) -> Iterator[Fake]:
    """Serve events, sorted by time, from a thread of its own for the length of the block."""
    fake = Fake(sorted(events, key=lambda event: str(event["timestamp"])))
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(_app(fake), shutdown_timeout=0.1)

    async def start() -> None:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        fake.http = f"127.0.0.1:{runner.addresses[0][1]}"

    # Playwright has an event loop running in the calling thread: this one must not run there, not even to begin.
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(start(), loop).result(PATIENCE)
    try:
        yield fake
    finally:
        asyncio.run_coroutine_threadsafe(_end(runner), loop).result(PATIENCE)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE)
        loop.close()
