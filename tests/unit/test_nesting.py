"""How deep a text is nested, against a twin that says it in the plainest way."""

import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from processor.core.events.event import MAX_EVENT_BYTES
from processor.core.events.nesting import is_deeper

STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


def depth(text: bytes) -> int:
    """The slow twin: without its strings, bracket by bracket."""
    now = deepest = 0
    for byte in STRING.sub(b"", text):
        now += (byte in b"[{") - (byte in b"]}")
        deepest = max(deepest, now)
    return deepest


@given(
    st.lists(st.sampled_from([b'"', b"\\", b"[", b"]", b"{", b"}", b"q", b" ", b"\n", b"\0", b"\xff"])).map(b"".join)
)
@example(b'[["[[')
@example(b'["\\"[["[[')
@example(b'\\"[["[[')
@example(b'["\\\\"[[')
@example(b'"\\"[[\\')
def test_it_is_as_deep_as_the_slow_twin_says(text: bytes) -> None:
    deepest = depth(text)
    assert [is_deeper(text, limit) for limit in range(deepest + 2)] == [True] * deepest + [False] * 2


@pytest.mark.parametrize(
    "part",
    [b"[", b"[]", b'[""],', b'"[",{}', b'"\\"[",', b'\\"[', b'"\\\\', b'"', b"[\\"],
    ids=lambda part: part.decode(),
)
def test_a_hostile_line_takes_time_in_proportion_to_its_length(part: bytes) -> None:
    text = (b"[" * 64 + part * MAX_EVENT_BYTES)[:MAX_EVENT_BYTES]
    is_deeper(text, 64)
    began = time.thread_time()
    for _ in range(10):
        is_deeper(text, 64)
    assert time.thread_time() - began < 2.0  # 0.3 s at most; minutes where it grows with the square
