"""Keys and quotas with real processes."""

import asyncio
import random
import signal
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import grpc
import msgspec
import pytest

from protos.spendstream.v1 import ingest_pb2 as pb
from protos.spendstream.v1 import ingest_pb2_grpc
from tests.support.clients import reader
from tests.support.events import make_event, to_ndjson, to_proto
from tests.support.patience import PROCESS_PATIENCE
from tests.support.receiver import SECRET, receiver
from tests.support.server import KEY, Server, run_cli, server

WITHIN = 1.0
"""Seconds in which every process goes by what was changed."""

T = TypeVar("T")


async def soon(ask: Callable[[], Awaitable[T]], wanted: T) -> None:
    """Have a process go by a change in time, counted in questions: a busy machine is as slow to answer them."""
    questions = 1
    while (found := await ask()) != wanted:
        assert questions < WITHIN / 0.02, found
        questions += 1
        await asyncio.sleep(0.02)


async def post(session: aiohttp.ClientSession, http: str, key: str, events: list[dict[str, Any]]) -> tuple[int, Any]:
    headers = {"x-api-key": key, "Content-Type": "application/x-ndjson"}
    async with session.post(f"http://{http}/v1/ingest", data=to_ndjson(events), headers=headers) as response:
        return response.status, msgspec.json.decode(await response.read())


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as made:
        yield made


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def two(request: pytest.FixtureRequest, tmp_path: Path, prefix: str) -> Iterator[tuple[Server, Server]]:
    """Two API processes on one log."""
    with ExitStack() as stack:
        if request.param == "embedded":
            first = stack.enter_context(server(tmp_path / "data"))
            second = stack.enter_context(server(tmp_path / "data", "api"))
        else:
            log = {"broker": request.getfixturevalue("kafka").url, "kafka_prefix": prefix}
            first = stack.enter_context(server(tmp_path / "a", "api", partitions=1, **log))
            second = stack.enter_context(server(tmp_path / "b", "api", **log))
        yield first, second


