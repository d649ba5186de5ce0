"""Every read of the event store, asked of real processes: what it lists adds up to what the tables say."""

import asyncio
import csv
import io
import json
import random
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

import aiohttp
import grpc
import pyarrow.parquet as pq
import pytest
from jsonschema import Draft202012Validator

from protos.spendstream.v1 import usage_pb2, usage_pb2_grpc
from server.grpc_api.trace_messages import MAX_RESPONSE
from server.http_api.openapi import document
from tests.support import clients
from tests.support.clients import Answer, Reader, unary
from tests.support.events import ABSENT, make_event
from tests.support.patience import PROCESS_PATIENCE
from tests.support.server import Server, run_cli, server
from tests.support.stored_events import (
    EVENT,
    SESSION,
    TRACE,
    Sent,
    batches,
    calls,
    one_trace,
    sums,
)
from tools.kafka import Broker

REFERENCE: Final = Path(__file__).parents[2] / "docs" / "reference" / "http-api.md"
DOCUMENT: Final = document("")
SPAN: Final = "start=2026-04-01&end=2026-05-01"
MEASURES: Final = ("requests", "errors", "input_tokens", "output_tokens", "cached_tokens", "cost_usd")
ASKED: Final = "&".join(f"measures={name}" for name in MEASURES)


@asynccontextmanager
async def reader(started: Server) -> AsyncIterator[Reader]:
    """A reader of answers with any decimal, 843.0 among them; the event store's start is waited for."""
    async with clients.reader(started) as opened:
        opened.number = Decimal
        await past(503, opened, "/v1/events")
        yield opened


async def past(
    status: int, tables: Reader, path: str, key: str | None = None, patience: float = PROCESS_PATIENCE
) -> Answer:
    """The first answer that has another status."""
    async with asyncio.timeout(patience):
        while (answer := await tables.request("GET", path, key)).status == status:  # noqa: ASYNC110 - a server's
            await asyncio.sleep(0.1)
    return answer


class Filled:
    """A server that has events, and a position that contains all of them."""

    def __init__(self, started: Server, events: list[Sent], position: str) -> None:
        self.server = started
        self.events = events
        self.position = position


async def fill(started: Server, events: list[Sent]) -> str:
    """Send events, half over HTTP and half over gRPC; return a position that contains them all."""
    offsets: dict[str, int] = {}
    identity = ""
    async with reader(started) as tables, grpc.aio.insecure_channel(started.grpc) as channel:
        for number, batch in enumerate(batches(events)):
            if number % 2:
                token = (await unary(channel, started.key, batch)).position
            else:
                answer = await tables.ingest(batch)
                assert answer.status == 202, answer
                token = answer.headers["x-ingest-position"]
            identity, *places = token.split("_")
            for place in places:
                partition, offset = place.split("-")
                offsets[partition] = max(offsets.get(partition, -1), int(offset))
    return identity + "".join(f"_{partition}-{offset}" for partition, offset in sorted(offsets.items()))


async def settle(tables: Reader, position: str) -> None:
    """Wait until the event store and the tables contain a position."""
    for path in ("/v1/events?limit=1&", "/v1/users?limit=1&"):
        await past(504, tables, f"{path}after={position}")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    events = [*calls(random.Random(7), 1200), *one_trace()]
    with server(tmp_path_factory.mktemp("store") / "data", event_store="on", partitions=3) as started:

        async def prepare() -> str:
            position = await fill(started, [*events, *events[:200]])  # some come twice
            async with reader(started) as tables:
                await settle(tables, position)
            return position

        yield Filled(started, events, asyncio.run(prepare()))
        assert started.entries("http_request_failed") == []


@pytest.fixture
async def tables(filled: Filled) -> AsyncIterator[Reader]:
    async with reader(filled.server) as opened:
        yield opened


def is_valid(answer: Any, shape: str) -> None:
    plain = json.loads(json.dumps(answer, default=float))
    schema = {"$ref": f"#/components/schemas/{shape}", "components": DOCUMENT["components"]}
    Draft202012Validator(schema).validate(plain)


