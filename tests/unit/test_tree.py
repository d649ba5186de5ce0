"""The forest of a trace: every span once, parents before children, whatever spans say about each other."""

import random
import sys
import time
import tracemalloc
from collections.abc import Sequence
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.explore.tree import Flaw, TreePlace, TreeSpan, arrange

NAMES = "abcdef"

names = st.sampled_from(NAMES)
spans = st.lists(
    st.tuples(names, st.none() | names | st.sampled_from(("", "gone")), st.integers(0, 4)), max_size=12
).flatmap(
    lambda drawn: st.permutations(range(len(drawn))).map(
        lambda arrivals: [TreeSpan(*each, (arrival,)) for each, arrival in zip(drawn, arrivals, strict=True)]
    )
)


def oracle(given_spans: Sequence[TreeSpan]) -> list[TreePlace]:
    """The same, recursively and slowly: from each span the way up is walked anew."""
    count = range(len(given_spans))
    key = {number: (given_spans[number].start, given_spans[number].arrival) for number in count}

    def parent_of(number: int) -> int | None:
        wanted = given_spans[number].parent_span_id
        found = [each for each in count if wanted and given_spans[each].span_id == wanted]
        return min(found, key=lambda each: given_spans[each].arrival, default=None)

    def cycle_of(number: int) -> set[int]:
        way, at = set[int](), parent_of(number)
        while at is not None and at not in way:
            way.add(at)
            at = parent_of(at)
        return way if number in way else set()

    def is_cut(number: int) -> bool:
        cycle = cycle_of(number)
        members = {each for each in cycle if cycle_of(each) == cycle}
        return bool(members) and min(members, key=key.__getitem__) == number

    places: list[TreePlace] = []

    def visit(number: int, parent: int | None, depth: int, named: bool) -> None:
        flaw: Flaw | None = None
        if parent is None and given_spans[number].parent_span_id:
            flaw = "cycle" if named else "orphan"
        places.append(TreePlace(number, parent, depth, flaw))
        place = len(places) - 1
        for child in sorted(count, key=key.__getitem__):
            if parent_of(child) == number and not is_cut(child):
                visit(child, place, depth + 1, False)

    for number in sorted(count, key=key.__getitem__):
        if parent_of(number) is None or is_cut(number):
            visit(number, None, 0, is_cut(number))
    return places


@given(spans)
def test_equals_a_slow_recursion(drawn: list[TreeSpan]) -> None:
    assert arrange(drawn) == oracle(drawn)


@given(spans)
def test_every_span_stands_there_once_behind_its_parent(drawn: list[TreeSpan]) -> None:
    places = arrange(drawn)
    assert sorted(place.span for place in places) == list(range(len(drawn)))
    for number, place in enumerate(places):
        if place.parent is None:
            assert place.depth == 0
        else:
            above = places[place.parent]
            assert place.parent < number
            assert place.depth == above.depth + 1
            assert drawn[above.span].span_id == drawn[place.span].parent_span_id


@given(st.lists(st.none() | st.integers(0, 7), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_the_order_of_arrival_decides_nothing_where_starts_and_ids_differ(
    parents: list[int | None], rng: random.Random
) -> None:
    def shown(arrivals: Sequence[int], order: Sequence[int]) -> list[object]:
        given_spans = [
            TreeSpan(str(each), None if parents[each] is None else str(parents[each]), 1000 - each, (arrivals[each],))
            for each in order
        ]
        return [(given_spans[place.span].span_id, *place[1:]) for place in arrange(given_spans)]

    numbers = list(range(len(parents)))
    arrivals, order = rng.sample(numbers, len(numbers)), rng.sample(numbers, len(numbers))
    assert shown(arrivals, order) == shown(numbers, numbers)


def test_all_orders_of_arrival_of_a_small_trace_give_the_same_tree() -> None:
    """Root, two children, a grandchild, an orphan; a child starts five minutes before its parent."""
    events = [("root", None, 300), ("a", "root", 0), ("b", "root", 301), ("c", "a", 302), ("x", "gone", 1)]
    shown = set()
    for order in permutations(range(5)):
        arrived = [TreeSpan(*events[each], (number,)) for number, each in enumerate(order)]
        shown.add(tuple((arrived[place.span].span_id, *place[1:]) for place in arrange(arrived)))
    assert shown == {
        (("x", None, 0, "orphan"), ("root", None, 0, None), ("a", 1, 1, None), ("c", 2, 2, None), ("b", 1, 1, None))
    }


def test_the_parent_takes_its_orphan_when_it_arrives() -> None:
    child = TreeSpan("child", "root", 5, (0,))
    assert arrange([child]) == [TreePlace(0, None, 0, "orphan")]
    assert arrange([child, TreeSpan("root", None, 0, (1,))]) == [TreePlace(1, None, 0), TreePlace(0, 0, 1)]


def test_of_several_events_with_one_span_id_the_first_to_arrive_has_the_children() -> None:
    given_spans = [
        TreeSpan("twin", None, 0, (2,)),
        TreeSpan("twin", None, 1, (1,)),
        TreeSpan("child", "twin", 2, (0,)),
    ]
    assert arrange(given_spans) == [TreePlace(0, None, 0), TreePlace(1, None, 0), TreePlace(2, 1, 1)]


def test_a_cycle_is_cut_at_its_earliest_span() -> None:
    given_spans = [
        TreeSpan("a", "c", 2, (0,)),
        TreeSpan("b", "a", 1, (1,)),
        TreeSpan("c", "b", 3, (2,)),
        TreeSpan("d", "a", 0, (3,)),
    ]
    assert arrange(given_spans) == [
        TreePlace(1, None, 0, "cycle"),
        TreePlace(2, 0, 1),
        TreePlace(0, 1, 2),
        TreePlace(3, 2, 3),
    ]


def test_a_span_that_is_its_own_parent_is_a_root() -> None:
    assert arrange([TreeSpan("a", "a", 0, (0,))]) == [TreePlace(0, None, 0, "cycle")]


def test_an_empty_parent_is_none() -> None:
    assert arrange([TreeSpan("a", "", 0, (0,))]) == [TreePlace(0, None, 0)]


@pytest.mark.interpreter
@pytest.mark.slow
@pytest.mark.parametrize("depth", [10_000, 50_000])
def test_depth_costs_no_recursion(depth: int) -> None:
    chain = [TreeSpan(str(number), str(number - 1) if number else None, -number, (number,)) for number in range(depth)]
    random.Random(1).shuffle(chain)
    limit = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(200)
        places = arrange(chain)
    finally:
        sys.setrecursionlimit(limit)
    assert [place.depth for place in places] == list(range(depth))
    assert [int(chain[place.span].span_id) for place in places] == list(range(depth))


@pytest.mark.interpreter
@pytest.mark.slow
def test_a_wide_trace_is_fast_and_small() -> None:
    rng = random.Random(2)
    wide = [
        TreeSpan(f"{number:016x}", f"{number // 3:016x}", rng.randrange(1000), (number,)) for number in range(50_000)
    ]
    tracemalloc.start()
    began = time.process_time()
    places = arrange(wide)
    spent = time.process_time() - began
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(places) == 50_000
    assert spent < 5  # tracemalloc costs most of it
    assert peak < 60 << 20


def test_members_of_many_cycles_are_all_there() -> None:
    given_spans = [TreeSpan(str(number), str(number ^ 1), number, (number,)) for number in range(1000)]
    places = arrange(given_spans)
    assert len(places) == 1000
    assert sum(place.flaw == "cycle" for place in places) == 500
