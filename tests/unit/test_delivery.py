"""The alerter on a real log and a real receiver; the month's use is what the test says."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast

from processor.log.address import LogAddress
from processor.log.embedded.log import Log
from processor.view.keyed_rows import Charged
from processor.view.view import View
from server.alerts.delivery import Alerter
from server.alerts.shelf import BudgetShelf, NotificationShelf
from server.alerts.webhook import Webhook
from server.tenancy import directory_log
from server.tenancy.directory import Directory, organization_record
from server.tenancy.keys import Organization
from tests.support.following import follow
from tests.support.patience import until
from tests.support.receiver import SECRET, Receiver, receiver
from tests.support.tables import NOON


class Used:
    """A view in which so much is charged."""

    def __init__(self) -> None:
        self.events = 0

    def charged(self, organization: str, month: int) -> Any:
        return Charged(self.events, 0, 0)


class Process:
    """One API process, as far as alerts go: its directory follows the log."""

    def __init__(self, address: LogAddress, used: Used, to: Receiver, *, now: int = NOON, **options: Any) -> None:
        self.directory = Directory(BudgetShelf(), NotificationShelf())
        self._log = Log(address.data_dir, create=False)
        webhook = Webhook(f"http://127.0.0.1:{to.port}/", SECRET, allow_private=True)
        timing = {"every": 0.01, "jitter": 0.0, "first_backoff": 0.01, **options}
        view = cast(View, used)
        self.alerter = Alerter(webhook, address, "log", self.directory, view, lambda: now, **timing)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Process"]:
        following = asyncio.create_task(follow(self._log, self.directory))
        self.alerter.start()
        try:
            yield self
        finally:
            await self.alerter.stop()
            following.cancel()
            self._log.close()


def make(tmp_path: Path, quota: int = 10) -> LogAddress:
    log = Log(tmp_path / "data", partitions=1, create=True)
    directory_log.write(log, organization_record(Organization("acme", quota)), NOON)
    log.close()
    return LogAddress(tmp_path / "data")


def thresholds(to: Receiver) -> list[int]:
    return [message.json["data"]["threshold"] for message in to.messages]


async def test_each_threshold_is_told_once_and_not_again_after_a_restart(tmp_path: Path) -> None:
    address, used = make(tmp_path), Used()
    async with receiver() as to:
        async with Process(address, used, to).running() as process:
            used.events = 7
            await asyncio.sleep(0.1)
            assert to.messages == []
            used.events = 8
            await until(lambda: thresholds(to) == [80])
            await until(lambda: process.directory.shelf(NotificationShelf).is_notified(to.messages[0].id))
        async with Process(address, used, to).running() as process:
            used.events = 10
            await until(lambda: thresholds(to) == [80, 100])
            await until(lambda: process.directory.shelf(NotificationShelf).is_notified(to.messages[1].id))
            await asyncio.sleep(0.2)
        assert thresholds(to) == [80, 100]
        assert to.messages[0].id != to.messages[1].id


async def test_what_is_not_taken_is_sent_again_under_the_same_id(tmp_path: Path) -> None:
    address, used = make(tmp_path), Used()
    async with receiver() as to:
        to.statuses = [500, 503, 302, 404]
        used.events = 9
        async with Process(address, used, to).running() as process:
            await until(lambda: len(to.messages) == 5)
            await until(lambda: process.directory.shelf(NotificationShelf).is_notified(to.messages[0].id))
        assert len({message.id for message in to.messages}) == 1
        assert len({message.body for message in to.messages}) == 1
        assert len({message.headers["webhook-signature"] for message in to.messages}) == 1


async def test_a_process_that_ends_before_it_delivered_leaves_it_to_the_next(tmp_path: Path) -> None:
    address, used = make(tmp_path), Used()
    used.events = 8
    async with receiver() as to:
        to.statuses = [500]
        async with Process(address, used, to, first_backoff=60.0).running():
            await until(lambda: len(to.messages) == 1)
        async with Process(address, used, to).running() as process:
            await until(lambda: process.directory.shelf(NotificationShelf).is_notified(to.messages[0].id))
        assert [message.id for message in to.messages] == [to.messages[0].id] * 2


async def test_what_is_sent_again_after_a_restart_says_the_same(tmp_path: Path) -> None:
    address, used = make(tmp_path), Used()
    used.events = 8
    async with receiver() as to:
        to.statuses = [500]
        async with Process(address, used, to, first_backoff=60.0).running():
            await until(lambda: len(to.messages) == 1)
        used.events = 9  # more is used by now, and it is later
        async with Process(address, used, to, now=NOON + 5_000_000).running() as process:
            await until(lambda: process.directory.shelf(NotificationShelf).is_notified(to.messages[0].id))
        assert [message.id for message in to.messages] == [to.messages[0].id] * 2
        assert to.messages[0].body == to.messages[1].body
        assert to.messages[0].json["data"]["used"] == 8


async def test_processes_that_find_out_at_once_say_the_same(tmp_path: Path) -> None:
    """Each has another clock and another count when it looks; all of them deliver before anybody knows of it."""
    address = make(tmp_path)
    async with receiver() as to:
        to.statuses = [500] * 6
        async with AsyncExitStack() as stack:
            for number in range(3):
                used = Used()
                used.events = 8 + number % 2
                process = Process(address, used, to, now=NOON + number)
                await stack.enter_async_context(process.running())
            await until(
                lambda: (
                    len(to.messages) > 6 and process.directory.shelf(NotificationShelf).is_notified(to.messages[0].id)
                )
            )
        assert len({message.id for message in to.messages}) == 1
        assert len({message.body for message in to.messages}) == 1
        directory = directory_log.read_directory(Log(address.data_dir, create=False))
        assert directory.shelf(NotificationShelf).draft(to.messages[0].id) is None, (
            "nothing is kept of what was delivered"
        )


async def test_several_processes_tell_it_under_one_id_and_agree_that_it_is_told(tmp_path: Path) -> None:
    address, used = make(tmp_path), Used()
    async with receiver() as to:
        first, second = (Process(address, used, to) for _ in range(2))
        async with first.running(), second.running():
            used.events = 8
            await until(lambda: bool(to.messages))
            name = to.messages[0].id
            await until(
                lambda: (
                    first.directory.shelf(NotificationShelf).is_notified(name)
                    and second.directory.shelf(NotificationShelf).is_notified(name)
                )
            )
            await asyncio.sleep(0.4)  # in which nobody sends it anew; what was on its way arrives
        assert {message.id for message in to.messages} == {name}
        assert len(to.messages) <= 2


async def test_another_quota_is_another_matter(tmp_path: Path) -> None:
    address, used = make(tmp_path), Used()
    used.events = 8
    async with receiver() as to, Process(address, used, to).running() as process:
        await until(lambda: thresholds(to) == [80])
        log = Log(address.data_dir, create=False)
        directory_log.write(log, organization_record(Organization("acme", 9)), NOON)
        log.close()
        await until(lambda: thresholds(to) == [80, 80])
        assert [message.json["data"]["limit"] for message in to.messages] == [10, 9]
        await until(lambda: process.directory.shelf(NotificationShelf).is_notified(to.messages[1].id))
