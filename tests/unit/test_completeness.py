"""Up to which arrival the store is complete."""

from processor.core.clock import SECOND
from server.explore.completeness import DISORDER, KEPT, Completeness


def test_a_moment_counts_once_the_store_has_reached_its_ends() -> None:
    found = Completeness()
    found.note(10, {0: 0, 1: 0})
    assert found.as_of({}, {}) == 10
    found.note(20, {0: 5, 1: 0})
    assert found.as_of({}, {}) == 10
    found.note(30, {0: 5, 1: 7})
    assert found.as_of({0: 5}, {}) == 20
    assert found.as_of({0: 5, 1: 6}, {0: 4, 1: 25}) == 20
    assert found.as_of({0: 9, 1: 7}, {}) == 30


def test_an_event_that_was_longer_on_its_way_than_later_ones_is_not_passed_over() -> None:
    """Offsets 3 and 4 are of two API processes: that of the first to arrive was slower to append."""
    found = Completeness()
    found.note(10, {0: 3})
    found.note(20, {0: 5})
    arrivals = {3: 15, 4: 12}
    stored = {0: 4}
    as_of = found.as_of(stored, {0: max(at for offset, at in arrivals.items() if offset < stored[0])})
    assert all(offset < stored[0] for offset, at in arrivals.items() if at <= as_of)
    assert as_of == 10


def test_a_store_that_begins_anew_is_not_complete_any_more() -> None:
    found = Completeness()
    found.note(100 * SECOND, {0: 40, 1: 0})
    assert found.as_of({0: 40}, {0: 99 * SECOND}) == 100 * SECOND
    assert found.as_of({}, {}) == 0
    assert found.as_of({0: 7}, {0: 70 * SECOND}) == 70 * SECOND - DISORDER
    found.note(110 * SECOND, {0: 44, 1: 0})
    assert found.as_of({0: 39}, {0: 98 * SECOND}) == 98 * SECOND - DISORDER
    assert found.as_of({0: 43}, {0: 108 * SECOND}) == 100 * SECOND
    assert found.as_of({0: 44}, {0: 109 * SECOND}) == 110 * SECOND


def test_of_an_idle_log_the_newest_moment_counts() -> None:
    found = Completeness()
    for at in range(100):
        found.note(at, {0: 3})
    assert found.as_of({0: 3}, {}) == 99
    assert found.as_of({0: 3}, {}) == 99
    found.note(100, {0: 3})
    assert found.as_of({0: 3}, {}) == 100


def test_a_first_build_goes_by_arrivals() -> None:
    """Which are in order, but for those that were on their way at the same time."""
    found = Completeness()
    found.note(1000 * SECOND, {0: 50, 1: 0})
    assert found.as_of({0: 20}, {0: 300 * SECOND}) == 300 * SECOND - DISORDER
    assert found.as_of({}, {}) == 0
    assert found.as_of({0: 1}, {0: 1}) == 0


def test_a_first_build_is_never_ahead_of_what_it_has_to_reach() -> None:
    """A clock that was wrong has stamped an arrival in the future."""
    found = Completeness()
    found.note(1000 * SECOND, {0: 50})
    assert found.as_of({0: 49}, {0: 5000 * SECOND}) <= 1000 * SECOND


def test_it_keeps_some_moments_of_any_length_of_time() -> None:
    found = Completeness()
    for at in range(5 * KEPT):
        found.note(at, {0: at})
    as_of = found.as_of({0: 2 * KEPT}, {0: 2 * KEPT})
    assert KEPT < as_of <= 2 * KEPT
    assert found.as_of({0: 5 * KEPT}, {}) == 5 * KEPT - 1
