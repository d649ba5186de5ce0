"""Streams: order, what one bad batch does not do, bounds under senders of every kind, and the end of a key."""

import asyncio
import time
from contextlib import suppress
from typing import Any, Final

import grpc
import pytest
from structlog.testing import capture_logs

from protos.spendstream.v1 import ingest_pb2 as pb
from server.errors import Refused
from server.grpc_api import servicers
from server.grpc_api.ingest_stream import WINDOW, WINDOW_BYTES
from server.ingest.publisher import Done, Parts
from tests.contract.doors import READ_ONLY, SECRET, Api, Doors, open_doors, to_request
from tests.contract.fakes import NOW
from tests.support.events import make_event
from tests.support.patience import PATIENCE, mostly_within, until
from tests.support.publisher import FakePublisher

APIS: Final[tuple[Api, ...]] = ("grpc",)
"""Those that these tests need (the fixture `doors`)."""

CODE = grpc.StatusCode
EOF = grpc.aio.EOF
INVALID_KEY = (CODE.UNAUTHENTICATED.value[0], "Invalid API key")


class SlowPublisher(FakePublisher):
    """A log whose every answer has to be let through."""

    def __init__(self) -> None:
        super().__init__(1)
        self.waiting: list[asyncio.Event] = []
        self.most = 0
        self.size = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def submit(self, parts: Parts, size: int, done: Done) -> None:
        go = asyncio.Event()
        self.waiting.append(go)
        self.most = max(self.most, len(self.waiting))
        self.size = max(self.size, size * len(self.waiting))
        self._tasks.add(task := asyncio.create_task(self._let_through(go, parts, done)))
        task.add_done_callback(self._tasks.discard)

    async def _let_through(self, go: asyncio.Event, parts: Parts, done: Done) -> None:
        await go.wait()
        self.waiting.remove(go)
        done(self.write(parts))

    def let_all_through(self) -> None:
        for go in self.waiting:
            go.set()

    async def until_waiting(self, count: int) -> None:
        await until(lambda: len(self.waiting) >= count)


def good(sequence: int, **overrides: Any) -> bytes:
    return to_request([make_event(**overrides)], sequence)


async def rest(stream: Any) -> list[pb.IngestResponse]:
    """All answers that are still to come."""
    answers = []
    while (answer := await stream.read()) is not EOF:
        answers.append(answer)
    return answers


async def test_one_answer_each_in_order(doors: Doors) -> None:
    stream = doors.stream()
    for sequence in range(200):
        await stream.write(good(1000 - sequence))
    await stream.done_writing()
    answers = await rest(stream)
    assert [answer.sequence for answer in answers] == [1000 - sequence for sequence in range(200)]
    assert all(answer.accepted == 1 and answer.position for answer in answers)
    assert await stream.code() == CODE.OK


async def test_answers_keep_their_order_when_the_log_does_not() -> None:
    publisher = SlowPublisher()
    async with open_doors(publisher, apis=APIS) as doors:
        stream = doors.stream()
        for sequence in (5, 3, 4):
            await stream.write(good(sequence))
        await publisher.until_waiting(3)
        for go in reversed(publisher.waiting):
            go.set()
            await asyncio.sleep(0.01)
        assert [(await stream.read()).sequence for _ in range(3)] == [5, 3, 4]
        await stream.done_writing()
        assert await rest(stream) == []


async def test_a_bad_batch_ends_nothing(doors: Doors) -> None:
    stream = doors.stream()
    huge = pb.IngestRequest(sequence=4, events=[pb.Event(model="m" * (20 << 20))]).SerializeToString()
    bad = [
        (to_request([], 1), 1),
        (b"\xff", 0),
        (to_request([make_event()] * 101, 3), 3),
        (huge, 4),
        (to_request([make_event(model=None)], 5), 5),
    ]
    for raw, sequence in bad:
        await stream.write(raw)
        answer = await stream.read()
        assert (answer.sequence, answer.accepted, answer.status.code) == (sequence, 0, CODE.INVALID_ARGUMENT.value[0])
        await stream.write(good(9))
        assert (await stream.read()).accepted == 1
    doors.quotas.refuse_events = Refused("quota_exceeded", "Monthly quota exceeded", retry_after=9)
    await stream.write(good(10))
    assert (await stream.read()).status.code == CODE.RESOURCE_EXHAUSTED.value[0]
    doors.quotas.refuse_events = None
    doors.publisher.available = False
    await stream.write(good(11))
    assert (await stream.read()).status.code == CODE.UNAVAILABLE.value[0]
    doors.publisher.available = True
    await stream.write(to_request([make_event(), make_event(cost_usd=None)], 12))
    answer = await stream.read()
    assert (answer.accepted, [item.field for item in answer.rejected]) == (1, ["cost_usd"])
    await stream.done_writing()
    assert (await rest(stream), await stream.code()) == ([], CODE.OK)


