"""Arrivals under way: others see the earliest, as long as its process lives."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.log.under_way import FOLDER, ArrivalsUnderWay, earliest


def test_a_stamp_is_shown_until_it_is_over(tmp_path: Path) -> None:
    times = iter([100, 103, 110, 111])
    arrivals = ArrivalsUnderWay(lambda: next(times), tmp_path)
    assert earliest(tmp_path) is None
    with arrivals.stamped() as first:
        assert first == 103
        assert earliest(tmp_path) == 100, "shown before the stamp was made"
        with arrivals.stamped() as second:
            assert second == 111
            held = arrivals.hold(second)
        assert earliest(tmp_path) == 100
    assert earliest(tmp_path) == 111
    arrivals.release(held)
    arrivals.release(held)
    assert earliest(tmp_path) is None


def test_the_earliest_of_several_processes_counts(tmp_path: Path) -> None:
    one, two = ArrivalsUnderWay(lambda: 50, tmp_path), ArrivalsUnderWay(lambda: 40, tmp_path)
    with one.stamped():
        assert earliest(tmp_path) == 50
        with two.stamped():
            assert earliest(tmp_path) == 40
    assert earliest(tmp_path) is None


_KILLED = """
import os, sys
from pathlib import Path
from processor.log.under_way import ArrivalsUnderWay
ArrivalsUnderWay(lambda: 7, Path(sys.argv[1])).hold(7)
print("held", flush=True)
sys.stdin.read()
"""


def test_what_a_killed_process_had_under_way_counts_no_longer(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert earliest(tmp_path) == 7
        process.kill()
    assert earliest(tmp_path) is None
    assert list((tmp_path / FOLDER).iterdir()) == []


@given(st.lists(st.tuples(st.integers(1, 9), st.booleans(), st.integers(0, 9))))
def test_the_earliest_is_shown_in_any_order(steps: list[tuple[int, bool, int]]) -> None:
    """The clock may be set back, and what began first may end last."""
    arrivals, held = ArrivalsUnderWay(lambda: 0), list[tuple[int, int]]()
    for arrival, is_begun, place in steps:
        if is_begun or not held:
            held.append((arrivals.hold(arrival), arrival))
        else:
            arrivals.release(held.pop(place % len(held))[0])
        assert arrivals.shown == min((each for _, each in held), default=0)


def test_on_a_full_disk_others_are_shown_it_as_soon_as_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(os, "posix_fallocate", fail)
        arrivals = ArrivalsUnderWay(lambda: 7, tmp_path)
        first = arrivals.hold(7)
        assert list((tmp_path / FOLDER).iterdir()) == []
        assert (arrivals.shown, earliest(tmp_path)) == (7, None)
    second = arrivals.hold(9)
    assert earliest(tmp_path) == 7
    arrivals.release(first)
    assert earliest(tmp_path) == 9
    arrivals.release(second)
    assert earliest(tmp_path) is None


def test_a_directory_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("no folder")
    with pytest.raises(OSError, match="File exists"):
        ArrivalsUnderWay(lambda: 7, tmp_path)
