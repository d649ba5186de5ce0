"""The log on Kafka, with the methods of the embedded one: blocking, one thread at a time.

Readers see only committed records. Offsets may have gaps: transactions leave markers, compaction removes records.
"""

import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as Assigned

from processor.log.errors import DamagedRecord, HistoryMismatch, LogError, LogUnavailable
from processor.log.kafka import topic_settings, topics
from processor.log.kafka.closing import close_reader
from processor.log.kafka.config import KafkaAccess
from processor.log.kafka.topics import DEFAULT_PARTITIONS, META, PATIENCE, Meta, TopicLayout
from processor.log.kafka.writer import Appender
from processor.log.port import scan
from processor.log.records import Append, Record, TopicPartition
from processor.log.topics import CLAIMS, DIRECTORY, EVENTS, LATER, ROWS
from processor.log.topics import SINGLE_ON_KAFKA as SINGLE
from processor.structured_log import get_logger

HOME: Final = TopicPartition(DIRECTORY, 0)

_known: dict[tuple[str, str], Meta] = {}
"""Servers and prefix -> what is chosen once for a log. The version of these brokers has been checked."""

END_WAIT_MS: Final = 10
SILENCE: Final = 0.02
"""Seconds of one wait for records."""


class KafkaLog:
    """One process's view of the log on a cluster. Raises `LogError` when it cannot be opened."""

    def __init__(self, access: KafkaAccess, *, partitions: int | None = None, create: bool = True) -> None:
        """Open the log; with `create` make its topics if there are none yet."""
        self._access = access
        self._appender = Appender(access)
        self._readers: dict[TopicPartition, _Reader] = {}
        self._asking: Consumer | None = None
        self._groups: dict[str, Consumer] = {}
        """Group -> what asks for its offsets, without joining it."""
        found = topics.layout(access)
        place = access.servers, access.prefix
        meta = _known.get(place)
        if meta is None:
            topics.check_version(access)
            if found.topics.get(DIRECTORY):
                meta = self._read_meta()
        number = (meta and meta.partitions) or found.fewest
        topics.check(access, found, number, partitions)
        if create:
            topic_settings.check(access, found.replicas)
            if len(found.topics) < len(topics.ALL):
                if meta is not None:
                    self._say_missing(found)
                topics.create(access, found, number or partitions or DEFAULT_PARTITIONS)
                found = self._await_topics()
                number = number or found.fewest
                topics.check(access, found, number, partitions)
            if meta is None:
                self._check_is_new(number)
            if meta is None or meta.partitions is None:
                self.append([Append(HOME, [topics.proposal(meta, number)])], 0)
                meta = self._read_meta()
        if meta is None:
            raise LogError(
                f"there is no log at {access.servers} whose topics begin with {access.prefix}: start an API or a "
                "worker there once, or name another SPENDSTREAM_KAFKA_PREFIX"
            )
        if meta.partitions is not None:
            _known[place] = meta
        self.partitions = meta.partitions or number
        self.salt = bytes.fromhex(meta.salt)
        self.identity = meta.identity
        self._topics = {name: 1 if name in SINGLE else self.partitions for name in found.topics}

    def __str__(self) -> str:
        return f"the log at {self._access.servers}"

    def _say_missing(self, found: TopicLayout) -> None:
        """Make missing topics of an existing log anew, empty. Their content is computed anew, published again or
        reported as lost by its users; the log keeps its identity."""
        missing = [self._access.wire(topic) for topic in topics.ALL if topic not in found.topics and topic not in LATER]
        if not missing:
            return
        get_logger().error(
            "topic.missing",
            topics=missing,
            text=f"{', '.join(missing)} at {self._access.servers} were there before, and are not: they are made anew. "
            "What follows from the other topics comes back; run `spendstream verify`",
        )

    def _await_topics(self) -> TopicLayout:
        """Wait until every broker knows the new topics. Raises `LogUnavailable` if that takes too long."""
        waiting = threading.Event()
        for _ in range(100):
            found = topics.layout(self._access)
            if len(found.topics) == len(topics.ALL) and 0 not in found.topics.values():
                return found
            waiting.wait(0.1)
        raise LogUnavailable(f"the topics at {self._access.servers} were created, but do not appear")

    def _read_meta(self) -> Meta | None:
        """Return what is chosen once for the log; None if no process has written it yet."""
        try:
            records = scan(self, HOME)
            values = (record.value or b"" for record in records if (record.key or b"").startswith(META))
            return topics.settled(values, self._access.servers)
        finally:
            self._readers.pop(HOME).close()

    def _check_is_new(self, partitions: int) -> None:
        """Raise `HistoryMismatch` for topics that have had another identity and salt: with new ones ids would not be
        recognised, and events would count twice."""
        used = [
            f"{self._access.wire(topic)} {number}"
            for topic in (EVENTS, ROWS, CLAIMS)
            for number in range(partitions)
            if self.end(TopicPartition(topic, number)) > 0
        ]
        if used or self.first(TopicPartition(DIRECTORY, 0)) > 0:
            beside = f", but there are records in {used[0]}" if used else ""
            raise HistoryMismatch(
                f"the topic {self._access.wire(DIRECTORY)} at {self._access.servers} has lost the log's name and salt, "
                f"and its keys{beside}: with others every event counts again. Stop all processes, restore that topic "
                "from a backup; without one, count the events into new topics"
            )

    def close(self) -> None:
        """Close all connections."""
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()
        for asking in self._groups.values():
            asking.close()
        self._groups.clear()
        if self._asking is not None:
            self._asking.close()
            self._asking = None

    # --- writing ----------------------------------------------------------------------------------------------------

    def append(self, appends: Iterable[Append], at: int) -> list[int]:
        """Append to any number of partitions; return the offset of each append's first record. Durable on return.

        `at` is the time of the append in microseconds; Kafka keeps milliseconds. Not atomic: raises `LogUnavailable`
        when a part was not acknowledged; other parts, and even that one, may be in the log nevertheless.
        """
        return self._appender.append(list(appends), at)

    def probe(self, at: int) -> None:
        """Check whether the log accepts writes. Raises `LogUnavailable` if it does not."""
        topics.check_writable(self._access)

    # --- reading ----------------------------------------------------------------------------------------------------

    def topics(self) -> dict[str, int]:
        """Return topic name -> number of partitions that are used: an administrator may have added others."""
        return dict(self._topics)

    def name_of(self, topic: str) -> str:
        """Return the name of a topic on the cluster."""
        return self._access.wire(topic)

    def read(self, tp: TopicPartition, offset: int, limit: int = 1000, max_bytes: int = 16 << 20) -> list[Record]:
        """Return at most `limit` records from `offset` on; empty only at the end of what was committed by then.

        Continuing where the last read of the partition ended costs no seek. librdkafka bounds the bytes, not
        `max_bytes`.
        """
        reader = self._readers.get(tp)
        if reader is None:
            reader = self._readers[tp] = _Reader(self._access, tp)
        return reader.read(offset, limit)

    def end(self, tp: TopicPartition) -> int:
        """Return the next offset to be assigned in the partition."""
        return self._watermarks(tp)[1]

    def first(self, tp: TopicPartition) -> int:
        """Return the first offset that retention has left."""
        return self._watermarks(tp)[0]

    def _watermarks(self, tp: TopicPartition) -> tuple[int, int]:
        if self._asking is None:
            self._asking = Consumer(self._access.reader())
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                found = self._asking.get_watermark_offsets(self._wire(tp), timeout=PATIENCE)
            except KafkaException as error:
                if error.args[0].code() in _NO_LEADER and time.monotonic() < deadline:
                    time.sleep(0.1)
                    continue
                raise LogUnavailable(f"no answer from Kafka at {self._access.servers}: {error.args[0].str()}") from None
            return int(found[0]), int(found[1])

    def _wire(self, tp: TopicPartition) -> Assigned:
        return Assigned(self._access.wire(tp.topic), tp.partition)

    def committed(self, consumer: str, tp: TopicPartition) -> int | None:
        """Return the next offset to read for a consumer group; None if it has committed none."""
        asking = self._groups.get(consumer)
        if asking is None:
            settings = {**self._access.reader(), "group.id": self._access.wire(consumer)}
            asking = self._groups[consumer] = Consumer(settings)
        try:
            (found,) = asking.committed([self._wire(tp)], timeout=PATIENCE)
        except KafkaException as error:
            raise LogUnavailable(f"no answer from Kafka at {self._access.servers}: {error.args[0].str()}") from None
        return found.offset if found.offset >= 0 else None


