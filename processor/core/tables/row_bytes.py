"""Rows of sums as 72 bytes each, so that a reader takes in a whole batch of them with one `np.frombuffer`.

Little-endian. The first byte is 0, which no JSON text begins with: a value that does not fit (a count of 2^32, a sum of
2^63) stays a JSON list, and so does every value that was written before there was this form.
"""

import struct
from typing import Final

import numpy as np

_FORM: Final = struct.Struct("<4xIIIqqqqqqq")

SIZE: Final = _FORM.size
MARK: Final = b"\0"
"""The first byte."""

DTYPE: Final = np.dtype(
    [
        ("zero", "<u4"),
        ("requests", "<u4"),
        ("errors", "<u4"),
        ("unpriced", "<u4"),
        ("offset", "<i8"),
        ("input_tokens", "<i8"),
        ("output_tokens", "<i8"),
        ("cached_tokens", "<i8"),
        ("cost", "<i8"),
        ("first_seen", "<i8"),
        ("last_seen", "<i8"),
    ]
)
"""What the bytes are; shape (n,) over n joined values. `cost` in picodollars, times in microseconds."""

pack = _FORM.pack
"""requests, errors, unpriced, offset, input, output and cached tokens, cost, first and last seen. Raises `Misfit`."""

Misfit = struct.error


def unpack(value: bytes) -> list[int]:
    """The numbers in the order of `tables.Sums.value`. Raises `Misfit` if there are not exactly `SIZE` bytes."""
    requests, errors, unpriced, offset, inputs, outputs, cached, cost, first, last = _FORM.unpack(value)
    return [offset, requests, errors, inputs, outputs, cached, cost, unpriced, first, last]
