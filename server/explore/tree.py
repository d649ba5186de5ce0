"""The spans of a trace as a forest, in depth-first order: iterative, for any depth, and whole for any input.

A span's parent is the event that arrived first of those with the span id it names. So every span has at most one
parent, and what is not below a root is below a cycle, which is cut at its earliest span. The order of arrival decides
nothing but which of several events with one span id has the children, and the order of events with the same start.
"""

from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple

Arrival = tuple[Any, ...]
"""When an event arrived, comparable and different for any two events."""

Flaw = Literal["orphan", "cycle"]
"""Why a span is a root although it names a parent: the parent is not there, or the span is below itself."""

NO_PARENT: Final = -1


class TreeSpan(NamedTuple):
    """What an event's place in its trace depends on."""

    span_id: str
    parent_span_id: str | None
    """Empty: the same as None."""
    start: int
    """The event's timestamp, in any unit."""
    arrival: Arrival


class TreePlace(NamedTuple):
    """Where an event stands in the forest."""

    span: int
    """Its number among the spans that were given."""
    parent: int | None
    """The number of its parent's place; None: a root."""
    depth: int
    """0 of a root."""
    flaw: Flaw | None = None


def arrange(spans: Sequence[TreeSpan]) -> list[TreePlace]:
    """Return the places of all spans, each once: a parent before its children, siblings by start, then by arrival."""
    parents, flaws = _parents(spans)
    order = sorted(range(len(spans)), key=[(span.start, span.arrival) for span in spans].__getitem__)
    _cut_cycles(parents, order, flaws)
    children: dict[int, list[int]] = {}
    for number in reversed(order):  # the last first, as a stack wants them
        children.setdefault(parents[number], []).append(number)
    places: list[TreePlace] = []
    stack: list[tuple[int, int | None, int]] = [(root, None, 0) for root in children.get(NO_PARENT, ())]
    while stack:
        number, parent, depth = stack.pop()
        below = children.get(number)
        if below is not None:
            place = len(places)
            stack += [(child, place, depth + 1) for child in below]
        places.append(TreePlace(number, parent, depth, flaws.get(number)))
    return places


def _parents(spans: Sequence[TreeSpan]) -> tuple[list[int], dict[int, Flaw]]:
    """Return the number of each span's parent, or `NO_PARENT`, and the spans whose parents are not there."""
    owners: dict[str, int] = {}
    """Span id -> the event of it that arrived first."""
    for number in sorted(range(len(spans)), key=[span.arrival for span in spans].__getitem__):
        owners.setdefault(spans[number].span_id, number)
    parents = [NO_PARENT if not span.parent_span_id else owners.get(span.parent_span_id, NO_PARENT) for span in spans]
    flaws: dict[int, Flaw] = {
        number: "orphan" for number, span in enumerate(spans) if span.parent_span_id and parents[number] == NO_PARENT
    }
    return parents, flaws


def _cut_cycles(parents: list[int], order: Sequence[int], flaws: dict[int, Flaw]) -> None:
    """Make a root of the earliest span of every cycle.

    From each span the way goes up until it ends, or meets a span that has been seen: on an earlier way, which is done,
    or on this one, which closes a cycle. Each span is seen once.
    """
    seen_on = [NO_PARENT] * len(parents)
    """Span -> the span that the way began with on which it was seen."""
    ranks = [0] * len(parents)
    for rank, number in enumerate(order):
        ranks[number] = rank
    for first in range(len(parents)):
        number = first
        while number != NO_PARENT and seen_on[number] == NO_PARENT:
            seen_on[number] = first
            number = parents[number]
        if number != NO_PARENT and seen_on[number] == first:
            earliest = min(_cycle(parents, number), key=ranks.__getitem__)
            parents[earliest] = NO_PARENT
            flaws[earliest] = "cycle"


def _cycle(parents: Sequence[int], member: int) -> list[int]:
    found = [member]
    while parents[found[-1]] != member:
        found.append(parents[found[-1]])
    return found
