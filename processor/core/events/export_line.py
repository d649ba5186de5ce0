"""An event outside of the log: one line of JSON that says everything about it, and the way back.

The line is the event as intake understood it, with the names of the published table (cost as an exact decimal, null if
the event came without a price; unknown fields beside the known ones), so that it can be read by any program. What the
log knows beside the event stands under one more name:

    "_spendstream": {"project", "organization", "key_id", "arrival", "handling"}

and, where they are needed to put the event back exactly as it was:

    "api"           what it came in by, if that was not HTTP
    "rules"         the version of the message whose rules it is read by (`Field.since`), where that matters; without it
                    4, which knew of no `kind`, `name`, `cache_write_tokens` and `reasoning_tokens`
    "cost_source"   the price list that its cost is from; it came without one
    "digest"        what a second copy is compared by (16 hexadecimal digits), of an event that came over OTLP: there
                    the event alone does not say it
    "shadowed"      the value of an unknown field that was itself called `_spendstream`
    "wire", "raw"   the original bytes (base64), of an event that intake would not take in the form of the line:
                    it is too long when written as JSON, has a 65th tag from lenient handling, or an unknown field that
                    is one in JSON
"""

import re
from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple

import msgspec
from msgspec import Raw, Struct

from processor.core.clock import format_timestamp, parse_timestamp
from processor.core.events.codec import PayloadFormat
from processor.core.events.columns import CLIENT
from processor.core.events.event import MAX_EVENT_BYTES, Event, Fault, Handling
from processor.core.events.fields import MAX_TAGS, RECENT, RULES
from processor.core.events.source import Api, Source
from processor.core.events.syntax_faults import syntax_fault
from processor.core.money import format_cost, parse_cost

META: Final = "_spendstream"

MAX_LINE: Final = 8 * 1024 * 1024
"""Bytes of the longest line: more than the worst case of an event as JSON (6 bytes for one), and its original bytes."""


DIGEST_DIGITS: Final = 16


class _Meta(Struct, kw_only=True, omit_defaults=True):
    project: str
    organization: str
    key_id: str
    arrival: str
    handling: Handling
    api: Api = "http"
    rules: Literal[4, 5] = 4
    cost_source: str | None = None
    digest: str | None = None
    shadowed: Raw | msgspec.UnsetType = msgspec.UNSET
    wire: Literal["json", "proto"] = "json"
    raw: str | None = None


_encode = msgspec.json.Encoder().encode
_decode_line = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_meta = msgspec.json.Decoder(_Meta).decode
_is_digest = re.compile(f"[0-9a-f]{{{DIGEST_DIGITS}}}").fullmatch
_decode_count = msgspec.json.Decoder(int | None).decode
_NULL: Final = Raw(b"null")


# --- out -------------------------------------------------------------------------------------------------------------


def encode_line(source: Source, event: Event, record: Callable[[], bytes], digest: int | None = None) -> bytes:
    """The line of an event, without its end; `record` gives the event as the log keeps it, `digest` is that of its row
    where it is not made of the event alone."""
    fields = _fields(event)
    meta = _Meta(
        project=source.project,
        organization=source.organization,
        key_id=source.key_id,
        arrival=format_timestamp(source.arrival),
        handling=source.handling,
        api=source.api,
        cost_source=None if event.cost_source == CLIENT else event.cost_source,
        digest=None if digest is None else f"{digest:016x}",
    )
    line = _encode(fields)
    unknown = source.rules >= RULES and source.payload == "protobuf" and not RECENT.isdisjoint(event.extra)
    if len(line) > MAX_EVENT_BYTES or len(event.tags) > MAX_TAGS or unknown:
        meta.wire = "proto" if source.payload == "protobuf" else "json"
        meta.raw = b64encode(record()).decode()
    if source.rules >= RULES and (meta.raw is not None or not RECENT.isdisjoint(fields)):
        meta.rules = 5
    if META in fields:
        meta.shadowed = fields.pop(META)
        line = _encode(fields)
    return line[:-1] + b',"' + META.encode() + b'":' + _encode(meta) + b"}"


