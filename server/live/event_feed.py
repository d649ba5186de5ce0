"""The live feed of a project's events: what becomes visible in the event store, for many subscribers.

Each subscriber asks again every `INTERVAL` what has become visible behind its own position; subscribers with the same
filters at the same position share one question and its answer. A slow reader has no queue, only an older position: it
gets the next `LIMIT` events when it reads again, and the number of those beyond them. At most `QUESTIONS` questions of
a process are under way at once, and the projects take turns, so that many different filters slow the streams of their
project down and not the store, nor other projects; and all work for subscribers is paid for in `CpuShare`, so that
ingest keeps the rest of the process.

Everything here belongs to one event loop.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from hashlib import blake2b
from typing import Final

import msgspec
from msgspec import structs

from server.errors import Refused
from server.explore.explorer import Explorer
from server.explore.lanes import Lane
from server.explore.questions import NewEvents, NewEventsQuestion
from server.live import resume_token
from server.live.cpu_share import CpuShare
from server.live.endings import CHECK_EVERY, GRACE, HEARTBEAT, MAX_SUBSCRIBERS, stopping, too_many, verdict
from server.tenancy.keys import Key

INTERVAL: Final = 1.0
"""Seconds between two answers to one subscriber."""
LIMIT: Final = 200
"""Most events of one answer."""
QUESTIONS: Final = 2
"""Questions under way at once, each of another project."""
PATIENT: Final = 64
"""Questions at once that wait for a position first, which costs nothing."""
PATIENT_OF_PROJECT: Final = 8
WAKE_COST: Final = 1e-4
"""Seconds of work to look for news for one subscriber, estimated."""
SEND_COST: Final = 3e-5
"""Seconds of work to send a frame, the kernel's included, estimated."""
BYTE_COST: Final = 5e-10
"""The same for each byte of its events."""


