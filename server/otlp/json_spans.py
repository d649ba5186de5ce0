"""Requests in JSON: ids in hex, names in lowerCamelCase, enums as integers; unknown members are ignored.

Protobuf's own tools write the same messages with ids in base64 and enums by name: those are read, too. No id is both.
"""

from base64 import b64decode
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
import numpy as np
from msgspec import Raw, Struct

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
from server.otlp.values import CUT, MAX_VALUE, UNREADABLE, Items, Pairs, Value, composed, cut_name, cut_text, number_of


class _Resource(Struct, gc=False):
    attributes: list[Raw] | None = None


class _Scope(Struct, gc=False):
    name: str | None = None
    version: str | None = None
    attributes: list[Raw] | None = None


class _ScopeSpans(Struct, gc=False, rename="camel"):
    scope: _Scope | None = None
    spans: list[Raw] | None = None


class _ResourceSpans(Struct, gc=False, rename="camel"):
    resource: _Resource | None = None
    scope_spans: list[_ScopeSpans] | None = None


class _Request(Struct, gc=False, rename="camel"):
    resource_spans: list[_ResourceSpans] | None = None


class _Status(Struct, gc=False):
    code: int | str | None = None
    message: str | None = None


class _Event(Struct, gc=False, rename="camel"):
    time_unix_nano: int | str | None = None
    name: str | None = None
    attributes: list[Raw] | None = None


class _Span(Struct, gc=False, rename="camel"):
    trace_id: str | None = None
    span_id: str | None = None
    parent_span_id: str | None = None
    name: str | None = None
    start_time_unix_nano: int | str | None = None
    end_time_unix_nano: int | str | None = None
    attributes: list[Raw] | None = None
    events: list[Raw] | None = None
    status: _Status | None = None
    flags: int | None = None


class _Array(Struct, gc=False):
    values: list[Raw] | None = None


class _Any(Struct, gc=False, rename="camel"):
    string_value: str | None = None
    bool_value: bool | None = None
    int_value: int | str | None = None
    double_value: float | str | None = None
    array_value: _Array | None = None
    kvlist_value: _Array | None = None
    bytes_value: str | None = None


_NOTHING: Final = Raw(b"null")
_UNREADABLE: Final = Raw(msgspec.json.encode({"stringValue": UNREADABLE}))


class _KeyValue(Struct, gc=False):
    key: str = ""
    value: Raw = _NOTHING


_decode_request = msgspec.json.Decoder(_Request).decode
_decode_span = msgspec.json.Decoder(_Span).decode
_decode_event = msgspec.json.Decoder(_Event).decode
_decode_any = msgspec.json.Decoder(_Any | None).decode
_decode_pair = msgspec.json.Decoder(_KeyValue).decode


def open_request(body: bytes) -> SpanRequest:
    """Open the body of a request, not yet its spans. Raises `BadRequest`. Blocks for some 30 ms at worst."""
    try:
        try:
            request = _decode_request(body)
        except RecursionError:
            request = _decode_request(shallow(body, MAX_NESTING))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"The body is not an ExportTraceServiceRequest in JSON: {error}") from None
    groups = []
    for resource in request.resource_spans or ():
        attributes = _attributes(resource.resource.attributes if resource.resource else None)
        for each in resource.scope_spans or ():
            scope = each.scope or _NO_SCOPE
            origin = Origin(
                attributes, cut_text(scope.name or ""), cut_text(scope.version or ""), _attributes(scope.attributes)
            )
            groups.append(SpanGroup(origin, each.spans or ()))
    return SpanRequest(groups, read, "json")


_NO_SCOPE: Final = _Scope()
MAX_NESTING: Final = 400
"""Lists and objects in each other that are decoded: more than those of values that are kept."""


