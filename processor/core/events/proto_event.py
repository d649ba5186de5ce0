"""The protobuf `Event`, checked the fast way and as `Fields` for the slow one."""

import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from itertools import chain
from operator import attrgetter
from typing import Literal, NamedTuple

import msgspec
from google.protobuf.message import DecodeError
from msgspec import Raw

from processor.core.events.event import (
    FIELDS,
    MAX_FLOAT,
    MAX_INT,
    MAX_NESTING,
    MAX_TAGS,
    MAX_TEXT,
    OPERATIONS,
    PROVIDERS,
    STATUSES,
    Fault,
    item_of,
    readable_id,
)
from processor.core.events.nesting import is_deeper
from protos.spendstream.v1 import ingest_pb2 as pb

_parse = pb.Event.FromString
_PROVIDERS = frozenset(PROVIDERS)
_OPERATIONS = frozenset(OPERATIONS)
_STATUSES = frozenset(STATUSES)
_is_decimal = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?").fullmatch


class Decoded(NamedTuple):
    """Events that are plainly valid, by column. `event_ids`, `timestamps` and `costs` are checked afterwards."""

    event_ids: Sequence[str]
    timestamps: Sequence[str]
    costs: Sequence[str]
    users: Sequence[str]
    names: tuple[Sequence[str], ...]
    """Provider, model, environment, operation, status."""
    tokens: tuple[Sequence[int], Sequence[int], Sequence[int]]
    """Input, output, cached."""
    latencies: Sequence[float]
    """Milliseconds."""


# In C, an attribute of protobuf costs 50 ns and `ListFields` 4 µs an event.
_every = attrgetter(
    *("event_id", "timestamp", "cost_usd", "provider", "model", "environment", "operation", "status"),
    *("input_tokens", "output_tokens", "cached_tokens", "latency_ms", "ttft_ms", "stream"),
    *("trace_id", "span_id", "sdk_version", "user_id", "error_code", "finish_reason", "session_id", "prompt_hash"),
    *("tags", "eval_scores", "extra_json"),
)


def decode_all(records: Sequence[bytes]) -> Decoded:
    """Parse and check the events of a request at a time; raises `ValueError` if they are not all plainly valid.

    The same conditions as in `decode`, each asked once of a whole column.
    """
    try:
        events = list(map(_parse, records))
    except DecodeError:
        raise ValueError from None
    ids, timestamps, costs, providers, models, environments, operations, statuses, *rest = zip(
        *map(_every, events), strict=True
    )
    inputs, outputs, cached, latencies, firsts, streams, traces, spans, versions, *rest = rest
    users, codes, reasons, sessions, hashes, tags, scores, extras = rest
    required = (models, environments, traces, spans, versions)
    texts = (*required, users, codes, reasons, sessions, hashes)
    valid = (
        _PROVIDERS.issuperset(providers)
        and _OPERATIONS.issuperset(operations)
        and _STATUSES.issuperset(statuses)
        and all(map(all, required))  # none is empty
        and max(map(len, chain.from_iterable(texts))) <= MAX_TEXT
        and all(min(column) >= 0 and max(column) <= MAX_INT for column in (inputs, outputs, cached))
        # One by one, and not the least and the greatest: a comparison with NaN says no, whichever it is.
        and all(0 <= number <= MAX_FLOAT for number in chain(latencies, firsts))
        and max(map(len, tags)) <= MAX_TAGS
        and not any(extras)
        and all(map(math.isfinite, chain.from_iterable(found.values() for found in scores if found)))
        and all(map(_is_decimal, costs))
        # A value that equals the type's default may not be there at all.
        and (all(latencies) or _has_all(events, "latency_ms"))
        and (all(inputs) or _has_all(events, "input_tokens"))
        and (all(outputs) or _has_all(events, "output_tokens"))
        and (all(streams) or _has_all(events, "stream"))
    )
    if not valid:
        raise ValueError
    names = (providers, models, environments, operations, statuses)
    return Decoded(ids, timestamps, costs, users, names, (inputs, outputs, cached), latencies)


def _has_all(
    events: Sequence[pb.Event], name: Literal["latency_ms", "input_tokens", "output_tokens", "stream"]
) -> bool:
    return all(event.HasField(name) for event in events)


