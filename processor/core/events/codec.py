"""From raw events as they were sent to the columns the tables are made of.

An accepted event travels twice in a message: its *hot* values in columns (what the worker adds up), and its original
bytes, untouched (what `export`, `verify` and a person read). So nothing is decoded again on the way to the tables, and
no field is lost, known or not.

There are three ways, and whatever a faster one takes, the slower ones take with the same values: a whole request of
plainly valid events at a time; else event by event; and for those that are not plainly valid `event.check`, which says
why. Where the compiled kernel runs, it takes what is plainly valid before them (`compiled_rows`).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Literal, NamedTuple

import msgspec
import numpy as np
from msgspec import Raw, Struct

from processor.core import money
from processor.core.clock import parse_timestamp
from processor.core.events import bulk_checks, compiled_rows, proto_event
from processor.core.events.columns import (
    SPAN_FLAG,
    UNPRICED_FLAG,
    Columns,
    Hot,
    Recent,
    assemble,
    columns_of,
    recent_part,
)
from processor.core.events.event import (
    MAX_EVENT_BYTES,
    MAX_FUTURE,
    MAX_NESTING,
    Event,
    Fault,
    Fields,
    Handling,
    HotFields,
    JsonFields,
    OldEvent,
    PlainFields,
    RecentEvent,
    RecentFields,
    check,
    is_of_form,
    is_uuid4,
)
from processor.core.events.fields import FIELDS, RULES, Field
from processor.core.events.latency import bucket_of, buckets_of
from processor.core.events.ndjson import Lines, joined, size_of
from processor.core.events.nesting import is_deeper
from processor.core.events.syntax_faults import LineBudget, encoding_fault, syntax_fault
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


class _Reading(NamedTuple):
    """How the events of a request are read."""

    now: int
    """When they arrived, in microseconds."""
    beside: bool
    """Cached tokens above the input tokens of a call are added to those (`event.check`)."""
    lenient: bool
    """Calls may lack a cost, token counts and names (`event.check`)."""
    rules: int
    """The version of the log's message that says which names are fields (`Field.since`)."""


def decode(
    payload: PayloadFormat,
    records: Sequence[bytes],
    handling: Handling,
    now: int,
    *,
    as_counted: bool = False,
    rules: int = RULES,
) -> Decoded:
    """Check and decode the raw events of one request; `now` is its arrival in microseconds. `as_counted`: see
    `event.check`. `rules`: those of new events, or of the message that has them (`Source.rules`).

    Never raises for bad input: every record ends up in `columns` or in `faults`.
    """
    reading = _Reading(now, handling == "lenient" and not as_counted, handling == "lenient", rules)
    return _compiled(payload, records, handling, reading) or _twin(payload, records, handling, reading)


def _compiled(
    payload: PayloadFormat, records: Sequence[bytes], handling: Handling, reading: _Reading
) -> Decoded | None:
    """By the compiled kernel, and what it gives up by its twin; None if the twin is to do all of it."""
    if reading.rules < RULES:
        return None
    latest = reading.now + MAX_FUTURE
    taken = compiled_rows.take(payload, records, latest, lenient=reading.lenient, beside=reading.beside)
    if taken is None or len(taken.given_up) == len(records):
        return None
    if not taken.given_up:
        return Decoded(taken.columns, [])
    others = _twin(payload, [records[place] for place in taken.given_up], handling, reading)
    faults = [(taken.given_up[index], fault) for index, fault in others.faults]
    columns = compiled_rows.merged(taken, others.columns, [place for place, _ in faults])
    return None if columns is None else Decoded(columns, faults)


def _twin(payload: PayloadFormat, records: Sequence[bytes], handling: Handling, reading: _Reading) -> Decoded:
    """In Python: what the kernel does, once more, and what it leaves."""
    if len(records) > FEW:
        try:
            return Decoded(_AT_ONCE[payload](records, reading), [])
        except (msgspec.MsgspecError, ValueError, RecursionError):
            pass
    return _one_by_one(payload, records, handling, reading)


