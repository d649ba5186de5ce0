"""Requests in protobuf, opened as far as they are needed (`spans.proto`)."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

from google.protobuf.message import DecodeError

from protos.spendstream.otlp.v1 import spans_pb2 as pb
from server.otlp.spans import (
    ERROR,
    MAX_ATTRIBUTES,
    MAX_EVENTS,
    BadRequest,
    BadSpan,
    Origin,
    Span,
    SpanEvent,
    SpanGroup,
    SpanRequest,
    check_ids,
    check_times,
    parent_of,
)
from server.otlp.values import CUT, UNREADABLE, Items, Pairs, Value, base64_of, composed, name_of, number_of, text_of

SHORT: Final = 96
"""Bytes of an attribute that is remembered once it is read: most of a batch's are the same in all of its spans."""
MAX_REMEMBERED: Final = 8192

_remembered: dict[bytes, tuple[str, Value]] = {}


def open_request(body: bytes) -> SpanRequest:
    """Open the body of a request, not yet its spans. Raises `BadRequest`. Blocks for some 30 ms at worst."""
    try:
        request = pb.ExportRequest.FromString(body)
    except DecodeError:
        raise BadRequest("The body is not an ExportTraceServiceRequest in protobuf") from None
    groups = []
    for resource in request.resource_spans:
        attributes = attributes_of(resource.resource.attributes)
        for each in resource.scope_spans:
            scope = each.scope
            own = attributes_of(scope.attributes)
            groups.append(SpanGroup(Origin(attributes, text_of(scope.name), text_of(scope.version), own), each.spans))
    return SpanRequest(groups, read, "protobuf")


def read(raw: bytes) -> Span:
    """Read a span. Raises `BadSpan`."""
    try:
        span = pb.Span.FromString(raw)
    except DecodeError:
        raise BadSpan("unreadable", "A span is not encoded as one") from None
    trace_id, span_id, start = span.trace_id, span.span_id, span.start_time_unix_nano
    check_ids(trace_id, span_id)
    check_times(start)
    parent_id = span.parent_span_id
    has_status = span.HasField("status")
    events = span.events
    return Span(
        trace_id,
        span_id,
        parent_of(parent_id) if parent_id else b"",
        text_of(span.name),
        start,
        span.end_time_unix_nano,
        attributes_of(span.attributes),
        has_status and span.status.code == ERROR,
        text_of(span.status.message) if has_status else "",
        span.flags,
        list(_events(events[:MAX_EVENTS])) if events else (),
    )


def _events(raws: Sequence[bytes]) -> Iterator[SpanEvent]:
    for raw in raws:
        try:
            event = pb.Event.FromString(raw)
        except DecodeError:
            continue  # it is information: the span is worth more than why this is damaged
        yield SpanEvent(text_of(event.name), event.time_unix_nano, attributes_of(event.attributes))


def attributes_of(raws: Sequence[bytes]) -> dict[str, Value]:
    """Attributes by name; of several of one name the last counts."""
    if len(raws) > MAX_ATTRIBUTES:
        return {**attributes_of(raws[:MAX_ATTRIBUTES]), CUT: f"{len(raws)} attributes"}
    found = {}
    for raw in raws:
        pair = _remembered.get(raw)
        if pair is None:
            pair = _attribute(raw)
            if len(raw) <= SHORT:
                if len(_remembered) >= MAX_REMEMBERED:
                    _remembered.clear()
                _remembered[raw] = pair
        found[pair[0]] = pair[1]
    return found


def _attribute(raw: bytes) -> tuple[str, Value]:
    """Name and value of a `KeyValue`: nearly all are a short name and a text, whose bytes are cut here; protobuf's own
    decoder takes three times as long."""
    size = len(raw)
    if size > 5 and raw[0] == 0x0A and raw[1] < 0x80:
        at = raw[1] + 2
        if at + 4 <= size and raw[at] == 0x12:
            inner = at + 2
            if raw[at + 1] >= 0x80:
                inner += 1
            if raw[inner - 1] < 0x80 and _length(raw, at + 1) == size - inner and raw[inner] == 0x0A:
                start = inner + 2 if raw[inner + 1] < 0x80 else inner + 3
                if start <= size and raw[start - 1] < 0x80 and _length(raw, inner + 1) == size - start:
                    return raw[2:at].decode("utf-8", "replace"), text_of(raw[start:])
    return _unusual(raw)


def _length(raw: bytes, at: int) -> int:
    """A length of one or two bytes."""
    first = raw[at]
    return first if first < 0x80 else first & 0x7F | raw[at + 1] << 7


def _unusual(raw: bytes) -> tuple[str, Value]:
    try:
        pair = pb.KeyValue.FromString(raw)
    except DecodeError:
        return UNREADABLE, UNREADABLE
    return name_of(pair.key), value_of(pair.value)


def value_of(raw: bytes) -> Value:
    """An `AnyValue`."""
    value = _open(raw)
    return composed(value, _open) if isinstance(value, Items | Pairs) else value


def _open(raw: bytes) -> Any:
    """An `AnyValue` as a scalar, or what is opened further by `composed`."""
    try:
        found = pb.AnyValue.FromString(raw)
        kind = found.WhichOneof("value")
        match kind:
            case "string_value":
                return text_of(found.string_value)
            case "int_value":
                return found.int_value
            case "bool_value":
                return found.bool_value
            case "double_value":
                return number_of(found.double_value)
            case "array_value":
                return Items(list(pb.ArrayValue.FromString(found.array_value).values))
            case "kvlist_value":
                raws = pb.KeyValueList.FromString(found.kvlist_value).values
                return Pairs(map(_pair, raws), len(raws))
            case "bytes_value":
                return base64_of(found.bytes_value)
            case None:
                return None
    except DecodeError:
        return UNREADABLE


def _pair(raw: bytes) -> tuple[str, Any]:
    try:
        pair = pb.KeyValue.FromString(raw)
    except DecodeError:
        return UNREADABLE, b""
    return name_of(pair.key), pair.value