async def test_a_refused_batch_says_why_in_full(doors: Doors) -> None:
    stream = doors.stream([("prefer", "handling=strict")])
    await stream.write(to_request([make_event(model=None) for _ in range(100)], 1))
    answer = await stream.read()
    assert (len(answer.rejected), answer.rejected[99].line, answer.rejected[99].field) == (100, 100, "model")
    stream.cancel()


async def test_a_change_of_a_keys_handling_holds_for_the_next_batch_of_a_stream(doors: Doors) -> None:
    stream = doors.stream()
    for number, (handling, accepted) in enumerate((("lenient", 2), ("partial", 1), ("strict", 0), (None, 1)), start=1):
        doors.add_key(SECRET, handling=handling)
        await stream.write(to_request([make_event(), make_event(model=None)], number))
        assert (await stream.read()).accepted == accepted
    stream.cancel()
    preferring = doors.stream([("prefer", "handling=lenient")])
    doors.add_key(SECRET, handling="strict")
    await preferring.write(to_request([make_event(model=None)], 1))
    assert (await preferring.read()).accepted == 1
    preferring.cancel()


async def test_a_fault_of_ours_is_one_answer(doors: Doors) -> None:
    stream = doors.stream()
    doors.quotas.refuse_request = RuntimeError("secret detail")  # type: ignore[assignment] # what nobody expects
    with capture_logs() as logs:
        await stream.write(good(1))
        answer = await stream.read()
    assert (answer.sequence, answer.status.code) == (1, CODE.INTERNAL.value[0])
    assert answer.status.message == "Internal server error"
    assert [entry["event"] for entry in logs] == ["intake.at_once_failed", "grpc_batch_failed"]
    doors.quotas.refuse_request = None
    await stream.write(good(2))
    assert (await stream.read()).accepted == 1
    stream.cancel()


async def test_an_empty_stream(doors: Doors) -> None:
    stream = doors.stream()
    await stream.done_writing()
    assert (await rest(stream), await stream.code()) == ([], CODE.OK)


# --- bounds ----------------------------------------------------------------------------------------------------------


class Sender:
    """Writes the same request for as long as the stream takes it, and reads nothing."""

    def __init__(self, stream: Any, raw: bytes) -> None:
        self._stream = stream
        self._raw = raw
        self.written = 0
        self._paused = False
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while not self._paused:
                await self._stream.write(self._raw)
                self.written += 1

    async def until_blocked(self) -> None:
        """Wait until nothing more is written: for as many turns of the loop, which a busy machine makes slower, too."""
        before, turns = -1, 0
        async with asyncio.timeout(PATIENCE):
            while turns < 40:
                turns = turns + 1 if self.written == before else 0
                before = self.written
                await asyncio.sleep(0.01)
        assert not self._task.done()

    async def pause(self) -> None:
        """Write nothing more after the write under way."""
        self._paused = True
        await self._task

    async def stop(self) -> None:
        self._stream.cancel()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def test_a_slow_log_slows_the_sender_down(monkeypatch: pytest.MonkeyPatch) -> None:
    # The window of a connection stays as narrow as HTTP/2 begins with: less than one of these batches.
    monkeypatch.setattr(servicers, "OPTIONS", [*servicers.OPTIONS, ("grpc.http2.bdp_probe", 0)])
    publisher = SlowPublisher()
    async with open_doors(publisher, apis=APIS) as doors:
        stream = doors.stream()
        sender = Sender(stream, to_request([make_event(x="x" * 2000) for _ in range(50)]))  # 100 KB
        await sender.until_blocked()
        assert publisher.most == len(publisher.waiting) == WINDOW
        assert WINDOW <= sender.written <= WINDOW + 1  # one may have left the sender and wait in the connection
        publisher.waiting[0].set()
        await stream.read()
        await publisher.until_waiting(WINDOW)
        assert publisher.most == WINDOW
        await sender.stop()


