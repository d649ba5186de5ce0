"""The values of a message's events that its columns do not have, field by field.

Most events are plain: every field of theirs is known. msgspec reads all plain lines of a request at once. Whatever it
does not take is decoded one by one, the slow way (`codec.decode_event`), which gives plain ones the same values.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from processor.core.clock import LAST
from processor.core.events import message, proto_event
from processor.core.events.codec import PayloadFormat, decode_event
from processor.core.events.event import PlainFields, is_of_form
from processor.core.events.fields import FIELDS, MAX_ERROR_MESSAGE, RECENT, RULES
from processor.core.events.lines import Lines
from processor.core.events.message import Message, MessageError
from processor.core.events.source import Source

TEXTS: Final = (
    "trace_id",
    "span_id",
    "parent_span_id",
    "error_code",
    "error_message",
    "finish_reason",
    "session_id",
    "prompt_hash",
    "sdk_version",
    "name",
)
MILLIS: Final = ("latency_ms", "ttft_ms")
COUNTS: Final = ("cached_tokens", "cache_write_tokens", "reasoning_tokens")
COLLECTIONS: Final = ("tags", "tools_used", "eval_scores")
VALUES: Final = (*TEXTS, *MILLIS, *COUNTS, *COLLECTIONS, "stream", "kind", "extra")
"""Fields whose values are found in the original bytes only."""

_NOT_PLAIN: Final = ("name", "cache_write_tokens", "reasoning_tokens", "extra")
"""Fields that no plain line has."""

_decode_plain = msgspec.json.Decoder(PlainFields).decode
_decode_lines = msgspec.json.Decoder(PlainFields).decode_lines
_encode = msgspec.json.Encoder().encode
_NAME: Final = next(field for field in FIELDS if field.name == "name")


class Values(Struct):
    """Values of some events, in their order."""

    columns: dict[str, list[Any]]
    """Field of `VALUES` -> the value of each event; None where there is none. `extra` is JSON text."""
    absent: list[tuple[int, str]]
    """(place, field) of counts that an event came without, though its row has a 0: only spans may."""
    free: list[int]
    """Places of spans that say that they cost 0."""

    def __len__(self) -> int:
        return len(self.columns["trace_id"])


def empty() -> Values:
    """Return the values of no event."""
    return Values({name: [] for name in VALUES}, [], [])


def read(into: Values, found: Message, kept: Sequence[bool]) -> None:
    """Add the values of the message's events that are kept. Raises `MessageError` if its bytes cannot be read."""
    start = 0
    try:
        for request, records in zip(found.requests, message.records(found), strict=True):
            chosen = kept[start : start + request.count]
            start += request.count
            if len(records) != request.count:
                raise MessageError(f"event message with {len(records)} records of a request of {request.count} events")
            if any(chosen):
                _add_request(into, request.source, records, chosen)
    except MessageError:
        raise
    except ValueError as error:  # those of faults, too
        raise MessageError(f"event message with unreadable records: {error}") from None


def _add_request(into: Values, source: Source, records: Sequence[bytes], kept: Sequence[bool]) -> None:
    plain = _plain_lines(records) if source.payload == "json" else None
    if plain is not None:
        _add_plain(into, plain if all(kept) else [event for event, is_kept in zip(plain, kept, strict=True) if is_kept])
        return
    for record, is_kept in zip(records, kept, strict=True):
        if is_kept:
            _add(into, _one(source.payload, record, source))


def _plain_lines(records: Sequence[bytes]) -> list[Any] | None:
    """Return the lines of a request if all are plain."""
    try:
        if not isinstance(records, Lines):
            return list(map(_decode_plain, records))
        events: list[Any] = _decode_lines(records.text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return events if len(events) == len(records) else None


def _add_plain(into: Values, events: Sequence[Any]) -> None:
    columns, count = into.columns, len(events)
    columns["trace_id"] += [event.trace_id for event in events]
    columns["span_id"] += [event.span_id for event in events]
    columns["parent_span_id"] += [event.parent_span_id for event in events]
    columns["error_code"] += [event.error_code for event in events]
    columns["error_message"] += [event.error_message and event.error_message[:MAX_ERROR_MESSAGE] for event in events]
    columns["finish_reason"] += [event.finish_reason for event in events]
    columns["session_id"] += [event.session_id or None for event in events]
    columns["prompt_hash"] += [event.prompt_hash for event in events]
    columns["sdk_version"] += [event.sdk_version for event in events]
    columns["latency_ms"] += [event.latency_ms for event in events]
    columns["ttft_ms"] += [event.ttft_ms for event in events]
    columns["cached_tokens"] += [event.cached_tokens for event in events]
    columns["tags"] += [event.tags for event in events]
    columns["tools_used"] += [event.tools_used for event in events]
    columns["eval_scores"] += [event.eval_scores for event in events]
    columns["stream"] += [event.stream for event in events]
    columns["kind"] += ["call"] * count
    for name in _NOT_PLAIN:
        columns[name] += [None] * count


def _one(payload: PayloadFormat, record: bytes, source: Source) -> Mapping[str, Any]:
    if payload == "protobuf":
        found = _plain_message(record, source.rules)
        if found is not None:
            return found
    event = decode_event(payload, record, source.handling, LAST, as_counted=True, rules=source.rules)
    return {name: getattr(event, name) for name in (*VALUES, "input_tokens", "output_tokens", "priced")}


def _plain_message(record: bytes, rules: int) -> dict[str, Any] | None:
    """Return the fields of a protobuf event that is plain."""
    event = proto_event.decode(record)
    if event is None or event.extra_json:
        return None
    fields: dict[str, Any] = {field.name: value for field, value in event.ListFields()}
    if not RECENT.isdisjoint(fields):
        if rules < RULES or fields.get("kind", "call") not in ("call", "span"):
            return None
        if "name" in fields and not is_of_form(_NAME, fields["name"]):
            return None
        if fields.get("kind") == "span":  # what it was sent without has been filled in
            return None
    found = {name: fields.get(name) for name in VALUES}
    found["kind"] = "call"
    found["stream"] = bool(found["stream"])
    found["latency_ms"] = found["latency_ms"] or 0.0
    found["sdk_version"] = found["sdk_version"] or ""
    found["session_id"] = found["session_id"] or None
    found["error_message"] = found["error_message"] and found["error_message"][:MAX_ERROR_MESSAGE]
    for name in COLLECTIONS:
        value = found[name]
        found[name] = (list(value) if name == "tools_used" else dict(value)) if value else None
    return found


def _add(into: Values, found: Mapping[str, Any]) -> None:
    place = len(into)
    for name, column in into.columns.items():
        column.append(found[name])
    extra: Mapping[str, Raw] | None = found["extra"]
    into.columns["extra"][-1] = _encode(extra).decode() if extra else None
    if found["kind"] == "span":
        into.absent += [(place, name) for name in ("input_tokens", "output_tokens") if found[name] is None]
        if found["priced"]:
            into.free.append(place)
