import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from msgspec.structs import replace

from processor.core.clock import SECOND
from processor.core.events import message
from processor.event_store.segments_topic import SegmentsTopic
from processor.log.embedded.log import Log
from tests.bench import generated_messages
from tests.bench.generated_messages import EVENTS, SPANS, GeneratedMessages
from tests.support.event_store import NOON
from tools import make_segments
from tools.make_segments import Plan


@pytest.fixture(autouse=True)
def few_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated_messages, "TEMPLATES", 20)


def test_messages_follow_from_their_seed_and_number() -> None:
    first, again, other = GeneratedMessages(3), GeneratedMessages(3), GeneratedMessages(4)
    made = first.message(7, NOON)
    assert made.rows.tobytes() == again.message(7, NOON).rows.tobytes()
    assert not np.isin(made.rows["id"][:, 0], other.message(7, NOON).rows["id"][:, 0]).any()
    assert not np.isin(made.rows["id"][:, 0], first.message(8, NOON).rows["id"][:, 0]).any()


def test_events_come_in_traces_whose_root_is_the_first() -> None:
    made = GeneratedMessages(1, ("one", "two")).message(0, NOON)
    requests = message.events(made)
    assert [request.source.project for request, _ in requests] == ["one", "two", "one", "two", "one"]
    events = [event for _, found in requests for event in found]
    assert len(events) == EVENTS
    for start in range(0, EVENTS, SPANS):
        root, *children = events[start : start + SPANS]
        assert root.parent_span_id is None
        assert {child.parent_span_id for child in children} == {root.span_id}
        assert {child.trace_id for child in children} == {root.trace_id}
    assert max(event.timestamp for event in events) < NOON + SPANS * SECOND


@pytest.mark.slow
def test_a_store_is_made_and_gone_on_with(tmp_path: Path) -> None:
    plan = Plan(tmp_path / "events", 6, NOON, SECOND, 1, fresh=2, stretch=6)
    plan.directory.mkdir()
    with closing(Log(tmp_path, partitions=1)) as log:
        make_segments.run(plan, log, 1, lambda done, total: None)
        make_segments.run(replace(plan, messages=8), log, 1, lambda done, total: None)
        live = SegmentsTopic(log, lambda: time.time_ns() // 1000).read_on().live(0)
    assert [(each.start, each.end, each.rows) for each in live] == [(0, 6, 6 * EVENTS), (6, 8, 2 * EVENTS)]
    assert live[0].level == 1
    assert {path.name for path in plan.directory.iterdir()} == {
        f"{each.id}{suffix}" for each in live for suffix in (".parquet", ".idx")
    }
    stored = {text for each in live for text in _ids(plan.directory / f"{each.id}.parquet")}
    made = GeneratedMessages(1)
    sent = [event for number in range(8) for _, found in message.events(made.message(number, NOON)) for event in found]
    assert stored == {event.event_id for event in sent}


def _ids(path: Path) -> list[str]:
    found: list[str] = pq.read_table(path, columns=["event_id"]).column(0).to_pylist()
    return found
