"""A merge that cannot wait for cuts until these keep up takes turns with them: never both at once, and both go on."""

from types import SimpleNamespace
from typing import Any

import pytest

from processor.event_store import upkeep as tested
from processor.event_store.upkeep import LOOK, MOST_HELD, MOST_TURN, Upkeep


@pytest.mark.parametrize("looks", [1, 4, 1000])
def test_a_merge_waits_for_a_cut_and_has_the_next_one_wait_as_long(looks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    store: Any = SimpleNamespace(is_cutting=True, cuts_wait_until=0.0)
    began = 0.0
    clock = SimpleNamespace(now=began)

    def sleep(seconds: float) -> None:
        clock.now += seconds
        store.is_cutting = clock.now < began + (looks - 0.5) * LOOK

    monkeypatch.setattr(tested, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep))
    Upkeep(store).take_turns()
    waited = clock.now - began
    assert waited == pytest.approx(looks * LOOK)
    assert store.cuts_wait_until == clock.now + min(waited, MOST_TURN)
    store.is_cutting = True  # one that has begun before it was to wait
    Upkeep(store).take_turns()
    assert clock.now == began + waited


def test_a_merge_that_nothing_is_cut_beside_has_no_cut_wait() -> None:
    store: Any = SimpleNamespace(is_cutting=False, cuts_wait_until=0.0)
    Upkeep(store).take_turns()
    assert store.cuts_wait_until == 0.0


def test_a_merge_that_goes_first_has_cuts_wait_once_one_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    store: Any = SimpleNamespace(is_cutting=True, cuts_wait_until=0.0)
    clock = SimpleNamespace(now=0.0)

    def sleep(seconds: float) -> None:
        clock.now += seconds
        store.is_cutting = clock.now < 3.5 * LOOK

    monkeypatch.setattr(tested, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep))
    Upkeep(store).hold_cuts()
    assert clock.now == pytest.approx(4 * LOOK)
    assert store.cuts_wait_until == clock.now + MOST_HELD
