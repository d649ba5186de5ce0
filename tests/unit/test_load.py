import asyncio
import time
from typing import Any

import msgspec
import pytest

from server.cli.load_senders import Again, Failed, LoadResult, RequestResult, run
from server.cli.load_traffic import ENVIRONMENT, Generator
from tests.support.events import to_proto
from tests.support.tables import NOON


def test_both_wires_send_the_same_valid_events() -> None:
    lines = Generator(50, seed=7).json(300, NOON).splitlines()
    messages = Generator(50, seed=7).proto(300, NOON).events
    assert len(lines) == len(messages) == 300
    for line, message in zip(lines, messages, strict=True):
        event = msgspec.json.decode(line)
        event["cost_usd"] = line.partition(b'"cost_usd":')[2].partition(b",")[0].decode()
        assert to_proto(event) == message
    users = {msgspec.json.decode(line)["user_id"] for line in lines}
    assert 10 < len(users) <= 50
    assert all(msgspec.json.decode(line)["environment"] == ENVIRONMENT for line in lines)
    assert len({msgspec.json.decode(line)["event_id"] for line in lines}) == 300


class FakeSender:
    """A server that answers as it is told."""

    def __init__(self, *refusals: Exception) -> None:
        self.sent: list[int] = []
        self.under_way = 0
        self.most = 0
        self._refusals = list(refusals)

    def make(self, events: int, now: int) -> int:
        return events

    async def send(self, request: Any) -> RequestResult:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0.001)
        self.under_way -= 1
        if self._refusals:
            raise self._refusals.pop()
        self.sent.append(request)
        return RequestResult(request - 1, 1) if request == 7 else RequestResult(request, 0)


async def go(sender: FakeSender, events: int, rate: float | None = None) -> tuple[LoadResult, list[tuple[int, int]]]:
    shown: list[tuple[int, int]] = []
    outcome = await run(
        sender,
        events,
        batch=10,
        connections=3,
        rate=rate,
        clock=lambda: NOON,
        show=lambda done, total: shown.append((done, total)),
    )
    return outcome, shown


async def test_all_of_it_is_sent_once_by_so_many_connections() -> None:
    sender = FakeSender()
    outcome, shown = await go(sender, 97)
    assert sorted(sender.sent) == [7, *[10] * 9]
    assert (outcome.accepted, outcome.rejected, outcome.lost) == (96, 1, 0)
    assert sender.most == 3
    assert shown[-1] == (97, 97)
    assert len(outcome.latencies) == 10
    assert outcome.rate == pytest.approx(96 / outcome.seconds)
    assert 0 < outcome.percentiles()["p50"] <= outcome.percentiles()["max"]


async def test_what_is_refused_for_now_is_sent_again() -> None:
    sender = FakeSender(Again("503", 0.01), Again("429", 0.01), Again("503", 0.0))
    outcome, _ = await go(sender, 40)
    assert (outcome.accepted, dict(outcome.again)) == (40, {"503": 2, "429": 1})


async def test_what_is_refused_for_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.cli.load_senders.TRIES", 2)
    outcome, shown = await go(FakeSender(*[Again("503", 0.0)] * 100), 30)
    assert (outcome.accepted, outcome.lost, outcome.again["503"]) == (0, 30, 6)
    assert outcome.percentiles() == {"p50": 0.0, "p90": 0.0, "p99": 0.0, "max": 0.0}
    assert shown[-1] == (30, 30)


async def test_what_will_not_be_taken_ends_the_run() -> None:
    with pytest.RaisesGroup(Failed):
        await go(FakeSender(Failed("401")), 30)


async def test_a_rate_is_kept_and_lateness_counts() -> None:
    began = time.perf_counter()
    outcome, _ = await go(FakeSender(), 100, rate=500)
    assert time.perf_counter() - began >= 90 / 500
    assert outcome.accepted == 100
    behind, _ = await go(FakeSender(), 300, rate=10**9)
    assert behind.percentiles()["max"] >= 10, "the last request waited for nine rounds of the others"
