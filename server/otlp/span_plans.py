"""Plans: how the compiled kernel makes the lines of all spans of one shape (`span_lines.pxi`).

The shape of a span is the names of its attributes in their order, its own name, its status, and the values of those
attributes that decide what becomes of it (`MEANING`). What of an event depends on nothing else is taken from what the
twin, `span_event`, makes of one such span; a plan says where the rest goes: ids, times, counts of tokens, the texts
that name a user, and the values of attributes that are only copied.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct

from server.otlp.attribute_names import TABLE, Target
from server.otlp.content import Content
from server.otlp.extra import encode
from server.otlp.kinds import DropReason, Kind, Which, drop_reason, is_kept, kind_of
from server.otlp.span_event import TOKENS, Context, Description, Reading, describe, pack, reading_of, usage_source
from server.otlp.spans import Span
from server.otlp.tokens import stands_beside

COPIED: Final = 0
DECIDES: Final = 1
COUNTED: Final = 2
NAMED: Final = 3
NAMES: Final[tuple[Target, ...]] = ("user_id", "session_id", "prompt_hash")
"""Fields that are a short text as it was sent, whatever it says."""
MAX_NAMED: Final = 128
"""Bytes of such a text: the kernel's bound, a longer one decides."""

MEANING: Final[dict[str, int]] = {
    name: COUNTED if row.target in TOKENS else NAMED if row.target in NAMES else DECIDES
    for row in TABLE
    for name in row.names
}
"""What the value of an attribute is to a plan. Those that are not here are copied; names of tags (`TAG_PREFIXES`)
decide."""

HEAD: Final = struct.Struct("<5i4B5Q")
STEP: Final = struct.Struct("<BI")
(
    END,
    LITERAL,
    EVENT_ID,
    TRACE_ID,
    SPAN_ID,
    PARENT,
    TIME,
    LATENCY,
    COUNT,
    VALUE,
    PIECE,
    NORMALIZED,
    MICROS_PACKED,
    COUNT_PACKED,
    TEXT_PACKED,
) = range(15)
"""Steps of a program, in the kernel's order."""
ENVIRONMENT, SDK_VERSION, RESOURCE, SCOPE = range(4)
"""Pieces of a line that a scope has (`pieces_of`)."""
NO_COUNT: Final = -1
CONSTANT: Final = -2

_FILLED: Final[dict[str, int]] = {
    "event_id": EVENT_ID,
    "trace_id": TRACE_ID,
    "span_id": SPAN_ID,
    "timestamp": TIME,
    "latency_ms": LATENCY,
}
_QUOTED: Final = frozenset({"event_id", "trace_id", "span_id", "timestamp"})
_OPTIONAL: Final = frozenset({"parent_span_id", "resource", "scope", "sent_parent_span_id", "usage_normalized"})
"""Written by steps of their own, which write nothing for what is not there."""


class Plan(Struct, frozen=True, gc=False):
    """What becomes of the spans of one shape."""

    program: bytes
    """For the kernel; empty: spans of this shape are left to the twin."""
    kind: Kind
    is_kept: bool
    drop: DropReason
    """Why, if it is not kept."""
    raw_provider: str | None
    """For prices (`Sent`)."""


LEFT_TO_THE_TWIN: Final = Plan(b"", Kind("other"), False, "other", None)


def pieces_of(context: Context) -> list[bytes]:
    """What the lines of a scope's spans have in common, for `PIECE`."""
    found = [encode(context.environment), encode(context.sdk_version), b"", b""]
    if context.json.resource is not None:
        found[RESOURCE] = b',"resource":' + bytes(context.json.resource)
    if context.json.scope is not None:
        found[SCOPE] = b',"scope":' + bytes(context.json.scope)
    return found


def plan_of(span: Span, attributes: int, context: Context, which: Which, content: Content) -> Plan:
    """The plan for spans like this one, which was sent with so many attributes. It is not proved to be right: to be
    compared with the twin before it is used."""
    if attributes != len(span.attributes):  # several of one name: it has no place of its own
        return LEFT_TO_THE_TWIN
    # Texts of its own, to be known again by their identity.
    marked = msgspec.structs.replace(context, environment=b"environment".decode(), sdk_version=b"version".decode())
    reading = reading_of(span, marked)
    if reading.usage.cache_write_1h_tokens:  # the kernel knows nothing of it
        return LEFT_TO_THE_TWIN
    kind = kind_of(reading.found, span.name)
    if not is_kept(kind, which):
        return Plan(_head(reading, marked, kind, is_kept=False), kind, False, drop_reason(span.attributes), None)
    head = _head(reading, marked, kind, is_kept=True)
    parent = span.trace_id + span.parent_id if span.parent_id else b""
    made = describe("", reading, kind, parent, marked, content, is_wrapper=False)
    program = head + _encoded((*_line(reading, marked, made), *_digest(reading, made)))
    raw_provider = made.sent[0] if made.sent is not None else None
    return Plan(program, kind, True, "other", raw_provider)


