"""Processes that compute beside ingest have a lower priority, and long slices where the system knows them."""

import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from processor import background
from processor.background import LOOK, MOST_REST, REST, SPARED, Yielding, cpu_ticks

_READ = """
import json, os, threading
from processor import background

found = []
before = os.nice(0)
taken = background.step_back(3)
thread = threading.Thread(target=lambda: found.append(os.nice(0)))
thread.start()
thread.join()
print(json.dumps([taken, os.nice(0) - before, found[0] - before]))
"""


def test_the_priority_is_lower_and_threads_inherit_it() -> None:
    done = subprocess.run([sys.executable, "-c", _READ], check=True, capture_output=True, text=True)
    taken, own, inherited = json.loads(done.stdout)
    assert (own, inherited) == (3, 3)
    if sys.platform == "linux" and platform.machine() == "x86_64" and not platform.release().startswith(("4.", "5.")):
        assert taken


def test_a_machine_without_the_call_has_the_priority_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "sparc")
    assert not background.step_back(0)


class Machine:
    """Two cores."""

    def __init__(self) -> None:
        self.total = self.busy = 0.0

    def ticks(self) -> tuple[int, int]:
        return round(100 * self.total), round(100 * self.busy)


async def test_work_rests_longer_than_it_took_while_others_fill_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    machine, rests, busy = Machine(), list[float](), 1.6  # the rest waits for the disk

    async def sleep(seconds: float) -> None:
        rests.append(seconds)
        machine.total += 2 * seconds
        machine.busy += busy * seconds

    monkeypatch.setattr("processor.background.asyncio.sleep", sleep)
    yielding = Yielding(machine.ticks, 2)
    await yielding.rest(0.25)
    await yielding.rest(0.5)
    await yielding.rest(5)
    assert rests == pytest.approx([LOOK, REST * 0.25 - LOOK, LOOK, REST * 0.5 - LOOK, LOOK, MOST_REST - LOOK])
    rests.clear()
    busy = 1.4  # more than half a core is left for this work
    for _ in range(SPARED + 1):
        await yielding.rest(0.25)
    assert rests == [LOOK]
    busy = 1.6
    await yielding.rest(0.03)
    await yielding.rest(0.03)
    assert rests == pytest.approx([LOOK, REST * 0.03, 0, REST * 0.03, 0])


async def test_a_full_machine_that_is_idle_for_an_instant_is_still_full(monkeypatch: pytest.MonkeyPatch) -> None:
    machine, idle, rests = Machine(), iter([0.2, 0.2, 0.9, 0.2, 0.9]), list[float]()

    async def sleep(seconds: float) -> None:
        rests.append(seconds)
        if seconds == LOOK:
            machine.total += 2 * seconds
            machine.busy += (2 - next(idle)) * seconds

    monkeypatch.setattr("processor.background.asyncio.sleep", sleep)
    yielding = Yielding(machine.ticks, 2)
    for _ in range(5):
        await yielding.rest(0.5)
    assert rests == pytest.approx(4 * [LOOK, REST * 0.5 - LOOK] + [LOOK])


async def test_where_the_system_does_not_say_who_computes_hardly_anything_rests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rests: list[float] = []

    async def sleep(seconds: float) -> None:
        rests.append(seconds)

    monkeypatch.setattr("processor.background.Path", lambda name: Path(name) / "none")
    monkeypatch.setattr("processor.background.asyncio.sleep", sleep)
    assert cpu_ticks() == (0, 0)
    yielding = Yielding()
    for _ in range(2 * (SPARED + 1)):
        await yielding.rest(0.25)
    assert rests == [LOOK, LOOK]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems do not say")
def test_the_cores_are_busy_for_a_part_of_the_time_that_goes_by() -> None:
    total, busy = cpu_ticks()
    assert 0 < busy < total
    until = time.process_time() + 0.1
    while time.process_time() < until:
        pass
    after, busy_after = cpu_ticks()
    assert after > total
    assert 0 < busy_after - busy <= after - total
