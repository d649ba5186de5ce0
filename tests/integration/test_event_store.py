"""The event store beside a server: complete, exact after kills, made anew from the log, and never in the way."""

import asyncio
import os
import random
import shutil
import signal
import urllib.request
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from processor.event_store.store_app import EXIT_BROKEN
from processor.log.address import LogAddress
from processor.log.embedded.log import Log
from processor.log.records import TopicPartition
from processor.log.topics import EVENTS, STORE_GROUP
from tests.chaos.faults import days_within_a_month
from tests.support import clients, stored
from tests.support.clients import Reader
from tests.support.clock import Clock
from tests.support.events import make_event
from tests.support.logs import put
from tests.support.patience import PROCESS_PATIENCE, mostly_within
from tests.support.server import Server, is_alive, server, wait_until

LOWEST_PRIORITY: Final = 19


def address(started: Server) -> LogAddress:
    return LogAddress(started.data_dir)


def some(count: int, chance: random.Random) -> list[dict[str, Any]]:
    return [
        make_event(
            user_id=chance.choice([None, "anna", "bert", "élise"]),
            model=chance.choice(["gpt-4o", "claude"]),
            status=chance.choice(["success", "success", "error"]),
            cost_usd=chance.choice([0, Decimal("0.000000000001"), Decimal("0.0034"), 12]),
            timestamp=chance.choice(["2026-04-20T12:00:00Z", "2026-04-20T23:59:59.999999Z", "2026-04-21T00:00:00Z"]),
        )
        for _ in range(count)
    ]


async def send(reader: Reader, events: list[dict[str, Any]]) -> None:
    answer = await reader.ingest(events)
    assert answer.status == 202, answer.json


async def check(started: Server, events: int, generation: int = 0) -> list[dict[str, Any]]:
    """Everything sent is in the store, and adds up to the tables; returns the rows."""
    segments = await asyncio.to_thread(stored.wait_stored, address(started), generation)
    assert sum(each.rows for each in segments) == events
    assert await asyncio.to_thread(clients.verify, started) == []
    return await asyncio.to_thread(stored.rows, started.data_dir / "events", segments)


def metrics(started: Server) -> str:
    with urllib.request.urlopen(f"http://{started.http}/metrics", timeout=PROCESS_PATIENCE) as answer:
        return str(answer.read().decode())


def has_all_files(started: Server) -> bool:
    names = {path.stem for path in (started.data_dir / "events").glob("*.parquet")}
    return all(each.id in names for each in stored.live(address(started)) if each.rows)


async def test_every_counted_event_is_in_the_store_and_adds_up(tmp_path: Path) -> None:
    chance = random.Random(1)
    with server(tmp_path / "data", event_store=True, partitions=2) as started:
        async with clients.reader(started) as reader:
            sent = some(300, chance)
            for start in range(0, 300, 30):
                await send(reader, sent[start : start + 30] + sent[max(0, start - 30) : start : 3])
            await reader.caught_up(300)
            rows = await check(started, 300)
            assert {row["event_id"] for row in rows} == {event["event_id"] for event in sent}
            done = await asyncio.to_thread(started.cli, "verify")
            assert "the event store was compared from message 0 to" in done.stdout
            await send(reader, some(10, chance))
            await reader.caught_up(310)
            rows = await check(started, 310)
        code, _ = await asyncio.to_thread(started.stop)
        assert code == 0, started.log()
        assert not started.entries("child.killed")
        live = await asyncio.to_thread(stored.live, address(started))
        lost = min((each for each in live if each.rows), key=lambda each: each.rows)
        assert 2 * lost.rows < sum(each.rows for each in live if each.partition == lost.partition)
        (started.data_dir / "events" / f"{lost.id}.parquet").unlink()
        await asyncio.to_thread(started.start)
        async with clients.reader(started) as reader:
            await send(reader, some(10, chance))
            await reader.caught_up(320)
            await asyncio.to_thread(wait_until, lambda: has_all_files(started))
            again = await check(started, 320)
            assert [row for row in again if row["event_id"] in {row["event_id"] for row in rows}] == rows
            assert await asyncio.to_thread(stored.generations, address(started)) == {0: 0, 1: 0}


