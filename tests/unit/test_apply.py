"""The tables do not depend on how the events were cut into messages, nor on what was applied twice.

log       o0   o1   o2   o3   o4
first     ──────────────>| crash: the changelog holds what was flushed, the rest of the rows is gone
replay         ─────────────────>  from any offset up to the crash; same tables as in one go
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.core.clock import DAY, HOUR, MINUTE
from processor.core.events.message import Message, build_blocks, opened
from processor.core.events.source import Source
from processor.core.tables import table_rows
from processor.core.tables.apply import Tables
from processor.core.tables.grouped_sums import Group, grouped
from processor.core.tables.row_sums import RowSums
from processor.core.tables.table_rows import Progress
from tests.support.dict_index import DictIndex
from tests.support.examples import examples
from tests.support.tables import NOON, Usage, by_key, columns

usages = st.builds(
    Usage,
    id=st.integers(0, 40),
    user=st.sampled_from([None, "u1", "u2", "ü\x00/"]),
    at=st.sampled_from([NOON, NOON + HOUR, NOON - 3 * DAY, -DAY]),
    model=st.sampled_from(["a", "b"]),
    cost=st.sampled_from([0, 1, 999_999_999_999_999_999, 10**18]),
    input_tokens=st.sampled_from([0, 2**53 - 1]),
    output_tokens=st.integers(-(2**63), 2**63 - 1),
    cached_tokens=st.integers(-(2**63), 2**63 - 1),
    error=st.booleans(),
    unpriced=st.booleans(),
    latency=st.sampled_from([0, 0, 1, 77, 255]),
    span=st.sampled_from([False, False, True]),
)


def message_of(
    events: Sequence[Usage], arrival: int = NOON, project: str = "p", partitions: int = 1
) -> dict[int, Message]:
    source = Source("org", project, "key", arrival, "json", "partial")
    built = build_blocks(source, columns(events), partitions)
    return {partition: opened([block]) for partition, block in built.items()}


def kinds_of(found: Tables) -> tuple[dict[Any, Any], ...]:
    """All rows, each by what it is kept by."""
    return by_key(found.users), dict(found.hours.rows()), dict(found.latencies.rows()), found.windows


def rows_of(found: Tables) -> dict[str, list[int]]:
    return {row.key.decode(): row.value()[1:] for kind in kinds_of(found) for row in kind.values()}


def summed(partitions: list[Tables]) -> dict[str, list[int]]:
    """The partials of all partitions added up, first and last seen left out."""
    total: dict[str, list[int]] = defaultdict(lambda: [0] * 7)
    for found in partitions:
        for key, row in by_key(found.users).items():
            total[str(key)] = [a + b for a, b in zip(total[str(key)], row.value()[1:8], strict=True)]
    return dict(total)


def apply_all(found: Tables, messages: Sequence[Message], start: int = 0) -> None:
    for offset in range(start, len(messages)):
        found.apply(offset, messages[offset], found.prepare(messages[offset]))


def apply_together(found: Tables, messages: Sequence[Message], start: int, end: int) -> None:
    if start < end:
        found.apply_all([(n, messages[n], found.prepare(messages[n])) for n in range(start, end)])


def state_of(found: Tables) -> list[Any]:
    """All rows with the offsets they have, and the progress."""
    return [{key: row.value() for key, row in kind.items()} for kind in kinds_of(found)] + [found.progress.value()]


@given(st.lists(usages, min_size=1, max_size=60, unique_by=lambda usage: usage.id), st.data())
def test_any_order_and_any_split_gives_the_same_tables(events: list[Usage], data: st.DataObject) -> None:
    copies = [*events, *data.draw(st.lists(st.sampled_from(events), max_size=20))]
    one = Tables(0, b"salt", DictIndex())
    apply_all(one, [message_of(copies)[0]])

    shuffled = data.draw(st.permutations(copies))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(copies)), max_size=6)) | {len(copies)})
    parts = [shuffled[start:end] for start, end in zip([0, *cuts], cuts, strict=False) if start < end]
    many = Tables(0, b"salt", DictIndex())
    apply_all(many, [message_of(part)[0] for part in parts])
    assert rows_of(many) == rows_of(one)

    partitions = [Tables(number, b"salt", DictIndex()) for number in range(3)]
    for offset, part in enumerate(parts):
        for number, message in message_of(part, partitions=3).items():
            partitions[number].apply(offset, message, partitions[number].prepare(message))
    assert summed(partitions) == summed([one])


@examples(100)
@given(st.lists(st.lists(usages, min_size=1, max_size=6), min_size=1, max_size=10), st.data())
def test_messages_that_are_applied_together_are_what_they_are_one_by_one(
    batches: list[list[Usage]], data: st.DataObject
) -> None:
    """From the beginning, and after a crash: rows and ids may be ahead of any part of what is applied together."""
    messages = [message_of(batch, NOON + offset * HOUR)[0] for offset, batch in enumerate(batches)]
    index = DictIndex()
    alone, together = Tables(0, b"salt", DictIndex()), Tables(0, b"salt", index)
    changelog: list[tuple[bytes, bytes | None]] = []
    apply_all(alone, messages)
    start = 0
    for end in sorted(data.draw(st.sets(st.integers(1, len(messages)), max_size=3)) | {len(messages)}):
        apply_together(together, messages, start, end)
        start = end
        if data.draw(st.booleans()):
            flush(together, changelog, packs=data.draw(st.booleans()))
    assert state_of(together) == state_of(alone)

    again = Tables(0, b"salt", index)
    kept = [(key, value, n) for n, (key, value) in enumerate(changelog) if data.draw(st.booleans())]  # as on Kafka
    again.restore_all(kept)
    again.progress = Progress(again.progress.key)
    start = 0
    for end in sorted(data.draw(st.sets(st.integers(1, len(messages)), max_size=3)) | {len(messages)}):
        apply_together(again, messages, start, end)
        start = end
    assert rows_of(again) == rows_of(alone)
    if not changelog:  # no flush has had them
        mine, theirs = together.drain_changes(), alone.drain_changes()
        assert (mine and mine.claimed) == (theirs and theirs.claimed)


requests = st.tuples(
    st.lists(usages, min_size=1, max_size=8),
    st.sampled_from(["p", "q"]),
    st.sampled_from(["org", "other"]),
    st.sampled_from([NOON, NOON + 1, NOON + MINUTE, NOON + 40 * DAY]),
)


@given(st.lists(requests, min_size=1, max_size=6))
def test_requests_that_share_a_message_are_what_they_are_in_their_own(sent: list[Any]) -> None:
    blocks = []
    for events, project, organization, arrival in sent:
        source = Source(organization, project, "key", arrival, "json", "partial")
        blocks.append(build_blocks(source, columns(events), 1)[0])
    together, alone = Tables(0, b"salt", DictIndex()), Tables(0, b"salt", DictIndex())
    apply_all(together, [opened(blocks)])
    for offset, block in enumerate(blocks):
        message = opened([block])
        alone.apply(offset, message, alone.prepare(message))
    assert rows_of(alone) == rows_of(together)


@given(st.lists(st.tuples(st.integers(0, 3), usages), min_size=1, max_size=30))
def test_the_sums_of_groups_are_exact(events: list[tuple[int, Usage]]) -> None:
    rows = columns(event for _, event in events).rows
    codes, errors = np.array([code for code, _ in events]), np.array([event.error for _, event in events])
    offsets = np.arange(len(events))
    found = list(grouped(codes, offsets, rows, errors).each())
    assert [group.code for group in found] == sorted({code for code, _ in events})
    for group in found:
        theirs = [event for code, event in events if code == group.code]
        assert group == Group(
            group.code,
            max(offset for offset, (code, _) in enumerate(events) if code == group.code),
            RowSums(
                len(theirs),
                sum(event.error for event in theirs),
                sum(event.input_tokens for event in theirs),
                sum(event.output_tokens for event in theirs),
                sum(event.cached_tokens for event in theirs),
                sum(event.cost for event in theirs),
                sum(event.unpriced for event in theirs),
                min(event.at for event in theirs),
                max(event.at for event in theirs),
            ),
        )


@given(st.lists(usages, min_size=1, max_size=40))
def test_the_tables_are_the_sums_over_the_first_copies(events: list[Usage]) -> None:
    found = Tables(0, b"salt", DictIndex())
    apply_all(found, [message_of([event])[0] for event in events])
    first: dict[int, Usage] = {}
    for event in events:
        first.setdefault(event.id, event)
    calls = [event for event in first.values() if not event.span]
    by_user: dict[str | None, list[Usage]] = defaultdict(list)
    for event in calls:
        by_user[event.user].append(event)
    for user, theirs in by_user.items():
        rows = [row for key, row in by_key(found.users).items() if key[1] == user]
        assert sum(row.requests for row in rows) == len(theirs)
        assert sum(row.cost for row in rows) == sum(event.cost for event in theirs)
        assert sum(row.input_tokens for row in rows) == sum(event.input_tokens for event in theirs)
        assert sum(row.errors for row in rows) == sum(event.error for event in theirs)
        assert sum(row.unpriced for row in rows) == sum(event.unpriced for event in theirs)
        assert min(row.first_seen for row in rows) == min(event.at for event in theirs)
        assert max(row.last_seen for row in rows) == max(event.at for event in theirs)
    assert {key[1] for key in by_key(found.users)} == by_user.keys()
    assert sum(row.requests for _, row in found.hours.rows()) == len(calls)
    assert found.progress.spans == len(first) - len(calls)
    found_latencies: Counter[int] = Counter()
    for _, histogram in found.latencies.rows():
        found_latencies.update(histogram.counts)
    assert found_latencies == Counter(event.latency for event in calls if event.latency)
    [month] = [row for key, row in found.windows.items() if key[0] == "org" and key[2] == "month"]
    assert (month.unique, month.duplicates) == (len(first), len(events) - len(first))
    conflicts = sum(event != first[event.id]._replace(latency=event.latency) for event in events)
    assert month.conflicts == conflicts


@examples(100)
@given(st.lists(st.lists(usages, min_size=1, max_size=6), min_size=1, max_size=10), st.data())
def test_a_replay_from_anywhere_changes_nothing(batches: list[list[Usage]], data: st.DataObject) -> None:
    messages = [message_of(batch, NOON + offset * MINUTE)[0] for offset, batch in enumerate(batches)]
    straight = Tables(0, b"salt", DictIndex())
    apply_all(straight, messages)

    index = DictIndex()  # survives the crash, ahead of the changelog
    changelog: list[tuple[bytes, bytes | None]] = []
    found = Tables(0, b"salt", index)
    flushed, packs = 0, data.draw(st.booleans())
    crash = data.draw(st.integers(0, len(messages)))
    for offset in range(crash):
        found.apply(offset, messages[offset], found.prepare(messages[offset]))
        if data.draw(st.booleans()):
            flush(found, changelog, packs=packs)
            flushed = offset + 1

    again = Tables(0, b"salt", index)
    again.restore_all((key, value, position) for position, (key, value) in enumerate(changelog))
    apply_all(again, messages, start=data.draw(st.integers(0, flushed)))
    assert rows_of(again) == rows_of(straight)
    assert again.progress.spans == straight.progress.spans

    flush(again, changelog, packs=data.draw(st.booleans()))
    restored = Tables(0, b"salt", index)
    for position, (key, value) in enumerate(changelog):
        restored.restore(key, value, position)
    assert rows_of(restored) == rows_of(straight)
    assert restored.progress.value() == straight.progress.value()
    assert restored.progress.spans == straight.progress.spans


def flush(found: Tables, changelog: list[tuple[bytes, bytes | None]], *, packs: bool = False) -> None:
    changes = found.drain_changes(packs=packs)
    if changes is None:
        return
    start = len(changelog)
    changelog += changes.records
    changes.wrote(range(start, len(changelog)))


@given(st.lists(st.lists(usages, min_size=1, max_size=4), min_size=2, max_size=8), st.data())
def test_rows_of_which_some_were_lost_are_made_good_by_the_replay(
    batches: list[list[Usage]], data: st.DataObject
) -> None:
    """A changelog that is not written all or nothing (Kafka): any subset of a flush's rows may be durable."""
    messages = [message_of(batch)[0] for batch in batches]
    straight = Tables(0, b"salt", DictIndex())
    apply_all(straight, messages)
    changes = straight.drain_changes()
    assert changes is not None
    kept = [pair for pair in changes.records if data.draw(st.booleans())]
    again = Tables(0, b"salt", DictIndex())
    for position, (key, value) in enumerate(kept):
        again.restore(key, value, position)
    apply_all(again, messages)
    assert rows_of(again) == rows_of(straight)


