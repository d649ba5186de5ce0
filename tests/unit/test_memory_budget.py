from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import Refused
from server.limits.memory_budget import MemoryBudget


def refusal(hold_or_room: object, *arguments: object) -> Refused:
    with pytest.raises(Refused) as caught:
        hold_or_room(*arguments)  # type: ignore[operator]
    return caught.value


def test_what_is_held_is_given_back() -> None:
    room = MemoryBudget(10)
    with room.hold("a", "k") as first, room.hold("b", "l") as second:
        first.reserve(4)
        second.reserve(6)
        refused = refusal(first.reserve, 1)
        assert (refused.reason, refused.retry_after) == ("unavailable", 1)
        assert (room.used, room.by_owner) == (10, {"a": 4, "b": 6})
    assert (room.used, room.by_owner) == (0, {})


def test_it_is_given_back_once() -> None:
    room = MemoryBudget(10)
    twice, other = room.hold("a", "k", 4), room.hold("a", "k", 2)
    twice.close()
    twice.close()
    assert (room.used, room.by_owner, room.by_member) == (2, {"a": 2}, {"k": 1})
    other.close()
    assert (room.used, room.by_owner, room.by_member) == (0, {}, {})


def test_it_is_given_back_after_an_error() -> None:
    room = MemoryBudget(10)
    with suppress(KeyError), room.hold("a", "k") as hold:
        hold.reserve(10)
        raise KeyError
    assert (room.used, room.by_member) == (0, {})


def test_one_who_takes_all_he_gets_leaves_as_much_for_another() -> None:
    room = MemoryBudget(100)
    with room.hold("greedy", "k") as greedy, room.hold("modest", "m") as modest:
        for _ in range(50):
            greedy.reserve(1)
        refusal(greedy.reserve, 1)
        with room.hold("greedy", "another key") as other:
            refusal(other.reserve, 1)
        modest.reserve(25)
        refusal(modest.reserve, 1)
        with room.hold("third", "t") as third:
            third.reserve(12)


def test_a_first_large_body_is_let_in_if_there_is_room_at_all() -> None:
    room = MemoryBudget(100)
    with room.hold("a", "k") as hold:
        hold.reserve(100)
        with room.hold("b", "l") as late:
            refusal(late.reserve, 1)


def test_a_key_has_only_so_many_requests_under_way() -> None:
    room = MemoryBudget(10, requests=2)
    with room.hold("a", "k"):
        with room.hold("a", "k"):
            refused = refusal(room.hold, "a", "k")
            assert (refused.reason, refused.message) == ("unavailable", "This key has 2 requests under way already")
            with room.hold("a", "another"):
                pass
        with room.hold("a", "k"):
            pass


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 60)), max_size=60))
def test_the_sums_always_agree(steps: list[tuple[str, int]]) -> None:
    room = MemoryBudget(100)
    holds = {name: room.hold(name, name) for name in "abc"}
    held = dict.fromkeys("abc", 0)
    for name, size in steps:
        free = room.limit - room.used
        try:
            holds[name].reserve(size)
        except Refused:
            assert size > free or held[name] + size > free
        else:
            held[name] += size
        assert room.used == sum(held.values()) <= 100
    for hold in holds.values():
        hold.close()
    assert room.used == 0


def test_who_was_refused_is_short_until_something_was_given_back() -> None:
    room = MemoryBudget(160)
    first, second = room.hold("a", "k"), room.hold("a", "k")
    first.reserve(70)
    second.reserve(10)
    assert not room.is_short("a"), "nobody was refused yet"
    assert not room.is_anybody_short()
    with room.hold("a", "k") as third:
        refusal(third.reserve, 10)
    assert room.is_short("a")
    assert not room.is_short("b")
    assert room.is_anybody_short()
    second.close()  # an eighth of it
    assert not room.is_anybody_short()
    assert not room.is_short("a")
    first.close()
    assert room.used == 0
