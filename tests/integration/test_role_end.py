"""A store, worker or query process without a supervisor ends on SIGTERM, whatever it is in the middle of: nobody kills
one that does not."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from subprocess import PIPE

import pytest

from processor.event_store.merging import FAN_IN
from processor.event_store.parquet_writer import ParquetWriter
from processor.log.embedded.log import Log
from processor.log.records import TopicPartition
from processor.log.topics import EVENTS, GROUP
from server.explore import wire
from server.explore.questions import EventsQuestion, Filters, Times
from tests.support.events import make_event
from tests.support.logs import catch_up, put
from tests.support.patience import PROCESS_PATIENCE
from tests.support.server import environment
from tests.support.store import StoreInProcess

SLOW = """
import sys, time
from {module} import {owner}
from processor.event_store import __main__ as store
from processor.event_store.merge import SegmentUnreadable
from processor.event_store.upkeep import Upkeep

def slow(self, *arguments):
    print("slow", flush=True)
    time.sleep(600)

def unreadable(self, parts):
    raise SegmentUnreadable("as if it were damaged")

{owner}.{name} = slow
if {name!r} != "_merge":
    Upkeep._merge = unreadable
store.STOP_PATIENCE = 0.5
sys.exit(store.main())
"""

UNAVAILABLE = """
import sys
from processor import __main__ as worker
from processor.log.embedded.log import Log
from processor.log.errors import LogUnavailable

def unavailable(self, *arguments):
    print("slow", flush=True)
    raise LogUnavailable("as if the disk were full")

Log.append = unavailable
worker.STOP_PATIENCE = 0.5
sys.exit(worker.main())
"""

HUNG = """
import time
from server.cli.commands import main
from server.explore import process

def hung(self, engine, question):
    print("slow", flush=True)
    time.sleep(600)

process.QueryServer._in_time = hung
process.STOP_PATIENCE = 0.5
main(["query"])
"""


@pytest.mark.parametrize(
    ("module", "owner", "name"),
    [
        ("processor.event_store.store", "Store", "_cut_all"),
        ("processor.event_store.upkeep", "Upkeep", "_merge"),
        ("processor.event_store.upkeep", "Upkeep", "_remove_damaged"),
    ],
)
def test_a_store_ends_while_what_it_does_takes_long(tmp_path: Path, module: str, owner: str, name: str) -> None:
    """The event loop's own end waited for what Faust did not let go of, and for threads: for all of a cut, or of the
    check of damaged files, before a merge or a cut of a busy machine was over."""
    _make_segments(tmp_path)
    _end(tmp_path, SLOW.format(module=module, owner=owner, name=name))


def test_a_worker_ends_while_its_rows_cannot_be_written(tmp_path: Path) -> None:
    """It tried for ever, without a supervisor: on a full disk, or while Kafka was away."""
    with closing(Log(tmp_path)) as log:
        put(log, [make_event()])
    _end(tmp_path, UNAVAILABLE)


def test_a_query_process_ends_while_a_question_hangs(tmp_path: Path) -> None:
    """Only a supervisor ended it, and what ends it where a question hangs no longer looked by then."""
    Log(tmp_path).close()
    (tmp_path / "events").mkdir()
    _end(tmp_path, HUNG, lambda: _ask(tmp_path))


def _ask(data_dir: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as asked:
        asked.connect(str(data_dir / wire.SOCKET))
        asked.sendall(wire.pack_question(EventsQuestion(project="default", filters=Filters(), times=Times())))
        while asked.recv(1 << 16):  # until the process has ended
            pass


def _end(data_dir: Path, script: str, ask: Callable[[], None] | None = None) -> None:
    """Run a role until it says that it is slow; it has to end on SIGTERM. What makes it slow is asked once it is
    ready."""
    settings = {"event_store": "on", "log_format": "json"}
    command = [sys.executable, "-c", script]
    asking: threading.Thread | None = None
    with subprocess.Popen(command, stdout=PIPE, env=environment(data_dir, settings), text=True) as process:
        try:
            assert process.stdout is not None
            said = iter(process.stdout.readline, "")
            if ask is not None:
                assert json.loads(next(said))["event"] == "ready"
                asking = threading.Thread(target=ask)
                asking.start()
            assert any(line.strip() == "slow" for line in said)
            process.send_signal(signal.SIGTERM)
            assert process.wait(PROCESS_PATIENCE) == 0
        finally:
            process.kill()
            if asking is not None:
                asking.join(PROCESS_PATIENCE)


def _make_segments(data_dir: Path) -> None:
    """Make a store that has just enough segments to merge."""
    with closing(Log(data_dir)) as log:
        for _ in range(FAN_IN):
            put(log, [make_event()])
    catch_up(data_dir)
    with closing(Log(data_dir)) as log:
        log.commit(GROUP, [(TopicPartition(EVENTS, 0), FAN_IN)])
    asyncio.run(_cut_each(data_dir))


async def _cut_each(data_dir: Path) -> None:
    store = StoreInProcess(data_dir, writer=ParquetWriter)
    await store.bring([0])
    for _ in range(FAN_IN):
        store.deliver(most=1)
        await store.cut()
    await store.store.close()
