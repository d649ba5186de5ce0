"""A start reads the newest record of each row only: what it knows then is what reading all of them tells."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.core.tables import row_block, row_bytes
from processor.core.tables.apply import Tables
from processor.core.tables.row_block import RowBlock
from processor.core.tables.table_rows import encode_value
from processor.log.address import LogAddress
from processor.log.embedded.log import Log
from processor.log.embedded.newest import KeptRecords, newest
from processor.log.embedded.tail import EmbeddedTail
from processor.log.errors import LogUnavailable
from processor.log.port import Read, polls
from processor.log.records import Append, NewestRecords, Record, Row, TopicPartition
from processor.log.topics import EVENTS, ROWS
from processor.state import loader
from processor.state.loader import Partition
from processor.view.changelog_batch import Change
from processor.view.view import View
from processor.view.view_follower import ViewFollower
from server.reads.params import parse_users
from tests.support.dict_index import DictIndex
from tests.support.patience import PATIENCE
from tests.support.tables import NOON, Usage, Worker

keys = st.sampled_from([b"a", b"b", b"c", b"d"])


@given(st.lists(st.lists(st.tuples(keys, st.none() | st.binary(max_size=2)), max_size=8), max_size=6))
def test_what_is_kept_is_what_compaction_leaves(batches: list[list[tuple[bytes, bytes | None]]]) -> None:
    kept = KeptRecords(0)
    everything: list[Record] = []
    for batch in batches:
        records = [Record(len(everything) + n, 0, key, value) for n, (key, value) in enumerate(batch)]
        everything += records
        kept.add(records)
    last = {record.key: record for record in everything}
    assert len(kept) == len(last)
    assert kept.drain() == sorted(last.values(), key=lambda record: record.offset)
    assert kept.drain() == []


@pytest.fixture
def written(tmp_path: Path) -> LogAddress:
    """A log in which every row was written again and again, over two partitions."""
    log, worker = Log(tmp_path / "data", partitions=2, create=True), Worker(2)
    for turn in range(30):
        worker.send(
            [Usage(1000 * turn + n, f"u{n % 11}", cost=turn) for n in range(20)], arrival=NOON + turn * 60_000_000
        )
        for partition, records in enumerate(worker.work_all()):
            log.append([Append(TopicPartition(ROWS, partition), records)], NOON)
    log.close()
    return LogAddress(tmp_path / "data")


def few_at_a_time(read: Read, tp: TopicPartition, start: int) -> Iterator[Sequence[Record]]:
    """`polls`, thirteen at a time."""
    return polls(read, tp, start, limit=13)


def everything_in(tables: Tables) -> dict[bytes, tuple[bytes, int]]:
    assert tables.horizon.value()[3:] == [0, 0]
    rows: list[Any] = [tables.progress, *tables.windows.values()]
    for columns in (tables.users, tables.hours, tables.latencies):
        rows += (row for _, row in columns.rows())
    return {row.key: (encode_value(row), row.changelog) for row in rows}


class Forwards:
    """A log that is read as a broker's is."""

    def __init__(self, log: Any) -> None:
        self._log = log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)


@pytest.mark.parametrize("backwards", [True, False])
@pytest.mark.parametrize("few", [1, 7, 1_000_000])
def test_a_partition_is_read_back_as_it_was(
    written: LogAddress, few: int, backwards: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "FOLD", few)
    monkeypatch.setattr("processor.log.embedded.newest.BLOCK", few)
    monkeypatch.setattr(loader, "polls", few_at_a_time)
    log = written.open()
    for number in range(2):
        fast, slow = (Partition(number, Tables(number, b"salt", DictIndex()), None) for _ in range(2))  # type: ignore[arg-type]
        loader.read_rows(log if backwards else Forwards(log), fast)
        for batch in polls(log.read, TopicPartition(ROWS, number)):
            loader.apply_rows(slow, batch)
        assert everything_in(fast.tables) == everything_in(slow.tables)
        assert (fast.records, fast.rows_end) == (slow.records, slow.rows_end)
        assert fast.records > 2 * len(everything_in(fast.tables))
    log.close()


