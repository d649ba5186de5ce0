from typing import Any

import pytest

from server.cardinality import Cardinality
from server.errors import Refused
from server.intake import Batch, Intake
from server.keys import make_key, new_secret
from server.publisher import FakePublisher
from server.views import View
from tests.contract.fakes import NOW, FakeQuotas
from tests.support.events import make_event, to_json_line
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
    return Batch("json", records, range(1, len(records) + 1), "partial")


def intake(view: View, **bounds: int) -> tuple[Intake, FakePublisher]:
    publisher = FakePublisher()
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


async def test_what_is_beyond_in_two_ways_is_one_rejection() -> None:
    taken, publisher = intake(known(*TWO), users=2, models=1)
    with pytest.raises(Refused) as caught:
        await taken.accept(KEY, batch({"user_id": "u3", "model": "new"}))
    assert [each.field for each in caught.value.rejected] == ["user_id"]
    assert publisher.messages == {0: []}