# --- all reads -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        (f"/v1/events?{SPAN}&limit=200", "EventPage"),
        (f"/v1/events/{EVENT}", "StoredEvent"),
        (f"/v1/traces?{SPAN}&sort=cost_usd", "TracePage"),
        (f"/v1/traces/{TRACE}", "FlatTrace"),
        (f"/v1/traces/{TRACE}?format=tree", "TraceTree"),
        (f"/v1/sessions?{SPAN}&sort=calls", "SessionPage"),
        (f"/v1/sessions/{SESSION}", "SessionDetail"),
        (f"/v1/metrics?{SPAN}&group_by=model&group_by=tag:team&interval=day", "Metrics"),
        (f"/v1/prompts?{SPAN}", "PromptPage"),
    ],
)
async def test_answers_are_as_the_document_says(tables: Reader, path: str, shape: str) -> None:
    answer = await tables.get(path)
    is_valid(answer, shape)
    assert answer["lagSeconds"] >= 0


async def test_the_examples_of_the_reference_run(filled: Filled, tables: Reader) -> None:
    found = re.findall(r"'http://127\.0\.0\.1:8080(/v1/[^']+)'", REFERENCE.read_text())
    assert len(found) >= 11
    for target in found:
        async with tables.session.get(
            f"http://{filled.server.http}{target}", headers={"x-api-key": filled.server.key}
        ) as answer:
            assert answer.status == 200, (target, await answer.text())
            assert await answer.read()


async def test_a_walk_has_every_event_once(filled: Filled, tables: Reader) -> None:
    wanted = sorted(event["event_id"] for event in filled.events)
    for order in ("asc", "desc"):
        found = await walk(tables, f"/v1/events?{SPAN}&kind=all&limit=177&order={order}", "events")
        assert sorted(event["event_id"] for event in found) == wanted
        times = [event["timestamp"] for event in found]
        assert times == sorted(times, reverse=order == "desc")


async def walk(tables: Reader, path: str, name: str) -> list[Any]:
    """All pages."""
    rows: list[Any] = []
    cursor: str | None = ""
    while cursor is not None:
        answer = await tables.get(path + (f"&cursor={quote(cursor)}" if cursor else ""))
        rows += answer[name]
        cursor = answer["nextCursor"]
    return rows


async def test_an_event_is_what_was_sent(filled: Filled, tables: Reader) -> None:
    for event in (*filled.events[:40], *filled.events[-5:]):
        found = await tables.get(f"/v1/events/{event['event_id'].upper()}")
        sent = {name: value for name, value in event.items() if not isinstance(value, dict | list)}
        request = event.get("request") or event.get("prompt")
        if request:
            sent.pop("request", None)
            assert found["extra"] == json.loads(
                json.dumps({"request" if "request" in event else "prompt": request}), parse_float=Decimal
            )
        for name, value in sent.items():
            assert found[name] == value, name
        for name in ("tags", "tools_used", "eval_scores"):
            assert found.get(name) == event.get(name)
        listed = await tables.get(f"/v1/events?event_id={event['event_id']}&kind=all&extra=none")
        assert [each["event_id"] for each in listed["events"]] == [event["event_id"]]
        assert "extra" not in listed["events"][0]


