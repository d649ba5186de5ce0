"""A monthly quota with several API processes on a real broker: never one event over it, and next to none left
unused."""

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from processor.leases import lease_messages
from tests.support import clients
from tests.support.clients import reader
from tests.support.crowd import SETTLED, Crowd
from tests.support.patience import PROCESS_PATIENCE
from tests.support.server import Server, server
from tools.kafka import Broker

LIMIT = 10_000


@contextmanager
def cluster(broker: Broker, prefix: str, directory: Path) -> Iterator[list[Server]]:
    """A worker and three API processes."""
    with ExitStack() as stack:
        settings: dict[str, Any] = {"broker": broker.url, "kafka_prefix": prefix, "partitions": 3}
        worker = stack.enter_context(server(directory / "worker", "worker", start=False, **settings))
        worker.start()
        apis = [
            stack.enter_context(server(directory / f"api-{number}", "api", start=False, **settings))
            for number in range(3)
        ]
        for api in apis:
            api.launch()
        for api in apis:
            api.wait_ready()
        yield apis


@pytest.mark.parametrize("killed", [False, True], ids=["all live", "one is killed"])
async def test_senders_at_three_front_ends_get_exactly_what_the_quota_has(
    killed: bool, kafka: Broker, prefix: str, tmp_path: Path
) -> None:
    with cluster(kafka, prefix, tmp_path) as apis:
        said = apis[0].cli("orgs", "set", "default", "--monthly-quota", str(LIMIT))
        assert said.returncode == 0, said.stderr
        for api in apis:
            async with reader(api) as tables:
                while (await tables.get("/v1/quota"))["limit"] != LIMIT:  # noqa: ASYNC110 - it is another process
                    await asyncio.sleep(0.05)
        crowd = Crowd(apis, LIMIT, seed=random.SystemRandom().randrange(10**6))
        if killed:
            victim = apis[2]
            died = float("inf")

            def is_over() -> bool:
                """Its lease has run out, was given to the others, and nothing more is taken."""
                nonlocal died
                if len(crowd.taken) > LIMIT * 0.4 and victim.is_running:
                    victim.kill_all()
                    died = time.monotonic()
                given_back = died + lease_messages.TTL + lease_messages.DELIVERY + SETTLED
                return time.monotonic() > given_back and crowd.has_used_up()

            await crowd.run(is_over, PROCESS_PATIENCE)
            assert not victim.is_running
        else:
            await crowd.run(crowd.has_used_up, PROCESS_PATIENCE)
        assert crowd.refused > 0 or len(crowd.taken) == LIMIT
        used = await crowd.settled(tmp_path / "all.ndjson")
        assert used <= LIMIT
        assert used >= 0.99 * LIMIT
        assert len(crowd.taken) <= used <= len(crowd.taken | crowd.doubtful)
        assert clients.verify(apis[0]) == []
