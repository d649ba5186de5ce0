"""Who is next: the pure part of the gate before the HTTP API."""

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from server.http_api.gate import FairQueue

NEVER = float("-inf")


def anybody(_: str) -> bool:
    return True


def test_one_owner_after_the_other_and_of_each_the_first() -> None:
    turns: FairQueue[str] = FairQueue()
    for number in range(4):
        turns.add("many", f"m{number}", number)
    turns.add("one", "o", 9)
    assert list(turns.admit(3, anybody, NEVER)) == ["m0", "o", "m1"]
    assert list(turns.admit(9, anybody, NEVER)) == ["m2", "m3"]
    assert (len(turns), list(turns.admit(9, anybody, NEVER))) == (0, [])


def test_who_may_not_go_keeps_his_place_and_holds_nobody_up() -> None:
    turns: FairQueue[str] = FairQueue()
    for number, owner in enumerate("aab"):
        turns.add(owner, f"{owner}{number}", number)
    assert list(turns.admit(9, lambda owner: owner == "b", NEVER)) == ["b2"]
    assert list(turns.admit(9, lambda _: False, NEVER)) == []
    assert list(turns.admit(9, anybody, NEVER)) == ["a0", "a1"]


def test_of_an_owner_who_is_late_the_last_comes_first() -> None:
    turns: FairQueue[str] = FairQueue()
    for number in range(3):
        turns.add("late", f"l{number}", number)
        turns.add("early", f"e{number}", number + 10)
    assert list(turns.admit(4, anybody, 1)) == ["l2", "e0", "l1", "e1"]


def test_who_has_waited_for_too_long_is_given_up_the_oldest_first() -> None:
    turns: FairQueue[str] = FairQueue()
    for number, owner in enumerate("abab"):
        turns.add(owner, f"{owner}{number}", number)
    assert list(turns.admit(1, anybody, NEVER)) == ["a0"]
    assert list(turns.give_up(1, 3)) == ["b1"]
    assert list(turns.give_up(9, 3)) == ["a2"]
    assert list(turns.give_up(9, 3)) == []
    assert list(turns.give_up(9, 4)) == ["b3"]
    assert len(turns) == 0


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.sampled_from("abc")),
            st.tuples(st.just("take"), st.integers(0, 4)),
            st.tuples(st.just("give_up"), st.integers(0, 4)),
        ),
        max_size=80,
    ),
    st.integers(0, 20),
)
def test_nothing_is_lost_or_doubled_and_nothing_is_given_up_too_early(
    steps: list[tuple[str, str | int]], patience: int
) -> None:
    turns: FairQueue[int] = FairQueue()
    waiting: dict[str, list[int]] = defaultdict(list)
    owners: dict[int, str] = {}
    for now, (step, what) in enumerate(steps):
        if isinstance(what, str):
            turns.add(what, now, now)
            waiting[what].append(now)
            owners[now] = what
            continue
        if step == "take":
            gone = list(turns.admit(what, anybody, now - patience / 2))
            assert len(gone) == min(what, sum(map(len, waiting.values())))
        else:
            old = sorted(item for items in waiting.values() for item in items if item < now - patience)
            gone = list(turns.give_up(what, now - patience))
            assert gone == old[:what]
        for item in gone:
            waiting[owners[item]].remove(item)
        assert len(turns) == sum(map(len, waiting.values()))
