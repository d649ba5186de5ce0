"""Events of every kind, and what becomes of their bytes when some of them change: near to valid, where it matters."""

import random
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Final

import msgspec

from tests.support.events import ABSENT, make_event, to_json_line, to_proto
from tests.support.traffic import Odd, Plain, Wide, stream

NOW: Final = 1_795_838_400_000_000
"""When the events arrive, in microseconds."""

NUMBERS: Final = [
    *("0", "-0", "-0.0", "0.0", "1e6", "1000000", "1000000.0000000000001", "999999.9999999999995", "1e400", "5.0"),
    *("1e2", "01", "1.", ".5", "1e", "0e0", "0E+5", "9007199254740991", "9007199254740992", "9007199254740993"),
    *("1" * 25, "1" * 301, "0." + "0" * 30 + "1", "null", "true", '"5"', "{}", "NaN", "Infinity", "-1", "1e-30"),
]
TIMES: Final = [
    *("2024-02-29T00:00:00Z", "2023-02-29T00:00:00Z", "1969-12-31T23:59:59Z", "2026-04-20 10:00:00Z"),
    *("2026-04-20t10:00:00Z", "2026-04-20T10:00:00", "2026-04-20T10:00:00.123", "2016-12-31T23:59:60Z"),
    *("9999-12-31T23:59:59Z", "1977-06-21T15:59:59Z", "1977-06-21T16:00:00Z", "196{-01-01T00:00:00Z"),
]
TEXTS: Final = [
    *("é", "\\u00e9", "\\ud83d\\ude00", "\\ud800", "\\n", "\\x", "😀", "\x7f", '\\"', "a" * 250, "é" * 130, "a" * 300),
    *("a" * 180, "a" * 90, "a" * 256, "a" * 257, "\\u0000", " ", "", "\ud800", "\\u00", "a" * 240, "a" * 241),
]
VALUES: Final = [
    *("null", '""', '"x"', "1", "true", "{}", "[]", '"custom"', '{"a":"b","a":"c"}', '{"a":null}', '["x"]', '"span"'),
    *('"call"', '"sp\\u0061n"', "[1,[2,{}]]", '{"a":{"b":[{}]}}', "[" * 63 + "]" * 63, "[" * 64 + "]" * 64),
    *("[1,]", '{"a":1,}', "-", "1e999", "tru", "nulls", '"\\u12"', "{" * 70, '{"a":"\\ud800"}', '["é\\n"]'),
    *("[}", '{"a"}', "[[],{},[]]", '{"a": [ ] , "b" : { } }', "[1 2]", '{"a" 1}', '"a', "1.5e+3", "{}}"),
]
"""Of any field, and of unknown ones."""
PIECES: Final = [
    *("a", "é", "😀", "\u2028", "\x7f", "ab" * 20),
    *("\\n", "\\u00e9", "\\u0000", '\\"', "\\\\", "\\/", "\\u0041", "\\uffff"),
]
"""Of long texts, some with escapes: characters are counted, not bytes."""
SCORES: Final = [
    *("9007199254740993", "18014398509481985", "9999999999999999999", "0.3333333333333333333", "1e19", "1e-19"),
    *("1e22", "12345678901234567e3", "9007199254740993e1", "9007199254740992e19", "-1e-5", "4.9e-324"),
    *("1.7976931348623157e308", "1.7976931348623159e308"),
]
"""Between two doubles, or near to where they end."""
MEMBERS: Final = [
    *("tagz", "kind", "name", "tools_used", "eval_scores", "tags", "project_id", "error_message", "é", "a\\nb"),
    *("kind", "name", "reasoning_tokens", "cache_write_tokens", "ttft_ms", "", "user_idx", "user_i"),
]


