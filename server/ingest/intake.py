"""Intake, the same for both APIs: check a batch, charge it, make it durable, answer with a receipt.

Knows neither HTTP nor gRPC: raw events come in, a `Receipt` goes out, and a refused batch raises `Refused`.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple, TypeVar

from processor import tracing
from processor.core.events import codec
from processor.core.events.columns import Columns, with_digests
from processor.core.events.message import Block, build_blocks
from processor.core.events.ndjson import size_of
from processor.core.events.prices.pricing import Pricer
from processor.core.events.source import Api
from processor.log.under_way import ArrivalsUnderWay
from processor.recurring import Recurring
from processor.structured_log import structlog
from processor.view.projects import DimValues
from server import position
from server.errors import Refused, Rejection
from server.ingest.batch import Arrived, Batch, Receipt
from server.ingest.parts import PartsOfRequest, SharedReservation
from server.ingest.publisher import Done, NotPublished, Outcome, Parts, Publisher
from server.ingest.together import BatchGroup, grouped, source_of
from server.limits import rate_limit_headers
from server.limits.cardinality import Cardinality, without
from server.limits.memory_budget import Hold, MemoryBudget
from server.limits.quota_port import QuotaPort, Reservation
from server.telemetry.meters import Meters
from server.tenancy.keys import Key

log = structlog.get_logger(__name__)

MAX_EVENTS: Final = 100
"""Events in one batch."""


class Moment(NamedTuple):
    """When batches were taken."""

    began: float
    """Monotonic seconds."""
    arrival: int
    """Microseconds since the epoch, as `latest`."""
    latest: int
    """The latest instant that it may be."""


class Intake:
    """Accepts batches.

    `clock` returns the arrival, in microseconds since the epoch. `pending` bounds the bytes that wait for the disk,
    fairly between organizations. `lease`: see `Source.lease`. `latest` returns the latest instant that it may be now,
    for a clock that may be behind: an event's own time may lie up to 24 h after that. `pricer` prices what came without
    a cost. `under_way` shows others what is not in the log yet.
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
        under_way: ArrivalsUnderWay | None = None,
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
        self._under_way = under_way or ArrivalsUnderWay(clock)

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
        with self._under_way.stamped() as now:
            return await self._accept(key, batch, now)

    async def _accept(self, key: Key, batch: Batch, now: int) -> Receipt:
        began = time.monotonic()
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
        self._count(batch, parts, rejected, outcome, began, 1)
        return Receipt(len(decoded.columns), rejected, position.encode(self._publisher.identity, outcome))

    async def accept_parts(self, key: Key, api: Api, events: int, parts: Iterable[Batch]) -> Receipt:
        """Accept the parts of one request of any size, each of at most `parts.MAX_PART` events, and of `events` at
        most together; the request itself has been admitted (`admit`).

        Returns once every valid event is durable; one that is not valid costs none of the others. Room for all of them
        is reserved in the quota before anything is written. Parts are made as they are needed: no more of them wait for
        the disk than `parts.MAX_WAITING`. Raises `Refused` if any part is: what was written of others by then counts
        once when the request is sent again.
        """
        with self._under_way.stamped() as now:
            return await self._accept_parts(key, api, events, parts, now)

    async def _accept_parts(self, key: Key, api: Api, events: int, parts: Iterable[Batch], now: int) -> Receipt:
        began = time.monotonic()
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
            self.meters.priced(taken.rows)
        for rejection in taken.rejected:
            self.meters.rejected(api, rejection.code)
        token = position.encode(self._publisher.identity, taken.offsets)
        return Receipt(sum(taken.events.values()), tuple(taken.rejected), token)

    async def _hold_part(self, key: Key, batch: Batch, taken: PartsOfRequest) -> Hold:
        """Room for a part; where there is none, the request waits for its own parts, not for those of others."""
        while True:
            hold = self.pending.hold(key.organization, key.id)
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

    def take_together(self, batches: Sequence[Arrived]) -> list[bool]:
        """Take batches that have arrived at the same time as `accept` does, without a task for each, where nothing
        about one is unusual.

        `Arrived.done` of those is called once, in a later turn of the loop. False: it is for `accept` to take or to
        refuse, and nothing of it is counted yet. Spans of a trace are not made. Does not raise.
        """
        began = time.monotonic()
        is_taken = [False] * len(batches)
        with self._under_way.stamped() as now:
            moment = Moment(began, now, max(now, self._latest()))
            for group in grouped(batches, [self._hold(each) for each in batches]):
                for place in self._take(group, None, moment):
                    is_taken[place] = True
        return is_taken

    def _hold(self, incoming: Arrived) -> Hold | None:
        """Room for a batch, reserved before anything of it is decoded; None: it is for `accept` to refuse."""
        key, records = incoming.key, incoming.batch.records
        try:
            check_count(len(records))
            return self.pending.hold(key.organization, key.id, size_of(records))
        except Refused:
            return None

    def _take(self, group: BatchGroup, columns: Columns | None, moment: Moment) -> list[int]:
        """Take the batches of a group in one piece or else one by one, and return the places of those that are taken.
        `columns`: their events, if they are decoded. Does not raise: `accept` has again what failed, and says so."""
        is_one = len(group.members) == 1
        decoded = None if columns is None else codec.Decoded(columns, [])
        try:
            decoded = decoded or group.decode(moment.latest)
            if decoded is not None and self._submit_group(group, decoded, moment):
                self._fails_at_once.worked()
                return [place for _, place, _ in group.members]
        except Refused:
            pass
        except Exception as error:  # noqa: BLE001 - whatever it is, the others are taken
            self._fails_at_once.failed(error=repr(error))
        if is_one:
            group.close()
            return []
        taken: list[int] = []
        for one, part in group.each_alone(None if decoded is None else decoded.columns):
            taken += self._take(one, part, moment)
        return taken

    def _submit_group(self, group: BatchGroup, decoded: codec.Decoded, moment: Moment) -> bool:
        """Hand the batches of a group to the log; False: something is unusual about one of them. May raise."""
        key, batch, columns = group.key, group.batch, decoded.columns
        if decoded.faults:  # of a batch by itself
            if batch.handling == "strict" or not columns:
                return False
            group.keep_valid(columns)
        if batch.handling == "lenient":
            columns = self._pricer.priced(columns, batch.payload)
        blocks, homes = group.blocks(columns, moment.arrival, self._lease, self._publisher.partitions)
        reserved = self._reserve_at_once(key, columns, len(homes), moment.arrival)
        if reserved is None:
            return False
        reservation, new = reserved
        rejected = _rejections(batch, decoded) if decoded.faults else ()

        def end(outcome: Outcome) -> None:
            group.close()
            if isinstance(outcome, Refused):
                group.answer([outcome] * len(homes))
            else:
                group.answer(self._receipts(group, blocks, homes, rejected, outcome, moment.began))

        try:
            self._submit(key, blocks, group.size, new, reservation, end)
        except NotPublished as refused:
            if len(homes) > 1 and key.rate_limit is None:  # there may be room for some of them
                raise
            asyncio.get_running_loop().call_soon(end, refused)
        return True

    def _reserve_at_once(
        self, key: Key, columns: Columns, requests: int, now: int
    ) -> tuple[Reservation, DimValues | None] | None:
        """Reserve room for the events of some requests, and for their names; None: there is none now, or not for all.
        May raise; then nothing is reserved."""
        bounds = self._cardinality
        if bounds is not None and bounds.knows(key.project, columns):
            bounds = None
        if bounds is not None and bounds.beyond(key.project, columns):
            return None
        reservation = self._quotas.try_reserve(key, len(columns), now)
        if reservation is None:
            return None
        new = None
        try:
            if bounds is not None:
                new = bounds.admit(key.project, columns)
            self._quotas.admit_request(key, now, requests)  # last: what it counts is not given back
        except BaseException:
            self._withdraw(key, new)
            reservation.release()
            raise
        return reservation, new

    def _receipts(
        self,
        group: BatchGroup,
        blocks: Parts,
        homes: Sequence[tuple[int, ...]],
        rejected: tuple[Rejection, ...],
        offsets: Mapping[int, int],
        began: float,
    ) -> Sequence[Receipt | Refused]:
        """Count batches that are durable at `offsets`, and make their receipts."""
        try:
            self._count(group.batch, blocks, rejected, offsets, began, len(homes))
            if len(homes) == 1:
                return [Receipt(group.counts[0], rejected, position.encode(self._publisher.identity, offsets))]
            return self._receipts_of_several(group.counts, homes, offsets)
        except Exception:  # it is durable: a client that sends it again changes nothing
            log.exception("receipt_failed")
            return [Refused("internal", "Internal server error")] * len(homes)

    def _build(self, key: Key, batch: Batch, decoded: codec.Decoded, now: int) -> dict[int, Block]:
        source = source_of(key, batch, now, self._lease)
        body = None if decoded.faults else batch.body
        # Under other handlings each event has a cost of its own.
        is_priced = batch.handling != "lenient"
        columns = decoded.columns
        if not is_priced:
            sent = None if batch.sent is None else _valid(batch.sent, decoded)
            columns = self._pricer.priced(columns, batch.payload, sent)
        return build_blocks(source, columns, self._publisher.partitions, body)

    def _receipts_of_several(
        self, counts: Sequence[int], homes: Sequence[tuple[int, ...]], offsets: Mapping[int, int]
    ) -> list[Receipt]:
        """Of batches of so many valid events in these partitions; one receipt for all that are alike."""
        made: dict[tuple[int, tuple[int, ...]], Receipt] = {}
        for count, places in zip(counts, homes, strict=True):
            if (count, places) not in made:
                token = position.encode(self._publisher.identity, {place: offsets[place] for place in places})
                made[count, places] = Receipt(count, (), token)
        return [made[each] for each in zip(counts, homes, strict=True)]

    def _submit(
        self, key: Key, parts: Parts, size: int, new: DimValues | None, reservation: Reservation, done: Done
    ) -> None:
        """Hand a batch to the log; what it has reserved ends with it, before `done`. Raises `NotPublished`."""
        held = self._under_way.hold(min((block.arrival for block in parts.values()), default=self._clock()))
        settle = partial(self._settle, key, new, reservation)

        def end(outcome: Outcome) -> None:
            try:
                settle(outcome)
            finally:
                self._under_way.release(held)
                done(outcome)

        try:
            self._publisher.submit(parts, size, end)
        except NotPublished:
            self._under_way.release(held)
            reservation.release()
            self._withdraw(key, new)
            raise
        except BaseException:  # nobody foresaw it: the log may have the batch
            self._under_way.release(held)
            settle(None)
            raise

    def _settle(self, key: Key, new: DimValues | None, reservation: Reservation, outcome: Outcome | None) -> None:
        """End what a batch has reserved; unless it is durable, the log may have some of it all the same."""
        bounds = self._cardinality
        if isinstance(outcome, dict):
            reservation.settle(outcome)
            if bounds is not None and new is not None:
                bounds.settle(key.project, new, outcome)
        else:
            reservation.doubt()
            if bounds is not None and new is not None:
                self._quotas.after_grace(partial(bounds.settle, key.project, new))

    def _count(
        self,
        batch: Batch,
        parts: Parts,
        rejected: tuple[Rejection, ...],
        offsets: Mapping[int, int],
        began: float,
        batches: int,
    ) -> None:
        """Count batches of one kind that are durable at `offsets`."""
        events = {partition: len(block) for partition, block in parts.items()}
        shares = None if batches == 1 else {partition: len(block.requests) for partition, block in parts.items()}
        self.meters.accepted(batch.api, offsets, events, began, time.monotonic(), batches, shares)
        if batch.handling == "lenient":
            self.meters.priced([block.rows for block in parts.values()])
        for rejection in rejected:
            self.meters.rejected(batch.api, rejection.code)

    def _decode_valid(self, key: Key, batch: Batch, latest: int) -> tuple[codec.Decoded, tuple[Rejection, ...]]:
        """Return the valid events of a batch, and the rejections."""
        with tracing.span("events.decode", events=len(batch.records)):
            decoded = codec.decode(batch.payload, batch.records, batch.handling, latest)
        if self._cardinality is not None:
            beyond = self._cardinality.beyond(key.project, decoded.columns)
            if beyond:
                decoded = without(beyond, decoded, batch.payload, batch.records, batch.handling, latest)
        if batch.digests is not None:
            decoded.columns = with_digests(decoded.columns, dict(enumerate(_valid(batch.digests, decoded))))
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


def _rejections(batch: Batch, decoded: codec.Decoded) -> tuple[Rejection, ...]:
    return tuple(
        Rejection(batch.lines[index], fault.event_id, fault.field, fault.code, fault.message)
        for index, fault in decoded.faults
    )


_T = TypeVar("_T")


def _valid(every: Sequence[_T], decoded: codec.Decoded) -> Sequence[_T]:
    """Of what a batch has of each record that of its valid events."""
    if not decoded.faults:
        return every
    faulty = {index for index, _ in decoded.faults}
    return [each for index, each in enumerate(every) if index not in faulty]


def _set(future: asyncio.Future[Outcome], outcome: Outcome) -> None:
    if not future.done():
        future.set_result(outcome)


def check_count(events: int) -> None:
    """Refuse an empty batch and one of more than `MAX_EVENTS`."""
    if events > MAX_EVENTS:
        raise Refused("bad_batch", f"Max {MAX_EVENTS} events per batch")
    if events == 0:
        raise Refused("bad_batch", "The batch has no event")
