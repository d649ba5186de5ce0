"""Batches that arrive at the same time are taken as if each had come alone."""

import asyncio
from contextlib import suppress
from operator import itemgetter
from typing import Any

import pytest

from processor.core.events import codec, message, ndjson
from processor.core.events.codec import PayloadFormat
from processor.core.events.event import Handling
from processor.core.partitioning import partitions_of
from processor.log.under_way import ArrivalsUnderWay
from processor.view.view import View
from server import position
from server.errors import Refused
from server.ingest.batch import Batch, Incoming, Receipt
from server.ingest.intake import Intake
from server.ingest.publisher import Done, NotPublished, Parts
from server.ingest.together import TOGETHER
from server.limits.cardinality import Cardinality
from server.limits.memory_budget import MemoryBudget
from server.tenancy.keys import Key, make_key, new_secret
from tests.contract.fakes import NOW, FakeQuotas, FakeReservation
from tests.support.events import make_event, to_json_line, to_proto
from tests.support.publisher import FakePublisher

KEY = make_key(new_secret(), at=0)
SAME_PROJECT = make_key(new_secret(), at=0)
OTHER = make_key(new_secret(), at=0, project="other")
GOOD: dict[str, Any] = {}
BAD = {"latency_ms": -1}
SPAN = {"kind": "span", "name": "search", "cost_usd": 0}


def batch(*changes: dict[str, Any], payload: PayloadFormat = "json", handling: Handling = "partial") -> Batch:
    events = [make_event(**each) for each in changes]
    if payload == "protobuf":
        records = [to_proto(each).SerializeToString() for each in events]
        return Batch("grpc", payload, records, range(1, len(records) + 1), handling)
    found, lines = ndjson.split(b"\n".join(map(to_json_line, events)), 100)
    return Batch("http", payload, found, lines, handling)


class Answers:
    """What each batch was answered."""

    def __init__(self) -> None:
        self.found: dict[int, Receipt | Refused] = {}

    def incoming(self, key: Key, sent: Batch) -> Incoming:
        number = len(self.found)
        self.found[number] = Refused("internal", "never answered")
        return Incoming(key, sent, lambda outcome: self.found.__setitem__(number, outcome))

    async def come(self) -> list[Receipt | Refused]:
        for _ in range(3):
            await asyncio.sleep(0)
        return list(self.found.values())


def events_of(publisher: FakePublisher) -> list[tuple[str, str, str | None, bytes]]:
    """Project, model, user and id of each event in the log: of one project after the other, in order."""
    found = []
    for value in publisher.messages[0]:
        stored = message.decode(value)
        assert set(stored.rows["user"].tolist()) == set(range(len(stored.users)))
        assert set(stored.rows["dim"].tolist()) == set(range(len(stored.dims)))
        found += [
            (request.source.project, stored.dims[row["dim"]][2], stored.users[row["user"]], row["id"].tobytes())
            for request, rows in stored.by_request()
            for row in rows
        ]
    return sorted(found, key=itemgetter(0))


@pytest.mark.parametrize("payload", ["json", "protobuf"])
async def test_batches_are_stored_as_if_each_had_come_alone(payload: PayloadFormat) -> None:
    sent = [
        (KEY, batch(*[{"user_id": f"a{number}", "model": "m1"} for number in range(7)], payload=payload)),
        (OTHER, batch(*[{"user_id": f"b{number}", "model": "m2"} for number in range(9)], payload=payload)),
        (KEY, batch({"user_id": "a1", "model": "m3"}, SPAN, payload=payload)),
        (SAME_PROJECT, batch(*[{"user_id": f"a{number}"} for number in range(100)], payload=payload)),
        (OTHER, batch({"user_id": "b1"}, payload=payload, handling="strict")),
        (KEY, batch(*[GOOD] * 4, payload=payload)),
    ]
    together, alone = FakePublisher(), FakePublisher()
    answers = Answers()
    intake = Intake(together, FakeQuotas(), lambda: NOW)
    assert intake.take_together([answers.incoming(*each) for each in sent]) == [True] * len(sent)
    receipts = await answers.come()
    accepting = Intake(alone, FakeQuotas(), lambda: NOW)
    for (key, each), found in zip(sent, receipts, strict=True):
        assert isinstance(found, Receipt)
        assert found.accepted == (await accepting.accept(key, each)).accepted == len(each.records)
    assert events_of(together) == events_of(alone)


