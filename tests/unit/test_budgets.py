"""Budgets by themselves, and what the tables say is spent of them."""

from collections.abc import Sequence
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.core.clock import DAY, HOUR, month_start, window_start
from processor.core.money import format_cost
from processor.view.view import View
from server.alerts import budgets
from server.alerts.budget_records import budget_record, reached_record
from server.alerts.budgets import Budget, Window, budget_id, read_usd, window_end
from server.alerts.shelf import BudgetShelf
from server.alerts.spending import Spending, states
from server.tenancy.directory import Directory
from tests.support.tables import NOON, Usage, Worker

DOLLAR = 10**12


def make_budget(usd: str = "10", window: Window = "day", **fields: object) -> Budget:
    of = {"project": "default", "user_id": None, "model": None, **fields}
    name = budget_id(of["project"], of["user_id"], of["model"], window)  # type: ignore[arg-type]
    kept = {"thresholds": (80, 100), "created": 0, **of}
    return Budget(id=name, window=window, usd=usd, **kept)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "kept"),
    [("10", "10"), ("1e3", "1000"), ("0.10", "0.1"), ("0.000000000001", "0.000000000001"), ("1E9", "1000000000")],
)
def test_amounts_are_exact(given: str, kept: str) -> None:
    assert read_usd(Decimal(given)) == kept
    assert budgets.to_pico(kept) == Decimal(given) * DOLLAR


@pytest.mark.parametrize("given", ["0", "-1", "1000000000.01", "0.0000000000001", "NaN", "Infinity", "1e400"])
def test_amounts_that_cannot_be_are_refused(given: str) -> None:
    with pytest.raises(ValueError, match="usd"):
        read_usd(Decimal(given))


def test_a_threshold_is_reached_to_the_last_digit() -> None:
    budget = make_budget("0.000000000010")
    for cost, reached in ((7, []), (8, [80]), (9, [80]), (10, [80, 100]), (10**40, [80, 100])):
        found = budgets.due([budget], lambda *_, cost=cost: cost, "log", NOON)
        assert [each.threshold for each in found] == reached
        assert all(each.spent == format_cost(cost) for each in found)


def test_what_is_reached_has_one_name() -> None:
    budget = make_budget()

    def names(at: int, of: Budget = budget, log: str = "log") -> list[str]:
        return [each.id for each in budgets.due([of], lambda *_: 9 * DOLLAR, log, at)]

    first = names(NOON)
    assert names(NOON + HOUR) == first
    others = [names(NOON + DAY), names(NOON, make_budget("9.5")), names(NOON, make_budget(window="month"))]
    others += [names(NOON, make_budget(user_id="u")), names(NOON, make_budget(model="u")), names(NOON, log="other")]
    assert len({first[0], *(other[0] for other in others)}) == 7


@pytest.mark.parametrize("window", budgets.WINDOWS)
def test_what_came_late_is_told_of_the_window_that_ended(window: Window) -> None:
    end = window_end(window, window_start(window, NOON))
    spent = {window_start(window, NOON): 10 * DOLLAR}

    def at(now: int) -> list[int]:
        found = budgets.due([make_budget(window=window)], lambda _, start: spent.get(start, 0), "log", now)
        assert all(each.end == end for each in found)
        return [each.threshold for each in found]

    assert at(end - 1) == at(end) == at(end + HOUR - 1) == [80, 100]
    assert at(end + HOUR) == []


users = st.sampled_from([None, "u1", "u2"])
models = st.sampled_from(["m1", "m2"])
usages = st.tuples(
    st.integers(0, 30), users, models, st.integers(NOON - 40 * DAY, NOON + DAY), st.sampled_from([0, 1, DOLLAR, 10**18])
).map(lambda of: Usage(of[0], of[1], of[3], model=of[2], cost=of[4]))
sent = st.lists(st.lists(usages, max_size=5), max_size=6)
wanted = [
    make_budget(window=window, project=project, user_id=user, model=model)
    for project in ("default", "other")
    for window in budgets.WINDOWS
    for user in (None, "u1", "nobody")
    for model in (None, "m1")
]


@given(sent=sent, partitions=st.integers(1, 2))
def test_what_is_spent_equals_the_events(sent: Sequence[Sequence[Usage]], partitions: int) -> None:
    """Whatever is remembered from one look to the next."""
    worker, view = Worker(partitions), View()
    spending = Spending(view)
    seen: dict[int, Usage] = {}
    for events in sent:
        if events:
            worker.send(events)
            for event in events:
                seen.setdefault(event.id, event)
            for partition, records in enumerate(worker.work_all()):
                view.apply(partition, records)
        spending.look()
        assert spending.look() is False
        for budget in wanted:
            for start in {window_start(budget.window, at) for at in (NOON, NOON - 40 * DAY)}:
                assert spending(budget, start) == sum(
                    event.cost
                    for event in seen.values()
                    if budget.project == "default"
                    and budget.user_id in (None, event.user)
                    and budget.model in (None, event.model)
                    and start <= event.at < window_end(budget.window, start)
                )


def test_a_month_of_hours_adds_up() -> None:
    """A month's budget sees every hour of every model; one that is too large for columns is among them."""
    worker, view = Worker(), View()
    month = month_start(NOON)
    events = [Usage(n, at=month + n // 4 * HOUR, model=f"m{n % 4}", cost=n) for n in range(4 * 24 * 30)]
    large = [Usage(10_000 + n, at=month + HOUR, model="m1", cost=10**18) for n in range(20)]
    worker.send(events + large)
    view.apply(0, worker.work(0))
    spending = Spending(view)
    assert spending(make_budget(window="month"), month) == 20 * 10**18 + sum(range(len(events)))
    assert spending(make_budget(window="month", model="m1"), month) == 20 * 10**18 + sum(range(1, len(events), 4))
    assert spending(make_budget(window="month", model="m2"), month) == sum(range(2, len(events), 4))


def test_the_state_of_a_project() -> None:
    worker, view, directory = Worker(), View(), Directory(BudgetShelf())
    ours, theirs = make_budget(created=2), make_budget(project="other")
    small = make_budget("1", user_id="u1", created=1)
    for budget in (ours, theirs, small):
        directory.apply(*budget_record(budget))
    worker.send([Usage(1, "u1", cost=DOLLAR // 2)])
    view.apply(0, worker.work(0))
    found = budgets.due([ours], lambda *_: 9 * DOLLAR, "log", NOON)
    found += budgets.due([ours], lambda *_: 9 * DOLLAR, "log", NOON - DAY)
    for reached in found:
        directory.apply(*reached_record(reached))
    shown = states(view, directory, "default", NOON)
    assert [(state.budget, state.spent) for state in shown] == [(small, DOLLAR // 2), (ours, DOLLAR // 2)]
    assert [len(state.reached) for state in shown] == [0, 1]
    assert shown[1].reached[0].start == shown[1].start == NOON - 12 * HOUR
    directory.apply(budget_record(small)[0], None)
    assert [state.budget for state in states(view, directory, "default", NOON)] == [ours]
