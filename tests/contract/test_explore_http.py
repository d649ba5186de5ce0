"""The reads of the event store over HTTP: which question a request asks, and what becomes of its answer."""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp
import pytest
from yarl import URL

from server import position
from server.errors import Refused
from server.explore.explorer import OffExplorer
from server.explore.questions import (
    EventQuestion,
    EventsQuestion,
    ExportQuestion,
    MetricsQuestion,
    NewEventsQuestion,
    PromptsQuestion,
    SessionQuestion,
    SessionsQuestion,
    TraceQuestion,
    TracesQuestion,
)
from server.live import event_feed
from tests.contract.doors import INGEST_ONLY, READ_ONLY, SECRET, Api, Doors
from tests.support.explorer import AS_OF
from tests.support.patience import PATIENCE, mostly_within, until

APIS: Final[tuple[Api, ...]] = ("http",)
"""Those that these tests need (the fixture `doors`)."""

READS: Final[dict[str, type]] = {
    "/v1/events": EventsQuestion,
    "/v1/events/e": EventQuestion,
    "/v1/traces": TracesQuestion,
    "/v1/traces/t": TraceQuestion,
    "/v1/traces/?trace_id=t": TraceQuestion,
    "/v1/sessions": SessionsQuestion,
    "/v1/sessions/s": SessionQuestion,
    "/v1/sessions/?sessionId=s": SessionQuestion,
    "/v1/metrics": MetricsQuestion,
    "/v1/prompts": PromptsQuestion,
}
EVERY: Final = (*READS, "/v1/export", "/v1/stream/events")


@pytest.fixture(autouse=True)
def _events(doors: Doors) -> None:
    doors.explorer.add({"event_id": "e", "model": "m1"}, {"event_id": "f", "model": "m2"})
    doors.explorer.add({"event_id": "theirs"}, project="other")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_feed, "INTERVAL", 0.05)


# --- questions and answers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", READS)
async def test_each_read_asks_its_question(doors: Doors, path: str) -> None:
    doors.explorer.answers = {kind: {"is": kind.__name__} for kind in READS.values()}
    answer = await doors.get(path)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.json["asOf"] == AS_OF["asOf"]
    [question] = doors.explorer.asked
    assert (type(question), question.project) == (READS[path], "default")


async def test_the_answer_is_passed_on_unchanged(doors: Doors) -> None:
    answer = await doors.get("/v1/events?model=m1&limit=10")
    assert answer.json == {"events": [{"event_id": "e", "model": "m1"}], "nextCursor": None, "total": 1, **AS_OF}


@pytest.mark.parametrize(
    ("sent", "found"),
    [
        ("a%2Fb%20c%25", "a/b c%"),
        ("a/b", "a/b"),
        ("%252F", "%2F"),
        ("%00%0A", "\0\n"),
        ("%C3%A4", "ä"),
        ("%FF", "\ufffd"),
        ("a+b", "a+b"),
        ("x?format=flat", "x"),
    ],
)
async def test_ids_in_paths_are_decoded_once(doors: Doors, sent: str, found: str) -> None:
    await doors.get(f"/v1/traces/{sent}")
    [question] = doors.explorer.asked
    assert isinstance(question, TraceQuestion)
    assert question.trace_id == found
    if "?" not in sent:
        await doors.get(f"/v1/sessions/{sent}")
        await doors.get(f"/v1/events?trace_id={sent.replace('+', '%2B')}")
        _, by_path, by_filter = doors.explorer.asked
        assert isinstance(by_path, SessionQuestion)
        assert isinstance(by_filter, EventsQuestion)
        assert by_path.session_id == found
        assert by_filter.filters.equal["trace_id"] == (found,)


async def test_ids_that_cannot_stand_in_a_path(doors: Doors) -> None:
    for path in ("/v1/traces/?traceId=..", "/v1/sessions/?session_id=.&after=" + position.encode("fa4e", {0: 1})):
        assert (await doors.get(path)).status in (200, 404)
    trace, session = doors.explorer.asked
    assert isinstance(trace, TraceQuestion)
    assert isinstance(session, SessionQuestion)
    assert (trace.trace_id, session.session_id, session.after) == ("..", ".", {0: 1})
    for path in ("/v1/traces/", "/v1/sessions/", "/v1/sessions/?session_id=", "/v1/traces/?trace_id=a&traceId=b"):
        assert (await doors.get(path)).status == 404
    assert (await doors.get("/v1/events/")).status == 404


