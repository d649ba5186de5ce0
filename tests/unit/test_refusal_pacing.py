"""How long refusals are held back, and how many at once."""

import asyncio

import pytest

from server.errors import Reason, Refused
from server.limits import refusal_pacing
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


async def test_of_one_client_and_of_all_only_so_many_wait_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusal_pacing, "MOST_OF_ONE", 3)
    monkeypatch.setattr(refusal_pacing, "MOST_WAITING", 5)
    held = 0

    async def sleep(_: float) -> None:
        nonlocal held
        held += 1
        try:
            await asyncio.Event().wait()
        finally:
            held -= 1

    throttle = RefusalPacer(Clock(), sleep)
    for sender in ("a", "b", "c"):
        for _ in range(BURST):
            throttle.delay(sender)

    async def refuse(sender: str, count: int) -> list[asyncio.Task[None]]:
        """Return which of so many refusals wait."""
        tasks = [asyncio.create_task(throttle.pace(sender, Refused("bad_batch", "no"))) for _ in range(count)]
        await asyncio.sleep(0)
        return [task for task in tasks if not task.done()]

    of_a, of_b, of_c = [await refuse(sender, 10) for sender in ("a", "b", "c")]
    assert (len(of_a), len(of_b), len(of_c), held) == (3, 2, 0, 5)
    for task in of_a:  # its client leaves
        task.cancel()
    await asyncio.gather(*of_a, return_exceptions=True)
    of_c = await refuse("c", 10)
    assert len(of_c) == 3
    for task in (*of_b, *of_c):
        task.cancel()
