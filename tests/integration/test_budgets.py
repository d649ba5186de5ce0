"""Budgets of a running server: set, spent, reached and told, through a kill -9 in the middle."""

import asyncio
import json
import random
import uuid
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from processor.log.embedded.log import Log
from tests.chaos.cluster import cluster
from tests.support.clients import reader
from tests.support.events import make_event
from tests.support.live import Event, sse, watch
from tests.support.patience import PROCESS_PATIENCE
from tests.support.receiver import SECRET, receiver
from tests.support.server import KEY, Server, run_cli, server, wait_until
from tools.kafka import Broker

pytestmark = pytest.mark.slow


def cli(at: Server, *command: str) -> Any:
    done = at.cli(*command, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout, parse_float=Decimal)


async def spend(at: Server, user: str, *costs: str) -> None:
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    events = [
        make_event(event_id=str(uuid.uuid4()), timestamp=now, user_id=user, cost_usd=Decimal(cost)) for cost in costs
    ]
    async with reader(at) as tables:
        answer = await tables.ingest(events, KEY)
        assert answer.status == 202, answer.json


async def call(at: Server, method: str, key: str, path: str = "", **options: Any) -> Any:
    async with (
        aiohttp.ClientSession() as session,
        session.request(
            method, f"http://{at.http}/v1/budgets{path}", headers={"x-api-key": key}, **options
        ) as response,
    ):
        text = await response.text()
        assert response.status == 200, text
        return json.loads(text, parse_float=Decimal)


async def next_budget(events: Any) -> Event:
    async with asyncio.timeout(PROCESS_PATIENCE):
        async for event in events:
            if event.kind == "budget":
                found: Event = event
                return found
    raise AssertionError("the stream ended")


async def test_a_budget_is_told_once_on_every_way_through_a_crash(tmp_path: Path) -> None:
    async with receiver() as to:
        alerts = {
            "alert_webhook": f"http://127.0.0.1:{to.port}/",
            "alert_secret": SECRET,
            "alert_allow_private": "true",
        }
        with server(tmp_path / "data", start=False, **alerts) as started:
            await asyncio.to_thread(started.start)
            admin = started.create_key("--scopes", "admin,read")["key"]
            wanted = {"usd": "0.30", "window": "month", "user_id": "alice", "thresholds": [50, 100]}
            budget = await call(started, "PUT", admin, json=wanted)
            async with sse(started.http, KEY) as events, watch(started.grpc, KEY) as others:
                await spend(started, "bob", "5")
                await spend(started, "alice", "0.149999999999")
                async with asyncio.timeout(PROCESS_PATIENCE):
                    while True:
                        [state] = (await call(started, "GET", KEY))["budgets"]
                        if state["spent"] == Decimal("0.149999999999"):
                            break
                        await asyncio.sleep(0.05)
                await asyncio.sleep(0.5)
                [state] = (await call(started, "GET", KEY))["budgets"]
                assert (state["spent"], state["reached"]) == (Decimal("0.149999999999"), [])
                await spend(started, "alice", "0.000000000001")
                first, second = await next_budget(events), await next_budget(others)
                assert first.data["id"] == second.data["id"]
                assert (first.data["threshold"], first.data["spent"]) == (50, Decimal("0.15"))
            await spend(started, "alice", *["0.05"] * 3)
            await asyncio.to_thread(started.kill_all)
            await asyncio.to_thread(started.start)
            async with sse(started.http, KEY) as events:
                told = [(await next_budget(events)).data for _ in range(2)]
            assert [each["threshold"] for each in told] == [50, 100]
            assert told[0]["id"] == first.data["id"]
            [state] = (await call(started, "GET", KEY))["budgets"]
            assert (state["id"], state["spent"], state["remaining"]) == (budget["id"], Decimal("0.3"), 0)
            assert state["reached"] == told
            assert cli(started, "budgets", "list")["budgets"] == [state]
            tail = started.cli("tail", "--key", KEY, "--url", f"http://{started.http}", "--events", "3", "--json")
            lines = [json.loads(line, parse_float=Decimal) for line in tail.stdout.splitlines()]
            assert [line["budget"] for line in lines if line["event"] == "budget"] == told
            async with asyncio.timeout(PROCESS_PATIENCE):
                while len({message.id for message in to.messages}) < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            data = {message.id: message.json["data"] for message in to.messages}
            assert sorted(each["threshold"] for each in data.values()) == [50, 100]
            assert {each["id"] for each in data.values()} == {each["id"] for each in told}
            await call(started, "DELETE", admin, f"/{budget['id']}")
            assert await call(started, "GET", KEY) | {"asOf": ""} == {"budgets": [], "asOf": ""}


