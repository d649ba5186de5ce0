"""Rows of hours and latencies in columns are what objects are, to the byte, whatever is applied twice or read back.

The objects (`tests.support.row_objects`) add an event at a time and know of no columns, pages or kinds.
"""

from collections.abc import Iterator, Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.core import growing_arrays
from processor.core.clock import DAY, HOUR
from processor.core.events.message import Message, build_blocks, opened
from processor.core.events.source import Source
from processor.core.tables import event_kinds, table_rows
from processor.core.tables.apply import Tables
from processor.core.tables.event_kinds import EventKinds
from processor.core.tables.hour_rows import HourRows
from processor.core.tables.numbered_rows import Dead
from processor.core.tables.table_rows import Progress
from processor.core.tables.user_rows import UserRows
from tests.support.dict_index import DictIndex
from tests.support.examples import examples
from tests.support.row_objects import RowObjects, records_of
from tests.support.tables import NOON, Usage, columns

edges = st.sampled_from([0, 1, 2**61, 2**62 - 1, 2**62, -(2**62), 2**63 - 1, -(2**63), 10**18])
usages = st.builds(
    Usage,
    id=st.just(0),
    user=st.sampled_from([None, "a"]),
    at=st.sampled_from([NOON, NOON + 1, NOON + HOUR, NOON - 3 * DAY, -DAY]),
    model=st.sampled_from(["a", "b", 'ü"\n']),
    input_tokens=edges,
    output_tokens=edges,
    cached_tokens=edges,
    cost=st.sampled_from([0, 7, 10**18, 2**62]),
    error=st.booleans(),
    unpriced=st.booleans(),
    latency=st.sampled_from([0, 0, 1, 15, 16, 77, 255]),
    span=st.sampled_from([False, False, False, True]),
)
Sent = list[tuple[str, list[Usage]]]
"""The messages of a log: the project and the events of each."""

sent = st.lists(
    st.tuples(st.sampled_from(["p", "q"]), st.lists(usages, min_size=1, max_size=5)), min_size=1, max_size=8
)


@pytest.fixture(autouse=True, scope="module")
def small() -> Iterator[None]:
    """Arrays of many segments, and kinds that are forgotten soon."""
    with (
        patch.multiple(growing_arrays, BITS=4, SIZE=16, FIRST=2),
        patch.object(event_kinds, "MAX_KINDS", 3),
    ):
        yield


def numbered(log: Sent) -> Sent:
    ids = iter(range(10**6))
    return [(project, [event._replace(id=next(ids)) for event in events]) for project, events in log]


def message_of(project: str, events: Sequence[Usage]) -> Message:
    return opened([build_blocks(Source("org", project, "key", NOON, "json", "partial"), columns(events), 1)[0]])


def cut(data: st.DataObject, items: Sequence[Any]) -> list[list[Any]]:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(items)), max_size=3)) | {len(items)})
    return [list(items[start:end]) for start, end in zip([0, *cuts], cuts, strict=False) if start < end]


def apply(found: Tables, data: st.DataObject, log: Sent) -> None:
    """The whole log, some messages together."""
    for part in cut(data, list(enumerate(log))):
        made = [(offset, message_of(*message)) for offset, message in part]
        found.apply_all([(offset, message, found.prepare(message)) for offset, message in made])


def flush(found: Tables, changelog: list[tuple[bytes, bytes | None]], *, packs: bool) -> dict[bytes, bytes]:
    """Append the changes; returns those of hours and latencies."""
    changes = found.drain_changes(packs=packs)
    assert changes is not None
    records = changes.records
    start = len(changelog)
    changelog += records
    assert len(changes) >= len(records) or not packs
    changes.wrote(range(start, len(changelog)))
    kept = [(key, value) for key, value in records if value and table_rows.decode_key(key)[1] in {"hour", "latency"}]
    assert len(dict(kept)) == len(kept)
    assert table_rows.decode_key(records[-1][0])[1] == "progress"
    return dict(kept)


