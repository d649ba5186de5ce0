"""The worker's group, without a broker: what must hold whatever librdkafka says when."""

import asyncio
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import TopicPartition as Assigned
from faust.types import TP

from processor.log.kafka.config import KafkaAccess
from processor.log.kafka.transport import EXIT_FENCED, Consumer
from processor.log.topics import EVENTS


class Client:
    """Has partition 1 of two; to seek in another is an erroneous state."""

    def __init__(self) -> None:
        self.sought: list[tuple[int, int]] = []
        self.resumed: list[int] = []

    def assignment(self) -> list[Assigned]:
        return [Assigned(EVENTS, 1)]

    def seek(self, target: Assigned) -> None:
        assert target.partition == 1, "Local: Erroneous state"
        self.sought.append((target.partition, target.offset))

    def resume(self, partitions: list[Assigned]) -> None:
        self.resumed += [found.partition for found in partitions]


class Member(Consumer):
    """One of the group, without the rest of a worker."""

    def __init__(self, client: Client) -> None:
        self.client = cast(Any, client)
        self.app: Any = SimpleNamespace(resume_at=lambda number: 7)
        self._client = self.client
        self._holder = cast(Any, SimpleNamespace(access=KafkaAccess("127.0.0.1:9")))
        self._stash = deque()
        self._epoch, self._paused, self._leaving = 0, False, False
        self._ends, self._positions, self._left_out = {}, {}, set()

    def seek_committed(self, *partitions: int) -> dict[TP, int]:
        return self._seek_committed([TP(EVENTS, number) for number in partitions])

    def read(self) -> int:
        """How many messages are there then."""
        self._read(10, 0)
        return len(self._stash)

    def commit_now(self) -> bool:
        return self._commit_now(self.client, EVENTS, {TP(EVENTS, 0): 7})


def test_a_partition_that_was_lost_meanwhile_is_not_sought() -> None:
    """It was, for 20 s, in which the group was not served; then the worker ended."""
    client = Client()
    member = Member(client)
    assert member.seek_committed(0, 1) == {TP(EVENTS, 1): 7}
    assert (client.sought, client.resumed) == ([(1, 7)], [1])
    assert member.seek_committed(0) == {}


class Ended(Exception):
    """Instead of the end of the process."""


class Message:
    """What librdkafka hands out for an error."""

    def __init__(self, error: KafkaError) -> None:
        self.error = lambda: error


class Failing(Client):
    """Meets an error whatever it is asked."""

    def __init__(self, error: KafkaError) -> None:
        super().__init__()
        self._error = error

    def consume(self, limit: int, wait: float) -> list[Message]:
        return [Message(self._error)]

    def commit(self, **_: Any) -> None:
        raise KafkaException(self._error)


