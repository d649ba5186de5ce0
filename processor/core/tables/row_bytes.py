"""Rows of sums in 72 bytes each, so that a reader decodes a whole batch with one `np.frombuffer`.

Little-endian. The first byte is 0, which no JSON text begins with: a value that does not fit (a count of 2^32, a sum of
2^63) stays a JSON list, and so does every value that was written before there was this form.
"""

import struct
from collections.abc import Sequence
from operator import attrgetter, itemgetter
from typing import Any, Final

from processor.core.tables.row_sums import AMOUNTS, COUNTS, SUMS, TIMES

_MEMBERS: Final = (*COUNTS, "offset", *AMOUNTS, *TIMES)
_FORM: Final = struct.Struct(f"<4x{len(COUNTS)}I{1 + len(AMOUNTS) + len(TIMES)}q")

SIZE: Final = _FORM.size
MARK: Final = b"\0"
"""The first byte."""

pack = _FORM.pack
"""The members of `row_dtype.DTYPE` after the first. Raises `Misfit`."""

Misfit = struct.error

members_of: Final = attrgetter(*_MEMBERS)
"""What `pack` takes, of an object that has it by name."""

_in_order: Final = itemgetter(*(1 + _MEMBERS.index(name) for name in ("offset", *SUMS)))


def listed(members: Sequence[int]) -> tuple[Any, ...]:
    """The members of a record in the order in which the changelog lists a row: the offset, and those of `RowSums`."""
    found: tuple[Any, ...] = _in_order(members)
    return found


def unpack(value: bytes) -> list[int]:
    """The same of a record's bytes. Raises `Misfit` if there are not exactly `SIZE` of them."""
    return list(listed((0, *_FORM.unpack(value))))
