"""Poison in the log of a real worker: it stops nothing, never disappears, and can be processed later."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from processor.core.events import message
from processor.core.tables.table_rows import decode_value
from processor.log.embedded.log import Log
from processor.log.records import Append, TopicPartition
from processor.log.topics import EVENTS, ROWS
from tests.support.events import make_event
from tests.support.logs import newest_rows, put
from tests.support.messages import first_from
from tests.support.patience import PROCESS_PATIENCE
from tests.support.server import environment, run_cli, server, wait_until
from tests.support.tables import NOON

E0, R0 = TopicPartition(EVENTS, 0), TopicPartition(ROWS, 0)

# A worker with a fault: events of the project "poison" pass the decoding and fail where argv says.
FAULTY: Final = """
import sys
from processor import __main__ as worker
from processor.core.tables.apply import Tables

real = getattr(Tables, sys.argv[1])

def fail(self, *args):
    messages = [each for arg in args for each in (arg if isinstance(arg, list) else [arg])]
    requests = [request for each in messages for request in getattr(each, "requests", ())]
    if any(request.source.project == "poison" for request in requests):
        raise ArithmeticError("a fault of this version")
    return real(self, *args)

setattr(Tables, sys.argv[1], fail)
sys.exit(worker.main())
"""


@contextmanager
def worker(data_dir: Path, *command: str) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, *(command or ("-m", "processor"))],
        env=environment(data_dir),
        cwd=Path(__file__).parents[2],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=PROCESS_PATIENCE)
        finally:
            process.kill()


def applied(log: Log) -> int:
    """The last offset that the tables are past."""
    last = log.read(R0, max(0, log.end(R0) - 1))
    return int(json.loads(last[0].value or b"[-1]")[0]) if last else -1


def wait_applied(log: Log) -> None:
    wait_until(lambda: applied(log) == log.end(E0) - 1)


def requests(log: Log, project: str) -> int:
    rows = [(json.loads(key), decode_value(value)) for key, value in newest_rows(log).items()]
    return sum(value[1] for key, value in rows if key[1] == "user" and key[2] == project)


def dlq(data_dir: Path, *arguments: str) -> Any:
    done = run_cli(data_dir, "dlq", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("method", ["prepare", "_add"])
def test_what_a_version_cannot_process_waits_for_one_that_can(tmp_path: Path, method: str) -> None:
    log = Log(tmp_path)
    put(log, [make_event(), make_event()], project="good")
    poison = put(log, [make_event(), make_event(), make_event()], project="poison")[0]
    put(log, [make_event()], project="good")
    log.append([Append(E0, [(None, b"junk")])], NOON)
    put(log, [make_event()], project="good")
    with worker(tmp_path, "-c", FAULTY, method) as faulty:
        if method == "_add":  # rows were touched: the process ends, and what takes its place goes on
            assert faulty.wait(PROCESS_PATIENCE) == 70
    with worker(tmp_path, "-c", FAULTY, method):
        wait_applied(log)
        assert (requests(log, "good"), requests(log, "poison")) == (4, 0)

        unreadable, faulted = sorted(dlq(tmp_path, "list"), key=lambda letter: letter["events"] or 0)
        assert (faulted["partition"], faulted["offset"], faulted["topic"]) == (0, poison, EVENTS)
        assert "a fault of this version" in faulted["reason"]
        assert (faulted["events"], faulted["retried"]) == (3, None)
        assert (unreadable["events"], unreadable["retried"]) == (None, None)
        assert "not an event message" in unreadable["reason"]
        assert "unreadable" in run_cli(tmp_path, "dlq", "list").stdout
        assert run_cli(tmp_path, "verify").returncode == 0

    with worker(tmp_path):
        one = ("--partition", "0", "--offset", str(poison))
        retried = dlq(tmp_path, "retry", *one)
        assert [(each["offset"], each["newOffset"]) for each in retried["retried"]] == [(poison, log.end(E0) - 1)]
        wait_applied(log)
        assert (requests(log, "good"), requests(log, "poison")) == (4, 3)

        end = log.end(E0)
        assert dlq(tmp_path, "retry", *one) == {"retried": [], "retriedBefore": 1, "unreadable": 0, "damaged": 0}
        assert dlq(tmp_path, "retry", "--all") == {"retried": [], "retriedBefore": 1, "unreadable": 1, "damaged": 0}
        assert log.end(E0) == end
        assert len(dlq(tmp_path, "retry", "--all", "--again")["retried"]) == 1
        wait_applied(log)
        assert requests(log, "poison") == 3
        assert {letter["offset"]: letter["retried"] is not None for letter in dlq(tmp_path, "list")} == {
            poison: True,
            unreadable["offset"]: False,
        }
        assert run_cli(tmp_path, "verify").returncode == 0


def test_a_retry_says_what_it_needs(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.append([Append(E0, [(None, b"junk")])], NOON)
    with worker(tmp_path):
        wait_applied(log)
    for arguments in (["--partition", "0"], [], ["--all", "--partition", "0", "--offset", "0"]):
        done = run_cli(tmp_path, "dlq", "retry", *arguments)
        assert done.returncode == 2
        assert "give --partition and --offset, as" in done.stderr
    assert (
        "no dead letter at partition 0, offset 7"
        in run_cli(tmp_path, "dlq", "retry", "--partition", "0", "--offset", "7").stderr
    )
    unreadable = run_cli(tmp_path, "dlq", "retry", "--partition", "0", "--offset", "0")
    assert (unreadable.returncode, log.end(E0)) == (1, 1)
    assert "cannot read" in unreadable.stdout


def test_poison_that_breaks_the_rows_does_not_stop_a_server(tmp_path: Path) -> None:
    """A message that decodes, and fails for any version while it is applied: its arrival lies in no calendar."""
    with server(tmp_path / "data") as started:
        log = Log(started.data_dir, create=False)
        put(log, [make_event(user_id="before")], project="p")
        value = log.read(E0, 0)[0].value or b""
        poison = first_from(message.decode(value), project="poison", arrival=2**62)
        log.append([Append(E0, [(None, poison)])], time.time_ns() // 1000)
        put(log, [make_event(user_id="after")], project="p")
        wait_applied(log)
        assert (requests(log, "p"), requests(log, "poison")) == (2, 0)
        assert len(started.entries("worker.broken")) == 1
        [letter] = dlq(started.data_dir, "list")
        assert (letter["offset"], letter["events"]) == (1, 1)
        assert "while it was applied" in letter["reason"]
        assert started.cli("verify").returncode == 0
        dlq(started.data_dir, "retry", "--all")
        wait_applied(log)
        assert [letter["retried"] is not None for letter in dlq(started.data_dir, "list")] == [True, False]
        assert requests(log, "p") == 2
        assert started.cli("verify").returncode == 0