def decode_together(
    payload: PayloadFormat, requests: Sequence[Sequence[bytes]], handling: Handling, now: int
) -> Columns | None:
    """`decode` of several requests that arrived at the same time, in a fraction of the calls: the columns of all of
    them (`Columns.cut`). None if not every event is valid, or plainly so where they are more than a few."""
    records = joined(requests)
    if records is None:
        return None
    reading = _Reading(now, handling == "lenient", handling == "lenient", RULES)
    decoded = _compiled(payload, records, handling, reading)
    if decoded is not None:
        return None if decoded.faults else decoded.columns
    if len(records) <= FEW:
        decoded = _one_by_one(payload, records, handling, reading)
        return None if decoded.faults else decoded.columns
    try:
        return _AT_ONCE[payload](records, reading)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _one_by_one(payload: PayloadFormat, records: Sequence[bytes], handling: Handling, reading: _Reading) -> Decoded:
    fast = _ONE[payload]
    hot: list[Hot] = []
    faults: list[tuple[int, Fault]] = []
    budget = LineBudget()
    for index, record in enumerate(records):
        found = fast(record, reading)
        if found is None:
            try:
                opened = fields(payload, record, budget, reading.rules)
                found = hot_of(check(opened, handling, reading.now, as_counted=not reading.beside), record)
            except Fault as fault:
                faults.append((index, fault))
                continue
        hot.append(found)
    return Decoded(columns_of(hot), faults)


def decode_event(
    payload: PayloadFormat,
    record: bytes,
    handling: Handling,
    now: int,
    *,
    as_counted: bool = False,
    rules: int = RULES,
) -> Event:
    """Decode one stored event in full; `as_counted`: see `event.check`, `rules`: see `decode`. Raises `Fault` for one
    that intake would not have taken."""
    return check(fields(payload, record, rules=rules), handling, now, as_counted=as_counted)


def fields(payload: PayloadFormat, record: bytes, budget: LineBudget | None = None, rules: int = RULES) -> Fields:
    """Open a raw event for the slow way; `budget`: what its request has left for telling why a line is not JSON.

    Raises `Fault` if it is too large, not decodable or not an object.
    """
    if len(record) > MAX_EVENT_BYTES:
        raise Fault("out_of_range", None, f"an event must have at most {MAX_EVENT_BYTES} bytes, not {len(record)}")
    return proto_event.fields(record, rules) if payload == "protobuf" else _json_fields(record, budget, rules)


# --- JSON ------------------------------------------------------------------------------------------------------------

_decode_plain: Callable[[bytes], HotFields] = msgspec.json.Decoder(PlainFields).decode
_decode_lines: Callable[[bytes], list[HotFields]] = msgspec.json.Decoder(PlainFields).decode_lines
_decode_old: Callable[[bytes], HotFields] = msgspec.json.Decoder(OldEvent).decode
_decode_recent: Callable[[bytes], RecentFields] = msgspec.json.Decoder(RecentEvent).decode
_decode_text = msgspec.json.Decoder(str).decode
_decode_texts = msgspec.json.Decoder(list[str]).decode
_decode_raw = msgspec.json.Decoder(dict[str, Raw]).decode


def _json_at_once(records: Sequence[bytes], reading: _Reading) -> Columns:
    if size_of(records) > MAX_EVENT_BYTES and max(map(len, records)) > MAX_EVENT_BYTES:
        raise ValueError
    try:
        # Where every field is known the decoder looks into every byte: no encoding or nesting is left to check.
        events: list[HotFields] = list(_all_plain(records))
    except msgspec.ValidationError as error:
        if "unknown field" not in str(error) and not reading.lenient:
            raise
        for record in records:
            _look(record)
        if reading.rules >= RULES:
            return _recent_at_once(records, reading)
        events = list(map(_decode_old, records))
    costs, unpriced = _costs([event.cost_usd for event in events], reading)
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
        costs,
        [event.latency_ms for event in events],
        records,
        reading,
        unpriced=unpriced,
    )


