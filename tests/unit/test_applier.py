"""Apply, flush, then acknowledge; a failing log is waited for; what cannot be processed is buried and passed over."""

import asyncio
import errno
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from processor.core.clock import HOUR
from processor.core.events import message
from processor.core.events.message import build_blocks
from processor.core.events.source import Source
from processor.core.tables.apply import Tables
from processor.core.tables.table_rows import encode_value
from processor.ids.index import IdIndex
from processor.log.address import LogAddress
from processor.log.dead_letters import DeadLetter
from processor.log.embedded.log import Log
from processor.log.errors import LogUnavailable
from processor.log.records import Append, TopicPartition
from processor.log.topics import CLAIMS, DEAD_LETTERS, EVENTS, ROWS
from processor.state import applier as module
from processor.state.applier import Applier, Broken
from processor.state.compactor import Compactor
from processor.state.loader import Partition, bring, load, sync_index
from processor.state.verify import verify
from tests.support.patience import PATIENCE
from tests.support.tables import NOON, Usage, by_key, columns

E0 = TopicPartition(EVENTS, 0)


def value_of(*events: Usage, arrival: int = NOON) -> bytes:
    source = Source("org", "p", "key", arrival, "json", "partial")
    return message.encode([build_blocks(source, columns(events), 1)[0]])


class Delivery:
    def __init__(self, offset: int, value: bytes | None, *, is_damaged: bool = False) -> None:
        self.is_damaged = is_damaged
        self.partition = 0
        self.offset = offset
        self.key: bytes | None = None
        self.value = value
        self.acks = 0

    @property
    def acked(self) -> bool:
        return self.acks > 0

    def ack(self) -> None:
        self.acks += 1


