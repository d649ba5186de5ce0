"""Append to Kafka: on return the records are on all in-sync replicas.

One writer appends without transactions; `PartitionWriter` appends in transactions of one partition's owner, which the
next owner fences.
"""

import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Producer

from processor.log.errors import LogUnavailable
from processor.log.kafka.config import MAX_RECORD_BYTES, TRANSACTION_MS, KafkaAccess
from processor.log.records import Append
from processor.log.topics import EVENTS

INIT_PATIENCE: Final = 30.0
"""Seconds to wait for the transaction coordinator."""

LARGE: Final = 16 * 1024
"""Bytes of a value from which on a record may be larger than a topic accepts: no administrator sets less."""


class Fenced(Exception):
    """Another process owns the partition now: this one must not write what it has in memory."""


class _SequenceMissing(LogUnavailable):
    """librdkafka (2.16) fails the transaction after one that the broker has refused, since that one's records were
    numbered and are not there; only that failure renews the numbers."""


class _Delivery:
    """Collects the outcome of one call: the offset of each append's first record, and the first error."""

    def __init__(self, count: int) -> None:
        self.offsets = [-1] * count
        self.error: KafkaError | None = None
        self._topic = ""
        """The topic, by its name on the cluster, of the record with the error."""

    def first_of(self, number: int) -> Any:
        def report(error: KafkaError | None, message: Any) -> None:
            if error is None:
                self.offsets[number] = message.offset()
            else:
                self.other(error, message)

        return report

    def other(self, error: KafkaError | None, message: Any) -> None:
        if error is not None and self.error is None:
            self.error, self._topic = error, message.topic()

    def told(self, error: KafkaError) -> str:
        """Return why nothing was written; `error` is the producer's own error."""
        if self.error is not None and self.error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            return (
                f"a record is too large for the topic {self._topic}: its max.message.bytes was lowered, and must be "
                f"{MAX_RECORD_BYTES}"
            )
        return str(error.str())


def _produce(
    producer: Producer,
    access: KafkaAccess,
    appends: Iterable[Append],
    at: int,
    delivery: _Delivery,
    *,
    tells_all: bool,
) -> None:
    """Hand records to librdkafka. `tells_all`: `delivery` gets to know of each that fails. In a transaction it need
    not, for it fails as a whole, and each report costs half of what its record does: then of the first of an append,
    and of those that may be too large by themselves."""
    produce, time_ms = producer.produce, at // 1000
    for number, append in enumerate(appends):
        topic, partition = access.wire(append.to.topic), append.to.partition
        report, other = delivery.first_of(number), delivery.other if tells_all else None
        for key, value in append.records:
            if other is None and report is None and value is not None and len(value) > LARGE:
                report = delivery.other
            while True:
                try:
                    produce(topic, value, key, partition, report, timestamp=time_ms)
                    break
                except BufferError:
                    producer.poll(0.1)
            report = other


class Appender:
    """Appends without transactions: events and the directory. One thread at a time; others block."""

    def __init__(self, access: KafkaAccess) -> None:
        self._access = access
        self._producer: Producer | None = None
        self._lock = threading.Lock()

    def append(self, appends: Sequence[Append], at: int) -> list[int]:
        """Append all records; return the offset of each append's first one. Durable on return.

        Raises `LogUnavailable`: then some records may be in the log, or still reach it.
        """
        with self._lock:
            if self._producer is None:
                self._producer = Producer(self._access.producer())
            delivery = _Delivery(len(appends))
            try:
                _produce(self._producer, self._access, appends, at, delivery, tells_all=True)
                self._producer.flush()  # terminates: every record is delivered or fails after its timeout
            except KafkaException as error:
                delivery.error = delivery.error or error.args[0]
            if delivery.error is None:
                return delivery.offsets
            self._producer.purge()
            self._producer = None  # the next append starts with a new one
            raise LogUnavailable(f"Kafka at {self._access.servers} took no write: {delivery.told(delivery.error)}")


class PartitionWriter:
    """The owner of one partition of the tables: its flushes are transactions, all or nothing."""

    def __init__(self, access: KafkaAccess, transactional_id: str, timeout_ms: int = TRANSACTION_MS) -> None:
        """Fence the process that owned the id before, and wait until its last transaction has ended.

        A transaction that takes longer than `timeout_ms` is aborted by the broker. Raises `LogUnavailable`.
        """
        self._access = access
        self._patience = timeout_ms / 1000
        settings: Any = {**access.writer(transactional_id), "transaction.timeout.ms": timeout_ms}
        self._producer = Producer(settings)
        self._lock = threading.Lock()
        deadline = time.monotonic() + INIT_PATIENCE
        while True:
            try:
                # Without a connection the search for the coordinator fails at first, and is repeated after a second.
                self._producer.list_topics(access.wire(EVENTS), timeout=5)
                self._producer.init_transactions(5)
            except KafkaException as error:
                if not error.args[0].retriable() or time.monotonic() > deadline:
                    raise LogUnavailable(
                        f"cannot start transactions at {self._access.servers}: {error.args[0].str()}"
                    ) from None
            else:
                return

    def append(self, appends: Sequence[Append], at: int) -> list[int]:
        """Append all records in one transaction; return the offset of each append's first one. Durable on return.

        Raises `LogUnavailable`: nothing of it is visible, and it may be tried again. Raises `Fenced`: never try again.
        """
        with self._lock:
            try:
                return self._append(appends, at)
            except _SequenceMissing:
                return self._append(appends, at)

    def _append(self, appends: Sequence[Append], at: int) -> list[int]:
        delivery = _Delivery(len(appends))
        try:
            self._producer.begin_transaction()
            try:
                _produce(self._producer, self._access, appends, at, delivery, tells_all=False)
            except KafkaException as error:
                if error.args[0].code() == KafkaError._STATE:  # it has failed already, and only a commit says why
                    self._commit()
                raise
            self._commit()
        except KafkaException as error:
            found = error.args[0]
            if found.fatal() or found.code() in _FENCED:
                raise Fenced(found.str()) from None
            self._abort()
            is_missing = found.code() == KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER
            kind = _SequenceMissing if is_missing else LogUnavailable
            raise kind(f"Kafka at {self._access.servers} took no write: {delivery.told(found)}") from None
        return delivery.offsets

    def _commit(self) -> None:
        while True:
            try:
                return self._producer.commit_transaction(self._patience)
            except KafkaException as error:
                if not error.args[0].retriable():
                    raise

    def _abort(self) -> None:
        while True:
            try:
                return self._producer.abort_transaction(self._patience)
            except KafkaException as error:
                found = error.args[0]
                if found.fatal() or found.code() in _FENCED:
                    raise Fenced(found.str()) from None
                if not found.retriable():
                    raise Fenced(f"the transaction cannot be ended: {found.str()}") from None


_FENCED: Final = (KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH)
