"""The role `worker` as a real process: Faust over the embedded log."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from processor.core.events import message
from processor.core.events.message import build_blocks
from processor.core.events.source import Source
from processor.log.address import LogAddress
from processor.log.embedded.log import Log
from processor.log.records import Append, TopicPartition
from processor.log.topics import EVENTS, GROUP, ROWS
from processor.state.loader import load
from processor.state.verify import verify
from tests.support.patience import PROCESS_PATIENCE
from tests.support.server import wait_until
from tests.support.tables import NOON, Usage, by_key, columns

SABOTAGE = """
import asyncio, sys
from processor import __main__ as worker
from processor.state import applier

async def fail(*_):
    raise ZeroDivisionError("sabotage")

setattr(applier.Applier, sys.argv[1], fail)
sys.exit(worker.main())
"""

SLOW = """
import asyncio, json, sys, time
from processor import __main__ as worker
from processor.state import applier

process = applier.Applier.process
began, at_work, left = 0.0, 0.0, int(sys.argv[1])

async def slowly(self, delivered):
    global began, at_work, left
    now = time.monotonic()
    began = began or now
    await asyncio.sleep(0.002)
    await process(self, delivered)
    after = time.monotonic()
    at_work += after - now
    left -= 1
    if not left:
        print(json.dumps(at_work / (after - began)), flush=True)

applier.Applier.process = slowly
sys.exit(worker.main())
"""
"""Says which part of the time it had a message in hand, from the first to the last of so many."""


def fill(data_dir: Path, messages: int, partitions: int = 1) -> int:
    """Append messages of ten events each, one of them a duplicate; returns the number of unique events."""
    log = Log(data_dir, partitions=partitions)
    source = Source("org", "p", "key", NOON, "json", "partial")
    seen: set[int] = set()
    for number in range(messages):
        events = [Usage(9 * number + n, user=f"u{n}") for n in range(10)]
        seen.update(event.id for event in events)
        parts = build_blocks(source, columns(events), partitions)
        appends = [Append(TopicPartition(EVENTS, p), [(None, message.encode([part]))]) for p, part in parts.items()]
        log.append(appends, NOON)
    log.close()
    return len(seen)


def start(data_dir: Path, *command: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *command],
        env={"SPENDSTREAM_DATA_DIR": str(data_dir), "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


@pytest.mark.parametrize("partitions", [1, 3])
def test_a_backlog_is_worked_off_and_a_clean_stop_leaves_nothing_to_replay(tmp_path: Path, partitions: int) -> None:
    unique = fill(tmp_path, 200, partitions)
    worker = start(tmp_path, "-m", "processor")
    assert worker.stdout is not None
    assert json.loads(worker.stdout.readline()) == {"event": "ready", "role": "worker"}
    log = Log(tmp_path, create=False)
    ends = {p: log.end(TopicPartition(EVENTS, p)) for p in range(partitions)}
    try:
        wait_until(lambda: worker_is_alive(worker) and all(_progress(log, p) == ends[p] - 1 for p in ends))
    finally:
        worker.terminate()
        _, errors = worker.communicate(timeout=PROCESS_PATIENCE)
    assert worker.returncode == 0, errors
    assert {p: log.committed(GROUP, TopicPartition(EVENTS, p)) for p in ends} == ends, errors
    loaded = [load(LogAddress(tmp_path), p) for p in range(partitions)]
    assert sum(row.requests for p in loaded for row in by_key(p.tables.users).values()) == unique
    for p in range(partitions):
        scratch = tmp_path / f"scratch{p}"
        scratch.mkdir()
        assert verify(log, p, scratch, lambda *_: None) == []


def _progress(log: Log, partition: int) -> int:
    """The last message that is applied; -1: none."""
    tp = TopicPartition(ROWS, partition)
    found = [record.value for record in log.read(tp, max(0, log.end(tp) - 1))]  # a flush may come in between
    return int(json.loads(found[-1])[0]) if found and found[-1] is not None else -1


def worker_is_alive(worker: "subprocess.Popen[str]") -> bool:
    assert worker.poll() is None, "the worker ended by itself"
    return True


@pytest.mark.parametrize("method", ["process", "run"])
def test_a_failure_nobody_foresaw_ends_the_process_and_loses_nothing(tmp_path: Path, method: str) -> None:
    unique = fill(tmp_path, 20)
    worker = start(tmp_path, "-c", SABOTAGE, method)
    _, errors = worker.communicate(timeout=PROCESS_PATIENCE)
    assert worker.returncode == 70, errors
    assert "sabotage" in errors
    worker = start(tmp_path, "-m", "processor")
    log = Log(tmp_path, create=False)
    try:
        wait_until(lambda: worker_is_alive(worker) and _progress(log, 0) == 19)
    finally:
        worker.terminate()
        worker.communicate(timeout=PROCESS_PATIENCE)
    assert sum(row.requests for row in by_key(load(LogAddress(tmp_path), 0).tables.users).values()) == unique


@pytest.mark.parametrize("partitions", [1, 2], ids=["alone", "beside one that has nothing new"])
def test_a_worker_that_is_behind_always_has_a_message_in_hand(tmp_path: Path, partitions: int) -> None:
    """Where a message takes longer than it takes to fetch one, the queue of the stream is always full. It waited for a
    second then, or for messages of another partition, and of what it had in hand it made nothing meanwhile."""
    log, messages = Log(tmp_path, partitions=partitions), 500
    source = Source("org", "p", "key", NOON, "json", "partial")
    made = [build_blocks(source, columns([Usage(number)]), 1)[0] for number in range(messages)]
    log.append([Append(TopicPartition(EVENTS, 0), [(None, message.encode([part])) for part in made])], NOON)
    log.close()
    worker = start(tmp_path, "-c", SLOW, str(messages))
    assert worker.stdout is not None
    try:
        assert json.loads(worker.stdout.readline())["event"] == "ready"
        share = json.loads(worker.stdout.readline() or "0")
    finally:
        worker.terminate()
        _, errors = worker.communicate(timeout=PROCESS_PATIENCE)
    assert share > 0.8, errors
