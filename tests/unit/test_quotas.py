"""The quotas of one process, by each adapter of `Caps`."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.core.clock import DAY, MINUTE, SECOND, month_start, parse_timestamp
from processor.view.view import View
from processor.view.view_follower import Arrivals
from server.errors import Refused
from server.limits.monthly_usage import MonthlyUsage, call_later
from server.limits.quota_port import Reservation
from server.limits.quotas import Quotas
from server.limits.rate_limit_headers import Allowance
from server.processes.siblings import ApiSibling
from server.tenancy.directory import Directory, organization_record
from server.tenancy.keys import Key, Organization, make_key, new_secret
from tests.support.caps import KINDS, Graces, Grantor, Kind, ProcessCaps
from tests.support.counted_time import counted_time
from tests.support.examples import examples
from tests.support.patience import PATIENCE
from tests.support.tables import NOON, Records, Usage, Worker

KEY = make_key(new_secret(), at=0)
OTHER_PROJECT = make_key(new_secret(), at=0, project="other")
FREE = make_key(new_secret(), at=0, organization="free")
LIMIT = 4
MAY = parse_timestamp("2026-05-01T00:00:00Z")


class Rig:
    """A worker, a view that follows it when told to, and the quotas on it, by one of the adapters of `Caps`."""

    def __init__(
        self,
        kind: Kind,
        directory: Path,
        limit: int | None = 10,
        *,
        partitions: int = 1,
        patience: float = 0.02,
        before: "Rig | None" = None,
        graces: Graces | None = None,
    ) -> None:
        """`before`: an earlier process on the same log."""
        self.worker: Worker = before.worker if before is not None else Worker(partitions)
        self.view = View()
        self.directory = Directory()
        self.arrivals = Arrivals(self.view)
        self.records = 0
        self.limit(limit)
        later = call_later if graces is None else graces.later
        usage = MonthlyUsage(self.view, self.worker.log_end, grace=0.01, later=later)
        how: ApiSibling | Grantor | None = None
        if kind == "shared":
            [how] = ApiSibling.create_all(directory, 1)
        elif kind == "leased":
            how = before.grantor if before is not None else Grantor(self.worker, self.directory, ("default", "free"))
        self.grantor: Grantor | None = how if isinstance(how, Grantor) else None
        self.process = ProcessCaps(usage, self.directory, how, self.arrivals.notify, lambda: self.records - 1)
        self.quotas = Quotas(self.arrivals, self.directory, usage, self.process.caps, patience=patience)
        self.unread: list[Records] = [list(records) for records in self.worker.changelog]
        self.ids = iter(range(10**6))

    def limit(self, limit: int | None) -> None:
        self.directory.apply(*organization_record(Organization("default", limit)), self.records)
        self.records += 1

    async def reserve(self, events: int, *, key: Key = KEY, now: int = NOON) -> Reservation:
        return await self.quotas.reserve(key, events, now)

    def publish(self, events: int, *, key: Key = KEY, now: int = NOON) -> dict[int, int]:
        return self.send([Usage(next(self.ids)) for _ in range(events)], key=key, now=now)

    def send(self, usages: list[Usage], *, key: Key = KEY, now: int = NOON) -> dict[int, int]:
        source = {"organization": key.organization, "project": key.project, "key": key.id, "lease": self.process.name}
        return self.worker.send(usages, arrival=now, **source)

    def follow(self) -> None:
        for partition, records in enumerate(self.worker.work_all()):
            self.view.apply(partition, [*self.unread[partition], *records])
            self.unread[partition] = []
        self.view.mark_current(NOON)
        self.arrivals.notify()

    async def take(self, events: int, *, key: Key = KEY, now: int = NOON) -> None:
        """All of what intake does with a batch."""
        reservation = await self.reserve(events, key=key, now=now)
        reservation.settle(self.publish(events, key=key, now=now))


class NewRig(Protocol):
    def __call__(
        self, limit: int | None = 10, *, partitions: int = 1, patience: float = 0.02, before: Rig | None = None
    ) -> Rig: ...


@pytest.fixture(params=KINDS)
async def new_rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[NewRig]:
    """Each test here holds for each adapter: the contract of `Caps` for one process. Patience is counted in the loop's
    rounds: 20 ms of a busy machine were over before a lease was read."""
    rigs: list[Rig] = []

    def make(*arguments: Any, **options: Any) -> Rig:
        rigs.append(Rig(request.param, tmp_path, *arguments, **options))
        return rigs[-1]

    with counted_time():
        yield make
    for rig in rigs:
        rig.process.close()


async def rounds() -> None:
    """Whatever can go on without more of the test does."""
    for _ in range(10):
        await asyncio.sleep(0)


async def refusal(rig: Rig, events: int, now: int = NOON) -> Refused:
    with pytest.raises(Refused) as caught:
        await rig.reserve(events, now=now)
    return caught.value


# --- requests a minute -----------------------------------------------------------------------------------------------


async def test_requests_are_counted_by_key_and_minute(new_rig: NewRig) -> None:
    quotas = new_rig().quotas
    key, other = (make_key(new_secret(), at=0, rate_limit=2) for _ in range(2))
    start = NOON - NOON % MINUTE
    quotas.admit_request(key, start)
    quotas.admit_request(key, start + 1)
    for at, wait in ((start + 1, 60), (start + 1 * SECOND, 59), (start + MINUTE - 1, 1)):
        with pytest.raises(Refused) as caught:
            quotas.admit_request(key, at)
        assert (caught.value.reason, caught.value.message) == ("rate_limited", "Rate limit exceeded")
        assert caught.value.retry_after == wait
        assert caught.value.details == {"limit": 2, "used": 2, "resetsAt": "2026-04-20T12:01:00.000Z"}
    quotas.admit_request(other, start)
    quotas.admit_request(key, start + MINUTE)  # the refused ones did not count
    quotas.admit_request(key, start + MINUTE)
    for _ in range(100):
        quotas.admit_request(KEY, start)


async def test_several_requests_are_counted_all_or_none(new_rig: NewRig) -> None:
    rig = new_rig()
    key = make_key(new_secret(), at=0, rate_limit=5)
    rig.quotas.admit_request(key, NOON, 3)
    with pytest.raises(Refused) as caught:
        rig.quotas.admit_request(key, NOON, 3)
    assert caught.value.details["used"] == 3
    rig.quotas.admit_request(key, NOON, 2)
    with pytest.raises(Refused):
        rig.quotas.admit_request(key, NOON)


async def test_a_rotated_key_shares_its_rate_with_its_successor(new_rig: NewRig) -> None:
    quotas = new_rig().quotas
    key = make_key(new_secret(), at=0, rate_limit=2)
    successor = make_key(new_secret(), at=0, rate_limit=2, family=key.lineage)
    quotas.admit_request(key, NOON)
    quotas.admit_request(successor, NOON)
    for each in (key, successor):
        with pytest.raises(Refused):
            quotas.admit_request(each, NOON)


async def test_what_a_key_has_left(new_rig: NewRig) -> None:
    rig = new_rig(limit=10)
    key = make_key(new_secret(), at=0, rate_limit=3)
    at = NOON - NOON % MINUTE + 15 * SECOND
    rig.quotas.admit_request(key, at)
    await rig.take(4)
    reserved = await rig.reserve(3)
    requests = Allowance("requests", 3, 1, at + 45 * SECOND, 60)
    assert rig.quotas.allowances(key, at) == (requests, Allowance("events", 10, 7, MAY))
    rig.follow()
    reserved.release()
    assert rig.quotas.allowances(key, at)[1].used == 4
    assert rig.quotas.allowances(key, at + MINUTE)[0].used == 0
    assert rig.quotas.allowances(key, MAY)[1].used == 0
    assert rig.quotas.allowances(KEY, at) == (Allowance("events", 10, 4, MAY),)
    assert rig.quotas.allowances(FREE, at) == ()


async def test_a_months_end_is_crossed_by_the_clock_alone(new_rig: NewRig) -> None:
    """What was full a microsecond before midnight is empty at midnight; what is late still counts where it arrived."""
    rig = new_rig(limit=5, patience=30)
    await rig.take(5, now=MAY - 2)
    assert (rig.quotas.allowances(KEY, MAY - 1)[0].used, rig.quotas.allowances(KEY, MAY)[0].used) == (5, 0)
    late = asyncio.create_task(rig.take(1, now=MAY - 1))  # waits: only what is on its way is in its way
    await rounds()
    await rig.take(5, now=MAY)
    rig.follow()
    with pytest.raises(Refused) as caught:
        await late
    assert (caught.value.reason, caught.value.retry_after) == ("quota_exceeded", 1)
    assert caught.value.details == {"limit": 5, "used": 5, "resetsAt": "2026-05-01T00:00:00.000Z"}
    over = await refusal(rig, 1, MAY)
    assert over.details == {"limit": 5, "used": 5, "resetsAt": "2026-06-01T00:00:00.000Z"}
    assert [rig.view.charged("default", month_start(at)).unique for at in (MAY - 1, MAY)] == [5, 5]


# --- events a month --------------------------------------------------------------------------------------------------


async def test_the_line_is_exact_over_projects_and_wholly_refused_beyond(new_rig: NewRig) -> None:
    rig = new_rig(limit=10)
    await rig.take(4)
    await rig.take(5, key=OTHER_PROJECT)
    rig.follow()
    refused = await refusal(rig, 2)
    assert (refused.reason, refused.message, refused.retry_after) == ("quota_exceeded", "Monthly quota exceeded", 60)
    assert refused.details == {"limit": 10, "used": 9, "resetsAt": "2026-05-01T00:00:00.000Z"}
    await rig.take(1)
    rig.follow()
    assert rig.view.charged("default", month_start(NOON)).unique == 10
    assert (await refusal(rig, 1)).retry_after == 60
    assert (await refusal(rig, 1, MAY - 3 * SECOND)).retry_after == 3


async def test_a_quota_that_is_lowered_binds_at_once(new_rig: NewRig) -> None:
    """Also where a process may use more by what it was granted before."""
    rig = new_rig(limit=100)
    for _ in range(3):
        await rig.take(6)
        rig.process.tick()
    rig.follow()
    rig.limit(20)
    reserved = await rig.reserve(2)
    assert (await refusal(rig, 1)).details == {"limit": 20, "used": 18, "resetsAt": "2026-05-01T00:00:00.000Z"}
    reserved.release()
    rig.limit(7)
    assert (await refusal(rig, 1)).details == {"limit": 7, "used": 18, "resetsAt": "2026-05-01T00:00:00.000Z"}
    rig.limit(19)
    await rig.take(1)


async def test_a_reservation_counts_until_the_view_contains_it(new_rig: NewRig) -> None:
    rig = new_rig(limit=10)
    reservation = await rig.reserve(10)
    assert (await refusal(rig, 1)).retry_after == 1
    offsets = rig.publish(10)
    assert (await refusal(rig, 1)).retry_after == 1
    reservation.settle(offsets)
    assert (await refusal(rig, 1)).retry_after == 1
    rig.follow()
    assert (await refusal(rig, 1)).retry_after == 60


async def test_rows_without_their_progress_count_twice_rather_than_not_at_all(new_rig: NewRig) -> None:
    rig = new_rig(limit=10)
    await rig.take(4)
    *rows, progress = rig.worker.work(0)
    rig.view.apply(0, rows)
    rig.arrivals.notify()
    assert (await refusal(rig, 3)).retry_after == 1
    rig.view.apply(0, [progress])  # no notification yet: asked for, it is seen
    await rig.reserve(6)


async def test_duplicates_are_given_back(new_rig: NewRig) -> None:
    rig = new_rig(limit=10, patience=5)
    for _ in range(2):
        reservation = await rig.reserve(5)
        rig.ids = iter(range(5))
        reservation.settle(rig.publish(5))
    waiting = asyncio.create_task(rig.reserve(5))
    await rounds()
    assert not waiting.done()
    rig.follow()
    await waiting
    assert (await refusal(rig, 6)).retry_after == 60


async def test_a_batch_waits_for_reservations_and_is_woken(new_rig: NewRig) -> None:
    rig = new_rig(limit=10, patience=5)
    first = await rig.reserve(8)
    waiting = [asyncio.create_task(rig.reserve(2)) for _ in range(3)]
    await rounds()
    assert [task.done() for task in waiting] == [True, False, False]
    first.release()
    first.release()
    await asyncio.gather(*waiting)
    waiting = [asyncio.create_task(rig.reserve(5)) for _ in range(2)]
    await rounds()
    waiting[0].cancel()
    (await rig.reserve(4)).release()
    await rounds()
    assert not waiting[1].done()
    waiting[1].cancel()
    await asyncio.wait(waiting)


async def test_a_batch_that_can_never_fit_does_not_wait(new_rig: NewRig) -> None:
    rig = new_rig(limit=10, patience=100)
    await rig.reserve(10)
    async with asyncio.timeout(PATIENCE):
        assert (await refusal(rig, 11)).retry_after == 60


async def test_a_view_faster_than_the_acknowledgement(new_rig: NewRig) -> None:
    rig = new_rig(limit=10, patience=5)
    reservation = await rig.reserve(9)
    offsets = rig.publish(5)
    rig.follow()
    waiting = asyncio.create_task(rig.reserve(5))
    await rounds()
    assert not waiting.done()
    reservation.settle(offsets)
    await rounds()
    rig.process.tick()
    await asyncio.wait_for(waiting, PATIENCE)


async def test_a_doubtful_batch_is_held_until_the_view_has_the_end_of_the_log_after_the_grace(new_rig: NewRig) -> None:
    rig = new_rig(limit=10)
    reservation = await rig.reserve(10)
    reservation.doubt()
    rig.follow()
    rig.publish(10)  # it was taken after all, a little later
    await asyncio.sleep(0.02)
    assert (await refusal(rig, 1)).retry_after == 1
    rig.follow()
    assert (await refusal(rig, 1)).retry_after == 60
    assert rig.view.charged("default", month_start(NOON)).unique == 10


async def test_a_doubtful_batch_that_came_to_nothing_is_given_back(new_rig: NewRig) -> None:
    rig = new_rig(limit=10, patience=0)
    (await reserve_at_last(rig, 10, NOON)).doubt()
    assert (await refusal(rig, 1)).retry_after == 1
    await asyncio.sleep(0.02)
    await reserve_at_last(rig, 10, NOON)


async def test_a_batch_belongs_to_the_month_of_its_arrival(new_rig: NewRig) -> None:
    rig = new_rig(limit=10)
    await rig.take(10, now=MAY - 1)
    assert (await refusal(rig, 1, MAY - 1)).retry_after == 1
    await rig.take(10, now=MAY)
    rig.follow()
    for now in (MAY - 1, MAY):
        assert (await refusal(rig, 1, now)).reason == "quota_exceeded"
    await rig.take(10, now=MAY + 31 * DAY)


async def test_a_limit_of_zero_takes_nothing(new_rig: NewRig) -> None:
    assert (await refusal(new_rig(limit=0), 1)).details["used"] == 0


async def test_after_a_start_nothing_is_taken_before_the_view_has_what_was_there(new_rig: NewRig) -> None:
    before = new_rig(limit=10)
    await before.take(10)
    rig = new_rig(limit=10, before=before)
    await rig.take(3, key=FREE)
    refused = await refusal(rig, 1)
    assert (refused.reason, refused.retry_after) == ("unavailable", 1)
    rig.follow()
    assert (await refusal(rig, 1)).reason == "quota_exceeded"


async def test_after_a_start_a_batch_waits_a_little_for_the_view(new_rig: NewRig) -> None:
    before = new_rig(limit=10)
    await before.take(5)
    rig = new_rig(limit=10, before=before, patience=5)
    waiting = asyncio.create_task(rig.reserve(5))
    await rounds()
    rig.follow()
    await waiting


async def test_a_quota_set_while_batches_are_on_their_way(new_rig: NewRig) -> None:
    rig = new_rig(limit=None)
    open_, doubted = await rig.reserve(6), await rig.reserve(1)
    await rig.take(3)
    doubted.doubt()
    rig.limit(10)
    assert (await refusal(rig, 1)).reason == "unavailable"
    open_.settle(rig.publish(6))
    assert (await refusal(rig, 1)).reason == "unavailable"  # the doubtful one may still come
    rig.publish(1)
    await asyncio.sleep(0.02)
    assert (await refusal(rig, 1)).reason == "unavailable"
    rig.follow()
    assert (await refusal(rig, 1)).details["used"] == 10
    rig.limit(None)
    await rig.take(100)
    rig.limit(200)
    rig.follow()
    await rig.reserve(90)
    assert (await refusal(rig, 1)).retry_after == 1


async def test_a_quota_lifted_while_a_batch_waits(new_rig: NewRig) -> None:
    rig = new_rig(limit=1, patience=5)
    first = await rig.reserve(1)
    waiting = asyncio.create_task(rig.reserve(1))
    await rounds()
    rig.limit(None)
    first.release()
    await waiting


# --- any interleaving ------------------------------------------------------------------------------------------------


@dataclass
class Batch:
    reservation: Reservation
    events: list[Usage]
    now: int
    offsets: dict[int, int] | None = None
    doubtful: bool = False


@dataclass
class Play:
    """A run of random steps; after each of them no organization's month is over its limit."""

    rig: Rig
    graces: Graces
    now: int = MAY - 2 * SECOND
    batches: list[Batch] = field(default_factory=list)

    async def step(self, what: str, number: int) -> None:
        rig, batches = self.rig, self.batches
        batch = batches[number % len(batches)] if batches else None
        partition = number % len(rig.worker.log)
        match what:
            case "reserve":
                events = [Usage(identity) for identity in range(2 * number, 2 * number + 1 + number % 4)]
                try:
                    reservation = await rig.reserve(len(events), now=self.now)
                except Refused:
                    return
                batches.append(Batch(reservation, events, self.now))
            case "publish" if batch and batch.offsets is None:
                batch.offsets = rig.send(batch.events, now=batch.now)
                if batch.doubtful:
                    batches.remove(batch)
            case "acknowledge" if batch and batch.offsets is not None:
                batch.reservation.settle(batch.offsets)
                batches.remove(batch)
            case "doubt" if batch and not batch.doubtful:
                batch.reservation.doubt()
                batch.doubtful = True
                if batch.offsets is not None:
                    batches.remove(batch)
            case "end grace":
                self.end_grace()
            case "work":
                rig.unread[partition] += rig.worker.work(partition)
            case "view":
                records = rig.unread[partition]
                rig.view.apply(partition, records[: number % 7])
                del records[: number % 7]
                if number % 2:
                    rig.arrivals.notify()
            case "time":
                self.now += SECOND

    def end_grace(self) -> None:
        """What was doubtful and is not published by now never will be."""
        self.batches = [batch for batch in self.batches if not batch.doubtful]
        self.graces.end()

    def check(self) -> None:
        for now in (MAY - 1, MAY):
            seen: dict[tuple[int, ...], int] = {}
            for messages in self.rig.worker.log:
                for message in messages:
                    for request, rows in message.by_request():
                        for event_id in rows["id"].tolist():
                            seen.setdefault(tuple(event_id), month_start(request.source.arrival))
            assert list(seen.values()).count(month_start(now)) <= LIMIT


