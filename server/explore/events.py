"""Single events: a page of a list, and one by its id."""

from typing import Annotated, Any

from msgspec import Meta, Struct

from server.errors import Refused
from server.explore.cursor import stamped, walk
from server.explore.event_json import MEMBERS, encode_events, events_of
from server.explore.questions import EventQuestion, EventsQuestion, Filters
from server.explore.row_scan import EventPlace, FoundRow, RowScan
from server.explore.snapshot import ALWAYS, Snapshot

_Number = Annotated[int, Meta(ge=-(2**62), le=2**62)]
_Count = Annotated[int, Meta(ge=0, le=2**62)]


class _Place(Struct, array_like=True):
    """Where a page ends, and the total of the walk, which is counted once."""

    timestamp: _Number
    partition: _Number
    offset: _Number
    index: _Number
    total: _Count | None

    @property
    def key(self) -> EventPlace:
        """The last event of the page."""
        return EventPlace(self.timestamp, self.partition, self.offset, self.index)


def answer_events(snapshot: Snapshot, question: EventsQuestion) -> bytes:
    """Return the JSON of a page of events.

    Raises `Refused`: bad_request for a cursor of another question, query_too_heavy; `Stopped`, `SegmentGone`.
    """
    step = walk(snapshot, question)
    place = step.place_as(_Place)
    after = None if place is None else place.key
    with RowScan(step.snapshot, question.project, question.filters, step.times) as scan:
        found = scan.first(question.order, question.limit + 1, after)
        page, is_last = found[: question.limit], len(found) <= question.limit
        total = place.total if place is not None else len(found) if is_last else scan.count()
        cursor = None if is_last else step.cursor((*page[-1].key, total))
        events = _events(scan, page, extra=question.extra)
    return step.answer({"events": encode_events(events), "nextCursor": cursor, "total": total})


def _events(scan: RowScan, found: list[FoundRow], *, extra: bool = True) -> list[dict[str, Any]]:
    if not found:
        return []
    columns = [name for name in MEMBERS if extra or name != "extra"]
    return events_of(scan.table(found, columns), extra=extra)


def answer_event(snapshot: Snapshot, question: EventQuestion) -> bytes:
    """Return the JSON of one event, whenever it was.

    Raises `Refused`: not_found; `Stopped`, `SegmentGone`.
    """
    filters = Filters(equal={"event_id": (question.event_id,)}, kinds="all")
    with RowScan(snapshot, question.project, filters, ALWAYS) as scan:
        found = scan.first("asc", 1)
        if not found:
            raise Refused("not_found", "This project has no such event, or it is not in the event store yet")
        (event,) = _events(scan, found)
    return stamped(snapshot, event)