def _steps(rng: random.Random) -> Iterator[dict[str, Any]]:
    """Spans, and calls with the fields that are new."""
    while True:
        recent = {"name": rng.choice(["plan", "", "é" * 9, 7, None]), "cache_write_tokens": rng.choice([0, 9, None])}
        yield make_event(kind="call", user_id="u", reasoning_tokens=rng.randrange(9), surprise={"a": [1]}, **recent)
        yield make_event(kind="span", name="plan", cost_usd=rng.choice([0, ABSENT, None]), model=ABSENT, stream=ABSENT)
        yield make_event(kind="span", name="t", provider=ABSENT, operation=ABSENT, input_tokens=ABSENT, cached_tokens=9)
        yield make_event(cost_usd=rng.choice([ABSENT, None]), cached_tokens=rng.choice([0, 600]))
        yield make_event(project_id="p", cached_tokens=rng.choice([0, 600, None]), framework="é", ratio=1e-9)


def events(rng: random.Random, count: int) -> list[dict[str, Any]]:
    """So many events of each kind of traffic."""
    kinds = [
        (streamed.event for streamed in stream(profile, rng, count, 0.0))
        for profile in (Plain(rng), Wide(rng, users=30), Odd(rng, 20, 8, 3))
    ]
    return [event for kind in (*kinds, _steps(rng)) for event in islice(kind, count)]