steps = st.tuples(
    st.sampled_from(["reserve", "publish", "acknowledge", "work", "view"] * 2 + ["doubt", "end grace", "time"]),
    st.integers(0, 15),
)


async def reserve_at_last(rig: Rig, events: int, now: int) -> Reservation:
    """What can be had is had, if not at once: a lease is asked for first."""
    for _ in range(3):
        try:
            return await rig.reserve(events, now=now)
        except Refused:
            continue
    return await rig.reserve(events, now=now)


def play_out(kind: Kind, played: list[tuple[str, int]], partitions: int) -> None:
    """The steps, then whatever is still on its way; checks after each that the limit holds, at last that none leaks."""

    async def run(directory: Path) -> None:
        graces = Graces()
        rig = Rig(kind, directory, LIMIT, partitions=partitions, patience=0, graces=graces)
        play = Play(rig, graces)
        for what, number in played:
            await play.step(what, number)
            play.check()
        play.end_grace()
        for batch in play.batches:
            offsets = batch.offsets
            if offsets is None:
                offsets = rig.send(batch.events, now=batch.now)
            batch.reservation.settle(offsets)
        play.check()
        rig.follow()
        charged = rig.view.charged("default", month_start(play.now)).unique
        await reserve_at_last(rig, LIMIT - charged, play.now)  # all that is left can be had: nothing leaks
        with pytest.raises(Refused):
            await rig.reserve(1, now=play.now)
        rig.process.close()

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(run(Path(directory)))


histories = st.lists(steps, min_size=10, max_size=80)


@examples(150)
@given(histories, st.integers(1, 3))
def test_no_interleaving_goes_over_the_line(played: list[tuple[str, int]], partitions: int) -> None:
    play_out("own", played, partitions)


@pytest.mark.parametrize("kind", ["shared", "leased"])
@examples(60)
@given(histories, st.integers(1, 3))
def test_no_interleaving_goes_over_the_line_by_a_cap(
    kind: Kind, played: list[tuple[str, int]], partitions: int
) -> None:
    play_out(kind, played, partitions)