async def test_large_batches_fill_the_window_by_their_bytes() -> None:
    publisher = SlowPublisher()
    async with open_doors(publisher, apis=APIS) as doors:
        raw = to_request([make_event(x="x" * 200_000) for _ in range(10)])  # 2 MB
        sender = Sender(doors.stream(), raw)
        await sender.until_blocked()
        assert len(publisher.waiting) == -(-WINDOW_BYTES // len(raw)) == 3
        await sender.stop()


TALKATIVE = to_request([make_event(model=None)] * 99 + [make_event()])
"""A batch that is answered with some 10 KB."""


@pytest.mark.slow
async def test_a_sender_that_never_reads_is_not_read_either(doors: Doors) -> None:
    sender = Sender(doors.stream(), TALKATIVE)
    await sender.until_blocked()
    taken = len(doors.quotas.reservations)
    assert taken < 2000
    assert len(asyncio.all_tasks()) < 50
    await asyncio.sleep(0.5)
    assert len(doors.quotas.reservations) == taken
    await sender.stop()


async def test_nothing_stays_behind_a_sender_that_goes() -> None:
    publisher = SlowPublisher()
    async with open_doors(publisher, apis=APIS) as doors:
        before = len(asyncio.all_tasks())
        stream = doors.stream()
        for sequence in range(3):
            await stream.write(good(sequence))
        await publisher.until_waiting(3)
        stream.cancel()
        with suppress(asyncio.CancelledError):
            await stream.code()
        await until(lambda: len(asyncio.all_tasks()) <= before + 3)
        assert [each.ended for each in doors.quotas.reservations] == [[]] * 3, "it goes on without its sender"
        publisher.let_all_through()
        await until(lambda: len(asyncio.all_tasks()) <= before)
        assert doors.services.bodies.used == 0
        assert [each.ended for each in doors.quotas.reservations] == [["settled"]] * 3


# --- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("secret", "code"),
    [(None, CODE.UNAUTHENTICATED), ("lqt_" + "9" * 64, CODE.UNAUTHENTICATED), (READ_ONLY, CODE.PERMISSION_DENIED)],
)
async def test_a_stream_needs_a_key(doors: Doors, secret: str | None, code: grpc.StatusCode) -> None:
    stream = doors.stream(secret=secret)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rest(stream)
    assert caught.value.code() == await stream.code() == code


def last_word(answers: list[pb.IngestResponse]) -> tuple[int, str]:
    """The one refusal a stream ends with; nothing else in `answers` is one."""
    assert [answer.HasField("status") for answer in answers] == [False] * (len(answers) - 1) + [True]
    return answers[-1].status.code, answers[-1].status.message


async def test_a_revoked_key_ends_an_idle_stream_within_a_second(doors: Doors) -> None:
    async def trial() -> float:
        doors.add_key(SECRET)
        stream = doors.stream()
        await stream.write(good(1))
        assert (await stream.read()).accepted == 1
        doors.add_key(SECRET, revoked=1)
        began = time.monotonic()
        async with asyncio.timeout(PATIENCE):
            answers = await rest(stream)
        assert (last_word(answers), len(answers)) == (INVALID_KEY, 1)
        return time.monotonic() - began

    await mostly_within(1, trial)


async def test_a_revoked_key_ends_a_busy_stream_within_a_second(doors: Doors) -> None:
    async def trial() -> float:
        doors.add_key(SECRET)
        stream = doors.stream()
        sender = Sender(stream, good(7))
        for _ in range(20):
            assert (await stream.read()).accepted == 1
        doors.add_key(SECRET, revoked=1)
        began = time.monotonic()
        async with asyncio.timeout(PATIENCE):
            while not (answer := await stream.read()).HasField("status"):
                pass
            assert (answer.sequence, last_word([answer])) == (7, INVALID_KEY)
            await sender.pause()
            await stream.done_writing()
            assert (await rest(stream), await stream.code()) == ([], CODE.OK)
        return time.monotonic() - began

    await mostly_within(1, trial)


async def test_a_key_that_expires_ends_a_busy_stream(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    doors.add_key(SECRET, expires=NOW + 1)
    stream = doors.stream()
    sender = Sender(stream, good(7))
    for _ in range(20):
        assert (await stream.read()).accepted == 1
    monkeypatch.setattr("tests.contract.doors.NOW", NOW + 1)
    while not (answer := await stream.read()).HasField("status"):
        pass
    assert (answer.sequence, last_word([answer])) == (7, INVALID_KEY)
    await sender.pause()


async def test_a_revoked_key_does_not_wait_for_the_log() -> None:
    publisher = SlowPublisher()
    async with open_doors(publisher, apis=APIS) as doors:
        stream = doors.stream()
        for sequence in (1, 2, 3):
            await stream.write(good(sequence))
        await publisher.until_waiting(3)
        publisher.waiting[0].set()
        doors.add_key(SECRET, revoked=1)
        async with asyncio.timeout(PATIENCE):
            answers = await rest(stream)
        assert (last_word(answers), [answer.sequence for answer in answers]) == (INVALID_KEY, [1, 2])
        publisher.let_all_through()


@pytest.mark.slow
async def test_a_revoked_key_ends_a_stream_that_is_not_read(doors: Doors) -> None:
    """Its sender cannot be told, but nothing works or waits for it; gRPC alone has a status left to send."""

    def at_work() -> list[str]:
        names = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()]
        return [name for name in names if name.startswith("IngestStream.")]

    sender = Sender(doors.stream(), TALKATIVE)
    await sender.until_blocked()
    assert at_work()
    doors.add_key(SECRET, revoked=1)
    await until(lambda: not at_work())
    await sender.stop()


async def test_a_key_that_loses_its_scope(doors: Doors) -> None:
    stream = doors.stream()
    await stream.write(good(1))
    await stream.read()
    doors.add_key(SECRET, ("read",))
    await stream.write(good(2))
    answers = await rest(stream)
    assert ([answer.sequence for answer in answers], answers[0].status.code) == ([2], CODE.PERMISSION_DENIED.value[0])