class EventFrame:
    """What has become visible between two positions, encoded once however many subscribers receive it."""

    __slots__ = ("_encoded", "as_of", "events", "lag", "position", "skipped", "token")

    def __init__(self, answer: NewEvents, token: str) -> None:
        self.events = bytes(answer.events)
        """A JSON list."""
        self.skipped = answer.skipped
        """Matching events beyond those."""
        self.position = answer.position
        self.as_of = answer.as_of
        self.lag = answer.lag
        self.token = token
        """A client that has received this frame resumes with this."""
        self._encoded: bytes | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing has become visible."""
        return not self.skipped and self.events == b"[]"

    def encoded(self, encode: Callable[["EventFrame"], bytes]) -> bytes:
        """Return what `encode` makes of the frame, always the same function."""
        if self._encoded is None:
            self._encoded = encode(self)
        return self._encoded


class EventSubscription:
    """One subscriber. `check` returns the key that `secret` opens or raises `Refused`; `gone` returns True once the
    client has left."""

    def __init__(
        self,
        secret: str | None,
        check: Callable[[], Key],
        gone: Callable[[], bool],
        question: NewEventsQuestion,
        binding: str,
    ) -> None:
        self.secret = secret
        self.check = check
        self.gone = gone
        self.question = question
        """What it asks next."""
        self.binding = binding
        """Stands for the project and the filters in the tokens."""
        self.first: EventFrame | None = None
        """The answer to its first question, which is sent even if it is empty: it has the first token."""
        self.ended = asyncio.Event()
        self.refused: Refused | None = None
        """Why the subscription ended, if that is an error."""
        self.task: asyncio.Task[object] | None = None
        """The task that reads the subscription."""


class EventFeed:
    """The subscribers of a process. `identity` is the log's name in tokens; `monotonic` gives seconds."""

    def __init__(self, explorer: Explorer, identity: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._explorer = explorer
        self._identity = identity
        self._monotonic = monotonic
        self._subscriptions: set[EventSubscription] = set()
        self._answers: dict[tuple[str, str], tuple[float, asyncio.Future[EventFrame]]] = {}
        """(binding, token of the position) -> when it was asked, and the answer."""
        self._turns = Lane(QUESTIONS, 1, MAX_SUBSCRIBERS)
        self._patient_turns = Lane(PATIENT, PATIENT_OF_PROJECT, MAX_SUBSCRIBERS)
        self._guard: asyncio.Task[None] | None = None
        self._closed = False
        self._cpu_share: CpuShare | None = None

    @property
    def subscribers(self) -> int:
        """How many subscribers are connected now."""
        return len(self._subscriptions)

    async def open(
        self,
        secret: str | None,
        check: Callable[[], Key],
        question: NewEventsQuestion,
        token: str | None,
        gone: Callable[[], bool] = lambda: False,
    ) -> EventSubscription:
        """Return a subscription to be passed to `frames`, once its first question is answered. Raises `Refused`.

        `question` has the project, the filters and a position to wait for. `token` is that of the last frame received;
        one of another log, project or filters is ignored, and the feed begins at the present position.
        """
        if self._closed or len(self._subscriptions) >= MAX_SUBSCRIBERS:
            raise too_many()
        asked = (question.project, structs.asdict(question.filters))
        binding = blake2b(msgspec.json.encode(asked), digest_size=6).hexdigest()
        question = structs.replace(question, position=self._position(token, binding), limit=LIMIT)
        subscription = EventSubscription(secret, check, gone, question, binding)
        subscription.first = await self._ask(subscription)
        return subscription

    async def frames(self, subscription: EventSubscription) -> AsyncGenerator[EventFrame | None, None]:
        """Yield frames without end, and None after `HEARTBEAT` seconds of silence; call it once for each subscription.

        Raises `Refused` when the key is no longer valid, when the server stops, or when the event store refuses for
        good; while it is busy or away the feed waits.
        """
        self._enter(subscription)
        try:
            sent = self._monotonic()
            frame = subscription.first
            while not subscription.ended.is_set():
                if frame is not None and (frame is subscription.first or not frame.is_empty):
                    await self._share().reserve(SEND_COST + BYTE_COST * len(frame.events))
                    yield frame
                    sent = self._monotonic()
                elif self._monotonic() - sent >= HEARTBEAT:
                    yield None
                    sent = self._monotonic()
                if frame is not None:
                    subscription.question = structs.replace(subscription.question, position=frame.position, after={})
                await _pause(subscription.ended)
                if not subscription.ended.is_set():
                    frame = await self._next(subscription)
            if subscription.refused is not None:
                raise subscription.refused
        finally:
            self._leave(subscription)

    def close(self) -> None:
        """End all subscriptions, and refuse new ones."""
        self._closed = True
        for subscription in self._subscriptions:
            self._end(subscription, stopping())

    # --- questions --------------------------------------------------------------------------------------------------

    def _position(self, token: str | None, binding: str) -> dict[int, int] | None:
        if not token:
            return None
        try:
            found = resume_token.decode(token)
        except ValueError:
            raise Refused("bad_request", "Last-Event-ID is not one that this server gave out") from None
        if (found.identity, found.binding) != (self._identity, binding):
            return None
        return {partition: offset + 1 for partition, offset in found.position.items()}

    async def _next(self, subscription: EventSubscription) -> EventFrame | None:
        """Return what has become visible; None: that cannot be known now."""
        await self._share().reserve(WAKE_COST)
        try:
            return await self._ask(subscription)
        except Refused as refused:
            if not refused.retryable:
                raise
            return None

    async def _ask(self, subscription: EventSubscription) -> EventFrame:
        """Ask, or share the answer to the same question of less than `INTERVAL` ago."""
        question = subscription.question
        if question.after or question.position is None:
            return await self._answer(question, subscription.binding)
        place = (subscription.binding, self._token(subscription.binding, question.position))
        now = self._monotonic()
        at, found = self._answers.get(place, (0.0, None))
        if found is None or now - at >= INTERVAL or (found.done() and (found.cancelled() or found.exception())):
            self._forget(now)
            found = asyncio.ensure_future(self._answer(question, subscription.binding))
            self._answers[place] = now, found
        return await asyncio.shield(found)

    async def _answer(self, question: NewEventsQuestion, binding: str) -> EventFrame:
        lane = self._patient_turns if question.after else self._turns
        async with lane.turn(question.project):
            answer = msgspec.json.decode(await self._explorer.ask(question), type=NewEvents)
        return EventFrame(answer, self._token(binding, answer.position))

    def _share(self) -> CpuShare:
        """Return the share of the event loop; its clock begins with the first subscriber."""
        self._cpu_share = self._cpu_share or CpuShare(self._monotonic)
        return self._cpu_share

    def _token(self, binding: str, position: Mapping[int, int]) -> str:
        read = {partition: offset - 1 for partition, offset in position.items()}
        return resume_token.encode(self._identity, binding, read)

    def _forget(self, now: float) -> None:
        old = [place for place, (at, answer) in self._answers.items() if answer.done() and now - at >= INTERVAL]
        for place in old:
            answer = self._answers.pop(place)[1]
            if not answer.cancelled():
                answer.exception()  # whoever wanted it has gone

    # --- subscribers ------------------------------------------------------------------------------------------------

    def _enter(self, subscription: EventSubscription) -> None:
        if len(self._subscriptions) >= MAX_SUBSCRIBERS:  # others came while this one asked
            raise too_many()
        if self._closed:
            self._end(subscription, stopping())
        subscription.task = asyncio.current_task()
        self._subscriptions.add(subscription)
        if self._guard is None:
            self._guard = asyncio.ensure_future(self._watch())

    def _leave(self, subscription: EventSubscription) -> None:
        self._subscriptions.discard(subscription)
        if not self._subscriptions and self._guard is not None:
            self._guard.cancel()
            self._guard = None

    async def _watch(self) -> None:
        """End subscriptions whose key is no longer valid or whose client has left."""
        while True:
            await asyncio.sleep(CHECK_EVERY)
            verdicts: dict[str | None, Refused | None] = {}
            for subscription in list(self._subscriptions):
                if subscription.secret not in verdicts:
                    verdicts[subscription.secret] = verdict(subscription.check)
                refused = verdicts[subscription.secret]
                if refused is not None or subscription.gone():
                    self._end(subscription, refused)

    def _end(self, subscription: EventSubscription, refused: Refused | None) -> None:
        if subscription.ended.is_set():
            return
        subscription.refused = refused
        subscription.ended.set()
        asyncio.get_running_loop().call_later(GRACE, self._cancel, subscription)

    def _cancel(self, subscription: EventSubscription) -> None:
        """Cancel the task of an ended subscription that still waits for its client to read, or for an answer."""
        if subscription in self._subscriptions and subscription.task is not None:
            subscription.task.cancel()


async def _pause(ended: asyncio.Event) -> None:
    """Wait for `INTERVAL`, or until the subscription has ended."""
    try:
        await asyncio.wait_for(ended.wait(), INTERVAL)
    except TimeoutError:
        return