def _all_plain(records: Sequence[bytes]) -> Iterable[HotFields]:
    if not isinstance(records, Lines):
        return map(_decode_plain, records)
    events = _decode_lines(records.text)
    # Each line begins and ends as an object does, so if there are as many events as lines, there is one on each.
    if len(events) != len(records):
        raise ValueError
    return events


def _recent_at_once(records: Sequence[bytes], reading: _Reading) -> Columns:
    """The same for lines with unknown fields, or with those of version 5, some of which may be spans; or for calls that
    lack what they may under `lenient`."""
    events = list(map(_decode_recent, records))
    kinds = _texts_in([event.kind for event in events], _KIND)
    names = _texts_in([event.name for event in events], _NAME)
    spans = [place for place, kind in enumerate(kinds) if kind == "span"] if "span" in kinds else []
    for place in spans:
        _complete(events[place], names[place])
    costs, unpriced = _costs([event.cost_usd for event in events], reading)
    providers: list[Any] = [event.provider for event in events]
    models: list[Any] = [event.model for event in events]
    operations: list[Any] = [event.operation for event in events]
    streams: list[Any] = [event.stream for event in events]
    inputs: list[Any] = [event.input_tokens for event in events]
    outputs: list[Any] = [event.output_tokens for event in events]
    if any(None in column for column in (providers, models, operations, streams, inputs, outputs)):
        if not reading.lenient:
            raise ValueError
        providers, operations = _filled(providers, "custom"), _filled(operations, "custom")
        models, inputs, outputs = _filled(models, "unknown"), _filled(inputs, 0), _filled(outputs, 0)
    writes, thoughts = [event.cache_write_tokens for event in events], [event.reasoning_tokens for event in events]
    return _columns(
        [event.event_id for event in events],
        [event.user_id for event in events],
        [event.timestamp for event in events],
        (providers, models, [event.environment for event in events], operations, [event.status for event in events]),
        (inputs, outputs, [event.cached_tokens for event in events]),
        costs,
        [event.latency_ms for event in events],
        records,
        reading,
        _recent(spans, names, writes, thoughts),
        unpriced,
    )


def _costs(sent: Sequence[Raw], reading: _Reading) -> tuple[list[str], list[int]]:
    """The costs as they were written, and the places of calls that may come without one: it is 0 for them."""
    costs = b"\n".join(sent).decode("ascii").split("\n")
    if not reading.lenient or "null" not in costs:
        return costs, []
    unpriced = [place for place, cost in enumerate(costs) if cost == "null"]
    for place in unpriced:
        costs[place] = "0"
    return costs, unpriced


def _filled(values: Sequence[Any], default: str | int) -> list[Any]:
    """What `lenient` handling makes of what calls lack."""
    return [default if value is None else value for value in values]


def _fill(call: RecentFields) -> None:
    """`_filled`, of one call; the cost aside."""
    call.provider = call.provider or "custom"
    call.model = call.model or "unknown"
    call.operation = call.operation or "custom"
    call.stream = call.stream or False
    call.input_tokens = call.input_tokens or 0
    call.output_tokens = call.output_tokens or 0


def _complete(span: RecentFields, name: str | None) -> None:
    """Have a span say what stands for what it lacks. Raises `ValueError` unless it has a name, and a cost that is
    missing or plainly 0."""
    if name is None or bytes(span.cost_usd) not in _FREE:
        raise ValueError
    span.provider = span.provider or "custom"
    span.model = span.model or name
    span.operation = span.operation or "custom"
    span.stream = span.stream or False
    span.input_tokens = span.input_tokens or 0
    span.output_tokens = span.output_tokens or 0
    span.cost_usd = _ZERO


_FREE: Final = frozenset({b"null", b"0", b"0.0"})
_ZERO: Final = Raw(b"0")
_NULL: Final = Raw(b"null")


def _recent(
    spans: list[int], names: Sequence[Any], writes: Sequence[int | None], thoughts: Sequence[int | None]
) -> Recent | None:
    if not (spans or any(names) or any(writes) or any(thoughts)):
        return None
    said = list(zip(names, writes, thoughts, strict=True))
    parts = {each: recent_part(*each) for each in set(said)}
    return Recent(spans, np.fromiter(map(parts.__getitem__, said), np.uint64, len(said)))


