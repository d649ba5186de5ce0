"""The whole product as its users have it: started processes, both APIs, curl, the command line."""

import asyncio
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import aiohttp
import grpc
import msgspec
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from processor.core.events import message
from processor.log.embedded.log import Log
from processor.log.records import Append, TopicPartition
from processor.log.topics import DEAD_LETTERS, EVENTS
from protos.spendstream.v1 import ingest_pb2 as pb
from protos.spendstream.v1 import ingest_pb2_grpc, usage_pb2, usage_pb2_grpc
from tests.support import clients
from tests.support.clients import Pace, Reader, Tally, reader
from tests.support.connections import connections
from tests.support.events import make_event, to_proto
from tests.support.patience import PROCESS_PATIENCE, mostly_within, until
from tests.support.ports import next_bind
from tests.support.server import (
    KEY,
    Server,
    all_gone,
    is_alive,
    run_cli,
    server,
    wait_until,
)
from tests.support.traffic import make_traffic

QUICKSTART: Final = Path(__file__).parents[2] / "docs" / "quickstart.md"

# The example of the public specification, as printed there.
EXAMPLE: Final = r"""
printf '{"event_id":"550e8400-e29b-41d4-a716-446655440001","trace_id":"trace-abc","span_id":"span-001","timestamp":"2026-04-20T10:00:00.000Z","provider":"openai","model":"gpt-4o","operation":"chat","latency_ms":843,"input_tokens":512,"output_tokens":128,"cost_usd":0.0034,"status":"success","stream":false,"environment":"production","sdk_version":"1.4.2"}\n{"event_id":"550e8400-e29b-41d4-a716-446655440002","trace_id":"trace-abc","span_id":"span-002","parent_span_id":"span-001","timestamp":"2026-04-20T10:00:01.200Z","provider":"openai","model":"text-embedding-3-small","operation":"embed","latency_ms":120,"input_tokens":64,"output_tokens":0,"cost_usd":0.000013,"status":"success","stream":false,"environment":"production","sdk_version":"1.4.2"}' \
  | gzip \
  | curl -X POST https://api.lumiqtrace.com/v1/ingest \
      -H "x-api-key: lqt_your_api_key_here" \
      -H "Content-Type: application/x-ndjson" \
      -H "Content-Encoding: gzip" \
      --data-binary @-
""".strip()  # noqa: E501


