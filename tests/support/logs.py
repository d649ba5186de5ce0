"""A data directory without a server: events put straight into its log, and a worker that runs in this process."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from processor.core.events import codec, message
from processor.core.events.codec import PayloadFormat
from processor.core.events.event import Handling
from processor.core.events.message import Block, build_blocks
from processor.core.events.source import Source
from processor.core.tables import row_block
from processor.core.tables.history import Loss
from processor.log import losses
from processor.log.address import LogAddress
from processor.log.embedded.log import Log
from processor.log.port import LogReader, LogWriter, scan
from processor.log.records import Append, TopicPartition
from processor.log.topics import EVENTS, ROWS
from processor.state.applier import Applier
from processor.state.loader import Partition, load
from tests.support.events import to_json_line, to_proto
from tests.support.tables import NOON


def put(
    log: LogWriter,
    events: Sequence[dict[str, Any]],
    *,
    project: str = "default",
    organization: str = "default",
    key: str = "key",
    arrival: int = NOON,
    payload: PayloadFormat = "json",
    handling: Handling = "partial",
    at: int | None = None,
    encode: Callable[[Sequence[Block]], bytes] = message.encode,
) -> dict[int, int]:
    """Append one request's events as intake does; returns partition -> offset. `encode`: makes a message of them."""
    records = [to_json_line(event) if payload == "json" else to_proto(event).SerializeToString() for event in events]
    decoded = codec.decode(payload, records, handling, arrival)
    assert not decoded.faults, decoded.faults
    source = Source(organization, project, key, arrival, payload, handling)
    parts = build_blocks(source, decoded.columns, log.partitions)
    appends = [Append(TopicPartition(EVENTS, p), [(None, encode([part]))]) for p, part in parts.items()]
    offsets = log.append(appends, arrival if at is None else at)
    return dict(zip(parts, offsets, strict=True))


class _Delivery:
    def __init__(self, partition: int, offset: int, key: bytes | None, value: bytes | None) -> None:
        self.partition = partition
        self.offset = offset
        self.key = key
        self.value = value
        self.is_damaged = False

    def ack(self) -> None: ...


def catch_up(data_dir: Path) -> None:
    """Apply and flush everything that is in the log and not in the tables, like a worker that is started and stopped.

    Raises `Broken` as the applier does.
    """
    asyncio.run(_catch_up(data_dir))


async def _catch_up(data_dir: Path) -> None:
    log = Log(data_dir, create=False)
    partitions = {number: load(LogAddress(data_dir), number) for number in range(log.partitions)}

    async def append(appends: list[Append]) -> list[int]:
        return log.append(appends, NOON)

    async def exists(number: int, start: int, before: int) -> bool:
        return any(record.offset < before for record in log.read(TopicPartition(EVENTS, number), start, 1))

    async def lost(number: int, start: int, end: int, reason: str) -> None:
        losses.report(log, number, [Loss(start, end, counted=False, reason=reason)], NOON)

    applier = Applier(partitions, append, lambda: NOON, 0.01, exists, lost)
    try:
        for number, partition in partitions.items():
            for record in scan(log, TopicPartition(EVENTS, number), partition.expected):
                await applier.process(_Delivery(number, record.offset, record.key, record.value))
        await applier.flush()
    finally:
        _close(partitions)
        log.close()


def _close(partitions: Mapping[int, Partition]) -> None:
    for partition in partitions.values():
        partition.index.close()


def newest_rows(log: LogReader) -> dict[bytes, bytes]:
    """Every row of the changelog, of all partitions, as it is now."""
    rows: dict[bytes, bytes] = {}
    for number in range(log.partitions):
        for record in scan(log, TopicPartition(ROWS, number)):
            for key, value in row_block.expand(number, record.key or b"", record.value):
                if value is None:
                    rows.pop(key, None)
                else:
                    rows[key] = value
    return rows
