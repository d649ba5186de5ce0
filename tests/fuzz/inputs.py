"""Bodies that nobody would send on purpose: events with anything in their fields, cut, doubled and damaged."""

import gzip
import json
import zlib
from typing import Any, Final, NamedTuple

import zstandard
from hypothesis import strategies as st

from protos.spendstream.v1 import ingest_pb2 as pb
from tests.support.events import make_event, to_json_line, to_proto

EVENT: Final = make_event()
FIELDS: Final = sorted({*EVENT, "tags", "tools_used", "eval_scores", "user_id", "session_id", "ttft_ms", "project_id"})

NUMBERS: Final = [
    *("0", "-0", "-0.0", "5.0", "1e2", "1e400", "-1e400", "1e-400", "1E+309", "9007199254740991", "9007199254740992"),
    *("9" * 400, "0." + "0" * 400 + "1", "-1", "0.5", "1e-7", "999999.999999999999999", "1000000.0000000000001"),
    *("NaN", "Infinity", "-Infinity", "01", "1.", ".5", "+1", "0x10", "1_000", "1e", "--1"),
]
WORDS: Final = [
    *("", " ", "\0", "\ud800", "\udfff", "é", "\U0001f600", "null", "true", "a" * 257, "a" * 5000, "\u2028", "\ufeff"),
    *("2026-04-20T10:00:00Z", "2026-02-30T10:00:00Z", "0000-01-01T00:00:00Z", "9999-12-31T23:59:60Z", "1e3"),
    *("2026-04-20T10:00:00+99:99", "success", "openai", "00000000-0000-4000-8000-000000000000", "lqt_" + "1" * 64),
]

scalars = st.one_of(
    st.sampled_from(NUMBERS),
    st.sampled_from(WORDS).map(json.dumps),
    st.text(max_size=20).map(json.dumps),
    st.sampled_from(["null", "true", "false", "{}", "[]", "[[]]", '{"":""}', '{"a":{"b":[null]}}', ""]),
    st.integers(0, 80).map(lambda depth: "[" * depth + "]" * depth),
    st.integers(1, 300).map(lambda count: json.dumps({f"k{n}": "v" for n in range(count)})),
)
"""JSON values as text, and what only looks like them."""


def _line(changes: dict[str, str | None], doubled: list[tuple[str, str]]) -> bytes:
    texts = {name: json.dumps(value, default=float) for name, value in EVENT.items()} | changes
    members = [f"{json.dumps(name)}:{text}" for name, text in texts.items() if text is not None]
    members += [f"{json.dumps(name)}:{text}" for name, text in doubled]
    return ("{" + ",".join(members) + "}").encode("utf-8", "surrogatepass")


names = st.one_of(st.sampled_from(FIELDS), st.text(max_size=8))
lines = st.one_of(
    st.just(to_json_line(EVENT)),
    st.builds(
        _line,
        st.dictionaries(names, st.none() | scalars, max_size=4),
        st.lists(st.tuples(names, scalars), max_size=2),
    ),
    scalars.map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.binary(max_size=60),
)


class Cut(NamedTuple):
    """One damage to bytes: at a place (0 to 1 of the length), some bytes are replaced."""

    place: float
    removed: int
    put: bytes

    def apply(self, body: bytes) -> bytes:
        """The damaged bytes."""
        at = int(self.place * len(body))
        return body[:at] + self.put + body[at + self.removed :]


cuts = st.builds(Cut, st.floats(0, 1), st.integers(0, 40), st.binary(max_size=12))


def damaged(bodies: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """`bodies`, half of them with up to three cuts."""

    def damage(body: bytes, found: list[Cut]) -> bytes:
        for cut in found:
            body = cut.apply(body)
        return body

    return st.one_of(bodies, st.builds(damage, bodies, st.lists(cuts, max_size=3)))


ends = st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\r", b" \n", b""])
ndjson = damaged(
    st.builds(
        lambda head, parts: head + b"".join(line + end for line, end in parts),
        st.sampled_from([b"", b"\xef\xbb\xbf", b"\n"]),
        st.lists(st.tuples(lines, ends), max_size=12) | st.lists(st.tuples(lines, ends), min_size=95, max_size=105),
    )
)


class Packed(NamedTuple):
    """A body as it goes over the wire, and what its header says of it."""

    encoding: str
    body: bytes


_PACK: Final[dict[str, Any]] = {
    "gzip": lambda body: gzip.compress(body, 1, mtime=0),
    "deflate": zlib.compress,
    "zstd": zstandard.ZstdCompressor(level=1).compress,
    "identity": bytes,
}
encodings = st.sampled_from(sorted(_PACK))
packed = st.one_of(
    st.builds(lambda said, body: Packed(said, _PACK[said](body)), encodings, ndjson),
    st.builds(lambda said, body, found: Packed(said, found.apply(_PACK[said](body))), encodings, ndjson, cuts),
    st.builds(lambda said, meant, body: Packed(said, _PACK[meant](body)), encodings, encodings, ndjson),
    st.builds(Packed, encodings, st.binary(max_size=300)),
)

_REQUEST: Final = pb.IngestRequest(sequence=7, events=[to_proto(EVENT)] * 3).SerializeToString()
messages = st.one_of(
    damaged(st.just(_REQUEST)),
    st.binary(max_size=300),
    st.lists(damaged(st.just(to_proto(EVENT).SerializeToString())), max_size=5).map(
        lambda events: b"".join(b"\x12" + _varint(len(event)) + event for event in events)
    ),
    st.integers(1, 200).map(lambda depth: b"\x12\x7f" * depth),
)
"""Serialised requests of gRPC, and what is not one."""


def _varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])