@pytest.mark.parametrize("payload", ["json", "protobuf"])
async def test_a_bad_batch_harms_no_other(payload: PayloadFormat) -> None:
    sent = [
        batch(*[GOOD] * 6, payload=payload),
        batch(GOOD, BAD, payload=payload),
        batch(GOOD, BAD, payload=payload, handling="strict"),
        batch(BAD, payload=payload),
        batch(*[GOOD] * 6, payload=payload),
    ]
    answers = Answers()
    intake = Intake(FakePublisher(), FakeQuotas(), lambda: NOW)
    taken = intake.take_together([answers.incoming(KEY, each) for each in sent])
    assert taken == [True, True, False, False, True]
    receipts = [each for each in await answers.come() if isinstance(each, Receipt)]
    assert [(each.accepted, len(each.rejected)) for each in receipts] == [(6, 0), (1, 1), (6, 0)]
    assert intake.pending.used == 0


@pytest.mark.parametrize("payload", ["json", "protobuf"])
@pytest.mark.parametrize("partitions", [2, 6, 1024])
async def test_batches_of_a_group_go_to_the_partitions_of_their_events(payload: PayloadFormat, partitions: int) -> None:
    """Each has the position of its own events, and its original bytes are where these are."""
    sizes = [1, 40, 1, 100, 7, 1]
    sent = [batch(*[{"user_id": f"u{number}"} for number in range(size)], payload=payload) for size in sizes]
    keys = [KEY, SAME_PROJECT, KEY, KEY, SAME_PROJECT, KEY]
    publisher, alone = FakePublisher(partitions), FakePublisher(partitions)
    answers, quotas = Answers(), FakeQuotas()
    intake = Intake(publisher, quotas, lambda: NOW)
    assert all(intake.take_together([answers.incoming(*each) for each in zip(keys, sent, strict=True)]))
    receipts = await answers.come()
    assert all(len(found) <= 1 for found in publisher.messages.values())
    stored: dict[int, list[tuple[str, int, list[bytes]]]] = {}
    for home, values in publisher.messages.items():
        for value in values:
            found = message.decode(value)
            assert set(found.rows["user"].tolist()) == set(range(len(found.users)))
            assert partitions_of(found.rows["id"], partitions).tolist() == [home] * len(found)
            records = message.records(found)
            stored[home] = [
                (request.source.key_id, request.count, list(each))
                for request, each in zip(found.requests, records, strict=True)
            ]
            for (_, events), (_, rows) in zip(message.events(found), found.by_request(), strict=True):
                ids = [each.event_id.replace("-", "") for each in events]
                assert ids == [row["id"].tobytes().hex() for row in rows]
    expected: dict[int, list[tuple[str, int, list[bytes]]]] = {}
    accepting = Intake(alone, FakeQuotas(), lambda: NOW)
    for key, each, receipt in zip(keys, sent, receipts, strict=True):
        assert isinstance(receipt, Receipt)
        before = {home: len(values) for home, values in alone.messages.items()}
        assert (await accepting.accept(key, each)).accepted == receipt.accepted == len(each.records)
        mine = [home for home, values in alone.messages.items() if len(values) > before[home]]
        assert position.decode(publisher.identity, receipt.position) == dict.fromkeys(mine, 0)
        for home in mine:
            found = message.decode(alone.messages[home][-1])
            [lines] = message.records(found)
            expected.setdefault(home, []).append((key.id, len(found), list(lines)))
    assert stored == expected