@pytest.mark.parametrize(
    ("query", "holds"),
    [
        ("model=gpt-4o", lambda event: event.get("model") == "gpt-4o"),
        (urlencode({"model": "' OR 1=1 --"}), lambda event: event.get("model") == "' OR 1=1 --"),
        (
            "model!=gpt-4o&status=error&status=timeout",
            lambda event: event["model"] != "gpt-4o" and event["status"] in {"error", "timeout"},
        ),
        ("user_id=", lambda event: "user_id" not in event),
        (urlencode({"user_id": "u/1 ä%"}), lambda event: event.get("user_id") == "u/1 ä%"),
        ("tag=team:search", lambda event: event.get("tags", {}).get("team") == "search"),
        ("tag!=team:search", lambda event: event.get("tags", {}).get("team") != "search"),
        (urlencode({"tag": "a\\:b\\\\:x"}), lambda event: event.get("tags", {}).get("a:b\\") == "x"),
        ("tag=team:", lambda event: "team" not in event.get("tags", {})),
        ("tool=sql", lambda event: "sql" in event.get("tools_used", [])),
        ("tool=", lambda event: not event.get("tools_used")),
        ("min_cost_usd=0.5", lambda event: event["cost_usd"] >= Decimal("0.5")),
        ("max_latency_ms=120.5", lambda event: event["latency_ms"] <= 120.5),
        (
            "prompt_hash=v1&environment=staging",
            lambda event: event.get("prompt_hash") == "v1" and event["environment"] == "staging",
        ),
    ],
)
async def test_filters(filled: Filled, tables: Reader, query: str, holds: Any) -> None:
    wanted = sorted(event["event_id"] for event in filled.events if event.get("kind") != "span" and holds(event))
    assert wanted
    found = await walk(tables, f"/v1/events?{SPAN}&limit=200&{query}", "events")
    assert sorted(event["event_id"] for event in found) == wanted
    metrics = await tables.get(f"/v1/metrics?{SPAN}&{query}")
    assert metrics["total"]["requests"] == len(wanted)


# --- the same number everywhere --------------------------------------------------------------------------------------


def values_of(found: Any) -> dict[str, Any]:
    return {name: found[name] for name in MEASURES}


async def test_metrics_costs_and_users_say_the_same(filled: Filled, tables: Reader) -> None:
    metrics = await tables.get(f"/v1/metrics?{SPAN}&group_by=provider&group_by=model&{ASKED}&after={filled.position}")
    costs = await tables.get(f"/v1/costs?{SPAN}&after={filled.position}")
    by_model = {
        (group["key"]["provider"], group["key"]["model"]): values_of(group["values"]) for group in metrics["groups"]
    }
    assert by_model == {
        (row["provider"], row["model"]): {name: row[name] for name in MEASURES} for row in costs["byModel"]
    }
    assert by_model == sums(filled.events, lambda event: (event["provider"], event["model"]))
    assert values_of(metrics["total"]) == {name: costs["total"][name] for name in MEASURES}

    users, total = await tables.users()
    metrics = await tables.get(f"/v1/metrics?{SPAN}&group_by=user_id&{ASKED}")
    by_user = {group["key"]["user_id"]: values_of(group["values"]) for group in metrics["groups"]}
    assert by_user == {row["user_id"]: {name: row[name] for name in MEASURES} for row in users}
    assert by_user == sums(filled.events, lambda event: event.get("user_id"))
    assert values_of(metrics["total"]) == {name: total[name] for name in MEASURES}

    days = await tables.get(f"/v1/metrics?{SPAN}&interval=day&{ASKED}")
    [group] = days["groups"]
    assert {point["start"][:10]: {name: point[name] for name in MEASURES} for point in group["series"]} == {
        row["day"]: {name: row[name] for name in MEASURES} for row in costs["daily"]
    }


async def test_traces_and_sessions_add_up(filled: Filled, tables: Reader) -> None:
    traces = await walk(tables, f"/v1/traces?{SPAN}&limit=100", "traces")
    wanted = sums(filled.events, lambda event: event["trace_id"])
    assert {trace["trace_id"]: trace["cost_usd"] for trace in traces} == {
        name: row["cost_usd"] for name, row in wanted.items()
    }
    by_session: dict[Any, set[str]] = {}
    for event in filled.events:
        if "session_id" in event:
            by_session.setdefault(event["session_id"], set()).add(event["trace_id"])
    sessions = await walk(tables, f"/v1/sessions?{SPAN}", "sessions")
    assert {session["session_id"] for session in sessions} == set(by_session)
    for session in sessions:
        detail = await tables.get(f"/v1/sessions/{quote(session['session_id'], safe='')}")
        assert by_session[session["session_id"]] <= {trace["trace_id"] for trace in detail["traces"]}


