"""The monthly quota of several API processes, by the table they share and by leases: any interleaving, deaths and
changed quotas included."""

import asyncio
import tempfile
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.core.clock import DAY, HOUR, SECOND, month_start, parse_timestamp
from processor.leases.lease_messages import Account
from processor.view.view import View
from processor.view.view_follower import Arrivals
from server.errors import Refused
from server.limits.monthly_usage import MonthlyUsage
from server.limits.quota_port import Reservation
from server.limits.quotas import Quotas
from server.limits.shared_caps import SharedCaps
from server.processes.siblings import ApiSibling
from server.tenancy.directory import Directory, organization_record
from server.tenancy.keys import Organization, make_key, new_secret
from tests.support.caps import Graces, Grantor, Kind, ProcessCaps
from tests.support.examples import examples
from tests.support.patience import PATIENCE
from tests.support.tables import NOON, Records, Usage, Worker

KEY = make_key(new_secret(), at=0)
LIMIT = 10
MAY = parse_timestamp("2026-05-01T00:00:00Z")


@dataclass
class Batch:
    events: list[Usage]
    now: int
    reservation: Reservation
    offsets: dict[int, int] | None = None
    doubtful: bool = False


class Front:
    """One process: its view and its directory get on when they are told to."""

    def __init__(self, rig: "Rig", how: ApiSibling | Grantor, patience: float) -> None:
        self.rig, self.how = rig, how
        self.view, self.directory = View(), Directory()
        self.arrivals = Arrivals(self.view)
        self.unread: list[Records] = [list(records) for records in rig.worker.changelog]
        self.heard = 0
        self.batches: list[Batch] = []
        self.follow()
        self.hear()
        self.graces = Graces()
        usage = MonthlyUsage(self.view, rig.worker.log_end, later=self.graces.later)
        self.process = ProcessCaps(usage, self.directory, how, self.arrivals.notify, lambda: self.heard - 1)
        self.quotas = Quotas(self.arrivals, self.directory, usage, self.process.caps, patience=patience)

    @property
    def caps(self) -> SharedCaps:
        assert self.process.shared is not None
        return self.process.shared

    def follow(self) -> None:
        for partition, records in enumerate(self.unread):
            self.view.apply(partition, records)
            records.clear()
        self.view.mark_current(NOON)
        self.arrivals.notify()

    def hear(self, records: int = 1000) -> None:
        for offset, (key, value) in list(enumerate(self.rig.directory))[self.heard : self.heard + records]:
            self.directory.apply(key, value, offset)
            self.heard = offset + 1

    async def take(self, events: list[Usage], now: int = NOON) -> Batch:
        """Reserve only."""
        batch = Batch(events, now, await self.quotas.reserve(KEY, len(events), now))
        self.batches.append(batch)
        return batch

    def publish(self, batch: Batch) -> None:
        self.rig.written += batch.events
        batch.offsets = self.rig.worker.send(batch.events, arrival=batch.now, lease=self.process.name)

    async def send(self, number: int) -> None:
        """All of what intake does with a batch of new events."""
        batch = await self.take(self.rig.new(number))
        self.publish(batch)
        assert batch.offsets is not None
        batch.reservation.settle(batch.offsets)
        self.batches.remove(batch)


