"""A monthly quota with several front ends on a real broker: never one event over it, and next to none left unused."""

import asyncio
import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import grpc
import pytest

from protos.spendstream.v1 import ingest_pb2 as pb
from protos.spendstream.v1 import ingest_pb2_grpc
from tests.support import clients
from tests.support.clients import reader
from tests.support.events import make_event, to_ndjson, to_proto
from tests.support.server import Server, server
from tools.kafka import Broker

LIMIT = 10_000
SENDERS = 64
OwnBroker = Callable[..., Broker]


class Crowd:
    """Senders that go on until nothing more is taken, each at a front end of its own choice every time."""

    def __init__(self, apis: list[Server], seed: int) -> None:
        self.apis = apis
        self.random = random.Random(seed)
        self.taken: set[str] = set()
        """Ids that were acknowledged."""
        self.doubtful: set[str] = set()
        """Ids whose request got no answer or 503: some of them may have been taken."""
        self.recent: list[str] = []
        self.over = asyncio.Event()
        self.refused = 0

    def ids(self, count: int) -> list[str]:
        """A tenth of them are copies of events that were sent before."""
        found = []
        for _ in range(count):
            if self.recent and self.random.random() < 0.1:
                found.append(self.random.choice(self.recent))
            else:
                found.append(str(uuid4()))
                self.recent.append(found[-1])
        del self.recent[:-2000]
        return list(dict.fromkeys(found))

    async def send(self, number: int) -> None:
        """Batches of up to 100; smaller ones when they are refused."""
        size = self.random.randint(20, 100)
        while not self.over.is_set():
            ids = self.ids(size)
            api = self.random.choice(self.apis)
            outcome = await (self.http(api, ids) if number % 2 else self.unary(api, ids))
            if outcome == "taken":
                self.taken.update(ids)
                size = min(100, 2 * size)
            elif outcome == "refused":
                self.refused += 1
                size = max(1, size // 2)
                await asyncio.sleep(0.2)
            else:
                self.doubtful.update(ids)
                await asyncio.sleep(0.2)

    async def http(self, api: Server, ids: list[str]) -> str:
        events = [make_event(event_id=each) for each in ids]
        headers = {"x-api-key": api.key, "content-type": "application/x-ndjson"}
        try:
            async with self.session.post(
                f"http://{api.http}/v1/ingest", data=to_ndjson(events), headers=headers
            ) as got:
                said = await got.json()
        except (aiohttp.ClientError, TimeoutError):
            return "doubtful"
        if got.status == 429:
            assert (said["error"], said["limit"]) == ("Monthly quota exceeded", LIMIT), said
            return "refused"
        assert got.status in (202, 503), said
        return "taken" if got.status == 202 else "doubtful"

    async def unary(self, api: Server, ids: list[str]) -> str:
        request = pb.IngestRequest(events=[to_proto(make_event(event_id=each)) for each in ids])
        stub: Any = ingest_pb2_grpc.IngestServiceStub(self.channels[api.grpc])
        try:
            answer = await stub.Ingest(request, metadata=[("x-api-key", api.key)], timeout=15)
        except grpc.aio.AioRpcError as error:
            codes = {grpc.StatusCode.RESOURCE_EXHAUSTED: "refused"}
            return codes.get(error.code(), "doubtful")
        assert answer.accepted == len(ids)
        return "taken"

    async def run(self, until: Callable[[], bool], patience: float) -> None:
        """Until `until` holds, or for `patience` seconds."""
        timeout = aiohttp.ClientTimeout(total=15)
        self.channels = {api.grpc: grpc.aio.insecure_channel(api.grpc, options=clients.CHANNEL) for api in self.apis}
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            aiohttp.ClientSession(timeout=timeout, connector=connector) as self.session,
            asyncio.TaskGroup() as group,
        ):
            for number in range(SENDERS):
                group.create_task(self.send(number))
            deadline = time.monotonic() + patience
            while not until() and time.monotonic() < deadline:  # noqa: ASYNC110 - of many processes
                await asyncio.sleep(0.1)
            self.over.set()
        for channel in self.channels.values():
            await channel.close()


@contextmanager
def cluster(broker: Broker, directory: Path) -> Iterator[list[Server]]:
    """A worker and three front ends."""
    with ExitStack() as stack:
        settings: dict[str, Any] = {"broker": broker.url, "partitions": 3}
        worker = stack.enter_context(server(directory / "worker", "worker", start=False, **settings))
        worker.start(60)
        apis = [
            stack.enter_context(server(directory / f"api-{number}", "api", start=False, **settings))
            for number in range(3)
        ]
        for api in apis:
            api.launch()
        for api in apis:
            api.wait_ready(60)
        yield apis


@pytest.mark.timeout(240)
@pytest.mark.parametrize("killed", [False, True], ids=["all live", "one is killed"])
async def test_senders_at_three_front_ends_get_exactly_what_the_quota_has(
    killed: bool, own_broker: OwnBroker, tmp_path: Path
) -> None:
    broker = own_broker().start()
    with cluster(broker, tmp_path) as apis:
        said = apis[0].cli("orgs", "set", "default", "--monthly-quota", str(LIMIT))
        assert said.returncode == 0, said.stderr
        for api in apis:
            async with reader(api) as tables:
                while (await tables.get("/v1/quota"))["limit"] != LIMIT:  # noqa: ASYNC110 - it is another process
                    await asyncio.sleep(0.05)
        crowd = Crowd(apis, seed=random.SystemRandom().randrange(10**6))
        if killed:
            victim = apis[2]

            def kill_half_way() -> bool:
                if len(crowd.taken) > LIMIT * 0.4 and victim.is_running:
                    victim.kill_all()
                return False

            await crowd.run(lambda: kill_half_way() or (not victim.is_running and len(crowd.taken) >= LIMIT), 90)
            assert not victim.is_running
        else:
            await crowd.run(lambda: len(crowd.taken) >= LIMIT, 30)
        assert crowd.refused > 0 or len(crowd.taken) == LIMIT
        async with reader(apis[0]) as tables:
            deadline = time.monotonic() + 30
            quota, before = await tables.get("/v1/quota"), None
            while quota["used"] != before and time.monotonic() < deadline:
                await asyncio.sleep(1)
                before, quota = quota["used"], await tables.get("/v1/quota")
        assert quota["used"] <= LIMIT
        assert quota["used"] >= 0.99 * LIMIT
        assert len(crowd.taken) <= quota["used"] <= len(crowd.taken | crowd.doubtful)
        exported = apis[0].cli("export", "--output", str(tmp_path / "all.ndjson"))
        assert exported.returncode == 0, exported.stderr
        with (tmp_path / "all.ndjson").open() as lines:
            in_log = {json.loads(line)["event_id"] for line in lines}
        assert len(in_log) == quota["used"]
        assert crowd.taken <= in_log
        assert clients.verify(apis[0]) == []
