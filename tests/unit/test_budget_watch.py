"""The budgeter on a real log, with a real view; two of them are two API processes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from processor.core.clock import DAY, HOUR
from processor.log.address import LogAddress
from processor.log.embedded.log import Log
from processor.log.errors import LogUnavailable
from processor.view.view import View
from server.alerts import budgets
from server.alerts.budget_records import budget_record, reached_record
from server.alerts.budget_watch import Budgeter
from server.alerts.delivery import Alerter
from server.alerts.notices import BudgetNotices
from server.alerts.shelf import BudgetShelf, NotificationShelf
from server.alerts.webhook import Webhook
from server.tenancy import directory_log
from server.tenancy.directory import Directory
from tests.support.following import follow
from tests.support.patience import until
from tests.support.receiver import SECRET, Receiver, receiver
from tests.support.tables import NOON, Usage, Worker
from tests.unit.test_budgets import DOLLAR, make_budget


class Process:
    """One API process: its directory follows the log, its view is what the test brings."""

    def __init__(self, address: LogAddress, to: Receiver | None = None) -> None:
        self.now = NOON
        self.directory, self.view, self.worker = Directory(BudgetShelf(), NotificationShelf()), View(), Worker()
        self.notices = BudgetNotices(lambda: self.now)
        self._log = Log(address.data_dir, create=False)
        common = (address, "log", self.directory, self.view)
        self.budgeter = Budgeter(*common, self.notices, lambda: self.now, every=0.01)
        self.alerter = None
        if to is not None:
            webhook = Webhook(f"http://127.0.0.1:{to.port}/", SECRET, allow_private=True)
            self.alerter = Alerter(webhook, *common, lambda: self.now, every=0.01, jitter=0.0, first_backoff=0.01)

    def spend(self, cost: int, number: int) -> None:
        self.worker.send([Usage(number, "u1", cost=cost)])
        self.view.apply(0, self.worker.work(0))

    def told(self) -> list[int]:
        return [each.threshold for each in self.notices.since("default", 0)[1]]

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Process"]:
        following = asyncio.create_task(follow(self._log, self.directory))
        self.budgeter.start()
        if self.alerter is not None:
            self.alerter.start()
        try:
            yield self
        finally:
            await self.budgeter.stop()
            if self.alerter is not None:
                await self.alerter.stop()
            following.cancel()
            self._log.close()


def make(tmp_path: Path, *made: budgets.Budget) -> LogAddress:
    log = Log(tmp_path / "data", partitions=1, create=True)
    directory_log.write_all(log, [budget_record(budget) for budget in made], NOON)
    log.close()
    return LogAddress(tmp_path / "data")


def written(address: LogAddress) -> list[bytes]:
    log = Log(address.data_dir, create=False)
    found = [record.key or b"" for record in log.read(directory_log.HOME, 0)]
    log.close()
    return [key for key in found if key.startswith(b"reached/")]


async def test_each_threshold_once_over_restarts(tmp_path: Path) -> None:
    address = make(tmp_path, make_budget("10"))
    async with Process(address).running() as process:
        process.spend(8 * DOLLAR - 1, 1)
        await asyncio.sleep(0.1)
        assert process.told() == []
        process.spend(1, 2)
        await until(lambda: process.told() == [80])
        process.spend(DOLLAR, 3)
        await asyncio.sleep(0.1)
        process.spend(DOLLAR, 4)
        await until(lambda: process.told() == [80, 100])
    async with Process(address).running() as process:
        process.spend(30 * DOLLAR, 5)
        await until(lambda: process.told() == [80, 100])
        await asyncio.sleep(0.2)
        assert process.told() == [80, 100]
    assert len(written(address)) == 2


async def test_two_front_ends_tell_the_same(tmp_path: Path) -> None:
    address = make(tmp_path, make_budget("10"), make_budget("1", user_id="u1"))
    async with Process(address).running() as one, Process(address).running() as other:
        for process in (one, other):
            process.spend(9 * DOLLAR, 1)
        await until(lambda: len(one.told()) == len(other.told()) == 3)
        assert {each.id for each in one.directory.shelf(BudgetShelf).reached()} == {
            each.id for each in other.directory.shelf(BudgetShelf).reached()
        }
    assert len(set(written(address))) == 3


async def test_a_new_window_and_a_new_amount_begin_anew(tmp_path: Path) -> None:
    address = make(tmp_path, make_budget("10"))
    async with Process(address).running() as process:
        process.spend(10 * DOLLAR, 1)
        await until(lambda: process.told() == [80, 100])
        log = Log(address.data_dir, create=False)
        directory_log.write(log, budget_record(make_budget("12")), NOON)
        await until(lambda: process.told() == [80, 100, 80])
        process.now += DAY
        process.worker.send([Usage(2, "u1", cost=11 * DOLLAR, at=NOON + DAY)])
        process.view.apply(0, process.worker.work(0))
        await until(lambda: process.told() == [80])
        process.now += budgets.KEPT + 2 * DAY
        await asyncio.sleep(0.1)
        assert len(process.directory.shelf(BudgetShelf).reached()) == 4, "a clock alone deletes nothing"
        process.view.horizons[0] = process.now
        process.now += 2 * HOUR
        await until(lambda: process.directory.shelf(BudgetShelf).reached() == [])
        log.close()


async def test_what_the_log_did_not_take_is_written_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = make(tmp_path, make_budget("10"))
    monkeypatch.setattr("server.alerts.budget_watch.AGAIN", 0.05)
    append, failures = Log.append, [1, 1, 1]

    def failing(self: Log, *arguments: object) -> object:
        if failures:
            failures.pop()
            raise LogUnavailable("the disk is full")
        return append(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Log, "append", failing)
    async with Process(address).running() as process:
        process.spend(10 * DOLLAR, 1)
        await until(lambda: process.told() == [80, 100])
        assert not failures


async def test_the_webhook_is_told_at_least_once_under_one_id(tmp_path: Path) -> None:
    address = make(tmp_path, make_budget("10", user_id="u1", thresholds=(90,)))
    async with receiver() as to:
        to.statuses = [500, 503]
        async with Process(address, to).running() as process:
            process.spend(9 * DOLLAR + 1, 1)
            await until(lambda: len(to.messages) == 3)
            await until(lambda: process.directory.shelf(NotificationShelf).is_notified(to.messages[0].id))
        async with Process(address, to).running() as process:
            process.spend(9 * DOLLAR + 1, 1)
            await until(lambda: process.told() == [90])
            await asyncio.sleep(0.2)
    [reached] = process.directory.shelf(BudgetShelf).reached()
    assert [message.id for message in to.messages] == [f"msg_{reached.id[4:]}"] * 3
    assert to.messages[0].json == {
        "type": "budget.threshold_reached",
        "timestamp": "2026-04-20T12:00:00.000Z",
        "data": {
            "project": "default",
            "id": reached.id,
            "budget": reached.budget,
            "user_id": "u1",
            "model": None,
            "window": "day",
            "start": "2026-04-20T00:00:00.000Z",
            "end": "2026-04-21T00:00:00.000Z",
            "usd": 10,
            "threshold": 90,
            "spent": 9.000000000001,
            "at": "2026-04-20T12:00:00.000Z",
        },
    }


def test_who_listens_is_told_of_the_windows_of_now() -> None:
    now = NOON
    notices = BudgetNotices(lambda: now)
    heard: list[str] = []
    notices.listen(heard.append)
    [first] = budgets.due([make_budget("10", thresholds=(80,))], lambda *_: 8 * DOLLAR, "log", NOON)
    [mine] = budgets.due([make_budget("10", user_id="u1", thresholds=(80,))], lambda *_: 8 * DOLLAR, "log", NOON)
    notices.post(first)
    notices.post(mine)
    assert heard == ["default", "default"]
    assert notices.since("default", 0) == (2, [first, mine])
    assert notices.since("default", 1) == (2, [mine])
    assert notices.since("default", 2) == (2, [])
    assert notices.since("default", 0, ["u1"]) == (2, [mine])
    assert notices.since("other", 0) == (0, [])
    now += DAY
    assert notices.since("default", 0) == (2, [])
    assert reached_record(first)[0] == f"reached/default/{first.id}".encode()