class Rig:
    """A log, a worker, and some processes on them."""

    def __init__(
        self,
        directory: Path,
        fronts: int = 2,
        *,
        limit: int | None = LIMIT,
        partitions: int = 1,
        patience: float = 0,
        before: int = 0,
        kind: Kind = "shared",
    ) -> None:
        """`before`: events of an earlier server."""
        self.worker = Worker(partitions)
        self.directory: list[tuple[bytes, bytes]] = []
        self.written: list[Usage] = []
        self.patience = patience
        self.ids = count()
        if before:
            self.worker.send(self.new(before), arrival=MAY - 1)
        self.quotas = Directory()
        self.set(limit)
        self.grantor = Grantor(self.worker, self.quotas, ("default",))
        hows = ApiSibling.create_all(directory, fronts) if kind == "shared" else [self.grantor] * fronts
        self.fronts = [Front(self, how, patience) for how in hows]

    def set(self, limit: int | None) -> None:
        self.directory.append(organization_record(Organization("default", limit)))
        self.quotas.apply(*self.directory[-1], len(self.directory) - 1)

    def new(self, number: int) -> list[Usage]:
        return [Usage(next(self.ids)) for _ in range(number)]

    def tick(self) -> None:
        for front in self.fronts:
            front.process.tick()

    def work(self) -> None:
        """Everything is in the tables, and seen."""
        for partition in range(len(self.worker.log)):
            self.flush(partition)
        for front in self.fronts:
            front.follow()

    def flush(self, partition: int) -> None:
        *rows, progress = self.worker.work(partition) or [(b"", None)]
        records = [*rows[::-1], progress] if rows else []  # no order among them is promised
        for front in self.fronts:
            front.unread[partition] += records

    def kill(self, number: int) -> None:
        """SIGKILL, and a new process with its number. What it had not written is gone."""
        self.fronts[number].process.close()
        self.fronts[number] = Front(self, self.fronts[number].how, self.patience)

    def silence(self) -> None:
        """So long that leases of processes that were killed come back: only those that live have said something."""
        self.grantor.silence()
        for front in self.fronts:
            if front.process.leases is not None:
                front.process.leases.state()

    def close(self) -> None:
        for front in self.fronts:
            front.process.close()


async def refusal(front: Front, events: int, now: int = NOON) -> Refused:
    with pytest.raises(Refused) as caught:
        await front.take([Usage(10**6 + number) for number in range(events)], now)
    return caught.value


