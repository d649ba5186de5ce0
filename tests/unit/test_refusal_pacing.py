"""How long refusals are held back."""

import pytest

from server.errors import Reason, Refused
from server.limits.refusal_pacing import BURST, LONGEST, MAX_SENDERS, RATE, RefusalPacer


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_is_answered_at_once_and_what_follows_at_the_rate() -> None:
    throttle = RefusalPacer(Clock())
    waits = [throttle.delay("a") for _ in range(BURST + 10)]
    assert waits[:BURST] == pytest.approx([0.0] * BURST, abs=1e-9)
    assert waits[BURST:] == pytest.approx([number / RATE for number in range(1, 11)])


def test_senders_do_not_wait_for_each_other() -> None:
    throttle = RefusalPacer(Clock())
    for _ in range(10 * BURST):
        throttle.delay("noisy")
    assert throttle.delay("noisy") > 1
    assert throttle.delay("quiet") == 0


def test_who_waits_has_a_burst_again() -> None:
    clock = Clock()
    throttle = RefusalPacer(clock)
    for _ in range(10 * BURST):
        throttle.delay("a")
    clock.now += LONGEST + BURST / RATE + BURST / RATE
    assert [throttle.delay("a") for _ in range(BURST)] == pytest.approx([0.0] * BURST, abs=1e-9)
    assert throttle.delay("a") > 0


def test_no_answer_is_held_back_longer_than_that() -> None:
    throttle = RefusalPacer(Clock())
    assert max(throttle.delay("a") for _ in range(100_000)) == LONGEST


def test_memory_is_bounded_and_old_senders_make_room() -> None:
    clock = Clock()
    throttle = RefusalPacer(clock)
    for number in range(3 * MAX_SENDERS):
        throttle.delay(f"address {number}")
    assert len(throttle) <= MAX_SENDERS + 1
    assert throttle.delay("another one of the crowd") > 0
    clock.now += 1000
    assert throttle.delay("later") == 0
    assert len(throttle) == 1


@pytest.mark.parametrize(("reason", "held"), [("bad_batch", True), ("rate_limited", True), ("unavailable", False)])
async def test_what_is_not_the_senders_fault_is_answered_at_once(reason: Reason, held: bool) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    throttle = RefusalPacer(Clock(), sleep)
    for _ in range(BURST + 1):
        await throttle.pace("a", Refused(reason, "no"))
    assert slept == ([pytest.approx(1 / RATE)] if held else [])
