"""Intake, the same for both APIs: check a batch, charge it, make it durable, answer with a receipt.

Knows neither HTTP nor gRPC: raw events come in, a `Receipt` goes out, and a refused batch raises `Refused`.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import structlog
from msgspec import Struct

from processor import tracing
from processor.core.events import codec
from processor.core.events.codec import PayloadFormat
from processor.core.events.columns import Columns
from processor.core.events.event import Handling
from processor.core.events.lines import size_of
from processor.core.events.message import Block, Body, build_blocks
from processor.core.events.prices.pricing import Pricer
from processor.core.events.source import Api, Source
from processor.recurring import Recurring
from processor.view.projects import DimValues
from server import position
from server.errors import Refused, Rejection
from server.ingest.parts import Parts as PartsOfRequest
from server.ingest.parts import SharedReservation
from server.ingest.publisher import Done, NotPublished, Outcome, Parts, Publisher
from server.limits import rate_limit_headers
from server.limits.cardinality import Cardinality, without
from server.limits.memory_budget import Hold, MemoryBudget
from server.limits.quota_port import QuotaPort, Reservation
from server.telemetry.meters import Meters
from server.tenancy.keys import Key

log = structlog.get_logger(__name__)

MAX_EVENTS: Final = 100
"""Events in one batch."""
TOGETHER: Final = 500
"""Events that are decoded together: for arrays of more numpy lets the interpreter's lock go in each of its calls."""


class Batch(Struct):
    """The events of one request as they were sent."""

    api: Api
    payload: PayloadFormat
    records: Sequence[bytes]
    lines: Sequence[int]
    """The number of each record in the request as sent, from 1, for `rejected`."""
    handling: Handling
    body: Body | None = None
    """What the records were cut from, if it was packed: the log keeps it as it came where it can."""
    digests: Sequence[int] | None = None
    """Of each record 64 bits for what a second copy may differ in, where the event's own digest has too much."""


class Receipt(Struct, frozen=True):
    """The result of a batch: `accepted` events are durable."""

    accepted: int
    rejected: tuple[Rejection, ...]
    position: str


class Incoming(NamedTuple):
    """A batch to take with others of the moment."""

    key: Key
    batch: Batch
    done: Callable[[Receipt | Refused], None]


