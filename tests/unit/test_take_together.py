"""Batches that arrive at the same time are taken as if each had come alone."""

import asyncio
from typing import Any

import pytest

from processor.core.events import codec, message, ndjson
from processor.core.events.codec import PayloadFormat
from processor.core.events.event import Handling
from processor.view.view import View
from server.errors import Refused
from server.ingest.intake import TOGETHER, Batch, Incoming, Intake, Receipt
from server.limits.cardinality import Cardinality
from server.limits.memory_budget import MemoryBudget
from server.tenancy.keys import Key, make_key, new_secret
from tests.contract.fakes import NOW, FakeQuotas
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
    """Project, model, user and id of each event in the log."""
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
    return found


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