_KIND, _NAME = (next(field for field in FIELDS if field.name == name) for name in ("kind", "name"))


def _texts_in(values: Sequence[Raw | None], field: Field) -> Sequence[str | None]:
    """`_text_in` of each value that is there: if all of them are strings, they are decoded at once."""
    sent = [value for value in values if value is not None]
    if not sent:
        return [None] * len(values)
    try:
        texts: list[str] = _decode_texts(b"[%b]" % b",".join(sent))
    except msgspec.ValidationError:
        return [None if value is None else _text_in(value, field) for value in values]
    forms = {text: text if is_of_form(field, text) else None for text in set(texts)}
    found = map(forms.__getitem__, texts)
    return [None if value is None else next(found) for value in values]


def _text_in(value: Raw, field: Field) -> str | None:
    """The value of a field that is lax; None if there is none of its form."""
    try:
        text = _decode_text(value)
    except msgspec.ValidationError:
        return None
    return text if is_of_form(field, text) else None


_NOTHING: Final = LineBudget(0)
"""The fast ways never say why: whatever they refuse, the slow way looks at again."""


def _look(record: bytes) -> None:
    """`_inspect`, as far as the line may need it: what the decoder skips, unknown fields, it does not look into."""
    if len(record) > MAX_EVENT_BYTES or not record.isascii() or record.count(b"{") + record.count(b"[") > MAX_NESTING:
        _inspect(record, _NOTHING)


def _one_json(record: bytes, reading: _Reading) -> Hot | None:
    try:
        _look(record)
        if reading.rules < RULES:
            old = _decode_old(record)
            return _hot_of(old, money.parse_cost(str(old.cost_usd, "ascii")), record, reading)
        event = _decode_recent(record)
        name = None if event.name is None else _text_in(event.name, _NAME)
        is_span = event.kind is not None and _text_in(event.kind, _KIND) == "span"
        if is_span:
            _complete(event, name)
        elif reading.lenient:
            _fill(event)
        needed = event.provider, event.model, event.operation, event.stream, event.input_tokens, event.output_tokens
        if None in needed:
            return None
        recent = recent_part(name, event.cache_write_tokens, event.reasoning_tokens)
        flags = SPAN_FLAG if is_span else UNPRICED_FLAG if reading.lenient and event.cost_usd == _NULL else 0
        cost = 0 if flags else money.parse_cost(str(event.cost_usd, "ascii"))
        return _hot_of(event, cost, record, reading, recent, flags)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _json_fields(record: bytes, budget: LineBudget | None, rules: int) -> Fields:
    _inspect(record, budget)
    try:
        try:
            return JsonFields(_decode_raw(record), rules)
        except msgspec.ValidationError:
            msgspec.json.decode(record)  # it may be no JSON at all
            raise Fault("invalid", None, "an event must be a JSON object") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise syntax_fault(record, str(error), budget) from None


def _inspect(record: bytes, budget: LineBudget | None = None) -> None:
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


def _proto_at_once(records: Sequence[bytes], reading: _Reading) -> Columns:
    if max(map(len, records), default=0) > MAX_EVENT_BYTES:
        raise ValueError
    found = proto_event.decode_all(records, lenient=reading.lenient)
    names = [name if is_of_form(_NAME, name) else None for name in found["name"]] if any(found["name"]) else []
    recent = _recent(
        found.spans, names or [None] * len(records), found["cache_write_tokens"], found["reasoning_tokens"]
    )
    if recent is not None and reading.rules < RULES:
        raise ValueError
    return _columns(
        found["event_id"],
        found["user_id"],
        found["timestamp"],
        (found["provider"], found["model"], found["environment"], found["operation"], found["status"]),
        (found["input_tokens"], found["output_tokens"], found["cached_tokens"]),
        [cost or "0" for cost in found["cost_usd"]] if found.unpriced else found["cost_usd"],
        found["latency_ms"],
        records,
        reading,
        recent,
        found.unpriced,
    )


