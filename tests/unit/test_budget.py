import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.budget import Budget
from server.errors import Refused


def refusal(hold_or_budget: object, *arguments: object) -> Refused:
    with pytest.raises(Refused) as caught:
        hold_or_budget(*arguments)  # type: ignore[operator]
    return caught.value


def test_what_is_held_is_given_back() -> None:
    budget = Budget(10)
    with budget.hold("a", "k") as first, budget.hold("b", "l") as second:
        first.take(4)
        second.take(6)
        refused = refusal(first.take, 1)
        assert (refused.reason, refused.retry_after) == ("unavailable", 1)
        assert (budget.used, budget.held("a"), budget.held("b")) == (10, 4, 6)
    assert (budget.used, budget.held("a"), budget.held("b")) == (0, 0, 0)


def test_it_is_given_back_after_an_error() -> None:
    budget = Budget(10)
    hold = budget.hold("a", "k")
    hold.__enter__()
    hold.take(10)
    hold.__exit__(KeyError, KeyError(), None)
    assert budget.used == 0


def test_one_who_takes_all_he_gets_leaves_as_much_for_another() -> None:
    budget = Budget(100)
    with budget.hold("greedy", "k") as greedy, budget.hold("modest", "m") as modest:
        for _ in range(50):
            greedy.take(1)
        refusal(greedy.take, 1)
        with budget.hold("greedy", "another key") as other:
            refusal(other.take, 1)
        modest.take(25)
        refusal(modest.take, 1)
        with budget.hold("third", "t") as third:
            third.take(12)


def test_a_first_large_body_is_let_in_if_there_is_room_at_all() -> None:
    budget = Budget(100)
    with budget.hold("a", "k") as hold:
        hold.take(100)
        with budget.hold("b", "l") as late:
            refusal(late.take, 1)


def test_a_key_has_only_so_many_requests_under_way() -> None:
    budget = Budget(10, requests=2)
    with budget.hold("a", "k"):
        with budget.hold("a", "k"):
            refused = refusal(budget.hold, "a", "k")
            assert (refused.reason, refused.message) == ("unavailable", "This key has 2 requests under way already")
            with budget.hold("a", "another"):
                pass
        with budget.hold("a", "k"):
            pass


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 60)), max_size=60))
def test_the_sums_always_agree(steps: list[tuple[str, int]]) -> None:
    budget = Budget(100)
    holds = {name: budget.hold(name, name) for name in "abc"}
    for hold in holds.values():
        hold.__enter__()
    held = dict.fromkeys("abc", 0)
    for name, size in steps:
        free = budget.limit - budget.used
        try:
            holds[name].take(size)
        except Refused:
            assert size > free or held[name] + size > free
        else:
            held[name] += size
        assert budget.used == sum(held.values()) <= 100
    for hold in holds.values():
        hold.__exit__(None, None, None)
    assert budget.used == 0