class Intake:
    """Accepts batches.

    `clock` returns the arrival, in microseconds since the epoch. `pending` bounds the bytes that wait for the disk,
    fairly between organizations. `lease`: see `Source.lease`. `latest` returns the latest instant that it may be now,
    for a clock that may be behind: an event's own time may lie up to 24 h after that. `pricer` prices what came without
    a cost.
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
        pricer: Pricer | None = None,
    ) -> None:
        self._pricer = pricer or Pricer([])
        self.meters = meters or Meters()
        self._cardinality = cardinality
        self.pending = pending or MemoryBudget()
        self._publisher = publisher
        self._quotas = quotas
        self._clock = clock
        self._latest = latest or clock
        self._fails_at_once = Recurring("intake.at_once_failed", "intake.at_once_works_again")
        self._lease = lease

    def admit(self, key: Key) -> None:
        """Count one request against the key's rate; raises `Refused("rate_limited")`."""
        self._quotas.admit_request(key, self._clock())

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
            parts = self._build(key, batch, decoded, now)
            new = None if self._cardinality is None else self._cardinality.admit(key.project, decoded.columns)
            try:
                with tracing.span("quota.reserve"):
                    reservation = await self._quotas.reserve(key, len(decoded.columns), now)
            except BaseException:
                self._withdraw(key, new)
                raise
            # Without its client it goes on all the same, however long the write takes: its end is for `_submit` to see.
            durable: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
            with tracing.span("log.append", bytes=size):
                self._submit(key, parts, size, new, reservation, partial(_set, durable))
                outcome = await durable
        if isinstance(outcome, Refused):
            raise outcome
        return self._receipt(batch, parts, rejected, outcome, began)

    async def accept_parts(self, key: Key, api: Api, events: int, parts: Iterable[Batch]) -> Receipt:
        """Accept the parts of one request of any size, each of at most `parts.MAX_PART` events, and of `events` at
        most together; the request itself has been admitted (`admit`).

        Returns once every valid event is durable; one that is not valid costs none of the others. Room for all of them
        is reserved in the quota before anything is written. Parts are made as they are needed: no more of them wait for
        the disk than `parts.MAX_WAITING`. Raises `Refused` if any part is: what was written of others by then counts
        once when the request is sent again.
        """
        now, began = self._clock(), time.monotonic()
        latest = max(now, self._latest())
        taken = PartsOfRequest()
        if events:
            with SharedReservation(await self._quotas.reserve(key, events, now)) as reservation:
                for batch in parts:
                    await taken.wait_for_room(size_of(batch.records))
                    hold = await self._hold_part(key, batch, taken)
                    try:
                        self._begin_part(key, batch, taken, reservation, hold, now, latest)
                    except BaseException:
                        hold.close()
                        raise
                    await asyncio.sleep(0)  # others have their turn: a part takes milliseconds
                await taken.wait_for_all()
        if taken.offsets:
            self.meters.accepted(api, taken.offsets, taken.events, began, time.monotonic())
        for rejection in taken.rejected:
            self.meters.rejected(api, rejection.code)
        token = position.encode(self._publisher.identity, taken.offsets)
        return Receipt(sum(taken.events.values()), tuple(taken.rejected), token)

    async def _hold_part(self, key: Key, batch: Batch, taken: PartsOfRequest) -> Hold:
        """Room for a part; where there is none, the request waits for its own parts, not for those of others."""
        while True:
            hold = self.pending.begin(key.organization, key.id)
            try:
                hold.reserve(size_of(batch.records))
            except Refused:
                hold.close()
                if not taken.is_under_way:
                    raise
                await taken.wait_for_one()
            else:
                return hold

    def _begin_part(
        self,
        key: Key,
        batch: Batch,
        taken: PartsOfRequest,
        reservation: SharedReservation,
        hold: Hold,
        now: int,
        latest: int,
    ) -> None:
        """Hand a part to the log. Closes `hold` once it is decided, unless it raises."""
        decoded, rejected = self._decode_valid(key, batch, latest)
        taken.rejected += rejected
        if not decoded.columns:
            hold.close()
            return
        blocks = self._build(key, batch, decoded, now)
        new = None if self._cardinality is None else self._cardinality.admit(key.project, decoded.columns)
        size = size_of(batch.records)
        self._submit(key, blocks, size, new, reservation.part(), taken.done_of(blocks, size, hold))
        taken.began(size)

    def take_together(self, batches: Sequence[Incoming]) -> list[bool]:
        """Take batches that have arrived at the same time as `accept` does, without a task for each, where nothing
        about one is unusual.

        `Incoming.done` of those is called once, in a later turn of the loop. False: it is for `accept` to take or to
        refuse, and nothing of it is counted yet. Spans of a trace are not made. Does not raise.
        """
        now, began = self._clock(), time.monotonic()
        latest = max(now, self._latest())
        holds = [self._hold(each) for each in batches]
        decoded = self._decode_together(batches, holds, latest)
        return [
            hold is not None and self._is_taken(each, hold, columns, now, latest, began)
            for each, hold, columns in zip(batches, holds, decoded, strict=True)
        ]

    def _hold(self, incoming: Incoming) -> Hold | None:
        """Room for a batch, reserved before anything of it is decoded; None: it is for `accept` to refuse."""
        key, records = incoming.key, incoming.batch.records
        try:
            check_count(len(records))
            hold = self.pending.begin(key.organization, key.id)
        except Refused:
            return None
        try:
            hold.reserve(size_of(records))
        except Refused:
            hold.close()
            return None
        return hold

    def _decode_together(
        self, batches: Sequence[Incoming], holds: Sequence[Hold | None], latest: int
    ) -> list[Columns | None]:
        """The events of those batches that are decoded with others of their project; of the others None.

        By the project, so that no tenant's batches are decoded twice because of what another one has sent.
        """
        found: list[Columns | None] = [None] * len(batches)
        try:
            for places in _groups(batches, holds):
                first = batches[places[0]]
                batch, requests = first.batch, [batches[place].batch.records for place in places]
                columns = codec.decode_together(batch.payload, requests, batch.handling, latest)
                if columns is None:
                    continue
                for place, each in zip(places, columns, strict=True):
                    found[place] = each
        except Exception as error:  # noqa: BLE001 - whatever it is, each one is decoded by itself
            self._fails_at_once.failed(error=repr(error))
        return found

    def _is_taken(
        self, incoming: Incoming, hold: Hold, columns: Columns | None, now: int, latest: int, began: float
    ) -> bool:
        """`_take`, which must not keep the others from being taken."""
        is_taken = False
        try:
            is_taken = self._take(incoming, hold, columns, now, latest, began)
            self._fails_at_once.worked()
        except Refused:
            pass
        except Exception as error:  # noqa: BLE001 - whatever it is, `accept` has the batch again and says so
            self._fails_at_once.failed(error=repr(error))
        finally:
            if not is_taken:
                hold.close()
        return is_taken

    def _take(
        self, incoming: Incoming, hold: Hold, columns: Columns | None, now: int, latest: int, began: float
    ) -> bool:
        """See `take_together`. Closes `hold` once the batch is durable or refused, if it is taken; may raise."""
        key, batch, done = incoming
        if columns is None:
            decoded = codec.decode(batch.payload, batch.records, batch.handling, latest)
        else:
            decoded = codec.Decoded(columns, [])
        if not decoded.columns or (decoded.faults and batch.handling == "strict"):
            return False
        if self._cardinality is not None and self._cardinality.beyond(key.project, decoded.columns):
            return False
        parts, rejected = self._build(key, batch, decoded, now), _rejections(batch, decoded)
        reservation = self._quotas.try_reserve(key, len(decoded.columns), now)
        if reservation is None:
            return False
        try:
            new = None if self._cardinality is None else self._cardinality.admit(key.project, decoded.columns)
            try:
                self._quotas.admit_request(key, now)  # last: what it counts is not given back
            except BaseException:
                self._withdraw(key, new)
                raise
        except BaseException:
            reservation.release()
            raise

        def end(outcome: Outcome) -> None:
            hold.close()
            if isinstance(outcome, Refused):
                done(outcome)
                return
            try:
                receipt: Receipt | Refused = self._receipt(batch, parts, rejected, outcome, began)
            except Exception:  # it is durable: a client that sends it again changes nothing
                log.exception("receipt_failed")
                receipt = Refused("internal", "Internal server error")
            done(receipt)

        try:
            self._submit(key, parts, size_of(batch.records), new, reservation, end)
        except NotPublished as refused:
            asyncio.get_running_loop().call_soon(end, refused)
        return True

    def _build(self, key: Key, batch: Batch, decoded: codec.Decoded, now: int) -> dict[int, Block]:
        source = Source(
            key.organization, key.project, key.id, now, batch.payload, batch.handling, self._lease, batch.api
        )
        body = None if decoded.faults else batch.body
        # Under other handlings each event has a cost of its own.
        is_priced = batch.handling != "lenient"
        columns = decoded.columns if is_priced else self._pricer.priced(decoded.columns, batch.payload)
        return build_blocks(source, columns, self._publisher.partitions, body)

    def _submit(
        self, key: Key, parts: Parts, size: int, new: DimValues | None, reservation: Reservation, done: Done
    ) -> None:
        """Hand a batch to the log; what it has reserved ends with it, before `done`. Raises `NotPublished`."""

        def doubt() -> None:
            reservation.doubt()
            if new is not None:
                self._quotas.after_grace(partial(self._settle, key, new))

        def end(outcome: Outcome) -> None:
            try:
                if isinstance(outcome, Refused):  # some of it may be durable all the same
                    doubt()
                else:
                    reservation.settle(outcome)
                    self._settle(key, new, outcome)
            finally:
                done(outcome)

        try:
            self._publisher.submit(parts, size, end)
        except NotPublished:
            reservation.release()
            self._withdraw(key, new)
            raise
        except BaseException:  # nobody foresaw it: the log may have the batch
            doubt()
            raise

    def _receipt(
        self, batch: Batch, parts: Parts, rejected: tuple[Rejection, ...], offsets: dict[int, int], began: float
    ) -> Receipt:
        """Count a batch that is durable at `offsets`, and make its receipt."""
        events = {partition: len(block) for partition, block in parts.items()}
        self.meters.accepted(batch.api, offsets, events, began, time.monotonic())
        if batch.handling == "lenient":
            self.meters.priced([block.rows for block in parts.values()])
        for rejection in rejected:
            self.meters.rejected(batch.api, rejection.code)
        return Receipt(sum(events.values()), rejected, position.encode(self._publisher.identity, offsets))

    def _decode_valid(self, key: Key, batch: Batch, latest: int) -> tuple[codec.Decoded, tuple[Rejection, ...]]:
        """Return the valid events of a batch, and the rejections."""
        with tracing.span("events.decode", events=len(batch.records)):
            decoded = codec.decode(batch.payload, batch.records, batch.handling, latest)
        if self._cardinality is not None:
            beyond = self._cardinality.beyond(key.project, decoded.columns)
            if beyond:
                decoded = without(beyond, decoded, batch.payload, batch.records, batch.handling, latest)
        if batch.digests is not None:
            _set_digests(decoded, batch.digests)
        return decoded, _rejections(batch, decoded)

    def _decode(self, key: Key, batch: Batch, latest: int) -> tuple[codec.Decoded, tuple[Rejection, ...]]:
        """The same. Raises `Refused` if the batch is refused as a whole."""
        decoded, rejected = self._decode_valid(key, batch, latest)
        if not decoded.columns:
            raise Refused("bad_batch", "No valid event in the batch", rejected=rejected)
        if rejected and batch.handling == "strict":
            count = len(rejected)
            raise Refused("bad_batch", f"{count} event(s) of the batch are not valid", rejected=rejected)
        return decoded, rejected

    def _withdraw(self, key: Key, new: DimValues | None) -> None:
        if self._cardinality is not None and new is not None:
            self._cardinality.withdraw(key.project, new)

    def _settle(self, key: Key, new: DimValues | None, end: Mapping[int, int]) -> None:
        if self._cardinality is not None and new is not None:
            self._cardinality.settle(key.project, new, end)


