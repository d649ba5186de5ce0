"""Latencies in one byte each: the bucket of an exponential histogram, eight to a doubling.

The buckets are those of an OpenTelemetry exponential histogram of scale 3, from 1 ms on: what a bucket stands for is
less than 5 % off, whether it holds one latency or a billion, and histograms are added up without losing anything.
Part of the log's format.
"""

from bisect import bisect_left
from collections.abc import Collection, Mapping
from math import ceil
from typing import Final

import numpy as np
from numpy.typing import NDArray

BUCKETS: Final = 256
UNKNOWN: Final = 0
"""The bucket of an event that was not measured: a latency of 0."""

UPPER: Final = [0.0, *(2.0 ** (step / 8) for step in range(BUCKETS - 2))]
"""The longest latency in each bucket, in milliseconds; the last bucket, 255, has no bound."""
_BOUNDS: Final = np.array(UPPER)


def buckets_of(latencies: Collection[float]) -> NDArray[np.uint8]:
    """The bucket of each latency in milliseconds."""
    found: NDArray[np.uint8] = np.searchsorted(_BOUNDS, np.fromiter(latencies, np.float64, len(latencies))).astype("u1")
    return found


def bucket_of(latency: float) -> int:
    """`buckets_of` for one."""
    return bisect_left(UPPER, latency)


def middle(bucket: int) -> float:
    """The latency that a bucket stands for, in milliseconds, with three digits."""
    if bucket <= 1:
        return float(bucket)
    lower, upper = UPPER[bucket - 1], UPPER[min(bucket, BUCKETS - 2)]
    return float(f"{(lower * upper) ** 0.5:.3g}")


def percentile(counts: Mapping[int, int], percent: int) -> float:
    """The latency that so many percent of the events do not exceed; `counts`, not empty, is bucket -> events."""
    rank = ceil(sum(counts.values()) * percent / 100)
    for bucket in sorted(counts):
        rank -= counts[bucket]
        if rank <= 0:
            break
    return middle(bucket)
