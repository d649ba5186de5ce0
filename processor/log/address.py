"""The address of the log, a file in the data directory or a Kafka cluster, and how to open it.

Each user of the log gets its address and opens its own connection: connections are not shared between threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from processor.log import ownership
from processor.log.kafka.config import KafkaAccess
from processor.log.port import LogWriter
from processor.log.records import TopicPartition
from processor.log.tail import POLL, Tail
from processor.settings import Settings

if TYPE_CHECKING:
    from processor.log.embedded.writer_process import WriterProcess


@dataclass(frozen=True, slots=True)
class LogAddress:
    """Everything that is needed to open the log."""

    data_dir: Path
    """On Kafka it only has files that can be rebuilt, like the id index."""
    kafka: KafkaAccess | None = None
    """None: the embedded log."""
    writer: WriterProcess | None = None
    """The process that writes to the embedded log for this one; None: it writes itself."""

    @classmethod
    def of(cls, settings: Settings) -> LogAddress:
        """Return the address in the settings."""
        kafka = KafkaAccess.of(settings) if settings.broker.startswith("kafka://") else None
        return cls(settings.data_dir, kafka)

    def open(self, partitions: int | None = None, *, create: bool = False, upgrade: bool = False) -> LogWriter:
        """Open the log; with `create` make it, with this number of partitions, if there is none. Raises `LogError`.

        With `upgrade`, for roles that start, a log of an older format is brought to this one. Where another process
        writes for this one, the log is there.
        """
        if self.kafka is None:
            from processor.log.embedded.log import Log

            if create:
                ownership.check_embedded(self.data_dir)
            if self.writer is not None:
                from processor.log.embedded.writer_process import LogWrittenAside

                return LogWrittenAside(self.data_dir, self.writer)
            return Log(self.data_dir, partitions=partitions, create=create, upgrade=upgrade)
        from processor.log.kafka.log import KafkaLog

        return KafkaLog(self.kafka, partitions=partitions, create=create)

    def claim(self, identity: str, *, keeps: bool) -> None:
        """Raise `HistoryMismatch` if the data directory belongs to another log than that with this `identity`.

        A role that `keeps` files there notes which log it belongs to.
        """
        if self.kafka is not None:
            where = f"the one at {self.kafka.servers} whose topics begin with {self.kafka.prefix}"
            (ownership.claim if keeps else ownership.check)(self.data_dir, identity, where)

    def tail(self, tps: Iterable[TopicPartition], every: float = POLL) -> Tail:
        """Return a tail of partitions from their beginning, which checks for records `every` so many seconds (a broker
        pushes them). Raises `LogError`."""
        if self.kafka is None:
            from processor.log.embedded.log import Log
            from processor.log.embedded.tail import EmbeddedTail

            return EmbeddedTail(Log(self.data_dir, create=False), tps, every)
        from processor.log.kafka.tail import KafkaTail

        return KafkaTail(self.kafka, dict.fromkeys(tps, 0))

    def ends(self, tps: Iterable[TopicPartition]) -> Callable[[], dict[int, int]]:
        """Return a function that returns partition -> last offset (-1: none), cheap enough for every request.

        For the embedded log it is exact; for Kafka it may be half a second old. Its first call may block.
        """
        if self.kafka is None:
            from processor.log.embedded.log import Log

            log, wanted = Log(self.data_dir, create=False), list(tps)
            return lambda: {tp.partition: log.end(tp) - 1 for tp in wanted}
        from processor.log.kafka.tail import Ends

        return Ends(self.kafka, tps)

    def ends_since(
        self, tps: Iterable[TopicPartition], look: Callable[[], int]
    ) -> Callable[[], tuple[int, dict[int, int]]]:
        """Return a function that returns what `look` has returned, and the ends as above as they were asked for after
        that. For a log on Kafka both may be old, and `look` is called by another thread. The first call may block."""
        if self.kafka is None:
            ends = self.ends(tps)
            return lambda: (look(), ends())
        from processor.log.kafka.tail import Ends

        return Ends(self.kafka, tps, look).noted