async def test_a_store_that_is_deleted_under_load_is_made_anew_with_equal_rows(tmp_path: Path) -> None:
    chance = random.Random(2)
    directory = tmp_path / "data" / "events"
    with server(tmp_path / "data", event_store=True) as started:
        async with clients.reader(started) as reader:
            sent = 0

            async def load() -> None:
                nonlocal sent
                while not is_over.is_set():
                    await send(reader, some(40, chance))
                    sent += 40
                    await asyncio.sleep(0.05)

            async def generation(number: int) -> None:
                """Wait until the store has begun anew so often."""

                def has_begun() -> bool:
                    return stored.generations(address(started))[0] >= number

                await asyncio.to_thread(wait_until, has_begun)

            is_over = asyncio.Event()
            loading = asyncio.create_task(load())
            await asyncio.to_thread(wait_until, lambda: stored.live(address(started)))
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
            await generation(1)
            await asyncio.to_thread(started.kill, "store")
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
            await generation(2)
            is_over.set()
            await loading
            await reader.caught_up(sent)
            rows = await check(started, sent, generation=2)
        await asyncio.to_thread(started.stop)
        shutil.rmtree(directory)
        await asyncio.to_thread(started.start)
        assert await check(started, sent, generation=3) == rows


async def test_an_older_log_under_a_newer_store(tmp_path: Path) -> None:
    """A restored backup: what is in the store alone is in no answer, and what comes instead is, once."""
    chance = random.Random(12)
    with server(tmp_path / "data", event_store=True) as started:
        async with clients.reader(started) as reader:
            await send(reader, some(50, chance))
            await reader.caught_up(50)
            rows = await check(started, 50)
        await asyncio.to_thread(started.stop)
        shutil.copy(started.data_dir / "log.db", tmp_path / "log.db")
        await asyncio.to_thread(started.start)
        async with clients.reader(started) as reader:
            await send(reader, some(30, chance))
            await reader.caught_up(80)
            await check(started, 80)
        await asyncio.to_thread(started.stop)
        shutil.copy(tmp_path / "log.db", started.data_dir / "log.db")
        await asyncio.to_thread(started.start)
        async with clients.reader(started) as reader:
            assert await check(started, 50) == rows
            newer = some(20, chance)
            await send(reader, newer)
            await reader.caught_up(70)
            found = await check(started, 70)
            assert {row["event_id"] for row in found[50:]} == {event["event_id"] for event in newer}
            names = {segment.id for segment in await asyncio.to_thread(stored.live, address(started))}
            await asyncio.to_thread(
                wait_until, lambda: {each.stem for each in (started.data_dir / "events").glob("*.parquet")} == names
            )


async def test_a_rebuild_makes_the_store_anew(tmp_path: Path) -> None:
    with server(tmp_path / "data", event_store=True) as started:
        async with clients.reader(started) as reader:
            await send(reader, some(60, random.Random(8)))
            await reader.caught_up(60)
            rows = await check(started, 60)
        refused = await asyncio.to_thread(started.cli, "rebuild")
        assert refused.returncode == 2
        await asyncio.to_thread(started.stop)
        done = await asyncio.to_thread(started.cli, "rebuild")
        assert done.returncode == 0, done.stderr
        assert "the event store are made by the next start" in done.stdout
        checked = await asyncio.to_thread(started.cli, "verify")
        assert (checked.returncode, "problem" in checked.stdout) == (0, False), checked.stdout
        await asyncio.to_thread(started.start)
        assert await check(started, 60, generation=1) == rows


