"""A block of rows is its rows, whatever their keys; and nothing else is taken for one."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.core.tables import row_block, row_bytes, row_dtype, table_rows
from processor.core.tables.row_block import RowBlock

keys = st.builds(
    table_rows.encode_key, st.just(3), st.just("user"), st.text(), st.none() | st.text(), st.integers(0, 9)
)
numbers = st.integers(-(2**63), 2**63 - 1)
values = st.builds(row_bytes.pack, *[st.integers(0, 2**32 - 1)] * 3, *[numbers] * 7)


def block_of(rows: dict[bytes, bytes], seed: int = 0) -> RowBlock:
    found = np.frombuffer(b"".join(rows.values()), row_dtype.DTYPE)
    return RowBlock(list(rows), row_block.key_hashes(list(rows), seed), found)


@given(st.dictionaries(keys, values, min_size=1, max_size=20), st.integers(0, 2**64 - 1))
def test_a_block_is_read_as_it_was_written(rows: dict[bytes, bytes], seed: int) -> None:
    found = row_block.decode(row_block.encode(block_of(rows, seed)))
    assert dict(found.pairs()) == rows
    assert found.hashes.tolist() == row_block.key_hashes(list(rows), seed).tolist()
    found.values["offset"] = 1  # the reader's own
    value = row_block.encode(block_of(rows, seed))
    assert row_block.expand(3, row_block.key_of(3), value) == list(rows.items())
    assert row_block.expand(4, row_block.key_of(3), value) == [(row_block.key_of(3), value)], "of another partition"
    assert row_block.expand(3, b"[3]", None) == [(b"[3]", None)]


def test_the_hashes_are_part_of_the_format() -> None:
    seed = row_block.seed_of(b"salt")
    assert seed == 5910014463349308043
    [(low, high)] = row_block.key_hashes([b'[0,"user","p","u",1,"openai","m","e"]'], seed).tolist()
    assert (low, high) == (3739496730653343021, 8866166714557951921)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"[1]",
        msgspec.msgpack.encode([2, b"a", bytes(16), bytes(72)]),
        msgspec.msgpack.encode([1, b"a\nb", bytes(16), bytes(72)]),
        msgspec.msgpack.encode([1, b"a", bytes(15), bytes(72)]),
        msgspec.msgpack.encode([1, b"a", bytes(16), bytes(71)]),
        msgspec.msgpack.encode([1, b"a", bytes(16), b"\1" + bytes(71)]),
        msgspec.msgpack.encode([1, b"", b"", b""]),
    ],
)
def test_what_is_no_block_is_not_read(value: bytes) -> None:
    with pytest.raises(ValueError, match=r"block of rows|buffer size"):
        row_block.decode(value)
