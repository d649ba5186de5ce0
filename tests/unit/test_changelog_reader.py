"""The one reader of the changelog in a worker: the ledger goes on while rows are written to the topic."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from processor.leases.followed_ledger import FollowedLedger
from processor.leases.lease_messages import Account
from processor.log.errors import LogUnavailable
from processor.log.records import Record, TopicPartition
from processor.log.topics import ROWS
from processor.users_topic import changelog_reader
from processor.users_topic.changelog_reader import ChangelogReader
from tests.unit.test_followed_ledger import MONTH, progress, window

R0 = TopicPartition(ROWS, 0)
ACCOUNT = Account("acme", MONTH)


class Tail:
    """Each poll returns what the next of `flushes` has charged in all; the last one ends `writing`."""

    def __init__(self, *flushes: int) -> None:
        self.flushes = deque(flushes)
        self.writing: Future[str] = Future()
        self.offset = 0

    @property
    def is_current(self) -> bool:
        return not self.flushes

    def poll(self) -> Iterator[tuple[TopicPartition, Sequence[Record]]]:
        charged = self.flushes.popleft()
        records = []
        for key, value in ((b'[0,"user","p"]', b"%d" % charged), window(0, charged), progress(0, charged)):
            records.append(Record(self.offset, 1000 + self.offset, key, value))
            self.offset += 1
        if not self.flushes:
            self.writing.set_result("written")
        yield R0, records

    def known_at(self, tp: TopicPartition) -> float:
        raise NotImplementedError

    def has_more(self, tp: TopicPartition) -> bool:
        raise NotImplementedError

    def newest(self) -> Iterator[Any]:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class Rows:
    def __init__(self) -> None:
        self.users: list[bytes] = []
        self.breaks = False

    def apply(self, partition: int, records: Sequence[tuple[bytes, bytes | None]]) -> None:
        if self.breaks:
            raise ValueError("another format")
        self.users += [value for key, value in records if value is not None and b'"user"' in key]


def charged(ledger: FollowedLedger) -> int:
    with ledger.held() as held:
        return held.total(ACCOUNT)


def test_the_ledger_goes_on_while_rows_are_written_which_get_it_afterwards() -> None:
    rows, ledger, tail = Rows(), FollowedLedger(), Tail(1, 2, 3, 4)
    reader = ChangelogReader(rows, ledger)
    reader.read(tail)
    assert (charged(ledger), rows.users, reader.oldest) == (1, [b"1"], 1000)
    reader.oldest = None
    assert not ledger.has_read_all.is_set()
    assert reader.wait(tail.writing, tail) == "written"
    assert (charged(ledger), rows.users) == (4, [b"1"])
    assert reader.oldest is None
    assert ledger.has_read_all.is_set()
    reader.apply()
    assert rows.users == [b"1", b"2", b"3", b"4"]
    assert [reader.oldest] == [1003]


def test_what_is_read_ahead_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changelog_reader, "MOST_AHEAD", 6)
    rows, ledger, tail = Rows(), FollowedLedger(), Tail(1, 2, 3, 4)
    reader = ChangelogReader(rows, ledger)
    for _ in range(4):
        reader.look(tail)
    assert charged(ledger) == 2
    reader.read(tail)
    assert (charged(ledger), rows.users) == (3, [b"1", b"2", b"3"])


def test_what_fails_in_another_thread_is_raised() -> None:
    failed: Future[None] = Future()
    failed.set_exception(LogUnavailable("away"))
    with pytest.raises(LogUnavailable):
        ChangelogReader(Rows(), FollowedLedger()).wait(failed, Tail())


def test_rows_of_another_format_are_not_passed_over() -> None:
    rows, ledger, tail = Rows(), FollowedLedger(), Tail(1, 2)
    reader = ChangelogReader(rows, ledger)
    rows.breaks = True
    for _ in range(2):
        with pytest.raises(ValueError, match="another format"):
            reader.read(tail)
    assert charged(ledger) == 1
    rows.breaks = False
    reader.read(tail)
    assert rows.users == [b"1", b"2"]
