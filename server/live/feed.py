"""The live feed of a project's users: a snapshot, then the users that changed, for many subscribers.

All subscribers of a process share one series of ticks, at least `INTERVAL` apart. In a tick the view is asked once
which users changed. Subscribers that wait for them are woken, and get the present rows of all users that changed since
their own last frame. So a slow reader has no queue, only an older mark, and receives merged rows when it reads again.
The token of a frame names only what the view surely contains: the progress of each partition, never rows that came
before it.

Everything here belongs to one event loop; `Arrivals` calls it after each flush that the follower thread applied.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Final, NoReturn

import msgspec

from processor.core.growing_arrays import I64
from processor.view.view import View
from processor.view.view_follower import Arrivals
from server import position
from server.alerts.budgets import Reached
from server.alerts.notices import BudgetNotices
from server.errors import Refused
from server.live import resume_token
from server.live.endings import CHECK_EVERY, GRACE, HEARTBEAT, MAX_SUBSCRIBERS, stopping, too_many, verdict
from server.live.frame_maker import FrameMaker
from server.live.frames import ELSEWHERE, Frame, Mark
from server.live.subscription import Subscription, SubscriptionGroup
from server.reads.params import check_names
from server.reads.read_service import PATIENCE
from server.tenancy.keys import Key

INTERVAL: Final = 0.25
"""Least seconds between two ticks."""
BEHIND: Final = 0.05
"""Seconds between two checks of a view that has not reached a reader's token yet."""
MAX_USERS: Final = 100
"""Users that a filter may name."""


