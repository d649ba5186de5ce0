"""Notify the webhook of quotas used by 80 or 100 % and of budgets reached: at least once each, across restarts.

Every API process looks for what is due. A message is first written to the directory: of several drafts the first in the
log counts, so that every process that sends the message, however often, sends the same text under the same id. The
process that has delivered it appends another record, which all others read. Two may send the same message at the same
moment; the receiver recognises it by the id.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable
from functools import partial
from typing import Final

from processor.core.clock import DAY, SECOND
from processor.log.address import LogAddress
from processor.log.errors import LogError
from processor.structured_log import get_logger
from processor.view.view import View
from server.alerts import quota_alerts
from server.alerts.budget_records import alert_record, draft_record
from server.alerts.shelf import BudgetShelf, NotificationShelf
from server.alerts.webhook import NotDelivered, Webhook
from server.tenancy import directory_log
from server.tenancy.administration import Record
from server.tenancy.directory import Directory

EVERY: Final = 1.0
"""Seconds between two checks."""
JITTER: Final = 2.0
"""Most seconds that a process waits before it sends: another one may have done it by then."""
FIRST_BACKOFF: Final = 2.0
MAX_BACKOFF: Final = 600.0
PAST: Final = 7 * DAY
"""Microseconds for which a budget's message that was not delivered is still due after a restart."""


class Alerter:
    """The task that notifies the webhook, from `start` to `stop`. `clock` returns microseconds since the epoch."""

    def __init__(
        self,
        webhook: Webhook,
        address: LogAddress,
        identity: str,
        directory: Directory,
        view: View,
        clock: Callable[[], int],
        *,
        every: float = EVERY,
        jitter: float = JITTER,
        first_backoff: float = FIRST_BACKOFF,
    ) -> None:
        self._webhook = webhook
        self._address = address
        self._identity = identity
        self._directory = directory
        self._view = view
        self._clock = clock
        self._every = every
        self._jitter = jitter
        self._first_backoff = first_backoff
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._task: asyncio.Task[None] | None = None
        self._log = get_logger()

    def start(self) -> None:
        """Start the task."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop the task; what is not delivered yet is due again after the next start."""
        tasks = [task for task in (self._task, *self._under_way.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                self._look()
            except Exception:  # noqa: BLE001 - the next look may go well, and ingest does not depend on it
                self._log.exception("alerts.failed")
            await asyncio.sleep(self._every)

    def _look(self) -> None:
        def charged(organization: str, month: int) -> int:
            return self._view.charged(organization, month).unique

        now = self._clock()
        for alert, used in quota_alerts.due(self._directory.organizations(), charged, now):
            self._begin(alert.id(self._identity), partial(quota_alerts.body, alert, used, now))
        for reached in self._directory.shelf(BudgetShelf).reached():
            if reached.at > now - PAST:
                self._begin(f"msg_{reached.id.removeprefix('evt_')}", partial(quota_alerts.budget_body, reached))

    def _begin(self, message_id: str, body: Callable[[], bytes]) -> None:
        if message_id not in self._under_way and not self._directory.shelf(NotificationShelf).is_notified(message_id):
            self._under_way[message_id] = asyncio.create_task(self._notify(message_id, body()))

    async def _notify(self, message_id: str, body: bytes) -> None:
        try:
            await asyncio.sleep(random.uniform(0, self._jitter))  # noqa: S311 - to be apart, not to be unguessable
            await self._deliver(message_id, body)
        finally:
            del self._under_way[message_id]

    async def _drafted(self, message_id: str, body: bytes) -> bytes | None:
        """Make a draft durable and return the body that counts; None if another process has delivered the message."""
        backoff = self._first_backoff
        while not self._directory.shelf(NotificationShelf).is_notified(message_id):
            draft = self._directory.shelf(NotificationShelf).draft(message_id)
            if draft is not None:
                return draft
            backoff = await self._write(
                draft_record(message_id, body, self._clock()),
                lambda: (
                    self._directory.shelf(NotificationShelf).draft(message_id) is not None
                    or self._directory.shelf(NotificationShelf).is_notified(message_id)
                ),
                backoff,
            )
        return None

    async def _deliver(self, message_id: str, body: bytes) -> None:
        backoff = self._first_backoff
        draft = await self._drafted(message_id, body)
        while draft is not None and not self._directory.shelf(NotificationShelf).is_notified(message_id):
            try:
                await self._webhook.deliver(message_id, draft, self._clock() // SECOND)
            except NotDelivered as error:
                self._log.warning("alert.not_delivered", id=message_id, error=str(error), again_in=round(backoff))
            else:
                self._log.info("alert.delivered", id=message_id)
                await self._remember(message_id)
                return
            await asyncio.sleep(backoff * random.uniform(0.8, 1.2))  # noqa: S311
            backoff = min(2 * backoff, MAX_BACKOFF)

    async def _remember(self, message_id: str) -> None:
        """Append the record of a delivery. Until this process has read it, the message counts as under way, so that it
        is not sent again."""
        backoff = self._first_backoff
        while not self._directory.shelf(NotificationShelf).is_notified(message_id):
            record = alert_record(message_id, self._clock())
            backoff = await self._write(
                record, lambda: self._directory.shelf(NotificationShelf).is_notified(message_id), backoff
            )

    async def _write(self, record: Record, is_seen: Callable[[], bool], backoff: float) -> float:
        """Append a record and wait up to 5 s until this process has read it; if it has not, wait `backoff` seconds.
        Return the next backoff."""
        with contextlib.suppress(LogError):
            await asyncio.to_thread(self._append, record)
            for _ in range(100):
                if is_seen():
                    return backoff
                await asyncio.sleep(0.05)
        await asyncio.sleep(backoff)
        return min(2 * backoff, MAX_BACKOFF)

    def _append(self, record: Record) -> None:
        log = self._address.open()
        try:
            directory_log.write(log, record, self._clock())
        finally:
            log.close()