def test_a_log_that_goes_away_in_the_middle_loses_no_row(written: LogAddress, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Kafka the same partition is read on after it: what was read before is not read again."""
    monkeypatch.setattr(loader, "polls", few_at_a_time)
    embedded = written.open()
    log: Any = Forwards(embedded)
    whole, broken = (Partition(0, Tables(0, b"salt", DictIndex()), None) for _ in range(2))  # type: ignore[arg-type]
    loader.read_rows(log, whole)
    read, left = Log.read, [3]

    def failing(self: Log, *arguments: Any) -> list[Record]:
        left[0] -= 1
        if not left[0]:
            raise LogUnavailable("no answer")
        return read(self, *arguments)

    monkeypatch.setattr(Log, "read", failing)
    with pytest.raises(LogUnavailable):
        loader.read_rows(log, broken)
    assert 0 < broken.rows_end < whole.rows_end
    loader.read_rows(log, broken)
    assert everything_in(broken.tables) == everything_in(whole.tables)
    assert (broken.records, broken.rows_end) == (whole.records, whole.rows_end)
    log.close()


values = (
    st.none()
    | st.binary(max_size=3).filter(lambda value: value[:1] != row_bytes.MARK)
    | st.binary(max_size=71).map(lambda rest: row_bytes.MARK + rest.ljust(71, b"\1"))
)


@given(
    st.lists(st.tuples(st.sampled_from([b"a", b"\xc3\xa4", b"b", b""]), values), max_size=40),
    st.integers(1, 9),
    st.integers(0, 8),
)
def test_the_newest_are_found_from_the_end(
    tmp_path_factory: pytest.TempPathFactory,
    written: list[tuple[bytes, bytes | None]],
    few: int,
    start: int,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("processor.log.embedded.newest.BLOCK", few)
        log, tp = Log(tmp_path_factory.mktemp("log") / "data", create=True), TopicPartition(ROWS, 0)
        log.append([Append(tp, [(b"before", b"0")] * start)], NOON)
        log.append([Append(tp, written)], NOON)
        log.append([Append(TopicPartition(EVENTS, 0), [(b"other", b"o")])], NOON)
        found = list(newest(log, tp, start, log.end(tp)))
        log.close()
    assert sum(len(parts.keys) + len(parts.others) + len(parts.replaced) for parts in found) == len(written)
    last = {key: (start + number, key, value) for number, (key, value) in enumerate(written)}
    assert sorted(row for parts in found for row in everything_of(parts)) == sorted(last.values())
    assert not any((parts.values["zero"] & 0xFF).any() for parts in found)
    assert not any((row.value or b"")[:1] == row_bytes.MARK for parts in found for row in parts.others)
    gone = {offset for parts in found for offset in parts.replaced}
    assert gone == set(range(start, start + len(written))) - {offset for offset, *_ in last.values()}


def test_what_is_replaced_and_compacted_while_it_is_read_is_found_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("processor.log.embedded.newest.BLOCK", 10)
    log, tp = Log(tmp_path / "data", create=True), TopicPartition(ROWS, 0)
    rng = random.Random(1)
    live: dict[bytes, int] = {}

    def write(count: int) -> None:
        chosen = [b"%d" % rng.randrange(30) for _ in range(count)]
        first = log.append([Append(tp, [(key, b"%d" % rng.randrange(1000)) for key in chosen])], NOON)[0]
        live.update({key: first + number for number, key in enumerate(chosen)})

    write(300)
    found: dict[bytes, tuple[int, bytes | None]] = {}
    end = log.end(tp)
    for parts in newest(log, tp, 0, end):
        found.update({key: (offset, value) for offset, key, value in everything_of(parts)})
        write(3)
        log.compact(tp, 0, log.end(tp), 1000, np.array(sorted(live.values())))
    behind = log.read(tp, end)
    found.update({record.key or b"": (record.offset, record.value) for record in behind})
    assert {key: offset for key, (offset, _) in found.items()} == live
    log.close()


@pytest.mark.parametrize("backwards", [True, False])
@pytest.mark.parametrize("fold", [1, 7, 1_000_000])
def test_a_front_end_catches_up_to_the_same_view(
    written: LogAddress, fold: int, backwards: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("processor.view.view_follower.FOLD", fold)
    monkeypatch.setattr("processor.log.embedded.newest.BLOCK", fold)
    if not backwards:
        monkeypatch.setattr(EmbeddedTail, "newest", lambda tail: iter(()))
    monkeypatch.setattr("processor.log.embedded.tail.BATCH", 13)
    view, other = View(), View()
    follower = ViewFollower(written, 2, view, lambda: NOON, lambda: None)
    follower.start()
    assert follower.read_all.wait(PATIENCE)
    log = written.open()
    for number in range(2):
        for batch in polls(log.read, TopicPartition(ROWS, number)):
            other.apply(number, [(record.key or b"", record.value) for record in batch])
    query = parse_users("default", {"limit": "1000"})
    assert (view.all_time(query), view.position) == (other.all_time(query), other.position)
    # From there on it follows.
    log.append([Append(TopicPartition(ROWS, 0), [(b'[0,"user","default","new",1,"openai","m","p"]', bytes(72))])], NOON)
    deadline = time.monotonic() + PATIENCE
    while view.users < other.users + 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert view.users == other.users + 1
    follower.stop()
    log.close()


@pytest.mark.parametrize("fold", [1, 1_000_000])
def test_what_is_written_while_a_front_end_reads_back_is_added_block_by_block(
    fold: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All blocks of a partition have one key, and none replaces another: each has users of its own here."""
    monkeypatch.setattr("processor.view.view_follower.FOLD", fold)
    address = LogAddress(tmp_path / "data")
    log, worker = Log(address.data_dir, partitions=1, create=True), Worker(1, packs=True)
    tp, seed = TopicPartition(ROWS, 0), row_block.seed_of(log.salt)
    worker.tables = [Tables(0, log.salt, DictIndex())]

    def write(turn: int) -> None:
        users = [Usage(10 * turn + n, f"u{turn}-{n}", cost=1) for n in range(5)]
        worker.send([*users, Usage(10 * turn + 5, "everywhere", cost=turn)], arrival=NOON + turn * 60_000_000)
        log.append([Append(tp, worker.work(0))], NOON)

    write(0)
    begun: list[int] = []
    read_back = EmbeddedTail.newest

    def meanwhile(tail: EmbeddedTail) -> Iterator[tuple[TopicPartition, NewestRecords]]:
        yield from read_back(tail)
        begun.append(1)
        for turn in range(1, 8):
            write(turn)

    monkeypatch.setattr(EmbeddedTail, "newest", meanwhile)
    view, other = View(seed), View(seed)
    follower = ViewFollower(address, 1, view, lambda: NOON, lambda: None)
    follower.start()
    assert follower.read_all.wait(PATIENCE)
    follower.stop()
    assert begun == [1]
    other.apply(0, worker.changelog[0])
    query = parse_users("default", {"limit": "1000"})
    assert view.all_time(query) == other.all_time(query)
    assert view.all_time(query).size == 8 * 5 + 1
    assert view.position == other.position == {0: 7}
    log.close()


@pytest.mark.parametrize("bounds", [{"limit": 8}, {"max_bytes": 600}], ids=["records", "bytes"])
def test_a_view_that_fell_behind_says_how_far_it_is_only_when_it_has_what_replaced_what_was_compacted(
    bounds: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row of one user is replaced at the end, and compacted; of the progress between nothing is gone yet."""
    log, worker = Log(tmp_path / "data", partitions=1, create=True), Worker(1, packs=True)
    worker.tables = [Tables(0, log.salt, DictIndex())]
    tp = TopicPartition(ROWS, 0)
    view = View(row_block.seed_of(log.salt))
    address = LogAddress(tmp_path / "data")
    follower = ViewFollower(address, 1, view, lambda: NOON, lambda: None)
    follower.read_on()
    assert follower.read_all.is_set()

    for turn, user in enumerate(["once", *map(str, range(10)), "once"]):
        worker.send([Usage(turn, user)])
        log.append([Append(tp, worker.work(0))], NOON)
    first = next(record for record in log.read(tp, 0, 100) if record.key == row_block.key_of(0))
    log.delete(tp, [first.offset])
    read = Log.read
    monkeypatch.setattr(Log, "read", lambda log, tp, at, _: read(log, tp, at, **bounds))

    query = parse_users("default", {"limit": "1000"})
    seen: list[dict[int, int]] = []
    apply = View.apply

    def look(partition: int, changes: Sequence[Change]) -> None:
        apply(view, partition, changes)
        seen.append(dict(view.position))
        if view.contains({0: 0}):
            assert {user[0]: user[1].requests for user in view.all_time(query).users}["once"] in {1, 2}

    monkeypatch.setattr(view, "apply", look)
    follower.read_on()
    assert {user[0]: user[1].requests for user in view.all_time(query).users} == {
        "once": 2,
        **dict.fromkeys("0123456789", 1),
    }
    assert len(seen) > 3
    assert seen[0] == {}
    assert view.position == {0: 11}

    worker.send([Usage(99, "last")])
    log.append([Append(tp, worker.work(0))], NOON)
    follower.read_on()
    assert view.position == {0: 12}
    log.close()


def everything_of(found: NewestRecords) -> list[tuple[int, bytes, bytes | None]]:
    pairs = RowBlock(found.keys, found.hashes, found.values).pairs()
    return [*((offset, *pair) for offset, pair in zip(found.offsets.tolist(), pairs, strict=True)), *found.others]


def test_a_view_never_says_that_it_holds_what_was_compacted_before_it_was_read(
    written: LogAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker replaces every row, and compacts, between two looks of an API process that starts."""
    monkeypatch.setattr("processor.log.embedded.newest.BLOCK", 5)
    log, other = Log(written.data_dir), View()
    whole = newest(log, TopicPartition(ROWS, 0), 0, log.end(TopicPartition(ROWS, 0)))
    rows = [Row(*row) for found in whole for row in reversed(everything_of(found))]
    view = View()
    follower = ViewFollower(written, 1, view, lambda: NOON, lambda: None)
    applied: list[int] = []

    def replaced_meanwhile(apply: Callable[..., None], partition: int, found: Any) -> None:
        if not applied:
            end = log.end(TopicPartition(ROWS, 0))
            log.append([Append(TopicPartition(ROWS, 0), [(row.key, row.value) for row in rows])], NOON)
            log.delete(TopicPartition(ROWS, 0), list(range(end)))
        apply(partition, found)
        applied.append(len(found))
        if view.position:
            assert view.all_time(parse_users("default", {})) == other.all_time(parse_users("default", {}))

    for apply in (view.apply, view.apply_block):
        monkeypatch.setattr(view, apply.__name__, partial(replaced_meanwhile, apply))
    other.apply(0, [(row.key, row.value) for row in rows])
    follower.read_on()
    assert follower.read_all.is_set()
    assert view.position == other.position
    assert len(applied) > 1
    assert view.all_time(parse_users("default", {})).size > 5
    log.close()