class Worker:
    """A partition of a real log, its applier, and a switch that makes writes fail."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.log = Log(data_dir)
        self.failing = 0
        self.appended: list[list[Append]] = []
        self.owned: dict[int, Partition] = {0: load(LogAddress(data_dir), 0)}
        self.paused: list[int] = []
        self.lost: list[tuple[int, int, int]] = []
        self.on_lost: Callable[[], None] = lambda: None
        self.now = NOON
        self.running = 0
        self.delay = 0.0
        """Seconds that an append takes."""
        clocks = (lambda: self.now, lambda: self.running)
        self.applier = Applier(
            self.owned,
            self._append,
            clocks[0],
            0.01,
            self._exists,
            self._lose,
            self.paused.append,
            running=clocks[1],
        )

    @property
    def partition(self) -> Partition:
        return self.owned[0]

    async def _lose(self, partition: int, start: int, end: int, reason: str) -> None:
        self.lost.append((partition, start, end))
        self.on_lost()

    async def _exists(self, partition: int, start: int, before: int) -> bool:
        return any(record.offset < before for record in self.log.read(TopicPartition(EVENTS, partition), start, 1))

    async def _append(self, appends: list[Append]) -> list[int]:
        if self.failing:
            self.failing -= 1
            raise LogUnavailable("disk full")
        if self.delay:
            await asyncio.sleep(self.delay)
        self.appended.append(appends)
        return self.log.append(appends, NOON)

    def send(self, *values: bytes) -> list[Delivery]:
        first = self.log.append([Append(E0, [(None, value) for value in values])], NOON)[0]
        return [Delivery(first + number, value) for number, value in enumerate(values)]

    async def take(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            await self.applier.process(delivery)

    async def work(self, deliveries: Sequence[Delivery]) -> None:
        await self.take(deliveries)
        await self.applier.flush()

    def restart(self) -> "Worker":
        """What a new process finds after a kill."""
        self.partition.index.close()
        self.log.close()
        return Worker(self.data_dir)

    def bring_back(self) -> Partition:
        """The partition that was given up, as a warm copy, is assigned again."""
        log, warm = self.log, {0: self.partition}
        return bring(LogAddress(self.data_dir), log, 0, lambda appends: log.append(appends, NOON), lambda: NOON, warm)

    def requests(self) -> int:
        return sum(row.requests for row in by_key(self.partition.tables.users).values())

    def differences(self) -> list[object]:
        scratch = self.data_dir / "scratch"
        for path in sorted(scratch.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        scratch.mkdir(exist_ok=True)
        return list(verify(self.log, 0, scratch, lambda *_: None))


@pytest.fixture(params=[64, 0], ids=["one by one", "together"])
def worker(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Worker:
    monkeypatch.setattr("processor.state.loader.ONE_BY_ONE", request.param)
    return Worker(tmp_path)


@pytest.fixture
def careful(tmp_path: Path) -> Worker:
    """One that applies its first messages one by one."""
    return Worker(tmp_path)


async def test_a_message_is_acknowledged_by_the_flush_that_made_it_durable(worker: Worker) -> None:
    [first, second] = worker.send(value_of(Usage(1)), value_of(Usage(2), Usage(1)))
    await worker.take([first, second])
    assert not first.acked
    await worker.applier.flush()
    assert first.acked
    assert second.acked
    [appends] = worker.appended
    assert [append.to.topic for append in appends] == [ROWS, CLAIMS], "rows, claims and progress are one append"
    assert worker.differences() == []
    again = worker.restart()
    assert again.requests() == 2
    assert again.partition.tables.progress.offset == 1


async def test_a_kill_before_the_flush_loses_nothing_and_counts_nothing_twice(worker: Worker) -> None:
    sent = worker.send(value_of(Usage(1), Usage(2)), value_of(Usage(2), Usage(3)), value_of(Usage(3)))
    await worker.take(sent[:1])
    await worker.applier.flush()
    await worker.take(sent[1:2])  # applied, and the ids are claimed on disk; then the process is killed
    again = worker.restart()
    assert again.requests() == 2
    await again.take(sent[1:])
    await again.applier.flush()
    assert again.requests() == 3
    assert again.differences() == []
    once_more = again.restart()
    await once_more.take(sent)  # a replay from the very beginning
    await once_more.applier.flush()
    assert once_more.requests() == 3
    assert once_more.differences() == []


async def test_a_failing_log_is_waited_for(worker: Worker) -> None:
    [sent] = worker.send(value_of(Usage(1)))
    await worker.take([sent])
    worker.failing = 2
    flushing = asyncio.ensure_future(worker.applier.flush())
    await asyncio.sleep(0.02)
    assert not sent.acked
    await flushing
    assert sent.acked
    assert worker.differences() == []


async def test_what_cannot_be_read_goes_to_the_dead_letters_with_the_reason(worker: Worker) -> None:
    sent = worker.send(value_of(Usage(1)), b"junk", value_of(Usage(2)))
    await worker.take(sent)
    await worker.applier.flush()
    assert all(delivery.acked for delivery in sent)
    assert worker.requests() == 2
    [record] = worker.log.read(TopicPartition(DEAD_LETTERS, 0), 0)
    letter = DeadLetter.decode(record.key or b"")
    assert (letter.topic, letter.partition, letter.offset, record.value) == (EVENTS, 0, 1, b"junk")
    assert "not an event message" in letter.reason
    again = worker.restart()
    await again.take(sent)
    assert len(again.log.read(TopicPartition(DEAD_LETTERS, 0), 0)) == 1, "a replay does not bury it again"
    assert again.differences() == []


async def test_a_message_of_an_unknown_version_stops_its_partition_and_is_no_dead_letter(worker: Worker) -> None:
    newer = msgspec.msgpack.encode([message.VERSION + 1, {"blocks": []}, b"", b"checksum"])
    deliveries = worker.send(value_of(Usage(1)), newer, value_of(Usage(2)))
    await worker.take(deliveries)
    await worker.applier.flush()
    assert [delivery.acks for delivery in deliveries] == [1, 0, 0], "what came before it counts, nothing after it"
    assert worker.partition.is_stopped
    assert worker.paused == [0]
    assert worker.log.end(TopicPartition(DEAD_LETTERS, 0)) == 0
    assert worker.partition.tables.progress.offset == 0
    assert worker.bring_back() is worker.partition
    await worker.take(deliveries[1:])
    assert worker.paused == [0, 0], "given up and brought back it is no other"


async def test_a_damaged_record_is_buried_and_never_counted(worker: Worker) -> None:
    sound, damaged = worker.send(value_of(Usage(1)), value_of(Usage(2)))
    damaged.is_damaged = True
    await worker.take([sound, damaged])
    await worker.applier.flush()
    assert sound.acks == damaged.acks == 1
    assert len(worker.partition.index) == 1
    assert worker.lost == [(0, 1, 2)]
    [letter] = worker.log.read(TopicPartition(DEAD_LETTERS, 0), 0)
    dead = DeadLetter.decode(letter.key or b"")
    assert "spendstream.events:0:1 is damaged" in dead.reason
    assert dead.damaged


async def test_the_tables_say_that_they_are_past_a_dead_letter_at_the_end_of_the_log(worker: Worker) -> None:
    sent = worker.send(value_of(Usage(1)), b"junk")
    await worker.take(sent[:1])
    await worker.applier.flush()
    await worker.take(sent[1:])
    await worker.applier.flush()
    assert worker.restart().partition.tables.progress.offset == 1, (
        "whoever waits for the end of the log would wait for ever"
    )


async def test_a_message_whose_processing_fails_half_way_leaves_no_trace_in_the_tables(
    careful: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = careful
    sent = worker.send(value_of(Usage(1)), value_of(Usage(2)), value_of(Usage(3)))
    await worker.take(sent[:1])
    with monkeypatch.context() as patched:
        patched.setattr(Tables, "_advance", _raise)  # after the rows of the message have been changed
        with pytest.raises(Broken):
            await worker.applier.process(sent[1])
    await worker.applier.flush()  # the flusher, which runs while the message is buried
    assert not any(delivery.acked for delivery in sent)
    again = worker.restart()  # what the process does then
    await again.take(sent)
    await again.applier.flush()
    assert again.requests() == 2
    assert again.differences() == []
    [record] = again.log.read(TopicPartition(DEAD_LETTERS, 0), 0)
    assert "while it was applied" in DeadLetter.decode(record.key or b"").reason
    await again.take(again.send(value_of(Usage(2))))  # the copy that a sender sends later is the first one
    await again.applier.flush()
    assert again.requests() == 3
    assert again.differences() == []


async def test_nothing_ends_the_process_before_a_message_that_failed_is_buried(
    careful: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the next process fails at it, too, and the one after that."""
    worker = careful
    worker.delay = 0.5  # a busy machine may hold up what begins meanwhile for a tenth of a second
    first, second = worker.send(value_of(Usage(1)), value_of(Usage(2)))
    await worker.applier.process(first)
    flusher = asyncio.ensure_future(worker.applier.run())
    await asyncio.sleep(0.01)  # its flush is under way
    monkeypatch.setattr(Tables, "_advance", _raise)
    taking = asyncio.ensure_future(worker.applier.process(second))
    await asyncio.wait({flusher, taking}, return_when=asyncio.FIRST_COMPLETED)
    assert any(appends[0].to.topic == DEAD_LETTERS for appends in worker.appended), "it is buried"
    for each in (flusher, taking):
        with pytest.raises(Broken):
            await each


