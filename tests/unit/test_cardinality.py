import asyncio
import gc
from contextlib import suppress
from typing import Any

import pytest

from processor.core.clock import DAY, HOUR, format_timestamp
from processor.core.events import codec
from processor.core.events.columns import Columns
from processor.view.projects import DimValues
from processor.view.view import View
from server.errors import Refused
from server.ingest.batch import Batch
from server.ingest.intake import Intake
from server.ingest.publisher import Done, NotPublished, Outcome, Parts
from server.limits.cardinality import Cardinality
from server.tenancy.keys import Key, make_key, new_secret
from tests.contract.fakes import NOW, FakeQuotas, FakeReservation
from tests.support.events import make_event, to_json_line
from tests.support.publisher import FakePublisher
from tests.support.tables import NOON, Usage, Worker

KEY = make_key(new_secret(), at=0)
OTHER = make_key(new_secret(), at=0, project="other")


def known(*usages: Usage) -> View:
    """A view of the project `default` with these rows."""
    worker, view = Worker(1), View()
    worker.send(list(usages), arrival=NOON, organization="default", project="default", key="k")
    for partition, records in enumerate(worker.work_all()):
        view.apply(partition, records)
    return view


def batch(*changes: dict[str, Any]) -> Batch:
    records = [to_json_line(make_event(**each)) for each in changes]
    return Batch("http", "json", records, range(1, len(records) + 1), "partial")


def intake(view: View, **bounds: int) -> tuple[Intake, FakePublisher]:
    publisher = FakePublisher(first=view.position.get(0, -1) + 1)
    return Intake(publisher, FakeQuotas(), lambda: NOW, cardinality=Cardinality(view, **bounds)), publisher


TWO = (Usage(1, user="u1"), Usage(2, user="u2"))


async def test_a_project_that_is_full_takes_no_new_users_and_goes_on_with_those_it_has() -> None:
    taken, _ = intake(known(*TWO), users=2)
    wanted = batch({"user_id": "u1"}, {"user_id": "u3"}, {"user_id": None}, {"user_id": "u4"}, {"user_id": "u2"})
    receipt = await taken.accept(KEY, wanted)
    assert receipt.accepted == 3
    why = "The project has 2 users, the most it may have"
    assert [(each.line, each.field, each.code, each.message) for each in receipt.rejected] == [
        (2, "user_id", "out_of_range", why),
        (4, "user_id", "out_of_range", why),
    ]
    assert all(each.event_id for each in receipt.rejected)
    assert (await taken.accept(OTHER, batch({"user_id": "u3"}))).accepted == 1
    with pytest.raises(Refused) as caught:
        await taken.accept(KEY, batch({"user_id": "u3"}))
    assert (caught.value.reason, len(caught.value.rejected)) == ("bad_batch", 1)


async def test_below_the_bound_everything_is_taken() -> None:
    taken, _ = intake(known(*TWO), users=3, models=2, environments=2)
    wanted = batch({"user_id": "u3", "model": "new"}, {"user_id": "u4", "environment": "new"})
    assert (await taken.accept(KEY, wanted)).rejected == ()


SPAN = {"kind": "span", "name": "plan", "cost_usd": 0}


async def test_spans_bring_no_users_models_environments_days_and_rows() -> None:
    bounds = {"users": 2, "models": 1, "environments": 1, "days": 1, "rows": 1}
    known_ones = {"user_id": "u1", "timestamp": format_timestamp(NOON)}
    strange = {**SPAN, "user_id": "u9", "model": "new", "environment": "new", "timestamp": "2020-01-01T00:00:00Z"}
    for bound, value in bounds.items():
        if bound == "rows":
            value = 3 * len(TWO)
        taken, _ = intake(known(*TWO), **{bound: value})
        wanted = batch(strange, known_ones, {**strange, "name": "another"}, {**known_ones, "user_id": "u2"})
        receipt = await taken.accept(KEY, wanted)
        assert (receipt.accepted, receipt.rejected) == (4, ())
    taken, _ = intake(known(*TWO), users=2)
    receipt = await taken.accept(KEY, batch(strange, {"user_id": "u3"}, strange, {"user_id": "u4"}))
    assert [each.line for each in receipt.rejected] == [2, 4]


def test_spans_alone_are_nothing_to_admit() -> None:
    view = known(*TWO)
    records = [to_json_line(make_event(**SPAN, model="new")) for _ in range(3)]
    columns = codec.decode("json", records, "partial", NOW).columns
    cardinality = Cardinality(view, models=1)
    assert cardinality.beyond("default", columns) == []
    assert cardinality.admit("default", columns) is None


