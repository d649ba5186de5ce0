"""The log on Kafka, with the methods of the embedded one (`store.Log`): blocking, one thread at a time.

Readers see only what was committed. Offsets may have gaps: transactions leave markers, compaction takes records away.
"""

import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as Assigned

from processor.log import kafka_topics
from processor.log.errors import HistoryMismatch, LogError, LogUnavailable
from processor.log.kafka_config import KafkaAccess
from processor.log.kafka_topics import META, PATIENCE, Layout, Meta
from processor.log.kafka_writer import Appender
from processor.log.store import Append, Record, TopicPartition
from processor.log.topics import CLAIMS, DIRECTORY, EVENTS, PARTITIONED_ON_KAFKA, ROWS, SINGLE

_known: dict[str, Meta] = {}
"""servers -> meta record: it never changes. Who is in here is new enough, too."""

END_WAIT_MS: Final = 10
SILENCE: Final = 0.02
"""Seconds of one wait for records."""


class KafkaLog:
    """One process's view of the log on a cluster. Raises `LogError` when it cannot be opened."""

    def __init__(self, access: KafkaAccess, *, partitions: int | None = None, create: bool = True) -> None:
        """Open the log, making its topics if there are none yet and `create` is true."""
        self._access = access
        self._appender = Appender(access)
        self._readers: dict[TopicPartition, _Reader] = {}
        self._asking: Consumer | None = None
        found = kafka_topics.layout(access)
        if access.servers not in _known:
            kafka_topics.check_version(access)
        kafka_topics.check(found, access.servers, partitions)
        if create:
            kafka_topics.create(access, found, partitions)
            found = self._await_topics(partitions)
        elif DIRECTORY not in found.topics:
            raise LogError(f"there is no log at {access.servers}: start an API or a worker there once")
        self._layout = found
        self.partitions = found.partitions
        meta = _known.get(access.servers) or self._read_meta(create)
        _known[access.servers] = meta
        self.salt = bytes.fromhex(meta.salt)
        self.identity = meta.identity

    def __str__(self) -> str:
        return f"the log at {self._access.servers}"

    def _await_topics(self, partitions: int | None) -> Layout:
        """New topics take a moment until every broker knows of them."""
        waiting = threading.Event()
        for _ in range(100):
            found = kafka_topics.layout(self._access)
            if len(found.topics) == len(PARTITIONED_ON_KAFKA) + len(SINGLE) and 0 not in found.topics.values():
                kafka_topics.check(found, self._access.servers, partitions)
                return found
            waiting.wait(0.1)
        raise LogUnavailable(f"the topics at {self._access.servers} were created, but do not appear")

    def _read_meta(self, create: bool) -> Meta:
        home = TopicPartition(DIRECTORY, 0)
        for attempt in range(2):
            position = 0
            while records := self.read(home, position):
                for record in records:
                    if (record.key or b"").startswith(META):
                        return kafka_topics.read_meta(record.value or b"", self._access.servers)
                position = records[-1].offset + 1
            if attempt or not create:
                break
            self._check_is_new()
            self.append([Append(home, [kafka_topics.new_meta()])], 0)
            self._readers.pop(home).close()
        raise LogError(f"the log at {self._access.servers} has no meta record: start an API or a worker there once")

    def _check_is_new(self) -> None:
        """No new name and salt for topics that have had others: ids would not be recognised, and events count twice.

        Raises `HistoryMismatch`.
        """
        used = [
            f"{topic} {number}"
            for topic in (EVENTS, ROWS, CLAIMS)
            for number in range(self._layout.topics[topic])
            if self.end(TopicPartition(topic, number)) > 0
        ]
        if used or self.first(TopicPartition(DIRECTORY, 0)) > 0:
            raise HistoryMismatch(
                f"the topic {DIRECTORY} at {self._access.servers} has lost the log's name and salt, and its keys"
                f"{f', but there are records in {used[0]}' if used else ''}: with others every event counts again. "
                "Stop all processes and restore that topic from a backup; without one, count the events into new topics"
            )

    def close(self) -> None:
        """Close all connections."""
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()
        if self._asking is not None:
            self._asking.close()
            self._asking = None

    # --- writing ----------------------------------------------------------------------------------------------------

    def append(self, appends: Iterable[Append], at: int) -> list[int]:
        """Append to any number of partitions; returns the offset of each append's first record. Durable on return.

        `at` is the time of the append in microseconds; Kafka keeps milliseconds. Not atomic: raises `LogUnavailable`
        when something of it was not acknowledged; other parts, or even that, may be in the log all the same.
        """
        return self._appender.append(list(appends), at)

    def probe(self, at: int) -> None:
        """Find out whether the log takes writes. Raises `LogUnavailable` if it does not."""
        kafka_topics.check_writable(self._access)

    # --- reading ----------------------------------------------------------------------------------------------------

    def topics(self) -> dict[str, int]:
        """Topic name -> number of partitions."""
        return dict(self._layout.topics)

    def read(self, tp: TopicPartition, offset: int, limit: int = 1000, max_bytes: int = 16 << 20) -> list[Record]:
        """Records from `offset` on, at most `limit`; empty only at the end of what was committed when it got there.

        Going on where the last read of the partition ended costs no seek. `max_bytes` is librdkafka's to bound.
        """
        reader = self._readers.get(tp)
        if reader is None:
            reader = self._readers[tp] = _Reader(self._access, tp)
        return reader.read(offset, limit)

    def end(self, tp: TopicPartition) -> int:
        """The next offset to be given in the partition."""
        return self._watermarks(tp)[1]

    def first(self, tp: TopicPartition) -> int:
        """The first offset that retention has left."""
        return self._watermarks(tp)[0]

    def _watermarks(self, tp: TopicPartition) -> tuple[int, int]:
        if self._asking is None:
            self._asking = Consumer(self._access.reader())
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                found = self._asking.get_watermark_offsets(Assigned(*tp), timeout=PATIENCE)
            except KafkaException as error:
                if error.args[0].code() in _NO_LEADER and time.monotonic() < deadline:
                    time.sleep(0.1)
                    continue
                raise LogUnavailable(f"no answer from Kafka at {self._access.servers}: {error.args[0].str()}") from None
            return int(found[0]), int(found[1])

    def committed(self, consumer: str, tp: TopicPartition) -> int | None:
        """The next offset to read for a consumer group; None if it has committed none."""
        asking = Consumer({**self._access.reader(), "group.id": consumer})
        try:
            (found,) = asking.committed([Assigned(*tp)], timeout=PATIENCE)
        except KafkaException as error:
            raise LogUnavailable(f"no answer from Kafka at {self._access.servers}: {error.args[0].str()}") from None
        finally:
            asking.close()
        return found.offset if found.offset >= 0 else None


