"""Messages of the log by the million: requests of `Wide`, each with ids and times of its own.

A hundred million events one by one take hours; so some requests are made once, and what has to differ from one event to
the next is written over in their bytes: the event's id, the ids of trace and span, the session and the time. Of these
everything follows from the seed and the number of the message.

Events come in traces of `SPANS`: the first is the root, the others are its children. Times grow with the message.
"""

import random
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from processor.core.clock import SECOND
from processor.core.events import codec, message
from processor.core.events.message import Block, Message, build_blocks
from processor.core.events.ndjson import Lines
from processor.core.events.source import Source
from tests.bench.passes import HEX_AT, hex_ids
from tests.bench.processing import REQUESTS
from tests.support.events import to_json_line
from tests.support.traffic import BATCH, Wide

TEMPLATES: Final = 200
"""Requests that are made once."""
SPANS: Final = 4
"""Events of a trace."""
EVENTS: Final = BATCH * REQUESTS
"""Of a message."""
LATE: Final = 60 * SECOND
"""Up to which an event is sent after its time, in microseconds."""

_TRACE, _SPAN, _SESSION = "trace-", "span-", "sess-"
_TRACE_DIGITS: Final = 12
_SESSION_DIGITS: Final = 8
_DATE: Final = "2026-04-20T10:00:00.000Z"
_DATE_CHARACTERS: Final = 23

Places = NDArray[np.int64]


class _Template(Struct):
    """One request, and where its bytes are written over: for each event, or for each that has the field."""

    text: bytes
    ids: Places
    traces: Places
    spans: Places
    parents: Places
    children: NDArray[np.int64]
    """Which events have a parent."""
    sessions: Places
    in_sessions: NDArray[np.int64]
    times: Places


def _template(rng: random.Random) -> _Template:
    wide = Wide(rng)
    lines = []
    for number in range(BATCH):
        event, _ = wide.make(number)
        event |= {"trace_id": _TRACE + "0" * _TRACE_DIGITS, "span_id": _SPAN + "0" * _TRACE_DIGITS, "timestamp": _DATE}
        event.pop("parent_span_id", None)
        if number % SPANS:
            event["parent_span_id"] = _SPAN + "0" * _TRACE_DIGITS
        if "session_id" in event:
            event["session_id"] = _SESSION + "0" * _SESSION_DIGITS
        lines.append(to_json_line(event))
    starts = np.cumsum([0, *(len(line) + 1 for line in lines[:-1])]).tolist()

    def places(field: str, begin: str, digits: Iterable[int]) -> tuple[Places, NDArray[np.int64]]:
        mark = f'"{field}":"{begin}'.encode()
        having = [number for number, line in enumerate(lines) if mark in line]
        at = np.array([starts[number] + lines[number].index(mark) + len(mark) for number in having], np.int64)
        return at[:, None] + np.fromiter(digits, np.int64), np.array(having, np.int64)

    parents, children = places("parent_span_id", _SPAN, range(_TRACE_DIGITS))
    sessions, in_sessions = places("session_id", _SESSION, range(_SESSION_DIGITS))
    return _Template(
        text=b"\n".join(lines),
        ids=places("event_id", "", HEX_AT.tolist())[0],
        traces=places("trace_id", _TRACE, range(_TRACE_DIGITS))[0],
        spans=places("span_id", _SPAN, range(_TRACE_DIGITS))[0],
        parents=parents,
        children=children,
        sessions=sessions,
        in_sessions=in_sessions,
        times=places("timestamp", "", range(_DATE_CHARACTERS))[0],
    )


class GeneratedMessages:
    """Messages by their numbers; the same for the same seed."""

    def __init__(self, seed: int = 1, projects: Sequence[str] = ("default",)) -> None:
        """`projects`: requests are of each in turn."""
        rng = random.Random(seed)
        self._seed = seed
        self._projects = projects
        self._templates = [_template(rng) for _ in range(TEMPLATES)]

    def message(self, number: int, arrival: int) -> Message:
        """Return a message that arrives at a time, in microseconds, as its readers see it."""
        return message.opened(self._blocks(number, arrival))

    def encoded(self, number: int, arrival: int) -> bytes:
        """Return the same as it stands in the log."""
        return message.encode(self._blocks(number, arrival))

    def _blocks(self, number: int, arrival: int) -> list[Block]:
        digits = hex_ids(self._seed, number, np.arange(EVENTS))
        chance = np.random.Generator(np.random.SFC64([self._seed, number, 1]))
        late = np.repeat(chance.integers(0, LATE, EVENTS // SPANS), SPANS) - np.tile(
            np.arange(SPANS) * SECOND, EVENTS // SPANS
        )
        blocks = []
        for request in range(REQUESTS):
            part = slice(request * BATCH, (request + 1) * BATCH)
            template = self._templates[(number * REQUESTS + request) % TEMPLATES]
            text = _written(template, digits[part], arrival - late[part])
            project = self._projects[(number * REQUESTS + request) % len(self._projects)]
            source = Source("default", project, "made", arrival, "json", "partial")
            found = codec.decode("json", Lines(text, BATCH), "partial", arrival)
            blocks.append(build_blocks(source, found.columns, 1)[0])
        return blocks


def _written(template: _Template, digits: NDArray[np.uint8], times: NDArray[np.int64]) -> bytes:
    """Return the text of a request whose events have ids of these digits, 32 each, and these times."""
    text = bytearray(template.text)
    view = np.frombuffer(text, np.uint8)
    traces = np.repeat(digits[::SPANS], SPANS, axis=0)  # of its first event
    view[template.ids] = digits
    view[template.traces] = traces[:, :_TRACE_DIGITS]
    view[template.spans] = digits[:, -_TRACE_DIGITS:]
    view[template.parents] = traces[template.children, -_TRACE_DIGITS:]
    view[template.sessions] = traces[template.in_sessions, :_SESSION_DIGITS]
    written = np.datetime_as_string(times.astype("datetime64[us]"), unit="ms").astype("S")
    view[template.times] = written.view(np.uint8).reshape(len(times), -1)[:, :_DATE_CHARACTERS]
    return bytes(text)