def cli(at: Server, *arguments: str) -> Any:
    done = at.cli(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return msgspec.json.decode(done.stdout)


@pytest.mark.slow
async def test_every_process_goes_by_a_change_within_a_second(
    two: tuple[Server, Server], session: aiohttp.ClientSession
) -> None:
    first = two[0]
    admin = cli(first, "keys", "create", "--scopes", "admin", "--all-orgs")["key"]
    made = cli(first, "keys", "create", "--project", "web", "--org", "acme")

    async def status(at: Server, key: str, *events: dict[str, Any]) -> int:
        return (await post(session, at.http, key, list(events or (make_event(),))))[0]

    for each in two:
        await soon(partial(status, each, made["key"]), 202)

    # what the command line changes
    rotated = cli(first, "keys", "rotate", made["prefix"], "--overlap", "1h")
    for each in two:
        await soon(partial(status, each, rotated["key"]), 202)
        assert await status(each, made["key"]) == 202
    assert cli(first, "keys", "set", rotated["id"], "--handling", "strict")["handling"] == "strict"
    odd = [make_event(), make_event(model=None)]
    for each in two:
        await soon(partial(status, each, rotated["key"], *odd), 400)
        assert (await post(session, each.http, made["key"], odd))[1]["accepted"] == 1
    assert cli(first, "keys", "set", rotated["id"], "--handling", "none")["handling"] is None
    cli(first, "keys", "revoke", made["id"])
    for each in two:
        invalid = {"error": "Invalid API key", "reason": "unauthenticated"}
        await soon(partial(post, session, each.http, made["key"], [make_event()]), (401, invalid))
        assert await status(each, rotated["key"]) == 202

    # what one process is asked for, it does at once, and the other within a second
    url = f"http://{two[1].http}/v1/admin/keys/{rotated['id']}"
    async with session.patch(url, headers={"x-api-key": admin}, json={"handling": "lenient"}) as response:
        assert response.status == 200
    assert (await post(session, two[1].http, rotated["key"], odd))[1] == {"accepted": 2}
    await soon(partial(post, session, two[0].http, rotated["key"], odd), (202, {"accepted": 2}))
    url = f"http://{two[1].http}/v1/admin/keys/{rotated['id']}/revoke"
    async with session.post(url, headers={"x-api-key": admin}) as response:
        assert response.status == 200
    assert await status(two[1], rotated["key"]) == 401
    await soon(partial(status, two[0], rotated["key"]), 401)


@pytest.mark.slow
async def test_a_process_that_stood_still_does_not_trust_what_it_knew(
    two: tuple[Server, Server], session: aiohttp.ClientSession
) -> None:
    first, other = two
    made = cli(first, "keys", "create")

    async def status() -> int:
        return (await post(session, other.http, made["key"], [make_event()]))[0]

    await soon(status, 202)
    other.signal("api", signal.SIGSTOP)
    waiting = [asyncio.create_task(post(session, other.http, made["key"], [make_event()])) for _ in range(20)]
    await asyncio.sleep(0.2)  # they are in its socket
    cli(first, "keys", "revoke", made["id"])
    await asyncio.sleep(WITHIN)
    other.signal("api", signal.SIGCONT)
    statuses = {status for status, _ in await asyncio.gather(*waiting)}
    assert statuses <= {401, 503}
    async with asyncio.timeout(PROCESS_PATIENCE):
        while (await post(session, other.http, KEY, [make_event()]))[0] != 202:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


# --- what lies around ------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_nothing_of_a_key_is_left_anywhere_and_files_are_their_owners(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    wrong = "lqt_" + "6" * 64
    with server(tmp_path / "data", log_level="debug") as started:
        made = cli(started, "keys", "create")
        async with asyncio.timeout(PROCESS_PATIENCE):
            while (await post(session, started.http, made["key"], [make_event()]))[0] != 202:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert (await post(session, started.http, wrong, [make_event()]))[0] == 401
        listed = started.cli("keys", "list", "--json")
        logged = started.log()
        files = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
        assert len(files) > 2
        for secret in (made["key"], KEY, wrong):
            assert secret not in listed.stdout + logged
            assert not any(secret.encode() in path.read_bytes() for path in files)
        for path in [tmp_path / "data", *(tmp_path / "data").rglob("*")]:
            assert path.stat().st_mode & 0o077 == 0, path


def test_a_public_address_without_tls_is_no_start(tmp_path: Path) -> None:
    for role in ("serve", "api"):
        done = run_cli(tmp_path / "data", role, "--http-bind", "0.0.0.0:0", "--grpc-bind", "127.0.0.1:0")
        assert done.returncode == 2
        assert "SPENDSTREAM_INSECURE=true (--insecure)" in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()


# --- alerts ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_server_tells_of_a_quota_that_is_used(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    async with receiver() as to:
        url = f"http://127.0.0.1:{to.port}/hook"
        alerts = {"alert_webhook": url, "alert_secret": SECRET, "alert_allow_private": "true"}
        with server(tmp_path / "data", start=False, **alerts) as started:
            await asyncio.to_thread(started.start)
            cli(started, "orgs", "set", "default", "--monthly-quota", "10")
            await asyncio.sleep(WITHIN)
            events = [make_event(event_id=str(uuid.uuid4())) for _ in range(9)]
            async with asyncio.timeout(PROCESS_PATIENCE):
                while (await post(session, started.http, KEY, events))[0] != 202:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            async with asyncio.timeout(PROCESS_PATIENCE):
                while not to.messages:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert to.messages[0].json["data"] | {"resetsAt": "", "period": ""} == {
                "organization": "default",
                "period": "",
                "threshold": 80,
                "limit": 10,
                "used": 9,
                "resetsAt": "",
            }
            await asyncio.sleep(3)
            await asyncio.to_thread(started.stop)
            await asyncio.to_thread(started.start)
            await asyncio.sleep(4)
            assert len(to.messages) == 1


# --- the quota -------------------------------------------------------------------------------------------------------

QUOTA = 10_000
SENDERS = 12
"""Of each door."""


@dataclass
class Supply:
    """Events without an end, one in ten a copy of one that was sent before, be it taken or refused."""

    seed: int
    sent: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def take(self, size: int) -> list[dict[str, Any]]:
        batch = []
        for _ in range(size):
            if self.sent and self._random.random() < 0.1:
                batch.append(self._random.choice(self.sent))
            else:
                bits = self._random.getrandbits(128)
                self.sent.append(make_event(event_id=str(uuid.UUID(int=bits, version=4))))
                batch.append(self.sent[-1])
        return batch


@pytest.mark.slow
async def test_senders_that_go_on_with_batches_of_one_get_exactly_the_quota(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    seed = random.SystemRandom().randrange(10**6)
    with server(tmp_path / "data") as started:
        cli(started, "orgs", "set", "default", "--monthly-quota", str(QUOTA))
        async with reader(started) as tables, asyncio.timeout(PROCESS_PATIENCE):
            while (await tables.get("/v1/quota"))["limit"] != QUOTA:  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.02)
        supply = Supply(seed)
        full = asyncio.Event()
        channel = grpc.aio.insecure_channel(started.grpc)
        stub: Any = ingest_pb2_grpc.IngestServiceStub(channel)

        async def by_http(events: list[dict[str, Any]]) -> bool:
            status, body = await post(session, started.http, KEY, events)
            if status == 429 and body["used"] == QUOTA:
                full.set()
            assert status in {202, 429, 503}, body
            return status == 202

        async def by_grpc(events: list[dict[str, Any]]) -> bool:
            request = pb.IngestRequest(events=map(to_proto, events))
            try:
                await stub.Ingest(request, metadata=(("x-api-key", KEY),))
            except grpc.aio.AioRpcError as error:
                if error.code() not in {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE}:
                    raise
                return False
            return True

        async def send(door: Any) -> None:
            size = 100
            while not full.is_set():
                if not await door(supply.take(size)) and size > 1:
                    size = 1

        deadline = time.monotonic() + 200
        senders = [asyncio.create_task(send(door)) for door in (by_http, by_grpc) for _ in range(SENDERS)]
        async with asyncio.timeout_at(deadline - time.monotonic() + asyncio.get_running_loop().time()):
            await asyncio.gather(*senders)
        await channel.close()
        async with reader(started) as tables:  # which may be behind what was acknowledged
            quota = await tables.caught_up(QUOTA)
        assert (quota["used"], quota["remaining"]) == (QUOTA, 0), f"seed {seed}: {quota}"
        assert quota["duplicates"] > 0, f"seed {seed}"
        async with session.get(f"http://{started.http}/v1/users", headers={"x-api-key": KEY}) as response:
            total = msgspec.json.decode(await response.read())["total"]
        assert total["requests"] == QUOTA, f"seed {seed}"
        verified = started.cli("verify", "--json")
        assert verified.returncode == 0, f"seed {seed}: {verified.stdout} {verified.stderr}"
