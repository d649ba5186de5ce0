"""`GET /v1/traces/{trace_id}`: the events of one trace in the order of their tree, flat or nested.

Events become JSON row group by row group, before they are ordered, so that a trace of 50,000 spans takes little more
memory than its answer.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

from server.errors import Refused
from server.explore.event_json import MEMBERS, events_of
from server.explore.questions import Filters, TraceQuestion
from server.explore.row_scan import Found, RowScan
from server.explore.snapshot import ALWAYS, Snapshot
from server.explore.summaries import trace_summaries
from server.explore.tree import Place, Span, arrange

MOST_SPANS: Final = 50_000
"""Events of an answer; of a longer trace those that started first."""
MOST_DEPTH: Final = 100
"""Of a nested answer: readers of JSON have limits of their own."""
MOST_BYTES: Final = 128 << 20
"""Of the events of an answer."""

_ROWS: Final = 2048
"""Events that are made into JSON at a time."""


class Trace(Struct, frozen=True):
    """One trace, arranged."""

    summary: dict[str, Any]
    events: list[bytes]
    """The JSON object of each event."""
    places: list[Place]

    @property
    def total(self) -> int:
        """All events that it has."""
        return int(self.summary["spans"])

    @property
    def is_truncated(self) -> bool:
        """Whether there are more than `MOST_SPANS`."""
        return self.total > len(self.events)


def answer_trace(snapshot: Snapshot, question: TraceQuestion) -> bytes:
    """Return the JSON of one trace.

    Raises `Refused`: not_found, too_deep for a nested one, query_too_heavy; `Stopped`, `SegmentGone`.
    """
    trace = read_trace(snapshot, question)
    nested = question.format == "tree"
    if nested and any(place.depth > MOST_DEPTH for place in trace.places):
        raise Refused("too_deep", f"The trace is deeper than {MOST_DEPTH}; ask for format=flat, which has any depth")
    parts = [b'{"trace":', msgspec.json.encode(trace.summary), b',"roots":[' if nested else b',"spans":[']
    parts += _nested(trace) if nested else [b",".join(flat_spans(trace))]
    rest = {"truncated": trace.is_truncated, "total": trace.total, **snapshot.stamp()}
    return b"".join([*parts, b"],", msgspec.json.encode(rest)[1:]])


def trace_chunks(snapshot: Snapshot, question: TraceQuestion, most: int) -> Iterator[bytes]:
    """Yield the same in pieces, each a JSON object of about `most` bytes with some of the flat `spans`.

    The first has `trace`, `truncated` and `total`, too. A piece is larger only where one event is. Raises as
    `answer_trace`, before the first piece.
    """
    trace = read_trace(snapshot, question)
    head = {"trace": trace.summary, "truncated": trace.is_truncated, "total": trace.total, **snapshot.stamp()}
    before = msgspec.json.encode(head)[:-1] + b',"spans":['
    spans: list[bytes] = []
    size = len(before)
    for span in flat_spans(trace):
        if spans and size + len(span) > most:
            yield b"".join([before, b",".join(spans), b"]}"])
            before, spans, size = b'{"spans":[', [], 0
        spans.append(span)
        size += len(span) + 1
    yield b"".join([before, b",".join(spans), b"]}"])


def read_trace(snapshot: Snapshot, question: TraceQuestion) -> Trace:
    """Return a trace. Raises `Refused`: not_found, query_too_heavy; `Stopped`, `SegmentGone`."""
    summary = trace_summaries(snapshot, question.project, [question.trace_id]).get(question.trace_id)
    if summary is None:
        raise Refused("not_found", "This project has no such trace, or it is not in the event store yet")
    filters = Filters(equal={"trace_id": (question.trace_id,)}, kinds="all")
    with RowScan(snapshot, question.project, filters, ALWAYS) as scan:
        found = scan.first("asc", MOST_SPANS)
        spans: list[Span] = []
        events: list[bytes] = []
        size = 0
        for rows in _by_group(found):
            size += _read(snapshot, scan, rows, question.extra, spans, events)
            if size > MOST_BYTES:
                raise _too_large()
    return Trace(summary, events, arrange(spans))


def _by_group(found: Sequence[Found]) -> list[list[Found]]:
    """Return rows by the row group that they are in."""
    groups: dict[tuple[str, int], list[Found]] = {}
    for each in found:
        groups.setdefault((each.piece.segment.id, each.group), []).append(each)
    return [*groups.values()]


def _read(
    snapshot: Snapshot, scan: RowScan, rows: list[Found], extra: bool, spans: list[Span], events: list[bytes]
) -> int:
    """Append the rows of one row group: what their places depend on, and their JSON. Return the bytes of it."""
    size = 0
    table = scan.table(rows, [name for name in MEMBERS if extra or name != "extra"])
    for start in range(0, len(rows), _ROWS):
        snapshot.engine.check()
        part = table.slice(start, _ROWS)
        arrivals = part["received_at"].cast("int64").to_pylist()
        for row, arrival, event in zip(rows[start:], arrivals, events_of(part, extra=extra), strict=False):
            key = row.key
            place = (arrival, key.partition, key.offset, key.number)
            spans.append(Span(event["span_id"], event.get("parent_span_id"), key.timestamp, place))
            events.append(msgspec.json.encode(event))
            size += len(events[-1])
        if size > MOST_BYTES:
            raise _too_large()
    return size


def _too_large() -> Refused:
    return Refused(
        "query_too_heavy",
        f"The events of the trace have more than {MOST_BYTES >> 20} MiB; ask with extra=none, or for pages of "
        "/v1/events with its trace_id",
    )


def flat_spans(trace: Trace) -> Iterator[bytes]:
    """Yield the JSON object of each span, in depth-first order."""
    for place in trace.places:
        parent = b"null" if place.parent is None else b"%d" % place.parent
        yield b'%b,"parent":%b,"depth":%d%b}' % (trace.events[place.span][:-1], parent, place.depth, _flaw(place))


def _flaw(place: Place) -> bytes:
    return b"" if place.flaw is None else b',"%b":true' % place.flaw.encode()


def _nested(trace: Trace) -> list[bytes]:
    """Return the pieces of the list of roots, each with its children."""
    parts: list[bytes] = []
    depth = -1
    for place in trace.places:
        if place.depth > depth:
            depth = place.depth
        else:
            parts.append(b"]}" * (depth - place.depth + 1))
            parts.append(b",")
            depth = place.depth
        parts.append(b'%b,"depth":%d%b,"children":[' % (trace.events[place.span][:-1], place.depth, _flaw(place)))
    parts.append(b"]}" * (depth + 1))
    return parts
