"""Blocks: thousands of users' rows in one record of the changelog, to avoid the cost of a record for each.

    key   = [partition, "rows"], JSON like the key of every record
    value = msgpack [version, the rows' keys with a line break between two, n hashes of 16 bytes, n values of 72]

Each row keeps its own key and value, those of a record of its own (`table_rows`, `row_bytes`): a block is a shorter way
to write so many records, no other kind of row. Its order is that of the log; no key is in a block twice. Only the
embedded log has blocks: a broker that compacts by key needs a record for each row.

The hashes are those of the keys, 128 bits of XXH3 with a seed from the log's secret salt. With them a reader looks rows
up without a call for each.
"""

from collections.abc import Collection, Sequence
from hashlib import blake2b
from typing import Final

import msgspec
import numpy as np
import xxhash
from msgspec import Struct

from processor.core.events.ndjson import SEPARATOR, Lines
from processor.core.growing_arrays import Records
from processor.core.hash_index import HASH
from processor.core.kernel.loaded import kernel
from processor.core.tables import row_bytes, row_dtype

VERSION: Final = 1
KIND: Final = "rows"
"""What stands in the key of a block."""


class RowBlock(Struct):
    """Rows of users, no two of one key."""

    keys: Sequence[bytes]
    """The keys, split only when one is read: a reader that knows all rows needs none."""
    hashes: Records
    """`HASH`: shape (n,)."""
    values: Records
    """`row_dtype.DTYPE`: shape (n,), of the caller's own."""

    def __len__(self) -> int:
        return len(self.keys)

    def pairs(self) -> list[tuple[bytes, bytes]]:
        """Key and value of each row, as if it had a record of its own."""
        return pairs(self.keys, self.values)


class _Wire(Struct, array_like=True, gc=False):
    version: int
    keys: bytes
    hashes: bytes
    values: bytearray


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Wire).decode


def pairs(keys: Sequence[bytes], values: Records) -> list[tuple[bytes, bytes]]:
    """Key and value of rows that have a record each."""
    joined = values.tobytes()
    starts = range(0, len(joined), row_bytes.SIZE)
    return [(key, joined[start : start + row_bytes.SIZE]) for key, start in zip(keys, starts, strict=True)]


def key_of(partition: int) -> bytes:
    """The key of a partition's blocks."""
    return b'[%d,"rows"]' % partition


def seed_of(salt: bytes) -> int:
    """The seed of the hashes in a log with this salt."""
    return int.from_bytes(blake2b(b"row keys", key=salt, digest_size=8).digest(), "little")


def key_hashes(keys: Collection[bytes], seed: int) -> Records:
    """The hashes of rows' keys; 0.15 µs each, 0.03 in the compiled kernel."""
    if kernel is not None:
        return np.frombuffer(kernel.key_hashes(list(keys), seed, xxhash.xxh3_128_digest), HASH)
    digest = xxhash.xxh3_128_digest
    return np.frombuffer(b"".join([digest(key, seed) for key in keys]), HASH)


def encode(block: RowBlock) -> bytes:
    """The value of a block's record."""
    return _encode(
        _Wire(VERSION, SEPARATOR.join(block.keys), block.hashes.tobytes(), bytearray(block.values.tobytes()))
    )


def decode(value: bytes) -> RowBlock:
    """Read a block back. Raises `ValueError` for one of another format."""
    try:
        wire = _decode(value)
        if wire.version != VERSION:
            raise ValueError(f"a block of rows of version {wire.version}; this program reads {VERSION}")
        keys = Lines(wire.keys, wire.keys.count(SEPARATOR) + 1)
        block = RowBlock(keys, np.frombuffer(wire.hashes, HASH), np.frombuffer(wire.values, row_dtype.DTYPE))
    except msgspec.MsgspecError as error:
        raise ValueError(f"not a block of rows: {error}") from None
    if not len(block.keys) == len(block.hashes) == len(block.values) or block.values["zero"].any():
        raise ValueError("not a block of rows: keys, hashes and values do not match")
    return block


def expand(partition: int, key: bytes, value: bytes | None) -> list[tuple[bytes, bytes | None]]:
    """A record of the changelog as the rows it stands for: a block's, or its own. Raises `ValueError`."""
    if value is not None and key == key_of(partition):
        return [*decode(value).pairs()]
    return [(key, value)]
