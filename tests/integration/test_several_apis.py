"""`serve` with two API processes on one port: limits are exact over both, and both are killed."""

import asyncio
import json
import os
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support import clients
from tests.support.clients import Pace, Tally, reader
from tests.support.crowd import Crowd
from tests.support.events import make_event, to_ndjson
from tests.support.live import sse
from tests.support.patience import PROCESS_PATIENCE
from tests.support.receiver import SECRET, receiver
from tests.support.server import KEY, Part, Server, all_gone, is_alive, server, wait_until
from tests.support.traffic import make_traffic
from tools.kafka import Broker

LIMIT: Final = 10_000
OTHERS: Final = 40_000
APIS: Final[tuple[Part, ...]] = ("api-0", "api-1")


@asynccontextmanager
async def fresh(started: Server, key: str = KEY) -> AsyncIterator[aiohttp.ClientSession]:
    """A client with a new connection for each request: the kernel picks the process."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(
        f"http://{started.http}", connector=connector, headers={"x-api-key": key}
    ) as session:
        yield session


async def post(session: aiohttp.ClientSession, events: list[dict[str, Any]]) -> tuple[int, str]:
    """Status and position."""
    headers = {"Content-Type": "application/x-ndjson"}
    async with session.post("/v1/ingest", data=to_ndjson(events), headers=headers) as answer:
        await answer.read()
        return answer.status, answer.headers.get("x-ingest-position", "")


async def counted(started: Server, name: str) -> dict[str, float]:
    """What each API process says of a metric, over all other labels."""
    async with aiohttp.ClientSession() as session, session.get(f"http://{started.http}/metrics") as answer:
        text = await answer.text()
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name:
                api = sample.labels["api"]
                found[api] = found.get(api, 0) + sample.value
    return found


async def answered(started: Server) -> Counter[str]:
    """How many batches each API process has answered."""
    found = Counter[str]()
    for name in ("accepted", "refused"):
        found.update(await counted(started, f"spendstream_batches_{name}_total"))
    return found


def cli(started: Server, *arguments: str) -> Any:
    done = started.cli(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def until_limited(started: Server, limit: int) -> None:
    async with fresh(started) as session:
        known = 0
        while known < 20:  # each of the processes
            async with session.get("/v1/quota") as answer:
                if (await answer.json())["limit"] == limit:
                    known += 1
                else:
                    await asyncio.sleep(0.1)


def ready_apis(started: Server) -> int:
    return len(started.entries("api.ready"))


def is_back(started: Server, times: int) -> bool:
    return ready_apis(started) >= times


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests that leave it as it was, with keys and projects of their own."""
    with server(tmp_path_factory.mktemp("two") / "data", api_processes=2) as started:
        yield started


@pytest.mark.parametrize("killed", [False, True], ids=["both live", "one is killed"])
async def test_a_quota_is_exact_over_both(killed: bool, tmp_path: Path) -> None:
    with server(tmp_path / "data", api_processes=2) as started:
        cli(started, "orgs", "set", "default", "--monthly-quota", str(LIMIT))
        await until_limited(started, LIMIT)
        crowd = Crowd([started], LIMIT, seed=random.SystemRandom().randrange(10**6))

        def is_over() -> bool:
            if killed and len(crowd.taken) > LIMIT * 0.4 and not started.entries("child.ended"):
                os.kill(started.children()["api-1"], signal.SIGKILL)
                wait_until(lambda: started.entries("child.ended"))
            return crowd.used >= LIMIT and (not killed or ready_apis(started) == 3)

        await crowd.run(is_over, PROCESS_PATIENCE)
        async with reader(started) as tables:
            quota = await tables.caught_up(LIMIT)
        assert quota["used"] == LIMIT
        assert len(crowd.taken) <= LIMIT <= len(crowd.taken | crowd.doubtful)
        if not killed:
            assert len(crowd.taken) == LIMIT
        text = await counted(started, "spendstream_batches_accepted_total")
        assert sorted(text) == ["0", "1"]
        assert killed or all(text.values()), f"one process had it all: {text}"
        assert crowd.in_log(tmp_path / "all.ndjson") == LIMIT
        assert clients.verify(started) == []


async def test_a_rate_is_exact_over_both(running: Server) -> None:
    key = running.create_key("--rate-limit", "50")["key"]
    left = 60 - time.time() % 60
    if left < 10:
        await asyncio.sleep(left + 0.1)
    before = await answered(running)
    async with fresh(running, key) as session:
        answers = await asyncio.gather(*(post(session, [make_event()]) for _ in range(200)))
    assert Counter(status for status, _ in answers) == {202: 50, 429: 150}
    taken = await answered(running) - before  # one may be so late that the other has taken all of the minute
    assert sorted(taken) == ["0", "1"], f"one process had it all: {taken}"
    async with fresh(running, key) as session, session.post("/v1/ingest", data=b"") as answer:
        assert answer.status == 415


