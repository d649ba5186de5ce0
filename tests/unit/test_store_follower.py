"""The follower of manifests: what it knows is what is in the topic, also after it stood still."""

import time
from collections.abc import Callable
from pathlib import Path

from processor.event_store import manifest as manifests
from processor.event_store.manifest import Manifest, Segment, segment_id
from processor.event_store.segments_topic import SLEPT, TP, SegmentsTopic
from processor.log.address import LogAddress
from processor.log.embedded.log import Log
from processor.log.records import Append
from server.explore.store_follower import StoreFollower


def eventually(condition: Callable[[], bool], patience: float = 10.0) -> None:
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
