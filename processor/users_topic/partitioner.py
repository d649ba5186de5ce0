"""The key of a user's row in `spendstream.users`, and its partition: the one that Kafka's own partitioner chooses.

That is MurmurHash2 of the key's bytes without the sign bit (https://kafka.apache.org: `Utils.murmur2`), so the topic
can be joined and queried by key with topics that other producers write by default.
"""

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from processor.core.growing_arrays import I64

_SEED: Final = 0x9747B28C
_M: Final = np.uint32(0x5BD1E995)
_BATCH: Final = 4096
"""Keys hashed side by side, all padded to the longest: a bound on memory."""

_encode = msgspec.json.Encoder().encode


def key_of(project: str, user_id: str | None) -> bytes:
    """Return the key of a user's row: the JSON list [project, user], which is unique."""
    return _encode((project, user_id))


def partitions_of(keys: Sequence[bytes], count: int) -> I64:
    """Return the partition of each key, 0 to `count` - 1."""
    found = np.empty(len(keys), np.int64)
    for start in range(0, len(keys), _BATCH):
        found[start : start + _BATCH] = _murmur2(keys[start : start + _BATCH]) & np.uint32(0x7FFF_FFFF)
    return found % count


def _murmur2(keys: Sequence[bytes]) -> NDArray[np.uint32]:
    lengths = np.fromiter(map(len, keys), np.int64, len(keys))
    width = (int(lengths.max()) // 4 + 1) * 4  # one word more than are full: a key of whole words has an empty tail
    words = np.frombuffer(b"".join([key.ljust(width, b"\0") for key in keys]), "<u4").reshape(len(keys), -1)
    full, rest = lengths // 4, lengths % 4
    found = lengths.astype(np.uint32) ^ np.uint32(_SEED)
    for number in range(width // 4 - 1):
        word = words[:, number] * _M
        word ^= word >> np.uint32(24)
        found = np.where(full > number, (found * _M) ^ (word * _M), found)
    tail = words[np.arange(len(keys)), full]
    found = np.where(rest > 0, (found ^ tail) * _M, found)
    found ^= found >> np.uint32(13)
    found *= _M
    found ^= found >> np.uint32(15)
    return found
