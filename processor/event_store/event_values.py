"""The values of a message's events that its columns do not have, field by field.

Most events are plain: every field of theirs is known, and nothing stands for something else. msgspec reads all plain
lines of a request at once; protobuf events that are plain are read attribute by attribute. Whatever is not is decoded
the slow way (`codec.decode_event`), which gives plain ones the same values.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any, Final, NamedTuple

import msgspec
import pyarrow as pa
from google.protobuf.message import DecodeError
from msgspec import Raw, Struct

from processor.core.clock import LAST
from processor.core.events.codec import decode_event
from processor.core.events.event import PlainFields, is_of_form
from processor.core.events.fields import FIELDS, MAX_ERROR_MESSAGE, OPERATIONS, PROVIDERS, RULES
from processor.core.events.message import MessageError
from processor.core.events.ndjson import Lines
from processor.core.events.source import Source
from processor.event_store.schema import SCHEMA
from protos.spendstream.v1 import ingest_pb2 as pb

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
VALUES: Final = (*TEXTS, *MILLIS, *COUNTS, "stream", "kind", "extra")
"""Fields of one value each that is found in the original bytes only."""
MAPS: Final = ("tags", "eval_scores")
LISTS: Final = ("tools_used",)
COLLECTIONS: Final = (*MAPS, *LISTS)

MANY: Final = 1 << 16
"""Items of a collection of all events, for which Arrow arrays are made of them."""

_NOT_PLAIN: Final = frozenset({"name", "cache_write_tokens", "reasoning_tokens", "extra", "kind"})
"""Fields that no plain line has."""
_AS_THEY_ARE: Final = [
    (name, attrgetter(name))
    for name in VALUES
    if name not in _NOT_PLAIN | {"error_message", "session_id", "sdk_version"}
]

_decode_plain = msgspec.json.Decoder(PlainFields).decode
_decode_lines = msgspec.json.Decoder(PlainFields).decode_lines
_encode = msgspec.json.Encoder().encode
_parse: Final[Callable[[bytes], Any]] = pb.Event.FromString
_NAME: Final = next(field for field in FIELDS if field.name == "name")


class Collections(Struct):
    """A collection of each event, laid end to end: objects of a request are gone before the next one is read, or the
    garbage collector would look at them all again and again, for a third of the time."""

    counts: list[int]
    """Items of each event."""
    items: list[Any]
    """Of all events; of objects the values."""
    keys: list[str]
    """Of objects."""
    packed: list["PackedItems"] = []
    """Those before these, as Arrow arrays: of 20 MiB of scores the objects take 250."""

    def pack(self, kind: Any) -> None:
        """Make Arrow arrays of keys and items, if there are many, for a map or list of this type."""
        if len(self.items) < MANY:
            return
        if pa.types.is_map(kind):
            keys, items = pa.array(self.keys, kind.key_type), pa.array(self.items, kind.item_type)
        else:
            keys, items = None, pa.array(self.items, kind.value_type)
        self.packed.append(PackedItems(keys, items))
        self.keys, self.items = [], []


class PackedItems(NamedTuple):
    """Items of collections, end to end, as Arrow arrays."""

    keys: Any
    """None: those of lists have none."""
    items: Any


class Values(Struct):
    """Values of some events, in their order."""

    columns: dict[str, list[Any]]
    """Field of `VALUES` -> the value of each event; None where there is none. `extra` is JSON text."""
    collections: dict[str, Collections]
    absent: list[tuple[int, str]]
    """(place, field) of counts that an event came without, though its row has a 0: only spans may."""
    free: list[int]
    """Places of spans that say that they cost 0."""

    def __len__(self) -> int:
        return len(self.columns["trace_id"])

    @property
    def packed_items(self) -> int:
        """Return how many items Arrow arrays have."""
        return sum(len(each.items) for found in self.collections.values() for each in found.packed)

    def pack(self) -> None:
        """Make Arrow arrays of collections that have many items."""
        for name, each in self.collections.items():
            each.pack(SCHEMA.field(name).type)


def empty() -> Values:
    """Return the values of no event."""
    return Values({name: [] for name in VALUES}, {name: Collections([], [], []) for name in COLLECTIONS}, [], [])


def add(into: Values, source: Source, records: Sequence[bytes], kept: Sequence[bool]) -> None:
    """Add the values of the events of a request that are kept. Raises `ValueError` if they cannot be read."""
    if len(records) != len(kept):
        raise MessageError(f"event message with the records of {len(records)} events of {len(kept)}")
    if source.payload == "json":
        events = _plain_lines(records)
        if events is not None:
            chosen = events if all(kept) else [event for event, is_kept in zip(events, kept, strict=True) if is_kept]
            _add_plain(into, chosen, source)
            return
    elif all(kept):
        parsed = _plain_messages(records, source)
        if parsed is not None:
            _add_messages(into, parsed)
            return
    for record, is_kept in zip(records, kept, strict=True):
        if is_kept:
            _add(into, record, source)


# --- lines -----------------------------------------------------------------------------------------------------------


def _plain_lines(records: Sequence[bytes]) -> list[Any] | None:
    """Return the lines of a request if all are plain."""
    try:
        if not isinstance(records, Lines):
            return list(map(_decode_plain, records))
        events: list[Any] = _decode_lines(records.text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return events if len(events) == len(records) else None


def _add_plain(into: Values, events: Sequence[Any], source: Source) -> None:
    columns, nothing = into.columns, [None] * len(events)
    for name, value in _AS_THEY_ARE:
        columns[name] += map(value, events)
    missing = "unknown" if source.handling == "lenient" else ""
    columns["sdk_version"] += [event.sdk_version or missing for event in events]
    columns["error_message"] += [event.error_message and event.error_message[:MAX_ERROR_MESSAGE] for event in events]
    columns["session_id"] += [event.session_id or None for event in events]
    columns["kind"] += ["call"] * len(events)
    for name in ("name", "cache_write_tokens", "reasoning_tokens", "extra"):
        columns[name] += nothing
    for name in MAPS:
        _add_objects(into.collections[name], [getattr(event, name) or _NO_ITEMS for event in events])
    _add_lists(into.collections["tools_used"], [event.tools_used or () for event in events])


_NO_ITEMS: Final[dict[str, Any]] = {}


def _add_objects(into: Collections, objects: Sequence[Mapping[str, Any]]) -> None:
    into.counts += map(len, objects)
    into.keys += chain.from_iterable(objects)
    into.items += chain.from_iterable([each.values() for each in objects if each])


def _add_lists(into: Collections, lists: Sequence[Sequence[Any]]) -> None:
    into.counts += map(len, lists)
    into.items += chain.from_iterable(lists)


# --- protobuf --------------------------------------------------------------------------------------------------------


def _plain_messages(records: Sequence[bytes], source: Source) -> list[Any] | None:
    """Return the messages of a request if all are plain. Intake has taken them: what it has not is not asked."""
    try:
        events = list(map(_parse, records))
    except DecodeError:
        return None
    return events if all(_is_plain(event, source) for event in events) else None


def _is_plain(event: Any, source: Source) -> bool:
    return (
        event.provider in PROVIDERS
        and event.operation in OPERATIONS
        and bool(event.trace_id and event.span_id and event.sdk_version)
        and not event.extra_json
        and (not event.HasField("kind") or (source.rules >= RULES and event.kind == "call"))
        and (not event.HasField("name") or (source.rules >= RULES and is_of_form(_NAME, event.name)))
        and (source.rules >= RULES or not (event.HasField("cache_write_tokens") or event.HasField("reasoning_tokens")))
    )


def _add_messages(into: Values, events: Sequence[Any]) -> None:
    columns = into.columns
    for name in ("trace_id", "span_id", "sdk_version", "latency_ms", "stream"):
        columns[name] += map(attrgetter(name), events)
    for name in ("parent_span_id", "error_code", "finish_reason", "prompt_hash", "ttft_ms", *COUNTS, "name"):
        columns[name] += [
            value or (value if event.HasField(name) else None)
            for event, value in zip(events, map(attrgetter(name), events), strict=True)
        ]
    columns["error_message"] += [
        event.error_message[:MAX_ERROR_MESSAGE] if event.HasField("error_message") else None for event in events
    ]
    columns["session_id"] += [event.session_id or None for event in events]
    columns["kind"] += ["call"] * len(events)
    columns["extra"] += [None] * len(events)
    for name in MAPS:
        found = [dict(each) if each else _NO_ITEMS for each in map(attrgetter(name), events)]
        _add_objects(into.collections[name], found)
    _add_lists(into.collections["tools_used"], [event.tools_used for event in events])


# --- the slow way ----------------------------------------------------------------------------------------------------


def _add(into: Values, record: bytes, source: Source) -> None:
    event = decode_event(source.payload, record, source.handling, LAST, as_counted=True, rules=source.rules)
    place = len(into)
    for name, column in into.columns.items():
        column.append(getattr(event, name))
    extra: Mapping[str, Raw] = event.extra
    into.columns["extra"][-1] = _encode(extra).decode() if extra else None
    for name in MAPS:
        _add_objects(into.collections[name], [getattr(event, name)])
    _add_lists(into.collections["tools_used"], [event.tools_used])
    if event.is_span:
        into.absent += [(place, name) for name in ("input_tokens", "output_tokens") if getattr(event, name) is None]
        if event.priced:
            into.free.append(place)