def _one_proto(record: bytes, reading: _Reading) -> Hot | None:
    if len(record) > MAX_EVENT_BYTES:
        return None
    try:
        event = proto_event.decode(record, lenient=reading.lenient)
        if event is None:
            return None
        name = event.name if is_of_form(_NAME, event.name) else None
        recent = recent_part(name, event.cache_write_tokens, event.reasoning_tokens)
        is_span = event.kind == "span"
        if (recent or is_span) and reading.rules < RULES:
            return None
        flags = SPAN_FLAG if is_span else 0 if event.cost_usd else UNPRICED_FLAG
        cost = 0 if flags else money.parse_cost(event.cost_usd)
        return _hot_of(event, cost, record, reading, recent, flags)
    except ValueError:
        return None


# --- hot values ------------------------------------------------------------------------------------------------------

_AT_ONCE: Final[dict[PayloadFormat, Callable[[Sequence[bytes], _Reading], Columns]]] = {
    "json": _json_at_once,
    "protobuf": _proto_at_once,
}
"""Raise `MsgspecError`, `ValueError` or `RecursionError` if not every event is plainly valid."""

_ONE: Final[dict[PayloadFormat, Callable[[bytes, _Reading], Hot | None]]] = {"json": _one_json, "protobuf": _one_proto}


def _columns(
    ids: Sequence[str],
    users: Sequence[str | None],
    timestamps: Sequence[str],
    names: Sequence[Sequence[str]],
    tokens: tuple[Sequence[int], Sequence[int], Sequence[int | None]],
    costs: Sequence[str],
    latencies: Sequence[float],
    records: Sequence[bytes],
    reading: _Reading,
    recent: Recent | None = None,
    unpriced: Sequence[int] = (),
) -> Columns:
    """Columns of decoded events, of which the ids, the times and the costs are not checked yet; `unpriced`: the places
    of calls without a cost."""
    times = bulk_checks.parse_timestamps(timestamps)
    if times.max(initial=0) - reading.now > MAX_FUTURE:
        raise ValueError
    if "" in users:
        users = [user or None for user in users]
    inputs, outputs, found = tokens
    cached = [count or 0 for count in found]
    if reading.beside:
        counted = list(cached)
        for place in recent.spans if recent else ():
            counted[place] = 0
        inputs = bulk_checks.with_cached(inputs, counted)
    return assemble(
        bulk_checks.uuid_bytes(ids),
        users,
        times,
        names,
        (inputs, outputs, cached),
        bulk_checks.parse_costs(costs),
        buckets_of(latencies),
        records,
        recent,
        unpriced,
    )


def _hot_of(
    event: HotFields | pb.Event,
    cost: int,
    record: bytes,
    reading: _Reading,
    recent: int = 0,
    flags: int = 0,
) -> Hot:
    at = parse_timestamp(event.timestamp)
    if at - reading.now > MAX_FUTURE or not is_uuid4(event.event_id):
        raise ValueError
    inputs, outputs, cached = _tokens(event)
    if reading.beside and cached > inputs and flags != SPAN_FLAG:
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
        flags,
        latency,
        recent,
        record,
    )


def hot_of(event: Event, record: bytes) -> Hot:
    """What the columns have of a checked event that came as `record`."""
    flags = SPAN_FLAG if event.is_span else 0 if event.priced else UNPRICED_FLAG
    return (
        event.event_id,
        event.user_id,
        event.timestamp,
        *_names(event),
        *_tokens(event),
        event.cost,
        flags,
        bucket_of(event.latency_ms),
        recent_part(event.name, event.cache_write_tokens, event.reasoning_tokens),
        record,
    )


def _names(event: HotFields | pb.Event | Event) -> tuple[str, str, str, str, str]:
    return event.provider, event.model, event.environment, event.operation, event.status


def _tokens(event: HotFields | pb.Event | Event) -> tuple[int, int, int]:
    return event.input_tokens or 0, event.output_tokens or 0, event.cached_tokens or 0
