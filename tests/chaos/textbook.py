"""`python -m tests.chaos.textbook`: kill -9 of the textbook Faust application under load, and what it counts then.

The application (tests/bench/textbook.py) runs on the same embedded log as the product, through the product's transport,
or with `--kafka` on a real broker, through Faust's own. Every event costs 1, so what a
user's row is off by is the number of events lost or counted twice. The last line printed is JSON.
"""

import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Protocol
from uuid import UUID

import click
import msgspec
from confluent_kafka import Consumer, KafkaError, Producer
from confluent_kafka import TopicPartition as Assigned
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from processor.log.embedded.log import Log
from processor.log.port import scan
from processor.log.records import Append, TopicPartition
from processor.log.topics import EVENTS, GROUP
from tests.bench.textbook import NAME, TABLES, changelog, create_log
from tests.chaos.report import ROOT, commit
from tools.kafka import Broker

FROM: Final = TopicPartition(EVENTS, 0)
USERS: Final = 200
DUPLICATES: Final = 0.05
SPREAD: Final = 2.5
PATIENCE: Final = 300.0
JOINING: Final = 16.0
"""Seconds of a start on Kafka: the group waits for the session of the one that was killed to end."""
COST: Final = changelog("cost")


class Place(Protocol):
    """Where the application's topics are."""

    broker: str | None
    """For the application; None: the embedded log."""

    def append(self, events: list[bytes]) -> None:
        """Durable on return."""
        ...

    def is_done(self) -> bool:
        """True once all events are committed by the application."""
        ...

    def newest(self) -> dict[bytes, bytes]:
        """The newest record of each key of the table `cost`."""
        ...


class Embedded:
    """The embedded log, through the product's transport."""

    broker: str | None = None

    def __init__(self, data: Path) -> None:
        create_log(data)
        self._data = data
        self._mine = threading.local()

    @property
    def _log(self) -> Log:
        """A log is of one thread."""
        found = getattr(self._mine, "log", None)
        if found is None:
            found = self._mine.log = Log(self._data, create=False)
        return found

    def append(self, events: list[bytes]) -> None:
        self._log.append([Append(FROM, [(None, event) for event in events])], time.time_ns() // 1000)

    def is_done(self) -> bool:
        return (self._log.committed(GROUP, FROM) or 0) >= self._log.end(FROM)

    def newest(self) -> dict[bytes, bytes]:
        return {record.key or b"": record.value or b"0" for record in scan(self._log, TopicPartition(COST, 0))}


class Kafka:
    """A real broker, through Faust's own transport."""

    def __init__(self, bootstrap: str) -> None:
        self.broker: str | None = f"kafka://{bootstrap}"
        self._client: dict[str, str | int | float | bool] = {"bootstrap.servers": bootstrap}
        admin = AdminClient(self._client)
        compacted = {"cleanup.policy": "compact"}
        wanted = [NewTopic(EVENTS, 1), *(NewTopic(changelog(table), 1, config=compacted) for table in TABLES)]
        for made in admin.create_topics(wanted).values():
            made.result(30)
        self._producer = Producer({**self._client, "enable.idempotence": True, "linger.ms": 0})

    def append(self, events: list[bytes]) -> None:
        for event in events:
            self._producer.produce(EVENTS, event, partition=0)
        if self._producer.flush(60):
            raise RuntimeError("the broker took no event")

    def _consumer(self, group: str) -> Consumer:
        return Consumer({**self._client, "group.id": group, "enable.auto.commit": False, "enable.partition.eof": True})

    def is_done(self) -> bool:
        consumer = self._consumer(NAME)
        try:
            [found] = consumer.committed([Assigned(EVENTS, 0)], 10)
            return bool(found.offset >= consumer.get_watermark_offsets(Assigned(EVENTS, 0), 10)[1])
        finally:
            consumer.close()

    def newest(self) -> dict[bytes, bytes]:
        consumer = self._consumer("reader")
        consumer.assign([Assigned(COST, 0, 0)])
        found: dict[bytes, bytes] = {}
        while True:
            message: Any = consumer.poll(10)
            if message is None or message.error() is not None:
                consumer.close()
                if message is None or message.error().code() != KafkaError._PARTITION_EOF:
                    raise RuntimeError("the changelog cannot be read")
                return found
            found[message.key()] = message.value() or b"0"


class Feeder(threading.Thread):
    """Appends events at a rate, one a message, some of them twice; every append is durable."""

    def __init__(self, place: Place, rng: random.Random, events: int, rate: float) -> None:
        super().__init__(daemon=True)
        self._place = place
        self._rng = rng
        self._events = events
        self._rate = rate
        self.truth: dict[str, int] = {}

    def run(self) -> None:
        sent: list[bytes] = []
        began = time.monotonic()
        while len(sent) < self._events:
            due = min(self._events, int((time.monotonic() - began) * self._rate))
            new = [self._event(sent) for _ in range(due - len(sent))]
            if new:
                self._place.append(new)
                sent += new
            time.sleep(0.02)

    def _event(self, sent: list[bytes]) -> bytes:
        if sent and self._rng.random() < DUPLICATES:
            return self._rng.choice(sent)
        user = f"user-{self._rng.randrange(USERS)}"
        self.truth[user] = self.truth.get(user, 0) + 1
        event_id = str(UUID(int=self._rng.getrandbits(128), version=4))
        return msgspec.json.encode({"event_id": event_id, "user_id": user, "cost_usd": 1.0})


def launch(data: Path, broker: str | None) -> "subprocess.Popen[bytes]":
    """The application."""
    command = [sys.executable, "-m", "tests.bench.textbook", str(data), *([broker] if broker else [])]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def counted(place: Place) -> dict[str, float]:
    """user -> cost, as the newest record of each in the changelog says."""
    return {msgspec.json.decode(key): msgspec.json.decode(value) for key, value in place.newest().items()}


def run(
    place: Place, data: Path, seed: int, events: int, kills: int, rate: float | None, least: float
) -> dict[str, object]:
    """One run; what it came to. The application lives for `least` seconds at least until it is killed."""
    rng = random.Random(seed)
    feeder = Feeder(place, rng, events, rate or events / (max(kills, 1) * (SPREAD + least)))
    feeder.start()
    for _ in range(kills):
        process = launch(data, place.broker)
        time.sleep(least + rng.uniform(0, SPREAD))
        process.kill()
        process.wait()
    process = launch(data, place.broker)
    try:
        feeder.join()
        _wait(place)
        rows = counted(place)
        return _compare(feeder.truth, rows) | {"seed": seed, "kills": kills, "events": events, "commit": commit()}
    finally:
        process.kill()
        process.wait()


def _wait(place: Place) -> None:
    """Until all is committed, and a while longer."""
    deadline = time.monotonic() + PATIENCE
    while not place.is_done() and time.monotonic() < deadline:
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
@click.option("--kafka", is_flag=True, help="On a real broker and Faust's own transport instead of the embedded log")
def main(events: int, kills: int, seed: int, rate: float | None, kafka: bool) -> None:
    """Kill the textbook application under load, and count what it miscounts."""
    with tempfile.TemporaryDirectory(prefix="spendstream-textbook-") as directory, ExitStack() as stack:
        data = Path(directory) / "data"
        place: Place
        if kafka:
            data.mkdir()
            place = Kafka(stack.enter_context(Broker(Path(directory) / "broker")).bootstrap)
        else:
            place = Embedded(data)
        least = JOINING if kafka else 1.5
        print(
            json.dumps({"on": "kafka" if kafka else "embedded", **run(place, data, seed, events, kills, rate, least)})
        )


if __name__ == "__main__":
    main()
