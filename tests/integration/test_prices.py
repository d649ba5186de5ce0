"""Prices on a real server: over both APIs, in every read, through exports, replays and newer lists."""

import asyncio
import hashlib
import json
import re
import time
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import grpc
import pytest

from protos.spendstream.v1 import ingest_pb2, ingest_pb2_grpc
from server.prices.builtin import builtin_list
from tests.support import clients
from tests.support.clients import Reader
from tests.support.events import ABSENT, make_event, to_proto
from tests.support.patience import PROCESS_PATIENCE
from tests.support.server import Server, run_cli, server, wait_until

BUILTIN: Final = builtin_list().name
RANGE: Final = "start=2026-04-01&end=2026-05-01"
OWN: Final = b'[[price]]\nmodel = "mine-*"\ninput = 1\noutput = 2\n'
NEWER: Final = OWN.replace(b"1", b"10") + b'[[price]]\nmodel = "gpt-4o"\ninput = 7\noutput = 7\ncached = 7\n'

Found = dict[str, tuple[Decimal | int | None, str | None]]
"""Event -> cost and where that is from."""


def name_of(data: bytes) -> str:
    return f"list:own@{hashlib.sha256(data).hexdigest()[:12]}"


def a_call(model: str, **changes: Any) -> dict[str, Any]:
    usual = {"model": model, "user_id": model, "input_tokens": 1_000, "output_tokens": 200, "cost_usd": ABSENT}
    return make_event(**usual | changes)


CASES: Final[list[tuple[dict[str, Any], str | None, str | None]]] = [
    (a_call("gpt-4o", cached_tokens=400), "0.004", BUILTIN),
    (a_call("gpt-4o", cost_usd=Decimal("0.5")), "0.5", "client"),
    (a_call("gpt-4o", cost_usd=0), "0", "client"),
    (a_call("gpt-4o", output_tokens=ABSENT), None, None),
    (a_call("gpt-4o", kind="span", name="step"), None, None),
    (a_call("claude-sonnet-4-5", provider="anthropic", cache_write_tokens=1_000), "0.00675", BUILTIN),
    (a_call("llama-3.3-70b-versatile", provider="groq"), "0.000748", BUILTIN),
    (a_call("llama-3.3-70b-versatile", provider="custom"), None, None),
    (a_call("mine-1", provider="custom"), "0.0014", name_of(OWN)),
    (a_call("nobody-knows"), None, None),
    (a_call("text-embedding-3-small", operation="embed", output_tokens=0), "0.00002", BUILTIN),
]
EXPECTED: Final[Found] = {
    event["event_id"]: (None if cost is None else Decimal(cost), source) for event, cost, source in CASES
}
EVENTS: Final = [event for event, _, _ in CASES]
CALLS: Final = [event for event in EVENTS if event.get("kind") != "span"]


@asynccontextmanager
async def reader(started: Server) -> AsyncIterator[Reader]:
    async with clients.reader(started) as opened:
        opened.number = Decimal
        yield opened


async def send(tables: Reader, events: Sequence[dict[str, Any]]) -> str:
    answer = await tables.ingest(events, Prefer="handling=lenient")
    assert (answer.status, answer.json) == (202, {"accepted": len(events)})
    return answer.headers["x-ingest-position"]


async def send_grpc(started: Server, events: Sequence[dict[str, Any]]) -> str:
    async with grpc.aio.insecure_channel(started.grpc) as channel:
        stub: Any = ingest_pb2_grpc.IngestServiceStub(channel)
        metadata = [("x-api-key", started.key), ("prefer", "handling=lenient")]
        answer = await stub.Ingest(ingest_pb2.IngestRequest(events=map(to_proto, events)), metadata=metadata)
        assert (answer.accepted, list(answer.rejected)) == (len(events), [])
        position: str = answer.position
        return position


async def stored(tables: Reader, position: str = "") -> Found:
    """What the event store says of each event."""
    after = f"&after={position}" if position else ""
    deadline = time.monotonic() + PROCESS_PATIENCE
    while True:  # it may only be starting
        answer = await tables.request("GET", f"/v1/events?kind=all&limit=200&{RANGE}{after}")
        if answer.status not in {503, 504} or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.2)
    assert answer.status == 200, answer.json
    return {each["event_id"]: (each["cost_usd"], each.get("cost_source")) for each in answer.json["events"]}


async def check_sums(tables: Reader, expected: Found, events: Sequence[dict[str, Any]], position: str) -> None:
    """Users and metrics say the same as the events, to the last digit."""
    users = (await tables.get(f"/v1/users?after={position}"))["users"]
    groups = (
        await tables.get(f"/v1/metrics?{RANGE}&group_by=model&measures=requests&measures=cost_usd&measures=unpriced")
    )["groups"]
    for model in {event["model"] for event in events}:
        costs = [expected[event["event_id"]][0] for event in events if event["model"] == model]
        wanted = {
            "requests": len(costs),
            "cost_usd": sum(cost for cost in costs if cost is not None),
            "unpriced": costs.count(None),
        }
        (user,) = [user for user in users if user["user_id"] == model]
        assert {name: user[name] for name in wanted} == wanted
        (group,) = [group["values"] for group in groups if group["key"] == {"model": model}]
        assert group == wanted


