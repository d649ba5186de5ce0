"""A flipped bit in a record of the embedded log: made anew, or named; it is never a wrong sum."""

import asyncio
import json
import shutil
import signal
import time
from pathlib import Path
from typing import Final

import apsw
import pytest

from processor.log.embedded.log import Log
from processor.log.topics import CLAIMS, DEAD_LETTERS, DIRECTORY, EVENTS, ROWS
from tests.chaos import faults
from tests.support import clients
from tests.support.events import make_event, to_ndjson
from tests.support.patience import PROCESS_PATIENCE
from tests.support.server import NotReady, Server, losses_in, server, wait_until

USERS: Final = 30


def flip(data_dir: Path, topic: str, *, first: bool = False) -> int:
    """Flip a bit in the middle of the newest (or first) value of a topic; returns the record's offset."""
    order = "min" if first else "max"
    db = apsw.Connection(str(data_dir / "log.db"))
    db.set_busy_timeout(10_000)
    number = db.execute("SELECT number FROM partition WHERE topic = ?", (topic,)).get
    where = f"SELECT {order}(id) FROM record WHERE id >> 40 = ? AND value IS NOT NULL"
    record = db.execute(where, (number,)).get
    value = bytearray(db.execute("SELECT value FROM record WHERE id = ?", (record,)).get)
    value[len(value) // 2] ^= 4
    db.execute("UPDATE record SET value = ? WHERE id = ?", (bytes(value), record))
    db.close()
    return int(record & (1 << 40) - 1)


async def post(started: Server, body: bytes) -> int:
    async with clients.reader(started) as reader:
        return (await reader.ingest(body)).status


async def requests(started: Server, patience: float = PROCESS_PATIENCE, expected: int = USERS) -> int:
    deadline = time.monotonic() + patience
    async with clients.reader(started) as reader:
        while True:
            found: int = (await reader.get("/v1/users?limit=1000"))["total"]["requests"]
            if found == expected or time.monotonic() > deadline:
                return found
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("topic", [ROWS, CLAIMS])
async def test_damaged_rows_and_claims_are_made_anew(tmp_path: Path, topic: str) -> None:
    body = to_ndjson([make_event(user_id=f"u{number}") for number in range(USERS)])
    with server(tmp_path / "data") as started:
        assert await post(started, body) == 202
        assert await requests(started) == USERS
        await asyncio.to_thread(started.stop)
        offset = flip(started.data_dir, topic)
        if topic == CLAIMS:
            shutil.rmtree(started.data_dir / "index")
        await asyncio.to_thread(started.start)
        assert f"record {topic}:0:{offset} is damaged" in started.log()
        assert [entry["partition"] for entry in started.entries("partition.repaired")] == [0]
        assert await requests(started) == USERS
        assert await post(started, body) == 202
        assert await post(started, to_ndjson([make_event(user_id="another")])) == 202
        assert await requests(started, expected=USERS + 1) == USERS + 1, "no copy is counted, and what is new is"
        assert await asyncio.to_thread(clients.verify, started) == []


async def test_a_damaged_event_that_was_counted_stays_counted_and_is_named(tmp_path: Path) -> None:
    with server(tmp_path / "data") as started:
        assert await post(started, to_ndjson([make_event(user_id=f"u{number}") for number in range(USERS)])) == 202
        assert await requests(started) == USERS
        await asyncio.to_thread(started.stop)
        offset = flip(started.data_dir, EVENTS)
        await asyncio.to_thread(started.start)
        assert await requests(started) == USERS
        done = await asyncio.to_thread(started.cli, "verify")
        assert done.returncode == 1
        assert f"record {EVENTS}:0:{offset}" in done.stdout


async def test_a_damaged_event_that_was_not_counted_is_a_dead_letter_and_never_counted(tmp_path: Path) -> None:
    with server(tmp_path / "data") as started:
        assert await post(started, to_ndjson([make_event(user_id=f"u{number}") for number in range(USERS)])) == 202
        assert await requests(started) == USERS
        started.signal("worker", signal.SIGSTOP)  # what comes now waits
        assert await post(started, to_ndjson([make_event(user_id="damaged") for _ in range(5)])) == 202
        await asyncio.to_thread(started.kill_all)
        offset = flip(started.data_dir, EVENTS)
        await asyncio.to_thread(started.start)
        assert await requests(started) == USERS
        [letter] = started.entries("message.dead")
        assert (letter["offset"], "is damaged" in letter["reason"]) == (offset, True)
        assert await post(started, to_ndjson([make_event(user_id="next")])) == 202
        assert await requests(started, expected=USERS + 1) == USERS + 1
        async with clients.reader(started) as reader:
            ready = await reader.request("GET", "/readyz")
        assert ready.status == 200
        [warning] = losses_in(json.dumps(ready.json))
        assert f"events {offset} to {offset} of partition 0" in warning
        done = await asyncio.to_thread(started.cli, "dlq", "retry", "--all")
        assert "their bytes are not those that were stored" in done.stdout
        assert await requests(started, expected=USERS + 1) == USERS + 1


@pytest.mark.parametrize("topic", [DIRECTORY, DEAD_LETTERS])
async def test_what_cannot_be_made_anew_refuses_the_start_by_name(tmp_path: Path, topic: str) -> None:
    with server(tmp_path / "data") as started:
        if topic == DEAD_LETTERS:
            log = Log(started.data_dir, create=False)
            faults.put(log, faults.poison("junk", 0, 1))
            await asyncio.to_thread(wait_until, lambda: started.entries("message.dead") != [])
            log.close()
        await asyncio.to_thread(started.stop)
        offset = flip(started.data_dir, topic, first=True)
        if topic == DIRECTORY:
            with pytest.raises(NotReady, match=f"record {topic}:0:{offset} is damaged"):
                await asyncio.to_thread(started.start, 20)
        else:
            await asyncio.to_thread(started.start)  # a letter says nothing that a table has
            assert f"record {topic}:0:{offset} is damaged" in started.log()


async def test_a_damaged_row_that_only_a_starting_api_meets_is_made_anew(tmp_path: Path) -> None:
    """The worker that runs has its rows in memory and reads none: it is started anew."""
    with server(tmp_path / "data") as started:
        assert await post(started, to_ndjson([make_event(user_id=f"u{number}") for number in range(USERS)])) == 202
        assert await requests(started) == USERS
        flip(started.data_dir, ROWS)
        started.kill("api")
        await asyncio.to_thread(wait_until, lambda: started.entries("partition.repaired") != [])
        await asyncio.to_thread(wait_until, started.is_ready)
        assert await requests(started) == USERS
        assert await post(started, to_ndjson([make_event(user_id="next")])) == 202
        assert await requests(started, expected=USERS + 1) == USERS + 1
        assert len(started.entries("partition.repaired")) == 1


async def test_a_damaged_event_that_is_delivered_again_stays_counted(tmp_path: Path) -> None:
    """A kill takes the worker back to its last commit; what it reads again was counted before it was damaged."""
    body = to_ndjson([make_event(user_id=f"u{number}") for number in range(USERS)])
    with server(tmp_path / "data") as started:
        assert await post(started, body) == 202
        assert await requests(started) == USERS
        await asyncio.to_thread(started.kill_all)
        db = apsw.Connection(str(started.data_dir / "log.db"))
        db.execute("DELETE FROM committed WHERE consumer = 'spendstream'")  # the oldest that it can be
        db.execute("INSERT INTO committed SELECT 'spendstream', number, 0 FROM partition WHERE topic = ?", (EVENTS,))
        db.close()
        flip(started.data_dir, EVENTS)
        for _ in range(3):
            await asyncio.to_thread(started.start)
            assert await requests(started) == USERS
            assert started.entries("message.dead") == started.entries("events.lost") == []
            await asyncio.to_thread(started.kill_all)
        await asyncio.to_thread(started.start)
        assert await post(started, body) == 202
        assert await post(started, to_ndjson([make_event(user_id="next")])) == 202
        assert await requests(started, expected=USERS + 1) == USERS + 1


async def test_a_damaged_directory_is_no_reason_to_make_rows_anew(tmp_path: Path) -> None:
    with server(tmp_path / "data") as started:
        assert await post(started, to_ndjson([make_event(user_id="u")])) == 202
        assert await requests(started, expected=1) == 1
        offset = flip(started.data_dir, DIRECTORY)
        started.kill("worker")
        named = f"record {DIRECTORY}:0:{offset} is damaged"
        await asyncio.to_thread(wait_until, lambda: named in started.log())
        await asyncio.sleep(3)
        assert started.entries("partition.repaired") == []
