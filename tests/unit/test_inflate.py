import gzip
import itertools
import os
import random
import time
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from processor.core.events.content_coding import MAX_BODY, MAX_MEMBERS, MAX_WINDOW, Coding
from server.errors import Refused
from server.ingest.inflate import encoding_of, inflate, refuse_compressed

MIB = 1024 * 1024
MIXED = random.Random(7).randbytes(3 * MIB) + b"x" * (5 * MIB)


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


def zstd_stream(data: bytes, window_log: int = 20, *, checksum: bool = False) -> bytes:
    """A frame that does not say how much it holds, as a streaming client sends it."""
    params = zstandard.ZstdCompressionParameters(window_log=window_log, write_checksum=checksum)
    stream = zstandard.ZstdCompressor(compression_params=params).compressobj()
    return stream.compress(data) + stream.flush()


Pack = Callable[[bytes], bytes]

PACKERS: dict[str, tuple[Coding, Pack]] = {
    "gzip": ("gzip", gzip.compress),
    "zlib": ("deflate", zlib.compress),
    "raw deflate": ("deflate", raw_deflate),
    "zstd": ("zstd", zstandard.compress),
    "zstd stream": ("zstd", zstd_stream),
    "zstd stream with checksum": ("zstd", lambda data: zstd_stream(data, checksum=True)),
}
every_packer = pytest.mark.parametrize(("encoding", "pack"), PACKERS.values(), ids=PACKERS)


@cache
def packed(pack: Pack, data: bytes = MIXED) -> bytes:
    """What is large is packed once."""
    return pack(data)


def reason(body: bytes, encoding: Coding, limit: int = MAX_BODY) -> str:
    with pytest.raises(Refused) as caught:
        inflate(body, encoding, limit)
    return caught.value.reason


@every_packer
@pytest.mark.parametrize("data", [b"", b"a", b"ab", b"{}\n" * 100, MIXED, MIXED[: 2 * MIB]], ids=len)
def test_what_went_in_comes_out(encoding: Coding, pack: Pack, data: bytes) -> None:
    assert inflate(packed(pack, data), encoding) == data


def test_what_is_compressed_is_no_text() -> None:
    refuse_compressed(MIXED)
    with pytest.raises(Refused, match=r"The body is gzip data: .* say Content-Encoding: gzip"):
        refuse_compressed(gzip.compress(LINE))
    with pytest.raises(Refused, match=r"The body is zstd data: .* say Content-Encoding: zstd") as caught:
        refuse_compressed(zstandard.compress(LINE))
    assert caught.value.reason == "bad_batch"


@pytest.mark.parametrize(("encoding", "pack"), [PACKERS["gzip"], PACKERS["zstd"], PACKERS["zstd stream"]])
def test_members_and_frames_are_one_body(encoding: Coding, pack: Pack) -> None:
    assert inflate(pack(b"one\n") + pack(b"") + packed(pack) + pack(b"two"), encoding) == b"one\n" + MIXED + b"two"


@every_packer
@pytest.mark.parametrize("missing", [1, 2, 3, 4, 5, 8])
def test_truncated(encoding: Coding, pack: Pack, missing: int) -> None:
    assert reason(pack(b"0123456789" * 10 + os.urandom(99))[:-missing], encoding) == "bad_batch"
    assert reason(packed(pack)[:-missing], encoding) == "bad_batch"


@every_packer
@pytest.mark.parametrize("garbage", [b"\0", b"x", b"garbage behind the end"])
def test_trailing_garbage(encoding: Coding, pack: Pack, garbage: bytes) -> None:
    assert reason(pack(b"data") + garbage, encoding) == "bad_batch"


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
def test_not_compressed_at_all(encoding: Coding) -> None:
    assert reason(b'{"event_id": 1}\n', encoding) == "bad_batch"


LINE = b'{"event_id":1}\n' * 9
PLACE = len(gzip.compress(LINE)) + 1