@examples(100)
@given(sent, st.data())
def test_columns_are_what_objects_are_through_the_changelog(log: Sent, data: st.DataObject) -> None:
    log, index = numbered(log), DictIndex()
    found, objects = Tables(0, b"salt", index), RowObjects()
    changelog: list[tuple[bytes, bytes | None]] = []
    before: dict[bytes, bytes] = {}
    for part in cut(data, list(enumerate(log))):
        made = [(offset, message_of(*message)) for offset, message in part]
        found.apply_all([(offset, message, found.prepare(message)) for offset, message in made])
        for offset, message in part:
            objects.apply(offset, *message)
        now = objects.records()
        written = flush(found, changelog, packs=data.draw(st.booleans()))
        assert written == {key: value for key, value in now.items() if before.get(key) != value}
        before = now
        assert found.hours.tally == (len(objects.hours), sum(row.requests for row in objects.hours.values()))
        assert len(found.latencies) == len(objects.latencies)
    assert records_of(found) == before
    found.touch_all()
    assert flush(found, changelog, packs=data.draw(st.booleans())) == before
    again = Tables(0, b"salt", index)
    again.restore_all((key, value, offset) for offset, (key, value) in enumerate(changelog))
    assert records_of(again) == before
    assert again.hours.tally == found.hours.tally
    assert again.tally == found.tally == (found.progress.rows, found.progress.events)
    assert again.newest_offsets().tolist() == found.newest_offsets().tolist()


@examples(100)
@given(sent, st.data())
def test_whatever_was_read_back_a_replay_makes_it_whole(log: Sent, data: st.DataObject) -> None:
    """Any records of the changelog, as on Kafka, in any pieces, with tombstones between them."""
    log, index = numbered(log), DictIndex()
    found, changelog = Tables(0, b"salt", index), list[tuple[bytes, bytes | None]]()
    for part in cut(data, list(enumerate(log))):
        for offset, message in part:
            decoded = message_of(*message)
            found.apply(offset, decoded, found.prepare(decoded))
        flush(found, changelog, packs=False)
    kept = [
        (key, value if data.draw(st.integers(0, 3)) else None, offset)
        for offset, (key, value) in enumerate(changelog)
        if data.draw(st.booleans()) and table_rows.decode_key(key)[1] in {"hour", "latency"}
    ]
    again, objects = Tables(0, b"salt", index), RowObjects()
    for part in cut(data, kept):
        if data.draw(st.booleans()):
            again.restore_all(part)
        else:
            for record in part:
                again.restore(*record)
        for key, value, _ in part:
            objects.restore(key, value)
        assert records_of(again) == objects.records()
        assert again.tally[0] == len(objects.hours) + len(objects.latencies)
    newest = {key: (offset, value) for key, value, offset in kept}
    places = [offset for offset, value in newest.values() if value is not None]
    assert [offset for offset in again.newest_offsets().tolist() if offset >= 0] == sorted(places)
    again.progress = Progress(again.progress.key)
    apply(again, data, log)
    for offset, message in enumerate(log):
        objects.apply(offset, *message)
    assert records_of(again) == objects.records() == records_of(found)
    changelog = []
    written = flush(again, changelog, packs=data.draw(st.booleans()))
    assert written == objects.records(), "what a replay passes over is written again"