async def test_nothing_is_lost_when_a_process_is_killed_under_load(tmp_path: Path) -> None:
    traffic = make_traffic(24, 12_000)
    with server(tmp_path / "data", api_processes=2) as started:
        addresses = started.http, started.grpc
        pace = Pace(traffic.events, 3_000, 3_000)
        sending = asyncio.create_task(clients.send(started, traffic, Tally(), pace))
        for number in range(4):
            await asyncio.sleep(0.3)
            await asyncio.to_thread(started.kill, APIS[number % 2])
            await asyncio.to_thread(wait_until, partial(is_back, started, number + 3))
        pace.let_go()
        await sending
        assert len(started.entries("child.ended")) == 4
        async with reader(started) as tables:
            assert await tables.differences(traffic.truth, exact_duplicates=False) == []
        assert clients.verify(started) == []
        said = [(entry["http"], entry["grpc"]) for entry in started.entries("api.ready")]
        assert set(said) == {addresses}
        assert len([line for line in started.banner() if line.startswith("{")]) == 1


async def test_one_that_starts_beside_another_under_load_has_every_row(tmp_path: Path) -> None:
    """It reads so many rows of others back that dozens of flushes come meanwhile, each with users of its own."""
    traffic = make_traffic(25, 15_000)
    with server(tmp_path / "data", api_processes=2, flush_interval=0.01) as started:
        others = started.create_key("--project", "others", "--org", "others")["key"]
        arguments = ("--target", f"http://{started.http}", "--key", others, "--events", OTHERS, "--users", OTHERS)
        await asyncio.to_thread(cli, started, "loadtest", *map(str, arguments))
        pace = Pace(traffic.events, 2_000, 4_000)  # unary calls go without it: more than they are has to wait
        sending = asyncio.create_task(clients.send(started, traffic, Tally(), pace))
        for number, name in enumerate(APIS):
            await asyncio.sleep(0.5)
            await asyncio.to_thread(started.kill, name)
            await asyncio.to_thread(wait_until, partial(is_back, started, number + 3))
        assert not sending.done()
        pace.let_go()
        await sending
        for _ in range(12):  # each connection is given to either
            async with reader(started) as tables:
                assert await tables.differences(traffic.truth, exact_duplicates=False, details=0) == []


async def test_what_one_acknowledged_another_waits_for(running: Server) -> None:
    async with fresh(running) as session:

        async def write_and_read(number: int) -> None:
            status, position = await post(session, [make_event(user_id=f"own-{number}")])
            assert status == 202
            async with session.get(f"/v1/users/own-{number}", params={"after": position}) as answer:
                assert answer.status == 200
                assert (await answer.json())["requests"] == 1

        for start in range(0, 60, 20):
            await asyncio.gather(*(write_and_read(number) for number in range(start, start + 20)))
    assert all((await counted(running, "spendstream_batches_accepted_total")).values())


async def test_a_stream_goes_on_at_any_of_them(running: Server) -> None:
    key = running.create_key("--project", "streamed")["key"]

    async def told_until(token: str, wanted: str) -> tuple[str, list[str]]:
        """The id of the event that has the user, and all users that were told till then."""
        told: list[str] = []
        async with asyncio.timeout(PROCESS_PATIENCE), sse(running.http, key, token) as events:
            async for event in events:
                told += [row["user_id"] for row in event.rows]
                if wanted in told:
                    return event.id, told
        raise AssertionError("the stream ended")

    async with fresh(running, key) as session:
        assert (await post(session, [make_event(user_id="u0")]))[0] == 202
        token, users = await told_until("", "u0")
        assert users == ["u0"]
        for number in range(1, 4):
            wanted = f"u{number}"
            waiting = [asyncio.create_task(told_until(token, wanted)) for _ in range(8)]
            assert (await post(session, [make_event(user_id=wanted)]))[0] == 202
            told = await asyncio.gather(*waiting)
            for _, users in told:  # without a gap; what was told last may be told again, and once more at the next tick
                assert list(dict.fromkeys(users)) in ([wanted], [f"u{number - 1}", wanted])
            token = told[number % 8][0]


