"""An `Explorer` over events in memory, behind the same contract suite as the real one.

It answers what the suite asks of every explorer: pages of events, one event, new events and the export, by its own
simple rules. What else it is asked gets the answer that a test has put there.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

import msgspec

from server.errors import Refused
from server.explore.explorer import Download
from server.explore.questions import (
    EventQuestion,
    EventsQuestion,
    ExportQuestion,
    Filters,
    NewEventsQuestion,
    Question,
    TraceQuestion,
)

AS_OF: Final = {"asOf": "2026-04-20T12:00:00.000Z", "lagSeconds": 0.25}

Event = dict[str, Any]

_encode = msgspec.json.Encoder(decimal_format="number").encode


class FakeExplorer:
    """Remembers what it was asked; `refuse` makes it refuse everything."""

    def __init__(self) -> None:
        self.asked: list[Question] = []
        self.refuse: Refused | None = None
        self.off: Refused | None = None
        """What `check` refuses."""
        self.events: list[tuple[str, Event]] = []
        """(project, event), in the order of arrival: the n-th stands at offset n of partition 0."""
        self.answers: dict[type, Mapping[str, Any]] = {}
        """Answers to further kinds of questions."""
        self.hold: asyncio.Event | None = None
        """Answers wait for it."""
        self.hold_export = False
        """So does the beginning of an export."""
        self.cancelled = 0
        self.rows: int | None = None
        self.chunks: list[bytes | BaseException] | None = None
        """The pieces of what is streamed; None: of an export one an event, of other answers the whole."""
        self.sent = 0
        """Pieces that were asked for."""
        self.closed = 0
        """Exports that have ended, or were left."""

    def add(self, *events: Event, project: str = "default") -> None:
        """Events become visible."""
        self.events += [(project, event) for event in events]

    def check(self) -> None:
        if self.off is not None:
            raise self.off

    async def ask(self, question: Question) -> bytes:
        self.asked.append(question)
        if self.hold is not None:
            await self._wait(self.hold)
        if self.refuse is not None:
            raise self.refuse
        if any(offset >= len(self.events) for offset in question.after.values()):
            raise Refused("not_yet_visible", "The event store does not contain that position yet", retry_after=1)
        return _encode({**self._answer(question), **AS_OF})

    async def _wait(self, hold: asyncio.Event) -> None:
        try:
            await hold.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def stream(self, question: Question) -> Download:
        if not isinstance(question, ExportQuestion):
            whole = await self.ask(question)
            return Download(self._send([whole] if self.chunks is None else self.chunks))
        self.asked.append(question)
        if self.hold is not None and self.hold_export:
            await self._wait(self.hold)
        if self.refuse is not None:
            raise self.refuse
        found = self._matching(question.project, question.filters)
        lines = [_encode(event) + b"\n" for event in found]
        rows = len(lines) if self.chunks is None else self.rows
        return Download(self._send(lines if self.chunks is None else self.chunks), rows)

    async def _send(self, chunks: list[Any]) -> AsyncGenerator[bytes, None]:
        try:
            for chunk in chunks:
                if isinstance(chunk, BaseException):
                    raise chunk
                self.sent += 1
                yield chunk
                if self.hold is not None:
                    await self.hold.wait()
        finally:
            self.closed += 1

    def _answer(self, question: Question) -> Mapping[str, Any]:
        match question:
            case EventsQuestion():
                found = self._matching(question.project, question.filters)
                ordered = found if question.order == "asc" else found[::-1]
                return {"events": ordered[: question.limit], "nextCursor": None, "total": len(found)}
            case EventQuestion():
                found = [event for event in self._of(question.project) if event["event_id"] == question.event_id]
                if not found:
                    raise Refused("not_found", "This project has no such event")
                return found[0]
            case NewEventsQuestion():
                seen = (question.position or {0: len(self.events)}).get(0, 0)
                new = [event for project, event in self.events[seen:] if project == question.project]
                matching = [event for event in new if _matches(event, question.filters)]
                skipped = max(0, len(matching) - question.limit)
                return {"events": matching[skipped:], "skipped": skipped, "position": {"0": len(self.events)}}
            case TraceQuestion(trace_id="" | "nothing"):
                raise Refused("not_found", "This project has no such trace")
            case _:
                return self.answers.get(type(question), {})

    def _of(self, project: str) -> list[Event]:
        return [event for owner, event in self.events if owner == project]

    def _matching(self, project: str, filters: Filters) -> list[Event]:
        return [event for event in self._of(project) if _matches(event, filters)]


def _matches(event: Event, filters: Filters) -> bool:
    return all(event.get(name) in values for name, values in filters.equal.items())
