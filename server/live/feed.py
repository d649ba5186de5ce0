"""The live feed of a project's users: a snapshot, then the users that changed, for many subscribers.

All subscribers of a process share one clock of ticks, `INTERVAL` apart at least. In a tick the view is asked once which
users changed; subscribers that wait for them are woken, and get the present rows of all users that changed since their
own last frame. So a slow reader has no queue, only an older mark, and receives merged rows when it comes back to read.
A frame claims, by its token, only what the view surely contains: the progress of each partition, never rows that came
before it.

Everything here belongs to one event loop; `Arrivals` tells it of what the follower thread brought.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from copy import copy
from functools import partial
from hashlib import blake2b
from typing import Final, NoReturn, TypeVar

import msgspec

from processor.core.growing_arrays import I64
from processor.view.arrivals import Arrivals
from processor.view.view import SMALL, View
from server import position
from server.alerts.budgets import Reached
from server.alerts.notices import BudgetNotices
from server.errors import Refused
from server.live import resume_token
from server.live.cpu_share import CpuShare
from server.live.frames import ELSEWHERE, FRAME_ROWS, Frame, Mark, Shared, Ticks
from server.live.resume_token import Bookmark
from server.reads.answers import UserRow, user_row
from server.reads.params import check_names
from server.reads.read_service import PATIENCE
from server.tenancy.keys import Key

INTERVAL: Final = 0.25
"""Seconds between two ticks, at least."""
HEARTBEAT: Final = 15.0
"""Seconds of silence after which a subscriber is told that the feed is still there."""
CHECK_EVERY: Final = 0.4
"""Seconds between two looks at keys and connections."""
BEHIND: Final = 0.05
"""Seconds between two looks at a view that is behind a reader."""
GRACE: Final = 0.3
"""Seconds in which a subscriber whose key has ended may take its last word."""
MAX_SUBSCRIBERS: Final = 20_000
MAX_USERS: Final = 100
"""Users that a filter may name."""
BLOCK: Final = 16 * FRAME_ROWS
"""Users of a large snapshot that are looked up at a time."""
OPENING: Final = 2.0
"""Seconds for which a snapshot serves new subscribers."""
ROW_COST: Final = 1e-5
SEND_COST: Final = 3e-5
SEND_ROW_COST: Final = 2e-6
"""Seconds of work, about: to make a row; to send a frame, and each of its rows, with what the kernel does for it."""

T = TypeVar("T")


class Subscription:
    """One reader of the feed, and how far it has got."""

    def __init__(
        self,
        secret: str | None,
        check: Callable[[], Key],
        gone: Callable[[], bool],
        project: str,
        users: tuple[str, ...],
        binding: str,
    ) -> None:
        self.secret = secret
        self.check = check
        self.gone = gone
        """True once the subscriber is gone."""
        self.project = project
        self.users = users
        """Only these; empty: all."""
        self.binding = binding
        self.bookmark: Bookmark | None = None
        """Where to go on."""
        self.mark = Mark(ELSEWHERE, {})
        self.token = ""
        """Of the last frame."""
        self.noticed = 0
        """Up to where it has seen the notices."""
        self.numbers: set[int] = set()
        """Of those of `users` that there are."""
        self.members = 0
        """How many users there were when they were looked up."""
        self.wake = asyncio.Event()
        self.is_waiting = False
        self.refused: Refused | None = None
        self.is_over = False
        self.last_sent = 0.0
        self.task: asyncio.Task[object] | None = None


class Group:
    """The subscribers of one project."""

    def __init__(self, name: str, tick: int) -> None:
        self.name = name
        self.subscriptions: set[Subscription] = set()
        self.ticks = Ticks(tick)
        self.shared = Shared()
        self.opening: tuple[float, Mark, asyncio.Future[list[Frame]]] | None = None


class Feed:
    """The subscribers of a process. `identity` is the log's name in tokens."""

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
        self._groups: dict[str, Group] = {}
        self._count = 0
        self._mark = Mark(0, {})
        self._next_tick = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._guard: asyncio.Task[None] | None = None
        self._closed = False
        self._pace: CpuShare | None = None
        self._scan = asyncio.Semaphore(1)
        self._notices = notices or BudgetNotices()
        arrivals.listen(self._heard)
        self._notices.listen(self._told)

    @classmethod
    def of_nothing(cls) -> "Feed":
        """A feed that never has anything to say."""
        view = View()
        return cls(view, Arrivals(view), "")

    @property
    def subscribers(self) -> int:
        """How many there are now."""
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
        """A subscription that `frames` can be asked of. Raises `Refused` like a read.

        `check` gives the key that `secret` opens or raises `Refused`; `token` is that of the last frame received;
        `params` are the other query parameters, by their HTTP names; `gone` says that the subscriber is gone.
        """
        key = check()
        check_names(params, ("user_id", "lastEventId", "projectId"), key.project)
        if len(users) > MAX_USERS or any(not user for user in users):
            _bad(f"user_id must be given at most {MAX_USERS} times, and never be empty")
        if self._closed or self._count >= MAX_SUBSCRIBERS:
            raise Refused("unavailable", "This server takes no more subscribers now; try again", retry_after=2)
        chosen = tuple(sorted(set(users)))
        binding = blake2b(msgspec.json.encode((key.project, chosen)), digest_size=6).hexdigest()
        subscription = Subscription(secret, check, gone, key.project, chosen, binding)
        if token:
            subscription.token = token
            try:
                found = resume_token.decode(token)
            except ValueError:
                _bad("Last-Event-ID is not one that this server gave out")
            # One of another log, project or filter says nothing about this feed: a new snapshot does.
            if (found.identity, found.binding) == (self._identity, binding):
                subscription.bookmark = found
        if after is not None and not await self._arrivals.wait_for(position.decode(self._identity, after), PATIENCE):
            raise Refused("not_yet_visible", "The tables do not contain that position yet; ask again", retry_after=1)
        return subscription

    async def frames(self, subscription: Subscription) -> AsyncGenerator[Frame | Reached | None, None]:
        """The feed, for ever; None now and then, when there is nothing to say. One call for each subscription.

        Between the frames stands which budgets were reached: those of the windows of now at first, then each new one.

        Raises `Refused` when the key is not valid any more or the server stops. The next frame is looked for when the
        last one has been sent: who is slow gets fewer of them, and no older ones.
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
        """End all subscriptions, and let no more in."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        stopping = _stopping()
        for group in self._groups.values():
            for subscription in group.subscriptions:
                self._end(subscription, stopping)

    # --- one subscriber ---------------------------------------------------------------------------------------------

    async def _run(self, group: Group, subscription: Subscription) -> AsyncIterator[Frame | Reached | None]:
        mark = subscription.bookmark
        if mark is None:
            async for frame in self._begin(group, subscription):
                yield frame
        else:
            subscription.mark = Mark(ELSEWHERE, mark.position)
            async for silence in self._until(subscription, mark.position):
                yield silence
            if mark.place is not None and not subscription.is_over:
                async for frame in self._snapshot(subscription, mark.place):
                    yield frame
        while not subscription.is_over:
            async for frame in self._updates(group, subscription):
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
        """Wait until the view has got to where the reader was before."""
        since = self._monotonic()
        while not (self._view.contains(wanted) or subscription.is_over):
            await asyncio.sleep(BEHIND)
            if self._monotonic() - since >= HEARTBEAT:
                since = self._monotonic()
                yield None
        if not all(self._mark.position.get(partition, -1) >= offset for partition, offset in wanted.items()):
            self._tick()  # the shared mark must not take the reader back

    async def _begin(self, group: Group, subscription: Subscription) -> AsyncIterator[Frame]:
        """A new snapshot; a small one is made for all who come about now."""
        if subscription.users or self._view.members(group.name) > BLOCK:
            subscription.mark = self._mark
            async for frame in self._snapshot(subscription, None, is_first=True):
                yield frame
            return
        now = self._monotonic()
        if group.opening is None or now - group.opening[0] > OPENING:
            future = asyncio.ensure_future(self._opening(subscription, self._mark))
            group.opening = now, self._mark, future
        _, subscription.mark, made = group.opening
        async for frame in self._sent(await asyncio.shield(made), subscription):
            yield frame

    async def _opening(self, subscription: Subscription, mark: Mark) -> list[Frame]:
        like = copy(subscription)
        like.mark = mark
        return [frame async for frame in self._snapshot(like, None, is_first=True)]

    async def _snapshot(
        self, subscription: Subscription, place: str | None, *, is_first: bool = False
    ) -> AsyncIterator[Frame]:
        """All users behind `place`, by their ids, as they are now, and so at least as of the subscription's mark."""
        view, project = self._view, subscription.project
        while True:
            if subscription.users:
                found = sorted(view.find(project, subscription.users).items())
                block = [(number, name) for name, number in found if place is None or name > place]
            else:
                block = await self._look(view.members(project), partial(view.next_people, project, place, BLOCK))
            is_last = bool(subscription.users) or len(block) < BLOCK
            for start in range(0, max(len(block), is_first), FRAME_ROWS):
                piece = block[start : start + FRAME_ROWS]
                ends = is_last and start + FRAME_ROWS >= len(block)
                rows = await self._rows(project, [number for number, _ in piece])
                place = piece[-1][1] if piece else None
                token = self._token(subscription, subscription.mark, None if ends else place)
                yield Frame(is_first, rows, view.as_of, token)
                is_first = False
            if is_last:
                return

    async def _updates(self, group: Group, subscription: Subscription) -> AsyncIterator[Frame]:
        """The users that changed since the subscription's mark; then that mark is the present one."""
        since = subscription.mark
        if since.tick == self._mark.tick:
            return
        await self._get_pace().reserve(SEND_COST)
        mark = self._mark
        users = group.ticks.since(since.tick)
        if subscription.users:
            self._recognise(subscription)
            if users is None:
                users = self._view.changed(group.name, since.position, subscription.numbers)
            else:
                users = [user for user in users if user in subscription.numbers]
        elif users is None:
            view = self._view
            users = await self._look(view.row_count(group.name), lambda: view.changed(group.name, since.position))
        if since.tick == ELSEWHERE or subscription.users or len(users) > BLOCK:
            frames = self._frames(subscription, since, mark, users)
        else:
            frames = self._shared(group, subscription, since, mark, users)
        async for frame in frames:
            yield frame
        subscription.mark = mark

    async def _shared(
        self, group: Group, subscription: Subscription, since: Mark, until: Mark, users: Sequence[int]
    ) -> AsyncIterator[Frame]:
        """The same frames for all who were at the same tick and have nothing of their own to ask for."""

        async def make() -> list[Frame]:
            return [frame async for frame in self._frames(subscription, since, until, users)]

        made = group.shared.get(since.tick, until.tick, lambda: asyncio.ensure_future(make()))
        async for frame in self._sent(await asyncio.shield(made), subscription):
            yield frame

    async def _sent(self, frames: Sequence[Frame], subscription: Subscription) -> AsyncIterator[Frame]:
        for frame in frames:
            if subscription.is_over:
                return
            await self._get_pace().reserve(SEND_COST + SEND_ROW_COST * len(frame.rows))
            yield frame

    async def _frames(
        self, subscription: Subscription, since: Mark, until: Mark, users: Sequence[int]
    ) -> AsyncIterator[Frame]:
        """Only the last one takes its reader to the new mark: who has lost it gets all of them again."""
        before, after = self._token(subscription, since), self._token(subscription, until)
        for start in range(0, len(users), FRAME_ROWS):
            rows = await self._rows(subscription.project, users[start : start + FRAME_ROWS])
            is_last = start + FRAME_ROWS >= len(users)
            yield Frame(False, rows, self._view.as_of, after if is_last else before)

    async def _rows(self, project: str, users: Sequence[int]) -> list[UserRow]:
        await self._get_pace().reserve(ROW_COST * len(users))

        def make() -> list[UserRow]:
            return [user_row(user_id, numbers) for user_id, numbers in self._view.people(project, users)]

        return await self._look(len(users), make)

    async def _nothing_new(self, group: Group, subscription: Subscription) -> bool:
        """Wait until there may be something; True after a long silence."""
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

    def _recognise(self, subscription: Subscription) -> None:
        """Find those of the users named in a filter that have come."""
        members = self._view.members(subscription.project)
        if subscription.members != members:
            subscription.members = members
            subscription.numbers = set(self._view.find(subscription.project, subscription.users).values())

    def _token(self, subscription: Subscription, mark: Mark, place: str | None = None) -> str:
        return resume_token.encode(self._identity, subscription.binding, mark.position, place)

    async def _look(self, size: int, work: Callable[[], T]) -> T:
        if size <= SMALL:
            return work()
        async with self._scan:
            return await asyncio.to_thread(work)

    def _get_pace(self) -> CpuShare:
        self._pace = self._pace or CpuShare(self._monotonic)
        return self._pace

    def _told(self, project: str) -> None:
        """Something was posted: who waits is to look."""
        group = self._groups.get(project)
        for subscription in group.subscriptions if group else ():
            subscription.wake.set()

    # --- all of them ------------------------------------------------------------------------------------------------

    def _heard(self) -> None:
        """The view contains more: there is a tick as soon as it is time."""
        if self._groups and self._timer is None and not self._closed:
            wait = max(0.0, self._next_tick - self._monotonic())
            self._timer = asyncio.get_running_loop().call_later(wait, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self._next_tick = self._monotonic() + INTERVAL
        self._tick()

    def _tick(self) -> None:
        """Ask the view once who changed, and wake those whom it concerns."""
        held, changed = self._view.changes(self._mark.position)
        if held == self._mark.position:
            return
        self._mark = mark = Mark(self._mark.tick + 1, held)
        for group in self._groups.values():
            if changed is None:
                group.ticks.forget(mark.tick)
                self._wake(group, mark, None)
                continue
            number = self._view.number_of(group.name)
            users = None if number is None else changed.get(number)
            if users is None:
                self._pass_by(group, mark)
            else:
                group.ticks.add(mark.tick, users)
                self._wake(group, mark, users)

    def _wake(self, group: Group, mark: Mark, users: I64 | None) -> None:
        touched = None
        for subscription in group.subscriptions:
            if subscription.users and users is not None:
                self._recognise(subscription)
                touched = touched or set(users.tolist())
                if subscription.numbers.isdisjoint(touched):
                    _advance(subscription, mark)
                    continue
            subscription.wake.set()

    def _pass_by(self, group: Group, mark: Mark) -> None:
        for subscription in group.subscriptions:
            _advance(subscription, mark)

    def _enter(self, subscription: Subscription) -> Group:
        if not self._groups:
            self._mark = Mark(self._mark.tick + 1, self._view.held())
            self._guard = asyncio.ensure_future(self._watch())
        group = self._groups.get(subscription.project)
        if group is None:
            group = self._groups[subscription.project] = Group(subscription.project, self._mark.tick)
        if self._closed:
            self._end(subscription, _stopping())
        subscription.task = asyncio.current_task()
        subscription.last_sent = self._monotonic()
        group.subscriptions.add(subscription)
        self._count += 1
        return group

    def _leave(self, group: Group, subscription: Subscription) -> None:
        group.subscriptions.discard(subscription)
        self._count -= 1
        if not group.subscriptions:
            del self._groups[group.name]
        if not self._groups and self._guard is not None:
            self._guard.cancel()
            self._guard = None

    async def _watch(self) -> None:
        """End subscriptions whose key has ended or whose reader has gone; break long silences."""
        while True:
            await asyncio.sleep(CHECK_EVERY)
            now = self._monotonic()
            verdicts: dict[str | None, Refused | None] = {}
            for group in list(self._groups.values()):
                for subscription in list(group.subscriptions):
                    if subscription.secret not in verdicts:
                        verdicts[subscription.secret] = _verdict(subscription.check)
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
        """End one that still waits for its reader to read."""
        group = self._groups.get(subscription.project)
        if group and subscription in group.subscriptions and subscription.task:
            subscription.task.cancel()


def _verdict(check: Callable[[], Key]) -> Refused | None:
    try:
        check()
    except Refused as refused:
        return refused
    return None


def _advance(subscription: Subscription, mark: Mark) -> None:
    """Nothing that concerns it has changed: who waits has seen everything up to `mark`."""
    if subscription.is_waiting and not subscription.wake.is_set():
        subscription.mark = mark


def _stopping() -> Refused:
    return Refused("unavailable", "The server is stopping; go on with the last id", retry_after=1)


def _bad(message: str) -> NoReturn:
    raise Refused("bad_request", message)