async def test_one_trace(filled: Filled, tables: Reader) -> None:
    flat = await tables.get(f"/v1/traces/{TRACE}")
    places = [(span["span_id"], span["parent"], span["depth"], span.get("orphan", False)) for span in flat["spans"]]
    assert places == [
        ("a", None, 0, False),
        ("b", 0, 1, False),
        ("c", 0, 1, False),
        ("d", 2, 2, False),
        ("e", None, 0, True),
    ]
    summary = flat["trace"]
    assert (summary["name"], summary["spans"], summary["calls"], summary["errors"]) == ("answer a question", 5, 3, 1)
    assert (summary["duration_ms"], summary["cost_usd"]) == (3400, Decimal("0.0196"))
    assert (summary["session_id"], summary["user_id"], summary["complete"]) == (SESSION, "alice", True)
    tree = await tables.get(f"/v1/traces/{TRACE}?format=tree")
    assert [root["span_id"] for root in tree["roots"]] == ["a", "e"]
    assert [child["span_id"] for child in tree["roots"][0]["children"]] == ["b", "c"]
    assert (await tables.request("GET", "/v1/traces/nothing")).status == 404

    async with grpc.aio.insecure_channel(filled.server.grpc) as channel:
        stub: Any = usage_pb2_grpc.UsageServiceStub(channel)
        request = usage_pb2.GetTraceRequest(trace_id=TRACE)
        [response] = [each async for each in stub.GetTrace(request, metadata=[("x-api-key", filled.server.key)])]
    assert response.trace.cost_usd == "0.0196"
    assert [(span.event.span_id, span.depth, span.orphan) for span in response.spans] == [
        (name, depth, orphan) for name, _, depth, orphan in places
    ]
    assert json.loads(response.spans[1].event.extra_json["prompt"]) == {"text": "…"}


async def test_a_deep_trace(filled: Filled, tables: Reader) -> None:
    """Of a project of its own, sent with the last step first."""
    filled.server.cli("projects", "create", "deep")
    key = (await asyncio.to_thread(filled.server.create_key, "--project", "deep"))["key"]
    depth = 3000
    steps = [
        make_event(
            trace_id="deep",
            span_id=str(number),
            parent_span_id=str(number - 1) if number else ABSENT,
            timestamp=f"2026-04-20T10:{number // 60:02d}:{number % 60:02d}Z",
            prompt="x" * 900,
        )
        for number in range(depth)
    ]
    sent = [await tables.ingest(batch, key, patience=PROCESS_PATIENCE) for batch in batches(steps[::-1], 100)]
    assert {answer.status for answer in sent} == {202}
    position = sent[-1].headers["x-ingest-position"]
    flat = await past(504, tables, f"/v1/traces/deep?after={position}", key, patience=PROCESS_PATIENCE)
    while len(flat.json["spans"]) < depth:  # the position is of the last batch only
        flat = await tables.request("GET", "/v1/traces/deep", key)
    assert [(span["span_id"], span["depth"]) for span in flat.json["spans"]] == [(str(n), n) for n in range(depth)]
    assert flat.headers["Transfer-Encoding"] == "chunked"
    nested = await tables.request("GET", "/v1/traces/deep?format=tree", key)
    assert (nested.status, nested.json["reason"]) == (400, "too_deep")
    async with grpc.aio.insecure_channel(filled.server.grpc) as channel:
        stub: Any = usage_pb2_grpc.UsageServiceStub(channel)
        request = usage_pb2.GetTraceRequest(trace_id="deep")
        found = [each async for each in stub.GetTrace(request, metadata=[("x-api-key", key)])]
    assert len(found) > 2
    assert all(each.ByteSize() <= MAX_RESPONSE for each in found)
    assert [span.event.span_id for each in found for span in each.spans] == [str(n) for n in range(depth)]
    assert [each.HasField("trace") for each in found] == [True] + [False] * (len(found) - 1)


