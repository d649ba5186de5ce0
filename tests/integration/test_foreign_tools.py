"""Other programs look at log.db beside a running server: nothing that was acknowledged is lost by it."""

import asyncio
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support import clients
from tests.support.clients import Pace, Tally
from tests.support.server import NotReady, Server, server, wait_until
from tests.support.traffic import make_traffic

EVENTS: Final = 4_000
LOOKS: Final = 3

_COUNT: Final = "SELECT count(*) FROM record"
_MODULE: Final = f"""
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
print(db.execute("{_COUNT}").fetchone()[0])
db.close()
"""
_BACKUP: Final = """
import sqlite3, sys
source, copy = sqlite3.connect(sys.argv[1]), sqlite3.connect(sys.argv[1] + ".copy")
source.backup(copy)
copy.close()
source.close()
"""


def look(tool: str, log: Path) -> None:
    """Look at the log, as somebody at a terminal would, and close it again."""
    if tool == "shell":
        program = shutil.which("sqlite3")
        if program is None:
            pytest.skip("the program sqlite3 is not installed")
        for command in (_COUNT, f".backup {log}.copy"):
            subprocess.run([program, str(log), command], check=True, capture_output=True)
    else:
        for script in (_MODULE, _BACKUP):
            subprocess.run([sys.executable, "-c", script, str(log)], check=True, capture_output=True)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Server]:
    with server(tmp_path / "data") as found:
        yield found


@pytest.mark.parametrize("end", ["stop", "kill"])
@pytest.mark.parametrize("tool", ["shell", "module"])
async def test_looking_at_the_log_beside_a_server_loses_nothing(started: Server, tool: str, end: str) -> None:
    traffic = make_traffic(random.SystemRandom().randrange(10**6), EVENTS)
    tally, pace = Tally(), Pace(traffic.events, 1_500)
    sending = asyncio.create_task(clients.send(started, traffic, tally, pace))
    log = started.data_dir / "log.db"
    for _ in range(LOOKS):
        await asyncio.sleep(0.4)
        await asyncio.to_thread(look, tool, log)
    await sending
    await asyncio.to_thread(look, tool, log)
    if end == "stop":
        code, _ = await asyncio.to_thread(started.stop)
        assert code == 0
        assert log.with_name("log.db-wal").stat().st_size == 0, "a clean stop leaves everything in the file"
    else:
        await asyncio.to_thread(started.kill_all)
    await asyncio.to_thread(started.start)
    async with clients.reader(started) as reader:
        await reader.caught_up(traffic.truth.unique)
        assert await reader.differences(traffic.truth, exact_duplicates=tally.retries == 0) == []
    assert await asyncio.to_thread(clients.verify, started) == []
    assert started.entries("log.broken") == []


async def test_a_server_whose_write_ahead_log_is_deleted_ends_and_comes_back(started: Server) -> None:
    await send(started)
    before = dict(started.children())
    (started.data_dir / "log.db-wal").unlink()
    await asyncio.to_thread(wait_until, lambda: all(started.children()[role] != pid for role, pid in before.items()))
    broken = started.entries("log.broken")
    assert broken
    assert all("was deleted while it was in use" in entry["error"] for entry in broken)
    await asyncio.to_thread(wait_until, started.is_ready)
    assert await asyncio.to_thread(clients.verify, started) == []


async def test_a_server_whose_log_is_deleted_begins_no_new_one(started: Server) -> None:
    await send(started)
    (started.data_dir / "log.db").unlink()
    gone = "is gone, and other files in"
    await asyncio.to_thread(wait_until, lambda: gone in started.log())
    assert not (started.data_dir / "log.db").exists()
    await asyncio.to_thread(started.kill_all)
    with pytest.raises(NotReady, match=gone):
        await asyncio.to_thread(started.start)


async def send(started: Server) -> None:
    traffic = make_traffic(random.SystemRandom().randrange(10**6), 1_000)
    await clients.send(started, traffic, Tally())
    async with clients.reader(started) as reader:
        await reader.caught_up(traffic.truth.unique)
