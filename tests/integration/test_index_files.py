"""Files of the id index that do not fit the log, or are damaged, beside a real server: what is counted does not change.

"The log" is all of its files: `log.db`, `log.db-wal` and `log.db-shm`.
"""

import asyncio
import json
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import clients
from tests.support.clients import Reader, Tally, reader
from tests.support.patience import PROCESS_PATIENCE
from tests.support.server import Part, Server, server
from tests.support.traffic import Traffic, make_traffic

LIMIT = 1_500_000_000
"""Bytes of address space that a start with little data has to do with."""


async def counted(tables: Reader, duplicates: int) -> None:
    """Wait until so many duplicates have been counted, for a while."""
    deadline = time.monotonic() + PROCESS_PATIENCE
    while time.monotonic() < deadline:
        if (await tables.get("/v1/quota"))["duplicates"] >= duplicates:
            break
        await asyncio.sleep(0.1)


def halves(traffic: Traffic) -> tuple[Traffic, Traffic]:
    """The first half of the traffic and the second."""
    at, before = len(traffic.http) // 2, len(traffic.grpc) // 2
    first = Traffic(traffic.seed, traffic.http[:at], traffic.grpc[:before], [], traffic.truth)
    return first, Traffic(traffic.seed, traffic.http[at:], traffic.grpc[before:], [], traffic.truth)


def copy_log(data: Path, to: Path) -> None:
    to.mkdir()
    for file in data.glob("log.db*"):
        shutil.copy(file, to)


def restore_log(data: Path, source: Path) -> None:
    for file in data.glob("log.db*"):
        file.unlink()
    for file in source.iterdir():
        shutil.copy(file, data)


@contextmanager
def standing_still(started: Server) -> Iterator[None]:
    """Every process stands still for the length of the block: the files are those of one moment."""
    parts: tuple[Part, ...] = ("supervisor", "api", "worker")
    for part in parts:
        started.signal(part, signal.SIGSTOP)
    try:
        yield
    finally:
        for part in parts:
            started.signal(part, signal.SIGCONT)


@pytest.mark.parametrize("stopped", [True, False])
async def test_events_are_counted_again_after_an_older_log_was_restored(tmp_path: Path, stopped: bool) -> None:
    """The index knows ids that the restored log does not: they are no duplicates."""
    traffic = make_traffic(4, 6_000, duplicates=0)
    first, second = halves(traffic)
    kept = tmp_path / "kept"
    with server(tmp_path / "data", start=False) as started:
        await asyncio.to_thread(started.start)
        await clients.send(started, first, Tally())
        async with reader(started) as tables:
            await tables.caught_up(3_000)
        if stopped:
            await asyncio.to_thread(started.stop)
            copy_log(started.data_dir, kept)
            await asyncio.to_thread(started.start)
        else:  # the index is as old as the copy, or newer: what the worker has not checkpointed is in its memory only
            with standing_still(started):
                copy_log(started.data_dir, kept)
        await clients.send(started, second, Tally())
        async with reader(started) as tables:
            assert (await tables.caught_up(6_000))["duplicates"] == 0
        if stopped:  # so that the index has all of them on disk
            await asyncio.to_thread(started.stop)
            said = json.loads((started.data_dir / "index" / "0000" / "checkpoint.json").read_text())
            assert said["checkpoint"]["covered"][2] == 6_000
            await asyncio.to_thread(started.start)
        await asyncio.to_thread(started.kill_all)
        restore_log(started.data_dir, kept)
        await asyncio.to_thread(started.start)
        discarded = started.entries("index.discarded")
        if stopped:
            assert "which the log does not have" in discarded[0]["reason"]
        async with reader(started) as tables:
            await tables.caught_up(3_000)
        tally = Tally()
        await clients.send(started, traffic, tally)
        traffic.truth.duplicates = 3_000
        async with reader(started) as tables:
            await counted(tables, traffic.truth.duplicates)
            assert await tables.differences(traffic.truth, exact_duplicates=tally.retries == 0, details=20) == []
        assert clients.verify(started) == []