async def test_two_processes_have_one_limit(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    one, two = rig.fronts
    assert (await refusal(one, 1)).reason == "unavailable"  # until the other has heard of it
    rig.tick()
    await one.send(4)
    await two.send(6)
    for front in rig.fronts:
        assert (await refusal(front, 1)).reason == "quota_exceeded"
        assert front.quotas.allowances(KEY, NOON)[0].used == 10
    rig.work()
    refused = await refusal(two, 1)
    assert (refused.retry_after, refused.details["used"]) == (60, 10)
    assert (await refusal(one, 10, MAY)).reason == "unavailable"
    rig.tick()
    await one.take(rig.new(10), MAY)
    assert (await refusal(two, 1, MAY)).reason == "quota_exceeded"


async def test_what_was_charged_before_counts(tmp_path: Path) -> None:
    rig = Rig(tmp_path, before=7)
    one, two = rig.fronts
    assert (await refusal(one, 1, MAY - 1)).reason == "unavailable"
    rig.work()
    await refusal(one, 1, MAY - 1)
    rig.tick()
    await one.take(rig.new(2), MAY - 1)
    assert (await refusal(two, 2, MAY - 1)).reason == "quota_exceeded"
    await two.take(rig.new(1), MAY - 1)


async def test_what_was_shown_before_the_view_had_caught_up_is_not_gone_by(tmp_path: Path) -> None:
    rig = Rig(tmp_path, before=7)
    one, two = rig.fronts
    assert one.quotas.allowances(KEY, MAY - 1)[0].used == 0
    rig.flush(0)
    two.follow()
    one.view.apply(0, one.unread[0])
    one.unread[0].clear()
    await refusal(two, 1, MAY - 1)
    rig.tick()
    await refusal(one, 4, MAY - 1)
    one.view.mark_current(NOON)
    await one.take(rig.new(3), MAY - 1)


async def use_up(rig: Rig) -> None:
    """Have both front ends take what the quota of ten allows, and no event more."""
    one, two = rig.fronts
    await refusal(one, 1)
    rig.tick()
    await one.send(7)
    rig.flush(0)
    one.follow()
    assert (await refusal(two, 4)).reason == "quota_exceeded"
    await two.send(3)
    assert (await refusal(one, 1)).reason == "quota_exceeded"


async def test_a_view_that_is_behind_lets_nothing_through(tmp_path: Path) -> None:
    await use_up(Rig(tmp_path))


@pytest.mark.parametrize("hours", [0, 30])
async def test_an_arrival_of_months_ahead_takes_no_lease_away(tmp_path: Path, hours: int) -> None:
    """Nor a day later. What is charged through a process must not pass for what was charged before all of them."""
    rig = Rig(tmp_path)
    [tables] = rig.worker.tables
    for hour in range(30):
        tables.tick(hour * HOUR, NOON)
    rig.worker.send([Usage(10**9)], arrival=NOON + 100 * DAY)
    rig.work()
    for hour in range(30, 30 + hours):
        tables.tick(hour * HOUR, NOON)
    await use_up(rig)


async def test_half_a_flush_lets_nothing_through(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    one, two = rig.fronts
    await refusal(one, 1)
    rig.tick()
    await refusal(two, 11)  # from now on it knows what was charged before
    await one.send(6)
    records = rig.worker.work(0)
    two.view.apply(0, [record for record in records if b'"lease"' in record[0]])
    two.arrivals.notify()
    assert (await refusal(two, 5)).reason == "quota_exceeded"
    await two.send(4)


async def test_what_is_on_its_way_is_not_given_back(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    one, two = rig.fronts
    await refusal(one, 1)
    rig.tick()
    await one.send(2)
    await one.take(rig.new(4))
    rig.work()
    rig.set(LIMIT + 1)
    for front in rig.fronts:
        front.hear()
        front.caps.lower()
    await refusal(two, 1)
    rig.tick()
    assert (await refusal(two, 6)).reason == "quota_exceeded"
    await two.take(rig.new(5))


async def test_duplicates_come_back_to_everybody(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    one, two = rig.fronts
    await refusal(one, 1)
    rig.tick()
    await one.send(5)
    rig.ids = count()
    await one.send(5)
    assert (await refusal(two, 1)).reason == "quota_exceeded"
    rig.flush(0)
    one.follow()
    one.caps.lower()
    await two.send(5)
    assert (await refusal(one, 1)).reason == "quota_exceeded"


async def test_a_batch_that_fails_after_a_look_is_given_back_at_the_next(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    one, two = rig.fronts
    await refusal(one, 1)
    rig.tick()
    batch = await one.take(rig.new(8))
    one.caps.lower()
    assert (await refusal(two, 3)).reason == "quota_exceeded"
    batch.reservation.release()
    one.caps.lower()
    await two.send(10)


async def test_a_process_that_was_killed_leaves_what_it_did_not_write(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    await refusal(rig.fronts[0], 1)
    rig.tick()
    await rig.fronts[0].send(3)
    await rig.fronts[0].take(rig.new(5))
    rig.kill(0)
    one, two = rig.fronts
    await two.send(2)
    assert (await refusal(two, 1)).reason == "quota_exceeded"
    assert (await refusal(one, 1)).reason == "unavailable"  # its view has not caught up
    rig.tick()
    one.caps.lower()
    assert (await refusal(two, 1)).reason == "quota_exceeded"
    rig.work()
    rig.tick()
    one.caps.lower()
    await two.send(5)
    for front in rig.fronts:
        assert (await refusal(front, 1)).reason == "quota_exceeded"


async def test_a_quota_that_is_set_while_events_flow(tmp_path: Path) -> None:
    rig = Rig(tmp_path, limit=None)
    one, two = rig.fronts
    batch = await one.take(rig.new(4))
    await two.send(1)
    rig.set(LIMIT)
    two.hear()
    assert (await refusal(two, 1)).reason == "unavailable"
    rig.work()
    rig.tick()
    assert (await refusal(two, 1)).reason == "unavailable"
    await one.send(2)  # it has not heard of the quota
    one.hear()
    rig.tick()
    assert (await refusal(two, 1)).reason == "unavailable"
    one.publish(batch)
    assert batch.offsets is not None
    batch.reservation.settle(batch.offsets)
    rig.tick()
    assert (await refusal(two, 1)).reason == "unavailable"
    rig.work()
    rig.tick()
    assert (await refusal(two, 4)).reason == "quota_exceeded"
    await two.send(3)
    assert (await refusal(one, 1)).reason == "quota_exceeded"


async def test_one_that_waits_is_woken_by_what_another_gives_back(tmp_path: Path) -> None:
    rig = Rig(tmp_path, patience=5)
    one, two = rig.fronts
    waiting = asyncio.create_task(one.take(rig.new(8)))
    await asyncio.sleep(0)
    assert not waiting.done()
    two.caps.tick()
    one.caps.tick()
    batch = await waiting
    late = asyncio.create_task(two.take(rig.new(8)))
    await asyncio.sleep(0)
    batch.reservation.release()
    one.caps.lower()
    two.caps.tick()
    await asyncio.wait_for(late, PATIENCE)


async def test_a_lock_that_is_held_makes_nothing_wrong(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    one, two = rig.fronts
    await refusal(one, 1)
    rig.tick()
    assert two.process.table is not None
    with two.process.table:
        assert (await refusal(one, 1)).reason == "unavailable"
        rig.fronts[0].caps.tick()
        rig.fronts[0].caps.lower()
    await one.send(10)


async def test_no_lease_is_granted_while_a_batch_of_before_the_quota_is_on_its_way(tmp_path: Path) -> None:
    rig = Rig(tmp_path, limit=None, kind="leased")
    one, two = rig.fronts
    batch = await one.take(rig.new(4))
    rig.set(LIMIT)
    for front in rig.fronts:
        front.hear()
    with pytest.raises(Refused):
        await take_at_last(rig, two, LIMIT, NOON)
    one.publish(batch)
    assert batch.offsets is not None
    batch.reservation.settle(batch.offsets)
    rig.work()
    await take_at_last(rig, two, 6, NOON)
    for front in rig.fronts:
        await refusal(front, 1)


# --- any interleaving ------------------------------------------------------------------------------------------------


class Play:
    """Random steps. Whenever a batch is admitted, all there is and all that is on its way is within the limit."""

    def __init__(self, rig: Rig, kind: Kind) -> None:
        self.rig = rig
        self.kind = kind
        self.now = MAY - 2 * SECOND

    def total(self, now: int) -> int:
        seen: dict[tuple[int, ...], int] = {}
        for messages in self.rig.worker.log:
            for message in messages:
                for request, rows in message.by_request():
                    for event_id in rows["id"].tolist():  # a copy in another month is charged to nobody
                        seen.setdefault(tuple(event_id), month_start(request.source.arrival))
        waiting = [
            event
            for front in self.rig.fronts
            for batch in front.batches
            if batch.offsets is None and month_start(batch.now) == month_start(now)
            for event in batch.events
        ]
        return list(seen.values()).count(month_start(now)) + len(waiting)

    async def step(self, what: str, number: int, which: int) -> None:
        rig = self.rig
        front = rig.fronts[which % len(rig.fronts)]
        batch = front.batches[number % len(front.batches)] if front.batches else None
        partition = number % len(rig.worker.log)
        match what:
            case "reserve":
                try:
                    await front.take(rig.new(1 + number % 4), self.now)
                except Refused:
                    return
                known = front.directory.quota("default")
                if known.limit is not None and known.offset == len(rig.directory) - 1:
                    assert self.total(self.now) <= known.limit
            case "copy" if rig.written:  # written at once: what waits is new, so it can be added up
                try:
                    copied = await front.take(rig.written[number : number + 4] or rig.written[:1], self.now)
                except Refused:
                    return
                front.publish(copied)
            case "publish" if batch and batch.offsets is None:
                front.publish(batch)
                if batch.doubtful:
                    front.batches.remove(batch)
            case "acknowledge" if batch and batch.offsets is not None:
                batch.reservation.settle(batch.offsets)
                front.batches.remove(batch)
            case "doubt" if batch and not batch.doubtful:
                batch.reservation.doubt()
                batch.doubtful = True
                if batch.offsets is not None:
                    front.batches.remove(batch)
            case "end grace":
                self.end_grace(front)
            case "work":
                rig.flush(partition)
            case "view":
                records = front.unread[partition]
                front.view.apply(partition, records[: number % 7])
                del records[: number % 7]
                if not any(front.unread):
                    front.view.mark_current(NOON)
                if number % 2:
                    front.arrivals.notify()
            case "follow":
                front.follow()
            case "tick":
                front.process.tick()
            case "time":
                self.now += SECOND
            case "kill":
                rig.kill(which % len(rig.fronts))
            case "quota":
                self.set_quota(number)
            case "ask":
                front.quotas.allowances(KEY, self.now)
            case "hear":
                front.hear(1)

    def set_quota(self, number: int) -> None:
        """Leases of a quota that is lowered come back one after the other; a table's caps hold for one quota only."""
        if self.kind == "shared":
            self.rig.set([None, 2, 5, 20][number % 4])
        else:
            self.rig.set((self.rig.quotas.quota("default").limit or 0) + number % 4)

    def end_grace(self, front: Front) -> None:
        """What was doubtful and is not published by now never will be."""
        front.batches = [batch for batch in front.batches if not batch.doubtful]
        front.graces.end()


STEPS = ["reserve", "reserve", "publish", "acknowledge", "work", "view", "follow", "tick", "hear"] * 2
RARE = ["copy", "doubt", "end grace", "time", "kill", "quota", "ask"]

steps = st.tuples(st.sampled_from(STEPS + RARE), st.integers(0, 15), st.integers(0, 2))


async def take_at_last(rig: Rig, front: Front, events: int, now: int) -> None:
    """What can be had is had, if not at once: while one waits, the leases that others do not need come back."""
    with front.process.caps.ask(Account("default", month_start(now)), events):
        for _ in range(5):
            rig.tick()
        await front.take(rig.new(events), now)


def play_out(kind: Kind, played: list[tuple[str, int, int]], partitions: int, fronts: int, before: int) -> None:
    """The steps, then whatever is still on its way; at last all that is left can be had, and no more."""

    async def run(directory: Path) -> None:
        rig = Rig(directory, fronts, partitions=partitions, before=before, limit=6, kind=kind)
        play = Play(rig, kind)
        rig.work()
        await refusal(rig.fronts[0], 7, play.now)
        rig.tick()
        for what, number, which in played:
            await play.step(what, number, which)
        for front in rig.fronts:
            play.end_grace(front)
            for batch in front.batches:
                if batch.offsets is None:
                    front.publish(batch)
                assert batch.offsets is not None
                batch.reservation.settle(batch.offsets)
            front.batches.clear()
        there = play.total(play.now)
        rig.set(there + 5)
        for front in rig.fronts:
            front.hear()
        rig.work()
        await refusal(rig.fronts[0], 6, play.now)
        rig.silence()
        rig.tick()
        await take_at_last(rig, rig.fronts[-1], 5, play.now)  # all that is left can be had: nothing leaks
        for front in rig.fronts:
            await refusal(front, 1, play.now)
        rig.close()

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(run(Path(directory)))


histories = st.lists(steps, min_size=10, max_size=120)


@examples(150)
@given(histories, st.integers(1, 3), st.integers(2, 3), st.integers(0, 4))
def test_no_interleaving_of_processes_goes_over_the_line(
    played: list[tuple[str, int, int]], partitions: int, fronts: int, before: int
) -> None:
    play_out("shared", played, partitions, fronts, before)


@examples(60)
@given(histories, st.integers(1, 3), st.integers(2, 3), st.integers(0, 4))
def test_no_interleaving_of_processes_with_leases_goes_over_the_line(
    played: list[tuple[str, int, int]], partitions: int, fronts: int, before: int
) -> None:
    play_out("leased", played, partitions, fronts, before)