class _Reader:
    """One partition, read in order."""

    def __init__(self, access: KafkaAccess, tp: TopicPartition) -> None:
        self._servers = access.servers
        # Who reads to the end waits for word that it is the end: the broker is not to think about it for long.
        self._consumer = Consumer({**access.reader(), "fetch.wait.max.ms": END_WAIT_MS})
        self._tp = tp
        self._position = -1
        self._at_end = False

    def read(self, offset: int, limit: int) -> list[Record]:
        if offset != self._position:
            self._consumer.assign([Assigned(*self._tp, offset)])
            self._position = offset
            self._at_end = False
        silent = 0.0
        while True:
            messages = self._consumer.consume(limit, 0 if self._at_end else SILENCE)
            records, self._at_end = take(messages, self._at_end)
            if records:
                self._position = records[-1].offset + 1
                return records
            if self._at_end:
                return []
            silent += SILENCE
            if silent > PATIENCE:
                raise LogUnavailable(f"no answer from Kafka at {self._servers}")

    def close(self) -> None:
        self._consumer.close()


def take(messages: Sequence[Any], at_end: bool) -> tuple[list[Record], bool]:
    """The records among what librdkafka handed out, and whether the partition's end was reached after the last one.

    Raises `LogUnavailable` for an error that is not one of the connection: those pass.
    """
    records: list[Record] = []
    for message in messages:
        error = message.error()
        if error is None:
            records.append(record_of(message))
            at_end = False
        elif error.code() == KafkaError._PARTITION_EOF:
            at_end = True
        elif not error.retriable() and error.code() not in _PASSING:
            raise LogUnavailable(f"cannot read from Kafka: {error.str()}")
    return records, at_end


def record_of(message: Any) -> Record:
    """A message as the embedded log gives it; times are of milliseconds."""
    return Record(message.offset(), message.timestamp()[1] * 1000, message.key(), message.value())


_NO_LEADER: Final = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
)
"""A topic that was just made, or a broker that was just started: it takes a moment."""

_PASSING: Final = (KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT, KafkaError._RESOLVE)
