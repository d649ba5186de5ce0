"""What of a span no field of an event has: attributes, resource, scope and events, within bounds.

attributes            those that are not read into fields
resource              the attributes of the resource
scope                 {"name", "version", "attributes"} of the instrumentation
events                [{"name", "time", "attributes"}, ...]
sent_parent_span_id   the parent as it was sent, if the event has another one
usage_normalized      true: input or output tokens did not include their parts
wrapper               true: a call that repeats one below it, and is kept as a span
cut                   names of what had no room
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from processor.core.clock import format_timestamp
from server.otlp.content import Content, is_content
from server.otlp.spans import MAX_TIME, Origin, SpanEvent
from server.otlp.values import CUT

MAX_LINE: Final = 192 * 1024
"""Bytes of an event made of a span."""
MAX_ORIGIN: Final = 16 * 1024
"""Bytes of a resource, and of a scope."""
MIN_ORIGIN: Final = 256
"""The same where so many spans share it that the copies would be `MAX_COPIES`."""
MAX_COPIES: Final = 32 * 1024 * 1024
MAX_NAMES: Final = 64
"""Names of what was cut that are told."""

encode: Final = msgspec.json.Encoder().encode


class OriginJson(Struct, frozen=True, gc=False):
    """What every event of a scope has of it, as JSON; None: nothing."""

    resource: Raw | None
    scope: Raw | None


def origin_json(origin: Origin, used: Iterable[str], content: Content, spans: int) -> OriginJson:
    """Encode resource and scope once for all `spans` of a request; `used`: attributes of the resource that became
    fields."""
    room = max(min(MAX_ORIGIN, MAX_COPIES // max(spans, 1)), MIN_ORIGIN)
    taken = set(used)
    resource = kept({name: value for name, value in origin.resource.items() if name not in taken}, content)
    scope: dict[str, Any] = {}
    if origin.scope:
        scope["name"] = origin.scope[:MIN_ORIGIN]
    if origin.version:
        scope["version"] = origin.version[:MIN_ORIGIN]
    own = kept(origin.attributes, content)
    if own:
        scope["attributes"] = Raw(encode(fitting(own, room)))
    return OriginJson(
        Raw(encode(fitting(resource, room))) if resource else None,
        Raw(encode(scope)) if scope else None,
    )


def kept(attributes: dict[str, Any], content: Content) -> dict[str, Any]:
    """Attributes without those that are not to be kept."""
    if content == "keep" or not attributes:
        return attributes
    return {name: value for name, value in attributes.items() if not is_content(name)}


def fitting(attributes: dict[str, Any], room: int) -> dict[str, Any]:
    """Attributes that are at most `room` bytes of JSON: the largest are left out first, and named."""
    if len(encode(attributes)) <= room:
        return attributes
    found = dict(attributes)
    names = _drop_largest(_sizes(found), room)
    for name in names:
        del found[name]
    return {**found, "cut": told(names)}


def _sizes(attributes: dict[str, Any]) -> list[tuple[int, str]]:
    """Bytes of each; what says how many there were always stays."""
    return [(len(name) + len(encode(value)) + 8, name) for name, value in attributes.items() if name != CUT]


def _drop_largest(sizes: list[tuple[int, str]], room: int) -> list[str]:
    """The names of the largest that have to go, so that the others and what is said of these have room."""
    total = sum(size for size, _ in sizes) + MIN_ORIGIN // 2
    names: list[str] = []
    for size, name in sorted(sizes, reverse=True):
        if total <= room:
            break
        total -= size
        if len(names) < MAX_NAMES:
            total += min(len(name), MIN_ORIGIN // 4) + 8
        names.append(name)
    return names


def told(names: Sequence[str]) -> list[str]:
    """Names of what was cut, as many as have room."""
    shown = [name[: MIN_ORIGIN // 4] for name in names[:MAX_NAMES]]
    more = len(names) - len(shown)
    return [*shown, f"and {more} more"] if more else shown


def events_json(events: Sequence[SpanEvent], content: Content) -> list[dict[str, Any]]:
    """A span's events as they are kept."""
    return list(_events(events, content))


def _events(events: Sequence[SpanEvent], content: Content) -> Iterator[dict[str, Any]]:
    for event in events:
        found: dict[str, Any] = {"name": event.name}
        if 0 < event.at < MAX_TIME:
            found["time"] = format_timestamp(event.at // 1000)
        attributes = kept(event.attributes, content)
        if attributes:
            found["attributes"] = attributes
        yield found


def line_of(fields: dict[str, Any]) -> bytes:
    """An event as a line of JSON of at most `MAX_LINE` bytes: of attributes and events the largest go first."""
    line = encode(fields)
    if len(line) <= MAX_LINE:
        return line
    attributes, events = dict(fields.get("attributes", ())), list(fields.get("events", ()))
    sizes = _sizes(attributes)
    sizes += [(len(encode(event)) + 1, f"events[{place}]") for place, event in enumerate(events)]
    rest = len(line) - sum(size for size, _ in sizes)
    names = _drop_largest(sizes, MAX_LINE - max(rest, 0))
    for name in names:
        if name not in attributes:
            events[int(name[7:-1])] = None
        attributes.pop(name, None)
    fields["attributes"], fields["events"] = attributes, [event for event in events if event is not None]
    fields["cut"] = told(names)
    return encode(fields)
