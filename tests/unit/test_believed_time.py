"""Which time is believed when the wall clock jumps."""

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.core.believed_time import MAX_STEP, PROOF, BelievedTime
from processor.core.clock import DAY, HOUR, MINUTE, SECOND
from processor.wall_clock import WallClock
from tests.support.tables import NOON


class Machine:
    """A wall clock and an uptime that a test turns."""

    def __init__(self, wall: int = NOON) -> None:
        self.believed = BelievedTime()
        self.wall = wall
        self.uptime = 1_000 * SECOND

    def go(self, elapsed: int, jump: int = 0) -> int:
        """Let time pass, set the clock, read both."""
        self.uptime += elapsed
        self.wall += elapsed + jump
        return self.read()

    def read(self) -> int:
        return self.believed.read(self.wall, self.uptime)


def test_the_first_time_is_believed() -> None:
    assert Machine(NOON + 400 * DAY).read() == NOON + 400 * DAY


def test_seconds_months_ahead_are_not_believed() -> None:
    clock = Machine()
    clock.read()
    assert clock.go(SECOND, 100 * DAY) == NOON + SECOND
    assert clock.go(3 * SECOND) == NOON + 4 * SECOND
    assert clock.go(SECOND, -100 * DAY) == NOON + 5 * SECOND == clock.wall


def test_a_new_time_is_believed_once_it_has_gone_on_evenly_for_a_minute() -> None:
    clock = Machine()
    clock.read()
    assert clock.go(SECOND, 100 * DAY) == NOON + SECOND
    assert clock.go(PROOF - 1) == NOON + SECOND + PROOF - 1
    assert clock.go(1) == NOON + SECOND + PROOF + 100 * DAY == clock.wall
    assert clock.go(HOUR) == clock.wall


def test_a_clock_that_jumps_again_begins_its_minute_anew() -> None:
    clock = Machine()
    start = clock.read()
    clock.go(SECOND, 100 * DAY)
    clock.go(40 * SECOND, HOUR)
    assert clock.go(40 * SECOND) == start + 81 * SECOND
    assert clock.go(20 * SECOND) == clock.wall


def test_a_step_that_is_not_large_is_followed_and_so_is_sleep() -> None:
    clock = Machine()
    clock.read()
    assert clock.go(SECOND, MAX_STEP) == clock.wall
    assert clock.go(30 * DAY) == clock.wall, "the uptime counts the time that a laptop sleeps"
    assert clock.go(SECOND, MAX_STEP + 1) == clock.wall - MAX_STEP - 1


def test_a_clock_that_was_ahead_at_the_start_is_followed_back_at_once() -> None:
    clock = Machine(NOON + 100 * DAY)
    clock.read()
    assert clock.go(SECOND, -100 * DAY) == NOON + SECOND
    clock.go(PROOF)
    assert clock.go(SECOND, 100 * DAY) == NOON + PROOF + 2 * SECOND, "it is not remembered for ever"


def test_a_clock_that_was_back_for_a_moment_is_followed_forward_at_once() -> None:
    clock = Machine()
    clock.read()
    assert clock.go(SECOND, -56 * 365 * DAY) == clock.wall
    assert clock.go(4 * SECOND) == clock.wall
    assert clock.believed.latest == NOON + 5 * SECOND, "events of now are not in the future"
    assert clock.go(SECOND, 56 * 365 * DAY) == NOON + 6 * SECOND == clock.wall


def test_no_event_is_in_the_future_by_the_clock_that_turns_out_to_be_right() -> None:
    clock = Machine(NOON - 56 * 365 * DAY)  # a machine that learns the date after its start
    clock.read()
    assert clock.go(SECOND, 56 * 365 * DAY) == NOON - 56 * 365 * DAY + SECOND
    assert clock.believed.latest == NOON + SECOND


moves = st.tuples(
    st.integers(0, 2 * MINUTE), st.sampled_from([0, 0, 0, SECOND, -SECOND, MINUTE, HOUR, -HOUR, 100 * DAY, -100 * DAY])
)


@given(st.lists(moves, max_size=40))
def test_what_is_believed_goes_on_evenly_or_is_the_wall_clock(steps: list[tuple[int, int]]) -> None:
    clock = Machine()
    before = clock.read()
    even = 0
    for elapsed, jump in steps:
        even = 0 if jump else even + elapsed
        found = clock.go(elapsed, jump)
        assert found in {before + elapsed, clock.wall}
        assert clock.wall - found > MAX_STEP or found == clock.wall, "it lags only behind a clock that is far ahead"
        assert even < PROOF or found == clock.wall, "and for no longer than a minute"
        assert clock.believed.latest >= max(found, clock.wall)
        before = found


@given(st.lists(st.tuples(st.integers(1, 20 * SECOND), st.booleans()), max_size=60))
def test_a_clock_that_is_wrong_for_less_than_a_minute_at_a_time_moves_nothing(steps: list[tuple[int, bool]]) -> None:
    clock = Machine()
    right = clock.read()
    wrong_for, offset = 0, 0
    for elapsed, is_wrong in steps:
        right += elapsed
        wanted = 100 * DAY if is_wrong and wrong_for + elapsed < PROOF else 0
        wrong_for = wrong_for + elapsed if wanted else 0
        assert clock.go(elapsed, wanted - offset) == right
        offset = wanted


def test_the_shell_reads_both_clocks_together() -> None:
    """A process that is stopped between the two must not take its own pause for a step back."""
    uptimes = iter([0, 10**15, 10**15 + 10, 10**15 + 20])
    clock = WallClock(lambda: NOON * 1000, lambda: next(uptimes))
    assert clock.now() == NOON
    assert next(uptimes) == 10**15 + 20, "the pair was read again"


def test_all_threads_of_a_process_have_one_time() -> None:
    jumped: list[int] = [0]
    clock = WallClock(lambda: NOON * 1000 + jumped[0], lambda: 0)
    assert clock.now() == NOON
    jumped[0] = 100 * DAY * 1000
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(clock.now())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [NOON] * 4
    assert clock.latest() == NOON + 100 * DAY


@pytest.mark.parametrize("ahead", [0, 100 * DAY])
def test_a_process_believes_its_clock_when_it_starts(ahead: int) -> None:
    assert WallClock(lambda: (NOON + ahead) * 1000, lambda: 5).now() == NOON + ahead