async def test_a_message_that_fails_among_many_is_found_and_buried(
    careful: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each start applies the first few one by one and flushes them: the failing one comes among them at last."""
    worker = careful
    monkeypatch.setattr("processor.state.loader.ONE_BY_ONE", 3)
    poison = 10
    sent = worker.send(*(value_of(Usage(n), Usage(n // 2)) for n in range(20)))

    class Failing(Tables):
        def _count(self, offset: int, *arguments: Any) -> None:
            super()._count(offset, *arguments)
            if offset == poison:
                raise RuntimeError("poison")

    monkeypatch.setattr("processor.state.loader.Tables", Failing)
    starts = 0
    done = False
    while not done:
        starts += 1
        worker = worker.restart()
        try:
            await worker.take(sent[worker.partition.expected :])
            await worker.applier.flush()
            done = True
        except Broken:
            with pytest.raises(Broken):
                await worker.applier.process(sent[-1])
    assert starts == 5, "behind 3, 6 and 9 messages, then it is found, and once more to the end"
    [record] = worker.log.read(TopicPartition(DEAD_LETTERS, 0), 0)
    assert DeadLetter.decode(record.key or b"").offset == poison
    assert worker.requests() == 19
    assert worker.differences() == []
    assert all(delivery.acks <= 1 for delivery in sent)


async def test_what_waits_of_a_partition_that_was_given_up_is_left_to_the_next_owner(
    careful: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = careful
    monkeypatch.setattr("processor.state.loader.ONE_BY_ONE", 0)
    worker = worker.restart()
    sent = worker.send(*(value_of(Usage(n)) for n in range(4)))
    await worker.take(sent[:1])
    await worker.applier.flush()
    await worker.take(sent[1:])  # not applied yet
    worker.partition.index.close()
    worker.owned[0] = load(LogAddress(worker.data_dir), 0)  # it went, and came back
    await worker.take(sent[1:2])
    await worker.applier.flush()
    assert worker.requests() == 2
    assert worker.partition.tables.progress.offset == 1
    assert [delivery.acked for delivery in sent] == [True, True, False, False]
    await worker.take(sent[2:])
    await worker.applier.flush()
    assert worker.requests() == 4
    assert worker.differences() == []


async def test_a_partition_that_is_given_up_while_a_gap_is_looked_at_takes_nothing_more(careful: Worker) -> None:
    worker = careful
    sent = worker.send(*(value_of(Usage(n)) for n in range(3)))
    await worker.work(sent[:1])
    given_up = worker.partition

    def give_up() -> None:
        worker.owned[0] = load(LogAddress(worker.data_dir), 0)

    worker.on_lost = give_up
    worker.log.trim(E0, 2)
    await worker.take(sent[2:])
    assert worker.partition is not given_up
    assert given_up.tables.progress.offset == 0
    assert (given_up.index.find(given_up.tables.prepare(message.decode(sent[2].value or b"")))[0] < 0).all()
    given_up.index.close()


async def test_a_warm_copy_in_which_windows_were_closed_without_a_message_fits_its_changelog(worker: Worker) -> None:
    """An owner that is idle closes windows; given up and brought back, it must not look as if rows were missing."""
    await worker.work(worker.send(value_of(Usage(1)), value_of(Usage(2), arrival=NOON + 3 * HOUR)))
    given_up = worker.partition
    windows = len(given_up.tables.windows)
    for hour in range(30):
        worker.now, worker.running = NOON + hour * HOUR, hour * HOUR
        given_up.tables.tick(worker.running, worker.now)
    assert len(given_up.tables.windows) < windows
    await worker.applier.flush()  # as when it is given up
    end = worker.log.end(TopicPartition(ROWS, 0))
    assert worker.bring_back() is given_up
    assert worker.log.end(TopicPartition(ROWS, 0)) == end, "no row was made anew"
    again = worker.restart()
    assert len(again.partition.tables.windows) == len(given_up.tables.windows)
    assert again.differences() == []


async def test_a_full_disk_under_the_id_index_buries_no_message(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = worker.send(value_of(Usage(1)), value_of(Usage(2)))
    await worker.take(sent[:1])
    with monkeypatch.context() as full:
        full.setattr(IdIndex, "claim", _no_space)
        with pytest.raises(Broken):
            await worker.work(sent[1:])
    await worker.applier.flush()
    assert not any(delivery.acked for delivery in sent)
    again = worker.restart()
    await again.take(sent)
    await again.applier.flush()
    assert again.log.read(TopicPartition(DEAD_LETTERS, 0), 0) == []
    assert again.requests() == 2
    assert again.differences() == []


def _no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _raise(*_: object) -> None:
    raise ZeroDivisionError("a bug")


async def test_the_index_comes_back_from_the_claims_log(worker: Worker) -> None:
    sent = worker.send(value_of(*map(Usage, range(50))), value_of(*map(Usage, range(40, 90))))
    await worker.take(sent)
    await worker.applier.flush()
    worker.partition.index.close()
    for path in sorted((worker.data_dir / "index").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    again = Worker(worker.data_dir)
    assert len(again.partition.index) == 90
    await again.take(again.send(value_of(*map(Usage, range(100)))))
    await again.applier.flush()
    assert again.requests() == 100
    assert again.differences() == []


async def test_too_many_changed_rows_are_flushed_before_more_are_taken(
    careful: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = careful
    monkeypatch.setattr(module, "MAX_CHANGED", 5)
    sent = worker.send(*[value_of(*[Usage(10 * n + m, user=f"u{10 * n + m}") for m in range(10)]) for n in range(3)])
    await worker.take(sent)
    assert [delivery.acked for delivery in sent] == [True, True, False]


async def test_the_flusher_flushes_by_itself_and_checkpoints_the_index(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SYNC_INTERVAL", 0)
    monkeypatch.setattr("processor.ids.index.TAIL", 1)
    flusher = asyncio.ensure_future(worker.applier.run())
    try:
        for number in range(5):
            [sent] = worker.send(value_of(Usage(number)))
            await worker.applier.process(sent)
            async with asyncio.timeout(PATIENCE):
                while not sent.acked or worker.partition.index.checkpointed != number + 1:  # noqa: ASYNC110 - polled
                    await asyncio.sleep(0.005)
    finally:
        flusher.cancel()


async def test_a_checkpoint_has_no_id_whose_claim_is_not_durable(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is made beside the traffic: messages are applied meanwhile that no flush has reached."""
    monkeypatch.setattr("processor.ids.index.TAIL", 1)
    monkeypatch.setattr(module, "MAX_WAITING", 1)
    sent = worker.send(value_of(*map(Usage, range(10))), value_of(*map(Usage, range(10, 30))))
    await worker.work(sent[:1])
    await worker.take(sent[1:])
    assert len(worker.partition.index) == 30
    sync_index(worker.partition, final=True)
    assert worker.partition.index.covered.ids == 10
    again = worker.restart()
    assert len(again.partition.index) == 10
    await again.work(sent[1:])
    assert again.requests() == 30
    assert again.differences() == []


async def test_after_a_stop_no_claim_has_to_be_read(worker: Worker) -> None:
    await worker.take(worker.send(value_of(*map(Usage, range(10)))))
    await worker.applier.finish()
    assert worker.partition.index.checkpointed == 1
    again = worker.restart()
    assert (len(again.partition.index), again.partition.index.checkpointed) == (10, 1)


async def test_a_log_without_the_newest_claims_makes_the_ids_new_again(worker: Worker) -> None:
    await worker.work(worker.send(value_of(*map(Usage, range(10)))))
    worker.partition.index.close()
    worker.log.close()
    older = worker.data_dir / "older"
    shutil.copytree(worker.data_dir, older)
    worker = Worker(worker.data_dir)
    await worker.take(worker.send(value_of(*map(Usage, range(10, 20)))))
    await worker.applier.finish()
    worker.partition.index.close()
    worker.log.close()
    shutil.copytree(worker.data_dir / "index", older / "index", dirs_exist_ok=True)
    with capture_logs() as logged:
        again = Worker(older)
    assert [entry["event"] for entry in logged] == ["index.discarded"]
    assert len(again.partition.index) == 10
    await again.work(again.send(value_of(*map(Usage, range(20)))))
    assert again.requests() == 20
    assert again.differences() == []


@pytest.mark.slow
async def test_a_damaged_index_ends_the_process_and_no_message(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("processor.state.loader.IdIndex", partial(IdIndex, first_capacity=1 << 13))
    worker = worker.restart()
    every = [value_of(*map(Usage, range(start, start + 250))) for start in range(0, 7_500, 250)]
    await worker.take(worker.send(*every))
    await worker.applier.finish()
    again = worker.restart()
    file = worker.data_dir / "index" / "0000" / "0000.idx"
    content = bytearray(file.read_bytes())
    content[5000] ^= 8
    file.write_bytes(content)
    sent = again.send(*every)
    with pytest.raises(Broken, match=r"could not be applied.*0000\.idx, block 0|applied after a restart.*block 0"):
        await again.work(sent)
    once_more = again.restart()
    assert len(once_more.partition.index) == 7_500
    await once_more.work(sent)
    assert once_more.requests() == 7_500
    assert once_more.log.read(TopicPartition(DEAD_LETTERS, 0), 0) == []
    assert once_more.differences() == []


async def test_compaction_changes_no_table(worker: Worker) -> None:
    for number in range(30):
        await worker.take(worker.send(value_of(Usage(number, user=f"u{number % 3}"))))
        await worker.applier.flush()
    before = worker.log.count(TopicPartition(ROWS, 0))

    async def delete(*args: Any) -> None:
        worker.log.delete(*args)

    removed = await Compactor({0: worker.partition}, delete, worker.applier.flush).round(worker.partition)
    left = worker.log.count(TopicPartition(ROWS, 0))
    assert left == before - removed == len(worker.partition.tables) + 2, "rows, progress and horizon"
    assert worker.differences() == []
    again = worker.restart()
    assert again.requests() == 30
    assert again.partition.records == left


async def test_what_was_replaced_is_known_without_reading(worker: Worker) -> None:
    """Windows that are closed leave tombstones."""
    for number in range(12):
        worker.now, worker.running = NOON + number * 12 * HOUR, number * 12 * HOUR
        source = Source("org", "p", "key", worker.now, "json", "partial")
        usage = [Usage(10 * number + each, user=f"u{each}") for each in range(number % 4 + 1)]
        await worker.take(worker.send(message.encode([build_blocks(source, columns(usage), 1)[0]])))
        await worker.applier.flush()
    known = worker.partition.replaced
    written = [append.records for appends in worker.appended for append in appends if append.to.topic == ROWS]
    assert any(value is None for records in written for _, value in records)
    restarted = worker.restart()
    assert restarted.differences() == []
    again = restarted.partition.replaced
    assert known
    assert again
    assert sorted(known) == sorted(again)


async def test_verify_names_the_rows_that_differ(worker: Worker) -> None:
    await worker.take(worker.send(value_of(Usage(1, user="a"), Usage(2, user="b"))))
    await worker.applier.flush()
    row = next(row for key, row in by_key(worker.partition.tables.users).items() if key[1] == "a")
    row.cost += 1
    progress = worker.partition.tables.progress
    planted = [(row.key, b"[0,1,0,512,128,0,1,0,0,0]"), (progress.key, encode_value(progress))]
    worker.log.append([Append(TopicPartition(ROWS, 0), planted)], NOON)
    [difference] = worker.differences()
    assert '"a"' in difference.key  # type: ignore[attr-defined]