async def test_filters_and_names_reach_the_question(doors: Doors) -> None:
    await doors.get("/v1/events?model=a&model=b&model!=c&tag=a%5C%3Ab:c&tool=&kind=all&min_cost_usd=0.1&userId=u%2B1")
    [question] = doors.explorer.asked
    assert isinstance(question, EventsQuestion)
    filters = question.filters
    assert (filters.equal, filters.unequal) == ({"model": ("a", "b"), "user_id": ("u+1",)}, {"model": ("c",)})
    assert (filters.tags, filters.tools, filters.kinds, filters.min_cost) == ((("a:b", "c"),), (None,), "all", 10**11)


async def test_positions_are_waited_for(doors: Doors) -> None:
    for offset, status in ((1, 200), (99, 504)):
        answer = await doors.get(f"/v1/events?after={position.encode(doors.publisher.identity, {0: offset})}")
        assert answer.status == status
    assert [question.after for question in doors.explorer.asked] == [{0: 1}, {0: 99}]


# --- keys, methods, errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", EVERY)
async def test_keys(doors: Doors, path: str) -> None:
    mark = "&" if "?" in path else "?"
    for key, query, status in (
        ("lqt_" + "9" * 64, "", 401),
        (INGEST_ONLY, "", 403),
        (READ_ONLY, "projectId=other", 403),
    ):
        assert (await doors.get(f"{path}{mark}{query}", x_api_key=key)).status == status
    answer = await doors.get(f"{path}{mark}colour=red", x_api_key=READ_ONLY)
    assert answer.status == 400
    assert "colour" in answer.json["error"]
    assert not doors.explorer.asked


async def test_bearer(doors: Doors) -> None:
    async with doors.session.get(f"{doors.url}/v1/events", headers={"Authorization": f"Bearer {READ_ONLY}"}) as answer:
        assert answer.status == 200


@pytest.mark.parametrize("path", EVERY)
async def test_methods(doors: Doors, path: str) -> None:
    allowed = "GET" if path == "/v1/stream/events" else "GET, HEAD"
    if path in {"/v1/traces", "/v1/metrics"}:
        allowed += ", POST"  # of OTLP
    async with doors.session.put(doors.url + path, headers={"x-api-key": SECRET}) as answer:
        assert (answer.status, (await answer.json())["reason"]) == (405, "method_not_allowed")
        assert answer.headers["Allow"] == allowed
    async with doors.session.head(doors.url + path, headers={"x-api-key": SECRET}) as answer:
        assert answer.status == (405 if path == "/v1/stream/events" else 200)
        assert await answer.read() == b""


@pytest.mark.parametrize("path", EVERY)
async def test_a_store_that_is_off(doors: Doors, path: str) -> None:
    with pytest.raises(Refused) as off:
        OffExplorer().check()
    doors.explorer.off = off.value
    mark = "&" if "?" in path else "?"
    for query in ("", "colour=red", "start=2000-01-01"):
        answer = await doors.get(f"{path}{mark}{query}")
        assert (answer.status, answer.json["reason"]) == (501, "event_store_off")
    assert (await doors.get(path, x_api_key=INGEST_ONLY)).status == 403
    assert not doors.explorer.asked


@pytest.mark.parametrize(
    ("reason", "status", "retry"),
    [
        ("query_too_heavy", 422, False),
        ("queries_busy", 503, True),
        ("disk_full", 503, True),
        ("event_store_missing", 503, True),
        ("too_deep", 400, False),
    ],
)
async def test_refusals(doors: Doors, reason: Any, status: int, retry: bool) -> None:
    doors.explorer.refuse = Refused(reason, "No", retry_after=7 if retry else None, details={"more": 1})
    for path in (*READS, "/v1/export", "/v1/stream/events"):
        answer = await doors.get(path)
        assert (answer.status, answer.json) == (status, {"error": "No", "reason": reason, "more": 1})
        assert answer.headers.get("Retry-After") == ("7" if retry else None)