def _number(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.3:
        return repr(rng.random() * 10 ** rng.randint(-14, 7))
    if kind < 0.5:
        return f"{rng.randint(0, 10 ** rng.randint(1, 19))}e{rng.choice(['', '-', '+'])}{rng.randint(0, 25)}"
    if kind < 0.7:
        width = rng.randint(1, 18)
        return f"{rng.randint(0, 1_000_001)}.{rng.randint(0, 10**width - 1):0{width}d}"
    if kind < 0.8:
        return f"0.{'0' * rng.randint(0, 14)}{rng.choice(['5', '50', '15', '25', '49999', '500000001'])}"
    return rng.choice(NUMBERS)


def _time(rng: random.Random) -> str:
    if rng.random() < 0.2:
        return rng.choice(TIMES)
    date = f"20{rng.randint(20, 27)}-{rng.randint(0, 13):02d}-{rng.randint(0, 32):02d}"
    clock = f"T{rng.randint(0, 25):02d}:{rng.randint(0, 61):02d}:{rng.randint(0, 61):02d}"
    fraction = rng.choice(["", ".1", ".123", ".123456", ".1234567", ".1234567891", "."])
    zone = rng.choice(["Z", "Z", "z", "+00:00", "-00:00", "+05:30", "-23:59", "+24:00", "+0530", "", " "])
    return date + clock + fraction + zone


# --- JSON ------------------------------------------------------------------------------------------------------------

_MEMBER: Final = re.compile(rb'"[a-z_]+":("[^"]*"|[0-9.e-]+|true|false|null)')
_NUMBER: Final = re.compile(rb'"((?:cost_usd|latency_ms|ttft_ms|[a-z_]*_tokens|ratio)":)[^,}]*')
_TIME: Final = re.compile(rb'"timestamp":"[^"]*"')
_TEXT: Final = re.compile(rb'":"([^"\\]*)"')
_ANY: Final = re.compile(rb'("[a-z_]+":)("[^"\\]*"|true|false|null|\{[^{}]*\}|\[[^\[\]]*\])')
_BETWEEN: Final = re.compile(rb"[,:{}\[\]]")
_BYTES: Final = (34, 92, 44, 58, 123, 125, 91, 93, 0, 9, 13, 32, 0x7F, 0xC3, 0xE2, 0xED, 0xF0, 0xFF)


def _replaced(rng: random.Random, pattern: re.Pattern[bytes], line: bytes, value: str) -> bytes:
    """One match of a pattern, with another value behind what its first group has."""
    found = list(pattern.finditer(line))
    if not found:
        return line
    match = rng.choice(found)
    kept = match[1] if match.lastindex else b'"timestamp":'
    before = b'"' if pattern is _NUMBER else b""
    return line[: match.start()] + before + kept + value.encode("utf-8", "surrogatepass") + line[match.end() :]


def _with_text(rng: random.Random, line: bytes) -> bytes:
    found = list(_TEXT.finditer(line))
    if not found:
        return line
    match, text = rng.choice(found), rng.choice(TEXTS).encode("utf-8", "surrogatepass")
    return line[: match.start(1)] + text + line[rng.choice([match.start(1), match.end(1)]) :]


def _with_byte(rng: random.Random, line: bytes) -> bytes:
    place = rng.randrange(len(line))
    put = bytes([rng.choice(_BYTES) if rng.random() < 0.7 else rng.randrange(256)])
    return line[:place] + put + line[place + rng.choice([0, 1]) :]


def _without_or_twice(rng: random.Random, line: bytes) -> bytes:
    found = list(_MEMBER.finditer(line))
    if not found:
        return line
    member = rng.choice(found)[0]
    return line[:-1] + b"," + member + b"}" if rng.random() < 0.5 else line.replace(member + b",", b"", 1)


def _with_blanks(rng: random.Random, line: bytes) -> bytes:
    for _ in range(3):
        place = rng.choice([match.start() for match in _BETWEEN.finditer(line)] or [0])
        line = line[:place] + rng.choice([b" ", b"\t", b"\r", b"  "]) + line[place:]
    return line


def _long_text(rng: random.Random) -> str:
    """About as many characters as are kept of an error message, or of another text."""
    odd = rng.choice((0, 0.02, 0.5))
    return "".join(
        rng.choice(PIECES) if rng.random() < odd else "x" for _ in range(rng.choice((255, 256, 499, 500, 501)))
    )


def _score(rng: random.Random) -> str:
    return rng.choice(SCORES) if rng.random() < 0.3 else rng.choice(["", "-"]) + _number(rng)


def _object(members: Iterable[str]) -> str:
    return f"{{{','.join(members)}}}"


def _with_long_value(rng: random.Random, line: bytes) -> bytes:
    """A long text, or a collection, perhaps of more items than usual, in place of what the field had."""
    try:
        event = msgspec.json.decode(line)
    except ValueError:
        return line
    if not isinstance(event, dict) or not event:
        return line
    count = rng.choice((0, 1, 2, 63, 64, 65))
    name, value = rng.choice(
        (
            (rng.choice(("error_message", "name", "session_id", "sdk_version")), f'"{_long_text(rng)}"'),
            ("eval_scores", _object(f'"s{n}":{_score(rng)}' for n in range(count))),
            ("tags", _object(f'"t{n}":"{rng.choice(PIECES)}"' for n in range(count))),
            ("tools_used", f"[{','.join([chr(34) + rng.choice(PIECES) + chr(34)] * count)}]"),
            ("unknown", ",".join(["1", *(f'"u{n}":{rng.choice(VALUES[:14])}' for n in range(count))])),
        )
    )
    event.pop(name, None)
    return to_json_line(event)[:-1] + f',"{name}":{value}}}'.encode()


def _with_member(rng: random.Random, line: bytes) -> bytes:
    name = rng.choice(MEMBERS)
    return line[:1] + f'"{name}":{rng.choice(VALUES)},'.encode() + line[1:]


_CHANGES: Final[list[Callable[[random.Random, bytes], bytes]]] = [
    lambda rng, line: _replaced(rng, _NUMBER, line, _number(rng)),
    lambda rng, line: _replaced(rng, _NUMBER, line, _number(rng)),
    lambda rng, line: _replaced(rng, _TIME, line, f'"{_time(rng)}"'),
    lambda rng, line: _replaced(rng, _ANY, line, rng.choice(VALUES)),
    lambda rng, line: line[: rng.randrange(len(line) + 1)],
    _with_text,
    _with_byte,
    _without_or_twice,
    _with_blanks,
    _with_member,
    _with_long_value,
]


def mutated_line(rng: random.Random, line: bytes) -> bytes:
    """A line with a few changes, without a line feed."""
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        if line:
            line = rng.choice(_CHANGES)(rng, line)
    return line.replace(b"\n", b" ")


def lines(rng: random.Random, count: int) -> list[bytes]:
    """So many mutated lines."""
    found = [to_json_line(event) for event in events(rng, 10)]
    return [mutated_line(rng, rng.choice(found)) for _ in range(count)]


# --- protobuf --------------------------------------------------------------------------------------------------------

_COUNTS: Final = (0, 1, 2, 127, 2**53 - 1, 2**53, 2**63, 2**64 - 1)
_DOUBLES: Final = [struct.pack("<d", number) for number in (0.0, -0.0, 1.0, -1.0, 1e308, float("inf"), float("nan"))]
_TAGS: Final = [number << 3 | kind for number in (*range(1, 33), 100, 101, 2000) for kind in range(6)]


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _member_of(rng: random.Random) -> bytes:
    """A field by itself, mostly a well-formed one."""
    tag = rng.choice(_TAGS)
    match tag & 7:
        case 0:
            value = _varint(rng.choice([*_COUNTS, rng.getrandbits(rng.randint(1, 63))]))
        case 1:
            value = rng.choice([*_DOUBLES, rng.randbytes(8)])
        case 2:
            text = rng.choice([*TEXTS, _number(rng), _time(rng), *VALUES]).encode("utf-8", "surrogatepass")
            value = _varint(len(text) + (rng.random() < 0.05)) + text
        case 5:
            value = rng.randbytes(4)
        case _:
            value = b""
    return _varint(tag) + value


def _with_field(rng: random.Random, raw: bytes) -> bytes:
    return raw + _member_of(rng) if rng.random() < 0.7 else _member_of(rng) + raw


def _with_known(rng: random.Random, raw: bytes) -> bytes:
    """A second value of one of the fields that a row is made of."""
    hot = (14, _number(rng)), (5, _time(rng)), (28, "span"), (29, "plan"), (21, ""), (7, "é" * 128), (29, "")
    number, text = rng.choice(hot)
    value = text.encode("utf-8", "surrogatepass")
    return raw + _varint(number << 3 | 2) + _varint(len(value)) + value


def _with_other_byte(rng: random.Random, raw: bytes) -> bytes:
    place = rng.randrange(len(raw))
    return raw[:place] + bytes([rng.randrange(256)]) + raw[place + rng.choice([0, 1]) :]


def mutated_message(rng: random.Random, raw: bytes) -> bytes:
    """A message with a few changes."""
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        kind = rng.random()
        if not raw or kind < 0.3:
            raw = _with_field(rng, raw)
        elif kind < 0.55:
            raw = _with_known(rng, raw)
        elif kind < 0.9:
            raw = _with_other_byte(rng, raw)
        else:
            raw = raw[: rng.randrange(len(raw) + 1)]
    return raw


def _message(rng: random.Random, event: dict[str, Any]) -> bytes:
    sent = {name: value for name, value in event.items() if not (name == "name" and not isinstance(value, str))}
    message = to_proto(sent)
    if rng.random() < 0.3:
        message.cost_usd = _number(rng)
    if rng.random() < 0.1:
        message.timestamp = _time(rng).encode("utf-8", "replace").decode()
    if rng.random() < 0.1:
        message.error_message = _long_text(rng)
    if rng.random() < 0.1:
        count = rng.choice((1, 63, 64, 65))
        message.tags.update({f"t{n}": rng.choice(PIECES) for n in range(count)})
        message.eval_scores.update({f"s{n}": rng.choice((-0.0, 1e308, -5e-324, 0.1)) for n in range(count)})
    return message.SerializeToString()


def messages(rng: random.Random, count: int) -> list[bytes]:
    """So many mutated messages."""
    found = [_message(rng, event) for event in events(rng, 10)]
    return [mutated_message(rng, rng.choice(found)) for _ in range(count)]