async def post(tables: Reader, events: list[dict[str, Any]], key: str | None = None) -> clients.Answer:
    return await tables.ingest(events, key)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests that leave it as it was."""
    with server(tmp_path_factory.mktemp("running") / "data", as_shipped=True) as started:
        yield started


@pytest.fixture
async def tables(running: Server) -> AsyncIterator[Reader]:
    async with reader(running) as opened:
        yield opened


# --- the specification's example -------------------------------------------------------------------------------------


def curl_example(at: Server) -> Any:
    command = EXAMPLE.replace("https://api.lumiqtrace.com", f"http://{at.http}").replace(
        "lqt_your_api_key_here", at.key
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=True, timeout=PROCESS_PATIENCE)
    return msgspec.json.decode(done.stdout)


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("gzip") and shutil.which("bash")), reason="needs curl")
async def test_the_specifications_example_counts_once_whatever_is_killed(tmp_path: Path) -> None:
    expected = {
        "users": [
            {
                "user_id": None,
                "requests": 2,
                "errors": 0,
                "input_tokens": 576,
                "output_tokens": 128,
                "cached_tokens": 0,
                "cost_usd": Decimal("0.003413"),
                "unpriced": 0,
                "first_seen": "2026-04-20T10:00:00.000Z",
                "last_seen": "2026-04-20T10:00:01.200Z",
            }
        ],
        "total": {
            "users": 1,
            "requests": 2,
            "errors": 0,
            "input_tokens": 576,
            "output_tokens": 128,
            "cached_tokens": 0,
            "cost_usd": Decimal("0.003413"),
            "unpriced": 0,
        },
        "nextCursor": None,
    }

    async def table() -> Any:
        async with reader(started) as tables:
            await tables.caught_up(2)
            answer = await tables.get("/v1/users")
            answer.pop("asOf")
            return answer

    with server(tmp_path / "data", key=None) as started:
        assert started.key.startswith("lqt_")
        assert curl_example(started) == {"accepted": 2}
        assert await table() == expected

        await asyncio.to_thread(started.kill_all)
        await asyncio.to_thread(started.start)
        assert not any("key" in line for line in started.banner()), "the key was shown a second time"
        assert await table() == expected

        assert curl_example(started) == {"accepted": 2}
        assert await table() == expected
        async with reader(started) as tables:
            deadline = time.monotonic() + PROCESS_PATIENCE
            while (quota := await tables.get("/v1/quota"))["duplicates"] != 2:
                assert time.monotonic() < deadline, quota
                await asyncio.sleep(0.05)
            assert quota["conflicts"] == 0


def test_the_quickstart_has_the_same_example() -> None:
    assert EXAMPLE.replace("https://api.lumiqtrace.com", "http://127.0.0.1:8080") in QUICKSTART.read_text()


# --- much traffic through both APIs ---------------------------------------------------------------------------------


EVENTS_SENT: Final = 40_000
"""Dozens of flushes; `make bench` and `make chaos` send many times as many, and compare as well."""


async def test_40_000_events_through_both_doors_are_exact(tmp_path: Path) -> None:
    traffic = make_traffic(20261, EVENTS_SENT, duplicates=0.05, conflicts=100)
    doors = [
        {event["event_id"].lower() for batch in batches for event in batch} for batches in (traffic.http, traffic.grpc)
    ]
    assert len(doors[0] & doors[1]) > EVENTS_SENT // 50, "too few duplicates through the other door"
    tally = Tally()
    with server(tmp_path / "data") as started:
        async with asyncio.TaskGroup() as group:
            group.create_task(clients.send_http(started, clients.http_batches(traffic.http), tally))
            group.create_task(clients.send_streams(started, clients.grpc_batches(traffic.grpc), tally))
        assert tally == Tally(EVENTS_SENT, 0, tally.position)
        await clients.send_http(started, clients.http_batches(traffic.late), tally)
        async with reader(started) as tables:
            assert await tables.differences(traffic.truth, exact_duplicates=True) == []
            columns = ("requests", "input_tokens", "output_tokens", "last_seen")
            for column in columns:
                rows, _ = await tables.users(sort=column)
                values = [row[column] for row in rows]
                assert values == sorted(values, reverse=True)
        assert await asyncio.to_thread(clients.verify, started) == []
        assert started.cli("verify").returncode == 0


# --- spans -----------------------------------------------------------------------------------------------------------


async def test_spans_are_kept_and_charged_and_in_no_row_of_cost(tmp_path: Path) -> None:
    step = {"kind": "span", "name": "plan", "status": "error", "user_id": "nobody", "model": "no model"}
    spans = [make_event(**{**step, "cost_usd": 0, "input_tokens": 9}) for _ in range(15)]
    call = make_event(user_id="alice", name="answer", cache_write_tokens=3, reasoning_tokens=4)
    with server(tmp_path / "data") as started:
        async with reader(started) as tables:
            answer = await post(tables, [*spans, call, spans[0], make_event(kind="agent", user_id="alice")])
            assert answer.json == {"accepted": 18}
            refused = await post(tables, [make_event(**step), make_event(kind="span", cost_usd=0)])
            assert [(each["field"], each["code"]) for each in refused.json["rejected"]] == [
                ("cost_usd", "out_of_range"),
                ("name", "missing"),
            ]
            async with grpc.aio.insecure_channel(started.grpc) as channel:
                request = pb.IngestRequest(events=[to_proto(spans[1]), to_proto(make_event(**{**step, "cost_usd": 0}))])
                service: Any = ingest_pb2_grpc.IngestServiceStub(channel)
                assert (await service.Ingest(request, metadata=(("x-api-key", KEY),))).accepted == 2
            await tables.caught_up(18)
        await asyncio.to_thread(started.kill_all)
        await asyncio.to_thread(started.start)
        async with reader(started) as tables:
            quota = await tables.caught_up(18)
            assert (quota["duplicates"], quota["conflicts"]) == (2, 0)
            shown = await tables.get("/v1/users")
            assert [(user["user_id"], user["requests"], user["errors"]) for user in shown["users"]] == [("alice", 2, 0)]
            assert (shown["total"]["input_tokens"], shown["total"]["unpriced"]) == (2 * call["input_tokens"], 0)
            costs = await tables.get("/v1/costs?start=2026-04-20&end=2026-04-21")
            assert [(each["model"], each["requests"]) for each in costs["byModel"]] == [("gpt-4o", 2)]
        assert clients.verify(started) == []
        assert started.cli("verify").returncode == 0
        file = tmp_path / "events.ndjson"
        assert started.cli("export", "--output", str(file)).returncode == 0

    lines = [msgspec.json.decode(line) for line in file.read_bytes().splitlines()]
    assert len(lines) == 20
    assert sorted(line.get("kind", "call") for line in lines) == ["agent", "call", *["span"] * 18]
    assert run_cli(tmp_path / "copy", "import", str(file)).returncode == 0
    with server(tmp_path / "copy") as restored:
        async with reader(restored) as tables:
            assert await tables.caught_up(18)
            again = await tables.get("/v1/users")
            assert {**again, "asOf": None} == {**shown, "asOf": None}
        assert clients.verify(restored) == []
    assert run_cli(tmp_path / "copy", "rebuild").returncode == 0
    assert run_cli(tmp_path / "copy", "verify").returncode == 0


# --- read your own writes --------------------------------------------------------------------------------------------


async def test_a_read_after_a_position_has_the_rows_every_time(running: Server, tables: Reader) -> None:
    user = f"own-writes-{uuid4()}"
    for written in range(1, 51):
        answer = await post(tables, [make_event(user_id=user, cost_usd=Decimal("0.1"))])
        assert answer.status == 202
        token = answer.headers["x-ingest-position"]
        row = await tables.get(f"/v1/users/{user}?after={token}")
        assert (row["requests"], row["cost_usd"]) == (written, Decimal(written) / 10)
    async with grpc.aio.insecure_channel(running.grpc) as channel:
        usage: Any = usage_pb2_grpc.UsageServiceStub(channel)
        ingest: Any = ingest_pb2_grpc.IngestServiceStub(channel)
        auth = ("x-api-key", KEY)
        for written in range(51, 61):
            request = pb.IngestRequest(events=[to_proto(make_event(user_id=user, cost_usd=Decimal("0.1")))])
            receipt = await ingest.Ingest(request, metadata=(auth,))
            found = await usage.GetUser(
                usage_pb2.GetUserRequest(user_id=user), metadata=(auth, ("x-ingest-position", receipt.position))
            )
            assert (found.user.sums.requests, Decimal(found.user.sums.cost_usd)) == (written, Decimal(written) / 10)


@pytest.mark.parametrize("token", ["garbage", "", "00000000_0-1", "x" * 3000, "%00", "-1"])
async def test_a_position_of_no_sense_is_refused(tables: Reader, token: str) -> None:
    for path in ("/v1/users", "/v1/quota"):
        answer = await tables.request("GET", f"{path}?after={token}")
        assert (answer.status, list(answer.json)) == (400, ["error", "reason"])


# --- quotas ----------------------------------------------------------------------------------------------------------


async def test_a_monthly_quota_ends_at_exactly_its_limit(tmp_path: Path) -> None:
    limit = 300
    accepted = 0
    over: list[Any] = []

    async def sender(tables: Reader) -> None:
        nonlocal accepted
        while True:
            answer = await post(tables, [make_event()])
            if answer.status == 202:
                accepted += 1
                continue
            assert answer.status == 429
            assert answer.json["error"] == "Monthly quota exceeded"
            assert 1 <= int(answer.headers["Retry-After"]) <= 60
            assert answer.json["limit"] == limit
            assert answer.json["used"] <= limit
            over.append(answer.json)
            if answer.json["used"] == limit:
                return
            await asyncio.sleep(0.05)

    with server(tmp_path / "data") as started:
        async with reader(started) as tables:
            assert (await post(tables, [make_event() for _ in range(7)])).status == 202
            accepted += 7
            assert started.cli("orgs", "set", "default", "--monthly-quota", str(limit)).returncode == 0
            await quota_is(tables, limit=limit)
            assert (await post(tables, [make_event() for _ in range(100)])).status == 202
            accepted += 100
            async with asyncio.TaskGroup() as group:
                for _ in range(8):
                    group.create_task(sender(tables))
            assert accepted == limit
            quota = await quota_is(tables, used=limit)
            assert (quota["remaining"], quota["limit"], quota["duplicates"]) == (0, limit, 0)
            resets = datetime.fromisoformat(over[-1]["resetsAt"])
            assert resets.tzinfo == UTC
            assert resets.isoformat().endswith("-01T00:00:00+00:00")
            assert resets > datetime.now(UTC)
            assert over[-1]["resetsAt"] == quota["resetsAt"]

            # A batch that goes over is refused whole, through the other door too.
            assert started.cli("orgs", "set", "default", "--monthly-quota", str(limit + 3)).returncode == 0
            await quota_is(tables, limit=limit + 3)
            assert (await post(tables, [make_event() for _ in range(4)])).status == 429
            async with grpc.aio.insecure_channel(started.grpc) as channel:
                ingest: Any = ingest_pb2_grpc.IngestServiceStub(channel)
                request = pb.IngestRequest(events=[to_proto(make_event()) for _ in range(4)])
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await ingest.Ingest(request, metadata=(("x-api-key", KEY),))
                assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                retry = error_details_pb2.RetryInfo()
                status = rpc_status.from_call(refused.value)  # type: ignore[arg-type] # typed for synchronous calls
                assert status is not None
                assert any(detail.Unpack(retry) for detail in status.details)
                assert 1 <= retry.retry_delay.seconds <= 60
            assert (await post(tables, [make_event() for _ in range(3)])).status == 202
            await quota_is(tables, used=limit + 3)
            assert (await post(tables, [make_event()])).status == 429
            assert started.cli("orgs", "set", "default", "--monthly-quota", "none").returncode == 0
            await quota_is(tables, limit=None, used=limit + 3, remaining=None)
            assert (await post(tables, [make_event()])).status == 202


async def quota_is(tables: Reader, **expected: int | None) -> Any:
    """Wait until the quota says so; a change by the command line is seen within moments."""
    deadline = time.monotonic() + PROCESS_PATIENCE
    while True:
        quota = await tables.get("/v1/quota")
        if all(quota[name] == value for name, value in expected.items()):
            return quota
        assert time.monotonic() < deadline, quota
        await asyncio.sleep(0.05)


# --- beside a running server -----------------------------------------------------------------------------------------


def test_a_second_server_on_the_data_directory_is_refused(running: Server) -> None:
    again = run_cli(running.data_dir, "serve", http_bind="127.0.0.1:0", grpc_bind="127.0.0.1:0")
    assert again.returncode == 2
    assert "a server is running already" in again.stderr
    assert str(running.process.pid) in again.stderr
    assert "Traceback" not in again.stderr
    assert running.is_running


async def test_the_command_line_works_beside_a_running_server(running: Server, tables: Reader) -> None:
    created = running.cli("keys", "create", "--project", "beside", "--json")
    assert created.returncode == 0
    key = msgspec.json.decode(created.stdout)["key"]
    answer = await until_status(tables, key, 202)
    await tables.get(f"/v1/users?after={answer.headers['x-ingest-position']}")
    shown = running.cli("users", "--project", "beside", "--json")
    assert shown.returncode == 0
    assert msgspec.json.decode(shown.stdout)["total"]["requests"] == 1
    assert running.cli("users", "--project", "beside").returncode == 0
    listed = msgspec.json.decode(running.cli("keys", "list", "--json").stdout)
    assert {"beside", "default"} <= {row["project"] for row in listed}
    assert running.cli("keys", "revoke", key).returncode == 0
    assert (await until_status(tables, key, 401)).json == {"error": "Invalid API key", "reason": "unauthenticated"}
    assert running.cli("orgs", "list", "--json").returncode == 0
    assert clients.verify(running) == []


async def until_status(tables: Reader, key: str, status: int) -> clients.Answer:
    """Send one event again and again until the answer has `status`: the server follows the directory."""
    event = make_event()
    deadline = time.monotonic() + PROCESS_PATIENCE
    while (answer := await post(tables, [event], key)).status != status:
        assert time.monotonic() < deadline, answer
        await asyncio.sleep(0.05)
    return answer


def test_another_number_of_partitions_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    Log(data, partitions=2).close()
    for role in ("serve", "api", "worker"):
        done = run_cli(data, role, partitions=3, http_bind="127.0.0.1:0", grpc_bind="127.0.0.1:0")
        assert done.returncode == 2
        assert "has 2 partition(s), not 3" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    Log(data).close()
    connection = sqlite3.connect(data / "log.db")
    with connection:
        connection.execute("UPDATE meta SET value = 99 WHERE name = 'format'")
    connection.close()
    for command in ("serve", "api", "worker", "users"):
        settings: dict[str, Any] = (
            {} if command == "users" else {"http_bind": "127.0.0.1:0", "grpc_bind": "127.0.0.1:0"}
        )
        done = run_cli(data, command, **settings)
        assert done.returncode == 2
        assert "format 99" in done.stderr
        assert "newer spendstream" in done.stderr
        assert "Traceback" not in done.stderr


# --- stopping --------------------------------------------------------------------------------------------------------


def assert_free(address: str) -> None:
    host, port = address.split(":")
    with socket.socket() as probe:
        # As every server does: what is left of closed connections is not in the way, a listener still is.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, int(port)))
        probe.listen()


async def test_sigterm_drains_and_leaves_ports_and_lock_free(tmp_path: Path) -> None:
    traffic = make_traffic(6, 8_000)
    tally = Tally()
    with server(tmp_path / "data") as started:
        pace = Pace(traffic.events, rate=2_000, reserve=3_000)
        sending = asyncio.create_task(clients.send(started, traffic, tally, pace))
        async with (
            aiohttp.ClientSession() as session,
            grpc.aio.insecure_channel(started.grpc) as channel,
            connections() as opened,
        ):
            # Clients that would stay for ever: an idle stream, an idle connection, a body that does not end.
            idle: Any = ingest_pb2_grpc.IngestServiceStub(channel).IngestStream(metadata=(("x-api-key", KEY),))
            await idle.write(pb.IngestRequest(sequence=1, events=[]))
            assert (await idle.read()).sequence == 1
            async with session.get(f"http://{started.http}/healthz") as response:
                assert response.status == 200
            host, port = started.http.split(":")
            _, slow = await opened.open(host, int(port))
            slow.write(
                f"POST /v1/ingest HTTP/1.1\r\nHost: x\r\nx-api-key: {KEY}\r\n"
                "Content-Type: application/x-ndjson\r\nContent-Length: 1000\r\n\r\n{".encode()
            )
            await asyncio.sleep(1.0)
            await until(lambda: tally.acknowledged)
            pids = [started.process.pid, *started.children().values()]
            assert {os.getpgid(pid) for pid in pids} == {started.process.pid}
            code, _ = await asyncio.to_thread(started.stop)
            assert code == 0, started.log()
            assert all_gone(pids)
            assert not started.entries("child.killed")
            assert_free(started.http)
            assert_free(started.grpc)
            slow.close()
            idle.cancel()
        await asyncio.to_thread(started.start)
        pace.let_go()
        await sending
        async with reader(started) as tables:
            assert await tables.differences(traffic.truth, exact_duplicates=False) == []


async def test_children_end_with_their_supervisor(tmp_path: Path) -> None:
    with server(tmp_path / "data") as started:
        async with reader(started) as tables:
            assert (await post(tables, [make_event(user_id="u1")])).status == 202
        children = list(started.children().values())
        assert len(children) == 2
        assert all(map(is_alive, children))
        started.kill("supervisor")
        wait_until(lambda: all_gone(children))
        assert_free(started.http)
        assert_free(started.grpc)
        await asyncio.to_thread(started.start)
        async with reader(started) as tables:
            await tables.caught_up(1)
            assert (await tables.get("/v1/users/u1"))["requests"] == 1


async def test_a_dead_child_is_started_again_where_it_was(tmp_path: Path) -> None:
    with server(tmp_path / "data") as started:
        before = started.children()
        for part in ("api", "worker"):
            os.kill(before[part], signal.SIGKILL)
        wait_until(lambda: len(started.entries("api.ready")) == 2 and len(started.entries("worker.ready")) == 2)
        assert len(started.entries("child.ended")) == 2
        async with reader(started) as tables:
            answer = await post(tables, [make_event()])
            assert answer.status == 202
            await tables.get(f"/v1/users?after={answer.headers['x-ingest-position']}")


# --- the roles apart -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["serve", "api", "worker"])
async def test_a_role_stops_within_ten_seconds(role: str, tmp_path: Path) -> None:
    with server(tmp_path / "data", role, start=False) as started:

        async def trial() -> float:
            await asyncio.to_thread(started.start)
            if role == "serve":  # an API process that starts waits for a worker that is behind
                async with reader(started) as tables:
                    assert (await post(tables, [make_event()])).status == 202
            code, seconds = await asyncio.to_thread(started.stop)
            assert code == 0, started.log()
            return seconds

        await mostly_within(10, trial, trials=3)


async def test_the_roles_work_as_processes_of_their_own(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with (
        server(data, "api", as_shipped=True) as api,
        server(data, "worker", as_shipped=True, start=False) as worker,
    ):
        async with reader(api) as tables:
            assert (await tables.request("GET", "/readyz")).status == 200  # nothing to catch up: it needs no worker
            answer = await post(tables, [make_event(user_id="u1")])
            assert answer.status == 202
            await asyncio.to_thread(worker.start)
            row = await tables.get(f"/v1/users/u1?after={answer.headers['x-ingest-position']}")
            assert row["requests"] == 1
            await asyncio.to_thread(worker.kill_all)
            answer = await post(tables, [make_event(user_id="u1")])
            assert answer.status == 202
            await asyncio.to_thread(worker.start)
            row = await tables.get(f"/v1/users/u1?after={answer.headers['x-ingest-position']}")
            assert row["requests"] == 2
            keys = msgspec.json.decode(api.cli("keys", "list", "--json").stdout)
            assert [key["scopes"] for key in keys] == [["ingest", "read"]]
        for process in (api, worker):
            code, _ = await asyncio.to_thread(process.stop)
            assert code == 0, process.log()


# --- damage ----------------------------------------------------------------------------------------------------------

POISON: Final = [
    b"",
    b"nonsense",
    b"\xc1" * 1000,
    msgspec.msgpack.encode([message.VERSION, [], b""]),
    msgspec.msgpack.encode([message.VERSION, [["o", "p", "k"]], b""]),
]


async def test_poison_goes_to_the_dead_letters_and_stops_nothing(tmp_path: Path) -> None:
    traffic = make_traffic(8, 3_000)
    events, dead = TopicPartition(EVENTS, 0), TopicPartition(DEAD_LETTERS, 0)

    def poison(records: list[bytes | None]) -> None:
        log = Log(started.data_dir, create=False)
        log.append([Append(events, [(None, value)]) for value in records], time.time_ns() // 1000)
        log.close()

    def dead_letters() -> list[Any]:
        log = Log(started.data_dir, create=False)
        found = [msgspec.json.decode(record.key or b"{}") for record in log.read(dead, 0)]
        log.close()
        return found

    with server(tmp_path / "data") as started:
        poison([*POISON, None])
        sending = asyncio.create_task(clients.send(started, traffic, Tally()))
        await asyncio.sleep(0.2)
        poison(list(POISON))
        await sending
        async with reader(started) as tables:
            assert await tables.differences(traffic.truth, exact_duplicates=True) == []
        await asyncio.to_thread(wait_until, lambda: len(dead_letters()) >= 2 * len(POISON))  # which may have come last
        letters = dead_letters()
        assert len(letters) == 2 * len(POISON), "a record without a value is none: it only moves the log's end"
        assert all(letter["reason"] and letter["topic"] == EVENTS for letter in letters)
        assert clients.verify(started) == []

        # As the last record of the log it must not keep anybody waiting, now or after a restart.
        poison([b"the last word"])
        wait_until(lambda: len(dead_letters()) == 2 * len(POISON) + 1)
        await asyncio.to_thread(started.stop)
        await asyncio.to_thread(started.start)
        async with reader(started) as tables:
            assert (await tables.request("GET", "/readyz")).status == 200
            assert await tables.differences(traffic.truth, exact_duplicates=True) == []
        assert clients.verify(started) == []
        assert len(dead_letters()) == 2 * len(POISON) + 1


async def test_a_lost_id_index_is_rebuilt_from_the_claims(tmp_path: Path) -> None:
    traffic = make_traffic(9, 4_000)
    with server(tmp_path / "data") as started:
        await clients.send(started, traffic, Tally())
        async with reader(started) as tables:
            assert await tables.differences(traffic.truth, exact_duplicates=True) == []
        await asyncio.to_thread(started.stop)
        shutil.rmtree(started.data_dir / "index")
        await asyncio.to_thread(started.start)
        await clients.send(started, traffic, Tally())
        async with reader(started) as tables:
            expected = traffic.events + traffic.truth.duplicates
            await quota_is(tables, duplicates=expected, used=traffic.truth.unique)
            traffic.truth.duplicates = expected
            assert await tables.differences(traffic.truth, exact_duplicates=True) == []
        assert clients.verify(started) == []


def test_a_start_waits_for_a_port_that_is_just_being_given_up(tmp_path: Path) -> None:
    address = next_bind()  # none that the next client may be given as soon as it is free
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", int(address.rpartition(":")[2])))
        held.listen()
        with server(tmp_path / "data", start=False, http_bind=address) as started:
            started.launch()
            wait_until(lambda: "worker.ready" in started.log())  # the API is about to ask for the port, or did
            held.close()
            started.wait_ready()
            assert started.http == address
            assert started.entries("child.ended") == []
