"""Up to which arrival the store is complete."""

from server.explore.completeness import KEPT, Completeness


def test_a_moment_counts_once_the_store_has_reached_its_ends() -> None:
    found = Completeness()
    found.note(10, {0: 0, 1: 0})
    assert found.as_of({}, {}) == 10
    found.note(20, {0: 5, 1: 0})
    assert found.as_of({}, {}) == 10
    found.note(30, {0: 5, 1: 7})
    assert found.as_of({0: 5}, {}) == 20
    assert found.as_of({0: 5, 1: 6}, {0: 4, 1: 25}) == 25  # what lies in the store says more than the moments
    assert found.as_of({0: 9, 1: 7}, {}) == 30


def test_of_an_idle_log_the_newest_moment_counts() -> None:
    found = Completeness()
    for at in range(100):
        found.note(at, {0: 3})
    assert found.as_of({0: 3}, {}) == 99
    assert found.as_of({0: 3}, {}) == 99
    found.note(100, {0: 3})
    assert found.as_of({0: 3}, {}) == 100


def test_a_first_build_goes_by_arrivals() -> None:
    found = Completeness()
    found.note(1000, {0: 50, 1: 0})
    assert found.as_of({0: 20}, {0: 300}) == 300
    assert found.as_of({}, {}) == 0


def test_it_keeps_some_moments_of_any_length_of_time() -> None:
    found = Completeness()
    for at in range(5 * KEPT):
        found.note(at, {0: at})
    as_of = found.as_of({0: 2 * KEPT}, {})
    assert KEPT < as_of <= 2 * KEPT
    assert found.as_of({0: 5 * KEPT}, {}) == 5 * KEPT - 1
