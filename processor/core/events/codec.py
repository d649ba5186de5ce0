"""From raw events as they were sent to the columns the tables are made of.

An accepted event travels twice in a message: its *hot* values in columns (what the worker adds up), and its original
bytes, untouched (what `export`, `verify` and a person read). So nothing is decoded again on the way to the tables, and
no field is lost, known or not.

There are three ways, and whatever a faster one takes, the slower ones take with the same values: a whole request of
plainly valid events at a time; else event by event; and for those that are not plainly valid `event.check`, which says
why.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal

import msgspec
from msgspec import Raw, Struct

from processor.core import money
from processor.core.clock import parse_timestamp
from processor.core.events import bulk_checks, proto_event
from processor.core.events.columns import UNPRICED_FLAG, Columns, Hot, assemble, columns_of
from processor.core.events.event import (
    MAX_EVENT_BYTES,
    MAX_FUTURE,
    MAX_NESTING,
    Event,
    Fault,
    Fields,
    Handling,
    HotFields,
    JsonEvent,
    JsonFields,
    KnownFields,
    check,
    is_uuid4,
)
from processor.core.events.latency import bucket_of, buckets_of
from processor.core.events.lines import Lines, size_of
from processor.core.events.nesting import is_deeper
from processor.core.events.syntax_faults import Budget, encoding_fault, syntax_fault
from protos.spendstream.v1 import ingest_pb2 as pb

PayloadFormat = Literal["json", "protobuf"]
"""How an event is encoded, whatever API it came by."""

FEW: Final = 8
"""Events up to which going through them one by one is faster than the calls that do many at once."""


class Decoded(Struct):
    """What one request's events came to; both in the order of the request."""

    columns: Columns
    faults: list[tuple[int, Fault]]
    """(index in the request, why)."""


def decode(
    payload: PayloadFormat, records: Sequence[bytes], handling: Handling, now: int, *, as_counted: bool = False
) -> Decoded:
    """Check and decode the raw events of one request; `now` is its arrival in microseconds. `as_counted`: see
    `event.check`.

    Never raises for bad input: every record ends up in `columns` or in `faults`.
    """
    beside = handling == "lenient" and not as_counted
    if len(records) > FEW:
        try:
            return Decoded(_AT_ONCE[payload](records, now, beside), [])
        except (msgspec.MsgspecError, ValueError, RecursionError):
            pass
    return _one_by_one(payload, records, handling, now, beside)


def _one_by_one(
    payload: PayloadFormat, records: Sequence[bytes], handling: Handling, now: int, beside: bool
) -> Decoded:
    fast = _ONE[payload]
    hot: list[Hot] = []
    faults: list[tuple[int, Fault]] = []
    budget = Budget()
    for index, record in enumerate(records):
        found = fast(record, now, beside)
        if found is None:
            try:
                found = _hot(check(fields(payload, record, budget), handling, now, as_counted=not beside), record)
            except Fault as fault:
                faults.append((index, fault))
                continue
        hot.append(found)
    return Decoded(columns_of(hot), faults)


def decode_event(
    payload: PayloadFormat, record: bytes, handling: Handling, now: int, *, as_counted: bool = False
) -> Event:
    """Decode one stored event in full; `as_counted`: see `event.check`. Raises `Fault` for one that intake would not
    have taken."""
    return check(fields(payload, record), handling, now, as_counted=as_counted)


def fields(payload: PayloadFormat, record: bytes, budget: Budget | None = None) -> Fields:
    """Open a raw event for the slow way; `budget`: what its request has left for telling why a line is not JSON.

    Raises `Fault` if it is too large, not decodable or not an object.
    """
    if len(record) > MAX_EVENT_BYTES:
        raise Fault("out_of_range", None, f"an event must have at most {MAX_EVENT_BYTES} bytes, not {len(record)}")
    return proto_event.fields(record) if payload == "protobuf" else _json_fields(record, budget)


# --- JSON ------------------------------------------------------------------------------------------------------------

_decode_known: Callable[[bytes], HotFields] = msgspec.json.Decoder(KnownFields).decode
_decode_lines: Callable[[bytes], list[HotFields]] = msgspec.json.Decoder(KnownFields).decode_lines
_decode_json: Callable[[bytes], HotFields] = msgspec.json.Decoder(JsonEvent).decode
_decode_raw = msgspec.json.Decoder(dict[str, Raw]).decode


def _json_at_once(records: Sequence[bytes], now: int, beside: bool) -> Columns:
    if size_of(records) > MAX_EVENT_BYTES and max(map(len, records)) > MAX_EVENT_BYTES:
        raise ValueError
    try:
        # Where every field is known the decoder looks into every byte: no encoding or nesting is left to check.
        events: list[HotFields] = list(_all_known(records))
    except msgspec.ValidationError as error:
        if "unknown field" not in str(error):
            raise
        for record in records:
            _look(record)
        events = list(map(_decode_json, records))
    # Attribute by attribute: half the time of `attrgetter` with all of them on each event.
    return _columns(
        [event.event_id for event in events],
        [event.user_id for event in events],
        [event.timestamp for event in events],
        (
            [event.provider for event in events],
            [event.model for event in events],
            [event.environment for event in events],
            [event.operation for event in events],
            [event.status for event in events],
        ),
        (
            [event.input_tokens for event in events],
            [event.output_tokens for event in events],
            [event.cached_tokens for event in events],
        ),
        b"\n".join([event.cost_usd for event in events]).decode("ascii").split("\n"),
        [event.latency_ms for event in events],
        records,
        now,
        beside,
    )


def _all_known(records: Sequence[bytes]) -> Iterable[HotFields]:
    if not isinstance(records, Lines):
        return map(_decode_known, records)
    events = _decode_lines(records.text)
    # Each line begins and ends as an object does, so if there are as many events as lines, there is one on each.
    if len(events) != len(records):
        raise ValueError
    return events