class Feed:
    """The subscribers of a process. `identity` is the log's name in tokens; `monotonic` gives seconds."""

    def __init__(
        self,
        view: View,
        arrivals: Arrivals,
        identity: str,
        monotonic: Callable[[], float] = time.monotonic,
        notices: BudgetNotices | None = None,
    ) -> None:
        self._view = view
        self._arrivals = arrivals
        self._identity = identity
        self._monotonic = monotonic
        self._groups: dict[str, SubscriptionGroup] = {}
        self._count = 0
        self._mark = Mark(0, {})
        self._next_tick = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._guard: asyncio.Task[None] | None = None
        self._closed = False
        self._maker = FrameMaker(view, identity, monotonic, lambda: self._mark)
        self._notices = notices or BudgetNotices()
        self._notices.listen(self._on_notice)

    @classmethod
    def of_nothing(cls) -> "Feed":
        """Return a feed over an empty view, which never sends a user."""
        view = View()
        return cls(view, Arrivals(view), "")

    @property
    def subscribers(self) -> int:
        """How many subscribers are connected now."""
        return self._count

    async def open(
        self,
        secret: str | None,
        check: Callable[[], Key],
        params: Mapping[str, str],
        users: Sequence[str],
        token: str | None,
        after: str | None = None,
        gone: Callable[[], bool] = lambda: False,
    ) -> Subscription:
        """Return a subscription to be passed to `frames`. Raises `Refused` like a read.

        `check` returns the key that `secret` opens or raises `Refused`. `params` are the query parameters beside
        `user_id`, by their HTTP names. `token` is that of the last frame received; one of another log, project or
        filter is ignored. `after` is a position of the log that the view must contain first: waits for up to
        `PATIENCE` seconds. `gone` returns True once the client has left.
        """
        key = check()
        check_names(params, ("user_id", "lastEventId", "projectId"), key.project)
        if len(users) > MAX_USERS or any(not user for user in users):
            _bad(f"user_id must be given at most {MAX_USERS} times, and never be empty")
        if self._closed or self._count >= MAX_SUBSCRIBERS:
            raise too_many()
        chosen = tuple(sorted(set(users)))
        binding = blake2b(msgspec.json.encode((key.project, chosen)), digest_size=6).hexdigest()
        subscription = Subscription(secret, check, gone, key.project, chosen, binding)
        if token:
            subscription.token = token
            try:
                found = resume_token.decode(token)
            except ValueError:
                _bad("Last-Event-ID is not one that this server gave out")
            # A token of another log, project or filter says nothing about this feed: begin with a snapshot.
            if (found.identity, found.binding) == (self._identity, binding):
                subscription.bookmark = found
        if after is not None and not await self._arrivals.wait_for(position.decode(self._identity, after), PATIENCE):
            raise Refused("not_yet_visible", "The tables do not contain that position yet; ask again", retry_after=1)
        return subscription

    async def frames(self, subscription: Subscription) -> AsyncGenerator[Frame | Reached | None, None]:
        """Yield the feed without end; call it once for each subscription.

        Yields frames; budgets that were reached, at first all of the current windows, then each new one; and None after
        `HEARTBEAT` seconds of silence. The next frame is made only when it is asked for: a slow reader gets fewer
        frames, never older ones. Raises `Refused` when the key is no longer valid or the server stops.
        """
        group = self._enter(subscription)
        try:
            async for frame in self._run(group, subscription):
                subscription.last_sent = self._monotonic()
                if isinstance(frame, Frame):
                    subscription.token = frame.token
                yield frame
                if subscription.is_over:
                    break
            if subscription.refused is not None:
                raise subscription.refused
        finally:
            self._leave(group, subscription)

    def close(self) -> None:
        """End all subscriptions, and refuse new ones."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        end = stopping()
        for group in self._groups.values():
            for subscription in group.subscriptions:
                self._end(subscription, end)

    # --- one subscriber ---------------------------------------------------------------------------------------------

    async def _run(self, group: SubscriptionGroup, subscription: Subscription) -> AsyncIterator[Frame | Reached | None]:
        bookmark = subscription.bookmark
        if bookmark is None:
            async for frame in self._maker.snapshot(group, subscription):
                yield frame
        else:
            subscription.mark = Mark(ELSEWHERE, bookmark.position)
            async for silence in self._until(subscription, bookmark.position):
                yield silence
            if bookmark.place is not None and not subscription.is_over:
                async for frame in self._maker.rest_of_snapshot(subscription, bookmark.place):
                    yield frame
        while not subscription.is_over:
            async for frame in self._maker.updates(group, subscription):
                yield frame
            for notice in self._news(subscription):
                yield notice
            if await self._nothing_new(group, subscription):
                yield None

    def _news(self, subscription: Subscription) -> list[Reached]:
        seen = subscription.noticed
        subscription.noticed, found = self._notices.since(subscription.project, seen, subscription.users)
        return found

    async def _until(self, subscription: Subscription, wanted: Mapping[int, int]) -> AsyncIterator[None]:
        """Wait until the view contains `wanted`, the position of the reader's token; yield None for each heartbeat."""
        since = self._monotonic()
        while not (self._view.contains(wanted) or subscription.is_over):
            await asyncio.sleep(BEHIND)
            if self._monotonic() - since >= HEARTBEAT:
                since = self._monotonic()
                yield None
        if not all(self._mark.position.get(partition, -1) >= offset for partition, offset in wanted.items()):
            self._tick()  # the shared mark must not be older than the reader's own

    async def _nothing_new(self, group: SubscriptionGroup, subscription: Subscription) -> bool:
        """Wait until there may be something to send; True if a heartbeat is due instead."""
        if subscription.mark.tick != self._mark.tick or subscription.is_over or self._has_news(subscription):
            return False
        subscription.wake.clear()
        subscription.is_waiting = True
        try:
            await subscription.wake.wait()
        finally:
            subscription.is_waiting = False
        return self._is_silent(subscription)

    def _has_news(self, subscription: Subscription) -> bool:
        number, _ = self._notices.since(subscription.project, subscription.noticed, subscription.users)
        return number != subscription.noticed

    def _is_silent(self, subscription: Subscription) -> bool:
        return not subscription.is_over and self._monotonic() - subscription.last_sent >= HEARTBEAT

    def _on_notice(self, project: str) -> None:
        """Wake the subscribers of a project that has a new budget notice."""
        group = self._groups.get(project)
        for subscription in group.subscriptions if group else ():
            subscription.wake.set()

    # --- all of them ------------------------------------------------------------------------------------------------

    def _on_arrival(self) -> None:
        """The view contains more: schedule a tick, `INTERVAL` after the last one."""
        if self._timer is None and not self._closed:
            wait = max(0.0, self._next_tick - self._monotonic())
            self._timer = asyncio.get_running_loop().call_later(wait, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self._next_tick = self._monotonic() + INTERVAL
        self._tick()

    def _tick(self) -> None:
        """Ask the view once which users changed, and wake the subscribers that they concern."""
        held, changed = self._view.changes(self._mark.position)
        if held == self._mark.position:
            return
        self._mark = mark = Mark(self._mark.tick + 1, held)
        for group in self._groups.values():
            if changed is None:  # longer ago than the view remembers: each subscriber asks for itself
                group.ticks.forget(mark.tick)
                self._wake(group, mark, None)
                continue
            number = self._view.number_of(group.name)
            users = None if number is None else changed.get(number)
            if users is None:
                for subscription in group.subscriptions:
                    subscription.skip_to(mark)
            else:
                group.ticks.add(mark.tick, users)
                self._wake(group, mark, users)

    def _wake(self, group: SubscriptionGroup, mark: Mark, users: I64 | None) -> None:
        """Wake the subscribers that `users` (None: perhaps all) concern; the others skip to `mark`."""
        touched = None
        for subscription in group.subscriptions:
            if subscription.users and users is not None:
                subscription.find_numbers(self._view)
                touched = touched or set(users.tolist())
                if subscription.numbers.isdisjoint(touched):
                    subscription.skip_to(mark)
                    continue
            subscription.wake.set()

    def _enter(self, subscription: Subscription) -> SubscriptionGroup:
        if self._count >= MAX_SUBSCRIBERS:  # others came while this one waited for `after`
            raise too_many()
        if not self._groups:
            self._mark = Mark(self._mark.tick + 1, self._view.held())
            self._guard = asyncio.ensure_future(self._watch())
            self._arrivals.listen(self._on_arrival)
        group = self._groups.get(subscription.project)
        if group is None:
            group = self._groups[subscription.project] = SubscriptionGroup(subscription.project, self._mark.tick)
        if self._closed:
            self._end(subscription, stopping())
        subscription.task = asyncio.current_task()
        subscription.last_sent = self._monotonic()
        group.subscriptions.add(subscription)
        self._count += 1
        return group

    def _leave(self, group: SubscriptionGroup, subscription: Subscription) -> None:
        group.subscriptions.discard(subscription)
        self._count -= 1
        if not group.subscriptions:
            del self._groups[group.name]
        if not self._groups and self._guard is not None:
            self._guard.cancel()
            self._guard = None
            self._arrivals.forget(self._on_arrival)

    async def _watch(self) -> None:
        """End subscriptions whose key is no longer valid or whose client has left; wake those due a heartbeat."""
        while True:
            await asyncio.sleep(CHECK_EVERY)
            now = self._monotonic()
            verdicts: dict[str | None, Refused | None] = {}
            for group in list(self._groups.values()):
                for subscription in list(group.subscriptions):
                    if subscription.secret not in verdicts:
                        verdicts[subscription.secret] = verdict(subscription.check)
                    self._look_after(subscription, verdicts[subscription.secret], now)

    def _look_after(self, subscription: Subscription, refused: Refused | None, now: float) -> None:
        if refused is not None or subscription.gone():
            self._end(subscription, refused)
        elif subscription.is_waiting and now - subscription.last_sent >= HEARTBEAT:
            subscription.wake.set()

    def _end(self, subscription: Subscription, refused: Refused | None) -> None:
        if subscription.is_over:
            return
        subscription.is_over = True
        subscription.refused = refused
        subscription.wake.set()
        if subscription.task is not None:
            asyncio.get_running_loop().call_later(GRACE, self._cancel, subscription)

    def _cancel(self, subscription: Subscription) -> None:
        """Cancel the task of an ended subscription that still waits for its client to read."""
        group = self._groups.get(subscription.project)
        if group and subscription in group.subscriptions and subscription.task:
            subscription.task.cancel()


def _bad(message: str) -> NoReturn:
    raise Refused("bad_request", message)