@pytest.mark.parametrize(("field", "bound"), [("model", "models"), ("environment", "environments")])
async def test_models_and_environments_are_bounded_alike(field: str, bound: str) -> None:
    view = known(*TWO)
    (dim,) = view.dims("default")
    taken, _ = intake(view, **{bound: 1})
    wanted = batch({field: getattr(dim, field)}, {field: "new"}, {"cost_usd": -1, field: "newer"})
    receipt = await taken.accept(KEY, wanted)
    assert receipt.accepted == 1
    assert [(each.line, each.field, each.code) for each in receipt.rejected] == [
        (2, field, "out_of_range"),
        (3, "cost_usd", "out_of_range"),
    ]
    assert receipt.rejected[0].message == f"The project has 1 {field}s, the most it may have"


def day(number: int) -> str:
    """Noon of a day, in any century."""
    return format_timestamp(NOON + number * DAY)


async def test_a_project_whose_days_are_full_goes_on_with_those_it_has() -> None:
    """Every day costs rows of each kind; a key that spreads its timestamps over 2,000 years comes no further."""
    view = known(Usage(1), Usage(2, at=NOON - 3 * DAY))
    taken, publisher = intake(view, days=4)
    receipt = await taken.accept(KEY, batch(*({"timestamp": day(-number)} for number in (9, 0, 10, 9, 11, 3))))
    assert receipt.accepted == 5  # two days more, the known ones and a second event of a new one
    why = "The project has events of 4 days (UTC), the most it may have: only timestamps of these days are accepted"
    assert [(each.line, each.field, each.code, each.message) for each in receipt.rejected] == [
        (5, "timestamp", "out_of_range", why)
    ]
    # The tables know nothing of them yet, and may not for long.
    for number in range(20):
        with pytest.raises(Refused) as caught:
            await taken.accept(KEY, batch(*({"timestamp": day(-1000 * number - n - 20)} for n in range(30))))
        assert {each.field for each in caught.value.rejected} == {"timestamp"}
    assert (await taken.accept(KEY, batch(*({"timestamp": day(-number)} for number in (0, 3, 9, 10))))).accepted == 4
    assert sum(map(len, publisher.messages.values())) == 2
    assert (await taken.accept(OTHER, batch({"timestamp": day(-500)}))).accepted == 1


async def test_a_bound_on_days_is_exact_while_the_tables_catch_up() -> None:
    worker, view = Worker(1), View()
    taken, _ = intake(view, days=50)
    accepted = set()
    for start in range(0, 200, 10):
        numbers = range(start, start + 10)
        with suppress(Refused):
            receipt = await taken.accept(KEY, batch(*({"timestamp": day(-number)} for number in numbers)))
            refused = {each.line - 1 for each in receipt.rejected}
            accepted |= {number for at, number in enumerate(numbers) if at not in refused}
        usages = [Usage(number, at=NOON - number * DAY) for number in accepted]
        if start % 30 == 0:  # now and then they do
            worker.send(usages, arrival=NOON, organization="default", project="default", key="k")
            for partition, records in enumerate(worker.work_all()):
                view.apply(partition, records)
    assert accepted == set(range(50))
    assert len(view.dim_values("default").days) == 50


async def test_what_was_refused_takes_no_room() -> None:
    bounds, quotas = Cardinality(known(*TWO), days=3, models=3, environments=3), FakeQuotas()
    taken = Intake(FakePublisher(), quotas, lambda: NOW, cardinality=bounds)
    for number in range(1, 5):
        wanted = batch(
            {"timestamp": day(-number), "model": f"m{number}", "environment": f"e{number}"}, {"cost_usd": -1}
        )
        wanted.handling = "strict"
        with pytest.raises(Refused):
            await taken.accept(KEY, wanted)
    quotas.refuse_events = Refused("quota_exceeded", "Monthly quota exceeded", retry_after=60)
    for number in range(1, 5):
        with pytest.raises(Refused, match="quota"):
            await taken.accept(KEY, batch({"timestamp": day(-number), "model": "m", "environment": f"e{number}"}))
    quotas.refuse_events = None
    wanted = batch(*({"timestamp": day(-n), "model": f"n{n}", "environment": f"f{n}"} for n in (1, 2)))
    assert (await taken.accept(KEY, wanted)).accepted == 2


def rare(number: int) -> dict[str, Any]:
    """An event with a day, a model and an environment of its own."""
    return {"timestamp": day(-number), "model": f"m{number}", "environment": f"e{number}"}


class Full(FakePublisher):
    """A log that has no room for one more batch."""

    def submit(self, parts: Parts, size: int, done: Done) -> None:
        raise NotPublished("Too many events wait for the disk")


