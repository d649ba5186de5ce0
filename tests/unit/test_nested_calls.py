"""Calls that came in another request than the one they repeat: both are charged, and the trace marks the outer one."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
import pytest

from server.explore.nested_calls import nested_model_calls
from server.explore.tree import TreeSpan, arrange
from tests.support.otlp import CHAT, make_span, request, span_id
from tests.support.otlp_events import events_of

OUTER: Final = CHAT | {"gen_ai.usage.input_tokens": 150, "gen_ai.usage.output_tokens": 30}
FEWER: Final = CHAT | {"gen_ai.usage.input_tokens": 99}
NO_TOKENS: Final = {name: each for name, each in CHAT.items() if "usage" not in name}
CHAIN: Final = {"openinference.span.kind": "CHAIN"}
TOOL: Final = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "search"}
AGENT: Final = {"gen_ai.operation.name": "invoke_agent"}

Sent = Sequence[dict[str, Any]]


def marked(requests: Sequence[Sent]) -> tuple[set[int], set[int]]:
    """The numbers of the spans that the trace marks, and of those that are charged, of requests one after the other."""
    events = [event for spans in requests for event in events_of(request(*spans))]
    kinds = [event.get("kind", "call") for event in events]
    places = arrange(
        [TreeSpan(event["span_id"], event.get("parent_span_id"), 0, (number,)) for number, event in enumerate(events)]
    )
    lines = []
    for event in events:
        stored = {name: event.pop(name) for name in ("attributes", "resource", "scope") if name in event}
        lines.append(msgspec.json.encode({**event, "extra": stored})[:-1])
    found = nested_model_calls(lines, kinds, places)
    ids = {span_id(number): number for number in range(1, 10)}
    charged = {ids[event["span_id"]] for event, kind in zip(events, kinds, strict=True) if kind == "call"}
    return {ids[events[places[place].span]["span_id"]] for place in found}, charged


@pytest.mark.parametrize(
    ("requests", "expected", "charged"),
    [
        pytest.param([[make_span(1, attributes=OUTER), make_span(2, 1)]], set(), {2}, id="in one request"),
        pytest.param([[make_span(2, 1)], [make_span(1, attributes=OUTER)]], {1}, {1, 2}, id="the inner one first"),
        pytest.param([[make_span(1, attributes=OUTER)], [make_span(2, 1)]], {1}, {1, 2}, id="the outer one first"),
        pytest.param([[make_span(2, 1)], [make_span(1, attributes=NO_TOKENS)]], {1}, {1, 2}, id="without tokens"),
        pytest.param([[make_span(2, 1)], [make_span(1, attributes=FEWER)]], set(), {1, 2}, id="with fewer tokens"),
        pytest.param(
            [[make_span(3, 2)], [make_span(2, 1, attributes=CHAIN), make_span(1, attributes=OUTER)]],
            {1},
            {1, 3},
            id="with a chain in between",
        ),
        pytest.param(
            [[make_span(3, 2)], [make_span(2, 1, attributes=TOOL), make_span(1, attributes=OUTER)]],
            set(),
            {1, 3},
            id="with a tool in between",
        ),
        pytest.param(
            [[make_span(3, 2)], [make_span(2, 1, attributes=AGENT)], [make_span(1, attributes=OUTER)]],
            set(),
            {1, 3},
            id="with an agent in between",
        ),
        pytest.param(
            [[make_span(3, 2)], [make_span(2, 1, attributes=OUTER)], [make_span(1, attributes=OUTER)]],
            {1, 2},
            {1, 2, 3},
            id="in three requests",
        ),
        pytest.param(
            [[make_span(3, 2), make_span(2, 1, attributes=OUTER)], [make_span(1, attributes=OUTER)]],
            {1},
            {1, 3},
            id="around one that is a span",
        ),
        pytest.param([[make_span(1)], [make_span(2)]], set(), {1, 2}, id="side by side"),
    ],
)
def test_a_call_around_one_of_another_request_is_marked(
    requests: Sequence[Sent], expected: set[int], charged: set[int]
) -> None:
    assert marked(requests) == (expected, charged)