def _head(reading: Reading, context: Context, kind: Kind, *, is_kept: bool) -> bytes:
    places = {name: place for place, name in enumerate(reading.span.attributes)}
    sources: list[int] = []
    constants: list[int] = []
    for target in TOKENS:
        said, count = reading.found.get(target), getattr(reading.usage, target)
        is_sent = said is not None and type(said.value) is int
        sources.append(places[said.name] if said is not None and is_sent else NO_COUNT if count is None else CONSTANT)
        constants.append(0 if is_sent or count is None else count)
    source = usage_source(reading, context)
    flags = (
        stands_beside(source, "cache"),
        stands_beside(source, "reasoning"),
        kind.operation == "embed",
        is_kept,
    )
    return HEAD.pack(*sources, *flags, *constants)


_Step = bytes | tuple[int, int]
"""Text that is written as it is, or a step and what it is done with."""


def _encoded(steps: Iterable[_Step]) -> bytes:
    found: list[bytes] = []
    text = b""
    for step in steps:
        if isinstance(step, bytes):
            text += step
            continue
        if text:
            found.append(STEP.pack(LITERAL, len(text)) + text)
        text = b""
        found.append(STEP.pack(*step))
    return b"".join(found)


def _named(reading: Reading) -> Mapping[str, int]:
    """The places of attributes that are one of `NAMES`, and may be any text."""
    places = {name: place for place, name in enumerate(reading.span.attributes)}
    found: dict[str, int] = {}
    for target in NAMES:
        said = reading.found.get(target)
        if said is None or not isinstance(said.value, str) or "\ufffd" in said.value:  # it was no UTF-8
            continue
        if 0 < len(said.value.encode()) <= MAX_NAMED:
            found[target] = places[said.name]
    return found


def _line(reading: Reading, context: Context, made: Description) -> Iterator[_Step]:
    """The steps that write a line."""
    named = _named(reading)
    lead = b"{"
    for name, value in made.fields.items():
        if name in _OPTIONAL:
            continue
        quote = b'"' if name in _QUOTED else b""
        yield lead + encode(name) + b":" + quote
        lead = quote + b","
        if name in _FILLED:
            yield (_FILLED[name], 0)
        elif name in TOKENS:
            yield (COUNT, TOKENS.index(name))
        elif name in named:
            yield (VALUE, named[name])
        elif name == "environment" and value is context.environment:
            yield (PIECE, ENVIRONMENT)
        elif name == "sdk_version" and value is context.sdk_version:
            yield (PIECE, SDK_VERSION)
        elif name == "attributes":
            yield from _attributes(reading, value)
        else:
            yield encode(value)
        if name == "span_id":
            yield b'"'
            yield (PARENT, 0)
            lead = b","
    yield (PIECE, RESOURCE)
    yield (PIECE, SCOPE)
    yield (NORMALIZED, 0)
    yield b"}"
    yield (END, 0)


def _attributes(reading: Reading, kept: Mapping[str, Any]) -> Iterator[_Step]:
    sent = reading.span.attributes
    places = {name: place for place, name in enumerate(sent)}
    lead = b"{"
    for name, value in kept.items():
        yield lead + encode(name) + b":"
        lead = b","
        is_copied = name in places and value is sent[name]
        yield (VALUE, places[name]) if is_copied else encode(value)
    yield b"}"


def _digest(reading: Reading, made: Description) -> Iterator[_Step]:
    """The steps that write what is hashed: `Description.distinct` as MessagePack."""
    _, provider, model, operation, user, status, *counts, name = made.distinct
    named = _named(reading)
    yield pack(made.distinct)[:1]
    yield (MICROS_PACKED, 0)
    yield pack(provider) + pack(model) + pack(operation)
    yield (TEXT_PACKED, named["user_id"]) if "user_id" in named else pack(user)
    yield pack(status)
    for place, count in enumerate(counts):
        yield pack(None) if count is None else (COUNT_PACKED, place)
    yield pack(name)
    yield (END, 0)