class _Reader:
    """Reads one partition in order."""

    def __init__(self, access: KafkaAccess, tp: TopicPartition) -> None:
        self._access = access
        self._servers = access.servers
        # A read to the end waits for the broker to report the end, so the broker must not wait long for more records.
        self._settings = {**access.reader(), "fetch.wait.max.ms": END_WAIT_MS}
        self._consumer = Consumer(self._settings)
        self._at = access.wire(tp.topic), tp.partition
        self._position = -1
        self._at_end = False
        self._rests = False
        """Whether nothing is fetched: a consumer at the end would ask the broker a hundred times a second."""

    def read(self, offset: int, limit: int) -> list[Record]:
        goes_on = offset == self._position
        if self._rests or not goes_on:
            self._consumer.assign([Assigned(*self._at, offset)])
            self._position = offset
            self._at_end = self._rests = False
        silent = 0.0
        while True:
            messages = self._consumer.consume(limit, 0 if self._at_end else SILENCE)
            records, self._at_end, damaged = records_until_damage(messages, self._at_end, self._access)
            if damaged is not None:
                self._begin_anew()
            elif records:
                self._position = records[-1].offset + 1
            if records and records[0].offset < offset:
                if goes_on:
                    self._begin_anew()
                    raise LogUnavailable(gone_back(self._at, offset, records[0].offset))
                # The partition ends before `offset`, and librdkafka has started again at its beginning.
                records = [record for record in records if record.offset >= offset]
            if records:
                return records
            if damaged is not None:
                raise damaged
            if self._at_end:
                self._consumer.unassign()
                self._rests = True
                return []
            silent += SILENCE
            if silent > PATIENCE:
                raise LogUnavailable(self._why_silent())

    def _begin_anew(self) -> None:
        """Assign the partition anew: after a damaged record the consumer's position and queue are undefined."""
        close_reader(self._consumer)
        self._consumer = Consumer(self._settings)
        self._position = -1
        self._at_end = self._rests = False

    def _why_silent(self) -> str:
        """Return why nothing comes though the broker answers: a batch with a damaged length raises no error."""
        try:
            _, end = self._consumer.get_watermark_offsets(Assigned(*self._at), timeout=PATIENCE)
        except KafkaException:
            end = -1
        if end <= self._position:
            return f"no answer from Kafka at {self._servers}"
        topic, partition = self._at
        return (
            f"nothing can be read from {topic}:{partition}:{self._position} on, though the partition goes on to {end}: "
            f"its log at {self._servers} may be damaged there; that of the broker says more"
        )

    def close(self) -> None:
        close_reader(self._consumer)


