"""Every counted event is in the live segments once, whatever store wrote them, was killed, or lost its files."""

import asyncio
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import apsw
import pytest
from structlog.testing import capture_logs

from processor import memory
from processor.background import Yielding
from processor.core.clock import DAY
from processor.core.events import message
from processor.core.events.message import Message, UnknownVersion
from processor.event_store import skips
from processor.event_store.fresh_messages import MessagesSkipped
from processor.event_store.manifest import Segment
from processor.event_store.merge import SegmentUnreadable
from processor.event_store.scrub import Scrub
from processor.event_store.segments_topic import TP
from processor.event_store.store import Overtaken
from processor.event_store.store_directory import MARK, StoreDirectory
from processor.event_store.stored_sums import DamagedSegment
from processor.event_store.upkeep import LEFT_OUT_FOR, Upkeep
from processor.log.embedded.log import OFFSET_BITS, Log
from processor.log.errors import HistoryMismatch
from processor.log.records import Append, TopicPartition
from processor.log.topics import EVENTS, GROUP, SEGMENTS
from tests.support.events import make_event
from tests.support.logs import catch_up, put
from tests.support.patience import PATIENCE, until
from tests.support.store import StoreInProcess, read_rows
from tests.support.tables import NOON

PARTITIONS = 2


def identified(number: int, **changes: Any) -> dict[str, Any]:
    return make_event(
        event_id=str(UUID(int=number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128, version=4)), **changes
    )


class World:
    """A log with events of two projects, duplicates and dead letters among them, and what is to be in the store."""

    def __init__(self, data: Path) -> None:
        self.data = data
        with closing(Log(data, partitions=PARTITIONS)):
            pass
        self.chance = Random(7)
        self.expected: dict[tuple[str, str], None] = {}
        """Project and event id of each counted event."""

    def send(self, batches: int, arrival: int = NOON) -> None:
        with closing(Log(self.data, create=False)) as log:
            for _ in range(batches):
                project = self.chance.choice(["default", "other"])
                events = [identified(self.chance.randrange(400), cost_usd=1) for _ in range(self.chance.randint(1, 9))]
                put(log, events, project=project, arrival=arrival)
                self.expected.update({(project, event["event_id"]): None for event in events})
                if self.chance.random() < 0.2:
                    log.append([Append(TopicPartition(EVENTS, 0), [(None, b"junk")])], arrival)

    async def work(self, *, commit: bool = True) -> None:
        """Apply everything, as a worker that is started and stopped."""
        await asyncio.to_thread(catch_up, self.data)
        if commit:
            with closing(Log(self.data, create=False)) as log:
                tps = [TopicPartition(EVENTS, number) for number in range(PARTITIONS)]
                log.commit(GROUP, [(tp, log.end(tp)) for tp in tps])

    async def started(self, **settings: Any) -> StoreInProcess:
        store = StoreInProcess(self.data, **settings)
        await store.bring(range(PARTITIONS))
        return store

    async def stored(self, **settings: Any) -> StoreInProcess:
        """A store that has cut all there is."""
        store = await self.started(**settings)
        store.deliver()
        await store.cut()
        return store

    def check(self, store: StoreInProcess) -> None:
        found = [(row[0], row[3]) for row in store.rows()]
        assert sorted(found) == sorted(self.expected)
        catalog = store.catalog()
        for number in range(PARTITIONS):
            live = catalog.live(number)
            assert [each.start for each in live] == [0, *(each.end for each in live[:-1])]
            assert live[-1].end == catalog.reached[number]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "data")


async def test_every_counted_event_is_a_row_once(world: World) -> None:
    world.send(40)
    await world.work()
    store = await world.stored()
    world.check(store)
    with closing(Log(world.data, create=False)) as log:
        ends = {number: log.end(TopicPartition(EVENTS, number)) for number in range(PARTITIONS)}
    assert store.store.reached() == ends
    assert sorted(store.acks) == [(number, offset) for number, end in ends.items() for offset in range(end)]