def _groups(batches: Sequence[Incoming], holds: Sequence[Hold | None]) -> list[list[int]]:
    """The places of batches that can be decoded together: of one project, payload format and handling; at least two."""
    open_groups: dict[tuple[str, str, PayloadFormat, Handling], tuple[list[int], int]] = {}
    groups: list[list[int]] = []
    for place, (incoming, hold) in enumerate(zip(batches, holds, strict=True)):
        key, batch, count = incoming.key, incoming.batch, len(incoming.batch.records)
        if hold is None:
            continue
        kind = key.organization, key.project, batch.payload, batch.handling
        places, events = open_groups.get(kind, ([], 0))
        if not places or events + count > TOGETHER:
            places, events = [], 0
            groups.append(places)
        places.append(place)
        open_groups[kind] = places, events + count
    return [places for places in groups if len(places) > 1]


def _rejections(batch: Batch, decoded: codec.Decoded) -> tuple[Rejection, ...]:
    return tuple(
        Rejection(batch.lines[index], fault.event_id, fault.field, fault.code, fault.message)
        for index, fault in decoded.faults
    )


def _set_digests(decoded: codec.Decoded, digests: Sequence[int]) -> None:
    """Give the valid events of a batch the digests that it came with."""
    faulty = {index for index, _ in decoded.faults}
    rows = decoded.columns.rows.copy()
    rows["digest"] = np.fromiter((each for index, each in enumerate(digests) if index not in faulty), np.uint64)
    decoded.columns.rows = rows


def _set(future: asyncio.Future[Outcome], outcome: Outcome) -> None:
    if not future.done():
        future.set_result(outcome)


def check_count(events: int) -> None:
    """Refuse an empty batch and one of more than `MAX_EVENTS`."""
    if events > MAX_EVENTS:
        raise Refused("bad_batch", f"Max {MAX_EVENTS} events per batch")
    if events == 0:
        raise Refused("bad_batch", "The batch has no event")