@pytest.mark.parametrize(
    "error", [KafkaError(KafkaError.FENCED_INSTANCE_ID), KafkaError(KafkaError._FATAL, "of the client", True)]
)
def test_a_worker_whose_client_is_dead_ends_with_it(error: KafkaError, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that was killed in the middle of a rebalance took its members for others: they stood still."""

    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(os, "_exit", end)
    member = Member(Failing(error))
    with pytest.raises(Ended, match=str(EXIT_FENCED)):
        member.read()
    with pytest.raises(Ended, match=str(EXIT_FENCED)):
        member.commit_now()


def test_what_passes_is_waited_out() -> None:
    member = Member(Failing(KafkaError(KafkaError._TRANSPORT)))
    assert member.read() == 0
    assert member.commit_now() is False


# --- partitions that are left out ------------------------------------------------------------------------------------

EVENTS_1 = TP(EVENTS, 1)


class Log(Client):
    """Partition 1 has messages; they are handed out from where was sought last, unless it is paused."""

    def __init__(self, messages: int) -> None:
        super().__init__()
        self._messages, self._at = messages, 0
        self.is_paused = False

    def seek(self, target: Assigned) -> None:
        super().seek(target)
        self._at = target.offset

    def pause(self, partitions: list[Assigned]) -> None:
        self.is_paused |= 1 in {each.partition for each in partitions}

    def resume(self, partitions: list[Assigned]) -> None:
        super().resume(partitions)
        self.is_paused &= 1 not in {each.partition for each in partitions}

    def consume(self, limit: int, wait: float) -> list[Any]:
        if self.is_paused:
            return []
        first, self._at = self._at, min(self._at + limit, self._messages)
        return [Sound(offset) for offset in range(first, self._at)]


class Sound:
    """A message of partition 1, as librdkafka hands it out."""

    def __init__(self, offset: int) -> None:
        self.offset = lambda: offset
        self.partition = lambda: 1
        self.error, self.key, self.headers = (lambda: None), (lambda: None), (lambda: None)
        self.value = lambda: b"%d" % offset
        self.timestamp = lambda: (1, 1)


class Holding(Member):
    """One that was handed 64 messages of a partition, and then was told to leave that out."""

    def __init__(self, messages: int) -> None:
        self.source = Log(messages)
        super().__init__(self.source)
        self._thread = ThreadPoolExecutor(1)
        self._goes_on, self._assigned, self._paused_partitions = asyncio.Event(), {EVENTS_1}, set()
        self._active_partitions = {EVENTS_1}
        assert self.fetched(EVENTS_1) == list(range(64))
        self._left_out, self._active_partitions = {EVENTS_1}, set()
        self._pause(EVENTS_1)

    def fetched(self, *active: TP) -> list[int]:
        return [record.offset for record in self._fetch({*active}, self._epoch).get(EVENTS_1, [])]

    def has_full_stash(self) -> None:
        self._paused = True

    def meets_damage(self, offset: int) -> None:
        self._damaged, self._floors = {1: (offset, 1e9)}, {1: offset}

    def goes_on_for_the_thread(self) -> None:
        self._go_on(EVENTS_1)

    def goes_on_for_the_loop(self) -> None:
        self._left_out = set()

    def is_active(self) -> bool:
        return EVENTS_1 in self._get_active_partitions()

    def end(self) -> None:
        self._thread.shutdown()


def test_what_is_fetched_before_the_loop_knows_that_a_partition_goes_on_is_kept() -> None:
    """It was dropped, and the event store, which noticed that messages were skipped, had to start again."""
    member = Holding(100)
    assert member.fetched() == []
    member.goes_on_for_the_thread()
    assert member.fetched() == []
    member.goes_on_for_the_loop()
    assert member.fetched(EVENTS_1) == list(range(64, 100))


def test_a_partition_that_goes_on_while_all_are_paused_is_resumed_with_them() -> None:
    """Where the loop did not know yet that it goes on it stayed paused."""
    member = Holding(100)
    member.has_full_stash()
    member.goes_on_for_the_thread()
    assert member.fetched() == []
    member.goes_on_for_the_loop()
    assert member.fetched(EVENTS_1) == list(range(64, 100))


def test_a_partition_is_read_again_from_where_it_goes_on_though_a_later_record_is_damaged() -> None:
    """What had been fetched of it, and was dropped, was never delivered: only the damaged record was tried again."""
    member = Holding(100)
    member.meets_damage(90)
    member.goes_on_for_the_thread()
    member.goes_on_for_the_loop()
    assert member.fetched(EVENTS_1) == list(range(64, 100))


@pytest.mark.parametrize("is_assigned_anew", [False, True])
def test_a_seek_resumes_what_is_left_out_only_where_partitions_were_assigned_anew(is_assigned_anew: bool) -> None:
    member = Holding(100)
    if is_assigned_anew:
        member.goes_on_for_the_loop()
    member.seek_committed(1)
    assert member.source.is_paused is not is_assigned_anew
    assert member.fetched(EVENTS_1) == (list(range(7, 71)) if is_assigned_anew else [])


async def test_a_partition_that_was_assigned_anew_does_not_go_on_where_it_once_was() -> None:
    """Another store may have written less or more of it meanwhile: what lay between would have been skipped."""
    member = Holding(100)
    member.goes_on_for_the_loop()
    member.seek_committed(1)
    assert member.source.sought == [(1, 7)]
    await member.go_on(EVENTS_1)
    member.end()
    assert member.source.sought == [(1, 7)]
    assert member.fetched(EVENTS_1) == list(range(7, 71))


async def test_a_partition_that_goes_on_at_once_after_it_was_left_out_is_not_paused() -> None:
    """It was paused by what had been begun first and done last."""
    member = Holding(100)
    member.goes_on_for_the_thread()
    member.leave_out(EVENTS_1)
    await member.go_on(EVENTS_1)
    await asyncio.sleep(0)
    member.end()
    assert not member.source.is_paused


async def test_a_partition_that_is_left_out_again_while_it_goes_on_can_go_on_later() -> None:
    """The loop took it for one that goes on, and nobody resumed what the thread had paused."""
    member = Holding(100)
    going = asyncio.ensure_future(member.go_on(EVENTS_1))
    await asyncio.sleep(0)
    member.leave_out(EVENTS_1)
    await going
    assert not member.is_active()
    await member.go_on(EVENTS_1)
    member.end()
    assert member.is_active()
    assert member.fetched(EVENTS_1) == list(range(64, 100))