async def test_what_was_not_published_takes_no_room() -> None:
    bounds, quotas = Cardinality(known(*TWO), days=2, models=2, environments=2), FakeQuotas()
    taken, full = (
        Intake(publisher, quotas, lambda: NOW, cardinality=bounds) for publisher in (FakePublisher(first=1), Full())
    )
    for number in range(1, 5):
        with pytest.raises(Refused, match="Too many"):
            await full.accept(KEY, batch(rare(number)))
    assert {each for reservation in quotas.reservations for each in reservation.ended} == {"released"}
    assert (await taken.accept(KEY, batch(rare(5)))).accepted == 1
    with pytest.raises(Refused, match="No valid event"):
        await taken.accept(KEY, batch(rare(6)))


class Uncertain(FakePublisher):
    """A log that does not say what has become of a batch."""

    def write(self, parts: Parts) -> Outcome:
        return Refused("unavailable", "No answer", retry_after=1)


@pytest.mark.parametrize("came", [True, False])
async def test_what_may_be_in_the_log_takes_room_until_the_tables_show_it(came: bool) -> None:
    worker, view = Worker(1), View()
    quotas, bounds = FakeQuotas(), Cardinality(view, days=2, models=2, environments=2)
    taken, uncertain = (
        Intake(publisher, quotas, lambda: NOW, cardinality=bounds) for publisher in (FakePublisher(), Uncertain())
    )
    with pytest.raises(Refused, match="No answer"):
        await uncertain.accept(KEY, batch(rare(1)))
    assert (await taken.accept(KEY, batch(rare(2)))).accepted == 1
    usages = [Usage(2, at=NOON - 2 * DAY, model="m2", environment="e2")]
    if came:
        usages.append(Usage(1, at=NOON - DAY, model="m1", environment="e1"))
    end = worker.send(usages, arrival=NOON, organization="default", project="default", key="k")
    for decide in quotas.waiting:
        decide(end)
    with pytest.raises(Refused, match="No valid event"):  # the tables have not got there
        await taken.accept(KEY, batch(rare(3)))
    for partition, records in enumerate(worker.work_all()):
        view.apply(partition, records)
    receipt = await taken.accept(KEY, batch(rare(2), rare(3), rare(1)))
    assert [each.line for each in receipt.rejected] == ([2] if came else [3])


async def test_a_name_that_two_batches_bring_stays_while_one_of_them_is_taken() -> None:
    class Slow(FakeQuotas):
        go = asyncio.Event()

        async def reserve(self, key: Key, events: int, now: int) -> FakeReservation:
            if events > 1:
                await self.go.wait()
                raise Refused("quota_exceeded", "Monthly quota exceeded", retry_after=60)
            return await super().reserve(key, events, now)

    quotas = Slow()
    bounds = Cardinality(known(*TWO), days=2, models=2, environments=2)
    taken = Intake(FakePublisher(first=1), quotas, lambda: NOW, cardinality=bounds)
    refused = asyncio.create_task(taken.accept(KEY, batch(rare(1), rare(1))))
    await asyncio.sleep(0)
    assert (await taken.accept(KEY, batch(rare(1)))).accepted == 1
    quotas.go.set()
    with pytest.raises(Refused, match="quota"):
        await refused
    with pytest.raises(Refused, match="No valid event"):
        await taken.accept(KEY, batch(rare(2)))
    assert (await taken.accept(KEY, batch(rare(1)))).accepted == 1


async def test_names_of_events_that_counted_nothing_are_given_back() -> None:
    """Copies of an event with other days are conflicts: the tables never have those days."""
    worker, view = Worker(1), View()
    taken, publisher = intake(view, days=3)
    for number in range(200):
        assert (await taken.accept(KEY, batch({"timestamp": day(-number)}))).accepted == 1
        sent = [Usage(1, at=NOON - number * DAY)]
        worker.send(sent, arrival=NOON, organization="default", project="default", key="k")
        for partition, records in enumerate(worker.work_all()):
            view.apply(partition, records)
    assert len(publisher.messages[0]) == 200
    assert len(view.dim_values("default").days) == 1


async def test_batches_with_the_same_new_names_cost_no_memory_while_the_tables_stand_still() -> None:
    view = known(*TWO)
    bounds = Cardinality(view, days=4, models=4, environments=4)
    taken = Intake(FakePublisher(first=1), FakeQuotas(), lambda: NOW, cardinality=bounds)

    async def send(count: int) -> int:
        for _ in range(count):
            assert (await taken.accept(KEY, batch(rare(1)))).accepted == 1
        gc.collect()
        return sum(isinstance(each, DimValues) for each in gc.get_objects())

    await send(1)
    before = await send(10)
    assert await send(1000) - before < 10
    assert (await taken.accept(KEY, batch(rare(2)))).accepted == 1