# --- downloads, streams, commands ------------------------------------------------------------------------------------


async def test_exports_are_whole(filled: Filled, tables: Reader, tmp_path: Path) -> None:
    wanted = {event["event_id"]: event for event in filled.events}
    cost = sum(event["cost_usd"] for event in filled.events if event.get("kind") != "span")
    found = {}
    for form in ("ndjson", "csv", "parquet"):
        url = f"http://{filled.server.http}/v1/export?{SPAN}&kind=all&format={form}"
        async with tables.session.get(url, headers={"x-api-key": filled.server.key}) as answer:
            assert (answer.status, answer.headers["x-rows-expected"]) == (200, str(len(wanted)))
            found[form] = await answer.read()
    lines = [json.loads(line, parse_float=Decimal) for line in found["ndjson"].splitlines()]
    rows = list(csv.DictReader(io.StringIO(found["csv"].decode())))
    (tmp_path / "events.parquet").write_bytes(found["parquet"])
    table = pq.read_table(tmp_path / "events.parquet").to_pylist()
    for each in (lines, rows, table):
        assert sorted(event["event_id"] for event in each) == sorted(wanted)
    assert sum(event["cost_usd"] for event in lines if event["cost_usd"] is not None) == cost
    assert sum(Decimal(row["cost_usd"]) for row in rows if row["cost_usd"]) == cost
    assert sum(row["cost_usd"] for row in table if row["cost_usd"] is not None) == cost


@asynccontextmanager
async def following(started: Server, session: aiohttp.ClientSession, token: str = "") -> AsyncIterator[Any]:
    headers = {"x-api-key": started.key} | ({"Last-Event-ID": token} if token else {})
    async with session.get(f"http://{started.http}/v1/stream/events", headers=headers) as response:
        assert response.status == 200
        yield _frames(response)


async def _frames(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, Any]]:
    found: dict[str, str] = {}
    async for line in response.content:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        found[name] = value
        if not name and "data" in found:
            yield found["id"], json.loads(found.pop("data"))


async def test_new_events_are_seen_and_resumed(tmp_path: Path) -> None:
    with server(tmp_path / "data", event_store="on") as started:
        async with reader(started) as tables, asyncio.timeout(PROCESS_PATIENCE):
            async with following(started, tables.session) as frames:
                token, data = await anext(frames)
                assert (data["events"], data["skipped"]) == ([], 0)
                first = make_event()
                assert (await tables.ingest([first])).status == 202
                _, data = await anext(frames)
                assert [event["event_id"] for event in data["events"]] == [first["event_id"]]
            second = make_event()
            assert (await tables.ingest([second])).status == 202
            seen: list[str] = []
            async with following(started, tables.session, token) as frames:
                while len(seen) < 2:
                    _, data = await anext(frames)
                    seen += [event["event_id"] for event in data["events"]]
            assert seen == [first["event_id"], second["event_id"]]
        code, _ = started.stop()
        assert code == 0, started.log()
        assert not started.entries("child.killed")


def test_commands(filled: Filled) -> None:
    ask = ("--start", "2026-04-01", "--end", "2026-05-01", "--key", filled.server.key)
    listed = filled.server.cli("events", *ask, "--limit", "450", "--json")
    assert sum(len(json.loads(page)["events"]) for page in listed.stdout.splitlines()) == 450
    listed = filled.server.cli("events", *ask, "--model", "gpt-4o-mini")
    assert listed.stdout.splitlines()[1].split("\t")[1:3] == ["gpt-4o-mini", "rate_limited: 429"]
    tree = filled.server.cli("trace", TRACE, "--key", filled.server.key)
    assert [line.split("\t")[:2] for line in tree.stdout.splitlines()[1:3]] == [
        ["0", "answer a question"],
        ["1", "plan (gpt-4o)"],
    ]
    shown = filled.server.cli("metrics", *ask, "--group-by", "environment", "--measure", "cost_usd")
    wanted = sums(filled.events, lambda event: event["environment"])
    assert {line.split("\t")[0]: Decimal(line.split("\t")[1]) for line in shown.stdout.splitlines()[1:]} == {
        name: row["cost_usd"] for name, row in wanted.items()
    }


