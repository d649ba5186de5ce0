from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.cli.remote import Parser, ServerSent


def parse(*chunks: bytes) -> list[ServerSent]:
    parser = Parser()
    return [event for chunk in chunks for event in parser.feed(chunk)]


BODY = (
    b": hello\nretry: 1000\n\n"
    b'id: 1\nevent: snapshot\ndata: {"a": 1}\n\n'
    b": heartbeat\n\n"
    b"id:2\r\nevent:update\r\ndata:x\r\ndata: y\r\n\r\n"
    b"data: without a name\n\n"
    b"id: 3\n\n"
    b"event: nothing\n\n"
    b"unknown: z\ndata\n\n"
    b"data: never ended\n"
)
EVENTS = [
    ServerSent("snapshot", "1", b'{"a": 1}'),
    ServerSent("update", "2", b"x\ny"),
    ServerSent("message", "2", b"without a name"),
    ServerSent("message", "3", b""),
]


@given(st.lists(st.integers(0, len(BODY)), max_size=12).map(sorted))
def test_events_come_out_however_the_bytes_are_cut(cuts: list[int]) -> None:
    edges = [0, *cuts, len(BODY)]
    assert parse(*(BODY[start:end] for start, end in pairwise(edges))) == EVENTS


def test_an_event_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.cli.remote.MAX_EVENT", 100)
    with pytest.raises(ValueError, match="without an end"):
        parse(b"data: ", b"x" * 100)