@pytest.mark.parametrize(
    ("body", "encoding", "says"),
    [
        (gzip.compress(LINE)[:-6], "gzip", "it is truncated"),
        (gzip.compress(LINE) + gzip.compress(LINE)[:12], "gzip", "it is truncated"),
        (gzip.compress(LINE) + b"rubbish", "gzip", f"something follows its end, from byte {PLACE} on"),
        (gzip.compress(LINE) + bytes(16), "gzip", f"something follows its end, from byte {PLACE} on"),
        (gzip.compress(LINE) + b"\x1f", "gzip", f"something follows its end, from byte {PLACE} on"),
        (zlib.compress(LINE) + b"x", "deflate", f"something follows its end, from byte {len(zlib.compress(LINE)) + 1}"),
        (zlib.compress(LINE)[:-2], "deflate", "it is truncated"),
        (zstandard.compress(LINE)[:-2], "zstd", "it is truncated or damaged, or something follows its end"),
        (zstandard.compress(LINE) + b"rubbish", "zstd", "it is truncated or damaged, or something follows its end"),
        (LINE, "gzip", r"it is not gzip data; leave Content-Encoding out"),
        (LINE, "deflate", r"it is not deflate data; leave Content-Encoding out"),
        (LINE, "zstd", r"it is not zstd data; leave Content-Encoding out"),
        (b"", "gzip", "it is empty"),
        (gzip.compress(gzip.compress(LINE)), "gzip", r"came out of the body \(gzip\) is gzip data: compress it once"),
    ],
    ids=itertools.count(),  # bodies would be in the names otherwise, and gzip puts the time into them
)
def test_the_reason_is_the_true_one(body: bytes, encoding: Coding, says: str) -> None:
    with pytest.raises(Refused, match=says) as caught:
        inflate(body, encoding)
    assert caught.value.reason == "bad_batch"
    assert ("truncated" in caught.value.message) is ("truncated" in says)


def test_what_follows_a_large_body_is_found() -> None:
    body = packed(gzip.compress)
    with pytest.raises(Refused, match=f"something follows its end, from byte {len(body) + 1} on"):
        inflate(body + b"rubbish", "gzip")


def test_damaged() -> None:
    body = bytearray(gzip.compress(b"some data, and its checksum"))
    body[-6] ^= 1
    assert reason(bytes(body), "gzip") == "bad_batch"


@every_packer
def test_the_limit_is_exact(encoding: Coding, pack: Pack) -> None:
    assert len(inflate(pack(b"\0" * MIB * 3), encoding, MIB * 3)) == MIB * 3
    assert reason(pack(b"\0" * (MIB * 3 + 1)), encoding, MIB * 3) == "too_large"


@pytest.mark.interpreter
@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoding", "bomb"),
    [
        ("gzip", lambda: gzip.compress(b"\0" * 300 * MIB, 1)),
        ("gzip", lambda: gzip.compress(b"\0" * MIB) * 300),
        ("deflate", lambda: zlib.compress(b"\0" * 300 * MIB, 1)),
        ("zstd", lambda: zstandard.compress(b"\0" * 300 * MIB)),
        ("zstd", lambda: zstandard.compress(b"\0" * MIB) * 300),
    ],
    ids=["gzip", "gzip members", "deflate", "zstd", "zstd frames"],
)
def test_a_bomb_costs_no_memory(encoding: Coding, bomb: Callable[[], bytes]) -> None:
    body = bomb()
    tracemalloc.start()
    try:
        assert reason(body, encoding, 2 * MIB) == "too_large"
        assert tracemalloc.get_traced_memory()[1] < 8 * MIB
    finally:
        tracemalloc.stop()


def test_many_empty_members_cost_no_time() -> None:
    assert inflate(gzip.compress(b"") * MAX_MEMBERS, "gzip") == b""
    began = time.thread_time()
    assert reason(gzip.compress(b"") * 500_000, "gzip") == "bad_batch"
    assert time.thread_time() - began < 1


def test_a_zstd_window_is_bounded() -> None:
    assert inflate(zstd_stream(MIXED, MAX_WINDOW.bit_length() - 1), "zstd") == MIXED
    assert reason(zstd_stream(MIXED, MAX_WINDOW.bit_length()), "zstd") == "bad_batch"


@given(st.binary(max_size=300), st.sampled_from(["gzip", "deflate", "zstd"]))
def test_any_bytes_are_answered(body: bytes, encoding: Coding) -> None:
    with suppress(Refused):
        inflate(body, encoding)


@pytest.mark.parametrize(
    ("header", "encoding"),
    [
        ("", "identity"),
        ("identity", "identity"),
        ("gzip", "gzip"),
        ("GZip", "gzip"),
        ("x-gzip", "gzip"),
        (" deflate ", "deflate"),
        ("zstd", "zstd"),
        ("identity, gzip", "gzip"),
    ],
)
def test_encoding_of(header: str, encoding: str) -> None:
    assert encoding_of(header) == encoding


@pytest.mark.parametrize("header", ["br", "gzip, gzip", "gzip, br", "x-zstd2", "compress"])
def test_unknown_encodings(header: str) -> None:
    with pytest.raises(Refused) as caught:
        encoding_of(header)
    assert caught.value.reason == "unsupported_encoding"
