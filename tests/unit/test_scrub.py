"""The slow check of a store's files finds what a disk has changed, and has it made anew."""

import asyncio
import errno
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from processor.core.clock import DAY, SECOND
from processor.event_store.manifest import Segment
from processor.event_store.scrub import LOOK, Scrub
from processor.event_store.scrub_round import Round, Rounds, age, read_rounds
from processor.event_store.segment_storage import SegmentStorage
from processor.event_store.upkeep import LOOK as MERGE_LOOK
from processor.event_store.upkeep import Upkeep
from tests.support.memory_storage import MemoryStorage
from tests.support.patience import PATIENCE, until
from tests.support.store import StoreInProcess
from tests.support.tables import NOON
from tests.unit.test_store import PARTITIONS, World

WEEK = 7 * DAY


class Scrubbed:
    """A store with some segments of each partition, its upkeep and its check; time is turned by hand."""

    def __init__(self, world: World, store: StoreInProcess) -> None:
        self.world = world
        self.store = store
        self.upkeep = Upkeep(store.store)
        self.rows = store.rows()
        self.restart()

    def restart(self) -> None:
        self.scrub = Scrub(self.store.store, self.upkeep, WEEK / SECOND, pause=0)

    @property
    def live(self) -> list[Segment]:
        return [each for each in self.store.catalog().live() if each.has_files]

    async def round(self) -> None:
        """Let a week go by, in steps of an hour."""
        for _ in range(7 * 24 + 1):
            self.store.now += WEEK // (7 * 24)
            while await self.scrub.check_next() == 0.0:
                pass

    async def repair(self) -> int:
        count = 0
        while await self.upkeep.repair_one():
            count += 1
        return count


@pytest.fixture(params=["directory", "memory"])
async def scrubbed(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Scrubbed]:
    world = World(tmp_path / "data")
    storage = MemoryStorage() if request.param == "memory" else None
    store = StoreInProcess(world.data, now=NOON, storage=storage)
    await store.bring(range(PARTITIONS))
    for _ in range(4):
        world.send(8)
        await world.work()
        store.deliver()
        await store.cut()
    yield Scrubbed(world, store)
    await store.store.close()


def flip(storage: SegmentStorage, name: str, place: int) -> None:
    """Change one bit of a file."""
    with storage.get(name) as file:
        content = bytearray(file.read())
    content[place % len(content)] ^= 1
    made = storage.put([name])
    made.files[0].write(content)
    made.commit()


async def test_a_flipped_bit_is_found_within_a_round_and_the_rows_are_made_anew(scrubbed: Scrubbed) -> None:
    store = scrubbed.store
    chosen = scrubbed.live[2]
    flip(store.storage, f"{chosen.id}.parquet", 77)
    with capture_logs() as logged:
        await scrubbed.round()
    assert [line["event"] for line in logged].count("store.damaged") == 1
    assert await scrubbed.repair() == 1
    assert store.rows() == scrubbed.rows
    scrubbed.world.check(store)
    assert chosen.id not in {each.id for each in scrubbed.live}
    assert sum(each.damaged for each in read_rounds(store.storage)) == 1
    with capture_logs() as logged:
        await scrubbed.round()
    assert "store.damaged" not in [line["event"] for line in logged]


async def test_a_missing_index_and_one_that_has_grown_are_found(scrubbed: Scrubbed) -> None:
    storage = scrubbed.store.storage
    gone, grown = scrubbed.live[0], scrubbed.live[-1]
    storage.delete(f"{gone.id}.idx")
    made = storage.put([f"{grown.id}.idx"])
    made.files[0].write(b"x")
    made.commit()
    await scrubbed.round()
    assert await scrubbed.repair() == 2
    assert scrubbed.store.rows() == scrubbed.rows


