"""Up to which arrival everything of all hosts is in the log, by what API processes state."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct, json

from processor.core.clock import SECOND
from processor.leases.lease_messages import Statement, decode_statement, encode
from processor.leases.stated_arrivals import SILENT, STATED, UNSAID, StatedArrivals
from processor.log.address import LogAddress
from processor.log.errors import LogBroken, LogUnavailable
from processor.log.records import Record, TopicPartition
from processor.log.under_way import ArrivalsUnderWay
from server.limits.lease_client import LeaseHoldings, LeaseStatements
from tests.contract.fakes import NOW


@dataclass
class World:
    """The topic of statements, and a clock of ours; its tail reads everything at each poll."""

    seconds: float = 100.0
    read_at: float = 100.0
    records: list[Record] = field(default_factory=list)
    breaks: bool = False
    opened: int = 0

    @property
    def at(self) -> int:
        return NOW + round(self.seconds * SECOND)

    def pass_seconds(self, seconds: float) -> None:
        self.seconds += seconds
        self.read_at = self.seconds

    def state(self, name: str, arrived: int, *, leaving: bool = False) -> None:
        self._put(name, encode(Statement(1, 0, 0, [], leaving, arrived)))

    def _put(self, name: str, value: bytes | None) -> None:
        self.records.append(Record(len(self.records), self.at, name.encode(), value))

    def state_as_before(self, name: str) -> None:
        """As an earlier release does, which knows nothing of arrivals."""
        self._put(name, b'{"number":1,"directory":0,"lease":0,"needs":[],"leaving":false}')

    def bury(self, name: str) -> None:
        self._put(name, None)

    def follow(self) -> Any:
        self.opened += 1
        return _Tail(self)

    def stated(self) -> StatedArrivals:
        return StatedArrivals(self.follow, lambda: self.at, lambda: self.seconds)


@dataclass
class _Tail:
    world: World
    position: int = 0

    def poll(self) -> Iterator[tuple[TopicPartition, Sequence[Record]]]:
        if self.world.breaks:
            raise LogBroken("the topic has lost its end")
        records = self.world.records[self.position :]
        self.position += len(records)
        if records:
            yield STATED, records

    def known_at(self, tp: TopicPartition) -> float:
        assert tp == STATED
        self.world.seconds += 0.01  # a poll takes time
        return self.world.read_at

    def close(self) -> None:
        pass


def test_the_least_of_what_the_processes_state_bounds_all() -> None:
    world = World()
    stated = world.stated()
    world.state("a", world.at - 5)
    world.state("b", world.at - 3_000_000)
    assert stated.before() == world.records[1].at - 3_000_001
    world.state("b", world.at)
    assert stated.before() == world.records[0].at - 6
    world.state("a", 1, leaving=True)
    world.pass_seconds(1)
    assert stated.before() == world.records[2].at - 1
    world.bury("b")
    world.pass_seconds(3)
    assert world.at - 20_000 <= stated.before() <= world.at - 10_000, "nobody stamps anything; a poll takes 10 ms"


def test_a_process_that_is_silent_holds_it_for_as_long_as_something_of_it_may_come() -> None:
    world = World()
    stated = world.stated()
    world.state("a", world.at)
    first = world.at
    for _ in range(3):
        world.pass_seconds(SILENT / 4)
        assert stated.before() == first - 1
    again = world.stated()  # that begins later sees the same
    assert again.before() == first - 1
    world.pass_seconds(SILENT / 2)
    assert min(stated.before(), again.before()) > world.at - SECOND


def test_a_process_counts_whose_clock_is_wrong() -> None:
    """Its statement came after all that had been read before, so it is no older, whatever its time says."""
    world = World()
    stated = world.stated()
    stated.before()
    world.seconds -= SILENT + 5
    world.state("a", world.at)
    arrived = world.at
    world.seconds += SILENT + 5
    for _ in range(3):
        world.pass_seconds(SILENT / 4)
        assert stated.before() == arrived - 1
    world.pass_seconds(SILENT / 2)
    assert world.at - SECOND < stated.before() < world.at


def test_what_was_not_read_may_be_of_a_new_process() -> None:
    world = World()
    stated = world.stated()
    world.state("a", world.at)
    world.seconds += 4.0
    world.state("a", world.at)
    assert world.at - 4 * SECOND - 100_000 < stated.before() <= world.at - 4 * SECOND
    world.read_at = float("-inf")
    assert world.stated().before() == 0


def test_a_process_of_an_earlier_release_says_nothing_of_arrivals() -> None:
    world = World()
    world.state_as_before("old")
    assert decode_statement(world.records[0].value or b"").arrived == 0
    assert world.stated().before() == world.at - UNSAID


def test_a_process_of_an_earlier_release_reads_what_is_stated_now() -> None:
    class Earlier(Struct, frozen=True):
        number: int
        directory: int
        lease: int
        needs: list[Any]
        leaving: bool = False

    said = json.decode(encode(Statement(7, 8, 9, [], True, NOW)), type=Earlier)
    assert said == Earlier(7, 8, 9, [], True)


def test_a_topic_that_has_lost_its_end_is_read_again() -> None:
    world = World()
    stated = world.stated()
    world.state("a", world.at - 7)
    before = stated.before()
    world.breaks = True
    with pytest.raises(LogUnavailable):
        stated.before()
    world.breaks = False
    assert (stated.before(), world.opened) == (before, 2)


async def test_a_statement_says_what_is_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at, said = NOW, list[int]()
    stating = LeaseStatements(LogAddress(tmp_path), LeaseHoldings(), lambda: at)
    monkeypatch.setattr(stating, "_append", lambda value: said.append(decode_statement(value).arrived))
    await stating.state()  # before there is anything that stamps
    stating.under_way = under_way = ArrivalsUnderWay(lambda: at)
    with under_way.stamped() as first:
        at += 5 * SECOND
        await stating.state()
        held = under_way.hold(first + SECOND)
    at += SECOND
    await stating.state()
    under_way.release(held)
    await stating.state()
    assert said == [NOW, NOW, NOW + SECOND, NOW + 6 * SECOND]
