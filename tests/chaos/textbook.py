"""`python -m tests.chaos.textbook`: kill -9 of the textbook Faust application under load, and what it counts then.

The application (tests/bench/textbook.py) runs on the same embedded log as the product, through the product's transport:
what Faust's own Kafka transport loses at a start with a backlog is not even in it. Every event costs 1, so what a
user's row is off by is the number of events lost or counted twice. The last line printed is JSON.
"""

import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Final
from uuid import UUID

import click
import msgspec

from processor.log.port import scan
from processor.log.store import Append, Log, TopicPartition
from processor.log.topics import EVENTS, GROUP
from tests.bench.textbook import changelog, create_log
from tests.chaos.report import ROOT, commit

FROM: Final = TopicPartition(EVENTS, 0)
USERS: Final = 200
DUPLICATES: Final = 0.05
SPREAD: Final = 2.5
PATIENCE: Final = 300.0


class Feeder(threading.Thread):
    """Appends events at a rate, one a message, some of them twice; every append is durable."""

    def __init__(self, data: Path, rng: random.Random, events: int, rate: float) -> None:
        super().__init__(daemon=True)
        self._data = data
        self._rng = rng
        self._events = events
        self._rate = rate
        self.truth: dict[str, int] = {}

    def run(self) -> None:
        log = Log(self._data, create=False)
        sent: list[bytes] = []
        began = time.monotonic()
        while len(sent) < self._events:
            due = min(self._events, int((time.monotonic() - began) * self._rate))
            new = [self._event(sent) for _ in range(due - len(sent))]
            if new:
                log.append([Append(FROM, [(None, event) for event in new])], time.time_ns() // 1000)
                sent += new
            time.sleep(0.02)
        log.close()

    def _event(self, sent: list[bytes]) -> bytes:
        if sent and self._rng.random() < DUPLICATES:
            return self._rng.choice(sent)
        user = f"user-{self._rng.randrange(USERS)}"
        self.truth[user] = self.truth.get(user, 0) + 1
        event_id = str(UUID(int=self._rng.getrandbits(128), version=4))
        return msgspec.json.encode({"event_id": event_id, "user_id": user, "cost_usd": 1.0})


def launch(data: Path) -> "subprocess.Popen[bytes]":
    """The application."""
    command = [sys.executable, "-m", "tests.bench.textbook", str(data)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def counted(log: Log) -> dict[str, float]:
    """user -> cost, as the newest record of each in the changelog says."""
    found = {}
    for record in scan(log, TopicPartition(changelog("cost"), 0)):
        found[msgspec.json.decode(record.key or b"")] = msgspec.json.decode(record.value or b"0")
    return found


def run(data: Path, seed: int, events: int, kills: int, rate: float | None) -> dict[str, object]:
    """One run; what it came to."""
    rng = random.Random(seed)
    create_log(data)
    feeder = Feeder(data, rng, events, rate or events / (max(kills, 1) * (SPREAD + 1.5)))
    feeder.start()
    for _ in range(kills):
        process = launch(data)
        time.sleep(1.5 + rng.uniform(0, SPREAD))
        process.kill()
        process.wait()
    process = launch(data)
    feeder.join()
    log = Log(data, create=False)
    try:
        _wait(log)
        rows = counted(log)
        return _compare(feeder.truth, rows) | {"seed": seed, "kills": kills, "events": events, "commit": commit()}
    finally:
        log.close()
        process.kill()
        process.wait()


def _wait(log: Log) -> None:
    """Until all is committed, and a while longer."""
    deadline = time.monotonic() + PATIENCE
    while (log.committed(GROUP, FROM) or 0) < log.end(FROM) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(3)


def _compare(truth: dict[str, int], rows: dict[str, float]) -> dict[str, object]:
    off = [rows.get(user, 0.0) - count for user, count in truth.items()]
    return {
        "unique": sum(truth.values()),
        "lost": -sum(each for each in off if each < 0),
        "counted twice": sum(each for each in off if each > 0),
        "wrong users": sum(each != 0 for each in off),
        "users": len(truth),
    }


@click.command()
@click.option("--events", default=10_000, show_default=True, type=click.IntRange(min=100))
@click.option("--kills", default=5, show_default=True, type=click.IntRange(min=0))
@click.option("--seed", default=1, show_default=True)
@click.option("--rate", type=float, help="Events a second; default: so that they last as long as the kills do")
def main(events: int, kills: int, seed: int, rate: float | None) -> None:
    """Kill the textbook application under load, and count what it miscounts."""
    with tempfile.TemporaryDirectory(prefix="spendstream-textbook-") as directory:
        print(json.dumps(run(Path(directory) / "data", seed, events, kills, rate)))


if __name__ == "__main__":
    main()