async def test_two_front_ends_on_kafka_tell_the_same(kafka: Broker, prefix: str, tmp_path: Path) -> None:
    async with cluster(tmp_path / "cluster", random.Random(1), workers=1, shared=kafka, prefix=prefix) as made:
        done = await asyncio.to_thread(
            made.cli, "budgets", "set", "--usd", "1", "--window", "month", "--thresholds", "50,100", "--json"
        )
        assert done.returncode == 0, done.stderr
        one, other = made.apis
        async with sse(one.http, KEY) as first, watch(other.grpc, KEY) as second:
            await spend(one, "alice", "0.3")
            await spend(other, "bob", "0.3")
            told = [(await next_budget(events)).data for events in (first, second)]
            assert told[0]["id"] == told[1]["id"]
            assert [each["threshold"] for each in told] == [50, 50]
            await spend(other, "bob", "0.4")
            told = [(await next_budget(events)).data for events in (first, second)]
            assert told[0]["id"] == told[1]["id"]
            assert [each["threshold"] for each in told] == [100, 100]
        async with asyncio.timeout(PROCESS_PATIENCE):  # what was written last is what all come to
            while True:
                [left], [right] = [(await call(api, "GET", KEY))["budgets"] for api in (one, other)]
                if left == right:
                    break
                await asyncio.sleep(0.1)
        assert (left["spent"], [each["threshold"] for each in left["reached"]]) == (1, [50, 100])
        made.held.update(made.everyone)
        assert await asyncio.to_thread(made.stop) == []


async def test_budgets_from_the_command_line(tmp_path: Path) -> None:
    with server(tmp_path / "data") as started:
        made = cli(started, "budgets", "set", "--usd", "10.50", "--window", "day")
        assert (made["usd"], made["thresholds"]) == (Decimal("10.5"), [80, 100])
        done = started.cli("budgets", "set", "--usd", "5", "--window", "month", "--model", "gpt-4o")
        assert "model gpt-4o, 5 USD a month, notified at 80 %, 100 %" in done.stdout
        shown = "".join(started.cli("budgets", "list").stdout.split())  # columns may be folded
        assert "gpt-4o" in shown
        assert made["id"][:12] in shown
        for arguments, said in (
            (("set", "--usd", "much", "--window", "day"), "--usd takes an amount"),
            (("set", "--usd", "0", "--window", "day"), "above 0"),
            (("set", "--usd", "1", "--window", "day", "--thresholds", "50,x"), "--thresholds takes whole"),
            (("delete", "bud_0"), "no such budget"),
        ):
            failed = started.cli("budgets", *arguments)
            assert failed.returncode != 0
            assert said in failed.stderr
            assert "Traceback" not in failed.stderr
        assert cli(started, "budgets", "delete", made["id"]) == made
        left: list[Any] = []
        async with asyncio.timeout(PROCESS_PATIENCE):  # the server follows the directory
            while len(left := (await call(started, "GET", KEY))["budgets"]) != 1:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert [budget["model"] for budget in left] == ["gpt-4o"]


def test_a_key_means_its_project_in_the_data_directory_too(tmp_path: Path) -> None:
    """Also one that is no key of an administrator, for which a server that runs makes no change."""

    def run(*command: str) -> Any:
        done = run_cli(tmp_path / "data", *command, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    Log(tmp_path / "data", partitions=1).close()
    key = run("keys", "create", "--project", "web")["key"]
    made = run("budgets", "set", "--usd", "5", "--window", "day", "--key", key)
    refused = run_cli(tmp_path / "data", "budgets", "set", "--usd", "5", "--window", "day", "--key", KEY)
    assert (refused.returncode, "--project" in refused.stderr) == (2, True)
    listed = [run("budgets", "list", *where)["budgets"] for where in (["--key", key], ["--project", "web"], [])]
    assert [[each["id"] for each in budgets] for budgets in listed] == [[made["id"]], [made["id"]], []]
    with server(tmp_path / "data", key=None) as started:
        more = cli(started, "budgets", "set", "--usd", "6", "--window", "month", "--key", key)

        def told() -> list[str]:
            return [each["id"] for each in cli(started, "budgets", "list", "--key", key)["budgets"]]

        wait_until(lambda: told() == [made["id"], more["id"]])  # the server reads on what was written beside it
        gone = cli(started, "budgets", "delete", made["id"], "--key", key)
        assert gone["id"] == made["id"]
