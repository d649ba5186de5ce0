"""Senders that use a monthly quota up, over both wires and many connections, and know what of theirs was taken."""

import asyncio
import json
import random
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final
from uuid import uuid4

import aiohttp
import grpc

from tests.support import clients
from tests.support.events import make_event
from tests.support.server import Server

SENDERS: Final = 64
CHANNELS: Final = 16
"""gRPC connections to each server."""
SETTLED: Final = 4.0
"""Seconds in which what a lease left over reaches the others."""
AGAIN: Final = (0.4, 1.6)
"""Seconds after which a sender that was refused, or got no answer, sends again: from, doubled, to."""


class Crowd:
    """Senders that go on until nothing more is taken, each at an API process of its own choice every time."""

    def __init__(self, apis: list[Server], limit: int, seed: int, *, largest: int = 100, pause: float = 0.0) -> None:
        """`limit`: of the quota, which the refusals must name. `largest`: events of a batch. `pause`: seconds for which
        a sender waits after one that was taken; without it all of the quota may be used up within a tenth of a second.
        """
        self.apis = apis
        self.limit = limit
        self.largest = largest
        self.pause = pause
        self.random = random.Random(seed)
        self.taken: set[str] = set()
        """Ids that were acknowledged."""
        self.doubtful: set[str] = set()
        """Ids whose request got no answer or 503: some of them may have been taken."""
        self.lost: list[str] = []
        """Of each request that got no answer, why."""
        self.recent: list[str] = []
        self.over = asyncio.Event()
        self.refused = 0
        self.last_taken = 0.0
        self.last_single_refused = 0.0
        """When a batch of a single event was refused."""
        self.used = 0
        """What the first server's tables say of the month."""

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
        """Send batches until it is over; smaller ones when they are refused."""
        size = self.random.randint(self.largest // 5, self.largest)
        again, longest = AGAIN
        while not self.over.is_set():
            ids = self.ids(size)
            api = self.random.choice(self.apis)
            outcome = await (self.http(api, ids) if number % 2 else self.unary(api, ids, number % CHANNELS))
            if outcome == "taken":
                self.taken.update(ids)
                size = min(self.largest, 2 * size)
                self.last_taken = time.monotonic()
                again = AGAIN[0]
                await asyncio.sleep(self.pause)
                continue
            if outcome == "refused":
                self.refused += 1
                if len(ids) == 1:
                    self.last_single_refused = time.monotonic()
                size = max(1, size // 2)
            else:
                self.doubtful.update(ids)
            await asyncio.sleep(again)
            again = min(longest, 2 * again)

    async def http(self, api: Server, ids: list[str]) -> str:
        try:
            got = await clients.Reader(api, self.session).ingest([make_event(event_id=each) for each in ids])
        except (aiohttp.ClientError, TimeoutError) as error:
            self.lost.append(repr(error))
            return "doubtful"
        if got.status == 429:
            assert (got.json["error"], got.json["limit"]) == ("Monthly quota exceeded", self.limit), got
            return "refused"
        assert got.status in (202, 503), got
        return "taken" if got.status == 202 else "doubtful"

    async def unary(self, api: Server, ids: list[str], channel: int) -> str:
        events = [make_event(event_id=each) for each in ids]
        try:
            answer = await clients.unary(self.channels[api.grpc, channel], api.key, events)
        except grpc.aio.AioRpcError as error:
            codes = {grpc.StatusCode.RESOURCE_EXHAUSTED: "refused"}
            if error.code() not in {*codes, grpc.StatusCode.UNAVAILABLE}:
                self.lost.append(repr(error))
            return codes.get(error.code(), "doubtful")
        assert answer.accepted == len(ids)
        return "taken"

    def has_used_up(self) -> bool:
        """Whether no more will be taken: the tables say that the quota is used, or nearly, and not even a single event
        is taken any more.

        What was acknowledged does not say it: of the events without an answer some may have been taken.
        """
        still = time.monotonic() - self.last_taken
        if self.used >= self.limit:
            return still > 0.5
        return still > SETTLED and self.used >= 0.99 * self.limit and self.last_single_refused > self.last_taken + 1

    async def watch(self) -> None:
        """Keep `used` current while the senders send."""
        async with clients.reader(self.apis[0]) as tables:
            while not self.over.is_set():
                with suppress(aiohttp.ClientError, OSError, TimeoutError, clients.WrongAnswer):
                    self.used = (await tables.get("/v1/quota"))["used"]
                await asyncio.sleep(0.1)

    def in_log(self, path: Path) -> int:
        """How many events are in the log, all that were acknowledged among them; `path` is for an export. Blocks."""
        exported = self.apis[0].cli("export", "--output", str(path))
        assert exported.returncode == 0, exported.stderr
        with path.open() as lines:
            in_log = {json.loads(line)["event_id"] for line in lines}
        assert self.taken <= in_log
        return len(in_log)

    async def settled(self, path: Path) -> int:
        """How many events the quota says are used: those that are in the log, exactly. `path` is for an export."""
        there = await asyncio.to_thread(self.in_log, path)
        async with clients.reader(self.apis[0]) as tables:
            used: int = (await tables.caught_up(there))["used"]
        assert used == there
        return used

    async def run(self, until: Callable[[], bool], patience: float) -> None:
        """Until `until` holds, or for `patience` seconds."""
        timeout = aiohttp.ClientTimeout(total=15)
        self.channels = {
            (api.grpc, number): grpc.aio.insecure_channel(api.grpc, options=clients.CHANNEL)
            for api in self.apis
            for number in range(CHANNELS)
        }
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            aiohttp.ClientSession(timeout=timeout, connector=connector) as self.session,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(self.watch())
            for number in range(SENDERS):
                group.create_task(self.send(number))
            deadline = time.monotonic() + patience
            while not until() and time.monotonic() < deadline:  # noqa: ASYNC110 - of many processes
                await asyncio.sleep(0.1)
            self.over.set()
        for channel in self.channels.values():
            await channel.close()