async def test_a_range_that_is_too_wide_asks_nothing(doors: Doors) -> None:
    for path in ("events", "traces", "sessions", "metrics", "prompts", "export"):
        answer = await doors.get(f"/v1/{path}?start=2020-01-01&end=2026-01-01")
        assert (answer.status, answer.json["reason"], answer.json["maxDays"]) == (400, "range_too_wide", 400)
    assert not doors.explorer.asked


async def test_a_client_that_leaves_ends_its_question(doors: Doors) -> None:
    doors.explorer.hold = asyncio.Event()
    _, writer = await raw_get(doors, "/v1/metrics")
    await until(lambda: doors.explorer.asked)
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    await until(lambda: doors.explorer.cancelled == 1)


@pytest.mark.parametrize("path", ["/v1/metrics", "/v1/events/e", "/v1/export"])
async def test_a_client_that_has_closed_its_side_ends_a_question_that_takes_long(doors: Doors, path: str) -> None:
    doors.explorer.hold = asyncio.Event()
    doors.explorer.hold_export = True
    reader, writer = await raw_get(doors, path)
    await until(lambda: doors.explorer.asked)
    writer.write_eof()
    await until(lambda: doors.explorer.cancelled == 1)
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.read(), PATIENCE)
    writer.close()


async def test_one_that_has_closed_its_side_gets_a_quick_answer(doors: Doors) -> None:
    reader, writer = await raw_get(doors, "/v1/events/e")
    writer.write_eof()
    assert (await asyncio.wait_for(reader.read(), PATIENCE)).startswith(b"HTTP/1.1 200 ")
    writer.close()


# --- the export ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ("csv", "text/csv; charset=utf-8; header=present"),
        ("parquet", "application/vnd.apache.parquet"),
        ("ndjson", "application/x-ndjson"),
    ],
)
async def test_exports(doors: Doors, form: str, kind: str) -> None:
    answer = await doors.get(f"/v1/export?format={form}")
    assert answer.status == 200
    assert answer.body == b'{"event_id":"e","model":"m1"}\n{"event_id":"f","model":"m2"}\n'
    assert answer.headers["Content-Type"] == kind
    assert answer.headers["Content-Disposition"] == f'attachment; filename="spendstream-events.{form}"'
    assert (answer.headers["x-rows-expected"], answer.headers["Cache-Control"]) == ("2", "no-store")
    [question] = doors.explorer.asked
    assert isinstance(question, ExportQuestion)
    assert (question.format, doors.explorer.closed) == (form, 1)


async def test_the_head_of_an_export(doors: Doors) -> None:
    async with doors.session.head(f"{doors.url}/v1/export", headers={"x-api-key": SECRET}) as answer:
        assert (answer.status, answer.headers["x-rows-expected"]) == (200, "2")


async def test_an_export_without_a_number(doors: Doors) -> None:
    doors.explorer.chunks = [b"a", b"b"]
    answer = await doors.get("/v1/export")
    assert answer.body == b"ab"
    assert "x-rows-expected" not in answer.headers


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("fault", [Refused("disk_full", "The disk is full"), ConnectionError("gone"), ValueError("x")])
async def test_an_export_that_breaks_resets_the_connection(doors: Doors, version: str, fault: Exception) -> None:
    doors.explorer.chunks = [b"x" * 1000, fault]
    reader, writer = await raw_get(doors, "/v1/export", version)
    with pytest.raises(ConnectionResetError):
        await rest(reader)
    writer.close()
    await until(lambda: doors.explorer.closed == 1)


async def raw_get(doors: Doors, path: str, version: str = "1.1") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await doors.connect()
    writer.write(f"GET {path} HTTP/{version}\r\nHost: x\r\nx-api-key: {SECRET}\r\n\r\n".encode())
    return reader, writer


async def rest(reader: asyncio.StreamReader) -> bytes:
    """All that comes until the connection ends as a whole answer does."""
    return await asyncio.wait_for(reader.read(), PATIENCE)


