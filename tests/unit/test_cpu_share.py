import asyncio

import pytest

from server.live.cpu_share import MAX_SHARE, CpuShare


class Clock:
    """Time that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def busy(self) -> float:
        """The processor time of a process that always works."""
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await real_sleep(0)


real_sleep = asyncio.sleep


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("server.live.cpu_share.asyncio.sleep", made.sleep)
    return made


async def test_work_takes_its_share_of_the_time(clock: Clock) -> None:
    pace = CpuShare(clock, clock.busy, share=0.25, burst=0.1)
    began = clock.now
    for _ in range(50):
        await pace.reserve(0.1)
    assert clock.now - began == pytest.approx((50 * 0.1 - 0.1 - 0.1) / 0.25, rel=0.01)


async def test_after_a_rest_there_is_room_at_once_but_not_more_than_the_burst(clock: Clock) -> None:
    pace = CpuShare(clock, clock.busy, share=0.5, burst=0.125)
    await pace.reserve(0.05)
    clock.now += 1000
    began = clock.now
    for _ in range(4):
        await pace.reserve(0.03125)
    assert clock.now == began
    await pace.reserve(0.03125)
    assert clock.now > began


async def test_who_asks_first_gets_on_first(clock: Clock) -> None:
    pace = CpuShare(clock, clock.busy, share=0.5, burst=0.1)
    await pace.reserve(0.2)
    order: list[int] = []

    async def worker(number: int) -> None:
        await pace.reserve(0.1)
        order.append(number)

    await asyncio.gather(*(worker(number) for number in range(20)))
    assert order == list(range(20))


async def test_a_process_with_nothing_else_to_do_gives_more(clock: Clock) -> None:
    """A thousand subscribers of ten thousand users are 20 s of work; with a share of 0.15 that was two minutes."""

    started: float | None = None

    def worked() -> float:
        return 0.0 if started is None else clock.now - started

    async def spent(times: int) -> float:
        began = clock.now
        for _ in range(times):
            await pace.reserve(0.02)
        return clock.now - began

    pace = CpuShare(clock, worked, share=0.15)
    assert await spent(1000) < 6
    assert await spent(1000) == pytest.approx(20 / MAX_SHARE, rel=0.1)
    # Then ingest begins: within a second it is the least again.
    started = clock.now
    await spent(300)
    assert await spent(100) == pytest.approx(2 / 0.15, rel=0.1)
