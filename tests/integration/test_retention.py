"""Retention under a real worker, killed wherever it is."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from processor.core.clock import DAY
from processor.log.store import Log, TopicPartition
from processor.log.topics import EVENTS, ROWS
from tests.support.events import make_event
from tests.support.logs import put
from tests.support.server import environment, run_cli, wait_until

PARTITIONS = 2
SETTINGS = {"retention": 1, "retention_interval": 0.05, "log_format": "json"}


def launch(data_dir: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "processor"],
        env=environment(data_dir, SETTINGS),
        cwd=Path(__file__).parents[2],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def is_done(log: Log) -> bool:
    """Whether everything is applied, and everything old is gone."""
    for number in range(PARTITIONS):
        rows, events = TopicPartition(ROWS, number), TopicPartition(EVENTS, number)
        last = log.read(rows, max(0, log.end(rows) - 1))
        if not last or json.loads(last[0].value or b"[-1]")[0] != log.end(events) - 1:
            return False
        if any(record.at < time.time_ns() // 1000 - 2 * DAY for record in log.read(events, 0)):
            return False
    return True


@pytest.mark.timeout(180)
def test_kills_while_events_are_sealed_and_deleted_change_nothing(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    rng = random.Random(seed)
    log = Log(tmp_path, partitions=PARTITIONS)
    now = time.time_ns() // 1000
    events = [make_event(user_id=f"u{number % 50}") for number in range(6000)]
    for start in range(0, len(events), 20):  # four days of events, the last of them young
        arrival = now - 4 * DAY + start * 4 * DAY // len(events)
        put(log, [*events[start : start + 20], *rng.sample(events[: start + 20], 2)], arrival=arrival)
    kills = 0
    for _ in range(6):
        process = launch(tmp_path)
        try:
            process.wait(rng.uniform(1.0, 4.0))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        verified = run_cli(tmp_path, "verify")
        assert (verified.returncode, verified.stderr) == (0, ""), f"seed {seed}: {verified}"
    assert kills == 6
    process = launch(tmp_path)
    try:
        wait_until(lambda: is_done(log), 60)
        verified = run_cli(tmp_path, "verify")  # beside the worker
        assert verified.returncode == 0, f"seed {seed}: {verified}"
        assert all(log.first(TopicPartition(EVENTS, number)) > 0 for number in range(PARTITIONS))

        # What is gone is remembered: the same events again are copies, and they are old no more.
        for start in range(0, len(events), 500):
            put(log, events[start : start + 500], arrival=now)
        wait_until(lambda: is_done(log), 60)
    finally:
        process.terminate()
        process.wait(20)
    shown = run_cli(tmp_path, "users", "--json")
    assert json.loads(shown.stdout)["total"]["requests"] == len(events), f"seed {seed}"
    assert run_cli(tmp_path, "verify").returncode == 0, f"seed {seed}"