def _fields(event: Event) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name in Event.__struct_fields__:
        value = getattr(event, name)
        if name == "timestamp":
            fields[name] = format_timestamp(value)
        elif name == "cost":
            fields["cost_usd"] = Raw(format_cost(value).encode()) if event.priced else None
        elif name == "kind":
            if event.is_span:
                fields[name] = value
        elif name not in {"priced", "extra", "cost_source"} and value is not None and value not in ({}, []):
            fields[name] = value
    fields.update((name, Raw(_one_line(bytes(value)))) for name, value in event.extra.items())
    return fields


def _one_line(json: bytes) -> bytes:
    """The same JSON without line breaks, which can only stand between its tokens."""
    return json.replace(b"\r", b" ").replace(b"\n", b" ")


# --- back ------------------------------------------------------------------------------------------------------------


class Opened(NamedTuple):
    """What a line says."""

    source: Source
    record: bytes
    """The event as it may go into the log, as `source.payload`."""
    as_counted: bool
    """It says how many input tokens were counted (`event.check`); False for original bytes that may not."""
    price: tuple[int, str] | None
    """Picodollars, and the price list they are from, of an event that came without a cost."""
    digest: int | None
    """That of its row, where it is not made of the event alone."""


def open_line(line: bytes) -> Opened:
    """Take a line apart. The event is not checked: `codec.decode` does that, with the source's handling and arrival.

    Raises `Fault`.
    """
    if len(line) > MAX_LINE:
        raise Fault("out_of_range", None, f"a line must have at most {MAX_LINE} bytes, not {len(line)}")
    fields = _open(line)
    meta = _meta(fields.pop(META, None))
    price = _price(fields, meta.cost_source)
    digest = _digest(meta.digest)
    record = _encode(fields if meta.shadowed is msgspec.UNSET else {**fields, META: meta.shadowed})
    as_counted = meta.raw is None or _has_tokens_apart(fields)
    if meta.raw is not None:
        try:
            record = b64decode(meta.raw, validate=True)
        except ValueError:
            raise Fault("invalid", f"{META}.raw", f"{META}.raw must be base64") from None
    else:
        meta.wire = "json"
    try:
        arrival = parse_timestamp(meta.arrival)
    except ValueError as error:
        raise Fault("invalid", f"{META}.arrival", f"{META}.arrival {error}") from None
    payload: PayloadFormat = "protobuf" if meta.wire == "proto" else "json"
    is_same = meta.raw is None and RECENT.isdisjoint(fields)
    source = Source(
        meta.organization,
        meta.project,
        meta.key_id,
        arrival,
        payload,
        meta.handling,
        api=meta.api,
        rules=RULES if is_same else meta.rules,
    )
    return Opened(source, record, as_counted, price, digest)


def _price(fields: dict[str, Raw], name: str | None) -> tuple[int, str] | None:
    """Take the cost out of a line that has it from a price list. Raises `Fault`."""
    if name is None:
        return None
    try:
        return parse_cost(bytes(fields.pop("cost_usd", _NULL)).decode()), name
    except ValueError:
        raise Fault("invalid", "cost_usd", f"cost_usd must be the number that {META}.cost_source speaks of") from None


def _digest(text: str | None) -> int | None:
    if text is None:
        return None
    if not _is_digest(text):
        raise Fault("invalid", f"{META}.digest", f"{META}.digest must be {DIGEST_DIGITS} hexadecimal digits")
    return int(text, 16)


def _has_tokens_apart(fields: dict[str, Raw]) -> bool:
    """True for an event that was counted with more cached than input tokens: lenient handling has not added them."""
    try:
        inputs, cached = (_decode_count(fields.get(name, _NULL)) for name in ("input_tokens", "cached_tokens"))
    except msgspec.MsgspecError:
        return False  # its check will say so
    return (cached or 0) > (inputs or 0)


def _open(line: bytes) -> dict[str, Raw]:
    try:
        try:
            return _decode_line(line)
        except msgspec.ValidationError:
            msgspec.json.decode(line)  # it may be no JSON at all
            raise Fault("invalid", None, "a line must be a JSON object") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise syntax_fault(line, str(error)) from None


def _meta(text: Raw | None) -> _Meta:
    if text is None:
        raise Fault("missing", META, f"{META} is required: only lines that an export wrote can be imported")
    try:
        return _decode_meta(text)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Fault("invalid", META, f"{META}: {error}") from None
