"""Losses: what is gone from the log, reported once and for good in records of the directory.

    key = lost/<topic>/<partition>/<from>      value = {"topic", "partition", "from", "to", "counted", ...}

The worker that owns the partition writes them before it counts anything that comes after. Every API process knows them
from the directory (`/readyz`, `/metrics`), and `spendstream verify` lists them.
"""

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec
from msgspec import Struct, field

from processor.core.tables import history
from processor.core.tables.history import ACKNOWLEDGED, EVENTS, RESTORE, Loss, OffsetRange
from processor.log.embedded.log import Log
from processor.log.errors import HistoryMismatch
from processor.log.port import LogReader, LogWriter, scan
from processor.log.records import Append, TopicPartition
from processor.log.topics import DIRECTORY

KIND: Final = "lost"
"""The kind of these records: the beginning of their keys."""

HOME: Final = TopicPartition(DIRECTORY, 0)


class Lost(Struct, frozen=True, kw_only=True):
    """Records of one partition of a topic that are gone."""

    topic: str
    """`events`, `acknowledged`, `claims`, `dead-letters` or `directory`."""
    partition: int
    start: int = field(name="from")
    """The first offset that is gone."""
    end: int = field(name="to")
    """The offset after the last one."""
    counted: bool
    """Whether the tables contain these records."""
    ids: int = 0
    """How many ids are no longer known though their events are counted."""
    reason: str
    at: int
    """When it was noticed, microseconds since the epoch."""

    @property
    def messages(self) -> int:
        """How many records are gone."""
        return self.end - self.start

    @property
    def text(self) -> str:
        """The loss as a sentence, for operators."""
        where = f"{self.topic} {self.start} to {self.end - 1} of partition {self.partition} are gone from the log"
        if self.topic == ACKNOWLEDGED:
            return (
                f"acknowledged events in messages {self.start} to {self.end - 1} of partition {self.partition} are LOST"
            )
        if self.topic == history.DIRECTORY:
            return (
                f"records {self.start} to {self.end - 1} of the directory are gone from the log ({self.reason}): keys, "
                "revocations and quotas among them do not hold any more. Compare `spendstream keys list` and "
                "`spendstream orgs list` with what was set last"
            )
        if self.topic != EVENTS:
            ids = f"; {self.ids} ids are not known any more, copies of their events would count again"
            return f"{where} ({self.reason}){ids if self.ids else ''}"
        state = "the tables contain them" if self.counted else "they are LOST: no table contains them"
        return f"{where} ({self.reason}): {state}"

    def encode(self) -> tuple[bytes, bytes]:
        """Key and value of the record."""
        return f"{KIND}/{self.topic}/{self.partition}/{self.start}".encode(), msgspec.json.encode(self)


def decode(value: bytes) -> Lost:
    """Decode a record. Raises `msgspec.MsgspecError` for another format."""
    return msgspec.json.decode(value, type=Lost)


def read(log: LogReader) -> list[Lost]:
    """Return all reported losses, in order."""
    found: dict[bytes, Lost] = {}
    for record in scan(log, HOME):
        key = record.key or b""
        if key.startswith(f"{KIND}/".encode()):
            if record.value is None:
                found.pop(key, None)
            else:
                found[key] = decode(record.value)
    return list(found.values())


def of_partition(log: LogReader, number: int) -> list[Loss]:
    """Return the reported losses of one partition's events and claims."""
    return list(_losses(each for each in read(log) if each.partition == number))


def _losses(found: Iterable[Lost]) -> Iterator[Loss]:
    for each in found:
        yield Loss(each.start, each.end, each.counted, each.reason, each.topic, each.ids)


def uncounted(found: Iterable[Lost]) -> dict[int, int]:
    """Return partition -> messages of events that are gone and in no table, each counted once."""
    ranges: dict[int, list[OffsetRange]] = {}
    for each in found:
        if each.topic in (EVENTS, ACKNOWLEDGED) and not each.counted:
            ranges.setdefault(each.partition, []).append(OffsetRange(each.start, each.end))
    counts = {}
    for partition, known in ranges.items():
        counts[partition] = end = 0
        for start, stop in sorted(known):
            counts[partition] += max(0, stop - max(start, end))
            end = max(end, stop)
    return counts


def check_directory(log: LogReader) -> None:
    """Raise `HistoryMismatch` if the directory has lost its beginning.

    The embedded log must have all of it; a broker compacts it, but keeps its first offset.
    """
    first, end = log.first(HOME), log.end(HOME)
    if isinstance(log, Log):
        gaps = log.missing(HOME, 0, end)
        first = gaps[0][1] if gaps else 0
    if first > 0:
        raise HistoryMismatch(
            f"records of the topic {log.name_of(DIRECTORY)} before offset {first} are gone (retention, or a person "
            "with a tool): keys, revocations and quotas among them may be missing, and revoked keys valid again. Stop "
            f"all processes and {RESTORE}; on Kafka set cleanup.policy=compact, retention.ms=-1 and retention.bytes=-1 "
            "there"
        )


def report(log: LogWriter, number: int, losses: Iterable[Loss], at: int) -> list[Lost]:
    """Record losses of a partition; durable on return. Raises `LogUnavailable`."""
    found = [
        Lost(
            topic=loss.topic,
            partition=number,
            start=loss.start,
            end=loss.end,
            counted=loss.counted,
            ids=loss.ids,
            reason=loss.reason,
            at=at,
        )
        for loss in losses
    ]
    if found:
        log.append([Append(HOME, [each.encode() for each in found])], at)
    return found
