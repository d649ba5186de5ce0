"""`GET /v1/traces/{trace_id}`: the events of one trace in the order of their tree, flat or nested.

Events become JSON row group by row group, before they are ordered, so that a trace of 50,000 spans takes little more
memory than its answer.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

from server.errors import Refused
from server.explore.event_json import MEMBERS
from server.explore.event_lines import event_lines
from server.explore.nested_calls import nested_model_calls
from server.explore.questions import Filters, TraceQuestion
from server.explore.row_scan import FoundRow, RowScan
from server.explore.snapshot import ALWAYS, Snapshot
from server.explore.summaries import trace_summaries
from server.explore.tree import TreePlace, TreeSpan, arrange

MOST_SPANS: Final = 50_000
"""Events of an answer; of a longer trace those that started first."""
MOST_DEPTH: Final = 100
"""Of a nested answer: readers of JSON have limits of their own."""
MOST_BYTES: Final = 128 << 20
"""Of the events of an answer."""

_PLACE: Final = ("log_partition", "log_offset", "log_index")
"""Columns that say which of two events that were received at the same time arrived first."""

_ROWS: Final = 2048
"""Events that are made into JSON at a time."""


class Trace(Struct, frozen=True):
    """One trace, arranged."""

    summary: dict[str, Any]
    events: list[bytes]
    """The JSON object of each event, without the brace that ends it."""
    places: list[TreePlace]
    nested: set[int]
    """The places of calls that repeat one below them (`nested_calls`)."""

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
    rest = {"truncated": trace.is_truncated, "total": trace.total, **snapshot.stamp()}
    return b"".join(
        [
            b'{"trace":',
            msgspec.json.encode(trace.summary),
            *(_nested(trace) if nested else _flat(trace)),
            b"],",
            msgspec.json.encode(rest)[1:],
        ]
    )


def trace_chunks(snapshot: Snapshot, question: TraceQuestion, most: int) -> Iterator[bytes]:
    """Yield the same in pieces, each a JSON object of about `most` bytes with some of the flat `spans`.

    The first has `trace`, `truncated` and `total`, too. A piece is larger only where one event is. Raises as
    `answer_trace`, before the first piece.
    """
    trace = read_trace(snapshot, question)
    head = {"trace": trace.summary, "truncated": trace.is_truncated, "total": trace.total, **snapshot.stamp()}
    before = msgspec.json.encode(head)[:-1] + b',"spans":['
    parts: list[bytes] = []
    size = len(before)
    for number, place in enumerate(trace.places):
        event, rest = trace.events[place.span], _rest(trace, number)
        if parts and size + len(event) + len(rest) > most:
            yield b"".join([before, *parts[:-1], b"]}"])
            before, parts, size = b'{"spans":[', [], 0
        parts += event, rest, b","
        size += len(event) + len(rest) + 1
    yield b"".join([before, *parts[:-1], b"]}"])


def _flat(trace: Trace) -> Iterator[bytes]:
    """Yield the list of spans, in depth-first order."""
    comma = b',"spans":['
    for number, place in enumerate(trace.places):
        yield comma
        yield trace.events[place.span]
        yield _rest(trace, number)
        comma = b","


def _rest(trace: Trace, number: int) -> bytes:
    """Return what stands behind the members of an event."""
    place = trace.places[number]
    parent = b"null" if place.parent is None else b"%d" % place.parent
    return b',"parent":%b,"depth":%d%b}' % (parent, place.depth, _marks(trace, number))


def _marks(trace: Trace, number: int) -> bytes:
    flaw = trace.places[number].flaw
    found = b"" if flaw is None else b',"%b":true' % flaw.encode()
    return found + b',"nested_model_call":true' if number in trace.nested else found


def _nested(trace: Trace) -> Iterator[bytes]:
    """Yield the list of roots, each with its children."""
    yield b',"roots":['
    depth = -1
    for number, place in enumerate(trace.places):
        if place.depth <= depth:  # it is no child of the one before, which ends, and whatever is around both
            yield b"]}" * (depth - place.depth + 1)
            yield b","
        depth = place.depth
        yield trace.events[place.span]
        yield b',"depth":%d%b,"children":[' % (depth, _marks(trace, number))
    yield b"]}" * (depth + 1)


# --- reading ---------------------------------------------------------------------------------------------------------


def read_trace(snapshot: Snapshot, question: TraceQuestion) -> Trace:
    """Return a trace. Raises `Refused`: not_found, query_too_heavy; `Stopped`, `SegmentGone`."""
    summary = trace_summaries(snapshot, question.project, [question.trace_id]).get(question.trace_id)
    if summary is None:
        raise Refused("not_found", "This project has no such trace, or it is not in the event store yet")
    filters = Filters(equal={"trace_id": (question.trace_id,)}, kinds="all")
    members = [name for name in MEMBERS if question.extra or name != "extra"]
    with RowScan(snapshot, question.project, filters, ALWAYS) as scan:
        spans: list[TreeSpan] = []
        kinds: list[str] = []
        events: list[bytes] = []
        size = 0
        for table in _tables(scan, summary["spans"], [*members, *_PLACE]):
            for part, part_kinds, lines in _read(snapshot, table, question.extra):
                spans += part
                kinds += part_kinds
                events += lines
                size += sum(map(len, lines))
                if size > MOST_BYTES:
                    raise _too_large()
    places = arrange(spans)
    nested = nested_model_calls(events, kinds, places) if question.extra else set()
    return Trace(summary, events, places, nested)


def _tables(scan: RowScan, total: int, columns: Sequence[str]) -> Iterator[Any]:
    """Yield the rows that are answered, those of each row group; if they are not all, those that started first."""
    if total > MOST_SPANS:
        for rows in _by_group(scan.first("asc", MOST_SPANS)):
            yield scan.table(rows, columns)
        return
    for span in scan.open_all():
        table = scan.matching(span, columns)
        if len(table):
            yield table


def _by_group(found: Sequence[FoundRow]) -> list[list[FoundRow]]:
    """Return rows by the row group that they are in."""
    groups: dict[tuple[str, int], list[FoundRow]] = {}
    for each in found:
        groups.setdefault((each.piece.segment.id, each.group), []).append(each)
    return [*groups.values()]


def _read(snapshot: Snapshot, table: Any, extra: bool) -> Iterator[tuple[Iterable[TreeSpan], list[str], list[bytes]]]:
    """Yield rows, some at a time: what their places depend on, and their JSON."""
    for start in range(0, len(table), _ROWS):
        snapshot.engine.check()
        part = table.slice(start, _ROWS)
        starts, received = (part[name].cast("int64").to_pylist() for name in ("timestamp", "received_at"))
        arrivals = zip(received, *(part[name].to_pylist() for name in _PLACE), strict=True)
        spans = map(TreeSpan, part["span_id"].to_pylist(), part["parent_span_id"].to_pylist(), starts, arrivals)
        yield spans, part["kind"].to_pylist(), [line[:-1] for line in event_lines(part, extra=extra)]


def _too_large() -> Refused:
    return Refused(
        "query_too_heavy",
        f"The events of the trace have more than {MOST_BYTES >> 20} MiB; ask with extra=none, or for pages of "
        "/v1/events with its trace_id",
    )
