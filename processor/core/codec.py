"""From raw events on a wire to the columns the tables are made of.

An accepted event travels twice in a message: its *hot* values in columns (what the worker adds up), and its original
bytes, untouched (what `export`, `verify` and a person read). So nothing is decoded again on the way to the tables, and
no field is lost, known or not.
"""

from collections.abc import Callable, Sequence
from typing import Final, Literal

import msgspec
import xxhash
from msgspec import Raw, Struct

from processor.core import money, wire_proto
from processor.core.clock import HOUR, parse_timestamp
from processor.core.event import (
    ERRORS,
    MAX_EVENT_BYTES,
    MAX_FUTURE,
    MAX_NESTING,
    Event,
    Fault,
    Fields,
    Handling,
    JsonEvent,
    JsonFields,
    check,
    is_uuid4,
)
from processor.core.nesting import is_deeper
from protos.spendstream.v1 import ingest_pb2 as pb

Wire = Literal["json", "proto"]

Dim = tuple[str | None, int, str, str, str]
"""user, hour since the epoch (event time), provider, model, environment: what a row is kept by."""

ERROR_FLAG = 1
UNPRICED_FLAG = 2

Hot = tuple[str, Dim, int, int, int, int, int, int, int, bytes]
"""event_id as sent, dim, timestamp, input, output, cached tokens, cost (picodollars), flags, digest, original bytes."""


class Decoded(Struct):
    """What one request's events came to; both lists in the order of the request."""

    hot: list[Hot]
    faults: list[tuple[int, Fault]]
    """(index in the request, why)."""


def decode(wire: Wire, records: Sequence[bytes], handling: Handling, now: int) -> Decoded:
    """Check and decode the raw events of one request; `now` is its arrival in microseconds.

    Never raises for bad input: every record ends up in `hot` or in `faults`.
    """
    fast = _FAST[wire]
    hot: list[Hot] = []
    faults: list[tuple[int, Fault]] = []
    for index, record in enumerate(records):
        found = fast(record, now)
        if found is None:
            try:
                found = _hot(check(fields(wire, record), handling, now), record)
            except Fault as fault:
                faults.append((index, fault))
                continue
        hot.append(found)
    return Decoded(hot, faults)


def decode_event(wire: Wire, record: bytes, handling: Handling, now: int) -> Event:
    """Decode one stored event in full. Raises `Fault` for one that intake would not have taken."""
    return check(fields(wire, record), handling, now)


def fields(wire: Wire, record: bytes) -> Fields:
    """Open a raw event for the slow way. Raises `Fault` if it is too large, not decodable or not an object."""
    if len(record) > MAX_EVENT_BYTES:
        raise Fault("out_of_range", None, f"an event must have at most {MAX_EVENT_BYTES} bytes, not {len(record)}")
    return wire_proto.fields(record) if wire == "proto" else _json_fields(record)


# --- JSON ------------------------------------------------------------------------------------------------------------

_decode_json = msgspec.json.Decoder(JsonEvent).decode
_decode_raw = msgspec.json.Decoder(dict[str, Raw]).decode


def _fast_json(record: bytes, now: int) -> Hot | None:
    if len(record) > MAX_EVENT_BYTES or not record.isascii() or record.count(b"{") + record.count(b"[") > MAX_NESTING:
        try:  # what the decoder skips, unknown fields, it does not look into
            _inspect(record)
        except Fault:
            return None
    try:
        event = _decode_json(record)
        return _hot_of(event, money.parse_cost(str(event.cost_usd, "ascii")), record, now)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _json_fields(record: bytes) -> Fields:
    _inspect(record)
    try:
        try:
            return JsonFields(_decode_raw(record))
        except msgspec.ValidationError:
            msgspec.json.decode(record)  # it may be no JSON at all
            raise Fault("invalid", None, "an event must be a JSON object") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Fault("syntax", None, f"not valid JSON: {error}") from None


def _inspect(record: bytes) -> None:
    """What must hold for the whole line: its size, its encoding, its nesting."""
    if len(record) > MAX_EVENT_BYTES:
        raise Fault("out_of_range", None, f"an event must have at most {MAX_EVENT_BYTES} bytes, not {len(record)}")
    try:
        record.decode()
    except UnicodeDecodeError as error:
        raise Fault("syntax", None, f"not valid UTF-8 at byte {error.start}") from None
    if is_deeper(record, MAX_NESTING):
        raise Fault("out_of_range", None, f"an event must not be nested deeper than {MAX_NESTING}")


# --- protobuf --------------------------------------------------------------------------------------------------------


def _fast_proto(record: bytes, now: int) -> Hot | None:
    if len(record) > MAX_EVENT_BYTES:
        return None
    try:
        event = wire_proto.decode(record)
        return None if event is None else _hot_of(event, money.parse_cost(event.cost_usd), record, now)
    except ValueError:
        return None


_FAST: Final[dict[Wire, Callable[[bytes, int], Hot | None]]] = {"json": _fast_json, "proto": _fast_proto}

# --- hot values ------------------------------------------------------------------------------------------------------

_pack = msgspec.msgpack.Encoder().encode
_digest = xxhash.xxh3_64_intdigest


def _hot_of(event: JsonEvent | pb.Event, cost: int, record: bytes, now: int) -> Hot:
    at = parse_timestamp(event.timestamp)
    if at - now > MAX_FUTURE or not is_uuid4(event.event_id):
        raise ValueError
    return _row(
        event.event_id,
        (event.user_id or None, at // HOUR, event.provider, event.model, event.environment),
        at,
        event.operation,
        event.status,
        (event.input_tokens, event.output_tokens, event.cached_tokens or 0),
        cost,
        ERROR_FLAG if event.status in ERRORS else 0,
        record,
    )


def _hot(event: Event, record: bytes) -> Hot:
    flags = (ERROR_FLAG if event.status in ERRORS else 0) | (0 if event.priced else UNPRICED_FLAG)
    return _row(
        event.event_id,
        (event.user_id, event.timestamp // HOUR, event.provider, event.model, event.environment),
        event.timestamp,
        event.operation,
        event.status,
        (event.input_tokens, event.output_tokens, event.cached_tokens or 0),
        event.cost,
        flags,
        record,
    )


def _row(
    event_id: str,
    dim: Dim,
    at: int,
    operation: str,
    status: str,
    tokens: tuple[int, int, int],
    cost: int,
    flags: int,
    record: bytes,
) -> Hot:
    # The digest stands for all that a second copy of the event may differ in (contract, "conflict").
    digest = _digest(_pack((dim, at, operation, status, tokens, cost, flags)))
    return (event_id, dim, at, tokens[0], tokens[1], tokens[2], cost, flags, digest, record)