def check_audit(started: Server) -> None:
    """What was sent against the lists, by which each of the two calls with a cost is $0.0045; and what is unpriced."""
    asked = ("prices", "audit", "--start", "2026-04-01", "--end", "2026-05-01", "--key", started.key)
    done = started.cli(*asked, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout, parse_float=Decimal)
    models = {(each["provider"], each["model"]): each for each in answer["models"]}
    openai = models["openai", "gpt-4o"]
    assert (openai["sent"], openai["sent_usd"]) == (2, Decimal("0.5"))
    assert (openai["comparable"], openai["comparable_usd"]) == (2, Decimal("0.5"))
    assert (openai["by_list_usd"], openai["over_usd"]) == (Decimal("0.009"), Decimal("0.491"))
    assert (openai["listed"], openai["listed_usd"]) == (2, Decimal("0.0124"))
    assert (openai["unpriced"], openai["unpriced_tokens"]) == (1, 1_000)
    assert models["groq", "llama-3.3-70b-versatile"]["listed"] == 1
    assert models["custom", "llama-3.3-70b-versatile"]["unpriced_tokens"] == 1_200
    assert answer["total"]["unpriced"] == sum(each["unpriced"] for each in models.values()) == 3
    shown = started.cli(*asked)
    assert f"by {BUILTIN.removeprefix('list:')}, made on" in shown.stderr
    assert "total: " in shown.stderr


def scraped(started: Server) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{started.http}/metrics") as answer:
        text = answer.read().decode()
    found = re.findall(r'^spendstream_events_without_cost_total\{price="(\w+)"\} (\S+)$', text, re.MULTILINE)
    return {price: float(value) for price, value in found}


@pytest.mark.parametrize("api", ["http", "grpc"])
async def test_prices_have_a_past(api: str, tmp_path: Path) -> None:
    """What came without a cost has one by the list of its day, over both APIs; a newer list, a restart, a replay from
    the first event and a second copy change none."""
    own = tmp_path / "own.toml"
    own.write_bytes(OWN)
    settings: dict[str, Any] = {"event_store": "on", "partitions": 2, "prices": own}
    with server(tmp_path / "data", **settings) as started:
        async with reader(started) as tables:
            position = await send(tables, EVENTS) if api == "http" else await send_grpc(started, EVENTS)
            assert await stored(tables, position) == EXPECTED
            await check_sums(tables, EXPECTED, CALLS, position)
            listed = sum(source is not None and source != "client" for _, source in EXPECTED.values())
            assert scraped(started) == {"list": listed, "none": len(CALLS) - listed - 2}
        started.stop()

        own.write_bytes(NEWER)
        rebuilt = run_cli(tmp_path / "data", "rebuild", "--json", event_store="on")
        assert rebuilt.returncode == 0, rebuilt.stderr
        started.start()
        async with reader(started) as tables:
            position = await send(tables, EVENTS)
            quota = await tables.caught_up(len(EVENTS), len(EVENTS))
            assert (quota["duplicates"], quota["conflicts"]) == (len(EVENTS), 0)
            assert await stored(tables, position) == EXPECTED
            later = [a_call("mine-1", provider="custom", user_id="later"), a_call("gpt-4o", user_id="later")]
            position = await send(tables, later)
            found = await stored(tables, position)
            assert {name: found[name] for name in EXPECTED} == EXPECTED
            assert [found[event["event_id"]] for event in later] == [
                (Decimal("0.0104"), name_of(NEWER)),
                (Decimal("0.0084"), name_of(NEWER)),
            ]
        assert clients.verify(started) == []
        check_audit(started)
        exported = started.cli("export", "--output", str(tmp_path / "all.ndjson"))
        assert exported.returncode == 0, exported.stderr

    # Elsewhere, without any list: the costs are those that were.
    imported = run_cli(tmp_path / "copy", "import", str(tmp_path / "all.ndjson"))
    assert imported.returncode == 0, imported.stderr
    with server(tmp_path / "copy", event_store="on", prices="off") as copy:
        async with reader(copy) as tables:
            await tables.caught_up(len(EVENTS) + 2)
            again: Found = {}
            while len(again) < len(found):
                again = await stored(tables)
            assert again == found
            position = await send(tables, [a_call("gpt-4o", user_id="off")])
            assert (await tables.get(f"/v1/users/off?after={position}"))["unpriced"] == 1


async def test_a_missing_cost_is_rejected_where_handling_says_so(tmp_path: Path) -> None:
    with server(tmp_path / "data") as started:
        async with reader(started) as tables:
            for handling, status in (("partial", 202), ("strict", 400)):
                sent = [make_event(), a_call("gpt-4o")]
                answer = await tables.ingest(sent, Prefer=f"handling={handling}")
                assert answer.status == status
                assert [(each["field"], each["code"]) for each in answer.json["rejected"]] == [("cost_usd", "missing")]


async def test_all_api_processes_have_the_prices_of_the_start(tmp_path: Path) -> None:
    """Also one that starts later, when the file has changed; and a file that cannot be used stops the start."""
    own = tmp_path / "own.toml"
    own.write_bytes(OWN)
    with server(tmp_path / "data", api_processes=2, prices=own, event_store="on") as started:
        own.write_bytes(b"not toml")
        before = len(started.entries("api.ready"))
        started.kill("api-0")
        wait_until(lambda: len(started.entries("api.ready")) > before)
        sent = [a_call("mine-1", provider="custom") for _ in range(12)]
        position = ""
        for event in sent:
            async with reader(started) as tables:  # a connection each, which any of the two may get
                answer = await tables.ingest([event], patience=PROCESS_PATIENCE, Prefer="handling=lenient")
                assert answer.status == 202
                position = answer.headers["x-ingest-position"]
        async with reader(started) as tables:
            await tables.caught_up(len(sent))
            found = await stored(tables, position)
            assert set(found.values()) == {(Decimal("0.0014"), name_of(OWN))}
        assert len(found) == len(sent)
    done = run_cli(tmp_path / "data", "serve", prices=own)
    assert done.returncode == 2
    assert "SPENDSTREAM_PRICES: not TOML" in done.stderr
    kept = [path.read_bytes() for path in (tmp_path / "data" / "prices").rglob("*.toml")]
    assert kept == [OWN]
