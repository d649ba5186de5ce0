"""Find the budgets that have been reached: each threshold once in a window, across restarts and processes.

Every API process looks. The one that finds something appends a record to the directory, which all read; the stream,
`GET /v1/budgets` and the webhook notify by that record. Two processes may append the same one: its id is the same.
"""

import asyncio
import random
from collections.abc import Callable
from typing import Final

from processor.core.clock import HOUR
from processor.log.address import LogAddress
from processor.log.errors import LogError
from processor.structured_log import get_logger
from processor.view.view import View
from server.alerts import budgets
from server.alerts.budget_records import reached_record
from server.alerts.budgets import Reached
from server.alerts.notices import BudgetNotices
from server.alerts.shelf import BudgetShelf
from server.alerts.spending import Spending
from server.tenancy import directory_log
from server.tenancy.directory import Directory

EVERY: Final = 0.25
"""Seconds between two checks."""
AGAIN: Final = 2.0
"""Seconds until the next try after the log refused a record."""
SWEEP: Final = HOUR
"""Microseconds between two deletions of old records."""


class Budgeter:
    """The task that watches budgets, from `start` to `stop`. `clock` returns microseconds since the epoch.

    `jitter`: most seconds that the process waits before it writes, as another one may do so first.
    """

    def __init__(
        self,
        address: LogAddress,
        identity: str,
        directory: Directory,
        view: View,
        notices: BudgetNotices,
        clock: Callable[[], int],
        *,
        every: float = EVERY,
        jitter: float = 0.0,
    ) -> None:
        self._address = address
        self._identity = identity
        self._directory = directory
        self._notices = notices
        self._clock = clock
        self._every = every
        self._jitter = jitter
        self._view = view
        self._spending = Spending(view)
        self._changes = -1
        self._posted: set[str] = set()
        self._looked_at = 0
        self._written: dict[str, Reached] = {}
        """Records that were written and have not been read back yet, by id."""
        self._swept_at = 0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the task."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop the task; what was not written yet is found again after the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            pause = self._every
            try:
                await self._round()
            except LogError as error:
                get_logger().warning("budgets.not_written", error=str(error))
                pause = AGAIN
            except Exception:  # noqa: BLE001 - the next look may go well, and ingest does not depend on it
                get_logger().exception("budgets.failed")
                pause = AGAIN
            await asyncio.sleep(pause)

    async def _round(self) -> None:
        is_new = self._directory.shelf(BudgetShelf).changes != self._changes
        if is_new:
            self._changes = self._directory.shelf(BudgetShelf).changes
            self._post()
        if self._directory.shelf(BudgetShelf).budgets():
            found = await asyncio.to_thread(self._look, is_new)
            if found:
                self._looked_at = 0  # until it is written, every round looks again
                await asyncio.sleep(random.uniform(0, self._jitter))  # noqa: S311 - to be apart, not unguessable
                await asyncio.to_thread(self._write, found)
        if abs(self._clock() - self._swept_at) > SWEEP:
            self._swept_at = self._clock()
            await asyncio.to_thread(self._sweep)

    def _post(self) -> None:
        """Post what the directory has to the live stream."""
        now = self._clock()
        for reached in self._directory.shelf(BudgetShelf).reached():
            if reached.id not in self._posted and reached.end > now:
                self._notices.post(reached)
        self._posted = {reached.id for reached in self._directory.shelf(BudgetShelf).reached()}

    def _look(self, is_new: bool) -> list[Reached]:
        """Return what has been reached and is not in the directory."""
        now = self._clock()
        has_turned = now // HOUR != self._looked_at // HOUR
        if not (self._spending.look() or is_new or has_turned):
            return []
        self._looked_at = now
        known = self._directory.shelf(BudgetShelf).budgets()
        found = budgets.due(known, self._spending, self._identity, now)
        self._spending.forget(known, now - 32 * 24 * HOUR)
        return self._unknown(found)

    def _unknown(self, found: list[Reached]) -> list[Reached]:
        self._written = {
            key: each for key, each in self._written.items() if not self._directory.shelf(BudgetShelf).is_reached(each)
        }
        return [
            each
            for each in found
            if each.id not in self._written and not self._directory.shelf(BudgetShelf).is_reached(each)
        ]

    def _write(self, found: list[Reached]) -> None:
        fresh = self._unknown(found)
        if not fresh:
            return
        log = self._address.open()
        try:
            directory_log.write_all(log, [reached_record(reached) for reached in fresh], self._clock())
        finally:
            log.close()
        for reached in fresh:
            self._written[reached.id] = reached
            get_logger().info("budget.reached", id=reached.id, budget=reached.budget, threshold=reached.threshold)

    def _sweep(self) -> None:
        """Delete the records of thresholds that were reached long ago."""
        # By arrivals, not by the clock: one that is ahead for a moment must delete nothing.
        horizon = max(self._view.horizons.values(), default=0)
        before = min(self._clock(), horizon) - budgets.KEPT
        old = [reached for reached in self._directory.shelf(BudgetShelf).reached() if reached.end < before]
        if not old:
            return
        log = self._address.open()
        try:
            directory_log.write_all(log, [(reached_record(reached)[0], None) for reached in old], self._clock())
        finally:
            log.close()