async def test_a_log_that_went_another_way_since_is_not_taken_for_the_one_of_the_index(tmp_path: Path) -> None:
    """The restored log has grown to the length that the index knows, with other events."""
    traffic = make_traffic(5, 6_000, duplicates=0)
    first, _ = halves(traffic)
    kept, index = tmp_path / "kept", tmp_path / "index"
    with server(tmp_path / "data", start=False) as started:
        await asyncio.to_thread(started.start)
        await asyncio.to_thread(started.stop)
        copy_log(started.data_dir, kept)
        await asyncio.to_thread(started.start)
        await clients.send(started, first, Tally())
        async with reader(started) as tables:
            await tables.caught_up(3_000)
        await asyncio.to_thread(started.stop)
        shutil.copytree(started.data_dir / "index", index)
        covered = json.loads((index / "0000" / "checkpoint.json").read_text())["checkpoint"]["covered"][0]
        restore_log(started.data_dir, kept)
        shutil.rmtree(started.data_dir / "index")
        await asyncio.to_thread(started.start)
        async with reader(started) as tables:
            for number in range(covered + 1):  # one flush each, at least as many as the index knows of
                before = (await tables.get("/v1/quota"))["used"]
                await clients.send(started, make_traffic(100 + number, 20), Tally())
                async with asyncio.timeout(PROCESS_PATIENCE):
                    while (await tables.get("/v1/quota"))["used"] == before:  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
        await asyncio.to_thread(started.stop)
        shutil.rmtree(started.data_dir / "index")
        shutil.copytree(index, started.data_dir / "index")
        await asyncio.to_thread(started.start)
        assert "is not the one that it was made from" in started.entries("index.discarded")[0]["reason"]
        async with reader(started) as tables:
            before = (await tables.get("/v1/quota"))["used"]
            await clients.send(started, first, Tally())
            assert (await tables.caught_up(before + 3_000))["used"] == before + 3_000
        assert clients.verify(started) == []


async def test_a_flipped_bit_in_a_segment_is_named_and_never_counted(tmp_path: Path) -> None:
    """With a segment that is full, so that there is a file; its blocks are read one by one as ids are looked for."""
    traffic = make_traffic(6, 56_000, duplicates=0)
    traffic = Traffic(6, [*traffic.http, *traffic.grpc], [], [], traffic.truth)
    rng = random.Random(6)
    with server(tmp_path / "data", start=False) as started:
        await asyncio.to_thread(started.start)
        await clients.send(started, traffic, Tally())
        async with reader(started) as tables:
            await tables.caught_up(traffic.truth.unique)
        await asyncio.to_thread(started.stop)
        file = started.data_dir / "index" / "0000" / "0000.idx"
        content = bytearray(file.read_bytes())
        bit = rng.randrange(8 * 4096, 8 * (len(content) - 2048))
        content[bit // 8] ^= 1 << bit % 8
        file.write_bytes(content)
        await asyncio.to_thread(started.start)
        tally = Tally()
        await clients.send(started, traffic, tally)
        traffic.truth.duplicates = traffic.truth.unique
        async with reader(started) as tables:
            await counted(tables, traffic.truth.duplicates)
            assert await tables.differences(traffic.truth, exact_duplicates=tally.retries == 0, details=20) == []
        [named] = started.entries("index.damaged")
        assert named["file"] == str(file)
        assert f"block {(bit // 8 - 4096) // (64 * 224)} " in named["reason"]
        assert started.entries("index.discarded")
        assert clients.verify(started) == []


@pytest.mark.parametrize("kind", ["checkpoint.json", "*.tail"])
async def test_a_flipped_bit_that_a_start_sees_has_the_index_built_again(tmp_path: Path, kind: str) -> None:
    traffic = make_traffic(7, 2_000, duplicates=0)
    with server(tmp_path / "data", start=False) as started:
        await asyncio.to_thread(started.start)
        await clients.send(started, traffic, Tally())
        async with reader(started) as tables:
            await tables.caught_up(2_000)
        await asyncio.to_thread(started.stop)
        [file] = (started.data_dir / "index" / "0000").glob(kind)
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        await asyncio.to_thread(started.start)
        [entry] = started.entries("index.discarded")
        assert file.name in entry["reason"]
        tally = Tally()
        await clients.send(started, traffic, tally)
        traffic.truth.duplicates = 2_000
        async with reader(started) as tables:
            await counted(tables, traffic.truth.duplicates)
            assert await tables.differences(traffic.truth, exact_duplicates=tally.retries == 0, details=20) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to a limit of its addresses")
async def test_a_server_runs_within_a_limit_of_its_addresses(tmp_path: Path) -> None:
    traffic = make_traffic(8, 3_000, duplicates=0)
    with server(tmp_path / "data", start=False, as_shipped=True) as started:
        started.launch()
        resource.prlimit(started.process.pid, resource.RLIMIT_AS, (LIMIT, LIMIT))
        started.wait_ready()
        for pid in started.children().values():
            assert resource.prlimit(pid, resource.RLIMIT_AS) == (LIMIT, LIMIT)
        await clients.send(started, traffic, Tally())
        async with reader(started) as tables:
            assert await tables.differences(traffic.truth, exact_duplicates=False, details=20) == []
        assert started.entries("child.ended") == []
