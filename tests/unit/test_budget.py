import pytest

from server.budget import Budget
from server.errors import Refused


def test_what_is_held_is_given_back() -> None:
    budget = Budget(10)
    with budget.hold() as first, budget.hold() as second:
        first.take(4)
        second.take(6)
        with pytest.raises(Refused) as caught:
            first.take(1)
        assert (caught.value.reason, caught.value.retry_after) == ("unavailable", 1)
        assert budget.used == 10
    assert budget.used == 0


def test_it_is_given_back_after_an_error() -> None:
    budget = Budget(10)
    hold = budget.hold()
    hold.take(10)
    hold.__exit__(KeyError, KeyError(), None)
    assert budget.used == 0