async def test_kills_and_pauses_of_the_store_lose_and_repeat_nothing(tmp_path: Path) -> None:
    chance = random.Random(3)
    with server(tmp_path / "data", event_store=True, partitions=2) as started:
        async with clients.reader(started) as reader:
            for round_ in range(12):
                await send(reader, some(50, chance))
                await asyncio.sleep(chance.random() / 2)
                if round_ % 3 == 2:
                    await asyncio.to_thread(started.signal, "store", signal.SIGSTOP)
                    await send(reader, some(50, chance))
                    await asyncio.to_thread(started.signal, "store", signal.SIGCONT)
                else:
                    await asyncio.to_thread(started.kill, "store")
            await reader.caught_up(12 * 50 + 4 * 50)
            await check(started, 800)


async def test_a_store_that_stands_still_at_any_moment_keeps_no_batch_waiting(tmp_path: Path) -> None:
    """Neither while it opens the log nor while it writes: it never has the lock for which writers wait."""
    chance = random.Random(4)
    with server(tmp_path / "data", event_store=False) as started:
        async with clients.reader(started) as reader:
            for round_ in range(8):
                with server(tmp_path / "data", "store", start=False) as store:
                    store.launch()
                    await asyncio.sleep(chance.random() / 4)
                    os.kill(store.process.pid, signal.SIGSTOP)
                    await send(reader, some(50, chance))
                    await reader.caught_up(50 * (round_ + 1))
                    os.kill(store.process.pid, signal.SIGCONT)
        with server(tmp_path / "data", "store"):
            await asyncio.to_thread(stored.wait_stored, address(started))
        assert await asyncio.to_thread(clients.verify, started) == []


def writer_of(store: int) -> int:
    """The process that writes for a store, once there is one."""
    children = Path(f"/proc/{store}/task/{store}/children")
    wait_until(children.read_text)
    return int(children.read_text())


async def test_a_store_whose_writer_is_killed_begins_anew_and_loses_and_repeats_nothing(tmp_path: Path) -> None:
    chance = random.Random(5)
    with server(tmp_path / "data", event_store=True) as started:
        async with clients.reader(started) as reader:
            for _ in range(4):
                store = await asyncio.to_thread(started.signal, "store", 0)
                writer = await asyncio.to_thread(writer_of, store)
                await send(reader, some(50, chance))
                await asyncio.sleep(chance.random() / 2)
                os.kill(writer, signal.SIGKILL)
                await send(reader, some(10, chance))  # what it finds out by
                await asyncio.to_thread(wait_until, lambda: not is_alive(store))  # noqa: B023 - called before the next
            await reader.caught_up(4 * 60)
            await check(started, 240)
        assert {entry["code"] for entry in started.entries("child.ended")} == {EXIT_BROKEN}
        assert "the process that writes to the log has ended" in started.log()


