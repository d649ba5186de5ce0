"""Every row is written once a level, and few segments are left, whatever rate and pauses events come with."""

from itertools import pairwise
from random import Random

import pytest
from msgspec.structs import replace

from processor.core.clock import DAY, SECOND
from processor.event_store.manifest import Segment
from processor.event_store.merging import FAN_IN, LARGE, MAX_SPAN_RETAINED, WIDE_FAN_IN, Bounds, choose
from tests.support.examples import tries

BOUNDS = Bounds(rows=2000, span=MAX_SPAN_RETAINED)


def segment(number: int, rows: int = 10, level: int = 0, arrival: int = 0) -> Segment:
    return Segment(
        id=f"0000-{number}",
        partition=0,
        start=number,
        end=number + 1,
        rows=rows,
        level=level,
        arrival_min=arrival,
        arrival_max=arrival,
    )


def test_neighbours_of_one_level_become_one_once_there_are_enough() -> None:
    live = [segment(number) for number in range(FAN_IN - 1)]
    assert choose(live, BOUNDS) == ()
    live.append(segment(FAN_IN - 1))
    assert choose(live, BOUNDS) == live


def test_the_lowest_level_comes_first_and_the_earliest_of_it() -> None:
    live = [segment(number, level=1) for number in range(FAN_IN)]
    live += [segment(number) for number in range(FAN_IN, 3 * FAN_IN)]
    assert choose(live, BOUNDS) == live[FAN_IN : 2 * FAN_IN]


def test_large_ones_wait_for_more_of_each_other() -> None:
    """So that the rows of a high rate are written once less."""
    large = BOUNDS.rows // LARGE // FAN_IN + 1
    live = [segment(number, rows=large) for number in range(WIDE_FAN_IN - 1)]
    assert choose(live, BOUNDS) == ()
    live.append(segment(WIDE_FAN_IN - 1, rows=large))
    assert choose(live, BOUNDS) == live
    larger = [segment(number, rows=3 * large) for number in range(WIDE_FAN_IN)]
    assert choose(larger, BOUNDS) == larger[: BOUNDS.rows // (3 * large)]
    small = [segment(number, rows=large - 1) for number in range(FAN_IN)]
    assert choose(small, BOUNDS) == small


def test_segments_that_would_be_too_large_or_too_long_together_stay() -> None:
    assert choose([segment(0, rows=1200), segment(1, rows=1200)], BOUNDS) == ()
    full = [segment(0, rows=800), segment(1, rows=800), segment(2, rows=800)]
    assert choose(full, BOUNDS) == full[:2]
    days = [segment(number, arrival=number * DAY * 3 // 4) for number in range(3)]
    assert choose(days, BOUNDS) == days[:2]


def test_absent_ones_are_never_merged_with_others() -> None:
    live = [segment(number) for number in range(FAN_IN)]
    live[3] = replace(live[3], rows=0, is_absent=True)
    assert choose(live, BOUNDS) == ()


@pytest.mark.parametrize("seed", range(tries(10)))
@pytest.mark.parametrize(("pause", "count"), [(0.5, 3000), (60, 3000), (6 * 3600, 1000)])  # up to 250 days
def test_few_segments_are_left_and_rows_are_written_seldom(seed: int, pause: float, count: int) -> None:
    chance = Random(seed)
    live: list[Segment] = []
    written = rows = 0
    for number in range(count):
        size = chance.randrange(4)
        rows += size
        written += size
        live.append(segment(number, size, arrival=int(number * pause * SECOND)))
        while chosen := choose(live, BOUNDS):
            assert len(chosen) > 1
            assert all(former.end == latter.start for former, latter in pairwise(chosen))
            total = sum(each.rows for each in chosen)
            assert total <= BOUNDS.rows
            written += total
            into = Segment(
                id=f"0000-{number}-{len(live)}",
                partition=0,
                start=chosen[0].start,
                end=chosen[-1].end,
                rows=total,
                level=chosen[0].level + 1,
                arrival_min=min((each.arrival_min for each in chosen if each.rows), default=0),
                arrival_max=max((each.arrival_max for each in chosen if each.rows), default=0),
            )
            place = live.index(chosen[0])
            live[place : place + len(chosen)] = [into]
    assert sum(each.rows for each in live) == rows
    days = int(count * pause * SECOND / DAY) + 1
    assert len(live) < rows / BOUNDS.rows * 4 + 8 * FAN_IN + WIDE_FAN_IN + 4 * days
    assert written <= 6 * rows