async def test_more_than_are_decoded_together_are_taken_all_the_same() -> None:
    answers = Answers()
    sent = [batch(*[{"user_id": f"u{number}"}] * 90) for number in range(2 * TOGETHER // 90)]
    publisher = FakePublisher()
    intake = Intake(publisher, FakeQuotas(), lambda: NOW)
    assert all(intake.take_together([answers.incoming(KEY, each) for each in sent]))
    await answers.come()
    assert len(events_of(publisher)) == 90 * len(sent)


async def test_room_is_reserved_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    decode = codec.decode_together

    def spied(*arguments: Any) -> Any:
        seen.extend(len(each) for each in arguments[1])
        return decode(*arguments)

    monkeypatch.setattr(codec, "decode_together", spied)
    small, large = batch(*[GOOD] * 9), batch(*[GOOD] * 100)
    answers = Answers()
    room = MemoryBudget(limit=40_000)
    intake = Intake(FakePublisher(), FakeQuotas(), lambda: NOW, room)
    taken = intake.take_together([answers.incoming(KEY, each) for each in (small, large, small)])
    assert taken == [True, False, True]
    assert seen == [9, 9]
    await answers.come()
    assert room.used == 0


async def test_names_are_admitted_for_the_batch_that_brings_them() -> None:
    cardinality = Cardinality(View(), models=2)
    intake = Intake(FakePublisher(), FakeQuotas(), lambda: NOW, cardinality=cardinality)
    answers = Answers()
    sent = [batch(*[{"model": "m1"}] * 9), batch(*[{"model": "m2"}] * 9), batch(*[{"model": "m3"}] * 9)]
    assert intake.take_together([answers.incoming(KEY, each) for each in sent]) == [True, True, False]
    with pytest.raises(Refused) as caught:
        await intake.accept(KEY, sent[2])
    assert "2 models" in caught.value.rejected[0].message
    for model in ("m1", "m2"):
        assert (await intake.accept(KEY, batch({"model": model}))).accepted == 1


@pytest.mark.parametrize("is_available", [True, False])
async def test_an_arrival_is_under_way_from_its_stamp_until_it_is_decided(is_available: bool) -> None:
    publisher, seen = FakePublisher(), list[int]()
    publisher.available = is_available
    under_way = ArrivalsUnderWay(lambda: NOW)

    class Watched(FakeQuotas):
        async def reserve(self, key: Any, events: int, now: int) -> Any:
            seen.append(under_way.shown)
            await asyncio.sleep(0)
            return await super().reserve(key, events, now)

    intake = Intake(publisher, Watched(), lambda: NOW, under_way=under_way)
    write = publisher.write

    def watched(parts: Any) -> Any:
        seen.append(under_way.shown)
        return write(parts)

    publisher.write = watched  # type: ignore[method-assign]
    answers = Answers()
    assert intake.take_together([answers.incoming(KEY, batch(GOOD)), answers.incoming(KEY, batch(BAD))]) == [
        True,
        False,
    ]
    await answers.come()
    for work in (intake.accept(KEY, batch(GOOD)), intake.accept_parts(KEY, "http", 2, [batch(GOOD), batch(GOOD)])):
        with suppress(Refused):
            await work
    with pytest.raises(Refused):
        await intake.accept(KEY, batch(BAD))
    assert len(seen) >= 4
    assert set(seen) == {NOW}
    await asyncio.sleep(0)
    assert under_way.shown == 0


async def test_batches_of_one_project_are_one_block() -> None:
    publisher, answers = FakePublisher(), Answers()
    quotas = FakeQuotas()
    intake = Intake(publisher, quotas, lambda: NOW)
    sent = [(KEY, batch(GOOD)), (OTHER, batch(GOOD, GOOD)), (SAME_PROJECT, batch(GOOD, GOOD)), (KEY, batch(GOOD))]
    assert intake.take_together([answers.incoming(*each) for each in sent]) == [True] * 4
    receipts = await answers.come()
    assert [each.accepted for each in receipts if isinstance(each, Receipt)] == [1, 2, 2, 1]
    first, second = map(message.decode, publisher.messages[0])
    assert [(each.source.key_id, each.count) for each in first.requests] == [
        (KEY.id, 1),
        (SAME_PROJECT.id, 2),
        (KEY.id, 1),
    ]
    assert [(each.source.project, each.count) for each in second.requests] == [("other", 2)]
    assert [(each.events, each.ended) for each in quotas.reservations] == [(4, ["settled"]), (2, ["settled"])]
    assert intake.pending.used == 0
    assert not intake.pending.by_member


async def test_each_request_of_a_key_with_a_rate_is_refused_by_itself() -> None:
    class Rated(FakeQuotas):
        counted = 0

        def admit_request(self, key: Key, now: int, count: int = 1) -> None:
            if key is rated:
                if self.counted + count > 4:
                    raise Refused("rate_limited", "Rate limit exceeded")
                self.counted += count

    rated = make_key(new_secret(), at=0, rate_limit=4)
    quotas, answers = Rated(), Answers()
    intake = Intake(FakePublisher(), quotas, lambda: NOW)
    arrived = [answers.incoming(key, batch(GOOD)) for key in (rated, KEY, rated, KEY)]
    assert intake.take_together(arrived) == [True] * 4
    assert quotas.counted == 2
    arrived = [answers.incoming(key, batch(GOOD)) for key in (rated, KEY, rated, rated, KEY)]
    assert intake.take_together(arrived) == [True, True, True, False, True]
    assert quotas.counted == 4
    await answers.come()
    taken = [quota.events for quota in quotas.reservations if quota.ended != ["released"]]
    assert taken == [2, 2, 1, 1, 2], "together where there is room for all, one by one where there is not"
    assert intake.pending.used == 0


async def test_a_log_that_is_full_counts_no_request_of_a_rated_key_twice() -> None:
    class Full(FakePublisher):
        def submit(self, parts: Parts, size: int, done: Done) -> None:
            raise NotPublished("full")

    class Rated(FakeQuotas):
        counted = 0

        def admit_request(self, key: Key, now: int, count: int = 1) -> None:
            self.counted += count

    quotas, answers = Rated(), Answers()
    intake = Intake(Full(), quotas, lambda: NOW)
    rated = make_key(new_secret(), at=0, rate_limit=9)
    assert intake.take_together([answers.incoming(rated, batch(GOOD)) for _ in range(3)]) == [True] * 3
    assert [each.reason for each in await answers.come() if isinstance(each, Refused)] == ["unavailable"] * 3
    assert quotas.counted == 3
    assert (intake.pending.used, intake.pending.by_member) == (0, {})


async def test_where_there_is_no_room_for_all_each_one_is_taken_by_itself() -> None:
    class Full(FakeQuotas):
        left_over = 3

        def try_reserve(self, key: Key, events: int, now: int) -> FakeReservation | None:
            if events > self.left_over:
                return None
            self.left_over -= events
            return super().try_reserve(key, events, now)

    answers = Answers()
    intake = Intake(FakePublisher(), Full(), lambda: NOW)
    arrived = [answers.incoming(KEY, batch(*[GOOD] * count)) for count in (2, 2, 1)]
    assert intake.take_together(arrived) == [True, False, True]
    await answers.come()
    assert intake.pending.used == 0


async def test_a_log_that_takes_nothing_refuses_all_and_keeps_nothing() -> None:
    publisher, quotas, answers = FakePublisher(), FakeQuotas(), Answers()
    publisher.available = False
    intake = Intake(publisher, quotas, lambda: NOW)
    assert all(intake.take_together([answers.incoming(KEY, batch(GOOD)) for _ in range(3)]))
    assert [each.reason for each in await answers.come() if isinstance(each, Refused)] == ["unavailable"] * 3
    assert [each.ended for each in quotas.reservations] == [["doubted"]]
    assert not intake.pending.by_member


async def test_an_answer_that_fails_keeps_no_other_from_being_given() -> None:
    answers = Answers()
    intake = Intake(FakePublisher(), FakeQuotas(), lambda: NOW)

    def fail(_: object) -> None:
        raise ValueError

    arrived = [answers.incoming(KEY, batch(GOOD)), Incoming(KEY, batch(GOOD), fail), answers.incoming(KEY, batch(GOOD))]
    assert all(intake.take_together(arrived))
    assert [each.accepted for each in await answers.come() if isinstance(each, Receipt)] == [1, 1]


async def test_what_still_fits_before_the_disk_is_taken() -> None:
    class Narrow(FakePublisher):
        room = 2

        def submit(self, parts: Parts, size: int, done: Done) -> None:
            if len(parts[0]) > self.room:
                raise NotPublished("Too many events wait for the disk")
            self.room -= len(parts[0])
            super().submit(parts, size, done)

    quotas, answers = FakeQuotas(), Answers()
    intake = Intake(Narrow(), quotas, lambda: NOW)
    assert all(intake.take_together([answers.incoming(KEY, batch(GOOD)) for _ in range(3)]))
    outcomes = await answers.come()
    assert [isinstance(each, Receipt) for each in outcomes] == [True, True, False]
    assert [(each.events, each.ended) for each in quotas.reservations] == [
        (3, ["released"]),
        (1, ["settled"]),
        (1, ["settled"]),
        (1, ["released"]),
    ]
    assert not intake.pending.by_member