# --- who may see what, and when there is none ------------------------------------------------------------------------


async def test_another_project_sees_nothing(filled: Filled, tables: Reader) -> None:
    filled.server.cli("projects", "create", "other")
    key = (await asyncio.to_thread(filled.server.create_key, "--project", "other"))["key"]
    page = await tables.get(f"/v1/events?{SPAN}&limit=10")
    empty = await tables.request("GET", f"/v1/events?{SPAN}", key)
    assert (empty.status, empty.json["events"], empty.json["total"]) == (200, [], 0)
    for path in (f"/v1/events/{EVENT}", f"/v1/traces/{TRACE}", f"/v1/sessions/{SESSION}"):
        assert (await tables.request("GET", path, key)).status == 404
    for query in (f"trace_id={TRACE}", f"session_id={SESSION}", f"event_id={EVENT}"):
        found = await tables.request("GET", f"/v1/events?{query}", key)
        assert (found.status, found.json.get("events")) == (200, []), found
    theirs = await tables.request("GET", f"/v1/events?{SPAN}&limit=10&cursor={quote(page['nextCursor'])}", key)
    assert (theirs.status, theirs.json["reason"]) == (400, "bad_request")
    others = await tables.request("GET", f"/v1/events?{SPAN}&limit=10&model=x&cursor={quote(page['nextCursor'])}")
    assert (others.status, others.json["reason"]) == (400, "bad_request")


async def test_a_server_without_an_event_store(tmp_path: Path) -> None:
    with server(tmp_path / "data", event_store="off") as started:
        assert not {"store", "query"} & started.children().keys()
        async with reader(started) as tables:
            assert (await tables.ingest([make_event(user_id="u")])).status == 202
            await tables.caught_up(1)
            for path in (
                "/v1/events",
                "/v1/events/x",
                "/v1/traces/t",
                "/v1/metrics",
                "/v1/export",
                "/v1/stream/events",
            ):
                answer = await tables.request("GET", path)
                assert (answer.status, answer.json["reason"]) == (501, "event_store_off")
            assert [row["user_id"] for row in (await tables.get("/v1/users"))["users"]] == ["u"]
        assert started.is_ready()
    listed = run_cli(tmp_path / "data", "events", "--key", started.key)
    assert (listed.returncode, "no server runs on" in listed.stderr) == (2, True)


@pytest.mark.kafka
async def test_on_kafka(kafka: Broker, tmp_path: Path, prefix: str) -> None:
    events = [*calls(random.Random(8), 300), *one_trace()]
    with server(tmp_path / "data", broker=kafka.url, kafka_prefix=prefix, partitions=2, event_store="on") as started:
        position = await fill(started, [*events, *events[:50]])
        async with reader(started) as tables:
            await settle(tables, position)
            found = await walk(tables, f"/v1/events?{SPAN}&kind=all&limit=100", "events")
            assert sorted(event["event_id"] for event in found) == sorted(event["event_id"] for event in events)
            metrics = await tables.get(f"/v1/metrics?{SPAN}&group_by=provider&group_by=model&{ASKED}")
            costs = await tables.get(f"/v1/costs?{SPAN}&after={position}")
            assert {
                (group["key"]["provider"], group["key"]["model"]): values_of(group["values"])
                for group in metrics["groups"]
            } == {(row["provider"], row["model"]): {name: row[name] for name in MEASURES} for row in costs["byModel"]}
            assert len((await tables.get(f"/v1/traces/{TRACE}"))["spans"]) == 5
            assert len((await tables.get(f"/v1/sessions/{SESSION}"))["traces"]) == 1
            assert (await tables.get(f"/v1/events/{EVENT}"))["trace_id"] == TRACE
