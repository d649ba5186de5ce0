"""A trace as messages of `spendstream.v1`: the lines of its answer in pieces, in responses of bounded size."""

from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct, field

from processor.core.events.fields import FIELDS, Kind
from protos.spendstream.v1 import ingest_pb2, usage_pb2

MAX_RESPONSE: Final = 1024 * 1024
"""Most bytes of a response; an event has less."""
_FRAME: Final = 6
"""Bytes around a span in a response."""

_NULL: Final = Raw(b"null")
_TYPES: Final[dict[Kind, Any]] = {
    "uuid": str,
    "text": str,
    "timestamp": str,
    "choice": str,
    "count": int,
    "millis": float,
    "flag": bool,
    "tags": dict[str, str],
    "strings": list[str],
    "scores": dict[str, float],
}
_Fields: Final[Any] = msgspec.defstruct(
    "_Fields",
    [
        (each.name, Raw, _NULL) if each.kind == "cost" else (each.name, _TYPES[each.kind] | None, None)
        for each in FIELDS
    ],
)
"""The fields of an event, as answers have them; the cost stays text."""


class _Place(Struct):
    """The members of a span beside the fields of its event."""

    received_at: str
    depth: int
    parent: int | None = None
    orphan: bool = False
    cycle: bool = False
    nested_model_call: bool = False
    cost_source: str | None = None
    extra: dict[str, Raw] = {}


class _Summary(Struct):
    """The summary of a trace."""

    trace_id: str
    name: str | None
    start: str
    end: str
    duration_ms: float
    spans: int
    calls: int
    errors: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cost_usd: Raw
    user_id: str | None
    session_id: str | None
    environment: str | None
    models: list[str]
    complete: bool


class _Piece(Struct):
    """A line of the answer: some spans; the first line has the other members, too."""

    spans: list[Raw]
    trace: _Summary | None = None
    truncated: bool = False
    total: int = 0
    as_of: str = field(default="", name="asOf")
    lag: float = field(default=0.0, name="lagSeconds")


_decode_piece: Final = msgspec.json.Decoder(_Piece).decode
_decode_fields: Final = msgspec.json.Decoder(_Fields).decode
_decode_place: Final = msgspec.json.Decoder(_Place).decode


async def responses(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the serialized responses to the lines of the answer, whose pieces may end anywhere."""
    rest: list[bytes] = []
    async for chunk in chunks:
        *lines, last = chunk.split(b"\n")
        for line in lines:
            for each in cut(b"".join([*rest, line])):
                yield each
            rest.clear()
        rest.append(last)
    for each in cut(b"".join(rest)):
        yield each


def cut(line: bytes) -> Iterator[bytes]:
    """Yield one line of the answer as serialized responses, of at most `MAX_RESPONSE` bytes each.

    Most lines are one: a message has no names of fields, but some values take more room in it than as JSON.
    """
    found = _decode_piece(line)
    response = usage_pb2.GetTraceResponse(
        trace=None if found.trace is None else _summary(found.trace),
        truncated=found.truncated,
        total=found.total,
        as_of=found.as_of,
        lag_seconds=found.lag,
    )
    size = response.ByteSize()
    for raw in found.spans:
        made = span(bytes(raw))
        more = made.ByteSize() + _FRAME
        if size + more > MAX_RESPONSE and response.spans:
            yield response.SerializeToString()
            response, size = usage_pb2.GetTraceResponse(), 0
        response.spans.append(made)
        size += more
    yield response.SerializeToString()


def span(text: bytes) -> usage_pb2.TraceSpan:
    """Return one span of the flat answer as a message."""
    place = _decode_place(text)
    return usage_pb2.TraceSpan(
        event=_event(text, place.extra),
        parent=place.parent,
        depth=place.depth,
        orphan=place.orphan,
        cycle=place.cycle,
        received_at=place.received_at,
        cost_source=place.cost_source,
        nested_model_call=place.nested_model_call,
    )


def _event(text: bytes, extra: dict[str, Raw]) -> ingest_pb2.Event:
    fields = msgspec.structs.asdict(_decode_fields(text))
    cost = bytes(fields.pop("cost_usd"))
    if cost != b"null":
        fields["cost_usd"] = cost.decode()  # every digit, as the answer has it
    known = {name: value for name, value in fields.items() if value is not None}
    return ingest_pb2.Event(**known, extra_json={name: bytes(value).decode() for name, value in extra.items()})


def _summary(found: _Summary) -> usage_pb2.TraceSummary:
    members = msgspec.structs.asdict(found)
    return usage_pb2.TraceSummary(**{**members, "cost_usd": bytes(found.cost_usd).decode()})
