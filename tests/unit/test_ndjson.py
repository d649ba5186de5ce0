import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.core.events import ndjson


def split(body: bytes, limit: int) -> tuple[list[bytes], list[int]]:
    records, lines = ndjson.split(body, limit)
    assert len(records) == len(lines)
    return list(records), list(lines)


@pytest.mark.parametrize(
    ("body", "records", "lines"),
    [
        (b"", [], []),
        (b"{}", [b"{}"], [1]),
        (b"{}\n", [b"{}"], [1]),
        (b"{}\n[]\n", [b"{}", b"[]"], [1, 2]),
        (b"{}\r\n[]\r\n", [b"{}", b"[]"], [1, 2]),
        (b"{}\n\n \t\r\n[]", [b"{}", b"[]"], [1, 4]),
        (b"\n\n\n", [], []),
        (b"\n{}", [b"{}"], [2]),
        (b"  {} \n", [b"{}"], [1]),
        (b"\xef\xbb\xbf{}\n[]", [b"{}", b"[]"], [1, 2]),
        (b"\xef\xbb\xbf", [], []),
        (b"\xef\xbb\xbf\n{}", [b"{}"], [2]),
        (b"{}\n\xef\xbb\xbf{}", [b"{}", b"\xef\xbb\xbf{}"], [1, 2]),  # a mark elsewhere is the line's own fault
        (b"{\r}\n", [b"{\r}"], [1]),  # a CR alone ends nothing
        (b"{}\n\x0b\n\x0c[]\x0b", [b"{}", b"\x0b", b"\x0c[]\x0b"], [1, 2, 3]),  # no white space to JSON
        (b"\xff\xfe\n\x00", [b"\xff\xfe", b"\x00"], [1, 2]),
    ],
)
def test_split(body: bytes, records: list[bytes], lines: list[int]) -> None:
    assert split(body, 100) == (records, lines)


def test_stops_one_after_the_limit() -> None:
    records, lines = split(b"{}\n" * 50_000, 100)
    assert (len(records), lines[-1]) == (101, 101)


def test_millions_of_blank_lines_cost_no_memory() -> None:
    body = b"\n" * 5_000_000 + b"{}" + b"\n" * 5_000_000
    tracemalloc.start()
    try:
        assert split(body, 100) == ([b"{}"], [5_000_001])
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_a_body_of_line_ends_between_braces_costs_no_memory() -> None:
    body = b"{" + b"\n" * 10_000_000 + b"}"
    tracemalloc.start()
    try:
        assert split(body, 100) == ([b"{", b"}"], [1, 10_000_001])
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


LINES = st.lists(st.sampled_from(["", " ", "\t", "{}", '{"a": 1}', "[1]", "x y", "\u3000"]), max_size=30)


@given(LINES, st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_every_line_that_is_not_blank_keeps_its_number(texts: list[str], end: str, mark: bool) -> None:
    body = ("\ufeff" if mark else "").encode() + end.join(texts).encode()
    wanted = [(number, text.encode()) for number, text in enumerate(texts, 1) if text.strip(" \t")]
    records, lines = split(body, 100)
    assert list(zip(lines, records, strict=True)) == wanted


@given(st.binary(max_size=200))
def test_any_bytes_can_be_split(body: bytes) -> None:
    records, lines = split(body, 100)
    assert len(records) == len(lines)
    assert all(record and b"\n" not in record for record in records)


def test_text_separators_do_not_end_a_line() -> None:
    line = json.dumps({"a": "\u2028\u0085"}, ensure_ascii=False).encode()
    assert split(line, 100) == ([line], [1])
