"""Latencies in buckets: one byte an event, and percentiles that are never further off than they say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.core.events.latency import BUCKETS, UNKNOWN, bucket_of, buckets_of, middle, percentile

OFF = 2 ** (1 / 16) * 1.005
"""Half a bucket, and the rounding to three digits."""

latencies = st.floats(0, 1e300) | st.floats(0, 100_000) | st.integers(0, 253).map(lambda step: 2.0 ** (step / 8))


@given(st.lists(latencies, max_size=50))
def test_a_batch_is_what_its_latencies_are_one_by_one(batch: list[float]) -> None:
    found = buckets_of(batch)
    assert found.dtype == np.uint8
    assert found.tolist() == [bucket_of(latency) for latency in batch]


@given(st.floats(1, 2.0**31))
def test_a_bucket_stands_for_its_latencies(latency: float) -> None:
    assert latency / OFF <= middle(bucket_of(latency)) <= latency * OFF


def test_the_ends() -> None:
    assert [bucket_of(latency) for latency in (0, 0.001, 1, 1.0001, 1e308)] == [UNKNOWN, 1, 1, 2, BUCKETS - 1]
    assert middle(1) == 1.0
    assert [middle(bucket) for bucket in range(1, BUCKETS)] == sorted(middle(bucket) for bucket in range(1, BUCKETS))


@given(st.lists(st.floats(1, 2.0**31), min_size=1, max_size=200), st.sampled_from([1, 50, 95, 99, 100]))
def test_percentiles_are_close(sent: list[float], percent: int) -> None:
    counts: dict[int, int] = {}
    for bucket in buckets_of(sent).tolist():
        counts[bucket] = counts.get(bucket, 0) + 1
    exact = sorted(sent)[-(-len(sent) * percent // 100) - 1]
    assert exact / OFF <= percentile(counts, percent) <= exact * OFF


@pytest.mark.parametrize(("percent", "expected"), [(50, 1.0), (66, 1.0), (67, 103.0), (100, 103.0)])
def test_a_percentile_is_a_rank(percent: int, expected: float) -> None:
    assert percentile({1: 2, bucket_of(100.0): 1}, percent) == expected