def sound_records(messages: Sequence[Any], at_end: bool, access: KafkaAccess) -> tuple[list[Record], bool]:
    """Return the records among librdkafka's messages, and whether the partition's end was reached after the last one.

    Raises `LogUnavailable` for an error that is not one of the connection: those pass. Raises `DamagedRecord`.
    """
    records, at_end, damaged = records_until_damage(messages, at_end, access)
    if damaged is not None:
        raise damaged
    return records, at_end


def records_until_damage(
    messages: Sequence[Any], at_end: bool, access: KafkaAccess
) -> tuple[list[Record], bool, DamagedRecord | None]:
    """Return also the records before a damaged one, and its error, instead of raising that.

    All messages are of one partition. Nothing after a damaged record can be trusted: librdkafka (2.16) continues to
    read inside of it, and its position is undefined then (`rd_kafka_msgset_reader_v2`). So the partition has to be
    assigned or sought anew.
    """
    records: list[Record] = []
    before = -1
    for message in messages:
        error = message.error()
        if error is None:
            offset = message.offset()
            if offset <= before:  # the checksum does not cover the first offset of a batch
                reason = f"the offsets go back from it to {offset}"
                return records[:-1], False, _damaged(message, before, reason, access)
            before = offset
            records.append(record_of(message))
            at_end = False
        elif error.code() == KafkaError._PARTITION_EOF:
            at_end = True
        elif error.code() in _DAMAGE:
            return records, False, _damaged(message, message.offset(), error.str(), access)
        elif not error.retriable() and error.code() not in _PASSING:
            raise LogUnavailable(f"cannot read from Kafka: {error.str()}")
    return records, at_end, None


def _damaged(message: Any, offset: int, reason: str, access: KafkaAccess) -> DamagedRecord:
    name = message.topic()
    return DamagedRecord(access.topic(name), message.partition(), offset, reason, name)


def gone_back(tp: tuple[str, int], offset: int, to: int) -> str:
    """Return the text for a partition that was read up to `offset` and continues with the lower offset `to`."""
    return (
        f"the offsets of {tp[0]}:{tp[1]} go back from {offset} to {to}: the log was cut off, or a record before "
        "that is damaged"
    )


def record_of(message: Any) -> Record:
    """Return a message as a `Record`; its time has milliseconds."""
    return Record(message.offset(), message.timestamp()[1] * 1000, message.key(), message.value())


_NO_LEADER: Final = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
)
"""Errors that pass: of a topic that was just made, or a broker that was just started."""

_DAMAGE: Final = (
    KafkaError._BAD_MSG,  # the checksum of a batch, CRC32C over all but the first 21 bytes of it
    KafkaError._BAD_COMPRESSION,
    KafkaError._NOT_IMPLEMENTED,  # a batch of no known version
    KafkaError.INVALID_MSG,  # the broker found it (CORRUPT_MESSAGE)
)
_PASSING: Final = (KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT, KafkaError._RESOLVE)