def test_what_is_read_back_replaces_all_that_was_there() -> None:
    """A sum that was beyond 62 bits and is not any more, and counts of a histogram that is gone, or is another."""
    log = [("p", [Usage(1, cached_tokens=2**62, latency=7)]), ("p", [Usage(2, cached_tokens=-(2**62), latency=99)])]
    found, changelog = Tables(0, b"salt", DictIndex()), list[tuple[bytes, bytes | None]]()
    written = []
    for offset, message in enumerate(log):
        decoded = message_of(*message)
        found.apply(offset, decoded, found.prepare(decoded))
        written.append(flush(found, changelog, packs=False))
    again = Tables(0, b"salt", DictIndex())
    for records in (*written, written[0], written[1]):
        again.restore_all((key, value, 0) for key, value in records.items())
        assert records_of(again) == records
    again.restore_all((key, None, 0) for key in written[0])
    assert records_of(again) == {}
    for offset, message in enumerate(log):
        decoded = message_of(*message)
        again.apply(offset, decoded, again.prepare(decoded))
    assert records_of(again) == written[1]


def test_kinds_that_are_kept_at_hand_are_bounded() -> None:
    users, hours = UserRows(0), HourRows(0)
    kinds = EventKinds(users, hours)
    for hour in range(20):
        message = message_of("p", [Usage(1, at=hour * HOUR, error=True), Usage(2, at=hour * HOUR, error=False)])
        found = kinds.of([message], message.rows["dim"].astype(np.int64), slice(None))
        assert found["hour"].tolist() == [hour] * 2
        assert found["group"].tolist() == [hour // 24] * 2
        assert found["error"].tolist() == [True, False]
        assert len(kinds) <= event_kinds.MAX_KINDS + 2


def test_counts_beyond_32_bits_stay_exact() -> None:
    found, key = (
        Tables(0, b"salt", DictIndex()),
        table_rows.encode_key(0, "latency", "p", NOON // HOUR, "openai", "m", ""),
    )
    found.restore_all([(key, b"[3,7,4294967296,255,%d]" % (2**63 - 1), 0)])
    message = message_of("p", [Usage(1, model="m", environment="", latency=7)])
    found.apply(4, message, found.prepare(message))
    assert records_of(found)[key] == b"[4,7,4294967297,255,%d]" % (2**63 - 1)


def test_what_is_written_again_ends_the_record_before() -> None:
    found = Tables(0, b"salt", DictIndex())
    message = message_of("p", [Usage(1, latency=7)])
    found.apply(0, message, found.prepare(message))
    changes = found.drain_changes(packs=True)
    assert changes is not None
    kinds = [table_rows.decode_key(key)[1] for key, _ in changes.records]
    assert changes.wrote(range(10, 10 + len(kinds))) == []
    message = message_of("p", [Usage(2, user=None, latency=0)])
    found.apply(1, message, found.prepare(message))
    changes = found.drain_changes(packs=True)
    assert changes is not None
    dead = changes.wrote(range(50, 50 + len(changes.records)))
    assert Dead(10 + kinds.index("hour"), 1) in dead
    assert Dead(10 + kinds.index("latency"), 1) not in dead, "nothing was measured since"


@pytest.mark.parametrize(
    "value", ["[]", "[5,1]", "[1,256,1]", "[1,-1,1]", f"[1,2,{2**63}]", "{}", "[1],[2]", "1.5", ""]
)
@pytest.mark.parametrize("others", [0, 1])
def test_latencies_of_another_format_are_not_read(value: str, others: int) -> None:
    keys = [table_rows.encode_key(0, "latency", "p", hour, "a", "b", "c") for hour in range(2)]
    found = Tables(0, b"salt", DictIndex())
    records = [(keys[1], b"[1,2,3]", 0)] * others + [(keys[0], value.encode(), 1)]
    with pytest.raises(ValueError, match="row"):
        found.restore_all(records)
    assert len(found.latencies) == 0


def test_a_duplicate_makes_no_row() -> None:
    found = Tables(0, b"salt", DictIndex())
    for offset, at in enumerate((NOON, NOON + HOUR)):
        message = message_of("p", [Usage(1, at=at, latency=9)])
        found.apply(offset, message, found.prepare(message))
    assert [place[1] for kind in (found.hours, found.latencies) for place, _ in kind.rows()] == [NOON // HOUR] * 2
    assert found.tally == (3 + len(found.windows), 1)
