import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apsw
import pytest

from processor.core.clock import DAY
from processor.core.events import message
from processor.core.events.message import build_blocks
from processor.core.events.source import Source
from processor.log.address import LogAddress
from processor.log.embedded.log import Log
from processor.log.errors import LogUnavailable
from processor.log.records import TopicPartition
from processor.log.topics import EVENTS
from server.ingest.group_commit import MAX_MESSAGE_EVENTS, GroupCommitter, Job, Written
from tests.support.messages import ids_by_request, ids_of
from tests.support.patience import PATIENCE
from tests.support.tables import NOON, Usage, columns

Start = Callable[..., GroupCommitter]


class Decided:
    """What the committer delivered, commit by commit."""

    def __init__(self) -> None:
        self.commits: list[int] = []
        self._changed = threading.Condition()

    def deliver(self, decided: Sequence[tuple[Job, Written]]) -> None:
        for job, outcome in decided:
            note: Any = job.done
            note(outcome)
        with self._changed:
            self.commits.append(len(decided))
            self._changed.notify_all()

    def wait(self, jobs: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: sum(self.commits) >= jobs, timeout=PATIENCE)


@pytest.fixture
def decided() -> Decided:
    return Decided()


@pytest.fixture
def start(tmp_path: Path, decided: Decided) -> Iterator[Start]:
    running: list[GroupCommitter] = []

    def begin(partitions: int = 2) -> GroupCommitter:
        Log(tmp_path, partitions=partitions).close()
        running.append(GroupCommitter(LogAddress(tmp_path).open, lambda: NOON, decided.deliver))
        running[-1].start()
        return running[-1]

    yield begin
    for committer in running:
        committer.stop()


def job(
    outcomes: list[Any], *partitions: int, events: int = 1, size: int = 10, first: int = 0, arrival: int = NOON
) -> Job:
    source = Source("org", "project", "key", arrival, "json", "partial")
    part = build_blocks(source, columns(Usage(first + number) for number in range(events)), 1)[0]
    return Job(dict.fromkeys(partitions, part), size, outcomes.append)


def test_nothing_arrives_after_it_is_written_whatever_the_clock_does_in_between(
    start: Start, decided: Decided, tmp_path: Path
) -> None:
    """An export by arrival passes over messages that were written before its start."""
    committer = start()
    for arrival in (NOON + 100 * DAY, NOON - DAY):
        committer.submit(deque([job([], 0, arrival=arrival)]))
        decided.wait(1 if arrival > NOON else 2)
    written = Log(tmp_path, create=False).read(TopicPartition(EVENTS, 0), 0)
    assert [record.at for record in written] == [NOON + 100 * DAY, NOON]


def test_each_job_learns_the_offset_of_the_message_that_contains_it(
    start: Start, decided: Decided, tmp_path: Path
) -> None:
    committer = start()
    outcomes: list[Any] = []
    for number in range(30):
        committer.submit(deque([job(outcomes, *((0, 1) if number % 3 else (1,)), events=3, first=10 * number)]))
    decided.wait(30)
    log = Log(tmp_path, create=False)
    held: dict[tuple[int, int], list[list[bytes]]] = {}
    for partition in (0, 1):
        for record in log.read(TopicPartition(EVENTS, partition), 0):
            held[partition, record.offset] = ids_by_request(record.value or b"")
    for number, outcome in enumerate(outcomes):
        expected = ids_of(job([], 0, events=3, first=10 * number).parts[0])
        assert set(outcome) == ({0, 1} if number % 3 else {1})
        assert all(expected in held[place] for place in outcome.items())


def test_what_is_handed_over_together_shares_a_commit_and_a_message(start: Start, decided: Decided) -> None:
    committer = start(1)
    outcomes: list[Any] = []
    committer.submit(deque([job(outcomes, 0)]))
    decided.wait(1)
    committer.submit(deque([job(outcomes, 0, first=number) for number in range(1, 11)]))
    decided.wait(11)
    assert decided.commits == [1, 10]
    assert [outcome[0] for outcome in outcomes] == [0] + [1] * 10


def test_a_message_is_bounded(start: Start, decided: Decided, tmp_path: Path) -> None:
    committer = start(1)
    outcomes: list[Any] = []
    committer.submit(deque([job(outcomes, 0, events=100, first=100 * number) for number in range(26)]))
    decided.wait(26)
    sizes = [
        len(message.decode(record.value or b""))
        for record in Log(tmp_path, create=False).read(TopicPartition(EVENTS, 0), 0)
    ]
    assert sum(sizes) == 2600
    assert max(sizes) == MAX_MESSAGE_EVENTS


def test_a_full_disk_is_an_answer_and_not_the_end(
    start: Start, decided: Decided, monkeypatch: pytest.MonkeyPatch
) -> None:
    committer = start(1)
    outcomes: list[Any] = []
    with monkeypatch.context() as patched:
        patched.setattr("processor.log.embedded.log._insert", _full)  # the offsets are given by then
        committer.submit(deque([job(outcomes, 0)]))
        decided.wait(1)
    committer.submit(deque([job(outcomes, 0)]))
    decided.wait(2)
    assert isinstance(outcomes[0], LogUnavailable)
    assert outcomes[1] == {0: 0}, "nothing of the failed commit is left behind"


def _full(*_: object) -> int:
    raise apsw.FullError("database or disk is full")


def test_stopping_writes_what_is_queued(tmp_path: Path, decided: Decided) -> None:
    Log(tmp_path).close()
    committer = GroupCommitter(LogAddress(tmp_path).open, lambda: NOON, decided.deliver)
    outcomes: list[Any] = []
    committer.submit(deque([job(outcomes, 0, first=number) for number in range(5)]))
    committer.start()
    committer.stop()
    assert len(outcomes) == 5


class Away:
    """A log whose first append takes its time and then fails; it counts them."""

    def __init__(self) -> None:
        self.appends = 0
        self.begun, self.go_on = threading.Event(), threading.Event()

    def append(self, *_: object) -> list[int]:
        self.appends += 1
        if self.appends > 1:
            return [7]
        self.begun.set()
        assert self.go_on.wait(PATIENCE)
        raise LogUnavailable("away")

    def close(self) -> None:
        pass


@pytest.mark.parametrize("together", [True, False])
def test_what_waits_behind_a_failing_commit_fails_with_it_if_tries_are_slow(decided: Decided, together: bool) -> None:
    log: Any = Away()
    committer = GroupCommitter(lambda: log, lambda: NOON, decided.deliver, fails_together=together)
    committer.start()
    outcomes: list[Any] = []
    committer.submit(deque([job(outcomes, 0)]))
    assert log.begun.wait(PATIENCE)
    committer.submit(deque([job(outcomes, 0, first=number) for number in (1, 2)]))
    log.go_on.set()
    decided.wait(3)
    assert decided.commits == ([3] if together else [1, 2])
    assert [isinstance(outcome, LogUnavailable) for outcome in outcomes] == [True, together, together]
    for number in range(3):  # the way is free again
        committer.submit(deque([job(outcomes, 0, first=3 + number)]))
    decided.wait(6)
    assert outcomes[3:] == [{0: 7}] * 3
    committer.stop()
    assert log.appends >= 2