def test_a_row_does_not_appear_because_of_a_duplicate() -> None:
    found = Tables(0, b"salt", DictIndex())
    apply_all(found, [message_of([Usage(1, user="a")])[0], message_of([Usage(1, user="b"), Usage(2, user="c")])[0]])
    assert {key[1] for key in by_key(found.users)} == {"a", "c"}


def run_for(found: Tables, hours: int, clock: int, running: int = 0) -> int:
    """Let so many hours of running time pass, the clock of the owner with them; returns the running time."""
    for _ in range(hours):
        running += HOUR
        found.tick(running, clock + running)
    return running


def test_spans_are_charged_and_in_no_row_of_cost() -> None:
    found = Tables(0, b"salt", DictIndex())
    spans = [Usage(number, user="s", model="plan", span=True, error=True, latency=9) for number in range(3)]
    apply_all(found, [message_of([*spans, spans[0]])[0]])
    assert kinds_of(found)[:3] == ({}, {}, {})
    assert found.tally == (len(found.windows), 0)
    apply_all(found, [message_of(spans)[0], message_of([*spans, Usage(7)])[0]])
    assert [(key[1], row.requests, row.errors) for key, row in by_key(found.users).items()] == [("u1", 1, 0)]
    [month] = [row for key, row in found.windows.items() if key[0] == "org" and key[2] == "month"]
    assert (month.unique, month.duplicates, month.conflicts) == (4, 4, 0)
    assert found.progress.spans == 3