async def test_on_kafka_they_have_leases_and_one_rate(kafka: Broker, prefix: str, tmp_path: Path) -> None:
    with server(tmp_path / "data", start=False, api_processes=2, broker=kafka.url, kafka_prefix=prefix) as started:
        await asyncio.to_thread(started.start, 60)
        key = started.create_key("--rate-limit", "30")["key"]
        cli(started, "orgs", "set", "default", "--monthly-quota", "20")
        await until_limited(started, 20)
        left = 60 - time.time() % 60
        if left < 15:
            await asyncio.sleep(left + 0.1)
        async with fresh(started, key) as session:
            taken = 0
            for _ in range(10):
                answers = await asyncio.gather(*(post(session, [make_event()]) for _ in range(10)))
                taken += sum(status == 202 for status, _ in answers)
        assert taken <= 20
        async with fresh(started) as session, asyncio.timeout(PROCESS_PATIENCE):
            while taken < 20:
                status, _ = await post(session, [make_event()])
                taken += status == 202
        async with reader(started) as tables:
            assert (await tables.caught_up(20))["used"] == 20
        assert clients.verify(started) == []


async def test_a_revoked_key_is_refused_by_both_within_a_second(running: Server) -> None:
    made = running.create_key()
    async with fresh(running, made["key"]) as session:
        assert {(await post(session, [make_event()]))[0] for _ in range(16)} == {202}
        done = await asyncio.to_thread(running.cli, "keys", "revoke", made["id"])
        assert done.returncode == 0, done.stderr
        rounds = 1
        while 202 in {(await post(session, [make_event()]))[0] for _ in range(16)}:
            assert rounds < 20  # a second, where the machine has nothing else to do
            rounds += 1
            await asyncio.sleep(0.05)
        assert {(await post(session, [make_event()]))[0] for _ in range(16)} == {401}


async def test_alerts_and_budgets_are_told_under_one_id_each(tmp_path: Path) -> None:
    """Two processes may send the same message at the same moment; the receiver recognises it."""
    async with receiver() as to:
        alerts = {
            "alert_webhook": f"http://127.0.0.1:{to.port}/",
            "alert_secret": SECRET,
            "alert_allow_private": "true",
        }
        with server(tmp_path / "data", start=False, api_processes=2, **alerts) as started:
            await asyncio.to_thread(started.start)
            cli(started, "orgs", "set", "default", "--monthly-quota", "10")
            cli(started, "budgets", "set", "--usd", "0.01", "--window", "month")
            await until_limited(started, 10)
            async with fresh(started) as session, asyncio.timeout(PROCESS_PATIENCE):
                at = datetime.now(UTC).isoformat()
                while (await post(session, [make_event(timestamp=at) for _ in range(9)]))[0] != 202:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            async with asyncio.timeout(PROCESS_PATIENCE):  # 80 % of the quota, 80 and 100 % of the budget
                while len({message.id for message in to.messages}) < 3:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            await asyncio.sleep(3)
            told = Counter((message.id, message.body) for message in to.messages)
            assert len(told) == len({name for name, _ in told}) == 3, told
            assert max(told.values()) <= 2, "none is sent twice by one process"


async def test_metrics_are_those_of_all(tmp_path: Path) -> None:
    with server(tmp_path / "data", api_processes=2) as started:
        assert await counted(started, "spendstream_ready") == {"0": 1, "1": 1}
        os.kill(started.children()["api-0"], signal.SIGSTOP)
        try:
            async with fresh(started) as session:
                for _ in range(50):  # until the one that lives is asked
                    try:
                        async with session.get("/metrics", timeout=aiohttp.ClientTimeout(total=4)) as answer:
                            text = await answer.text()
                            break
                    except TimeoutError:
                        continue
        finally:
            os.kill(started.children()["api-0"], signal.SIGCONT)
        assert 'spendstream_api_answered{api="0"} 0.0' in text
        assert 'spendstream_api_answered{api="1"} 1.0' in text


async def test_all_of_them_end(tmp_path: Path) -> None:
    with server(tmp_path / "data", api_processes=2) as started:
        children = list(started.children().values())
        assert len(children) == 3
        assert all(map(is_alive, children))
        with socket.create_connection(tuple(started.http.split(":"))):  # type: ignore[arg-type] # a port as text
            code, _ = await asyncio.to_thread(started.stop)
            assert code == 0, started.log()
            assert not started.entries("child.killed")
        assert all_gone(children)
        await asyncio.to_thread(started.start)
        children = list(started.children().values())
        started.kill("supervisor")
        wait_until(lambda: all_gone(children))
        await asyncio.to_thread(started.start)
        async with fresh(started) as session:
            assert {(await post(session, [make_event()]))[0] for _ in range(8)} == {202}


async def test_a_port_that_is_taken_is_an_error(tmp_path: Path) -> None:
    with server(tmp_path / "one", api_processes=2) as started:
        host, port = started.http.split(":")
        with server(
            tmp_path / "two", start=False, api_processes=2, http_bind=f"{host}:{port}", grpc_bind="127.0.0.1:0"
        ) as second:
            second.launch()
            assert await asyncio.to_thread(second.process.wait, PROCESS_PATIENCE) == 2
            assert f"cannot listen on {started.http}" in second.log()