async def test_what_the_disk_cannot_read_is_damaged(scrubbed: Scrubbed, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, chosen = scrubbed.store.storage, scrubbed.live[1]
    get = storage.get

    def breaks(name: str) -> BinaryIO:
        if name == f"{chosen.id}.parquet":
            raise OSError(errno.EIO, "Input/output error")
        return get(name)

    with monkeypatch.context() as patched:
        patched.setattr(storage, "get", breaks)
        await scrubbed.round()
    assert await scrubbed.repair() == 1
    assert scrubbed.store.rows() == scrubbed.rows


async def test_what_is_sound_is_read_once_a_round_at_an_even_pace(
    scrubbed: Scrubbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: dict[str, int] = {}
    store = scrubbed.store
    get = store.storage.get

    def noted(name: str) -> BinaryIO:
        if name.endswith(".parquet"):
            assert store.now - read.setdefault(name, store.now) in {0, WEEK}  # the next round has begun, too
        return get(name)

    monkeypatch.setattr(store.storage, "get", noted)
    await scrubbed.round()
    assert sorted(read) == sorted(f"{each.id}.parquet" for each in scrubbed.live)
    for number in range(PARTITIONS):
        times = [at for name, at in read.items() if name.startswith(f"{number:04d}-")]
        sizes = [each.parquet_bytes + each.index_bytes for each in scrubbed.live if each.partition == number]
        due = [times[0] + WEEK * sum(sizes[:place]) // sum(sizes) for place in range(len(sizes))]
        assert all(0 <= at - wanted <= 2 * WEEK // (7 * 24) for at, wanted in zip(times, due, strict=True))


async def test_a_round_goes_on_after_a_restart_and_catches_up_after_a_pause(scrubbed: Scrubbed) -> None:
    while await scrubbed.scrub.check_next() == 0.0:
        pass
    before = read_rounds(scrubbed.store.storage)
    assert len(before) == PARTITIONS
    scrubbed.restart()
    assert 0 < await scrubbed.scrub.check_next() <= LOOK
    assert read_rounds(scrubbed.store.storage) == before
    scrubbed.store.now += 3 * WEEK
    checks = 0
    while await scrubbed.scrub.check_next() == 0.0:
        checks += 1
    assert checks >= len(scrubbed.live)
    assert all(each.whole == NOON for each in read_rounds(scrubbed.store.storage))


async def test_what_is_replaced_while_it_is_read_is_not_damaged(scrubbed: Scrubbed) -> None:
    """A merge deletes what the check is just going to read."""
    upkeep, store = Upkeep(scrubbed.store.store, kept_for=0, fan_in=2), scrubbed.store
    task = asyncio.create_task(scrubbed.round())
    while await upkeep.merge_one():
        await upkeep.sweep()
        await upkeep.sweep()
    await task
    assert not store.store.lacking
    assert sum(each.damaged for each in read_rounds(store.storage)) == 0
    assert store.rows() == scrubbed.rows


async def test_what_is_damaged_is_removed_while_a_merge_waits_for_the_cuts(
    scrubbed: Scrubbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    upkeep, store = Upkeep(scrubbed.store.store, fan_in=2), scrubbed.store
    merge, is_merging = store.store.writer.merge, threading.Event()

    def merged(*arguments: Any) -> Segment:
        store.store.is_behind = True
        is_merging.set()
        return merge(*arguments)

    monkeypatch.setattr(store.store.writer, "merge", merged)
    merging = asyncio.create_task(upkeep.merge_one())
    await until(is_merging.is_set)
    chosen = scrubbed.live[-1]
    flip(store.storage, f"{chosen.id}.parquet", 77)
    async with asyncio.timeout(PATIENCE):
        assert await upkeep.remove_damaged([chosen])
        await merging
    assert list(store.store.lacking) == [chosen.id]
    while await upkeep.repair_one():
        pass
    assert store.rows() == scrubbed.rows


@pytest.mark.parametrize("is_given_up", [False, True])
async def test_a_merge_begins_when_no_cut_is_made_and_its_segments_are_this_store_s_still(
    scrubbed: Scrubbed, monkeypatch: pytest.MonkeyPatch, is_given_up: bool
) -> None:
    upkeep, store = Upkeep(scrubbed.store.store, fan_in=2), scrubbed.store.store
    merge, merged, is_chosen = store.writer.merge, list[Any](), threading.Event()

    def has_room(size: int) -> bool:  # the last thing that is asked about those that are chosen
        store.is_cutting = store.is_behind = True
        is_chosen.set()
        return True

    def merging(*arguments: Any) -> Segment:
        merged.append(arguments)
        return merge(*arguments)

    monkeypatch.setattr(store.directory, "has_room", has_room)
    monkeypatch.setattr(store.writer, "merge", merging)
    done = asyncio.create_task(upkeep.merge_one())
    await until(is_chosen.is_set)
    try:
        await asyncio.sleep(3 * MERGE_LOOK)
        assert merged == []
        if is_given_up:
            await store.release(range(PARTITIONS))
    finally:  # the thread would wait for ever
        store.is_cutting = store.is_behind = False
    async with asyncio.timeout(PATIENCE):
        assert await done
    assert len(merged) == (not is_given_up)


# --- rounds ---------------------------------------------------------------------------------------------------------


def segment(start: int, size: int) -> Segment:
    return Segment(
        id=f"0000-{start}-{start + 10}-aa", partition=0, start=start, end=start + 10, rows=1, parquet_bytes=size
    )


LIVE = [segment(0, 100), segment(10, 300), segment(20, 600)]


def test_a_round_ends_a_period_after_it_began() -> None:
    found, dues = Round(0, 1000), []
    while (each := found.next(LIVE)) is not None:
        dues.append(found.due(LIVE, 10_000))
        found = found.behind(each, is_damaged=each is LIVE[1])
    assert dues == [1000, 2000, 5000]
    assert found.due(LIVE, 10_000) == 11_000
    assert found.ended(11_500, 10_000) == Round(0, 11_500, damaged=1, whole=1000)
    assert found.ended(9_000, 10_000).began == 11_000
    assert Round(0, 1000).due([], 10_000) == 11_000


def test_a_clock_that_was_wrong_stops_no_round() -> None:
    storage = MemoryStorage()
    rounds = Rounds(storage)
    rounds.keep(Round(3, began=NOON + 400 * DAY, position=5))
    assert rounds.of(3, NOON, WEEK) == Round(3, NOON, 5)
    storage.contents["scrub-0003.json"] = b"{torn"
    assert rounds.of(3, NOON, WEEK) == Round(3, NOON)
    assert read_rounds(storage) == []


def test_the_age_is_that_of_the_partition_that_is_furthest_behind() -> None:
    whole = Round(0, NOON, whole=NOON - 5 * SECOND)
    assert age([whole, replace(whole, whole=NOON - 9 * SECOND)], NOON) == 9.0
    assert age([whole, Round(1, NOON)], NOON) is None
    assert age([], NOON) is None
