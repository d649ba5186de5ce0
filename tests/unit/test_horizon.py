"""Up to where windows may be closed, and how far retention may go."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.core.clock import DAY, HOUR, MINUTE, SECOND
from processor.core.tables.horizon import AGE, LEASE_AGE, Horizon
from processor.core.tables.retained import PACE, STEP, Retained, advance, begin
from tests.support.tables import NOON

KEY = b'[0,"horizon"]'


class Owner:
    """Of a partition: a minute of running time after the other, with an arrival in each."""

    def __init__(self) -> None:
        self.horizon = Horizon(KEY)
        self.running = 0
        self.largest = 0

    def run(self, hours: int, *, ahead: int = 0) -> int:
        """So many hours by a clock that is wrong by `ahead`; returns what the right one shows then."""
        for _ in range(60 * hours):
            self.running += MINUTE
            now = NOON + self.running + ahead
            self.largest = max(self.largest, now)
            self.horizon.tick(self.running, now, self.largest)
        return NOON + self.running


def test_it_is_a_day_behind_while_all_is_well() -> None:
    owner = Owner()
    owner.run(24)
    assert (owner.horizon.windows, owner.horizon.retained) == (0, 0), "nothing is a day old"
    now = owner.run(50)
    assert now - AGE - 2 * HOUR <= owner.horizon.windows == owner.horizon.retained <= now - AGE
    assert owner.horizon.leases == 0


def test_hours_of_a_clock_that_is_months_ahead_do_not_move_it() -> None:
    owner = Owner()
    owner.run(30)
    now = owner.run(23, ahead=100 * DAY)
    assert owner.horizon.windows <= now
    now = owner.run(60)
    assert now - AGE - 2 * HOUR <= owner.horizon.windows <= now, "what they were stamped with is not waited for"


def test_a_clock_that_stays_is_followed_after_a_day_but_leases_live_for_their_month() -> None:
    owner = Owner()
    owner.run(30)
    owner.run(27, ahead=100 * DAY)
    found = owner.horizon
    assert found.windows > NOON + 100 * DAY
    assert found.leases == 0
    assert not found.closes("lease", NOON)
    assert found.closes("minute", NOON)
    assert not found.closes("month", NOON)


def test_leases_are_closed_at_last() -> None:
    found = Horizon(KEY)
    for hour in range(24 * 40):
        found.tick(hour * HOUR, NOON + hour * HOUR, NOON + hour * HOUR)
    assert NOON + 40 * DAY - LEASE_AGE - 3 * DAY < found.leases <= NOON + 40 * DAY - LEASE_AGE


def test_arrivals_that_others_stamped_wrongly_close_no_more_than_the_owners_clock_has_seen() -> None:
    found = Horizon(KEY)
    for hour in range(80):
        found.tick(hour * HOUR, NOON, NOON + 100 * DAY)
    assert found.windows == NOON


def test_without_arrivals_nothing_is_closed() -> None:
    found = Horizon(KEY)
    for hour in range(80):
        found.tick(hour * HOUR, NOON + hour * HOUR, NOON)
    assert found.windows == NOON


def test_a_restart_goes_on_where_the_row_was_written() -> None:
    owner = Owner()
    now = owner.run(20) - NOON
    found = owner.horizon
    for _ in range(8):  # restarts every hour, with another clock of the process each time
        found = Horizon(KEY, found.value(), 5)
        assert found.retained == 0
        for minute in range(61):
            found.tick(7 + minute * MINUTE, NOON + now + minute * MINUTE, NOON + now + minute * MINUTE)
        now += HOUR
    assert NOON < found.windows <= NOON + 5 * HOUR


def test_it_is_written_when_it_has_gone_on_and_every_five_minutes() -> None:
    found = Horizon(KEY)
    assert found.dirty, "at first, too: without the row an earlier version would have written the others"
    written = 0
    for second in range(3600):
        found.dirty = 0
        found.tick(second * SECOND, NOON + second * SECOND, NOON)
        written += found.dirty
    assert written == 3600 // 300 - 1


def test_rows_of_an_earlier_version_were_closed_by_the_largest_arrival() -> None:
    found = Horizon.of_earlier(KEY, NOON + 100 * DAY)
    assert found.closes("day", NOON)
    assert not found.closes("lease", NOON), "those of new names are counted again"
    assert found.may_lack("lease", NOON)
    assert not found.may_lack("lease", NOON + 40 * DAY)
    again = Horizon(KEY, found.value())
    assert again.may_lack("lease", NOON)
    assert again.retained == 0, "retention never goes by it"


ticks = st.lists(
    st.tuples(st.integers(0, 5 * HOUR), st.sampled_from([0, 0, 0, HOUR, -HOUR, 100 * DAY, -100 * DAY]), st.booleans()),
    max_size=80,
)


@given(ticks)
def test_it_is_no_later_than_an_arrival_that_is_a_day_old_and_never_goes_back(
    steps: list[tuple[int, int, bool]],
) -> None:
    """Against all that was ever seen, over restarts: the law that it is there for."""
    found = Horizon(KEY)
    running, wrong, largest = 0, 0, 0
    history: list[tuple[int, int, int]] = []
    for elapsed, jump, restarts in steps:
        if restarts:
            found = Horizon(KEY, found.value())
            running = found.running
        else:
            running += elapsed
        wrong += jump
        clock = NOON + running + wrong
        largest = max(largest, clock)
        before = found.windows, found.leases
        found.tick(running, clock, largest)
        history.append((running, clock, largest))
        assert before <= (found.windows, found.leases)
        old = [arrival for at, _, arrival in history if at <= running - AGE]
        assert found.retained <= max(old, default=0)
        assert found.retained == 0 or found.retained <= min(now for at, now, _ in history if at > running - AGE)
        assert len(found.value()) <= 5 + 4 * (28 + 37)
        assert Horizon(KEY, found.value()).value() == found.value()


@pytest.mark.parametrize("numbers", [[1], [0, 0, 0, 0], [0, 0, 0, 0, 2, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]])
def test_a_row_of_another_format_is_refused(numbers: list[int]) -> None:
    with pytest.raises(ValueError, match="horizon"):
        Horizon(KEY, numbers)


def test_what_a_row_costs() -> None:
    owner = Owner()
    owner.run(60)
    assert len(owner.horizon.encode()) < 6000


# --- retention -------------------------------------------------------------------------------------------------------

KEPT_FOR = 90 * DAY


def test_retention_that_was_there_from_the_beginning_goes_as_time_goes() -> None:
    last = begin(None, NOON, NOON, 0, KEPT_FOR)
    now = 0
    for _ in range(24 * 100):
        now += HOUR
        found = advance(last, max(NOON, last.before), NOON + now, now)
        assert found.before <= max(last.before, NOON + now - KEPT_FOR)
        assert found.before - max(last.before, NOON) <= PACE * HOUR
        last = found
    assert last.before == NOON + now - KEPT_FOR


def test_a_horizon_that_jumps_moves_it_by_days_at_most() -> None:
    last = begin(None, NOON, NOON + DAY, 0, KEPT_FOR)
    last = advance(last, NOON, NOON + 91 * DAY, 91 * DAY)
    assert last.before == NOON + DAY
    found = advance(last, last.before, NOON + 300 * DAY, 91 * DAY + HOUR)
    assert found.before == last.before + PACE * HOUR
    for _ in range(1000):  # looks that no time passes between
        found = advance(found, found.before, NOON + 300 * DAY, 91 * DAY + HOUR)
    assert found.before == last.before + PACE * HOUR
    found = advance(found, found.before, NOON + 300 * DAY, 200 * DAY)
    assert found.before == last.before + PACE * HOUR + STEP


def test_a_log_with_years_of_events_gets_there_in_steps() -> None:
    old = NOON - 3 * 365 * DAY
    last = begin(None, old, NOON, 0, KEPT_FOR)
    looks = 0
    while last.before < NOON - KEPT_FOR:
        found = advance(last, max(old, last.before), NOON, looks)
        assert 0 < found.before - max(last.before, old) <= STEP
        last, looks = found, looks + 1
    assert looks == -(-(3 * 365 - 90) // 3)
    assert begin(last, NOON, NOON + 100 * DAY, looks, KEPT_FOR) == last, "it looks for the first time but once"


def test_a_shorter_retention_is_a_first_look_again() -> None:
    last = Retained(NOON - KEPT_FOR, 7, KEPT_FOR, NOON - 3 * KEPT_FOR)
    begun = begin(last, NOON - KEPT_FOR, NOON, 8, 30 * DAY)
    assert begun == Retained(last.before, 8, 30 * DAY, NOON - 30 * DAY)
    assert advance(begun, last.before, NOON, 8).before == last.before + STEP


def test_where_nothing_is_nothing_goes() -> None:
    """A log that stood still for a year: the events from before and after it are days apart for retention, too."""
    last = Retained(NOON, 0, KEPT_FOR, NOON)
    assert advance(last, NOON + 365 * DAY, NOON + 500 * DAY, DAY).before == NOON + 368 * DAY


@given(st.integers(0, 10**16), st.integers(-(10**16), 10**16), st.integers(-DAY, 10 * DAY), st.integers(0, 10**16))
def test_a_round_goes_forward_and_only_to_what_is_past_its_time(
    oldest: int, horizon: int, elapsed: int, before: int
) -> None:
    last = Retained(before, DAY, KEPT_FOR, 0)
    found = advance(last, oldest, horizon, DAY + elapsed)
    assert found.before >= last.before
    assert found.before == last.before or found.before <= horizon - KEPT_FOR
    assert found.before <= max(last.before, oldest) + min(STEP, PACE * max(elapsed, 0))
    assert Retained.of(found.value()) == found
