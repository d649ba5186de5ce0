"""Which function answers which question."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from processor.event_store.id_index import SegmentIndex
from processor.event_store.manifest import Segment
from server.errors import Refused
from server.explore.engine import Engine
from server.explore.events import answer_event, answer_events
from server.explore.metrics import answer_metrics
from server.explore.new_events import answer_new_events
from server.explore.prompts import answer_prompts
from server.explore.questions import (
    EventQuestion,
    EventsQuestion,
    MetricsQuestion,
    NewEventsQuestion,
    PromptsQuestion,
    Question,
    SessionQuestion,
    SessionsQuestion,
    TraceQuestion,
    TracesQuestion,
)
from server.explore.segment_files import SegmentIds
from server.explore.sessions import answer_session, answer_sessions
from server.explore.snapshot import Snapshot
from server.explore.trace_detail import answer_trace, trace_chunks
from server.explore.traces import answer_traces

_ANSWERS: Final[dict[type[Any], Callable[[Engine, Snapshot, Any], bytes]]] = {
    EventsQuestion: lambda engine, snapshot, question: answer_events(snapshot, question),
    EventQuestion: lambda engine, snapshot, question: answer_event(snapshot, question),
    NewEventsQuestion: lambda engine, snapshot, question: answer_new_events(snapshot, question),
    TracesQuestion: lambda engine, snapshot, question: answer_traces(snapshot, question),
    TraceQuestion: lambda engine, snapshot, question: _trace(snapshot, question),
    SessionsQuestion: lambda engine, snapshot, question: answer_sessions(snapshot, question),
    SessionQuestion: lambda engine, snapshot, question: answer_session(snapshot, question),
    PromptsQuestion: lambda engine, snapshot, question: answer_prompts(snapshot, question),
    MetricsQuestion: lambda engine, snapshot, question: answer_metrics(snapshot, question),
}

PIECE: Final = 960 * 1024
"""Bytes of JSON in a piece of a trace. As a message, which has no names of fields, a piece is smaller."""

IDS: Final = ("event_id", "trace_id", "session_id")


def answer(engine: Engine, snapshot: Snapshot, question: Question) -> bytes:
    """Return the JSON of the answer; blocks. Raises `Refused`, `Stopped`, `SegmentGone`."""
    found = _ANSWERS.get(type(question))
    if found is None:
        raise Refused("not_found", "This server does not answer that yet")
    return found(engine, snapshot, question)


def _trace(snapshot: Snapshot, question: TraceQuestion) -> bytes:
    if question.format == "pieces":
        return b"\n".join(trace_chunks(snapshot, question, PIECE))
    return answer_trace(snapshot, question)


def names_one(question: Question) -> bool:
    """Return whether a list is of one event, trace or session, so that an index says where its rows are."""
    filters = getattr(question, "filters", None)
    return filters is not None and any(name in filters.equal and None not in filters.equal[name] for name in IDS)


def open_index(path: Path, segment: Segment) -> SegmentIds:
    """Open the id index of a segment. Raises `OSError`, also where it is the sound one of another segment."""
    index = SegmentIndex(path)
    index.check(segment.index_bytes, segment.index_digest)
    return index
