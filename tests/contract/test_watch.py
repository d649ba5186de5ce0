"""The live feed over both wires: the same events, the same ids, the same ends."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from decimal import Decimal
from typing import Any

import grpc
import msgspec
import pytest
from msgspec import structs

from protos.spendstream.v1 import usage_pb2, usage_pb2_grpc
from server.live import resume_token
from server.tenancy.directory import key_record
from tests.contract.doors import INGEST_ONLY, READ_ONLY, SECRET, Doors, key_metadata
from tests.contract.fakes import REACHED
from tests.support.live import NOON_TEXT, Event, Follower, sse, watch
from tests.support.patience import PATIENCE, mostly_within
from tests.support.tables import NOON, Usage

Subscribe = Callable[..., AbstractAsyncContextManager[AsyncIterator[Event]]]


@pytest.fixture(params=["sse", "grpc"])
def subscribe(request: pytest.FixtureRequest, doors: Doors) -> Subscribe:
    """`subscribe(token)`, with `users` and `key` to choose."""

    def over_sse(token: str = "", users: tuple[str, ...] = (), key: str = SECRET) -> Any:
        query = "?" + "&".join(f"user_id={user}" for user in users)
        return sse(doors.url.removeprefix("http://"), key, token, query=query)

    def over_grpc(token: str = "", users: tuple[str, ...] = (), key: str = SECRET) -> Any:
        return watch(doors.address, key, token, user_ids=users)

    return over_sse if request.param == "sse" else over_grpc


async def soon(event: Any) -> Event:
    async with asyncio.timeout(PATIENCE):
        found: Event = await event
        return found


def row(user: str | None, requests: int, cost: Decimal | int, **changes: Any) -> dict[str, Any]:
    return {
        "user_id": user,
        "requests": requests,
        "errors": 0,
        "input_tokens": 512 * requests,
        "output_tokens": 128 * requests,
        "cached_tokens": 0,
        "cost_usd": cost,
        "unpriced": 0,
        "first_seen": NOON_TEXT,
        "last_seen": NOON_TEXT,
        **changes,
    }


async def test_a_snapshot_then_what_changes(doors: Doors, subscribe: Subscribe) -> None:
    doors.live.bring(Usage(1, "u/1 ä"), Usage(2, None, cost=10**12, at=NOON + 1))
    async with subscribe() as events:
        first = await soon(anext(events))
        assert (first.kind, first.as_of) == ("snapshot", NOON_TEXT)
        seen = "2026-04-20T12:00:00.000001Z"
        assert first.rows == [row(None, 1, 1, first_seen=seen, last_seen=seen), row("u/1 ä", 1, Decimal("0.0034"))]
        doors.live.bring(Usage(3, "theirs"), project="other")
        doors.live.bring(Usage(4, "u/1 ä", cost=1), at=NOON + 1000)
        second = await soon(anext(events))
        assert (second.kind, second.as_of) == ("update", "2026-04-20T12:00:00.001Z")
        assert second.rows == [row("u/1 ä", 2, Decimal("0.003400000001"))]
        assert second.id != first.id


async def test_budgets_that_were_reached_are_told_between_the_rows(doors: Doors, subscribe: Subscribe) -> None:
    doors.live.bring(Usage(1, "u1"))
    doors.live.notices.post(REACHED)
    async with subscribe() as events, subscribe(users=("u2",)) as others:
        first, told = await soon(anext(events)), await soon(anext(events))
        assert (first.kind, told.kind, told.rows) == ("snapshot", "budget", [])
        assert told.id in ("", first.id)  # it is no place to go on from
        assert {**told.data, "usd": float(told.data["usd"]), "spent": float(told.data["spent"])} == {
            "id": "evt_1",
            "budget": "bud_1",
            "user_id": "u1",
            "model": None,
            "window": "day",
            "start": "2026-04-20T00:00:00.000Z",
            "end": "2026-04-21T00:00:00.000Z",
            "usd": 0.1,
            "threshold": 80,
            "spent": 0.081,
            "at": NOON_TEXT,
        }
        assert (await soon(anext(others))).kind == "snapshot"
        doors.live.notices.post(structs.replace(REACHED, id="evt_2", user_id=None, project="other"))
        doors.live.notices.post(structs.replace(REACHED, id="evt_3", user_id="u2", threshold=100))
        for each in (events, others):
            event = await soon(anext(each))
            assert (event.kind, event.data["id"]) == ("budget", "evt_3")
        doors.live.bring(Usage(2, "u1"))
        assert (await soon(anext(events))).kind == "update"
    async with subscribe(first.id) as events:  # who comes back is told again, by the same ids
        found = [await soon(anext(events)) for _ in range(3)]
        assert [event.kind for event in found] == ["update", "budget", "budget"]
        assert [event.data["id"] for event in found[1:]] == ["evt_1", "evt_3"]


async def test_resuming_where_it_broke_off(doors: Doors, subscribe: Subscribe) -> None:
    doors.live.bring(*(Usage(n, f"u{n:04d}") for n in range(2500)))
    follower = Follower()
    sizes: list[tuple[str, int]] = []
    while len(sizes) < 3:  # each connection brings one event
        async with subscribe(follower.token) as events:
            event = await soon(anext(events))
            follower.take(event)
            sizes.append((event.kind, len(event.rows)))
    assert sizes == [("snapshot", 1000), ("update", 1000), ("update", 500)]
    assert list(follower.table) == [f"u{n:04d}" for n in range(2500)]
    doors.live.bring(Usage(9001, "u0007"), Usage(9002, "new"))
    async with subscribe(follower.token) as events:
        event = await soon(anext(events))
        assert (event.kind, sorted(one["user_id"] for one in event.rows)) == ("update", ["new", "u0007"])


async def test_a_view_behind_the_id_waits(doors: Doors, subscribe: Subscribe) -> None:
    doors.live.bring(Usage(1, "a"))
    async with subscribe() as events:
        token = (await soon(anext(events))).id
    doors.live.worker.send([Usage(2, "a"), Usage(3, "b"), Usage(4, "c"), Usage(5, "d")])
    ahead = doors.live.worker.work_all()

    mark = resume_token.decode(token)
    token = resume_token.encode(mark.identity, mark.binding, doors.live.worker.log_end())
    async with subscribe(token) as events:
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0.5)
        assert not waiting.done()
        for partition, records in enumerate(ahead):
            doors.live.view.apply(partition, records)
        doors.live.arrivals.notify()
        await asyncio.sleep(0.2)
        assert not waiting.done(), "it has all of that"
        doors.live.bring(Usage(6, "b"))
        assert [one["user_id"] for one in (await soon(waiting)).rows] == ["b"]


async def test_only_some_users(doors: Doors, subscribe: Subscribe) -> None:
    doors.live.bring(Usage(1, "a"), Usage(2, "b"))
    async with subscribe(users=("b", "c")) as events:
        first = await soon(anext(events))
        assert [one["user_id"] for one in first.rows] == ["b"]
        doors.live.bring(Usage(3, "a"))
        doors.live.bring(Usage(4, "c"))
        assert [one["user_id"] for one in (await soon(anext(events))).rows] == ["c"]
    async with subscribe(first.id) as events:
        assert (await soon(anext(events))).kind == "snapshot", "an id of another filter begins anew"


async def end_of(events: AsyncIterator[Event]) -> tuple[str, grpc.StatusCode | None]:
    """How a feed ends: the message, and the gRPC code."""
    try:
        async with asyncio.timeout(PATIENCE):
            async for event in events:
                if event.kind == "error":
                    return event.data["error"], None
    except grpc.aio.AioRpcError as error:
        return error.details() or "", error.code()
    raise AssertionError("it ended without a word")


async def test_the_end_of_a_key_is_the_end_of_its_feed(doors: Doors, subscribe: Subscribe) -> None:
    secret = "lqt_" + "7" * 64

    async def trial() -> float:
        key = doors.add_key(secret, ("read",))
        async with subscribe(key=secret) as events:
            await soon(anext(events))
            doors.directory.apply(*key_record(msgspec.structs.replace(key, revoked=1)))
            began = asyncio.get_running_loop().time()
            message, code = await end_of(events)
            took = asyncio.get_running_loop().time() - began
            assert message == "Invalid API key"
            assert code in {None, grpc.StatusCode.UNAUTHENTICATED}
            with pytest.raises((StopAsyncIteration, grpc.aio.AioRpcError)):
                await asyncio.wait_for(anext(events), PATIENCE)
            return took

    async with subscribe() as others:
        await soon(anext(others))
        await mostly_within(1, trial)
        doors.live.bring(Usage(1, "a"))
        assert [one["user_id"] for one in (await soon(anext(others))).rows] == ["a"]


async def test_a_server_that_stops_ends_the_feed(doors: Doors, subscribe: Subscribe) -> None:
    async with subscribe() as events:
        await soon(anext(events))
        doors.services.feed.close()
        message, _ = await end_of(events)
        assert message == "The server is stopping; connect again with the last id received"


async def test_a_client_that_goes_is_forgotten(doors: Doors, subscribe: Subscribe) -> None:
    async with subscribe() as events:
        await soon(anext(events))
        assert doors.services.feed.subscribers == 1
    async with asyncio.timeout(PATIENCE):
        while doors.services.feed.subscribers:  # noqa: ASYNC110 - there is nothing else to wait for
            await asyncio.sleep(0.01)


@pytest.mark.slow
async def test_hundreds_of_subscribers(doors: Doors) -> None:
    doors.live.bring(*(Usage(n, f"u{n}") for n in range(200)))
    http = doors.url.removeprefix("http://")
    followers = [Follower() for _ in range(300)]

    async def follow(follower: Follower) -> None:
        async with sse(http, SECRET) as events:
            async for event in events:
                follower.take(event)
                if follower.table["u7"]["requests"] == 6:
                    return

    tasks = [asyncio.create_task(follow(follower)) for follower in followers]
    async with asyncio.timeout(PATIENCE):
        while not all(follower.events for follower in followers):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        for n in range(5):
            doors.live.bring(Usage(1000 + n, "u7"))
            await asyncio.sleep(0.1)
        await asyncio.gather(*tasks)
    assert all(follower.table == followers[0].table for follower in followers)
    assert len(followers[0].table) == 200


# --- what only one wire has ------------------------------------------------------------------------------------------


async def test_the_generated_stub_works(doors: Doors) -> None:
    doors.live.bring(Usage(1, "a"))
    stub: Any = usage_pb2_grpc.UsageServiceStub(doors.channel)
    call = stub.WatchUsers(usage_pb2.WatchUsersRequest(project_id="default"), metadata=key_metadata(READ_ONLY))
    response = await call.read()
    assert (response.snapshot, response.users[0].user_id, response.users[0].sums.cost_usd) == (True, "a", "0.0034")
    assert response.as_of == NOON_TEXT
    call.cancel()


@pytest.mark.parametrize(
    ("secret", "request_", "code"),
    [
        (None, usage_pb2.WatchUsersRequest(), grpc.StatusCode.UNAUTHENTICATED),
        (INGEST_ONLY, usage_pb2.WatchUsersRequest(), grpc.StatusCode.PERMISSION_DENIED),
        (None, usage_pb2.WatchUsersRequest(user_ids=[""]), grpc.StatusCode.UNAUTHENTICATED),
        (SECRET, usage_pb2.WatchUsersRequest(project_id="other"), grpc.StatusCode.PERMISSION_DENIED),
        (SECRET, usage_pb2.WatchUsersRequest(resume_token="nonsense"), grpc.StatusCode.INVALID_ARGUMENT),
        (SECRET, usage_pb2.WatchUsersRequest(user_ids=[""]), grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_refused_over_grpc(doors: Doors, secret: str | None, request_: Any, code: grpc.StatusCode) -> None:
    stub: Any = usage_pb2_grpc.UsageServiceStub(doors.channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.WatchUsers(request_, metadata=key_metadata(secret)).read()
    assert caught.value.code() is code


@pytest.mark.parametrize(
    ("query", "headers", "status", "message"),
    [
        ("", {}, 401, "Invalid API key"),
        ("", {"x-api-key": INGEST_ONLY}, 403, "This API key lacks the scope 'read'"),
        ("?projectId=other", {"x-api-key": SECRET}, 403, "projectId is not the project of this API key"),
        ("", {"x-api-key": SECRET, "Last-Event-ID": "x"}, 400, "Last-Event-ID is not one that this server gave out"),
        ("?lastEventId=x", {"x-api-key": SECRET}, 400, "Last-Event-ID is not one that this server gave out"),
        ("?user_id=", {"x-api-key": SECRET}, 400, "user_id must be given at most 100 times, and never be empty"),
        (
            "?environment=x",
            {"x-api-key": SECRET},
            400,
            "unknown parameter 'environment'; known are user_id, lastEventId, projectId, after",
        ),
        ("?after=beef_0-1", {"x-api-key": SECRET}, 400, "not an ingest position of this server"),
    ],
)
async def test_refused_over_http(doors: Doors, query: str, headers: dict[str, str], status: int, message: str) -> None:
    async with doors.session.get(doors.url + "/v1/stream/users" + query, headers=headers) as response:
        assert response.status == status
        assert response.content_type == "application/json"
        reason = {400: "bad_request", 401: "unauthenticated", 403: "forbidden"}[status]
        assert await response.json() == {"error": message, "reason": reason}


async def test_what_the_answer_says_before_its_first_event(doors: Doors) -> None:
    headers = {"Authorization": f"Bearer {READ_ONLY}"}
    async with doors.session.get(doors.url + "/v1/stream/users", headers=headers) as response:
        assert (response.status, response.headers["Content-Type"]) == (200, "text/event-stream")
        assert (response.headers["Cache-Control"], response.headers["X-Accel-Buffering"]) == ("no-store", "no")
        lines = [await asyncio.wait_for(response.content.readline(), PATIENCE) for _ in range(7)]
    assert lines[:3] == [b": spendstream\n", b"retry: 1000\n", b"\n"]
    assert lines[3].startswith(b"id: ")
    assert lines[4:] == [
        b"event: snapshot\n",
        b'data: {"users":[],"asOf":"1970-01-01T00:00:00.000Z"}\n',
        b"\n",
    ]
    async with doors.session.head(doors.url + "/v1/stream/users", headers=headers) as response:
        assert response.status == 405


async def test_the_id_may_come_with_the_address_and_the_header_is_newer(doors: Doors) -> None:
    http = doors.url.removeprefix("http://")
    doors.live.bring(Usage(1, "a"))
    async with sse(http, SECRET) as events:
        old = (await soon(anext(events))).id
        doors.live.bring(Usage(2, "b"))
        new = (await soon(anext(events))).id
    doors.live.bring(Usage(3, "c"))
    for token, query, expected in (("", f"?lastEventId={old}", ["b", "c"]), (new, f"?lastEventId={old}", ["c"])):
        async with sse(http, SECRET, token, query=query) as events:
            assert sorted(one["user_id"] for one in (await soon(anext(events))).rows) == expected


async def test_silence_is_broken_by_comments(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.live.feed.HEARTBEAT", 0.1)
    async with doors.session.get(doors.url + "/v1/stream/users", headers={"x-api-key": SECRET}) as response:
        async with asyncio.timeout(PATIENCE):
            while await response.content.readline() != b": heartbeat\n":
                pass
            assert await response.content.readline() == b"\n"


@pytest.mark.slow
async def test_a_client_that_does_not_read_is_cut_off_with_its_key(doors: Doors) -> None:
    secret = "lqt_" + "8" * 64
    key = doors.add_key(secret, ("read",))
    doors.live.bring(*(Usage(n, f"{n:0200d}") for n in range(12_000)))
    reader, writer = await doors.connect(limit=1024)
    writer.write(f"GET /v1/stream/users HTTP/1.1\r\nHost: x\r\nx-api-key: {secret}\r\n\r\n".encode())
    await writer.drain()
    await asyncio.wait_for(reader.readline(), PATIENCE)
    await asyncio.sleep(1.5)  # until all buffers are full
    assert doors.services.feed.subscribers == 1
    doors.directory.apply(*key_record(msgspec.structs.replace(key, revoked=1)))
    async with asyncio.timeout(PATIENCE):
        while doors.services.feed.subscribers:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    writer.transport.abort()
