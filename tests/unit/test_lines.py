"""Lines that nobody has cut up are what the same lines are in a list."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.core.events.ndjson import Lines, Part, size_of

texts = st.lists(st.binary(max_size=5).map(lambda text: text.replace(b"\n", b"")), min_size=1, max_size=9)


@given(texts, st.integers(0, 8), st.integers(0, 9), st.integers(-10, 10))
def test_they_are_a_sequence(lines: list[bytes], start: int, count: int, index: int) -> None:
    found = Lines(b"\n".join(lines), len(lines))
    assert (len(found), list(found), found[1:]) == (len(lines), lines, lines[1:])
    start = min(start, len(lines))
    part, wanted = Part(found, start, count), lines[start : start + count]
    assert (len(part), list(part), part[1:], bool(part)) == (len(wanted), wanted, wanted[1:], bool(wanted))
    for one, other in ((found, lines), (part, wanted)):
        if -len(other) <= index < len(other):
            assert one[index] == other[index]
        else:
            with pytest.raises(IndexError):
                one[index]


@given(texts)
def test_their_size_is_known_without_cutting(lines: list[bytes]) -> None:
    assert size_of(lines) == sum(map(len, lines))
    assert size_of(Lines(b"\n".join(lines), len(lines))) == sum(map(len, lines)) + len(lines) - 1