@pytest.mark.parametrize("reads", [True, False])
async def test_an_export_ends_with_its_key(doors: Doors, reads: bool) -> None:
    doors.explorer.hold = asyncio.Event()
    doors.explorer.chunks = [b"x" if reads else b"x" * (64 << 20), b"y"]

    async def trial() -> float:
        doors.add_key(SECRET)
        before = doors.explorer.closed
        reader, writer = await raw_get(doors, "/v1/export")
        assert await reader.readuntil(b"\r\n\r\n")
        doors.add_key(SECRET, revoked=1)
        began = asyncio.get_running_loop().time()
        await until(lambda: doors.explorer.closed == before + 1)
        took = asyncio.get_running_loop().time() - began
        with pytest.raises(ConnectionResetError):
            await rest(reader)
        writer.close()
        return took

    await mostly_within(1, trial)


async def test_a_client_that_leaves_ends_its_export(doors: Doors) -> None:
    doors.explorer.hold = asyncio.Event()
    doors.explorer.chunks = [b"x", b"y"]
    reader, writer = await raw_get(doors, "/v1/export")
    assert await reader.readuntil(b"\r\n\r\n")
    writer.transport.abort()
    await until(lambda: doors.explorer.closed == 1)


# --- answers that are large -----------------------------------------------------------------------------------------


async def test_a_large_answer_is_passed_on_in_pieces(doors: Doors) -> None:
    doors.explorer.chunks = [b"[", b"1," * 400_000, b"1]"]
    answer = await doors.get("/v1/traces/t")
    assert (answer.status, answer.body) == (200, b"[" + b"1," * 400_000 + b"1]")
    assert answer.headers["Transfer-Encoding"] == "chunked"
    assert answer.headers["Content-Type"] == "application/json"
    doors.explorer.chunks = [b"[", b"1]"]
    assert (await doors.get("/v1/traces/t")).headers["Content-Length"] == "3"
    await until(lambda: doors.explorer.closed == 2)


async def test_a_slow_reader_of_a_large_answer_costs_no_memory(doors: Doors) -> None:
    doors.explorer.chunks = [bytes(1 << 20)] * 100
    reader, writer = await raw_get(doors, "/v1/traces/t")
    assert await reader.readuntil(b"\r\n\r\n")
    await asyncio.sleep(0.5)
    assert doors.explorer.sent < 32
    writer.transport.abort()
    await until(lambda: doors.explorer.closed == 1)


async def test_a_large_answer_that_breaks_resets_the_connection(doors: Doors) -> None:
    doors.explorer.chunks = [bytes(1 << 20), Refused("unavailable", "gone")]
    reader, writer = await raw_get(doors, "/v1/traces/t")
    with pytest.raises(ConnectionResetError):
        await rest(reader)
    writer.close()
    doors.explorer.chunks = [b"[", Refused("unavailable", "gone", retry_after=1)]
    assert (await doors.get("/v1/traces/t")).status == 503


# --- new events ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def follow(doors: Doors, query: str = "", token: str | None = None) -> AsyncIterator[AsyncIterator[Any]]:
    """The events of a stream as (kind, id, data)."""
    headers = {"x-api-key": SECRET} | ({} if token is None else {"Last-Event-ID": token})
    url = URL(f"{doors.url}/v1/stream/events{query}", encoded=True)
    async with doors.session.get(url, headers=headers) as response:
        assert (response.status, response.headers["Content-Type"]) == (200, "text/event-stream")
        yield _events_of(response)


async def _events_of(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, str, Any]]:
    found: dict[str, str] = {}
    async for line in response.content:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name:
            found[name] = value
        elif "data" in found:
            yield found["event"], found.get("id", ""), json.loads(found.pop("data"))


async def soon(event: Any) -> tuple[str, str, Any]:
    async with asyncio.timeout(PATIENCE):
        found: tuple[str, str, Any] = await event
        return found


async def test_events_as_they_become_visible(doors: Doors) -> None:
    async with follow(doors) as events:
        kind, first, data = await soon(anext(events))
        assert (kind, data) == ("events", {"events": [], "skipped": 0, **AS_OF})
        doors.explorer.add({"event_id": "theirs too"}, project="other")
        doors.explorer.add({"event_id": "g"})
        kind, second, data = await soon(anext(events))
        assert (kind, data) == ("events", {"events": [{"event_id": "g"}], "skipped": 0, **AS_OF})
        assert second != first
    await asyncio.sleep(2 * event_feed.INTERVAL)  # what was answered just now is answered the same again
    doors.explorer.add({"event_id": "h"})
    for token, seen in ((first, ["g", "h"]), (second, ["h"])):
        async with follow(doors, token=token) as events:
            shown: list[str] = []
            while len(shown) < len(seen):  # what others asked a moment ago may come first
                _, _, data = await soon(anext(events))
                shown += [event["event_id"] for event in data["events"]]
            assert shown == seen
    async with follow(doors, f"?lastEventId={first}") as events:
        assert len((await soon(anext(events)))[2]["events"]) == 2


