"""The ids of a partition in a dict: what the index on disk is compared with, and tables without a disk go by."""

import numpy as np
from numpy.typing import NDArray

from processor.core.partitioning import U64, Places


class DictIndex:
    """A `ClaimIndex` in memory."""

    def __init__(self) -> None:
        self._claims: dict[tuple[int, int], tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._claims)

    def claim(self, keys: U64, digests: U64, offset: int | Places) -> tuple[NDArray[np.int64], U64]:
        offsets = np.broadcast_to(offset, len(keys)).tolist()
        held = [
            self._claims.setdefault((hi, lo), (at, digest))
            for (hi, lo), digest, at in zip(keys.tolist(), digests.tolist(), offsets, strict=True)
        ]
        return np.array([at for at, _ in held], np.int64), np.array([digest for _, digest in held], np.uint64)