async def test_memory_is_given_back_when_cuts_are_over(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    at, given = [0.0], []
    trimming = memory.Trimming(lambda: given.append(at[0]), lambda: at[0])
    monkeypatch.setattr("processor.event_store.store.Trimming", lambda: trimming)
    monkeypatch.setattr(memory, "BURST", 1)
    world.send(5)
    await world.work()
    store = await world.stored()
    for at[0] in (0.0, 0.5, 1.0, 1.5):
        await store.cut()
    assert given == [1.0]


async def test_nothing_is_stored_before_the_worker_has_committed_it(world: World) -> None:
    world.send(10)
    await world.work(commit=False)
    store = await world.stored()
    assert store.rows() == []
    assert store.acks == []
    with closing(Log(world.data, create=False)) as log:
        log.commit(GROUP, [(TopicPartition(EVENTS, 0), 3)])
    await store.cut()
    assert {(row[1], segment.partition) for segment in store.catalog().live() for row in store.rows()} <= {
        (offset, 0) for offset in range(3)
    }
    assert store.store.reached() == {0: 3, 1: 0}


async def test_a_segment_has_no_more_events_than_fit_into_memory(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("processor.event_store.fresh_messages.MAX_UNPACKED", 1)
    world.send(20)
    await world.work()
    store = await world.stored()
    world.check(store)
    with_rows = [each for each in store.catalog().live() if each.rows]
    assert all(len({row[1] for row in read_rows(store.storage, each)}) == 1 for each in with_rows)
    assert len(with_rows) > PARTITIONS


async def test_another_store_goes_on_where_one_has_ended(world: World) -> None:
    store = await world.started()
    for _ in range(4):
        await store.store.close()
        world.send(10)
        await world.work()
        store = await world.stored()
    world.check(store)
    assert len(store.catalog().live(0)) == 4


async def test_of_two_stores_one_counts(world: World) -> None:
    """The second is brought while the first, which was paused, believes to own the same partitions."""
    world.send(20)
    await world.work()
    paused = await world.started()
    paused.deliver()
    store = await world.stored()
    world.send(20)
    await world.work()
    paused.deliver()
    await paused.cut()
    world.check(store)
    assert len(store.catalog().ignored()) == PARTITIONS
    await Upkeep(store.store).sweep()
    assert store.catalog().ignored() == []
    store.deliver()
    await store.cut()
    world.check(store)
    names = {each.id for each in store.catalog().live() if each.has_files}
    await Upkeep(store.store, kept_for=0).sweep()
    assert {path.stem for path in store.path.glob("*.parquet")} == names


async def test_files_without_a_manifest_are_swept(world: World) -> None:
    world.send(20)
    await world.work()
    store = await world.stored()
    for name in ("0000-0-5-abcdef01.parquet", "0000-0-5-abcdef01.idx", "0001-0-5-abcdef01.idx"):
        (store.path / name).write_text("of a store that was killed")
    (store.path / "0009-0-5-abcdef01.idx").write_text("of a partition of another store")
    upkeep = Upkeep(store.store)
    await store.store.call(upkeep.remove_unnamed, 0.0)
    assert sorted(path.name for path in store.path.glob("*abcdef01*")) == ["0009-0-5-abcdef01.idx"]
    world.check(store)


@pytest.mark.slow
async def test_merging_changes_no_row(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await world.started()
    upkeep = Upkeep(store.store, kept_for=0, fan_in=3)
    for _ in range(20):
        world.send(2)
        await world.work()
        store.deliver()
        await store.cut()
        while await upkeep.merge_one():
            pass
    world.check(store)
    live = store.catalog().live(0)
    assert max(each.level for each in live) >= 2
    assert len(live) <= 6
    await upkeep.sweep()
    assert {path.stem for path in store.path.glob("*.parquet")} == {
        each.id for each in store.catalog().live() if each.has_files
    }
    world.check(store)
    with closing(Log(world.data, create=False)) as log:
        before = len(log.read(TP, 0, 10_000))
        monkeypatch.setattr("processor.event_store.segments_topic.BURIED", -1.0)
        await upkeep.sweep()
        assert len(log.read(TP, 0, 10_000)) <= len(store.catalog().live()) + 1 < before
    world.check(store)


async def test_a_store_that_is_behind_cuts_first_and_merges_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await world.started()
    upkeep = Upkeep(store.store, fan_in=2)
    world.send(12)
    await world.work()
    store.deliver()
    monkeypatch.setattr("processor.event_store.fresh_messages.MAX_ROWS", 1)
    assert await store.store.cut()
    assert await store.store.cut()
    assert store.store.is_behind
    assert store.store.unmerged == sum(each.has_files for each in store.catalog().live())
    assert not await upkeep.merge_one()
    monkeypatch.setattr("processor.event_store.upkeep.MOST_UNMERGED", store.store.unmerged)
    assert await upkeep.merge_one()
    monkeypatch.setattr("processor.event_store.upkeep.MOST_UNMERGED", 1000)
    while await store.store.cut():
        assert not await upkeep.merge_one()
    assert not store.store.is_behind
    while await upkeep.merge_one():
        pass
    world.check(store)
    assert max(each.level for each in store.catalog().live()) >= 2


async def test_a_store_says_that_it_cuts_while_it_does(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await world.started()
    world.send(4)
    await world.work()
    store.deliver()
    seen: list[bool] = []

    def has_room(wanted: int = 0) -> bool:
        seen.append(store.store.is_cutting)
        return True

    with monkeypatch.context() as patched:
        patched.setattr(store.directory, "has_room", has_room)
        await store.cut()
    assert seen
    assert all(seen)
    assert not store.store.is_cutting
    with monkeypatch.context() as patched:
        patched.setattr(store.store, "_cut_all", _fails)
        with pytest.raises(OSError, match="No space"):
            await store.store.cut()
    assert not store.store.is_cutting
    world.check(store)


async def test_a_store_is_behind_also_while_what_it_lacks_has_not_arrived_yet(world: World) -> None:
    """Every fourth cut of a long log found less than a segment, as it was faster than the fetching; it waited for half
    a second then, and a merge began."""
    store = await world.started()
    upkeep = Upkeep(store.store, fan_in=2)
    for _ in range(2):
        world.send(4)
        await world.work()
        store.deliver()
        await store.cut()
    assert not store.store.is_behind
    world.send(40)
    await world.work()
    assert not await store.store.cut()
    assert not store.store.is_behind, "nothing has arrived: it stands still"
    store.deliver(most=5)
    assert not await store.store.cut()
    assert store.store.is_behind
    assert not await upkeep.merge_one()
    store.deliver()
    assert not await store.store.cut()
    assert not store.store.is_behind
    assert await upkeep.merge_one()
    world.check(store)


@pytest.mark.slow
async def test_a_store_that_is_behind_cuts_as_soon_as_enough_has_arrived(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("processor.event_store.store.INTERVAL", 1e9)
    monkeypatch.setattr("processor.event_store.store.ENOUGH", 0)
    world.send(60)
    await world.work()
    store = await world.started()
    store.deliver(most=5)
    running = asyncio.create_task(store.store.run())
    await until(lambda: store.store.is_behind)
    store.deliver()
    await until(lambda: len(store.rows()) == len(world.expected))
    running.cancel()
    await asyncio.wait({running})
    world.check(store)


@pytest.mark.parametrize(("far", "rests_more_than_once"), [(1, True), (100, False)])
async def test_a_store_that_is_far_behind_rests_between_its_cuts_while_the_machine_is_full(
    world: World, monkeypatch: pytest.MonkeyPatch, far: int, rests_more_than_once: bool
) -> None:
    """It is so where a cut has left more than so many times its messages. Each is of one message here."""
    rests: list[float] = []

    async def rest(self: Yielding, worked: float) -> None:
        rests.append(worked)
        await asyncio.sleep(0)

    monkeypatch.setattr(Yielding, "rest", rest)
    monkeypatch.setattr("processor.event_store.store.FAR", far)
    monkeypatch.setattr("processor.event_store.fresh_messages.MAX_ROWS", 1)
    world.send(12)
    await world.work()
    store = await world.started()
    store.deliver()
    running = asyncio.create_task(store.store.run())
    await until(lambda: len(store.rows()) == len(world.expected))
    running.cancel()
    await asyncio.wait({running})
    assert (len(rests) > 1) is rests_more_than_once
    assert rests_more_than_once or not rests
    assert all(each > 0 for each in rests)
    world.check(store)


@pytest.mark.parametrize("waits_for", ["is_behind", "is_cutting"])
async def test_a_merge_that_is_under_way_waits_for_the_cuts(
    world: World, monkeypatch: pytest.MonkeyPatch, waits_for: str
) -> None:
    store = await world.started()
    upkeep = Upkeep(store.store, fan_in=2)
    for _ in range(2):
        world.send(4)
        await world.work()
        store.deliver()
        await store.cut()
    began, merge = threading.Event(), store.store.writer.merge

    def late(*given: Any) -> Segment:
        setattr(store.store, waits_for, True)
        began.set()
        return merge(*given)

    monkeypatch.setattr(store.store.writer, "merge", late)
    merging = asyncio.create_task(upkeep.merge_one())
    await asyncio.to_thread(began.wait)
    assert not (await asyncio.wait({merging}, timeout=0.2))[0]
    setattr(store.store, waits_for, False)
    assert await merging
    world.check(store)
    assert {each.level for each in store.catalog().live()} == {0, 1}


async def test_nothing_is_cut_beside_a_merge_that_goes_first_and_one_cut_comes_before_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory of both together is too much."""
    store = await world.started()
    upkeep = Upkeep(store.store, fan_in=2)
    world.send(12)
    await world.work()
    store.deliver()
    monkeypatch.setattr("processor.event_store.fresh_messages.MAX_ROWS", 1)
    monkeypatch.setattr("processor.event_store.upkeep.MOST_UNMERGED", 1)
    while len(store.catalog().live()) < 2 * PARTITIONS:
        assert await store.store.cut()
    before, began, merge = store.store.rows, threading.Event(), store.store.writer.merge
    seen: list[tuple[bool, int]] = []

    def slow(parts: Any, segment: Any, payload_before: int, between: Callable[[], None]) -> Segment:
        between()
        began.set()
        time.sleep(0.3)
        between()
        seen.append((store.store.is_behind, store.store.rows))
        return merge(parts, segment, payload_before, between)

    monkeypatch.setattr(store.store.writer, "merge", slow)
    merging = asyncio.create_task(upkeep.merge_one())
    await asyncio.to_thread(began.wait)
    cutting = asyncio.create_task(store.store.run())
    assert await merging
    assert seen == [(True, before)]
    assert store.store.rows > before
    monkeypatch.setattr(store.store.writer, "merge", merge)
    await until(lambda: not store.store.is_behind)
    cutting.cancel()
    await asyncio.wait({cutting})
    world.check(store)


@pytest.mark.parametrize("why", ["error", "reserve"])
async def test_merging_does_not_wait_for_a_store_that_cannot_cut(
    world: World, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """A merge that waits holds files open, and what it has written; and the repairs of damaged files wait behind it."""
    store = await world.started()
    upkeep = Upkeep(store.store, fan_in=2)
    for _ in range(2):
        world.send(8)
        await world.work()
        store.deliver()
        await store.cut()
    world.send(8)
    await world.work()
    store.deliver()
    with monkeypatch.context() as patched:
        patched.setattr("processor.event_store.fresh_messages.MAX_ROWS", 1)
        assert await store.store.cut()
    waiting, choose = threading.Event(), store.store.writer.merge

    def merge(parts: Any, segment: Any, before: int, between: Callable[[], None]) -> Segment:
        waiting.set()
        return choose(parts, segment, before, between)

    monkeypatch.setattr(store.store.writer, "merge", merge)
    store.store.is_behind = False
    under_way = asyncio.create_task(upkeep.merge_one())
    await asyncio.to_thread(waiting.wait)
    store.store.is_behind = True
    if why == "error":
        with monkeypatch.context() as patched:
            patched.setattr(store.store, "_cut_all", _fails)
            with pytest.raises(OSError, match="No space"):
                await store.store.cut()
    else:
        with monkeypatch.context() as patched:
            patched.setattr(store.directory, "min_free", 1 << 62)
            assert not await store.store.cut()
    assert await asyncio.wait_for(under_way, PATIENCE)
    assert await upkeep.merge_one()
    while await store.store.cut():
        pass
    world.check(store)


def _fails(partitions: Any) -> bool:
    raise OSError(28, "No space left on device")


async def test_a_store_that_stays_behind_has_a_bounded_number_of_unmerged_segments(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long: from `MOST_UNMERGED` on merging goes before the cuts, and what it lets stand is less than a run of
    each partition."""
    most, fan_in = 9, 3
    monkeypatch.setattr("processor.event_store.upkeep.MOST_UNMERGED", most)
    monkeypatch.setattr("processor.event_store.fresh_messages.MAX_ROWS", 1)
    store = await world.started()
    upkeep = Upkeep(store.store, fan_in=fan_in)
    world.send(60)
    await world.work()
    store.deliver()
    seen: list[int] = []
    while await store.store.cut():
        assert store.store.unmerged == sum(each.level == 0 and each.has_files for each in store.catalog().live()), (
            "it is counted anew by each cut"
        )
        seen.append(store.store.unmerged)
        while await upkeep.merge_one():
            pass
    assert len(seen) > 3 * most
    assert most <= max(seen) <= max(most - 1, PARTITIONS * (fan_in - 1)) + PARTITIONS
    world.check(store)


async def test_what_is_replaced_stays_for_those_who_read_it(world: World) -> None:
    store = await world.started()
    upkeep = Upkeep(store.store, fan_in=2)
    for _ in range(2):
        world.send(3)
        await world.work()
        store.deliver()
        await store.cut()
    before = set(store.path.iterdir())
    assert await upkeep.merge_one()
    await upkeep.sweep()
    assert before < set(store.path.iterdir())


@pytest.mark.parametrize("what", ["directory", "files", "one file", "torn file"])
async def test_a_store_without_its_files_is_made_anew_with_equal_rows(world: World, what: str) -> None:
    store = await world.started()
    for _ in range(3):
        world.send(10)
        await world.work()
        store = await world.stored()
    rows = store.rows()
    files = sorted(store.path.glob("*.parquet"))
    if what == "directory":
        shutil.rmtree(store.path)
    elif what == "files":
        for path in files:
            path.unlink()
    elif what == "one file":
        files[0].unlink()
    else:
        files[0].write_bytes(files[0].read_bytes()[:-1])
    again = await world.stored()
    upkeep = Upkeep(again.store)
    while await upkeep.repair_one():
        assert what in {"one file", "torn file"}
    assert again.rows() == rows
    world.check(again)
    assert {path.stem for path in again.path.glob("*.idx")} >= {each.id for each in again.catalog().live() if each.rows}
    generations = {number: again.catalog().generation(number) for number in range(PARTITIONS)}
    assert generations == ({0: 1, 1: 1} if what in {"directory", "files"} else {0: 0, 1: 0})
    await Upkeep(again.store, kept_for=0).sweep()
    assert again.rows() == rows
    world.send(5)
    await world.work()
    again.deliver()
    await again.cut()
    world.check(again)


async def test_what_a_store_leaves_that_begins_anew_is_neither_checked_nor_merged_nor_repaired(world: World) -> None:
    """Until its first cut the segments before it are those that the topic has, and their files are gone."""
    store = await world.started()
    for _ in range(3):
        world.send(10)
        await world.work()
        store.deliver()
        await store.cut()
    rows = store.rows()
    shutil.rmtree(store.path)
    again = await world.started()
    upkeep = Upkeep(again.store, fan_in=3)
    scrub = Scrub(again.store, upkeep, 7 * 24 * 3600, pause=0)
    with capture_logs() as logs:
        for _ in range(3):
            await scrub.check_next()
            again.now += 7 * DAY
        assert not await upkeep.merge_one()
        assert not await upkeep.repair_one()
        await upkeep.expire()
    assert [each["event"] for each in logs if each["event"] != "store.scrubbed"] == []
    assert again.store.lacking == {}
    again.deliver()
    await again.cut()
    assert again.rows() == rows
    assert [again.catalog().generation(number) for number in range(PARTITIONS)] == [1, 1]
    await merge_all(upkeep)
    world.check(again)


async def test_a_store_that_others_have_begun_anew_ends(world: World) -> None:
    world.send(10)
    await world.work()
    paused = await world.stored()
    shutil.rmtree(paused.path)
    await world.stored()
    world.send(10)
    await world.work()
    paused.deliver()
    with pytest.raises(Overtaken):
        await paused.cut()


async def test_what_the_log_has_deleted_is_a_gap(world: World) -> None:
    world.send(30)
    await world.work()
    with closing(Log(world.data, create=False)) as log:
        log.trim(TopicPartition(EVENTS, 0), 7)
    store = await world.stored()
    first, *rest = store.catalog().live(0)
    assert (first.start, first.end, first.is_absent, first.rows) == (0, 7, True, 0)
    assert rest[0].start == 7
    assert min(row[1] for row in store.rows()) >= 0
    with closing(Log(world.data, create=False)) as log:
        log.trim(TopicPartition(EVENTS, 0), 9)
    await world.stored()
    assert store.catalog().live(0)[0].end == 7  # it was stored before


async def test_the_store_does_not_go_on_over_messages_that_the_log_has(world: World) -> None:
    world.send(40)
    await world.work()
    store = await world.started()
    store.deliver(without={(0, 5), (0, 6)})
    with capture_logs() as logs, pytest.raises(MessagesSkipped, match="messages 0:5 to 6 were skipped"):
        await store.cut()
    (said,) = [each for each in logs if each["event"] == "store.messages_skipped"]
    assert (said["partition"], said["first"], said["last"], said["log_level"]) == (0, 5, 6, "critical")
    assert store.catalog().reached[0] == 5
    assert max(offset for number, offset in store.acks if number == 0) == 4
    assert skips.counted(store.storage) == 1
    with pytest.raises(MessagesSkipped):  # whatever arrives now
        await store.cut()
    assert skips.counted(store.storage) == 2
    await store.store.close()
    world.check(await world.stored())


async def test_messages_skipped_at_the_start_and_at_the_end_are_not_passed_over(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("processor.event_store.fresh_messages.STALLED", 3)
    world.send(40)
    await world.work()
    with closing(Log(world.data, create=False)) as log:
        ends = {number: log.end(TopicPartition(EVENTS, number)) for number in range(PARTITIONS)}
    store = await world.started()
    store.deliver(without={(0, 0), (1, ends[1] - 1)})
    with pytest.raises(MessagesSkipped, match="messages 0:0 to 0 "):
        await store.cut()
    store = await world.started()
    store.deliver(without={(1, ends[1] - 1)})
    await store.cut()
    assert not await store.store.cut()
    assert not await store.store.cut()
    with pytest.raises(MessagesSkipped, match=f"messages 1:{ends[1] - 1} to"):
        await store.store.cut()
    world.check(await world.stored())


async def test_offsets_that_the_log_has_no_message_for_are_passed_over(world: World) -> None:
    """As behind the markers of Kafka's transactions, and what a disk has lost."""
    world.send(40)
    await world.work()
    with closing(Log(world.data, create=False)) as log:
        base = log.number(TopicPartition(EVENTS, 0)) << OFFSET_BITS
        end = log.end(TopicPartition(EVENTS, 0))
    db = apsw.Connection(str(world.data / "log.db"))
    db.execute("DELETE FROM record WHERE id IN (?, ?, ?)", (base + 5, base + 6, base + 9))
    db.close()
    store = await world.stored()
    assert store.catalog().reached[0] == end
    offsets = {row[1] for each in store.catalog().live(0) for row in read_rows(store.storage, each)}
    assert offsets
    assert {5, 6, 9}.isdisjoint(offsets)
    assert skips.counted(store.storage) == 0


async def test_what_is_past_retention_goes_with_its_messages(world: World) -> None:
    ends, store = list[int](), await world.started()
    for day in range(4):
        world.send(6, arrival=NOON + day * DAY)
        await world.work()
        store = await world.stored()
        ends.append(store.catalog().reached[0])
    upkeep = Upkeep(store.store, retention=1, kept_for=0)
    await upkeep.expire()
    assert len(store.catalog().live(0)) == 4
    with closing(Log(world.data, create=False)) as log:
        log.trim(TopicPartition(EVENTS, 0), ends[1])
    await upkeep.expire()
    live = store.catalog().live(0)
    assert [(each.start, each.end, each.is_absent) for each in live[:1]] == [(0, ends[1], True)]
    assert live[1].start == ends[1]
    await upkeep.sweep()
    assert {path.stem for path in store.path.glob("0000-*.parquet")} == {each.id for each in live if each.has_files}
    again = await world.stored()
    assert again.catalog().live(0) == live


async def test_the_store_stops_at_the_reserve_and_goes_on_when_there_is_room(world: World) -> None:
    world.send(10)
    await world.work()
    store = await world.started()
    store.directory.min_free = 1 << 62
    store.deliver()
    await store.cut()
    assert (store.rows(), store.acks) == ([], [])
    store.directory.min_free = 0
    await store.cut()
    world.check(store)


async def test_a_cut_that_fails_is_done_again(world: World) -> None:
    world.send(10)
    await world.work()
    store = await world.started()
    store.deliver()
    store.writer.error = OSError(28, "No space left on device")
    with pytest.raises(OSError, match="No space"):
        await store.cut()
    assert store.acks == []
    store.writer.error = None
    await store.cut()
    world.check(store)


async def test_a_partition_whose_messages_wait_is_held(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("processor.event_store.store.MIN_WAITING", 100)
    monkeypatch.setattr("processor.event_store.store.MAX_WAITING", 200)
    world.send(20)
    await world.work(commit=False)
    store = await world.started()
    store.deliver()
    assert store.held == [0, 1]


async def test_partitions_are_given_up_while_one_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kafka's consumer has one thread, which waits for the store to give partitions up: what it is to do for one that
    goes on comes after that. The store waited for it before it gave any up, for ever."""
    monkeypatch.setattr("processor.event_store.store.MIN_WAITING", 100)
    monkeypatch.setattr("processor.event_store.store.MAX_WAITING", 200)
    world.send(20)
    await world.work()
    store = await world.started()
    store.deliver()
    given: list[dict[int, int]] = []

    async def give_up() -> None:
        given.append(await store.store.release([0, 1]))

    store.on_going_on = give_up
    await asyncio.wait_for(store.cut(), PATIENCE)
    assert given == [store.catalog().reached]
    assert store.went_on == [0]  # the other one is not this store's any more


async def test_what_was_held_goes_on_once_it_is_stored(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("processor.event_store.store.MIN_WAITING", 100)
    monkeypatch.setattr("processor.event_store.store.MAX_WAITING", 200)
    world.send(20)
    await world.work()
    store = await world.started()
    store.deliver()
    await store.cut()
    assert (store.held, store.went_on) == ([0, 1], [0, 1])
    world.check(store)


async def test_no_partition_is_cut_after_it_was_given_up(world: World) -> None:
    world.send(20)
    await world.work()
    store = await world.started()
    store.deliver()
    assert await store.store.release([0]) == {0: 0}
    await store.cut()
    assert store.catalog().reached.keys() == {1}
    assert store.store.reached(0) is None
    other = StoreInProcess(world.data)
    await other.bring([0])
    other.deliver()
    await other.cut()
    world.check(other)


def test_a_directory_of_another_log_is_refused(tmp_path: Path) -> None:
    directory = StoreDirectory(tmp_path / "events")
    directory.claim("one", is_shared=False, has_segments=False)
    directory.claim("one", is_shared=True, has_segments=True)
    with pytest.raises(HistoryMismatch, match="belongs to the log one"):
        directory.claim("two", is_shared=False, has_segments=False)


def test_a_shared_directory_without_its_mark_is_not_made_anew(tmp_path: Path) -> None:
    directory = StoreDirectory(tmp_path / "events")
    with pytest.raises(HistoryMismatch, match="Mount it"):
        directory.claim("one", is_shared=True, has_segments=True)
    directory.claim("one", is_shared=True, has_segments=False)
    assert (tmp_path / "events" / MARK).read_text() == "one\n"


def test_the_reserve_is_two_gibibytes_or_a_share(tmp_path: Path) -> None:
    assert StoreDirectory(tmp_path).reserve() >= 2 << 30
    assert StoreDirectory(tmp_path, 5).reserve() == 5
    assert StoreDirectory(tmp_path, 0).has_room()
    assert not StoreDirectory(tmp_path, 0).has_room(1 << 62)


def test_no_path_is_made_of_what_is_no_id(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not the id"):
        StoreDirectory(tmp_path).remove("../0000")


async def test_a_log_of_an_earlier_version_gets_a_store(world: World) -> None:
    world.send(10)
    await world.work()
    db = apsw.Connection(str(world.data / "log.db"))
    db.execute("DELETE FROM partition WHERE topic = ?", (SEGMENTS,))
    db.close()
    store = await world.stored()
    world.check(store)


async def test_a_damaged_file_is_deleted_and_its_range_made_anew(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await world.started()
    for _ in range(3):
        world.send(5)
        await world.work()
        store.deliver()
        await store.cut()
    rows, before = store.rows(), store.catalog()

    def unreadable(*_: object) -> None:
        raise SegmentUnreadable("it cannot be read")

    upkeep = Upkeep(store.store, fan_in=3)
    path = next(store.path.glob("0000-*.parquet"))
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    with monkeypatch.context() as patched:
        patched.setattr(store.writer, "merge", unreadable)
        patched.setattr("processor.event_store.upkeep.stored_sums.check", digests(path.stem))
        await merge_all(upkeep)
    assert not path.exists()
    assert await upkeep.repair_one()
    assert not await upkeep.repair_one()
    assert store.rows() == rows
    after = store.catalog()
    assert after.generation(0) == before.generation(0) == 0
    assert [(each.start, each.end) for each in after.live(0)] == [(each.start, each.end) for each in before.live(0)]
    others = {each.id for each in before.live() if each.id != path.stem}
    assert others < {each.id for each in after.live()}
    await merge_all(upkeep)
    world.check(store)


async def test_segments_of_a_disk_that_fails_once_are_merged_later_and_those_behind_them_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One read that failed kept all of the partition from being merged until the next start."""
    store = await world.started()
    for _ in range(6):
        world.send(5)
        await world.work()
        store.deliver()
        await store.cut()
    merge, fails, later = store.writer.merge, [True], [0.0]

    def fails_once(*arguments: Any) -> Segment:
        if fails:
            fails.clear()
            raise SegmentUnreadable("input/output error")
        return merge(*arguments)

    def levels() -> list[list[int]]:
        return sorted([each.level for each in store.catalog().live(number)] for number in range(PARTITIONS))

    monkeypatch.setattr(store.writer, "merge", fails_once)
    monkeypatch.setattr("processor.event_store.upkeep.stored_sums.check", lambda *_: None)
    monkeypatch.setattr("processor.event_store.upkeep.time.monotonic", lambda: later[0])
    upkeep = Upkeep(store.store, fan_in=3)
    await merge_all(upkeep)
    assert levels() == [[0, 0, 0, 1], [1, 1]]
    later[0] = LEFT_OUT_FOR
    await merge_all(upkeep)
    assert levels() == [[1, 1], [1, 1]]
    world.check(store)


async def test_a_repair_in_many_pieces_is_one_segment(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("processor.event_store.fresh_messages.MAX_ROWS", 3)
    monkeypatch.setattr("processor.event_store.repair.BATCH", 4)
    store = await world.started()
    for _ in range(2):
        world.send(20)
        await world.work()
        store.deliver()
        await store.cut()
        await merge_all(Upkeep(store.store))
    rows, live = store.rows(), store.catalog().live(0)
    largest = max(live, key=lambda each: each.rows)
    assert largest.level
    assert 2 * largest.rows < sum(each.rows for each in live) or len(live) > 1
    store.directory.remove(largest.id)
    store.store.lacking[largest.id] = largest
    assert await Upkeep(store.store).repair_one()
    assert store.rows() == rows
    world.check(store)
    names = {each.id for each in store.catalog().live() if each.rows}
    assert names <= {path.stem for path in store.path.glob("*.parquet")}
    (made,) = [each for each in store.catalog().live(0) if each.start == largest.start]
    assert (made.end, made.level, made.claims_from) == (largest.end, largest.level, largest.claims_from)
    pieces = [each for each in store.path.glob("*.idx") if each.stem.startswith(f"0000-{made.start}-")]
    assert [each.stem for each in pieces if each.stem == made.id] == [made.id]


@pytest.mark.parametrize("rows", [3, 50_000])
async def test_a_repair_that_meets_a_newer_message_replaces_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """Else the rest of its range would be gone for good, as a segment without it would stand there."""
    monkeypatch.setattr("processor.event_store.fresh_messages.MAX_ROWS", rows)
    store = await world.started()
    world.send(40)
    await world.work()
    store.deliver()
    await store.cut()
    upkeep = Upkeep(store.store)
    await merge_all(upkeep)
    before, largest = store.catalog().live(), max(store.catalog().live(0), key=lambda each: each.end - each.start)
    assert largest.end - largest.start > 1
    kept = [row for row in store.rows() if row not in read_rows(store.path, largest)]
    store.directory.remove(largest.id)
    store.store.lacking[largest.id] = largest
    files = sorted(path.name for path in store.path.iterdir())
    decode = message.decode
    met: list[bytes] = []

    def older(value: bytes, *, packed_users: bool) -> Message:
        met.append(value)
        if len(met) > 1:
            raise UnknownVersion(message.VERSION + 1)
        return decode(value, packed_users=packed_users)

    with capture_logs() as logged, monkeypatch.context() as patched:
        patched.setattr("processor.event_store.fresh_messages.message.decode", older)
        await upkeep.repair_one()
        assert len(met) == 2
        assert not await upkeep.repair_one()
    assert store.catalog().live() == before
    assert "store.repair_refused" in [line["event"] for line in logged]
    assert sorted(path.name for path in store.path.iterdir()) == files
    assert await Upkeep(store.store).repair_one()  # by the program that knows it
    assert [row for row in store.rows() if row in kept] == kept
    world.check(store)


@pytest.mark.parametrize("part", [1, 0])
async def test_what_a_repair_cannot_have_is_said(world: World, part: int) -> None:
    """The log has deleted all of a range, or all but its last message."""
    store = await world.started()
    for _ in range(3):
        world.send(8)
        await world.work()
        store.deliver()
        await store.cut()
    first = store.catalog().live(0)[0]
    last = first.end if part else first.end - 1
    kept = [
        row
        for segment in store.catalog().live()
        for row in read_rows(store.path, segment)
        if segment.id != first.id or row[1] >= last
    ]
    with closing(Log(world.data, create=False)) as log:
        log.trim(TopicPartition(EVENTS, 0), last)
    store.directory.remove(first.id)
    store.store.lacking[first.id] = first
    with capture_logs() as logged:
        assert await Upkeep(store.store).repair_one()
    assert store.rows() == sorted(kept)
    head = store.catalog().live(0)[0]
    assert (head.start, head.end, head.is_absent) == (0, first.end, bool(part))
    assert "store.lost" in [line["event"] for line in logged]
    assert not store.store.lacking


async def merge_all(upkeep: Upkeep) -> None:
    while await upkeep.merge_one():
        pass


def digests(damaged: str) -> Callable[[Path, Segment], None]:
    def check(directory: Path, segment: Segment) -> None:
        if segment.id == damaged:
            raise DamagedSegment(f"{segment.id} is damaged")

    return check