async def test_models_and_environments_on_their_way_to_the_tables_count() -> None:
    taken, _ = intake(View(), models=3, environments=3)
    for field in ("model", "environment"):
        receipts = [await taken.accept(KEY, batch({field: f"x{n}"})) for n in range(2)]  # and the usual one
        assert not any(receipt.rejected for receipt in receipts)
    assert (await taken.accept(KEY, batch({"model": "x0"}, {"environment": "x1"}))).accepted == 2
    for field in ("model", "environment"):
        with pytest.raises(Refused) as caught:
            await taken.accept(KEY, batch({field: "x2"}, {field: "x3"}))
        assert [each.field for each in caught.value.rejected] == [field, field]


@pytest.mark.parametrize("partitions", [1, 3])
async def test_a_project_whose_rows_are_full_goes_on_with_those_it_has(partitions: int) -> None:
    worker, view = Worker(partitions), View()
    usages = [Usage(1, user="u1", latency=3), Usage(2, user="u2", latency=3), Usage(3, user=None, latency=3)]
    worker.send(usages, arrival=NOON, organization="default", project="default", key="k")
    for partition, records in enumerate(worker.work_all()):
        view.apply(partition, records)
    rows = view.rows_of_all_kinds("default")
    assert rows == 5 if partitions == 1 else rows > 5
    usage = usages[0]
    usual = {
        "timestamp": format_timestamp(usage.at),
        "provider": usage.provider,
        "model": usage.model,
        "environment": usage.environment,
    }
    mine, yours, nobodys = ({**usual, "user_id": user} for user in ("u1", "u2", None))
    full, _ = intake(view, rows=rows)
    wanted = [mine, {**mine, "user_id": "u3"}, yours, {**mine, "model": "new"}, nobodys, {**mine, "timestamp": day(-9)}]
    wanted.append({**mine, "timestamp": format_timestamp(usage.at + HOUR)})  # rows of that hour are new
    receipt = await full.accept(KEY, batch(*wanted))
    assert receipt.accepted == 3
    assert [(each.line, each.field, each.code) for each in receipt.rejected] == [
        (line, "user_id", "out_of_range") for line in (2, 4, 6, 7)
    ]
    assert receipt.rejected[0].message.startswith(f"The project has {rows} rows, the most it may have")
    with pytest.raises(Refused):
        await full.accept(KEY, batch({**mine, "user_id": "u3"}))
    # There is room for one row: of a user of this hour, but not for a model, which has three.
    roomy, _ = intake(view, rows=rows + 1)
    receipt = await roomy.accept(
        KEY, batch({**mine, "model": "new"}, {**mine, "user_id": "u3"}, {**mine, "user_id": "u4"})
    )
    assert [each.line for each in receipt.rejected] == [1, 3]
    assert (await full.accept(OTHER, batch(mine))).accepted == 1


async def test_what_is_beyond_in_two_ways_is_one_rejection() -> None:
    taken, publisher = intake(known(*TWO), users=2, models=1)
    with pytest.raises(Refused) as caught:
        await taken.accept(KEY, batch({"user_id": "u3", "model": "new"}))
    assert [each.field for each in caught.value.rejected] == ["user_id"]
    assert publisher.messages == {0: []}


def test_what_is_known_brings_nothing_that_is_bounded() -> None:
    def columns(*changes: dict[str, Any]) -> Columns:
        records = [to_json_line(make_event(timestamp=format_timestamp(NOON), **change)) for change in changes]
        return codec.decode("json", records, "partial", NOW).columns

    usual, new = columns({"user_id": "u1"}, {"user_id": "u9"}), columns({"user_id": "u1"}, {"model": "new"})
    view = known(*TWO)
    cardinality = Cardinality(view, models=1, environments=1, days=1)
    assert not cardinality.knows("default", usual)  # not before it was looked at once
    assert cardinality.admit("default", usual) is None
    assert cardinality.knows("default", usual)
    assert cardinality.beyond("default", usual) == []
    assert not cardinality.knows("default", new)
    assert not cardinality.knows("other", usual)
    for bounds in ({"users": view.members("default")}, {"rows": view.rows_of_all_kinds("default")}):
        full = Cardinality(view, **bounds)
        assert full.admit("default", usual) is None
        assert not full.knows("default", usual)
        assert full.beyond("default", usual)
