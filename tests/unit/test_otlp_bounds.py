"""Spans beyond what a project may have, and what a large request holds in the quota and in memory."""

import asyncio
from itertools import permutations
from typing import Any, Final

import pytest

from processor.core.clock import DAY
from server.errors import Refused
from server.ingest.intake import Intake
from server.ingest.parts import SharedReservation
from server.ingest.publisher import Done, Parts
from server.limits.cardinality import Cardinality
from server.limits.memory_budget import MemoryBudget
from server.otlp.span_export import ExportAnswer, SpanExport
from tests.contract.fakes import NOW, FakeQuotas, FakeReservation
from tests.support.otlp import CHAT, make_span, request, to_protobuf
from tests.support.patience import PATIENCE
from tests.support.publisher import FakePublisher
from tests.support.tables import NOON, Usage
from tests.unit.test_cardinality import KEY, known


async def sent(intake: Intake, *spans: dict[str, Any]) -> ExportAnswer:
    return await SpanExport(intake).accept(KEY, to_protobuf(request(*spans)), "protobuf", lambda _: None)


def on_day(number: int, days: int) -> dict[str, Any]:
    """A call so many days before today."""
    return make_span(number, startTimeUnixNano=str((NOON - days * DAY) * 1000))


async def test_spans_of_more_days_than_a_project_may_have_are_rejected_and_no_others() -> None:
    view = known(Usage(1), Usage(2, at=NOON - 3 * DAY))
    publisher = FakePublisher(first=view.position.get(0, -1) + 1)
    intake = Intake(publisher, FakeQuotas(), lambda: NOW, cardinality=Cardinality(view, days=3))
    answer = await sent(intake, on_day(1, 0), on_day(2, 3), on_day(3, 9), on_day(4, 10), on_day(5, 9), on_day(6, 11))
    assert answer.rejected == 2
    assert answer.message == (
        "2 of 6 spans were rejected; the first: The project has events of 3 days (UTC), the most it may have: only "
        "timestamps of these days are accepted"
    )
    again = await sent(intake, on_day(1, 0), on_day(3, 9))
    assert again.rejected == 0


async def test_a_user_beyond_the_bound_is_one_bad_span() -> None:
    view = known(Usage(1, user="u1"), Usage(2, user="u2"))
    publisher = FakePublisher(first=view.position.get(0, -1) + 1)
    intake = Intake(publisher, FakeQuotas(), lambda: NOW, cardinality=Cardinality(view, users=2))
    spans = [make_span(n, attributes=CHAT | {"user.id": user}) for n, user in enumerate(("u1", "u3", "u2"), start=1)]
    answer = await sent(intake, *spans)
    assert answer.rejected == 1
    assert "The project has 2 users" in answer.message


# --- memory ---------------------------------------------------------------------------------------------------------


class Slow(FakePublisher):
    """A log that takes a while."""

    def submit(self, parts: Parts, size: int, done: Done) -> None:
        asyncio.get_running_loop().call_later(0.01, lambda: done(self.write(parts)))


async def test_a_request_larger_than_the_room_waits_for_its_own_parts() -> None:
    sizes: list[int] = []
    room = MemoryBudget(1_000_000)
    intake = Intake(Slow(), FakeQuotas(), lambda: NOW, pending=room)
    spans = [make_span(n, attributes=CHAT | {"text": "x" * 400}) for n in range(1, 3001)]
    sending = asyncio.ensure_future(sent(intake, *spans))
    while not sending.done():
        sizes.append(room.used)
        await asyncio.sleep(0.001)
    assert (await sending).rejected == 0
    assert max(sizes) <= 1_000_000
    assert max(sizes) > 300_000
    assert room.used == 0


async def test_a_request_is_refused_where_others_have_all_the_room() -> None:
    room, quotas, publisher = MemoryBudget(1_000_000), FakeQuotas(), FakePublisher()
    intake = Intake(publisher, quotas, lambda: NOW, pending=room)
    with room.hold("other", "k") as other:
        other.reserve(999_000)
        with pytest.raises(Refused) as caught:
            await sent(intake, *(make_span(n) for n in range(1, 1201)))
    assert (caught.value.reason, caught.value.retry_after) == ("unavailable", 1)
    assert [each.ended for each in quotas.reservations] == [["released"]]
    assert publisher.messages == {0: []}


async def test_a_client_that_goes_away_leaves_nothing_reserved() -> None:
    quotas, publisher, room = FakeQuotas(), Slow(), MemoryBudget(10_000_000)
    intake = Intake(publisher, quotas, lambda: NOW, pending=room)
    sending = asyncio.ensure_future(sent(intake, *(make_span(n) for n in range(1, 1201))))
    while not room.used:  # noqa: ASYNC110
        await asyncio.sleep(0)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    async with asyncio.timeout(PATIENCE):
        while not quotas.reservations[0].ended:  # noqa: ASYNC110 - what was under way goes on
            await asyncio.sleep(0.01)
    assert [each.ended for each in quotas.reservations] == [["settled"]]
    assert room.used == 0


# --- the quota ------------------------------------------------------------------------------------------------------

ENDS: Final = ("durable", "not written", "in doubt")


@pytest.mark.parametrize("ends", [order for count in (0, 1, 2, 3) for order in permutations(ENDS, count)])
@pytest.mark.parametrize("last", range(4))
def test_the_reservation_of_all_parts_ends_once_with_the_last_of_them(ends: tuple[str, ...], last: int) -> None:
    """Whether the request itself has ended before, between or after its parts."""
    whole = FakeReservation(3)
    shared = SharedReservation(whole)
    parts = [shared.part() for _ in ends]
    steps: list[str | None] = [*ends]
    steps.insert(last, None)
    left = iter(parts)
    for number, step in enumerate(steps):
        assert whole.ended == [], number
        match step:
            case None:
                shared.end_part({})
            case "durable":
                next(left).settle({0: 7})
            case "not written":
                next(left).release()
            case _:
                next(left).doubt()
    wanted = "doubted" if "in doubt" in ends else "settled" if "durable" in ends else "released"
    assert whole.ended == [wanted]


def test_the_offsets_of_all_parts_end_it() -> None:
    class Remembering(FakeReservation):
        def settle(self, offsets: dict[int, int]) -> None:
            super().settle(offsets)
            self.offsets = offsets

    whole = Remembering(3)
    with SharedReservation(whole) as shared:
        one, two, three = (shared.part() for _ in range(3))
        two.settle({0: 5, 1: 2})
        one.settle({0: 4})
        three.settle({2: 1})
    assert (whole.ended, whole.offsets) == (["settled"], {0: 5, 1: 2, 2: 1})
