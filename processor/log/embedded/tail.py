"""Following partitions of the embedded log as they grow."""

import time
from collections.abc import Iterable, Iterator
from typing import Final

from processor.log.embedded.log import Log
from processor.log.embedded.newest import newest
from processor.log.records import NewestRecords, Record, TopicPartition
from processor.log.tail import IDLE_AFTER, IDLE_POLL, POLL


class EmbeddedTail:
    """`Tail` of the embedded log."""

    def __init__(self, log: Log, tps: Iterable[TopicPartition], every: float = POLL) -> None:
        self._log = log
        self._every = every
        self._positions = dict.fromkeys(tps, 0)
        self._seen = -1
        self._changed = time.monotonic()
        """When the last new version of the log was seen (monotonic seconds)."""
        self._has_more = False
        self._known = dict.fromkeys(self._positions, float("-inf"))
        self.is_current = False

    def known_at(self, tp: TopicPartition) -> float:
        """See `Tail.known_at`."""
        return self._known[tp]

    def has_more(self, tp: TopicPartition) -> bool:
        """See `Tail.has_more`."""
        return self._has_more

    def newest(self) -> Iterator[tuple[TopicPartition, NewestRecords]]:
        """See `Tail.newest`."""
        for tp, position in self._positions.items():
            end = self._log.end(tp)
            for found in newest(self._log, tp, position, end):
                yield tp, found
            self._positions[tp] = end

    def poll(self) -> Iterator[tuple[TopicPartition, list[Record]]]:
        """See `Tail`. A batch of each partition at a time: a revoked key does not wait for a million rows."""
        at, version = time.monotonic(), self._log.version()
        if version == self._seen:
            is_idle = at - self._changed > IDLE_AFTER
            time.sleep(max(self._every, IDLE_POLL) if is_idle else self._every)
            at, version = time.monotonic(), self._log.version()
        if version == self._seen:
            self._known = dict.fromkeys(self._known, at)
            return
        self.is_current = False
        brought = True
        while brought:
            brought = False
            for tp, position in self._positions.items():
                at = time.monotonic()
                records = self._log.read(tp, position, BATCH)
                if records:
                    self._has_more = records[-1].offset + 1 < self._log.end(tp)  # a batch has bounds of two kinds
                    yield tp, records
                    self._positions[tp] = records[-1].offset + 1
                    brought = True
                else:
                    self._known[tp] = at
        self._seen, self._changed = version, at
        self.is_current = True

    def close(self) -> None:
        """Close the file."""
        self._log.close()


BATCH: Final = 5000