def test_a_span_and_a_call_of_one_id_are_a_conflict() -> None:
    found = Tables(0, b"salt", DictIndex())
    apply_all(found, [message_of([Usage(1)])[0], message_of([Usage(1, span=True)])[0]])
    [month] = [row for key, row in found.windows.items() if key[0] == "org" and key[2] == "month"]
    assert (month.unique, month.conflicts, found.progress.spans) == (1, 1, 0)


def test_minute_windows_are_closed_behind_the_horizon_and_stay_closed() -> None:
    found = Tables(0, b"salt", DictIndex())
    late = NOON + table_rows.LATENESS["minute"] + 2 * MINUTE
    messages = [message_of([Usage(1)], NOON)[0], message_of([Usage(2)], late)[0], message_of([Usage(3)], NOON)[0]]
    changelog: list[tuple[bytes, bytes | None]] = []
    apply_all(found, messages[:2])
    flush(found, changelog)
    running = run_for(found, 24, late)
    assert {key[3] for key in found.windows if key[2] == "minute"} == {NOON, late - late % MINUTE}, "not a day old yet"
    run_for(found, 3, late, running)
    apply_all(found, messages, start=2)
    assert {key[3] for key in found.windows if key[2] == "minute"} == {late - late % MINUTE}
    [month] = [row for key, row in found.windows.items() if key[0] == "org" and key[2] == "month"]
    assert month.unique == 3, "months take late arrivals for ever"
    flush(found, changelog)
    gone = [key for key, value in changelog if value is None]
    assert len(gone) == 2
    assert all(b"minute" in key for key in gone)
    again = Tables(0, b"salt", DictIndex())
    again.restore_all((key, value, offset) for offset, (key, value) in enumerate(changelog))
    assert state_of(again) == state_of(found)
    assert again.horizon.value() == found.horizon.value(), "a restart goes on where the flush was"


