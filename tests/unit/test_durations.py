"""Durations are shown as prometheus_client's own histogram shows them."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from server.telemetry.meters import Durations

BOUNDS = (0.001, 0.0025, 0.5, 1.0, 60.0)
SECONDS = st.one_of(st.sampled_from([0.0, *BOUNDS]), st.integers(0, 400).map(lambda each: each / 4))


@given(st.lists(st.tuples(SECONDS, st.integers(1, 3), st.sampled_from(["a", "b"]))))
def test_they_are_shown_as_a_histogram(observed: list[tuple[float, int, str]]) -> None:
    ours, theirs = CollectorRegistry(auto_describe=True), CollectorRegistry(auto_describe=True)
    durations = Durations("some_seconds", "A text", BOUNDS, ours, "door", ("a", "b"))
    histogram = Histogram("some_seconds", "A text", ["door"], buckets=BOUNDS, registry=theirs)
    for value in ("a", "b"):
        histogram.labels(value)
    for seconds, times, value in observed:
        durations.observe(round(seconds, 4), times, value)
        for _ in range(times):
            histogram.labels(value).observe(round(seconds, 4))
    assert _shown(ours) == _shown(theirs)


def test_they_need_no_label() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    Durations("some_seconds", "A text", BOUNDS, ours).observe(0.5, 2)
    histogram = Histogram("some_seconds", "A text", buckets=BOUNDS, registry=theirs)
    histogram.observe(0.5)
    histogram.observe(0.5)
    assert generate_latest(ours) == generate_latest(theirs)


def _shown(registry: CollectorRegistry) -> list[tuple[str, str]]:
    """Each series with its value; of sums, which are of floats, twelve digits."""
    lines = [line.rpartition(" ") for line in generate_latest(registry).decode().splitlines() if line[0] != "#"]
    return [(name, value if "_sum" not in name else f"{float(value):.9g}") for name, _, value in lines]
