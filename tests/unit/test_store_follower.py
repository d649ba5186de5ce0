"""The follower of manifests: what it knows is what is in the topic, also after it stood still."""

import time
from collections.abc import Callable
from pathlib import Path

from processor.event_store import manifest as manifests
from processor.event_store.manifest import Manifest, Segment, segment_id
from processor.event_store.segments_topic import SLEPT, TP, SegmentsTopic
from processor.log.address import LogAddress
from processor.log.embedded.log import Log
from processor.log.records import Append, TopicPartition
from processor.log.topics import EVENTS
from processor.log.under_way import ArrivalsUnderWay
from server.explore.store_follower import StoreFollower
from tests.support.patience import PATIENCE


def eventually(condition: Callable[[], bool], patience: float = PATIENCE) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def fresh(start: int, end: int) -> Manifest:
    return Manifest(kind="fresh", segment=Segment(id=segment_id(0, start, end), partition=0, start=start, end=end))


def test_a_follower_that_stood_still_reads_the_topic_anew(tmp_path: Path) -> None:
    log = Log(tmp_path, partitions=1)
    topic = SegmentsTopic(log, lambda: 0)
    topic.append([fresh(0, 5), fresh(5, 9), fresh(9, 12)])
    now = 0.0
    follower = StoreFollower(LogAddress(tmp_path), 1, lambda: 0, lambda: None, awake=lambda: now)
    follower.start()
    try:
        eventually(lambda: follower.state.reached == {0: 12})
        log.delete(TP, [1])  # and its tombstone, which the follower has slept through
        time.sleep(0.2)
        assert follower.state.reached == {0: 12}
        now += SLEPT + 1
        eventually(lambda: follower.state.reached == {0: 5})
        made = fresh(5, 7)
        log.append([Append(TP, [(made.segment.id.encode(), manifests.encode(made))])], 0)
        eventually(lambda: follower.state.reached == {0: 7})
    finally:
        follower.stop()
        log.close()


def test_what_is_complete_does_not_pass_over_an_arrival_that_is_under_way(tmp_path: Path) -> None:
    """Its event comes behind ends that were noted after its arrival."""
    log = Log(tmp_path, partitions=1)
    log.append([Append(TopicPartition(EVENTS, 0), [(None, b"first")])], 0)
    SegmentsTopic(log, lambda: 0).append([fresh(0, 1)])
    now = 1_000
    arrivals = ArrivalsUnderWay(lambda: now, tmp_path)
    follower = StoreFollower(LogAddress(tmp_path), 1, lambda: now, lambda: None)
    follower.start()

    def as_of() -> int:
        return follower.completeness.as_of(follower.state.reached, {})

    try:
        eventually(lambda: as_of() == 999)
        with arrivals.stamped() as arrival:
            now = 2_000
            time.sleep(0.3)  # three looks
            assert arrival == 1_000
            assert as_of() < arrival
            log.append([Append(TopicPartition(EVENTS, 0), [(None, b"second")])], 0)
        time.sleep(0.3)
        assert as_of() < arrival, "the store does not have it"
        SegmentsTopic(log, lambda: 0).append([fresh(1, 2)])
        eventually(lambda: as_of() == 1_999)
    finally:
        follower.stop()
        log.close()