_NOTHING: Final = Budget(0)
"""The fast ways never say why: whatever they refuse, the slow way looks at again."""


def _look(record: bytes) -> None:
    """`_inspect`, as far as the line may need it: what the decoder skips, unknown fields, it does not look into."""
    if len(record) > MAX_EVENT_BYTES or not record.isascii() or record.count(b"{") + record.count(b"[") > MAX_NESTING:
        _inspect(record, _NOTHING)


def _one_json(record: bytes, now: int, beside: bool) -> Hot | None:
    try:
        _look(record)
        event = _decode_json(record)
        return _hot_of(event, money.parse_cost(str(event.cost_usd, "ascii")), record, now, beside)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _json_fields(record: bytes, budget: Budget | None) -> Fields:
    _inspect(record, budget)
    try:
        try:
            return JsonFields(_decode_raw(record))
        except msgspec.ValidationError:
            msgspec.json.decode(record)  # it may be no JSON at all
            raise Fault("invalid", None, "an event must be a JSON object") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise syntax_fault(record, str(error), budget) from None


def _inspect(record: bytes, budget: Budget | None = None) -> None:
    """What must hold for the whole line: its size, its encoding, its nesting."""
    if len(record) > MAX_EVENT_BYTES:
        raise Fault("out_of_range", None, f"an event must have at most {MAX_EVENT_BYTES} bytes, not {len(record)}")
    try:
        record.decode()
    except UnicodeDecodeError as error:
        raise encoding_fault(record, error, budget) from None
    if is_deeper(record, MAX_NESTING):
        raise Fault("out_of_range", None, f"an event must not be nested deeper than {MAX_NESTING}")


# --- protobuf --------------------------------------------------------------------------------------------------------


def _proto_at_once(records: Sequence[bytes], now: int, beside: bool) -> Columns:
    if max(map(len, records), default=0) > MAX_EVENT_BYTES:
        raise ValueError
    found = proto_event.decode_all(records)
    return _columns(
        found["event_id"],
        found["user_id"],
        found["timestamp"],
        (found["provider"], found["model"], found["environment"], found["operation"], found["status"]),
        (found["input_tokens"], found["output_tokens"], found["cached_tokens"]),
        found["cost_usd"],
        found["latency_ms"],
        records,
        now,
        beside,
    )


def _one_proto(record: bytes, now: int, beside: bool) -> Hot | None:
    if len(record) > MAX_EVENT_BYTES:
        return None
    try:
        event = proto_event.decode(record)
        return None if event is None else _hot_of(event, money.parse_cost(event.cost_usd), record, now, beside)
    except ValueError:
        return None


# --- hot values ------------------------------------------------------------------------------------------------------

_AT_ONCE: Final[dict[PayloadFormat, Callable[[Sequence[bytes], int, bool], Columns]]] = {
    "json": _json_at_once,
    "protobuf": _proto_at_once,
}
"""Raise `MsgspecError`, `ValueError` or `RecursionError` if not every event is plainly valid."""

_ONE: Final[dict[PayloadFormat, Callable[[bytes, int, bool], Hot | None]]] = {"json": _one_json, "protobuf": _one_proto}


def _columns(
    ids: Sequence[str],
    users: Sequence[str | None],
    timestamps: Sequence[str],
    names: Sequence[Sequence[str]],
    tokens: tuple[Sequence[int], Sequence[int], Sequence[int | None]],
    costs: Sequence[str],
    latencies: Sequence[float],
    records: Sequence[bytes],
    now: int,
    beside: bool,
) -> Columns:
    """Columns of decoded events, of which the ids, the times and the costs are not checked yet.

    `beside`: cached tokens above the input tokens of an event are added to those (`event.check`).
    """
    times = bulk_checks.parse_timestamps(timestamps)
    if times.max(initial=0) - now > MAX_FUTURE:
        raise ValueError
    if "" in users:
        users = [user or None for user in users]
    inputs, outputs, found = tokens
    cached = [count or 0 for count in found]
    if beside:
        inputs = bulk_checks.with_cached(inputs, cached)
    return assemble(
        bulk_checks.uuid_bytes(ids),
        users,
        times,
        names,
        (inputs, outputs, cached),
        bulk_checks.parse_costs(costs),
        buckets_of(latencies),
        records,
    )


def _hot_of(event: HotFields | pb.Event, cost: int, record: bytes, now: int, beside: bool) -> Hot:
    at = parse_timestamp(event.timestamp)
    if at - now > MAX_FUTURE or not is_uuid4(event.event_id):
        raise ValueError
    inputs, outputs, cached = _tokens(event)
    if beside and cached > inputs:
        (inputs,) = bulk_checks.with_cached([inputs], [cached])
    latency = bucket_of(event.latency_ms)
    return (
        event.event_id,
        event.user_id or None,
        at,
        *_names(event),
        inputs,
        outputs,
        cached,
        cost,
        0,
        latency,
        record,
    )


def _hot(event: Event, record: bytes) -> Hot:
    flags = 0 if event.priced else UNPRICED_FLAG
    return (
        event.event_id,
        event.user_id,
        event.timestamp,
        *_names(event),
        *_tokens(event),
        event.cost,
        flags,
        bucket_of(event.latency_ms),
        record,
    )


def _names(event: HotFields | pb.Event | Event) -> tuple[str, str, str, str, str]:
    return event.provider, event.model, event.environment, event.operation, event.status


def _tokens(event: HotFields | pb.Event | Event) -> tuple[int, int, int]:
    return event.input_tokens, event.output_tokens, event.cached_tokens or 0
