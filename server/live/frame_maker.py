"""The frames of the live feed, made from the view: snapshots, and the users that changed since a reader's mark.

Everything here belongs to one event loop. Large lookups run in a thread, one at a time, and all work is paid for in
`CpuShare`, so that ingest keeps the rest of the process.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from copy import copy
from functools import partial
from typing import Final, TypeVar

from processor.view.listing import UserSums
from processor.view.view import SMALL, View
from server.live import resume_token
from server.live.cpu_share import CpuShare
from server.live.frames import ELSEWHERE, FRAME_ROWS, Frame, Mark
from server.live.subscription import Subscription, SubscriptionGroup

BLOCK: Final = 16 * FRAME_ROWS
"""Users of a large snapshot that are looked up together."""
OPENING: Final = 2.0
"""Seconds for which a snapshot serves further new subscribers."""
ROW_COST: Final = 1e-5
"""Seconds of work to make a row, estimated."""
SEND_COST: Final = 3e-5
"""Seconds of work to send a frame, the kernel's included, estimated."""
SEND_ROW_COST: Final = 2e-6
"""The same for each row of the frame."""

T = TypeVar("T")


class FrameMaker:
    """Makes frames for the subscriptions of a process.

    `identity` is the log's name in tokens; `latest` returns the mark of the feed's last tick.
    """

    def __init__(self, view: View, identity: str, monotonic: Callable[[], float], latest: Callable[[], Mark]) -> None:
        self._view = view
        self._identity = identity
        self._monotonic = monotonic
        self._latest = latest
        self._cpu_share: CpuShare | None = None
        self._scan = asyncio.Semaphore(1)

    # --- snapshots --------------------------------------------------------------------------------------------------

    async def snapshot(self, group: SubscriptionGroup, subscription: Subscription) -> AsyncIterator[Frame]:
        """Yield a new snapshot. A small one of all users is made once for the subscribers of the next `OPENING` s."""
        if subscription.users or self._view.members(group.name) > BLOCK:
            subscription.mark = self._latest()
            async for frame in self.rest_of_snapshot(subscription, None, is_first=True):
                yield frame
            return
        now = self._monotonic()
        if group.opening is None or now - group.opening[0] > OPENING:
            mark = self._latest()
            group.opening = now, mark, asyncio.ensure_future(self._make_opening(subscription, mark))
        _, subscription.mark, made = group.opening
        try:
            frames = await asyncio.shield(made)
        finally:
            if made.done() and (made.cancelled() or made.exception() is not None):
                group.opening = None  # the next subscriber tries again
        async for frame in self._send(frames, subscription):
            yield frame

    async def _make_opening(self, subscription: Subscription, mark: Mark) -> list[Frame]:
        like = copy(subscription)
        like.mark = mark
        return [frame async for frame in self.rest_of_snapshot(like, None, is_first=True)]

    async def rest_of_snapshot(
        self, subscription: Subscription, place: str | None, *, is_first: bool = False
    ) -> AsyncIterator[Frame]:
        """Yield all users with an id behind `place` (None: all), by id, as they are now.

        So each row contains at least what the subscription's mark says. The token of a frame that is not the last one
        names the last id sent: a reader that disconnects resumes behind it.
        """
        view, project = self._view, subscription.project
        while True:
            if subscription.users:
                found = sorted(view.find(project, subscription.users).items())
                block = [(number, name) for name, number in found if place is None or name > place]
            else:
                block = await self._look(view.members(project), partial(view.next_people, project, place, BLOCK))
            is_last = bool(subscription.users) or len(block) < BLOCK
            for start in range(0, max(len(block), is_first), FRAME_ROWS):  # a snapshot without users is one empty frame
                piece = block[start : start + FRAME_ROWS]
                ends = is_last and start + FRAME_ROWS >= len(block)
                rows = await self._rows(project, [number for number, _ in piece])
                place = piece[-1][1] if piece else None
                token = self._token(subscription, subscription.mark, None if ends else place)
                yield Frame(is_first, rows, view.as_of, token)
                is_first = False
            if is_last:
                return

    # --- changes ----------------------------------------------------------------------------------------------------

    async def updates(self, group: SubscriptionGroup, subscription: Subscription) -> AsyncIterator[Frame]:
        """Yield the users that changed since the subscription's mark, then advance that mark to the latest one."""
        since = subscription.mark
        if since.tick == self._latest().tick:
            return
        await self._share().reserve(SEND_COST)
        mark = self._latest()  # only now: what changed while this waited for its share goes along
        users = group.ticks.since(since.tick)
        if subscription.users:
            subscription.find_numbers(self._view)
            if users is None:
                users = self._view.changed(group.name, since.position, subscription.numbers)
            else:
                users = [user for user in users if user in subscription.numbers]
        elif users is None:
            view = self._view
            users = await self._look(view.row_count(group.name), lambda: view.changed(group.name, since.position))
        if since.tick == ELSEWHERE or subscription.users or len(users) > BLOCK:
            frames = self._make(subscription, since, mark, users)
        else:
            frames = self._make_shared(group, subscription, since, mark, users)
        async for frame in frames:
            yield frame
        subscription.mark = mark

    async def _make_shared(
        self, group: SubscriptionGroup, subscription: Subscription, since: Mark, until: Mark, users: Sequence[int]
    ) -> AsyncIterator[Frame]:
        """Yield frames that are made once for all readers without a filter that were at the same tick."""

        async def make() -> list[Frame]:
            return [frame async for frame in self._make(subscription, since, until, users)]

        made = group.shared.get(since.tick, until.tick, lambda: asyncio.ensure_future(make()))
        async for frame in self._send(await asyncio.shield(made), subscription):
            yield frame

    async def _make(
        self, subscription: Subscription, since: Mark, until: Mark, users: Sequence[int]
    ) -> AsyncIterator[Frame]:
        """Yield the rows of `users`. Only the last frame has the token of `until`: one that lost it gets all again."""
        before, after = self._token(subscription, since), self._token(subscription, until)
        for start in range(0, len(users), FRAME_ROWS):
            rows = await self._rows(subscription.project, users[start : start + FRAME_ROWS])
            is_last = start + FRAME_ROWS >= len(users)
            yield Frame(False, rows, self._view.as_of, after if is_last else before)

    # --- what both are made with ------------------------------------------------------------------------------------

    async def _send(self, frames: Sequence[Frame], subscription: Subscription) -> AsyncIterator[Frame]:
        for frame in frames:
            if subscription.is_over:
                return
            await self._share().reserve(SEND_COST + SEND_ROW_COST * len(frame.rows))
            yield frame

    async def _rows(self, project: str, users: Sequence[int]) -> list[UserSums]:
        await self._share().reserve(ROW_COST * len(users))
        return await self._look(len(users), lambda: self._view.people(project, users))

    async def _look(self, size: int, work: Callable[[], T]) -> T:
        """Run `work` on the view: at once if it is small (`size` is in rows), else in a thread, one at a time."""
        if size <= SMALL:
            return work()
        async with self._scan:
            return await asyncio.to_thread(work)

    def _token(self, subscription: Subscription, mark: Mark, place: str | None = None) -> str:
        return resume_token.encode(self._identity, subscription.binding, mark.position, place)

    def _share(self) -> CpuShare:
        """Return the share of the event loop; its clock begins with the first frame."""
        self._cpu_share = self._cpu_share or CpuShare(self._monotonic)
        return self._cpu_share
