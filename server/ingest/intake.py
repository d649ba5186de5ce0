"""Intake, the same for both APIs: check a batch, charge it, make it durable, answer with a receipt.

Knows neither HTTP nor gRPC: raw events come in, a `Receipt` goes out, and a refused batch raises `Refused`.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from msgspec import Struct

from processor import tracing
from processor.core.events import codec
from processor.core.events.codec import PayloadFormat
from processor.core.events.event import Handling
from processor.core.events.lines import size_of
from processor.core.events.message import STORED, Source, build_blocks
from processor.view.projects import DimValues
from server import position
from server.errors import Refused, Rejection
from server.ingest.publisher import NotPublished, Publisher
from server.limits import rate_limit_headers
from server.limits.cardinality import Cardinality, without
from server.limits.memory_budget import MemoryBudget
from server.limits.quota_port import QuotaPort, Reservation
from server.telemetry.meters import Api, Meters
from server.tenancy.keys import Key

MAX_EVENTS: Final = 100
"""Events in one batch."""


class Batch(Struct):
    """The events of one request as they were sent."""

    api: Api
    payload: PayloadFormat
    records: Sequence[bytes]
    lines: Sequence[int]
    """The number of each record in the request as sent, from 1, for `rejected`."""
    handling: Handling


class Receipt(Struct, frozen=True):
    """The result of a batch: `accepted` events are durable."""

    accepted: int
    rejected: tuple[Rejection, ...]
    position: str


class Intake:
    """Accepts batches.

    `clock` returns the arrival, in microseconds since the epoch. `pending` bounds the bytes that wait for the disk,
    fairly between organizations. `lease`: see `Source.lease`. `latest` returns the latest instant that it may be now,
    for a clock that may be behind: an event's own time may lie up to 24 h after that.
    """

    def __init__(
        self,
        publisher: Publisher,
        quotas: QuotaPort,
        clock: Callable[[], int],
        pending: MemoryBudget | None = None,
        cardinality: Cardinality | None = None,
        lease: str = "",
        meters: Meters | None = None,
        *,
        latest: Callable[[], int] | None = None,
    ) -> None:
        self.meters = meters or Meters()
        self._cardinality = cardinality
        self.pending = pending or MemoryBudget()
        self._publisher = publisher
        self._quotas = quotas
        self._clock = clock
        self._latest = latest or clock
        self._lease = lease

    def limits(self, key: Key) -> dict[str, str]:
        """The header fields that say what the key has left; none without a limit."""
        now = self._clock()
        allowances = self._quotas.allowances(key, now)
        return rate_limit_headers.headers(allowances, now) if allowances else {}

    async def accept(self, key: Key, batch: Batch) -> Receipt:
        """Accept a batch for `key`, which has been authenticated.

        Returns once every valid event is durable; a duplicate counts as accepted. Raises `Refused` if the batch is
        refused as a whole: then nothing of it is charged.
        """
        now, began = self._clock(), time.monotonic()
        self._quotas.admit_request(key, now)
        check_count(len(batch.records))
        size = size_of(batch.records)
        with self.pending.hold(key.organization, key.id) as hold:
            hold.reserve(size)  # before anything is decoded: a refusal must cost little when there is much to do
            decoded, rejected = self._decode(key, batch, max(now, self._latest()))
            source = Source(
                key.organization, key.project, key.id, now, STORED[batch.payload], batch.handling, self._lease
            )
            parts = build_blocks(source, decoded.columns, self._publisher.partitions)
            new = None if self._cardinality is None else self._cardinality.admit(key.project, decoded.columns)
            try:
                with tracing.span("quota.reserve"):
                    reservation = await self._quotas.reserve(key, len(decoded.columns), now)
            except BaseException:
                self._withdraw(key, new)
                raise
            try:
                with tracing.span("log.append", bytes=size):
                    offsets = await self._publisher.publish(parts, size, partial(self._end, key, new, reservation))
            except NotPublished:
                reservation.release()
                self._withdraw(key, new)
                raise
            except asyncio.CancelledError:  # the client has left; the write continues, however long it takes
                raise
            except BaseException:  # refused by the log, but some of it may be durable nevertheless
                self._end(key, new, reservation, None)
                raise
            self._end(key, new, reservation, offsets)
        events = {partition: len(block) for partition, (block, _) in parts.items()}
        self.meters.accepted(batch.api, offsets, events, began, time.monotonic())
        for _, fault in decoded.faults:
            self.meters.rejected(batch.api, fault.code)
        return Receipt(len(decoded.columns), rejected, position.encode(self._publisher.identity, offsets))

    def _decode(self, key: Key, batch: Batch, latest: int) -> tuple[codec.Decoded, tuple[Rejection, ...]]:
        """Return the valid events of a batch, and the rejections. Raises `Refused` if it is refused as a whole."""
        with tracing.span("events.decode", events=len(batch.records)):
            decoded = codec.decode(batch.payload, batch.records, batch.handling, latest)
        if self._cardinality is not None:
            beyond = self._cardinality.beyond(key.project, decoded.columns)
            if beyond:
                decoded = without(beyond, decoded, batch.payload, batch.records, batch.handling, latest)
        rejected = tuple(
            Rejection(batch.lines[index], fault.event_id, fault.field, fault.code, fault.message)
            for index, fault in decoded.faults
        )
        if not decoded.columns:
            raise Refused("bad_batch", "No valid event in the batch", rejected=rejected)
        if rejected and batch.handling == "strict":
            count = len(rejected)
            raise Refused("bad_batch", f"{count} event(s) of the batch are not valid", rejected=rejected)
        return decoded, rejected

    def _end(self, key: Key, new: DimValues | None, reservation: Reservation, offsets: dict[int, int] | None) -> None:
        """A batch is durable at `offsets`; None: nobody knows."""
        if offsets is not None:
            reservation.settle(offsets)
            self._settle(key, new, offsets)
            return
        reservation.doubt()
        if new is not None:
            self._quotas.after_grace(partial(self._settle, key, new))

    def _withdraw(self, key: Key, new: DimValues | None) -> None:
        if self._cardinality is not None and new is not None:
            self._cardinality.withdraw(key.project, new)

    def _settle(self, key: Key, new: DimValues | None, end: Mapping[int, int]) -> None:
        if self._cardinality is not None and new is not None:
            self._cardinality.settle(key.project, new, end)


def check_count(events: int) -> None:
    """Refuse an empty batch and one of more than `MAX_EVENTS`."""
    if events > MAX_EVENTS:
        raise Refused("bad_batch", f"Max {MAX_EVENTS} events per batch")
    if events == 0:
        raise Refused("bad_batch", "The batch has no event")
