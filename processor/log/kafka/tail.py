"""Follow partitions on Kafka, and know where they end."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message
from confluent_kafka import TopicPartition as Assigned

from processor.log.errors import LogBroken, LogUnavailable
from processor.log.kafka.closing import close_reader
from processor.log.kafka.config import KafkaAccess
from processor.log.kafka.fetched import Messages, by_partition, sound_part
from processor.log.records import NewestRecords, Record, TopicPartition

WAIT: Final = 0.02
"""Seconds of one wait for records."""

BATCH: Final = 5000
ASK_EVERY: Final = 0.5
ASK_PATIENCE: Final = 2.0
FRESH: Final = 2.0
"""Seconds for which an answer of the cluster proves that nothing was missed."""
PULSE: Final = 0.2
PULSE_PATIENCE: Final = 0.8
"""Seconds between two requests for the end of a partition, and until one counts as lost."""


class KafkaTail:
    """`Tail` of a log on Kafka: one consumer for all partitions, which sees only what was committed."""

    def __init__(self, access: KafkaAccess, positions: Mapping[TopicPartition, int]) -> None:
        """Follow partitions from these offsets on."""
        self._access = access
        self._consumer = Consumer(access.reader())
        self._ends = dict.fromkeys(positions, False)
        """Whether the end of a partition was reached after its last record."""
        self._pulses: dict[TopicPartition, Pulse] = {}
        self._known = dict.fromkeys(self._ends, float("-inf"))
        self._positions = dict(positions)
        self.reached = dict(positions)
        """All that was committed before these offsets has been returned. The end of a partition is reached even if its
        last records are markers, or gone."""
        self._sound = False
        """False until all that was fetched has been returned: after a failure it is fetched again."""
        self._heard = 0.0
        self._fresh: set[TopicPartition] = set()
        """Partitions that were assigned anew and of which nothing has arrived since."""

    @property
    def is_current(self) -> bool:
        """See `Tail.is_current`."""
        return all(self._ends.values()) and time.monotonic() - self._heard < FRESH

    def known_at(self, tp: TopicPartition) -> float:
        """See `Tail.known_at`. The first call for a partition starts a thread that asks for its end."""
        pulse = self._pulses.get(tp)
        if pulse is None:
            pulse = self._pulses[tp] = Pulse(self._access, tp)
            pulse.start()
        end, at = pulse.end
        if self.reached[tp] >= end:
            self._known[tp] = at
        return self._known[tp]

    def has_more(self, tp: TopicPartition) -> bool:
        """See `Tail.has_more`: a broker compacts nothing that is less than a segment behind."""
        return False

    def newest(self) -> Iterator[tuple[TopicPartition, NewestRecords]]:
        """See `Tail.newest`: a broker can only be read forwards."""
        return iter(())

    def poll(self) -> Iterator[tuple[TopicPartition, Sequence[Record]]]:
        """See `Tail.poll`. Raises `DamagedRecord`, and again at each call until the record can be read."""
        if not self._sound:
            wire = self._access.wire
            self._consumer.assign(
                [Assigned(wire(tp.topic), tp.partition, position) for tp, position in self._positions.items()]
            )
            self._ends = dict.fromkeys(self._ends, False)
            self._fresh = set(self._ends)
            self.reached = dict(self._positions)
            self._sound = True
        for (topic, number), messages in by_partition(self._consumer.consume(BATCH, WAIT)).items():
            tp = TopicPartition(self._access.topic(topic or ""), number)
            if tp not in self._ends:  # an error of the connection names no partition: it passes
                continue
            records, self._ends[tp], damaged = sound_part(messages, self._ends[tp], self._access)
            self._heard = time.monotonic()
            if records and records[0].offset < self._positions[tp]:
                if tp not in self._fresh:
                    raise LogBroken(
                        f"{topic} {number} has lost its end: what was read of it up to {self._positions[tp]} "
                        f"begins anew at {records[0].offset}. This process starts again and reads all of it"
                    )
                # from before the partition was assigned anew
                records = [record for record in records if record.offset >= self._positions[tp]]
            if records:
                self._fresh.discard(tp)
                self._sound = False
                yield tp, records
                self._positions[tp] = records[-1].offset + 1
                self._sound = True
            if damaged is not None:
                self._sound = False
                raise damaged
            self.reached[tp] = max(self._positions[tp], self.reached[tp], _end(messages))
        if time.monotonic() - self._heard > FRESH / 2:
            self._ask()

    def _ask(self) -> None:
        """Find out, when no records come, whether there are none or the broker does not answer."""
        if not self._ends:
            return
        try:
            _end_of(self._consumer, self._access, next(iter(self._ends)), FRESH / 2)
        except KafkaException:
            return
        self._heard = time.monotonic()

    def ends(self, patience: float = ASK_PATIENCE) -> dict[TopicPartition, int]:
        """Return the present ends of what is committed, to compare with `reached`. Blocks. Raises `LogUnavailable`."""
        try:
            return {tp: _end_of(self._consumer, self._access, tp, patience) for tp in self._ends}
        except KafkaException as error:
            raise LogUnavailable(f"Kafka does not answer: {error.args[0].str()}") from None

    def close(self) -> None:
        """Close the consumer."""
        for pulse in self._pulses.values():
            pulse.stop()
        close_reader(self._consumer)


def _end_of(consumer: Consumer, access: KafkaAccess, tp: TopicPartition, patience: float) -> int:
    """Return the next offset of a partition. Blocks for at most `patience` seconds. Raises `KafkaException`."""
    asked = Assigned(access.wire(tp.topic), tp.partition)
    return int(consumer.get_watermark_offsets(asked, timeout=patience)[1])


def _end(messages: Messages) -> int:
    """Return the end of the partition, if it was reached; it is beyond all records before."""
    errors = zip(map(Message.error, messages), messages, strict=True)
    return max((m.offset() for error, m in errors if error and error.code() == KafkaError._PARTITION_EOF), default=0)


class Pulse(threading.Thread):
    """Asks repeatedly for the end of a partition, including records of open transactions."""

    def __init__(self, access: KafkaAccess, tp: TopicPartition) -> None:
        super().__init__(name="log-pulse", daemon=True)
        self._consumer = Consumer({**access.reader(), "isolation.level": "read_uncommitted"})
        self._access = access
        self._tp = tp
        self._pause = threading.Event()
        self.end: tuple[int, float] = (0, float("-inf"))
        """The end of the partition, and the moment (`time.monotonic`) of the request."""

    def run(self) -> None:
        while not self._pause.wait(PULSE):
            at = time.monotonic()
            try:
                self.end = _end_of(self._consumer, self._access, self._tp, PULSE_PATIENCE), at
            except KafkaException:
                continue
        self._consumer.close()

    def stop(self) -> None:
        """Tell the thread to end; does not wait."""
        self._pause.set()


class Ends(threading.Thread):
    """partition -> last offset of a topic, requested twice a second in a thread of its own."""

    def __init__(self, access: KafkaAccess, tps: Iterable[TopicPartition], look: Callable[[], int] = lambda: 0) -> None:
        """`look` is called right before each request, see `noted`. Raises `LogUnavailable`, and what that raises."""
        super().__init__(name="log-ends", daemon=True)
        self._consumer = Consumer({**access.reader(), "isolation.level": "read_uncommitted"})
        self._access = access
        self._tps = list(tps)
        self._look = look
        self._last = look(), self._ask(10.0)
        self._pause = threading.Event()
        self.start()

    def __call__(self) -> dict[int, int]:
        return dict(self._last[1])

    def noted(self) -> tuple[int, dict[int, int]]:
        """What `look` returned before the last request that was answered, and the answer, which may be old."""
        return self._last

    def run(self) -> None:
        while not self._pause.wait(ASK_EVERY):
            try:
                self._last = self._look(), self._ask(ASK_PATIENCE)
            except (LogUnavailable, OSError):
                continue

    def _ask(self, patience: float) -> dict[int, int]:
        try:
            return {tp.partition: _end_of(self._consumer, self._access, tp, patience) - 1 for tp in self._tps}
        except KafkaException as error:
            found = error.args[0]
            raise LogUnavailable(
                f"Kafka does not answer: {found.str() if isinstance(found, KafkaError) else found}"
            ) from None
