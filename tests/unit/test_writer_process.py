"""Writes to the embedded log that a forked process does."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from processor.log.embedded.log import Log
from processor.log.embedded.writer_process import LogWrittenAside, WriterGone, WriterProcess
from processor.log.errors import LogBroken, LogError
from processor.log.file_lock import FileLock, holder_of
from processor.log.records import Append, TopicPartition
from processor.log.topics import EVENTS, SEGMENTS
from tests.support.patience import PATIENCE
from tests.support.server import is_alive, wait_until

E0, S0 = TopicPartition(EVENTS, 0), TopicPartition(SEGMENTS, 0)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[WriterProcess]:
    Log(tmp_path).close()
    made = WriterProcess(tmp_path)
    yield made
    made.close()
    assert not is_alive(made.pid)


def test_what_is_written_aside_is_in_the_log(tmp_path: Path, writer: WriterProcess) -> None:
    with closing(LogWrittenAside(tmp_path, writer)) as log, closing(Log(tmp_path, create=False)) as other:
        appended = [Append(S0, [(b"a", b"1"), (b"b", None)]), Append(E0, [(None, b"x" * 3_000_000)])]
        assert log.append(iter(appended), 7) == [0, 0]
        assert log.append([Append(S0, [(b"c", b"3")])], 8) == [2]
        log.commit("group", iter([(E0, 1)]))
        log.delete(S0, [0])
        for each in (log, other):
            assert [(record.offset, record.at, record.key, record.value) for record in each.read(S0, 0)] == [
                (1, 7, b"b", None),
                (2, 8, b"c", b"3"),
            ]
            assert [len(record.value or b"") for record in each.read(E0, 0)] == [3_000_000]
            assert each.committed("group", E0) == 1


def test_nothing_takes_the_lock_in_the_process_that_asks(
    tmp_path: Path, writer: WriterProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FileLock, "held", lambda self: pytest.fail("it may stand still now"))
    with closing(LogWrittenAside(tmp_path, writer)) as log:
        assert log.append([Append(E0, [(None, b"a")])], 1) == [0]
        log.commit("group", [(E0, 1)])
        log.delete(S0, [])
        assert len(log.read(E0, 0)) == 1
        with pytest.raises(AssertionError):
            log.trim(E0, 1)


def test_an_error_of_the_log_is_raised_here(tmp_path: Path, writer: WriterProcess) -> None:
    with closing(LogWrittenAside(tmp_path, writer)) as log:
        with pytest.raises(LogError, match="no partition 9 of topic"):
            log.append([Append(TopicPartition(EVENTS, 9), [(None, b"a")])], 1)
        assert log.append([Append(E0, [(None, b"a")])], 1) == [0]
        log.path.with_name("log.db-wal").unlink()
        with pytest.raises(LogBroken, match="was deleted while it was in use"):
            log.append([Append(E0, [(None, b"b")])], 1)


def test_it_is_said_that_the_process_is_gone(tmp_path: Path, writer: WriterProcess) -> None:
    with closing(LogWrittenAside(tmp_path, writer)) as log:
        os.kill(writer.pid, signal.SIGTERM)  # of the whole group: it ends with the process that asks
        assert log.append([Append(E0, [(None, b"a")])], 1) == [0]
        os.kill(writer.pid, signal.SIGKILL)
        for _ in range(2):
            with pytest.raises(WriterGone):
                log.append([Append(E0, [(None, b"b")])], 1)
        assert len(log.read(E0, 0)) == 1


_ASKS = """
import sys, time
from pathlib import Path
from processor.log.embedded.log import Log
from processor.log.embedded.writer_process import LogWrittenAside, WriterProcess
from processor.log.file_lock import FileLock
from processor.log.records import Append, TopicPartition
directory = Path(sys.argv[1])
lock = FileLock(directory / "own.lock")
lock.acquire("nobody has it")
writer = WriterProcess(directory)
log = LogWrittenAside(directory, writer)
while True:
    log.append([Append(TopicPartition("spendstream.events", 0), [(None, b"a")])], 1)
    print(writer.pid, flush=True)
"""


def is_waited_for(path: Path) -> bool:
    """Whether another process blocks for a lock of a file that one holds. See proc_locks(5)."""
    waiting = [line for line in Path("/proc/locks").read_text().splitlines() if "->" in line]
    return any(f":{path.stat().st_ino} " in line for line in waiting)


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="the system does not say who waits for a lock")
def test_it_ends_with_the_process_that_asks_and_finishes_its_write_first(tmp_path: Path) -> None:
    """The next one that has the lock finds all that was asked for: what is appended twice would be there twice."""
    Log(tmp_path).close()
    asks = [sys.executable, "-c", _ASKS, str(tmp_path)]
    with subprocess.Popen(asks, stdout=subprocess.PIPE) as process, closing(Log(tmp_path, create=False)) as log:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        with FileLock(tmp_path / "log.lock").held():
            wait_until(lambda: is_waited_for(tmp_path / "log.lock"))
            process.kill()
            process.stdout.read()  # who waits for the process's output does not wait for the writer
            process.wait(PATIENCE)
            assert is_alive(pid)
            assert holder_of(tmp_path / "own.lock") == process.pid, "kept for the write that was asked for"
            before = log.end(E0)
        FileLock(tmp_path / "own.lock").acquire("it has ended", PATIENCE)
        assert log.end(E0) in {before, before + 1}
        wait_until(lambda: not is_alive(pid))


def test_threads_take_turns(tmp_path: Path, writer: WriterProcess) -> None:
    with closing(Log(tmp_path, create=False)) as log:

        def work(name: bytes) -> None:
            with closing(LogWrittenAside(tmp_path, writer)) as own:
                for number in range(20):
                    [offset] = own.append([Append(E0, [(name, b"%d" % number)])], 1)
                    [record] = own.read(E0, offset, 1)
                    assert (record.key, record.value) == (name, b"%d" % number)
                    done.append(offset)

        done: list[int] = []
        threads = [threading.Thread(target=work, args=(name,)) for name in (b"a", b"b", b"c")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert sorted(done) == list(range(60))
        assert log.end(E0) == 60
