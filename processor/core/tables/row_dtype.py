"""The layout of a row of sums in a record of 72 bytes, for numpy.

Apart from `row_sums` and `row_bytes`, so that a process that reads no rows (a supervisor, a command) loads no numpy.
"""

from typing import Any, Final

import numpy as np

from processor.core.tables.row_sums import AMOUNTS, COUNTS, TIMES


def record(mark: tuple[str, str], *place: tuple[str, str]) -> "np.dtype[np.void]":
    """A row in 72 bytes: `mark`, of 4 bytes, the counts, `place`, of 8 bytes, the amounts and the times."""
    counts, others = [(name, "<u4") for name in COUNTS], [(name, "<i8") for name in (*AMOUNTS, *TIMES)]
    return np.dtype([mark, *counts, *place, *others])


def words_of(kind: "np.dtype[Any]", names: tuple[str, ...]) -> slice:
    """Where these members of a record, of 8 bytes each and side by side, are among its words of 8 bytes."""
    assert kind.fields is not None
    offset: int = kind.fields[names[0]][1]
    return slice(offset // 8, offset // 8 + len(names))


DTYPE: Final = record(("zero", "<u4"), ("offset", "<i8"))
"""What `row_bytes` packs; shape (n,) over n joined values."""