def decode(record: bytes) -> pb.Event | None:
    """Parse and check one event the fast way; None if it is not plainly valid: then the slow way says why, or takes it.

    The conditions are those of `event.RULES` that a parsed message can still break.
    """
    try:
        event = _parse(record)
    except DecodeError:
        return None
    valid = (
        0 < len(event.trace_id) <= MAX_TEXT
        and 0 < len(event.span_id) <= MAX_TEXT
        and event.provider in _PROVIDERS
        and 0 < len(event.model) <= MAX_TEXT
        and event.operation in _OPERATIONS
        and 0 <= event.latency_ms <= MAX_FLOAT
        and 0 <= event.ttft_ms <= MAX_FLOAT
        and 0 <= event.input_tokens <= MAX_INT
        and 0 <= event.output_tokens <= MAX_INT
        and 0 <= event.cached_tokens <= MAX_INT
        and event.status in _STATUSES
        and len(event.error_code) <= MAX_TEXT
        and len(event.finish_reason) <= MAX_TEXT
        and 0 < len(event.environment) <= MAX_TEXT
        and len(event.user_id) <= MAX_TEXT
        and len(event.session_id) <= MAX_TEXT
        and len(event.tags) <= MAX_TAGS
        and len(event.prompt_hash) <= MAX_TEXT
        and 0 < len(event.sdk_version) <= MAX_TEXT
        and not event.extra_json
        and _is_decimal(event.cost_usd) is not None
        and (not event.eval_scores or all(map(math.isfinite, event.eval_scores.values())))
        # A value that equals the type's default may not be there at all.
        and (event.latency_ms or event.HasField("latency_ms"))
        and (event.input_tokens or event.HasField("input_tokens"))
        and (event.output_tokens or event.HasField("output_tokens"))
        and (event.stream or event.HasField("stream"))
    )
    return event if valid else None


def fields(record: bytes) -> "ProtoFields":
    """Open one event for the slow way; raises `Fault` if it is not a protobuf `Event`, or its `extra_json` not JSON."""
    try:
        return ProtoFields(_parse(record))
    except DecodeError:
        raise Fault("syntax", None, "not a valid protobuf Event (strings must be UTF-8)") from None


class ProtoFields:
    """`Fields` of a parsed protobuf event. The schema has checked the types already; doubles may still be NaN."""

    def __init__(self, message: pb.Event) -> None:
        self._values = {field.name: value for field, value in message.ListFields()}
        try:
            self._extra = _extra(message.extra_json)
        except Fault as fault:
            if fault.field is not None:  # what is wrong with an event as a whole names none on the other wire either
                fault.event_id = readable_id(self)
            raise

    def names(self) -> list[str]:
        return list(self._values)

    def text(self, name: str) -> str | None:
        value: str | None = self._values.get(name)
        return value

    def number(self, name: str) -> Decimal | None:
        value = self._values.get(name)
        if value is None:
            return None
        if isinstance(value, str):
            return _decimal(name, value)
        if isinstance(value, float):
            return _finite(name, value, name)
        return Decimal(value)

    def flag(self, name: str) -> bool | None:
        value: bool | None = self._values.get(name)
        return value

    def strings(self, name: str) -> list[str] | None:
        value = self._values.get(name)
        return None if value is None else list(value)

    def string_map(self, name: str) -> dict[str, str] | None:
        value = self._values.get(name)
        return None if value is None else dict(value)

    def number_map(self, name: str) -> dict[str, float] | None:
        value = self._values.get(name)
        if value is None:
            return None
        return {key: float(_finite(name, item, item_of(name, key))) + 0.0 for key, item in value.items()}

    def extra(self) -> dict[str, Raw]:
        return self._extra


def _extra(texts: Mapping[str, str]) -> dict[str, Raw]:
    """The unknown fields, judged as if they stood in a JSON event: numbers of any size, nested as deep as there."""
    found = {}
    for name, text in texts.items():
        if name in FIELDS or name == "project_id":
            continue
        value = text.strip(" \t\r\n").encode()
        if is_deeper(value, MAX_NESTING - 1):
            raise Fault("out_of_range", None, f"an event must not be nested deeper than {MAX_NESTING}")
        try:
            found[name] = msgspec.json.decode(value, type=Raw)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            where = item_of("extra_json", name)
            raise Fault("syntax", "extra_json", f"{where} must be the text of a JSON value") from None
    return found


def _finite(name: str, value: float, where: str) -> Decimal:
    """`where`: the field, or the value in it, as a fault names it."""
    if math.isnan(value):
        raise Fault("invalid", name, f"{where} must be a number, not NaN")
    if math.isinf(value):
        raise Fault("out_of_range", name, f"{where} is out of range")
    return Decimal(repr(value))


def _decimal(name: str, text: str) -> Decimal:
    if _is_decimal(text) is None:
        raise Fault("invalid", name, f"{name} must be a decimal number in a string")
    try:
        return Decimal(text)
    except InvalidOperation:
        raise Fault("out_of_range", name, f"{name} is out of range") from None
