"""Retention under a real worker, killed wherever it is."""

import json
import os
import random
import time
from pathlib import Path
from typing import Any, Final

from processor.core.clock import DAY, HOUR
from processor.log.embedded.log import Log
from processor.log.records import TopicPartition
from processor.log.topics import EVENTS, ROWS
from tests.support import cli_host
from tests.support.clock import Clock
from tests.support.events import make_event
from tests.support.logs import put
from tests.support.patience import PROCESS_PATIENCE
from tests.support.server import environment, run_cli, wait_until

PARTITIONS = 2
STEP: Final = 26
"""Hours that pass in each life of the worker."""

LIVES: Final = 4
"""In which, all in all, more time passes than there are days of events."""

SETTINGS = {"retention": 1, "retention_interval": 0.05, "log_format": "json"}


def launch(data_dir: Path) -> cli_host.Command:
    with Path(os.devnull).open("r+b") as nothing:
        streams = (nothing.fileno(),) * 3
        return cli_host.Command(["worker"], environment(data_dir, SETTINGS), Path(__file__).parents[2], streams)


def is_done(log: Log, now: int) -> bool:
    """Whether everything is applied, and everything old is gone: a day of retention, one that what deletes is behind,
    and what passes between two looks of the clock."""
    for number in range(PARTITIONS):
        rows, events = TopicPartition(ROWS, number), TopicPartition(EVENTS, number)
        last = log.read(rows, max(0, log.end(rows) - 1))
        if not last or json.loads(last[0].value or b"[-1]")[0] != log.end(events) - 1:
            return False
        if any(record.at < now - 2 * DAY - 2 * STEP * HOUR for record in log.read(events, 0)):
            return False
    return True


def test_kills_while_events_are_sealed_and_deleted_change_nothing(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    rng = random.Random(seed)
    data = tmp_path / "data"
    log = Log(data, partitions=PARTITIONS)
    now = time.time_ns() // 1000
    events = [make_event(user_id=f"u{number % 50}") for number in range(3000)]
    for start in range(0, len(events), 20):  # four days of events, the last of them young
        arrival = now - 4 * DAY + start * 4 * DAY // len(events)
        put(log, [*events[start : start + 20], *rng.sample(events[: start + 20], 2)], arrival=arrival)
    with Clock(tmp_path).held() as clock:

        def put_one() -> None:
            """Of now, in each partition: with them the worker writes down for how long it ran."""
            while len(put(log, [make_event(user_id="now") for _ in range(20)], arrival=today())) < PARTITIONS:
                pass

        def today() -> int:
            return time.time_ns() // 1000 + int(clock.passed * 1e6)

        kills = 0
        for _ in range(LIVES):
            process = launch(data)
            put_one()
            wait_until(lambda: progress(log) == end_of(log))
            time.sleep(1.2)
            clock.let_pass(STEP * 3600)
            put_one()
            try:
                process.wait(rng.uniform(0.5, 3.0))
            except TimeoutError:
                process.kill()
                process.wait(PROCESS_PATIENCE)
                kills += 1
            verified = run_cli(data, "verify")
            assert (verified.returncode, verified.stderr) == (0, ""), f"seed {seed}: {verified}"
        assert kills == LIVES
        process = launch(data)
        try:
            put_one()
            wait_until(lambda: is_done(log, today()))
            verified = run_cli(data, "verify")  # beside the worker
            assert verified.returncode == 0, f"seed {seed}: {verified}"
            assert all(record.at > now for number in range(PARTITIONS) for record in log.read(events_of(number), 0))

            # What is gone is remembered: the same events again are copies, and they are old no more.
            for start in range(0, len(events), 500):
                put(log, events[start : start + 500], arrival=today())
            wait_until(lambda: is_done(log, today()))
        finally:
            process.terminate()
            process.wait(PROCESS_PATIENCE)
        shown = json.loads(run_cli(data, "users", "--json").stdout)
        assert shown["total"]["requests"] - requests_of(shown, "now") == len(events), f"seed {seed}"
        assert run_cli(data, "verify").returncode == 0, f"seed {seed}"


def events_of(number: int) -> TopicPartition:
    return TopicPartition(EVENTS, number)


def end_of(log: Log) -> list[int]:
    return [log.end(events_of(number)) for number in range(PARTITIONS)]


def progress(log: Log) -> list[int]:
    """The offsets up to which the tables go."""
    found = []
    for number in range(PARTITIONS):
        rows = TopicPartition(ROWS, number)
        last = log.read(rows, max(0, log.end(rows) - 1))
        found.append(json.loads(last[0].value or b"[-1]")[0] + 1 if last else 0)
    return found


def requests_of(shown: dict[str, Any], user: str) -> int:
    return sum(each["requests"] for each in shown["users"] if each["user_id"] == user)