def shallow(body: bytes, limit: int) -> bytes:
    """A JSON text in which null stands for what is nested deeper than `limit`, so that one hostile value costs no
    other. Linear, without recursion; takes some ten times the memory of the text."""
    # With escapes blanked, every quote that is left begins or ends a string.
    plain = body.replace(b"\\\\", b"  ").replace(b'\\"', b"  ") if b"\\" in body else body
    every = np.frombuffer(plain, np.uint8)
    marks = np.flatnonzero((every == 0x22) | (every == 0x5B) | (every == 0x5D) | (every == 0x7B) | (every == 0x7D))
    kinds = every[marks]
    outside = np.cumsum(kinds == 0x22, dtype=np.int32) & 1 == 0
    brackets = outside & (kinds != 0x22)
    places, kinds = marks[brackets], kinds[brackets]
    opens = (kinds == 0x5B) | (kinds == 0x7B)
    depth = np.cumsum(np.where(opens, 1, -1).astype(np.int32))
    begins = places[opens & (depth == limit + 1)].tolist()
    ends = places[~opens & (depth == limit)].tolist()
    parts: list[bytes] = []
    at = 0
    for begin, end in zip(begins, ends, strict=False):
        parts += body[at:begin], b"null"
        at = end + 1
    return b"".join([*parts, body[at:]])


def read(raw: Raw) -> Span:
    """Read a span. Raises `BadSpan`."""
    try:
        span = _decode_span(raw)
        start, end = int(span.start_time_unix_nano or 0), int(span.end_time_unix_nano or 0)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadSpan("unreadable", f"A span is not one: {error}") from None
    trace_id, span_id = _id(span.trace_id), _id(span.span_id)
    check_ids(trace_id, span_id)
    check_times(start)
    status = span.status or _NO_STATUS
    return Span(
        trace_id,
        span_id,
        parent_of(_id(span.parent_span_id)),
        cut_text(span.name or ""),
        start,
        end,
        _attributes(span.attributes),
        status.code in _ERRORS,
        cut_text(status.message or ""),
        span.flags or 0,
        list(_events(span.events[:MAX_EVENTS])) if span.events else (),
    )


_NO_STATUS: Final = _Status()
_ERRORS: Final = (ERROR, "STATUS_CODE_ERROR")


def _id(text: str | None) -> bytes:
    """Bytes of an id in hex, or in base64 with its padding; none for what is neither."""
    try:
        if not text:
            return b""
        return b64decode(text, validate=True) if text[-1] == "=" else bytes.fromhex(text)
    except ValueError:
        return b""


def _events(raws: Sequence[Raw]) -> Iterator[SpanEvent]:
    for raw in raws:
        try:
            event = _decode_event(raw)
            at = int(event.time_unix_nano or 0)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            continue  # it is information: the span is worth more than why this is damaged
        yield SpanEvent(cut_text(event.name or ""), at, _attributes(event.attributes))


def _attributes(raws: Sequence[Raw] | None) -> dict[str, Value]:
    found: dict[str, Value] = {}
    if raws and len(raws) > MAX_ATTRIBUTES:
        return {**_attributes(raws[:MAX_ATTRIBUTES]), CUT: f"{len(raws)} attributes"}
    for raw in raws or ():
        name, inner = _pair(raw)
        value = _open(inner)
        found[name] = composed(value, _open) if isinstance(value, Items | Pairs) else value
    return found


def _pair(raw: Raw) -> tuple[str, Raw]:
    try:
        pair = _decode_pair(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return UNREADABLE, _UNREADABLE
    return cut_name(pair.key), pair.value


def _open(raw: Raw) -> Any:
    """An `AnyValue` as a scalar, or what is opened further by `composed`."""
    try:
        found = _decode_any(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return UNREADABLE
    if found is None:
        return None
    if found.string_value is not None:
        return cut_text(found.string_value)
    if found.int_value is not None:
        return _whole(found.int_value)
    if found.bool_value is not None:
        return found.bool_value
    if found.double_value is not None:
        return number_of(found.double_value) if isinstance(found.double_value, float) else found.double_value
    if found.array_value is not None:
        return Items(found.array_value.values or [])
    if found.kvlist_value is not None:
        raws = found.kvlist_value.values or []
        return Pairs(map(_pair, raws), len(raws))
    return None if found.bytes_value is None else _base64(found.bytes_value)


def _whole(value: int | str) -> int | str:
    """A number that may be written as text."""
    if isinstance(value, str):
        try:
            return int(value) if len(value) <= 20 else UNREADABLE
        except ValueError:
            return UNREADABLE
    return value


def _base64(text: str) -> str:
    if len(text) <= MAX_VALUE:
        return text
    try:
        size = len(b64decode(text))
    except ValueError:
        return UNREADABLE
    return f"{text[:MAX_VALUE]}… [cut: {size} bytes]"
