"""Spans as the mapping sees them, whatever encoding they came in."""

from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, NamedTuple

from msgspec import Struct

from server.otlp.values import Value

Encoding = Literal["protobuf", "json"]
"""Of a request and of its answer."""

BadReason = Literal["no_ids", "bad_time", "unreadable"]
"""Why a span cannot be an event."""

TRACE_ID: Final = 16
SPAN_ID: Final = 8
MAX_ATTRIBUTES: Final = 32_768
"""Attributes of one thing that are looked at: more of them have no room in an event."""
MAX_EVENTS: Final = 128
"""Events of a span that are looked at."""
IS_REMOTE: Final = 0x200
"""`SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK`: the span's parent is in another process."""
MAX_TIME: Final = 2**64
"""Nanoseconds since the epoch that no time has: the year 2554."""
ERROR: Final = 2
"""`STATUS_CODE_ERROR`."""


class BadSpan(ValueError):
    """A span that cannot be an event; its neighbours can."""

    def __init__(self, reason: BadReason, message: str) -> None:
        self.reason: BadReason = reason
        super().__init__(message)


class BadRequest(ValueError):
    """A body that is no request."""


class SpanEvent(NamedTuple):
    """Something that happened in a span."""

    name: str
    at: int
    """Nanoseconds since the epoch."""
    attributes: dict[str, Value]


class Span(Struct, gc=False):
    """A span that can be an event."""

    trace_id: bytes
    span_id: bytes
    parent_id: bytes
    """Empty: it has none."""
    name: str
    start: int
    """Nanoseconds since the epoch."""
    end: int
    attributes: dict[str, Value]
    is_error: bool
    message: str
    """Of its status."""
    flags: int
    events: Sequence[SpanEvent]


class Origin(Struct, gc=False):
    """Where spans are from: a resource, and a scope of instrumentation in it."""

    resource: dict[str, Value]
    scope: str
    version: str
    attributes: dict[str, Value]


class SpanGroup(NamedTuple):
    """The spans of one scope, not read yet."""

    origin: Origin
    spans: Sequence[Any]


class SpanRequest(NamedTuple):
    """A request whose spans have not been read."""

    groups: list[SpanGroup]
    read: Callable[[Any], Span]
    """Raises `BadSpan`."""
    encoding: Encoding

    def __len__(self) -> int:
        return sum(len(group.spans) for group in self.groups)


def check_times(start: int) -> None:
    """Raise `BadSpan` for a span whose start is no instant."""
    if not 0 < start < MAX_TIME:
        raise BadSpan("bad_time", "start_time_unix_nano is missing, or no number of 64 bits")


def check_ids(trace_id: bytes, span_id: bytes) -> None:
    """Raise `BadSpan` for a span without ids."""
    if len(trace_id) != TRACE_ID or len(span_id) != SPAN_ID or not (any(trace_id) and any(span_id)):
        raise BadSpan("no_ids", f"trace_id must have {TRACE_ID} bytes and span_id {SPAN_ID}, not all of them zero")


def parent_of(parent_id: bytes) -> bytes:
    """The id of a span's parent; empty: it has none."""
    return parent_id if any(parent_id) else b""