async def test_an_id_of_other_filters_begins_at_present(doors: Doors) -> None:
    async with follow(doors) as events:
        _, token, _ = await soon(anext(events))
    doors.explorer.add({"event_id": "g", "model": "m1"})
    async with follow(doors, "?model=m1", token) as events:
        assert (await soon(anext(events)))[2]["events"] == []
        doors.explorer.add({"event_id": "h", "model": "m1"}, {"event_id": "i", "model": "m2"})
        assert (await soon(anext(events)))[2]["events"] == [{"event_id": "h", "model": "m1"}]
    answer = await doors.get("/v1/stream/events?lastEventId=no+id")
    assert (answer.status, answer.json["reason"]) == (400, "bad_request")


async def test_what_is_too_much_is_counted(doors: Doors) -> None:
    async with follow(doors) as events:
        _, token, _ = await soon(anext(events))
        doors.explorer.add(*({"event_id": str(n)} for n in range(1000)))
        _, _, data = await soon(anext(events))
        assert (len(data["events"]), data["skipped"]) == (200, 800)
    async with follow(doors, token=token) as events:
        _, _, data = await soon(anext(events))
        assert (len(data["events"]), data["skipped"]) == (200, 800)


async def test_subscribers_share_questions(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_feed, "INTERVAL", 0.2)
    async with follow(doors) as one, follow(doors) as two, follow(doors) as three:
        for each in (one, two, three):
            await soon(anext(each))
        before = len(doors.explorer.asked)
        doors.explorer.add({"event_id": "g"})
        found = [await soon(anext(each)) for each in (one, two, three)]
        assert found[0] == found[1] == found[2]
        assert len(doors.explorer.asked) - before <= 2
    await until(lambda: doors.services.event_feed.subscribers == 0)


async def test_a_store_that_is_busy_is_waited_for(doors: Doors) -> None:
    async with follow(doors) as events:
        await soon(anext(events))
        doors.explorer.refuse = Refused("queries_busy", "Too many", retry_after=1)
        doors.explorer.add({"event_id": "g"})
        await until(lambda: len(doors.explorer.asked) > 5)
        doors.explorer.refuse = None
        assert (await soon(anext(events)))[2]["events"] == [{"event_id": "g"}]
        doors.explorer.refuse = Refused("query_too_heavy", "Ask for less")
        assert (await soon(anext(events)))[::2] == ("error", {"error": "Ask for less", "reason": "query_too_heavy"})


async def test_a_stream_ends_with_its_key_and_with_the_server(doors: Doors) -> None:
    async with follow(doors) as events:
        await soon(anext(events))
        doors.add_key(SECRET, revoked=1)
        kind, _, data = await soon(anext(events))
        assert (kind, data["reason"]) == ("error", "unauthenticated")
        with pytest.raises(StopAsyncIteration):
            await soon(anext(events))
        doors.add_key(SECRET)
    async with follow(doors) as events:
        await soon(anext(events))
        doors.services.event_feed.close()
        assert (await soon(anext(events)))[2]["reason"] == "unavailable"
    assert (await doors.get("/v1/stream/events")).status == 503


async def test_streams_are_bounded(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_feed, "MAX_SUBSCRIBERS", 1)
    async with follow(doors) as events:
        await soon(anext(events))
        answer = await doors.get("/v1/stream/events")
        assert (answer.status, answer.headers["Retry-After"]) == (503, "2")


async def test_silence(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_feed, "HEARTBEAT", 0.1)
    headers = {"x-api-key": SECRET}
    async with doors.session.get(f"{doors.url}/v1/stream/events", headers=headers) as response:
        async with asyncio.timeout(PATIENCE):
            assert await response.content.readuntil(b": heartbeat\n\n")
    [question] = [each for each in doors.explorer.asked if isinstance(each, NewEventsQuestion)][:1]
    assert (question.position, question.limit) == (None, 200)
