"""Calls of a trace that only repeat one below them, and came in another request than that: both are charged.

Within one request the outer one is kept as a span (`server.otlp.span_parents`). Over several it cannot be known when it
arrives, for a span ends, and is sent, after those below it; the trace shows it.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

from server.explore.tree import TreePlace
from server.otlp.attribute_names import read
from server.otlp.kinds import kind_of
from server.otlp.span_parents import MAX_OUTER, repeats


class _Extra(Struct):
    attributes: dict[str, Any] | None = None


class _Event(Struct):
    kind: str = "call"
    name: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None
    extra: _Extra | None = None


_decode = msgspec.json.Decoder(_Event).decode
_NONE: Final = _Event()
_ATTRIBUTES: Final = b'"attributes"'
"""What is in every event that came as a span; most others need not be decoded."""


def nested_model_calls(events: Sequence[bytes], kinds: Sequence[str], places: Sequence[TreePlace]) -> set[int]:
    """The places of such calls, of events that came as spans. `events`: as JSON without the last brace; `kinds`: of
    each. An event is only decoded if it stands between two calls, or is one of them."""
    opened: dict[int, _Event] = {}

    def event_at(place: int) -> _Event:
        number = places[place].span
        if number not in opened and _ATTRIBUTES not in events[number] and kinds[number] == "call":
            opened[number] = _NONE
        elif number not in opened:
            try:
                opened[number] = _decode(events[number] + b"}")
            except msgspec.MsgspecError:  # an extra of a sender that has another form
                opened[number] = _NONE
        return opened[number]

    def is_barrier(place: int) -> bool:
        event = event_at(place)
        return kind_of(read(_attributes(event) or {}, {}), event.name).role == "barrier"

    outer: list[int | None] = []
    """Of each place the nearest call around it with no barrier in between."""
    found: set[int] = set()
    for place, each in enumerate(places):
        parent = each.parent
        if parent is None:
            around = None
        elif kinds[places[parent].span] == "call":
            around = parent
        else:
            around = outer[parent]
            if around is not None and is_barrier(parent):
                around = None
        outer.append(around)
        if around is None or kinds[each.span] != "call" or _attributes(event_at(place)) is None:
            continue
        for _ in range(MAX_OUTER):
            if around is None:
                break
            if around not in found and _repeats(event_at(around), event_at(place)):
                found.add(around)
            around = outer[around]
    return found


def _attributes(event: _Event) -> dict[str, Any] | None:
    """Those of a span; None: the event was sent as one."""
    return None if event.extra is None else event.extra.attributes


def _repeats(around: _Event, event: _Event) -> bool:
    return _attributes(around) is not None and repeats(
        around.input_tokens, around.output_tokens, event.input_tokens, event.output_tokens
    )
