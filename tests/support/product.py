"""One partition of a product on a real broker, without its processes, and what happens to its topics."""

import asyncio
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from confluent_kafka import Consumer
from confluent_kafka import TopicPartition as Assigned
from confluent_kafka.admin import AdminClient

from processor.core.tables import table_rows
from processor.core.tables.history import Loss
from processor.log import losses
from processor.log.address import LogAddress
from processor.log.errors import LogUnavailable
from processor.log.kafka.config import KafkaAccess
from processor.log.kafka.log import KafkaLog
from processor.log.kafka.writer import PartitionWriter
from processor.log.port import scan
from processor.log.records import Append, TopicPartition
from processor.log.topics import COMPACTED, EVENTS, GROUP, PREFIX
from processor.state import loader
from processor.state.applier import Applier
from processor.state.verify import verify
from tests.support.beginnings import delete_beginnings
from tests.support.events import make_event
from tests.support.logs import newest_rows, put
from tests.support.patience import PROCESS_PATIENCE
from tests.support.segments import cut_off, flushes
from tests.support.server import wait_until
from tests.support.tables import NOON
from tools.kafka import Broker

E0: Final = TopicPartition(EVENTS, 0)
EACH: Final = 10
"""Events in a message."""


class Delivery:
    def __init__(self, offset: int, key: bytes | None, value: bytes | None) -> None:
        self.partition, self.offset, self.key, self.value = 0, offset, key, value
        self.is_damaged = False

    def ack(self) -> None: ...


def delete(access: KafkaAccess, *topics: str) -> None:
    """As a person with a tool does: the topics are no more."""
    admin = AdminClient(access.client())
    wires = [access.wire(topic) for topic in topics]
    for future in admin.delete_topics(wires, operation_timeout=PROCESS_PATIENCE).values():
        future.result(10)
    wait_until(lambda: not set(wires) & set(admin.list_topics(timeout=PROCESS_PATIENCE).topics))


class Product:
    """One partition on a broker: what an API appends, and the worker that is started, applies all of it and ends."""

    def __init__(self, broker: Broker, directory: Path, prefix: str = PREFIX) -> None:
        self.broker = broker
        self.directory = directory
        self.access = KafkaAccess(broker.bootstrap, prefix=prefix)
        self.log = KafkaLog(self.access, partitions=1)
        self.sent = 0
        """Messages; each has `EACH` events of its own."""

    def send(self, count: int = 1) -> None:
        for _ in range(count):
            self._put(self.sent)
            self.sent += 1

    def send_junk(self) -> int:
        """Append a message that nobody can read; returns its offset."""
        [offset] = self.log.append([Append(E0, [(None, b"no message of anybody")])], NOON)
        return offset

    def send_again(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._put(number)

    def _put(self, number: int) -> None:
        base = EACH * number
        ids = [f"00000000-0000-4000-8000-{base + each:012x}" for each in range(EACH)]
        put(self.log, [make_event(event_id=id_, user_id=f"u{number}-{id_[-1]}") for id_ in ids])

    def work(self, *, commit: bool = True) -> None:
        """Start a worker, let it apply everything, in as many flushes as there are messages, and end it."""
        asyncio.run(self._work())
        if commit:
            client = Consumer({**self.access.reader(), "group.id": self.access.wire(GROUP)})
            at = Assigned(self.access.wire(EVENTS), 0, self.log.end(E0))
            client.commit(offsets=[at], asynchronous=False)
            client.close()

    async def _work(self) -> None:
        writer = PartitionWriter(self.access, f"{GROUP}.tables.0")
        log = KafkaLog(self.access)
        address = LogAddress(self.directory, self.access)
        partition = loader.bring(address, log, 0, lambda appends: writer.append(appends, NOON), lambda: NOON, {})

        async def append(appends: list[Append]) -> list[int]:
            return writer.append(appends, NOON)

        async def exists(number: int, start: int, before: int) -> bool:
            return any(record.offset < before for record in log.read(E0, start, 1))

        async def lost(number: int, start: int, end: int, reason: str) -> None:
            losses.report(log, number, [Loss(start, end, counted=False, reason="")], NOON)

        applier = Applier({0: partition}, append, lambda: NOON, 0.01, exists, lost)
        for record in scan(log, E0, partition.expected):
            await applier.process(Delivery(record.offset, record.key, record.value))
            await applier.flush()
        partition.index.close()
        log.close()

    # --- what there is ----------------------------------------------------------------------------------------------

    def counted(self) -> int:
        rows = newest_rows(self.log)
        return sum(table_rows.decode_value(value)[1] for key, value in rows.items() if b'"user"' in key)

    def differences(self, tmp_path: Path) -> list[Any]:
        scratch = tmp_path / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        return verify(self.log, 0, scratch, lambda *_: None)

    def lost(self) -> list[tuple[str, int, int, bool]]:
        return [(each.topic, each.start, each.end, each.counted) for each in losses.read(self.log)]

    # --- what happens to it -----------------------------------------------------------------------------------------

    def cut(self, *ends: tuple[str, int]) -> None:
        """Kill the broker, take the ends of topics away, start it again."""
        self.log.close()
        self.broker.kill()
        for topic, offset in ends:
            cut_off(self.broker, self.access.wire(topic), 0, offset)
        self.broker.start()
        self.reopen(*ends)

    def reopen(self, *ends: tuple[str, int]) -> None:
        """Once the broker is there again: wait until it says that topics end no later than that."""
        self.log.close()
        self.log = KafkaLog(self.access)
        for topic, offset in ends:
            wait_until(partial(self._ends_before, topic, offset))

    def _ends_before(self, topic: str, offset: int) -> bool:
        try:
            return self.log.end(TopicPartition(topic, 0)) <= offset
        except LogUnavailable:  # no leader yet
            return False

    def behead(self, topic: str, before: int) -> None:
        """As retention does: the records before an offset are gone."""
        admin = AdminClient(self.access.client())
        head = Assigned(self.access.wire(topic), 0, before)
        delete_beginnings(admin, [head], is_compacted=topic in COMPACTED)
        assert self.log.first(TopicPartition(topic, 0)) == before

    def delete(self, *topics: str) -> None:
        """See `delete`."""
        delete(self.access, *topics)

    def flushes(self, topic: str) -> list[int]:
        """Where the transactions of a topic end."""
        return flushes(self.broker, self.access.wire(topic), 0)

    def forget_ids(self) -> None:
        shutil.rmtree(self.directory / "index")

    def counts_no_copy(self, what: str = "") -> None:
        """Send every event once more, to a worker that has no ids."""
        self.forget_ids()
        self.send_again(range(self.sent))
        self.work()
        assert self.counted() == self.sent * EACH, f"{what}: copies count again"