@pytest.mark.parametrize("kind", ["minute", "hour", "day", "lease"])
def test_an_arrival_of_months_ahead_closes_nothing(kind: str) -> None:
    """Not at once, and not a day later, when the clock is right again."""
    found = Tables(0, b"salt", DictIndex())
    source = Source("org", "p", "key", NOON, "json", "partial", "api")
    running = run_for(found, 30, NOON)
    for offset, arrival in enumerate([NOON, NOON + 100 * DAY, NOON]):
        source = Source("org", "p", "key", arrival, "json", "partial", "api")
        message = opened([build_blocks(source, columns([Usage(offset)]), 1)[0]])
        found.apply(offset, message, found.prepare(message))
    running = run_for(found, 2, NOON - running, running)
    [count] = {row.unique for key, row in found.windows.items() if key[2] == kind and key[3] <= NOON}
    assert count == 2
    run_for(found, 24, NOON - running, running)
    assert found.horizon.windows <= NOON + 24 * HOUR
    message = message_of([Usage(9)], NOON + 23 * HOUR)[0]
    found.apply(3, message, found.prepare(message))
    assert any(key[2] == "minute" and key[3] == NOON + 23 * HOUR for key in found.windows)


def test_a_dead_letter_is_passed_over() -> None:
    found = Tables(0, b"salt", DictIndex())
    found.skip(0)
    message = message_of([Usage(1)])[0]
    found.apply(1, message, found.prepare(message))
    assert found.progress.offset == 1


def test_compaction_keeps_what_is_the_newest() -> None:
    found = Tables(0, b"salt", DictIndex())
    changelog: list[tuple[bytes, bytes | None]] = []
    for offset in range(3):
        message = message_of([Usage(offset)])[0]
        found.apply(offset, message, found.prepare(message))
        flush(found, changelog)
    live = found.newest_offsets().tolist()
    assert live == sorted(set(live))
    assert len(live) == len(found) + 2, "rows, progress and horizon"
    assert {changelog[position][0] for position in live} == {key for key, _ in changelog}


@pytest.mark.parametrize("key", [b"", b"{}", b"[0]", b'[0,"unknown"]'])
def test_a_changelog_of_another_format_is_not_read(key: bytes) -> None:
    with pytest.raises(ValueError, match="row"):
        Tables(0, b"salt", DictIndex()).restore(key, b"[0]", 0)