async def test_a_byte_that_the_disk_has_changed_is_found_and_made_anew(tmp_path: Path) -> None:
    chance = random.Random(9)
    with server(tmp_path / "data", event_store=True, store_scrub=1e-5) as started:
        async with clients.reader(started) as reader:
            await send(reader, some(100, chance))
            await reader.caught_up(100)
            rows = await check(started, 100)
            damaged = {each.id for each in await asyncio.to_thread(stored.live, address(started)) if each.rows}
            for path in (tmp_path / "data" / "events").glob("*.parquet"):
                with path.open("r+b") as file:
                    file.seek(path.stat().st_size // 2)
                    byte = file.read(1)
                    file.seek(-1, os.SEEK_CUR)
                    file.write(bytes([byte[0] ^ 1]))
            await asyncio.to_thread(wait_until, lambda: len(started.entries("store.repaired")) == len(damaged))
            assert await check(started, 100) == rows
            assert damaged.isdisjoint(each.id for each in await asyncio.to_thread(stored.live, address(started)))
        shown = f"spendstream_store_scrub_damaged_segments {len(damaged)}.0"
        await asyncio.to_thread(wait_until, lambda: shown in metrics(started))
        assert "spendstream_store_scrub_age_seconds " in metrics(started)


async def test_the_store_stops_at_its_reserve_while_ingest_goes_on(tmp_path: Path) -> None:
    chance = random.Random(5)
    with server(tmp_path / "data", event_store=True, store_min_free="900T") as started:
        async with clients.reader(started) as reader:
            await send(reader, some(100, chance))
            await reader.caught_up(100)
            await asyncio.to_thread(wait_until, lambda: started.entries("store.disk_full") != [])
            assert await asyncio.to_thread(stored.live, address(started)) == []
        await asyncio.to_thread(started.stop)
    with server(tmp_path / "data", event_store=True) as started:
        await check(started, 100)


async def test_an_old_log_gets_a_store_while_it_is_used(tmp_path: Path) -> None:
    chance = random.Random(6)
    with server(tmp_path / "data", partitions=2) as started:  # without an event store
        async with clients.reader(started) as reader:
            for _ in range(10):
                await send(reader, some(50, chance))
            await reader.caught_up(500)
        await asyncio.to_thread(started.stop)
    assert not (tmp_path / "data" / "events").exists()
    with server(tmp_path / "data", event_store=True) as started:
        async with clients.reader(started) as reader:
            await send(reader, some(50, chance))
            await reader.caught_up(550)
        await check(started, 550)


async def test_a_store_alone_says_when_it_has_its_partitions_and_stops_at_once(tmp_path: Path) -> None:
    with closing(Log(tmp_path / "data")) as log:
        put(log, some(5, random.Random(7)))
    with server(tmp_path / "data", "store") as started:
        assert os.getpriority(os.PRIO_PROCESS, started.process.pid) == LOWEST_PRIORITY
        second = await asyncio.to_thread(started.cli, "store")
        assert second.returncode == 2

        async def trial() -> float:
            if not started.is_running:
                await asyncio.to_thread(started.start)
            code, seconds = await asyncio.to_thread(started.stop)
            assert code == 0, started.log()
            assert not is_alive(started.process.pid)
            return seconds

        await mostly_within(4, trial, trials=3)


async def test_a_store_that_crashes_again_and_again_is_waited_for_seven_days_and_not_for_ever(tmp_path: Path) -> None:
    """Nobody else notices it: events are taken and counted, the server is ready, and retention goes on in the end; the
    store records what it never had."""
    chance, blocked = random.Random(14), tmp_path / "file"
    blocked.write_text("not a directory")
    settings: dict[str, Any] = {"store_dir": blocked, "retention": 1, "retention_interval": 0.05}
    with (
        Clock(tmp_path).held(days_within_a_month(12)) as clock,
        server(tmp_path / "data", event_store=True, **settings) as started,
        closing(Log(tmp_path / "data", create=False)) as log,
    ):

        def first() -> int:
            return log.first(TopicPartition(EVENTS, 0))

        def crashes() -> int:
            return len([each for each in started.entries("child.ended") if each["child"] == "store"])

        async with clients.reader(started) as reader:
            await send(reader, some(10, chance))
            await reader.caught_up(10)

            async def pass_days(days: float, sent: int) -> None:
                """An event says how late it is. What is deleted goes by the arrivals before that, less a day."""
                clock.let_pass(days * 86_400)
                await send(reader, some(10, chance))
                await reader.caught_up(sent)

            await pass_days(3, 20)
            await pass_days(3, 30)
            await asyncio.to_thread(wait_until, lambda: crashes() > 1)
            assert {entry["child"] for entry in started.entries("child.ended")} <= {"store", "query"}
            assert (await reader.request("GET", "/readyz")).status == 200
            assert first() == 0  # two days past their time
            await pass_days(3, 40)
            await pass_days(3, 50)
            await asyncio.to_thread(wait_until, lambda: first() > 0)
            lost = started.entries("retention.not_read")
            assert {(each["group"], each["partition"]) for each in lost} == {(STORE_GROUP, 0)}
            blocked.unlink()
            gone, *kept = await asyncio.to_thread(stored.wait_stored, address(started))
            assert (gone.start, gone.end, gone.is_absent) == (0, first(), True)
            assert started.entries("store.gap") != []
            assert sum(each.rows for each in kept) == 50 - 10 * gone.end > 0
            assert await asyncio.to_thread(clients.verify, started) == []
        code, _ = await asyncio.to_thread(started.stop)
        assert code == 0, started.log()
        assert not started.entries("child.killed")
